//! `pipelines/quickstart.yaml` keeps what it promises.

use std::collections::BTreeMap;

use dcu_tests::{Project, artifacts, row, workspace};
use serde_json::Value;

fn quickstart() -> Project {
    Project::new(&std::fs::read_to_string(workspace().join("pipelines/quickstart.yaml")).unwrap())
}

/// What each result took to compute.
fn costs(project: &Project) -> BTreeMap<String, Value> {
    let rows: Value = serde_json::from_str(&project.xtask("times", &["--format", "json"]).success().stdout).unwrap();
    rows.as_array().unwrap().iter().map(|row| (row["instance"].as_str().unwrap().to_owned(), row["cost"].clone())).collect()
}

#[test]
fn quickstart_forgets_what_it_learned_and_only_pays_for_what_changed() {
    let project = quickstart();
    let first = project.xtask("run", &["--threads", "2"]).success();
    assert_eq!(first.ran().len(), 24, "{}", first.stderr);
    assert!(first.stdout.contains("ran 24 of 24 stages"), "{}", first.stdout);

    // The wrong labels are learned by heart, retraining does not know them, and modular unlearning lies between.
    let rows = project.metrics(&[]);
    let score = |method: &str, name: &str| row(&rows, method)[name].as_f64().unwrap_or_else(|| panic!("{method} has no {name}"));
    assert!(score("original", "test_accuracy") >= 0.9);
    assert!(score("original", "forget_accuracy") >= 0.8);
    assert!(score("retrain", "forget_accuracy") <= 0.2);
    assert!(score("null", "forget_accuracy") <= 0.2);
    let between = score("retrain", "forget_accuracy")..=score("original", "forget_accuracy");
    assert!(between.contains(&score("modular", "forget_accuracy")), "{between:?}");
    assert!(score("modular", "forget_original_accuracy") > score("original", "forget_original_accuracy") + 0.3);
    assert!(score("match", "forget_accuracy") < score("modular", "forget_accuracy"));
    assert!(score("match", "test_accuracy") > score("modular", "test_accuracy"));
    assert!(score("modular", "interclass_confusion") < score("original", "interclass_confusion"));
    for method in ["original", "modular", "match", "finetune", "retrain"] {
        let row = row(&rows, method);
        assert_eq!((row["pipeline"].as_str(), row["seed"].as_u64()), (Some("quickstart"), Some(42)));
        for name in ["retain_accuracy", "forget_accuracy", "test_accuracy", "mia_accuracy"] {
            assert!((0.0..=1.0).contains(&score(method, name)), "{method} {name}");
        }
        assert_eq!(score(method, "unlearn_seconds") > 0.0, method != "original");
    }

    // What it took, counted where it was computed: 60 epochs over 3,000 samples, without 60 of them, and 142 passes over these with 32 others in each of two batches.
    let first_costs = costs(&project);
    let count = |instance: &str, name: &str| first_costs[instance][name].as_u64().unwrap_or_else(|| panic!("{instance} has no {name}"));
    for (instance, backward) in
        [("base#42", 60 * 3000), ("baseline@retrain#42", 60 * 2940), ("match#42", 142 * (60 + 64)), ("evaluate@base#42", 0)]
    {
        assert_eq!(count(instance, "backward"), backward, "{instance}");
    }
    assert_eq!((count("base#42", "forward"), count("base#42", "steps")), (60 * 3000, 60 * 24));
    // Layers of 1024 to 128 to 64 to 10: forward, back to all weights, and back to what the last two take.
    let (layers, last) = (2 * (1024 * 128 + 128 * 64 + 64 * 10), 2 * (128 * 64 + 64 * 10));
    assert_eq!(count("base#42", "operations"), 60 * 3000 * (2 * layers + last));
    assert_eq!((count("data", "operations"), count("evaluate@base#42", "operations")), (0, count("evaluate@base#42", "forward") * layers));
    let report: Value = serde_json::from_slice(&std::fs::read(project.store().join("reports/quickstart/report.json")).unwrap()).unwrap();
    let matched = row(report["methods"].as_array().unwrap(), "match");
    assert_eq!(matched["passes_of_retraining"].as_f64(), Some(17_608.0 / 176_400.0));

    // Again: nothing to do.
    let again = project.xtask("run", &[]).success();
    assert_eq!(again.cached().len(), 24, "{}", again.stderr);
    assert!(again.stdout.contains("ran 0 of 24 stages (24 cached)"), "{}", again.stdout);

    // Another store and folder, another number of threads: the same bytes.
    for threads in ["1", "4"] {
        let other = quickstart();
        other.xtask("run", &["--threads", threads]).success();
        let (left, right) = (artifacts(&project.store()), artifacts(&other.store()));
        assert!(left.len() >= 23 && left.keys().eq(right.keys()));
        for (path, bytes) in &left {
            assert!(*bytes == right[path], "{} differs with {threads} threads", path.display());
        }
        assert_eq!(costs(&other), first_costs, "{threads} threads");
        let folders = [project.path(""), other.path(""), workspace().to_owned()].map(|path| path.display().to_string());
        for (path, bytes) in &left {
            let header = String::from_utf8_lossy(&bytes[..bytes.len().min(20_000)]);
            assert!(folders.iter().all(|folder| !header.contains(folder)), "{} names a folder of this machine", path.display());
        }
    }

    // A second request pays for itself only.
    let request = ["--set", "request.scenario=random", "--set", "request.ratio=0.05"];
    let second = project.xtask("run", &request).success();
    let paid_once = ["data", "poisoned", "holdout", "base#42", "buckets#42", "offline#42", "folds#42", "condensed#42"];
    assert_eq!(second.cached(), paid_once, "{}", second.stderr);
    assert_eq!(second.ran().len(), 16);
    assert!(second.stdout.contains("ran 16 of 24 stages (8 cached"), "{}", second.stdout);
    let seconds = row(&project.metrics(&request), "modular")["request_seconds"].as_f64().unwrap();
    assert!(seconds > 0.0);
}
