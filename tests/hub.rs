//! `source: hub` against a small server on loopback that speaks the hub's protocol. Python's `huggingface_hub`, where it is installed,
//! downloads the same files from it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use dcu_artifact::{Dataset, Part, SampleId};
use dcu_tests::{Finished, Project, SMALL, artifacts, program, workspace};
use serde_json::{Value, json};

const REPOSITORY: &str = "someone/digits";

/// What the server holds and what it was asked.
#[derive(Debug, Default)]
struct Hub {
    commit: Mutex<String>,
    files: BTreeMap<String, Vec<u8>>,
    /// Who does not bring it is turned away.
    token: Option<String>,
    downloads: AtomicUsize,
    /// The path of every request.
    asked: Mutex<Vec<String>>,
}

/// A request, as far as the hub looks at it.
struct Request {
    method: String,
    path: String,
    authorization: Option<String>,
    /// First and last byte of what is wanted; without a last one all that follows.
    range: Option<(usize, Option<usize>)>,
}

impl Hub {
    /// The data set with the digits that come with the program.
    fn digits(token: Option<&str>) -> Self {
        let file = |part: &str| std::fs::read(workspace().join(format!("crates/tables/data/{part}.parquet"))).unwrap();
        let files = ["train", "test"].map(|part| (format!("data/{part}-00000-of-00001.parquet"), file(part)));
        let files = BTreeMap::from_iter(files.into_iter().chain([("README.md".to_owned(), b"# Digits".to_vec())]));
        Self { commit: Mutex::new("a".repeat(40)), files, token: token.map(str::to_owned), ..Self::default() }
    }

    /// Serves until the test ends; the address.
    fn serve(self: &Arc<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let hub = Arc::clone(self);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let hub = Arc::clone(&hub);
                std::thread::spawn(move || hub.converse(&stream));
            }
        });
        address
    }

    fn converse(&self, stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        while let Some(request) = read_request(&mut reader) {
            let (status, headers, body) = self.answer(&request);
            let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
            headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
            head.push_str("\r\n");
            let mut writer = stream;
            let body = if request.method == "HEAD" { &[] } else { body.as_slice() };
            if writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(body)).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: &Request) -> (&'static str, Vec<(&'static str, String)>, Vec<u8>) {
        self.asked.lock().unwrap().push(request.path.clone());
        if let Some(token) = &self.token
            && request.authorization.as_deref() != Some(&format!("Bearer {token}"))
        {
            return ("401 Unauthorized", vec![("X-Error-Code", "GatedRepo".into())], Vec::new());
        }
        let commit = self.commit.lock().unwrap().clone();
        let json =
            |value: serde_json::Value| ("200 OK", vec![("Content-Type", "application/json".to_owned())], value.to_string().into_bytes());
        let path = request.path.split('?').next().unwrap_or_default();
        // Earlier commits stay.
        let known = |revision: &str| revision == "main" || revision.len() == 40 && revision <= commit.as_str();
        if let Some(rest) = path.strip_prefix(&format!("/api/datasets/{REPOSITORY}/")) {
            let siblings: Vec<_> = self.files.keys().map(|name| json!({ "rfilename": name })).collect();
            let tree: Vec<_> = self
                .files
                .iter()
                .map(|(name, bytes)| json!({ "type": "file", "path": name, "size": bytes.len(), "oid": etag(bytes) }))
                .collect();
            return match rest.split_once('/') {
                Some(("revision", revision)) if known(revision) => json(
                    json!({ "_id": "1", "id": REPOSITORY, "author": "someone", "sha": if revision == "main" { &commit } else { revision }, "private": false, "disabled": false, "gated": false,
                        "tags": [], "downloads": 0, "likes": 0, "lastModified": "2024-01-01T00:00:00.000Z", "createdAt": "2024-01-01T00:00:00.000Z",
                        "siblings": siblings }),
                ),
                Some(("tree", revision)) if known(revision) => json(json!(tree)),
                _ => ("404 Not Found", vec![("X-Error-Code", "RevisionNotFound".into())], Vec::new()),
            };
        }
        let file = path.strip_prefix(&format!("/datasets/{REPOSITORY}/resolve/")).and_then(|rest| rest.split_once('/'));
        match file.and_then(|(revision, name)| self.files.get(name).filter(|_| known(revision))) {
            Some(bytes) => {
                let revision = file.map(|(revision, _)| if revision == "main" { commit.as_str() } else { revision }).unwrap_or_default();
                let headers = vec![("ETag", format!("\"{}\"", etag(bytes))), ("X-Repo-Commit", revision.to_owned())];
                // One byte is only asked for to learn the size.
                self.downloads.fetch_add(usize::from(request.method == "GET" && request.range != Some((0, Some(0)))), Ordering::SeqCst);
                let Some((first, last)) = request.range else { return ("200 OK", headers, bytes.clone()) };
                let last = last.unwrap_or(usize::MAX).min(bytes.len() - 1);
                let range = ("Content-Range", format!("bytes {first}-{last}/{}", bytes.len()));
                ("206 Partial Content", [headers, vec![range]].concat(), bytes[first..=last].to_vec())
            }
            None => ("404 Not Found", vec![("X-Error-Code", "EntryNotFound".into())], Vec::new()),
        }
    }
}

