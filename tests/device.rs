//! The device of a run: `cpu-composed` runs everywhere, so that it stands here for all that are not the CPU as usual.

use std::path::Path;

use dcu_artifact::Metrics;
use dcu_tests::{Finished, Project, SMALL, program};
use serde_json::Value;

/// A small CNN, so that images are convolved, pooled and normalised.
fn small_cnn() -> String {
    SMALL.replace("model: mlp, widths: [16, 8], epochs: 5", "model: cnn, widths: [4, 4, 8, 8], hidden: 16, epochs: 2")
}

/// What is computed with networks.
const COMPUTED: [&str; 10] = [
    "base#1",
    "buckets#1",
    "offline#1",
    "condensed#1",
    "modular#1",
    "retrain#1",
    "evaluate@base#1",
    "evaluate@modular#1",
    "evaluate@retrain#1",
    "report",
];

/// The loss of each test sample, as an artifact of metrics has it.
fn test_losses(path: &Path) -> Vec<f64> {
    dcu_artifact::read::<Metrics>(path).unwrap().0.arrays["test_losses"].data.clone()
}

#[test]
fn another_device_has_results_of_its_own_that_are_close() {
    let project = Project::new(&small_cnn());
    project.xtask("run", &[]).success();
    let composed = ["--device", "cpu-composed"];
    let status = project.xtask("status", &composed).success().stdout;
    assert!(status.contains("stale: device cpu -> cpu-composed"), "{status}");
    let run = project.xtask("run", &composed).success();
    let (ran, cached) = (run.ran(), run.cached());
    let is_in = |names: &[&str], name: &str| names.contains(&name);
    assert!(COMPUTED.iter().all(|name| is_in(&ran, name)), "{}", run.stderr);
    assert!(["data", "holdout", "request#1"].iter().all(|name| is_in(&cached, name)), "{}", run.stderr);

    // Not the weights: biases before a normalisation have no gradient but rounding, of which Adam makes steps.
    for judged in ["evaluate@base#1", "evaluate@retrain#1"] {
        let [kernels, own] = [&[][..], &composed].map(|more| test_losses(&project.artifact(judged, more)));
        let furthest = kernels.iter().zip(&own).map(|(kernels, own)| (kernels - own).abs()).fold(0.0, f64::max);
        assert!(kernels.len() == own.len() && furthest > 0.0 && furthest < 0.01, "{judged}: {furthest}");
    }

    // Either stays what it was.
    for more in [&[][..], &composed] {
        let status = project.xtask("status", more).success().stdout;
        assert!(status.contains("14 of 14 stages are cached"), "{status}");
    }
    let error = project.xtask("regress", &["--update", "--device", "cpu-composed"]).failure();
    assert!(error.contains("the accepted numbers are those of the CPU") && error.contains("leave `--device cpu-composed` out"), "{error}");
}

#[test]
fn every_method_that_computes_with_networks_uses_the_device() {
    let methods: Value = serde_json::from_str(&Finished::of(program("xtask").args(["list", "--json"])).success().stdout).unwrap();
    for (name, method) in methods.as_object().unwrap() {
        let computes = ["train/", "unlearn/", "condense/", "attack/"].iter().any(|crate_name| name.starts_with(crate_name));
        // These compute without networks, or with pixels and sums that stay on the CPU.
        let others = ["train/import", "condense/reduce", "attack/audit", "attack/leave-one-out", "train/patches"];
        let pixels = ["blend", "dm", "gm", "idm", "inversion", "mtt", "statistics"].map(|method| format!("condense/{method}"));
        let computes = computes && !others.contains(&name.as_str()) && !pixels.contains(name);
        assert_eq!(method["uses_device"], computes, "{name}");
    }
}

#[test]
fn a_device_that_is_none_or_not_built_in_is_refused() {
    let project = Project::new(SMALL);
    let output = format!("model={}", project.path("model.safetensors").display());
    let fit = |device: &str| {
        Finished::of(program("dcu-train").args(["fit", "--seed", "1", "--in", "dataset=none", "--out", &output, "--device", device]))
            .failure()
    };
    let error = fit("cuda:0");
    assert!(error.contains("this program was built without `cuda` and cannot compute on `cuda:0`"), "{error}");
    assert!(error.contains("help: build it with `--features cuda`"), "{error}");
    let error = fit("gpu");
    assert!(error.contains("there is no device `gpu`") && error.contains("`cuda:N`"), "{error}");

    let refused = Finished::of(&mut project.command("run", &["--device", "gpu"]));
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("give `cpu`, `cpu-composed` or `cuda:N`"), "{}", refused.stderr);
    // What computes with no network has no device.
    let refused = Finished::of(program("dcu-data").args(["load", "--device", "cpu"]));
    assert!(refused.code == Some(2) && refused.stderr.contains("--device"), "{}", refused.stderr);
}
