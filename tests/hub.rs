//! `source: hub` against a small server on loopback that speaks the hub's protocol. Python's `huggingface_hub`, where it is installed,
//! downloads the same files from it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use dcu_artifact::Dataset;
use dcu_tests::{Finished, Project, SMALL, workspace};
use serde_json::json;

const REPOSITORY: &str = "someone/digits";

/// What the server holds and what it was asked.
#[derive(Debug, Default)]
struct Hub {
    commit: Mutex<String>,
    files: BTreeMap<String, Vec<u8>>,
    /// Who does not bring it is turned away.
    token: Option<String>,
    downloads: AtomicUsize,
}

/// A request, as far as the hub looks at it.
struct Request {
    method: String,
    path: String,
    authorization: Option<String>,
}

impl Hub {
    /// The data set with the digits that come with the program.
    fn digits(token: Option<&str>) -> Self {
        let file = |part: &str| std::fs::read(workspace().join(format!("crates/data/data/{part}.parquet"))).unwrap();
        let files = ["train", "test"].map(|part| (format!("data/{part}-00000-of-00001.parquet"), file(part)));
        let files = BTreeMap::from_iter(files.into_iter().chain([("README.md".to_owned(), b"# Digits".to_vec())]));
        Self { commit: Mutex::new("a".repeat(40)), files, token: token.map(str::to_owned), downloads: AtomicUsize::new(0) }
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
        if let Some(token) = &self.token
            && request.authorization.as_deref() != Some(&format!("Bearer {token}"))
        {
            return ("401 Unauthorized", vec![("X-Error-Code", "GatedRepo".into())], Vec::new());
        }
        let commit = self.commit.lock().unwrap().clone();
        let json =
            |value: serde_json::Value| ("200 OK", vec![("Content-Type", "application/json".to_owned())], value.to_string().into_bytes());
        let path = request.path.split('?').next().unwrap_or_default();
        let known = |revision: &str| revision == "main" || revision == commit;
        if let Some(rest) = path.strip_prefix(&format!("/api/datasets/{REPOSITORY}/")) {
            let siblings: Vec<_> = self.files.keys().map(|name| json!({ "rfilename": name })).collect();
            let tree: Vec<_> = self
                .files
                .iter()
                .map(|(name, bytes)| json!({ "type": "file", "path": name, "size": bytes.len(), "oid": etag(bytes) }))
                .collect();
            return match rest.split_once('/') {
                Some(("revision", revision)) if known(revision) => json(
                    json!({ "_id": "1", "id": REPOSITORY, "author": "someone", "sha": commit, "private": false, "disabled": false, "gated": false,
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
                self.downloads.fetch_add(usize::from(request.method == "GET"), Ordering::SeqCst);
                ("200 OK", vec![("ETag", format!("\"{}\"", etag(bytes))), ("X-Repo-Commit", commit)], bytes.clone())
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
    let mut authorization = None;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        match header.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => authorization = Some(value.to_owned()),
            Some(_) => {}
            None => return Some(Request { method, path, authorization }),
        }
    }
}

fn from_hub(project: &Project, endpoint: &str, environment: &[(&str, &str)]) -> Finished {
    let source = format!("data.repo={REPOSITORY}");
    let mut command = project.command("run", &["--only", "data", "--set", "data.source=hub", "--set", &source, "--set", "data.pad=2"]);
    for name in
        ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"]
    {
        command.env_remove(name);
    }
    command.env("HF_HOME", project.path("hf")).env("HF_ENDPOINT", endpoint).envs(environment.iter().copied());
    Finished::of(&mut command)
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
    let read = |project: &Project, more: &[&str]| -> Dataset { dcu_artifact::read(&project.artifact("data.train", more)).unwrap().0 };
    let embedded = Project::new(SMALL);
    embedded.xtask("run", &["--only", "data"]).success();
    let found = std::fs::read_dir(project.store().join("v1/data-load")).unwrap().flatten().next().unwrap().path().join("train.safetensors");
    let downloaded: Dataset = dcu_artifact::read(&found).unwrap().0;
    let own = read(&embedded, &[]);
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
    for record in std::fs::read_dir(project.store().join("v1/data-load")).unwrap().flatten() {
        let text = std::fs::read_to_string(record.path().join("record.json")).unwrap();
        assert!(!text.contains("secret"), "the token is in the record");
    }
}

/// The server speaks the protocol, not just what hf-hub happens to ask of it.
#[test]
fn the_server_serves_python_too() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let has_library = Command::new(&python).args(["-c", "import huggingface_hub"]).output().is_ok_and(|output| output.status.success());
    if !has_library {
        eprintln!("not compared: `{python}` has no huggingface_hub; set PYTHON to one that has it");
        return;
    }
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
