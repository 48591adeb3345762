//! Every way in which a file can be wrong has its own error, and nothing is handed out before all is checked.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use dcu_artifact::{
    Array, Dataset, DatasetFacts, Digest, Error, Header, Holdout, Metrics, Model, ModelFacts, Normalisation, Payload, Producer, Provenance,
    Request, RequestFacts, Tensor,
};
use serde_json::{Value, json};

fn provenance() -> Provenance {
    let producer = Producer { crate_name: "dcu-test".into(), method: "test".into(), version: 1 };
    Provenance {
        producer,
        parameters: json!({ "b": 0.1, "a": [1, "é"] }),
        seed: Some(7),
        inputs: BTreeMap::new(),
        externals: BTreeMap::new(),
    }
}

fn normalisation() -> Normalisation {
    Normalisation { mean: vec![0.25], std: vec![0.3] }
}

fn dataset() -> Dataset {
    let facts =
        DatasetFacts { source: "test".into(), class_names: vec!["zero".into(), "one".into()], normalisation: normalisation(), names: None };
    Dataset {
        images: Array::new(vec![3, 1, 2, 2], (0..12).collect()),
        labels: vec![0, 1, 1],
        original_labels: None,
        ids: vec![5, 3, 9],
        facts,
    }
}

fn model(values: Vec<f32>) -> Model {
    let facts = ModelFacts {
        architecture: json!({}),
        recipe: json!({}),
        class_names: vec!["a".into(), "b".into()],
        normalisation: normalisation(),
        ridge: None,
        unseen: false,
    };
    Model { tensors: BTreeMap::from([("weight".to_owned(), Tensor::F32(Array::vector(values)))]), facts }
}

fn written<P: Payload>(payload: &P) -> (tempfile::TempDir, PathBuf, Digest) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let digest = dcu_artifact::write(&path, payload, &provenance()).unwrap();
    (folder, path, digest)
}

/// A safetensors file with any metadata and tensors.
fn raw(path: &Path, metadata: Value, tensors: &[(&str, safetensors::Dtype, Vec<usize>, Vec<u8>)]) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let metadata = HashMap::from([("artifact".to_owned(), metadata.to_string())]);
    std::fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

fn message<P: Payload + std::fmt::Debug>(path: &Path) -> String {
    dcu_artifact::read::<P>(path).unwrap_err().to_string()
}

#[test]
fn what_was_written_is_read_back() {
    let (_folder, path, digest) = written(&dataset());
    let (read, header) = dcu_artifact::read::<Dataset>(&path).unwrap();
    assert_eq!(read, dataset());
    assert_eq!((header.digest, header.provenance), (digest, provenance()));
    assert_eq!(Header::read(&path).unwrap(), dcu_artifact::verify(&path).unwrap());
}

#[test]
fn the_same_payload_gives_the_same_bytes_and_provenance_is_not_content() {
    let (_a, first, digest) = written(&dataset());
    let (_b, second, _) = written(&dataset());
    assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
    let other = Provenance { seed: Some(8), ..provenance() };
    assert_eq!(dcu_artifact::write(&second, &dataset(), &other).unwrap(), digest);
    assert_ne!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
}

#[test]
fn every_flipped_bit_is_found() {
    let (_folder, path, _) = written(&dataset());
    let whole = std::fs::read(&path).unwrap();
    for position in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[position] ^= 1 << (position % 8);
        std::fs::write(&path, &bytes).unwrap();
        assert!(dcu_artifact::read::<Dataset>(&path).is_err(), "byte {position} of {} was changed unnoticed", whole.len());
    }
}

#[test]
fn every_truncation_is_found() {
    let (_folder, path, _) = written(&dataset());
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        for error in [dcu_artifact::read::<Dataset>(&path).unwrap_err(), dcu_artifact::verify(&path).unwrap_err()] {
            assert!(matches!(error, Error::Damaged { .. }), "{length}: {error}");
        }
    }
    std::fs::write(&path, [whole.as_slice(), &[0]].concat()).unwrap();
    assert!(matches!(dcu_artifact::read::<Dataset>(&path).unwrap_err(), Error::Damaged { .. }));
}

