//! A stage is swapped for another method, and for a program from outside; a model comes from outside.

use dcu_artifact::{Dataset, Model, Request, Tensor};
use dcu_tests::{Project, SMALL};

/// Writes a request for every second sample, with nothing but Python's own library.
const SCRIPT: &str = r#"
import json, struct, sys

arguments = sys.argv[1:]
value = lambda flag: arguments[arguments.index(flag) + 1]
parameters = json.load(open(value("--params")))
source = value("--in").split("=", 1)[1]
target = value("--out").split("=", 1)[1]

data = open(source, "rb").read()
length = struct.unpack("<Q", data[:8])[0]
header = json.loads(data[8:8 + length])
begin, end = header["ids"]["data_offsets"]
ids = struct.unpack(f"<{(end - begin) // 8}Q", data[8 + length + begin:8 + length + end])

tensors = {"forget": ids[::parameters["step"]], "retain": [i for n, i in enumerate(ids) if n % parameters["step"]], "earlier": []}
artifact = {"schema": "request/1", "facts": {"scenario": "outside", "classes": [], "cumulative": False}}
header, body = {"__metadata__": {"artifact": json.dumps(artifact)}}, b""
for name, values in tensors.items():
    chunk = struct.pack(f"<{len(values)}Q", *values)
    header[name] = {"dtype": "U64", "shape": [len(values)], "data_offsets": [len(body), len(body) + len(chunk)]}
    body += chunk
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
open(target, "wb").write(struct.pack("<Q", len(text)) + text + body)
"#;

fn pipeline() -> String {
    let own = "request:   { uses: data/request, in: { dataset: data.train, holdout: holdout } }";
    assert!(SMALL.contains(own));
    let outside = "request: { command: [python3, every_second.py], code: [every_second.py], in: { dataset: data.train }, out: { request: request/1 }, with: { step: 4 } }";
    SMALL.replace(own, outside)
}

#[test]
fn a_script_stands_in_for_a_stage() {
    let project = Project::new(&pipeline());
    std::fs::write(project.path("every_second.py"), SCRIPT).unwrap();
    let run = project.xtask("run", &[]).success();
    assert_eq!(run.ran().len(), 14);
    let data: Dataset = dcu_artifact::read(&project.artifact("data.train", &[])).unwrap().0;
    let (request, header) = dcu_artifact::read::<Request>(&project.artifact("request#1", &[])).unwrap();
    assert!(request.forget.iter().eq(data.ids.iter().step_by(4)));
    assert_eq!((header.provenance.producer.crate_name.as_str(), header.provenance.parameters["step"].as_u64()), ("outside", Some(4)));
    assert!(header.provenance.externals.contains_key("every_second.py"));

    // It is cached like any stage, and runs again when its parameters or its code change.
    assert_eq!(project.xtask("run", &[]).success().ran(), Vec::<&str>::new());
    let run = project.xtask("run", &["--set", "request.step=5"]).success();
    assert!(run.ran().contains(&"request#1") && run.stderr.contains("`step` 4 -> 5"), "{}", run.stderr);
    std::fs::write(project.path("every_second.py"), format!("{SCRIPT}# more\n")).unwrap();
    let run = project.xtask("run", &[]).success();
    assert_eq!(run.ran(), ["request#1", "report"], "{}", run.stderr);
    assert!(run.stderr.contains("code of every_second.py"), "{}", run.stderr);
}

#[test]
fn what_a_script_writes_is_checked() {
    let refused = |script: &str, expected: &str| {
        let project = Project::new(&pipeline());
        std::fs::write(project.path("every_second.py"), script).unwrap();
        let error = project.xtask("run", &[]).failure();
        assert!(error.contains(expected) && error.contains("`request#1` failed"), "`{expected}` is not in:\n{error}");
        assert!(!project.store().join("v2/results/command-request").exists());
    };
    refused(&SCRIPT.replace("n % parameters", "True or n % parameters"), "is in forget and in retain");
    refused(&SCRIPT.replace("request/1", "dataset/1"), "breaks the rules of `dataset/1`");
    refused(&SCRIPT.replace("\"artifact\":", "\"artefact\":"), "has no key `artifact`");
    refused("open(1 / 0)", "ZeroDivisionError");
    refused("pass", "ended without writing its output `request`");
}

#[test]
fn missing_code_of_a_script_is_told_with_its_place() {
    let error = Project::new(&pipeline()).xtask("run", &[]).failure();
    assert!(error.contains("there is no file") && error.contains("every_second.py") && error.contains("pipeline.yaml:"), "{error}");
}

#[test]
fn a_stage_is_swapped_for_another_method() {
    let project = Project::new(SMALL);
    project.xtask("run", &[]).success();
    let run = project.xtask("run", &["--set", "retrain.uses=unlearn/finetune"]).success();
    assert_eq!(run.ran(), ["retrain#1", "evaluate@retrain#1", "report"], "{}", run.stderr);
    assert!(run.stdout.contains("\nfinetune "), "{}", run.stdout);
}

