//! `cargo xtask verify`: whether the numbers of a report are those that the artifacts give, and who says so.
//!
//! Each file that the report rests on is read whole and compared with its digest. What needs no training is computed again from its inputs: data, requests and other choices of samples,
//! predictions and scores. The report is written again from these, and what lies in the folder of reports is compared with it byte by byte. What was learned is taken as it is, and so is
//! what the runs recorded of their cost; both are named at the end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use dcu_artifact::{Metrics, Payload as _, Predictions, Retain, digest_bytes, role_of};
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

use crate::diagnostic::cut;
use crate::plan::{Instance, Task};
use crate::process::{self, Options};
use crate::reasons::{Reason, in_one_line};
use crate::rounding::{self, Rounding, predictions_apart, scores_apart};
use crate::session::{Known, Session, State};
use crate::signals;
use crate::store::{Care, Made, Stored};
use crate::supervise::StageFailure;

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
    let (known, on_trust) = all_known(&session)?;
    let instances = &session.plan.instances;
    println!("every file of {} results is what it was when it was written", instances.len());
    let is_report = |index: &usize| instances[*index].outputs.iter().any(|output| output.schema.starts_with("file/"));
    if !(0..instances.len()).any(|index| is_report(&index)) {
        bail!("the pipeline `{}` has no report", session.pipeline_name());
    }
    let (mut told, mut taken) = (Told::default(), Vec::new());
    for (index, instance) in instances.iter().enumerate() {
        signals::check()?;
        if !needs_no_training(instance) {
            taken.push(instance.stage.as_str());
            continue;
        }
        let outcome = match on_trust.get(&index) {
            Some(why) => Outcome::on_trust(why, known[index].as_ref()),
            None => computed_again(&session, index, &known)?,
        };
        told.tell(&instance.name, outcome);
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
        told.tell(
            &path.display().to_string(),
            if is_same { Outcome::Same } else { Outcome::differs("it is not what the report stage has written") },
        );
        documents.push((path.as_path(), bytes));
    }
    let given = given.map(|path| anyhow::Ok((path, std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?)));
    let given = given.transpose()?;
    if let Some((path, bytes)) = &given {
        let digest = digest_bytes(bytes);
        if files.iter().all(|(_, made)| made.digest != digest) {
            told.tell(&path.display().to_string(), Outcome::differs("it is none of this pipeline's reports"));
        }
    }
    let Told { wrong, rounded } = told;
    if wrong > 0 {
        let file = session.plan.pipeline.document.file.display();
        let help = format!("help: after a run with other settings, `cargo xtask run {file}` with these lays their reports out again");
        bail!("{wrong} of the numbers or files are not what the artifacts give\n  {help}");
    }
    match key {
        Key::None => {}
        Key::Sign(key) => sign(&documents, key)?,
        // Of a report that was handed on, the signature that came with it.
        Key::Check(key) => check_signatures(given.as_ref().map_or(&documents[..], std::slice::from_ref), key)?,
    }
    taken.dedup();
    let recorded = "seconds, passes, operations and parameters changed are as the runs recorded them";
    println!("taken as recorded: what {} learned; {recorded}", if taken.is_empty() { "no stage".to_owned() } else { taken.join(", ") });
    match rounded {
        0 => println!("verified: all scores and reports come out the same from the artifacts"),
        count => {
            println!("verified: all scores and reports come out from the artifacts, {count} of them within the rounding of another CPU")
        }
    }
    Ok(())
}

/// How a result compares with what was recorded.
enum Outcome {
    Same,
    /// It is another, as close as the rounding of this CPU lets one expect, on which it was recorded to have been computed.
    Rounded(String),
    /// It could not be computed again, and why.
    OnTrust(String),
    /// What is different.
    Differs(Vec<String>),
}

impl Outcome {
    fn differs(line: &str) -> Self {
        Self::Differs(vec![line.to_owned()])
    }

    /// With the parameters that it was made with, of which nothing else speaks then.
    fn on_trust(why: &str, stored: Option<&Stored>) -> Self {
        let parameters = stored.map(|stored| stored.record.parts.parameters.to_string()).unwrap_or_default();
        Self::OnTrust(format!("{why}\n            it is taken as it was recorded, with {parameters}"))
    }
}

/// What was printed.
#[derive(Default)]
struct Told {
    wrong: usize,
    rounded: usize,
}