fn etag(bytes: &[u8]) -> String {
    dcu_artifact::digest_bytes(bytes).as_str()[..40].to_owned()
}

fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut authorization, mut range) = (None, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        match header.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => authorization = Some(value.to_owned()),
            Some((name, value)) if name.eq_ignore_ascii_case("range") => {
                let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
                range = Some((first.parse().ok()?, last.parse().ok()));
            }
            Some(_) => {}
            None => return Some(Request { method, path, authorization, range }),
        }
    }
}

/// Without what the environment of the test may say of hubs and proxies.
fn with_hub<'a>(command: &'a mut Command, project: &Project, endpoint: &str, environment: &[(&str, &str)]) -> &'a mut Command {
    for name in [
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "http_proxy",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ] {
        command.env_remove(name);
    }
    command.env("HF_HOME", project.path("hf")).env("HF_ENDPOINT", endpoint).envs(environment.iter().copied())
}

fn from_hub(project: &Project, endpoint: &str, environment: &[(&str, &str)]) -> Finished {
    let source = format!("data.repo={REPOSITORY}");
    let mut command = project.command("run", &["--only", "data", "--set", "data.source=hub", "--set", &source, "--set", "data.pad=2"]);
    Finished::of(with_hub(&mut command, project, endpoint, environment))
}

