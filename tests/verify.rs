//! `verify`: a report whose numbers the artifacts give is verified, one that was changed anywhere is not.

use std::fs::File;
use std::path::{Path, PathBuf};

use dcu_artifact::{Dataset, Holdout, Metrics, Payload, Predictions, Request, Retain, digest_file};
use dcu_tests::{KEYS, Project, SMALL};
use serde_json::json;

/// Changes the bytes of a file, whose size and time stay.
#[track_caller]
fn tamper(path: &Path, change: impl FnOnce(&mut [u8])) {
    let mut bytes = std::fs::read(path).unwrap();
    let before = bytes.clone();
    change(&mut bytes);
    assert_ne!(bytes, before);
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    std::fs::write(path, bytes).unwrap();
    File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
}

/// Makes the first mean of a report a better one.
fn better(bytes: &mut [u8]) {
    let text = b"\"mean\": 0.";
    let place = bytes.windows(text.len()).position(|window| window == text).expect("there is a mean below 1");
    bytes[place + text.len() - 2] = b'1';
}

/// The records of a store that hold a text.
fn records(project: &Project, text: &str) -> Vec<PathBuf> {
    let entries = |folder: &Path| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let records = entries(&project.store().join("v2").join("results")).into_iter().flat_map(|folder| entries(&folder));
    records.filter(|record| std::fs::read_to_string(record).unwrap().contains(text)).collect()
}

/// Puts another artifact in the place of the output of an instance, with its digests and in its record, as whoever wants to be believed would; the next run makes what rests on it.
fn forge<P: Payload>(project: &Project, name: &str, change: impl FnOnce(&mut P)) {
    let path = project.artifact(name, &[]);
    let (mut payload, header) = dcu_artifact::read::<P>(&path).unwrap();
    change(&mut payload);
    let forged = project.path("forged.safetensors");
    let new = dcu_artifact::write(&forged, &payload, &header.provenance).unwrap();
    let [old_object, object] = [&path, &forged].map(|path| digest_file(path).unwrap().to_string());
    let (folder, file) = object.split_at(2);
    let folder = project.store().join("v2").join("objects").join(folder);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::rename(&forged, folder.join(format!("{file}.safetensors"))).unwrap();
    for record in records(project, &old_object) {
        let text = std::fs::read_to_string(&record).unwrap();
        std::fs::write(&record, text.replace(&old_object, &object).replace(header.digest.as_str(), new.as_str())).unwrap();
    }
}

/// Says of all results of a method that they come from another CPU.
fn from_another_cpu(project: &Project, task: &str) {
    for record in records(project, &format!("\"task\": \"{task}\"")) {
        let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
        value["cpu"] = json!("abacus");
        std::fs::write(&record, value.to_string()).unwrap();
    }
}

fn report(project: &Project, name: &str) -> PathBuf {
    project.store().join("reports").join("small").join(name)
}

#[test]
fn what_was_changed_anywhere_is_found() {
    let project = Project::new(SMALL);
    let error = project.xtask("verify", &[]).failure();
    assert!(error.contains("is not there to be verified (never ran here)"), "{error}");
    project.xtask("run", &[]).success();
    let verified = project.xtask("verify", &[]).success();
    assert!(
        verified.stdout.contains("the same  evaluate@modular#1") && verified.stdout.contains("verified: all scores"),
        "{}",
        verified.stdout
    );

    // A copy that was handed on, as it is and with another number.
    let (laid_out, copy) = (report(&project, "report.json"), project.path("copy.json"));
    std::fs::copy(&laid_out, &copy).unwrap();
    let given = ["--report", copy.to_str().unwrap()];
    project.xtask("verify", &given).success();
    tamper(&copy, better);
    let error = project.xtask("verify", &given).failure();
    assert!(error.contains("1 of the numbers or files are not what the artifacts give"), "{error}");

    // The report itself; the next run lays it out again.
    tamper(&laid_out, better);
    let changed = project.xtask("verify", &[]);
    assert!(changed.stdout.contains("it is not what the report stage has written"), "{}", changed.stdout);
    changed.failure();
    project.xtask("run", &[]).success();
    project.xtask("verify", &[]).success();

    // A number in the artifact of the scores.
    tamper(&project.artifact("evaluate@modular#1", &[]), |bytes| *bytes.last_mut().unwrap() ^= 1);
    let error = project.xtask("verify", &[]).failure();
    assert!(error.contains("`evaluate@modular#1` is not there to be verified"), "{error}");
}