#[test]
fn an_oversized_header_is_refused_without_reading_it() {
    let (_folder, path, _) = written(&dataset());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let message = message::<Dataset>(&path);
    assert!(message.contains("the header claims 18446744073709551615 bytes"), "{message}");
}

#[test]
fn another_schema_and_a_newer_version_are_told_apart() {
    let (_folder, path, _) = written(&dataset());
    let error = dcu_artifact::read::<Model>(&path).unwrap_err();
    assert!(matches!(&error, Error::WrongSchema { expected, found, .. } if expected == "model/1" && found == "dataset/1"), "{error}");

    #[derive(Debug)]
    struct Future;
    impl Payload for Future {
        const SCHEMA: &'static str = "dataset/2";
        fn to_content(&self) -> dcu_artifact::Content {
            dcu_artifact::Content { schema: Self::SCHEMA.into(), facts: json!({}), tensors: BTreeMap::new() }
        }
        fn from_content(_: dcu_artifact::Content) -> Result<Self, String> {
            Ok(Self)
        }
    }
    let (_folder, path, _) = written(&Future);
    let error = dcu_artifact::read::<Dataset>(&path).unwrap_err();
    assert!(matches!(&error, Error::NewerVersion { found, .. } if found == "dataset/2"), "{error}");
    assert!(error.remedy().contains("update this program"));
}

#[test]
fn a_file_of_another_kind_is_no_artifact() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    std::fs::write(&path, b"{\"a\": 1}").unwrap();
    assert!(matches!(dcu_artifact::read::<Model>(&path).unwrap_err(), Error::Damaged { .. }));
    let bytes: [u8; 4] = 1.0_f32.to_le_bytes();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &bytes).unwrap();
    std::fs::write(&path, safetensors::serialize([("weight", view)], None).unwrap()).unwrap();
    let error = dcu_artifact::read::<Model>(&path).unwrap_err();
    assert!(matches!(error, Error::NotAnArtifact { .. }) && error.remedy().contains("train/import"), "{error}");
    assert!(matches!(dcu_artifact::read::<Model>(&folder.path().join("none")).unwrap_err(), Error::Io { .. }));
}

/// Writes a bare file as an outside program does, and takes it over.
fn adopted(schema: &str, facts: Value, tensors: &[(&str, safetensors::Dtype, Vec<usize>, Vec<u8>)]) -> Result<Header, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    raw(&path, json!({ "schema": schema, "facts": facts }), tensors);
    dcu_artifact::adopt(&path, &provenance()).map_err(|error| error.to_string())
}

fn facts_of<P: Payload>(payload: &P) -> Value {
    payload.to_content().facts
}