/// What `dcu-tables check` says of a revision.
fn check(project: &Project, endpoint: &str, revision: &str, more: &[&str]) -> Value {
    let mut command = program("dcu-tables");
    with_hub(command.arg("check").args(more), project, endpoint, &[]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let question = json!([{ "method": "load", "parameters": { "source": "hub", "repo": REPOSITORY, "revision": revision } }]);
    child.stdin.take().unwrap().write_all(question.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let answers: Value = serde_json::from_slice(&output.stdout).unwrap();
    answers[0].clone()
}

/// The training set in a store.
fn training_set(store: &Path) -> Dataset {
    let sets = artifacts(store).into_keys().filter_map(|path| Some(dcu_artifact::read::<Dataset>(&store.join(path)).ok()?.0));
    sets.into_iter().find(|set| SampleId(set.ids[0]).part() == Some(Part::Train)).expect("there is one")
}

#[test]
fn a_revision_is_resolved_once_and_that_commit_is_read() {
    let hub = Arc::new(Hub::digits(None));
    let endpoint = hub.serve();
    let project = Project::new(SMALL);
    let (first, second) = ("a".repeat(40), "b".repeat(40));
    // Looking asks nobody: nothing is known yet.
    let looked = check(&project, &endpoint, "main", &["--look"]);
    assert_eq!((&looked["externals"][0]["digest"], looked.get("pinned")), (&Value::Null, None), "{looked}");
    assert!(hub.asked.lock().unwrap().is_empty());
    let by_name = check(&project, &endpoint, "main", &[]);
    assert_eq!(by_name["pinned"], json!({ "revision": first }));
    let asked = hub.asked.lock().unwrap().len();
    assert_eq!(asked, 1, "a revision is resolved once");
    let by_commit = check(&project, &endpoint, &first, &[]);
    assert_eq!((&by_name["externals"], &by_name["parameters"]), (&by_commit["externals"], &by_commit["parameters"]));
    assert_eq!(hub.asked.lock().unwrap().len(), asked, "a commit stands for itself");

    // The branch moves between the question and the run.
    *hub.commit.lock().unwrap() = second.clone();
    let mut command = program("dcu-tables");
    let parameters = project.path("parameters.json");
    std::fs::write(&parameters, json!({ "source": "hub", "repo": REPOSITORY, "revision": first, "pad": 2 }).to_string()).unwrap();
    command.args(["load", "--seed", "1", "--params"]).arg(&parameters);
    for part in ["train", "test"] {
        command.arg("--out").arg(format!("{part}={}", project.path(&format!("{part}.safetensors")).display()));
    }
    Finished::of(with_hub(&mut command, &project, &endpoint, &[])).success();
    let asked = hub.asked.lock().unwrap().clone();
    assert!(asked.iter().filter(|path| path.contains("/resolve/")).all(|path| path.contains(&first)), "{asked:?}");
    let snapshots = project.path("hf/hub/datasets--someone--digits/snapshots");
    assert!(snapshots.join(&first).is_dir() && !snapshots.join(&second).exists());
    let (set, header) = dcu_artifact::read::<Dataset>(&project.path("train.safetensors")).unwrap();
    assert_eq!((set.len(), json!(header.provenance.externals[REPOSITORY])), (8000, by_name["externals"][0]["digest"].clone()));
    // What was downloaded is what looking knows.
    assert_eq!(check(&project, &endpoint, "main", &["--look"])["externals"], by_name["externals"]);
}

#[test]
fn a_data_set_is_downloaded_once_and_read_offline() {
    let hub = Arc::new(Hub::digits(None));
    let endpoint = hub.serve();
    let project = Project::new(SMALL);
    let run = from_hub(&project, &endpoint, &[]).success();
    assert_eq!(run.ran(), ["data"], "{}", run.stderr);
    assert_eq!(hub.downloads.load(Ordering::SeqCst), 2, "only the parquet files are wanted");
    let snapshot = project.path("hf").join("hub/datasets--someone--digits/snapshots").join("a".repeat(40));
    assert!(snapshot.join("data/train-00000-of-00001.parquet").exists(), "it is cached where the ecosystem caches it");

    // The same images as those that come with the program.
    let embedded = Project::new(SMALL);
    embedded.xtask("run", &["--only", "data"]).success();
    let (downloaded, own) = (training_set(&project.store()), training_set(&embedded.store()));
    assert_eq!((&downloaded.images, &downloaded.labels, &downloaded.ids), (&own.images, &own.labels, &own.ids));

    // Nothing new: nothing to do. A new commit: it is read again.
    assert_eq!(from_hub(&project, &endpoint, &[]).success().cached(), ["data"]);
    *hub.commit.lock().unwrap() = "b".repeat(40);
    let run = from_hub(&project, &endpoint, &[]).success();
    assert_eq!(run.ran(), ["data"]);
    assert!(run.stderr.contains("`someone/digits` "), "{}", run.stderr);

    // Without the hub, by choice or not, the last download serves.
    let nowhere = "http://127.0.0.1:9";
    assert_eq!(from_hub(&project, nowhere, &[("HF_HUB_OFFLINE", "1")]).success().cached(), ["data"]);
    assert_eq!(from_hub(&project, nowhere, &[]).success().cached(), ["data"]);
    std::fs::remove_dir_all(project.store()).unwrap();
    assert_eq!(from_hub(&project, nowhere, &[("HF_HUB_OFFLINE", "1")]).success().ran(), ["data"]);
}

#[test]
fn of_a_set_by_name_only_its_own_parts_are_downloaded() {
    let mut hub = Hub::digits(None);
    hub.files.insert("data/extra-00000-of-00001.parquet".into(), b"more digits".to_vec());
    let hub = Arc::new(hub);
    let endpoint = hub.serve();
    let project = Project::new(SMALL);
    let run = |settings: &[&str]| {
        let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        let mut command = project.command("run", &[&["--only", "data"], &settings[..]].concat());
        Finished::of(with_hub(&mut command, &project, &endpoint, &[]))
    };
    let repository = format!("data.repo={REPOSITORY}");
    run(&["data.set=mnist", &repository]).success();
    assert_eq!(hub.downloads.load(Ordering::SeqCst), 2);
    assert_eq!(training_set(&project.store()).facts.normalisation.mean, [0.1307]);
    let error = run(&["data.set=tiny-imagenet", &repository]).failure();
    assert!(error.contains("`tiny-imagenet` has 200 classes, but what was read has 10"), "{error}");
    let error = run(&["data.set=mnits", &repository]).failure();
    assert!(error.contains("did you mean `mnist`?"), "{error}");
}

#[test]
fn a_hub_out_of_reach_is_told_with_what_to_do() {
    let project = Project::new(SMALL);
    let error = from_hub(&project, "http://127.0.0.1:9", &[]).failure();
    for part in ["cannot get `someone/digits` at `main` from the hub", "--set data.source=parquet --set data.path=", "pipeline.yaml:5:"] {
        assert!(error.contains(part), "`{part}` is not in:\n{error}");
    }
    let error = from_hub(&project, "http://127.0.0.1:9", &[("HF_HUB_OFFLINE", "1")]).failure();
    assert!(error.contains("HF_HUB_OFFLINE is set"), "{error}");
}

#[test]
fn a_private_data_set_needs_its_token() {
    let hub = Arc::new(Hub::digits(Some("secret")));
    let endpoint = hub.serve();
    let project = Project::new(SMALL);
    let error = from_hub(&project, &endpoint, &[]).failure();
    assert!(error.contains("from the hub") && error.contains("HF_TOKEN"), "{error}");
    from_hub(&project, &endpoint, &[("HF_TOKEN", "secret")]).success();
    let mut open = vec![project.store()];
    while let Some(folder) = open.pop() {
        for path in std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                open.push(path);
            } else {
                let found = std::fs::read(&path).unwrap().windows(6).any(|bytes| bytes == b"secret");
                assert!(!found, "the token is in {}", path.display());
            }
        }
    }
}

