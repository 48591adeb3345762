//! `cargo xtask verify`: whether the numbers of a report are those that the artifacts give, and who says so.
//!
//! Nothing is believed but the artifacts: each file that the report rests on is read whole and compared with its digest, every score is computed again from the models, the report is written
//! again from these, and what lies in the folder of reports is compared with it byte by byte.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use dcu_artifact::{Metrics, Payload as _, Role, digest_bytes, digest_file, role_of};
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

use crate::process::{self, Options};
use crate::reasons::in_one_line;
use crate::session::{Known, Session, State};
use crate::signals;
use crate::store::{Care, Made};

/// How far a score may be off where it was computed on a CPU with other features, which round otherwise; in its own unit (accuracies are shares).
const ROUNDING: f64 = 0.005;

/// Who signs, or who is to have signed.
pub(crate) enum Key {
    /// The file of a private key, in PKCS#8 as PEM.
    Sign(PathBuf),
    /// The file of a public key, as PEM.
    Check(PathBuf),
    None,
}

/// Verifies the reports of a pipeline, and where `given` is a file, that it is one of them.
pub(crate) fn verify(mut session: Session, given: Option<&Path>, key: &Key) -> anyhow::Result<()> {
    signals::install();
    session.care = Care::Bytes;
    let known = all_known(&session)?;
    let instances = &session.plan.instances;
    println!("every file of {} results is what it was when it was written", instances.len());
    let outputs = |index: usize| instances[index].outputs.iter();
    let is_report = |index: &usize| outputs(*index).any(|output| output.schema.starts_with("file/"));
    let is_score = |index: &usize| outputs(*index).any(|output| role_of(&output.schema) == Some(Role::Scores));
    if !(0..instances.len()).any(|index| is_report(&index)) {
        bail!("the pipeline `{}` has no report", session.pipeline_name());
    }
    let mut wrong = 0;
    let mut tell = |what: &str, differing: &[String]| {
        wrong += differing.len();
        match differing {
            [] => println!("  the same  {what}"),
            lines => lines.iter().for_each(|line| println!("  differs   {what}: {line}")),
        }
    };
    for index in (0..instances.len()).filter(|index| is_score(index) || is_report(index)) {
        signals::check()?;
        tell(&instances[index].name, &computed_again(&session, index, &known)?);
    }
    let files =
        (0..instances.len()).filter(is_report).map(|index| laid_out(&session, index, &known)).collect::<anyhow::Result<Vec<_>>>()?.concat();
    // What is signed are the bytes that were compared.
    let mut documents = Vec::new();
    for (path, made) in &files {
        let bytes = std::fs::read(path).with_context(|| {
            let file = session.plan.pipeline.document.file.display();
            format!("cannot read `{}`\n  help: run `cargo xtask run {file}`, which lays the reports out", path.display())
        })?;
        let is_same = digest_bytes(&bytes) == made.digest;
        let differing = (!is_same).then(|| "it is not what the report stage has written".to_owned());
        tell(&path.display().to_string(), differing.as_slice());
        if made.schema == "file/json" {
            documents.push((path.as_path(), bytes));
        }
    }
    if let Some(given) = given {
        let digest = digest_file(given)?;
        if files.iter().all(|(_, made)| made.digest != digest) {
            tell(&given.display().to_string(), &["it is none of this pipeline's reports".to_owned()]);
        }
    }
    if wrong > 0 {
        let file = session.plan.pipeline.document.file.display();
        let help = format!("help: after a run with other settings, `cargo xtask run {file}` with these lays their reports out again");
        bail!("{wrong} of the numbers or files are not what the artifacts give\n  {help}");
    }
    match key {
        Key::None => {}
        Key::Sign(key) => sign(&documents, key)?,
        Key::Check(key) => check_signatures(&documents, key)?,
    }
    println!("verified: all scores and reports come out the same from the artifacts");
    Ok(())
}

/// What all instances have made, which must be up to date.
fn all_known(session: &Session) -> anyhow::Result<Known> {
    let (states, known) = session.states();
    for (instance, state) in session.plan.instances.iter().zip(&states) {
        let why = match state {
            State::Cached(_) => continue,
            State::Stale(reasons) => in_one_line(reasons),
            State::Waits(_) => "it waits for others".into(),
        };
        let file = session.plan.pipeline.document.file.display();
        bail!("`{}` is not there to be verified ({why})\n  help: run `cargo xtask run {file}` first, with the same `--set`", instance.name);
    }
    Ok(known)
}

/// Runs an instance once more, beside the store: what came out different from what the store has.
fn computed_again(session: &Session, index: usize, known: &Known) -> anyhow::Result<Vec<String>> {
    let instance = &session.plan.instances[index];
    let stored = known[index].as_ref().context("it is there")?;
    let before = &stored.record;
    let lock = session.store.lock(&before.key, |_| Ok(signals::check()?))?;
    let draft = session.store.draft(&before.key, &lock)?;
    let now = process::run(session, index, known, &draft, &before.key, Options { threads: None, anew: true })
        .with_context(|| format!("`{}` cannot be computed again", instance.name))?;
    let rounding = if before.cpu == before.parts.computed_on() { 0.0 } else { ROUNDING };
    let mut differing = Vec::new();
    for (output, made) in &before.outputs {
        let again = &now.outputs[output];
        if again.digest == made.digest {
            continue;
        }
        if made.schema == Metrics::SCHEMA {
            let (then, again) = (Metrics::read(&stored.path(output))?, Metrics::read(&session.store.object(again))?);
            differing.extend(scores_apart(&then, &again, rounding));
        } else {
            differing.push(format!("its output `{output}` comes out otherwise"));
        }
    }
    Ok(differing)
}

