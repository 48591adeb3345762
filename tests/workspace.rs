//! The cut of the workspace: who may depend on whom.

use std::process::Command;

use dcu_tests::workspace;
use serde_json::Value;

fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(workspace())
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).expect("cargo prints JSON")
}

/// The names of the normal dependencies of a member.
fn dependencies(metadata: &Value, name: &str) -> Vec<String> {
    let package = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|package| package["name"] == name)
        .unwrap_or_else(|| panic!("no package {name}"));
    let normal = package["dependencies"].as_array().unwrap().iter().filter(|dependency| dependency["kind"].is_null());
    normal.map(|dependency| dependency["name"].as_str().unwrap().to_owned()).collect()
}

const STAGES: [&str; 8] =
    ["dcu-data", "dcu-tables", "dcu-condense", "dcu-train", "dcu-pretrained", "dcu-unlearn", "dcu-attack", "dcu-report"];

#[test]
fn stages_know_nothing_of_one_another_and_the_runner_of_none() {
    let metadata = metadata();
    for name in STAGES.into_iter().chain(["xtask", "dcu-hub", "dcu-stage", "dcu-nn", "dcu-artifact"]) {
        let mut found = dependencies(&metadata, name);
        // Second programs: the same methods, with what is heavy to compile.
        for (second, first) in [("dcu-tables", "dcu-data"), ("dcu-pretrained", "dcu-train")] {
            found.retain(|dependency| name != second || dependency != first);
        }
        assert!(!found.iter().any(|dependency| STAGES.contains(&dependency.as_str())), "{name} depends on a stage: {found:?}");
    }
    assert!(dependencies(&metadata, "dcu-artifact").iter().all(|dependency| !dependency.starts_with("dcu-")));
    assert!(dependencies(&metadata, "xtask").iter().filter(|dependency| dependency.starts_with("dcu-")).eq(["dcu-artifact"]));
}

#[test]
fn heavy_dependencies_stay_where_they_are_needed() {
    let metadata = metadata();
    let members: Vec<&str> = metadata["packages"].as_array().unwrap().iter().filter_map(|package| package["name"].as_str()).collect();
    let users = |heavy: &str| {
        members.iter().copied().filter(|member| dependencies(&metadata, member).iter().any(|name| name == heavy)).collect::<Vec<_>>()
    };
    for (heavy, expected) in [("hf-hub", &["dcu-hub"][..]), ("dcu-hub", &["dcu-pretrained", "dcu-tables"]), ("polars", &["dcu-tables"])] {
        assert_eq!(users(heavy), expected, "{heavy}: what quickstart builds does not need it");
    }
}

#[test]
fn libc_is_there_on_every_linux_that_uses_it() {
    for (package, target) in
        [("dcu-stage", "x86_64-unknown-linux-musl"), ("xtask", "x86_64-unknown-linux-musl"), ("xtask", "aarch64-apple-darwin")]
    {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let arguments =
            ["tree", "--offline", "--package", package, "--target", target, "--edges", "normal", "--depth", "1", "--prefix", "none"];
        let output = Command::new(cargo).args(arguments).current_dir(workspace()).output().unwrap();
        let tree = String::from_utf8_lossy(&output.stdout);
        assert!(
            tree.lines().any(|line| line.starts_with("libc ")),
            "{package} for {target}: {tree}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