/// The server speaks the protocol, not just what hf-hub happens to ask of it.
#[test]
#[ignore = "needs Python's huggingface_hub: `PYTHON=... cargo test --test hub -- --ignored`"]
fn the_server_serves_python_too() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let has_library = Command::new(&python).args(["-c", "import huggingface_hub"]).output().is_ok_and(|output| output.status.success());
    assert!(has_library, "`{python}` has no huggingface_hub; set PYTHON to one that has it");
    let hub = Arc::new(Hub::digits(None));
    let endpoint = hub.serve();
    let folder = Project::new(SMALL);
    let script = format!(
        "import huggingface_hub as h; print(h.snapshot_download('{REPOSITORY}', repo_type='dataset', allow_patterns=['*.parquet']))"
    );
    let mut command = Command::new(python);
    command.args(["-c", &script]).env("HF_HOME", folder.path("hf")).env("HF_ENDPOINT", endpoint).env("HF_HUB_DISABLE_XET", "1");
    let printed = Finished::of(command.env("NO_PROXY", "127.0.0.1")).success().stdout;
    let file = std::path::Path::new(printed.trim()).join("data/test-00000-of-00001.parquet");
    assert!(std::fs::read(file).unwrap() == hub.files["data/test-00000-of-00001.parquet"]);
}