#[test]
fn wrong_types_shapes_ranges_and_values_are_each_named() {
    use safetensors::Dtype::{F32, F64, U8, U32, U64};
    let facts = facts_of(&dataset());
    let labels = |values: [u32; 2]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let ids = |values: [u64; 2]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let images = ("images", U8, vec![2, 1, 2, 1], vec![1, 2, 3, 4]);
    let right_labels = ("labels", U32, vec![2], labels([0, 1]));
    let right_ids = ("ids", U64, vec![2], ids([1, 2]));
    assert!(adopted("dataset/1", facts.clone(), &[images.clone(), right_labels.clone(), right_ids.clone()]).is_ok());
    let cases = [
        ("needs 4 dimensions", vec![("images", U8, vec![2, 2], vec![1, 2, 3, 4]), right_labels.clone(), right_ids.clone()]),
        ("has the type F32, but needs U8", vec![("images", F32, vec![1, 1, 1, 1], vec![0; 4]), right_labels.clone(), right_ids.clone()]),
        ("tensor `labels` has 3 values, but needs 2", vec![images.clone(), ("labels", U32, vec![3], vec![0; 12]), right_ids.clone()]),
        (
            "label 2 in row 1 is out of range: there are 2 classes",
            vec![images.clone(), ("labels", U32, vec![2], labels([0, 2])), right_ids.clone()],
        ),
        ("sample train:1 appears twice", vec![images.clone(), right_labels.clone(), ("ids", U64, vec![2], ids([1, 1]))]),
        ("tensor `ids` is missing", vec![images.clone(), right_labels.clone()]),
        (
            "tensor `more` does not belong here",
            vec![images.clone(), right_labels.clone(), right_ids.clone(), ("more", U8, vec![1], vec![1])],
        ),
    ];
    for (expected, tensors) in cases {
        let message = adopted("dataset/1", facts.clone(), &tensors).unwrap_err();
        assert!(message.contains(expected), "`{expected}` is not in: {message}");
    }
    let message =
        adopted("model/1", facts_of(&model(vec![1.0])), &[("weight", F32, vec![1], f32::NAN.to_le_bytes().to_vec())]).unwrap_err();
    assert!(message.contains("tensor `weight` holds NaN at position 0"), "{message}");
    let mut metrics = Metrics::default();
    metrics.scalar("accuracy", 0.5, "fraction", "a share");
    let message = adopted("metrics/1", facts_of(&metrics), &[("accuracy", F64, vec![], f64::INFINITY.to_le_bytes().to_vec())]).unwrap_err();
    assert!(message.contains("`accuracy` holds inf"), "{message}");
    let message = adopted("nothing/1", json!({}), &[]).unwrap_err();
    assert!(message.contains("the schema `nothing/1` is unknown"), "{message}");
}

#[test]
fn what_breaks_a_rule_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let refused = |result: dcu_artifact::Result<Digest>, expected: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was left behind");
    };
    refused(dcu_artifact::write(&path, &model(vec![f32::INFINITY]), &provenance()), "holds inf");
    let facts = RequestFacts { scenario: "ids".into(), classes: vec![], cumulative: false };
    let request =
        |forget: &[u64], retain: &[u64]| Request { forget: forget.into(), retain: retain.into(), earlier: vec![], facts: facts.clone() };
    refused(dcu_artifact::write(&path, &request(&[], &[1]), &provenance()), "the forget set is empty");
    refused(dcu_artifact::write(&path, &request(&[1], &[]), &provenance()), "the forget set is everything");
    refused(dcu_artifact::write(&path, &request(&[1], &[1]), &provenance()), "in forget and in retain");
    let holdout = Holdout { train: vec![1], remembrance: vec![2], validation: vec![], test: vec![2] };
    refused(dcu_artifact::write(&path, &holdout, &provenance()), "in remembrance and in test");
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let (_folder, path, _) = written(&dataset());
    let before = std::fs::read(&path).unwrap();
    let under_a_file = path.join("b.safetensors");
    assert!(matches!(dcu_artifact::write(&under_a_file, &dataset(), &provenance()).unwrap_err(), Error::Io { .. }));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn sizes_that_cannot_be_counted_are_refused() {
    use safetensors::Dtype::{F32, U8, U32, U64};
    let huge = vec![0, 1 << 40, 1 << 40, 1];
    let none = |name, dtype| (name, dtype, vec![0], vec![]);
    let dataset =
        adopted("dataset/1", facts_of(&dataset()), &[("images", U8, huge.clone(), vec![]), none("labels", U32), none("ids", U64)]);
    assert!(dataset.unwrap_err().contains("[0, 1099511627776, 1099511627776, 1]"));
    let condensed = [
        ("images", F32, huge.clone(), vec![]),
        none("targets", F32),
        none("bucket", U32),
        none("member_count", U32),
        none("member_ids", U64),
        none("member_weights", F32),
    ];
    assert!(
        adopted("condensed/2", json!({ "maker": "fdm", "reach": "bucket" }), &condensed).unwrap_err().contains("which no artifact holds")
    );
    let weights = [("weight", F32, huge, vec![])];
    assert!(adopted("model/1", facts_of(&model(vec![1.0])), &weights).unwrap_err().contains("which no artifact holds"));
}