#[test]
fn weights_come_from_outside_and_bad_ones_are_refused() {
    let trained = Project::new(SMALL);
    trained.xtask("run", &[]).success();
    let model: Model = dcu_artifact::read(&trained.artifact("base#1", &[])).unwrap().0;

    // As PyTorch saves a state dict: tensors by name, no metadata.
    let fit = "base:      { uses: train/fit, in: { dataset: data.train }, with: { model: mlp, widths: [16, 8], epochs: 5, batch: 32 }, label: original }";
    assert!(SMALL.contains(fit));
    let import = "base:      { uses: train/import, in: { dataset: data.train }, with: { path: weights.safetensors, model: mlp, widths: [16, 8], epochs: 5, batch: 32 }, label: original }";
    let project = Project::new(&SMALL.replace(fit, import));
    let save = |tensors: &std::collections::BTreeMap<String, Tensor>| {
        let encoded: Vec<_> =
            tensors.iter().map(|(name, tensor)| (name, tensor.dtype(), tensor.shape().to_vec(), tensor.to_bytes())).collect();
        let views = encoded
            .iter()
            .map(|(name, dtype, shape, bytes)| (*name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        std::fs::write(project.path("weights.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    };
    save(&model.tensors);
    project.xtask("run", &[]).success();
    let imported: Model = dcu_artifact::read(&project.artifact("base", &[])).unwrap().0;
    assert_eq!((&imported.tensors, &imported.facts), (&model.tensors, &model.facts));
    // Equal content: what follows is the same too.
    let left = trained.metrics(&[]);
    for (left, right) in left.iter().zip(&project.metrics(&[])) {
        assert_eq!(
            (&left["method"], &left["test_accuracy"], &left["mia_accuracy"]),
            (&right["method"], &right["test_accuracy"], &right["mia_accuracy"])
        );
    }

    let mut missing = model.tensors.clone();
    let bias = missing.remove("linear2.bias").unwrap();
    missing.insert("linear2.bais".into(), bias);
    missing.remove("linear1.bias");
    save(&missing);
    let error = project.xtask("run", &[]).failure();
    let near = "`linear2.bais` [8] is not part of the network (did you mean `linear2.bias`?)";
    for expected in ["`linear2.bias` is missing", "`linear1.bias` is missing", near, "`base` failed"] {
        assert!(error.contains(expected), "`{expected}` is not in:\n{error}");
    }

    // In 64 bits, as `model.double()` saves: the same model.
    let double = |tensor: &Tensor| match tensor {
        Tensor::F32(array) => {
            Tensor::F64(dcu_artifact::Array::new(array.shape.clone(), array.data.iter().map(|&value| value.into()).collect()))
        }
        other => other.clone(),
    };
    save(&model.tensors.iter().map(|(name, tensor)| (name.clone(), double(tensor))).collect());
    let run = project.xtask("run", &[]).success();
    assert!(run.stderr.contains("converted to 32-bit") && run.stderr.contains("never saw"), "{}", run.stderr);
    assert_eq!(dcu_artifact::read::<Model>(&project.artifact("base", &[])).unwrap().0.tensors, model.tensors);

    std::fs::remove_file(project.path("weights.safetensors")).unwrap();
    let error = project.xtask("run", &[]).failure();
    assert!(error.contains("weights.safetensors") && error.contains("pipeline.yaml:7:"), "{error}");
}

#[test]
fn a_program_that_changes_its_input_is_blamed_and_the_input_is_made_again() {
    let project = Project::new(&pipeline());
    let vandal = format!(
        "{SCRIPT}\nif parameters[\"step\"] == 3: open(source, \"ab\").write(b\"xx\"); open({:?}, \"a\").write(\"started\\n\")\n",
        project.path("starts.txt")
    );
    std::fs::write(project.path("every_second.py"), vandal).unwrap();
    let error = project.xtask("run", &["--set", "request.step=3"]).failure();
    assert!(error.contains("`request#1` failed: its command has changed its input `dataset`"), "{error}");
    assert_eq!(std::fs::read_to_string(project.path("starts.txt")).unwrap(), "started\n", "it was started again");
    let run = project.xtask("run", &[]).success();
    assert!(run.ran().contains(&"data") && run.ran().contains(&"request#1"), "{}", run.stderr);
}

#[test]
fn a_script_that_is_edited_during_the_run_gives_no_result_under_its_old_key() {
    let project = Project::new(&pipeline());
    // It stands in for a user who saves the file while the run is under way.
    let editing = format!("{SCRIPT}\nif parameters[\"step\"] == 3: open(\"every_second.py\", \"a\").write(\"# more\\n\")\n");
    std::fs::write(project.path("every_second.py"), &editing).unwrap();
    let error = project.xtask("run", &["--set", "request.step=3"]).failure();
    assert!(error.contains("has changed since this run began; its result is not taken"), "{error}");
    std::fs::write(project.path("every_second.py"), &editing).unwrap();
    let status = project.xtask("status", &["--set", "request.step=3"]).success().stdout;
    assert!(status.lines().any(|line| line.contains("request#1") && line.contains("never ran here")), "{status}");
}