impl Told {
    fn tell(&mut self, what: &str, outcome: Outcome) {
        match outcome {
            Outcome::Same => println!("  the same  {what}"),
            Outcome::Rounded(cpu) => {
                self.rounded += 1;
                println!("  compared  {what}: computed on another CPU ({}): {}", cut(&cpu), rounding::WORDS);
            }
            Outcome::OnTrust(why) => println!("  on trust  {what}: {why}"),
            Outcome::Differs(lines) => {
                self.wrong += lines.len();
                lines.iter().for_each(|line| println!("  differs   {what}: {line}"));
            }
        }
    }
}

/// Whether all that an instance makes follows from its inputs without training, so that it can be computed again at little cost.
fn needs_no_training(instance: &Instance) -> bool {
    instance.outputs.iter().all(|output| output.schema.starts_with("file/") || role_of(&output.schema).is_some())
}

/// What all instances have made, which must be up to date; and of those whose source outside is out of reach, so that nobody can say whether they are, why.
fn all_known(session: &Session) -> anyhow::Result<(Known, BTreeMap<usize, String>)> {
    let (mut known, mut on_trust): (Known, _) = (vec![None; session.plan.instances.len()], BTreeMap::new());
    for (index, instance) in session.plan.instances.iter().enumerate() {
        let why = match session.state(index, &known) {
            State::Cached(stored) => {
                known[index] = Some(*stored);
                continue;
            }
            State::Stale(reasons) => {
                let is_out_of_reach = reasons.iter().any(|reason| matches!(reason, Reason::Outside(_) | Reason::NotAsked(_)));
                let why = in_one_line(&reasons);
                if is_out_of_reach && let Some(stored) = session.last_result(index, &known) {
                    known[index] = Some(stored);
                    on_trust.insert(index, why);
                    continue;
                }
                why
            }
            State::Waits(_) => "it waits for others".into(),
        };
        let file = session.plan.pipeline.document.file.display();
        bail!("`{}` is not there to be verified ({why})\n  help: run `cargo xtask run {file}` first, with the same `--set`", instance.name);
    }
    Ok((known, on_trust))
}

/// Runs an instance once more, beside the store, and compares.
fn computed_again(session: &Session, index: usize, known: &Known) -> anyhow::Result<Outcome> {
    let instance = &session.plan.instances[index];
    let stored = known[index].as_ref().context("it is there")?;
    let before = &stored.record;
    let lock = session.store.lock(&before.key, |_| Ok(signals::check()?))?;
    let draft = session.store.draft(&before.key, &lock)?;
    let now = match process::run(session, index, known, &draft, &before.key, Options { threads: None, anew: true }) {
        Ok(now) => now,
        Err(error) if !instance.checked.externals.is_empty() && error.is::<StageFailure>() => {
            return Ok(Outcome::on_trust(&format!("its source cannot be read ({error})"), Some(stored)));
        }
        Err(error) => return Err(error.context(format!("`{}` cannot be computed again", instance.name))),
    };
    let rounding = if before.cpu == before.parts.computed_on() { Rounding::Alike } else { Rounding::Other };
    let (mut lines, mut is_same) = (Vec::new(), true);
    for (output, made) in &before.outputs {
        let again = &now.outputs[output];
        if again.digest == made.digest {
            continue;
        }
        is_same = false;
        let (own, new) = (stored.path(output), session.store.object(again));
        let apart = match made.schema.as_str() {
            Metrics::SCHEMA => scores_apart(&Metrics::read(&own)?, &Metrics::read(&new)?, rounding),
            Predictions::SCHEMA => {
                let [own, new] = [own, new].map(|path| dcu_artifact::read::<Predictions>(&path));
                predictions_apart(&own?.0, &new?.0, rounding)
            }
            // Which rows features choose may depend on their last bits.
            Retain::SCHEMA if rounding == Rounding::Other && matches!(instance.task, Task::Method { uses_device: true, .. }) => {
                let why = format!("it was computed on another CPU ({}), where other rows may be chosen", cut(&before.cpu));
                return Ok(Outcome::on_trust(&why, Some(stored)));
            }
            _ => vec![format!("its output `{output}` comes out otherwise")],
        };
        if apart.is_empty() && rounding == Rounding::Alike {
            lines.push(format!("its output `{output}` has the same numbers, but not the same bytes"));
        }
        lines.extend(apart);
    }
    Ok(match lines.is_empty() {
        true if is_same => Outcome::Same,
        true => Outcome::Rounded(before.cpu.clone()),
        false => Outcome::Differs(lines),
    })
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
    use super::*;

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
