//! What `attack/audit` promises, through the runner: doing nothing is found, another retraining is not, and the report says both.

use dcu_artifact::Metrics;
use dcu_tests::Project;
use serde_json::Value;

/// Digits of which some ones and sevens carry each other's label, and four models of each kind.
const PIPELINE: &str = "\
version: 1
name: audit
seeds: [1, 2, 3, 4]
stages:
  data:      { uses: data/load, with: { per_class: 60 } }
  poisoned:  { uses: data/poison, in: { dataset: data.train }, with: { classes: [1, 7], ratio: 0.4 }, seed: 1 }
  holdout:   { uses: data/holdout, in: { train: data.train, test: data.test }, with: { ipc: 5 }, seed: 1 }
  base:      { uses: train/fit, in: { dataset: poisoned }, with: { model: mlp, widths: [32, 16], epochs: 30, batch: 32, lr: 0.005 }, label: original }
  request:   { uses: data/request, in: { dataset: poisoned, holdout: holdout }, with: { scenario: poisoned }, seed: 1 }
  finetune:  { uses: unlearn/finetune, in: { model: base, dataset: poisoned, request: request }, with: { epochs: 1 } }
  retrain:   { uses: unlearn/retrain, in: { model: base, dataset: poisoned, request: request } }
  null:      { uses: unlearn/retrain, in: { model: base, dataset: poisoned, request: request }, with: { replicate: 2 }, label: null }
  said-base:     { uses: attack/predict, in: { model: base, dataset: poisoned, test: data.test } }
  said-finetune: { uses: attack/predict, in: { model: finetune, dataset: poisoned, test: data.test } }
  said-retrain:  { uses: attack/predict, in: { model: retrain, dataset: poisoned, test: data.test } }
  said-null:     { uses: attack/predict, in: { model: null, dataset: poisoned, test: data.test } }
  audit:
    matrix: { of: [base, finetune, null] }
    uses: attack/audit
    in: { dataset: poisoned, test: data.test, holdout: holdout, request: request, unlearned: [\"said-${of}\"], retrained: [said-retrain], originals: [said-base] }
    gather: seeds
  evaluate:
    matrix: { of: [base, finetune, retrain, null] }
    uses: attack/evaluate
    in: { model: \"${of}\", dataset: poisoned, test: data.test, holdout: holdout, request: request }
  report:    { uses: report/table, in: { metrics: [evaluate], audits: [audit] }, gather: seeds }
  page:      { uses: report/html, in: { metrics: [evaluate], audits: [audit], request: [request] }, gather: seeds }
";

#[test]
fn doing_nothing_is_found_and_a_retraining_is_not() {
    let project = Project::new(PIPELINE);
    project.xtask("run", &[]).success();
    let scores = |of: &str| Metrics::read(&project.artifact(&format!("audit@{of}"), &[])).unwrap().scalars;
    let (nothing, null) = (scores("base"), scores("null"));
    assert!(nothing["likelihood_ratio_attack"] > 0.8 && nothing["told_samples"] > 0.5, "{nothing:?}");
    assert!(nothing["nearer_to_original"] > 0.9 && null["nearer_to_original"] < 0.3, "{null:?}");
    assert!((null["likelihood_ratio_attack"] - 0.5).abs() < 0.15 && null["told_samples"] == 0.0, "{null:?}");

    let folder = project.store().join("reports/audit");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let report: Value = serde_json::from_str(&read("report.json")).unwrap();
    let methods: Vec<&str> = report["audits"].as_array().unwrap().iter().map(|audit| audit["method"].as_str().unwrap()).collect();
    assert_eq!((methods, &report["schema"]), (vec!["original", "finetune", "null"], &Value::from("report/1")));
    assert!(report["origin"].as_array().unwrap().iter().any(|stage| stage["parameters"]["scenario"] == "poisoned"));
    assert!(read("report.txt").contains("single samples %") && read("page.html").contains("id=\"evidence\""));

    // Its table goes into a file of results, in the place of what was there of it.
    let results = project.path("RESULTS.md");
    std::fs::write(&results, "# Results\n").unwrap();
    for _ in 0..2 {
        project.xtask("results", &["--output", results.to_str().unwrap()]).success();
    }
    let text = std::fs::read_to_string(&results).unwrap();
    assert!(
        text.starts_with("# Results\n\n<!-- results: audit -->\n## audit\n") && text.matches("### Single samples").count() == 1,
        "{text}"
    );
}

#[test]
fn a_retraining_is_not_compared_with_itself() {
    let project =
        Project::new(&PIPELINE.replace("of: [base, finetune, null] }\n    uses: attack/audit", "of: [retrain] }\n    uses: attack/audit"));
    let error = project.xtask("run", &[]).failure();
    assert!(
        error.contains("a model is among the unlearned and among the retrained ones") && error.contains("with another `replicate`"),
        "{error}"
    );
}