#[test]
fn a_signature_goes_with_a_report_that_is_verified() {
    let project = Project::new(SMALL);
    project.xtask("run", &[]).success();
    let key = |name: &str, text: &str| {
        std::fs::write(project.path(name), text).unwrap();
        project.path(name).to_str().unwrap().to_owned()
    };
    let (private, public) = (key("private.pem", KEYS[0]), key("public.pem", KEYS[1]));
    let error = project.xtask("verify", &["--public", &public]).failure();
    assert!(error.contains("is not signed"), "{error}");
    project.xtask("verify", &["--sign", &private]).success();
    project.xtask("verify", &["--public", &public]).success();
    for name in ["report.json", "report.csv", "report.md", "report.txt"] {
        assert!(report(&project, &format!("{name}.sig")).exists(), "{name}");
    }

    // Of a file that was handed on, its own signature counts.
    let copy = project.path("copy.csv");
    std::fs::copy(report(&project, "report.csv"), &copy).unwrap();
    let given = ["--report", copy.to_str().unwrap(), "--public", &public];
    let error = project.xtask("verify", &given).failure();
    assert!(error.contains("copy.csv` is not signed"), "{error}");
    std::fs::copy(report(&project, "report.json.sig"), project.path("copy.csv.sig")).unwrap();
    let error = project.xtask("verify", &given).failure();
    assert!(error.contains("copy.csv` was signed with another key, or changed since"), "{error}");
    std::fs::copy(report(&project, "report.csv.sig"), project.path("copy.csv.sig")).unwrap();
    let verified = project.xtask("verify", &given).success().stdout;
    let signed: Vec<&str> = verified.lines().filter(|line| line.starts_with("signed with")).collect();
    assert!(signed.len() == 1 && signed[0].ends_with("copy.csv"), "{verified}");

    let signature = report(&project, "report.json.sig");
    let mut bytes = std::fs::read(&signature).unwrap();
    bytes[5] ^= 1;
    std::fs::write(&signature, bytes).unwrap();
    let error = project.xtask("verify", &["--public", &public]).failure();
    assert!(error.contains("was signed with another key, or changed since"), "{error}");
}

#[test]
fn what_comes_from_another_cpu_may_be_rounded_but_not_forged() {
    let project = Project::new(SMALL);
    project.xtask("run", &[]).success();
    forge::<Metrics>(&project, "evaluate@modular#1", |metrics| {
        metrics.arrays.get_mut("test_losses").unwrap().data[0] += 1e-6;
    });
    project.xtask("run", &[]).success();
    assert!(project.xtask("verify", &[]).failure().contains("1 of the numbers"));
    from_another_cpu(&project, "attack/evaluate");
    let verified = project.xtask("verify", &[]).success().stdout;
    let compared = "compared  evaluate@modular#1: computed on another CPU (abacus): shares within one and a half samples";
    for part in [compared, "the same  evaluate@base#1", "1 of them within the rounding of another CPU"] {
        assert!(verified.contains(part), "{verified}");
    }

    forge::<Metrics>(&project, "evaluate@modular#1", |metrics| {
        metrics.facts["counts"]["forget"] = json!(5000);
        metrics.definitions.get_mut("forget_accuracy").unwrap().definition = "share of the forget set that is forgotten".into();
    });
    project.xtask("run", &[]).success();
    let verified = project.xtask("verify", &[]);
    for part in ["evaluate@modular#1: the fact `counts` is", "evaluate@modular#1: the definition of `forget_accuracy` is"] {
        assert!(verified.stdout.contains(part), "{}", verified.stdout);
    }
    assert!(verified.failure().contains("2 of the numbers or files are not what the artifacts give"));
}