/// The scores that are more than `most` apart, and those that only one of the two has.
fn scores_apart(before: &Metrics, now: &Metrics, most: f64) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, value) in &before.scalars {
        match now.scalars.get(name) {
            Some(again) if (again - value).abs() <= most => {}
            Some(again) => lines.push(format!("`{name}` is {value} in the artifact, and comes out as {again}")),
            None => lines.push(format!("`{name}` is {value} in the artifact, and does not come out at all")),
        }
    }
    lines.extend(
        now.scalars.keys().filter(|name| !before.scalars.contains_key(*name)).map(|name| format!("`{name}` is missing in the artifact")),
    );
    if lines.is_empty() && most == 0.0 {
        lines.push("its scores are the same, but not what they were computed from (losses, samples or definitions)".into());
    }
    lines
}

/// The files of a report as they lie in the folder of reports.
fn laid_out(session: &Session, index: usize, known: &Known) -> anyhow::Result<Vec<(PathBuf, Made)>> {
    let folder = session.store.reports(session.pipeline_name());
    let outputs = &known[index].as_ref().context("it is there")?.record.outputs;
    let files = outputs.iter().filter_map(|(output, made)| {
        let name = crate::run::report_name(&session.plan.instances[index].name, output, made, outputs)?;
        Some((folder.join(name), made.clone()))
    });
    Ok(files.collect())
}

/// Beside a report, where its signature lies.
fn signature_of(document: &Path) -> PathBuf {
    let mut name = document.as_os_str().to_owned();
    name.push(".sig");
    name.into()
}

fn read_key(key: &Path, remedy: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(key).with_context(|| format!("cannot read the key `{}`\n  {remedy}", key.display()))
}

fn sign(documents: &[(&Path, Vec<u8>)], key: &Path) -> anyhow::Result<()> {
    let remedy = "help: make one with `openssl genpkey -algorithm ed25519 -out FILE`";
    let signer = SigningKey::from_pkcs8_pem(&read_key(key, remedy)?)
        .map_err(|error| anyhow::anyhow!("`{}` is no private key for ed25519 in PEM ({error})\n  {remedy}", key.display()))?;
    for (document, bytes) in documents {
        let path = signature_of(document);
        dcu_artifact::replace_file(&path, &signer.sign(bytes).to_bytes())?;
        println!("signed: {}", path.display());
    }
    Ok(())
}

fn check_signatures(documents: &[(&Path, Vec<u8>)], key: &Path) -> anyhow::Result<()> {
    let remedy = "help: `openssl pkey -in PRIVATE -pubout -out FILE` writes one";
    let public = VerifyingKey::from_public_key_pem(&read_key(key, remedy)?)
        .map_err(|error| anyhow::anyhow!("`{}` is no public key for ed25519 in PEM ({error})\n  {remedy}", key.display()))?;
    for (document, bytes) in documents {
        let path = signature_of(document);
        let signature = std::fs::read(&path).with_context(|| {
            format!("`{}` is not signed: there is no `{}`\n  help: sign it with `--sign KEY`", document.display(), path.display())
        })?;
        let signature =
            Signature::from_slice(&signature).map_err(|_| anyhow::anyhow!("`{}` is no signature of 64 bytes", path.display()))?;
        if public.verify_strict(bytes, &signature).is_err() {
            bail!("`{}` was signed with another key, or changed since", document.display());
        }
        println!("signed with `{}`: {}", key.display(), document.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn metrics(scores: &[(&str, f64)]) -> Metrics {
        let scalars: BTreeMap<String, f64> = scores.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Metrics { scalars, ..Metrics::default() }
    }

    #[test]
    fn scores_must_be_equal_but_for_the_rounding_of_another_cpu() {
        let (before, now) = (metrics(&[("a", 0.5), ("b", 1.0)]), metrics(&[("a", 0.504), ("c", 1.0)]));
        let lines = scores_apart(&before, &now, 0.0);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].contains("`a` is 0.5 in the artifact, and comes out as 0.504"));
        assert_eq!(scores_apart(&before, &now, ROUNDING).len(), 2);
        assert!(scores_apart(&before, &before, 0.0)[0].contains("not what they were computed from"));
        assert!(scores_apart(&before, &before, ROUNDING).is_empty());
    }

    #[test]
    fn a_signature_is_of_its_key_and_of_each_byte() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        // The first test vector of RFC 8410 and its public key; another public key.
        let private = file(
            "private.pem",
            "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n",
        );
        let public = file(
            "public.pem",
            "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n",
        );
        let report = file("report.json", "{ \"score\": 1 }");
        let documents = [(report.as_path(), std::fs::read(&report).unwrap())];
        assert!(check_signatures(&documents, &public).unwrap_err().to_string().contains("is not signed"));
        sign(&documents, &private).unwrap();
        check_signatures(&documents, &public).unwrap();
        let changed = [(report.as_path(), b"{ \"score\": 2 }".to_vec())];
        assert!(check_signatures(&changed, &public).unwrap_err().to_string().contains("another key, or changed since"));
        assert!(sign(&documents, &public).unwrap_err().to_string().contains("no private key"));
        assert!(check_signatures(&documents, &private).unwrap_err().to_string().contains("no public key"));
    }
}
