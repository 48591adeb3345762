//! `verify`: a report whose numbers the artifacts give is verified, one that was changed anywhere is not.

use std::fs::File;
use std::path::{Path, PathBuf};

use dcu_tests::{KEYS, Project, SMALL};

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
    let signature = report(&project, "report.json.sig");
    let mut bytes = std::fs::read(&signature).unwrap();
    bytes[5] ^= 1;
    std::fs::write(&signature, bytes).unwrap();
    let error = project.xtask("verify", &["--public", &public]).failure();
    assert!(error.contains("was signed with another key, or changed since"), "{error}");
}