#[test]
fn what_needs_no_training_is_computed_again_too() {
    let predicted = SMALL.replace(
        "  report:    {",
        "  predicted: { uses: attack/predict, in: { model: modular, dataset: data.train, test: data.test } }\n  report:    {",
    );
    let project = Project::new(&predicted);
    project.xtask("run", &[]).success();
    let verified = project.xtask("verify", &[]).success().stdout;
    for name in ["data", "holdout", "request#1", "reduced#1", "predicted#1", "evaluate@base#1", "report"] {
        assert!(verified.contains(&format!("the same  {name}\n")), "{name}: {verified}");
    }
    let taken = "taken as recorded: what base, buckets, offline, condensed, modular, retrain learned; seconds, passes, operations";
    assert!(verified.contains(taken), "{verified}");

    // One after the other is forged, and what rests on it made from that.
    let again = || drop(project.xtask("run", &[]).success());
    forge::<Dataset>(&project, "data.train", |dataset| dataset.images.data[0] ^= 255);
    again();
    forge::<Holdout>(&project, "holdout", |holdout| holdout.test.truncate(holdout.test.len() - 1));
    again();
    forge::<Request>(&project, "request#1", |request| request.retain.extend(request.forget.pop()));
    again();
    forge::<Retain>(&project, "reduced#1", |retain| retain.facts.maker = "nobody".into());
    again();
    forge::<Predictions>(&project, "predicted#1", |predictions| predictions.logits.data[0] += 1.0);
    again();
    let verified = project.xtask("verify", &[]);
    for name in ["data", "holdout", "request#1", "reduced#1", "predicted#1"] {
        assert!(verified.stdout.contains(&format!("differs   {name}: ")), "{name}: {}", verified.stdout);
    }
    assert!(verified.failure().contains("5 of the numbers or files are not what the artifacts give"));
}

/// The four files of a data set in the form of MNIST, of two classes in turn.
fn write_digits(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for (part, count) in [("train", 60_u32), ("t10k", 40)] {
        let sizes = [count, 8, 8].map(u32::to_be_bytes).concat();
        let pixels = (0..count).flat_map(|sample| (0..64).map(move |pixel| (sample % 2 * 128 + (sample * pixel) % 97) as u8));
        let images = [vec![0, 0, 8, 3], sizes.clone(), pixels.collect()].concat();
        let labels = [vec![0, 0, 8, 1], sizes[..4].to_vec(), (0..count).map(|sample| (sample % 2) as u8).collect()].concat();
        std::fs::write(folder.join(format!("{part}-images-idx3-ubyte")), images).unwrap();
        std::fs::write(folder.join(format!("{part}-labels-idx1-ubyte")), labels).unwrap();
    }
}

#[test]
fn data_whose_source_is_out_of_reach_are_taken_on_trust() {
    let project = Project::new(&SMALL.replace("{ per_class: 20 }", "{ source: idx, path: digits, per_class: 20 }"));
    write_digits(&project.path("digits"));
    project.xtask("run", &[]).success();
    let verified = project.xtask("verify", &[]).success().stdout;
    assert!(verified.contains("the same  data\n"), "{verified}");
    std::fs::rename(project.path("digits"), project.path("elsewhere")).unwrap();
    let verified = project.xtask("verify", &[]).success().stdout;
    let trust: String = verified.lines().skip_while(|line| !line.starts_with("  on trust  data: ")).take(2).collect();
    for part in ["digits", "taken as it was recorded, with {", "\"per_class\":20"] {
        assert!(trust.contains(part), "{verified}");
    }
    // Other data in its place are not what the results rest on.
    write_digits(&project.path("digits"));
    std::fs::write(project.path("digits").join("t10k-labels-idx1-ubyte"), [vec![0, 0, 8, 1, 0, 0, 0, 40], vec![1; 40]].concat()).unwrap();
    let error = project.xtask("verify", &[]).failure();
    assert!(error.contains("`data` is not there to be verified"), "{error}");
}
