//! A condensation that is interrupted goes on from its checkpoint, and ends in the same bytes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use dcu_artifact::{Array, Buckets, Dataset, DatasetFacts, Normalisation, Payload, Producer, Provenance, write};
use serde_json::{Value, json};

/// A folder with a dataset and its buckets.
fn world() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("resume");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let facts = DatasetFacts {
        source: "test".into(),
        class_names: vec!["a".into(), "b".into()],
        normalisation: Normalisation { mean: vec![0.5], std: vec![0.25] },
        names: None,
    };
    let pixels = (0..8 * 64).map(|value| (value * 89 % 256) as u8).collect();
    let images = Array::new(vec![8, 1, 8, 8], pixels);
    let labels = vec![0, 0, 0, 0, 1, 1, 1, 1];
    let dataset = Dataset { images, labels: labels.clone(), original_labels: None, ids: (0..8).collect(), facts };
    let centroids = Array::new(vec![2, 1], vec![0.0; 2]);
    let buckets = Buckets { ids: dataset.ids.clone(), bucket: labels, class: vec![0, 1], centroids, k: 1 };
    put(&folder.join("dataset.safetensors"), &dataset);
    put(&folder.join("buckets.safetensors"), &buckets);
    folder
}

fn put<P: Payload>(path: &Path, payload: &P) {
    let producer = Producer { crate_name: "test".into(), method: "test".into(), version: 1 };
    let provenance = Provenance { producer, parameters: json!({}), seed: None, inputs: BTreeMap::new(), externals: BTreeMap::new() };
    write(path, payload, &provenance).unwrap();
}

/// `dcu-condense mtt`, which writes `name` and may write a checkpoint behind each step.
fn mtt(folder: &Path, name: &str) -> Command {
    let parameters =
        json!({ "experts": 1, "expert_epochs": 1, "span": 1, "student_steps": 2, "steps": 20, "lr": 1.0, "widths": [2, 2, 2] });
    std::fs::write(folder.join("parameters.json"), parameters.to_string()).unwrap();
    let at = |key: &str, file: &str| format!("{key}={}", folder.join(file).display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_dcu-condense"));
    command.args(["mtt", "--seed", "1", "--progress", "none", "--params"]).arg(folder.join("parameters.json"));
    command.args(["--in", &at("dataset", "dataset.safetensors"), "--in", &at("buckets", "buckets.safetensors")]);
    command.args(["--out", &at("condensed", name), "--checkpoint"]).arg(folder.join(format!("{name}.checkpoint")));
    command.env("DCU_CHECKPOINT_SECONDS", "0").stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

fn finished(command: &mut Command) -> Value {
    let output = command.output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn trajectories_are_matched_on_from_a_checkpoint() {
    let folder = world();
    let mut child = mtt(&folder, "broken").spawn().unwrap();
    let checkpoint = folder.join("broken.checkpoint").join("clock.json");
    while !checkpoint.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended without a checkpoint");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!folder.join("broken").exists());
    let (resumed, whole) = (finished(&mut mtt(&folder, "broken")), finished(&mut mtt(&folder, "whole")));
    assert!(resumed["earlier"]["compute"].as_f64().unwrap() > 0.0, "{resumed}");
    assert_eq!(resumed["cost"], whole["cost"]);
    assert!(std::fs::read(folder.join("broken")).unwrap() == std::fs::read(folder.join("whole")).unwrap());
}