#[test]
fn a_dataset_has_samples_pixels_and_distinct_classes() {
    let refused = |change: &dyn Fn(&mut Dataset), expected: &str| {
        let mut changed = dataset();
        change(&mut changed);
        let folder = tempfile::tempdir().unwrap();
        let message = dcu_artifact::write(&folder.path().join("a"), &changed, &provenance()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    refused(&|set| *set = set.select(&[]), "there are 0 samples; a dataset has 1 to 4294967296");
    refused(&|set| set.images = Array::new(vec![3, 1, 0, 2], vec![]), "an image holds no pixel");
    refused(&|set| set.facts.class_names = vec!["one".into(), "one".into()], "two classes have the name `one`");
    refused(&|set| set.facts.class_names.clear(), "there is no class");
    refused(&|set| set.facts.names = Some(vec!["a".into()]), "there are 3 samples, but 1 names");
}

#[test]
fn nonsense_in_a_model_is_refused_where_it_is_written() {
    let message = |change: &dyn Fn(&mut Model)| {
        let mut changed = model(vec![1.0]);
        change(&mut changed);
        let content = changed.to_content();
        let encoded: Vec<_> = content
            .tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.dtype(), tensor.shape().to_vec(), tensor.to_bytes()))
            .collect();
        adopted("model/1", content.facts, &encoded).map(drop)
    };
    let add = |name: &'static str, tensor: Tensor| move |model: &mut Model| drop(model.tensors.insert(name.into(), tensor.clone()));
    let facts = |architecture: Value, recipe: Value| {
        move |model: &mut Model| (model.facts.architecture, model.facts.recipe) = (architecture.clone(), recipe.clone())
    };
    let floats = |values: &[f32]| Tensor::F32(Array::vector(values.to_vec()));
    assert_eq!(message(&|_| {}), Ok(()));
    assert_eq!(message(&add("n.num_batches_tracked", Tensor::I64(Array::new(vec![], vec![3])))), Ok(()));
    let right = json!({ "epochs": 1, "batch": 2, "lr": 0.1, "momentum": 0, "weight_decay": 0.0 });
    assert_eq!(message(&facts(json!({ "classes": 2, "input": [1, 4, 4] }), right)), Ok(()));
    type Case<'a> = (&'a dyn Fn(&mut Model), &'a str);
    let cases: [Case<'_>; 15] = [
        (&add("n.running_var", floats(&[0.5, -0.1])), "`n.running_var` holds -0.1 at position 1; a variance is 0 or more"),
        (&add("n.num_batches_tracked", Tensor::I64(Array::new(vec![], vec![-1]))), "it counts batches"),
        (&add("n.num_batches_tracked", Tensor::I64(Array::vector(vec![1, 2]))), "it counts batches"),
        (&add("n.weight", Tensor::F64(Array::vector(vec![1.0]))), "weights are F32"),
        (&|model| model.tensors.extend([("l.weight".into(), floats(&[1.0, 2.0])), ("l.bias".into(), floats(&[1.0]))]), "beside `l.weight`"),
        (&facts(json!(3), json!({})), "the fact `architecture` is no object"),
        (&facts(json!({}), json!(null)), "the fact `recipe` is no object"),
        (&facts(json!({ "classes": 3 }), json!({})), "has 3 classes, but 2 are named"),
        (&facts(json!({ "input": [3, 4, 4] }), json!({})), "takes images of 3 channels, the normalisation has 1"),
        (&facts(json!({}), json!({ "epochs": 0 })), "`epochs: 0`"),
        (&facts(json!({}), json!({ "lr": -0.1 })), "`lr` must be a positive number"),
        (&facts(json!({}), json!({ "batch": 1.5 })), "`batch` must be a whole number"),
        (&facts(json!({}), json!({ "momentum": 1.0 })), "`momentum` must be at least 0 and below 1"),
        (&facts(json!({}), json!({ "reconstruction": -0.5 })), "`reconstruction` must be 0 or more"),
        (&|model| model.facts.class_names[1] = "a".into(), "two classes have the name `a`"),
    ];
    for (change, expected) in cases {
        let found = message(change).unwrap_err();
        assert!(found.contains(expected), "`{expected}` is not in: {found}");
    }
}
