//! What the end-to-end tests share: the programs as a user starts them, in folders of their own.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A pipeline through all stages of the paper that takes a second: a small MLP on a few digits, and no comparison but retraining.
pub const SMALL: &str = "\
version: 1
name: small
seeds: [1]
stages:
  data:      { uses: data/load, with: { per_class: 20 } }
  holdout:   { uses: data/holdout, in: { train: data.train, test: data.test }, with: { ipc: 5 } }
  base:      { uses: train/fit, in: { dataset: data.train }, with: { model: mlp, widths: [16, 8], epochs: 5, batch: 32 }, label: original }
  buckets:   { uses: condense/cluster, in: { dataset: data.train, model: base }, with: { k: 4 } }
  offline:   { uses: train/offline, in: { dataset: data.train, test: data.test, holdout: holdout, model: base }, with: { iterations: 1 } }
  condensed: { uses: condense/fdm, in: { dataset: data.train, model: offline, buckets: buckets }, with: { steps: 5 } }
  request:   { uses: data/request, in: { dataset: data.train, holdout: holdout } }
  reduced:   { uses: condense/reduce, in: { dataset: data.train, request: request, buckets: buckets, condensed: condensed } }
  modular:
    uses: unlearn/modular
    in: { model: offline, dataset: data.train, request: request, retain: reduced, test: data.test, holdout: holdout }
    with: { overture: 2 }
  retrain:   { uses: unlearn/retrain, in: { model: base, dataset: data.train, request: request, test: data.test, holdout: holdout } }
  evaluate:
    matrix: { of: [base, modular, retrain] }
    uses: attack/evaluate
    in: { model: \"${of}\", dataset: data.train, test: data.test, holdout: holdout, request: request }
  report:    { uses: report/table, in: { metrics: [evaluate] }, gather: seeds }
";

/// A private key for ed25519 and its public key, those of RFC 8410.
pub const KEYS: [&str; 2] = [
    "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n",
    "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n",
];

/// The folder of the workspace, as cargo says at run time: two checkouts may share a build folder.
#[must_use]
pub fn workspace() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
        Path::new(&package).parent().expect("the tests lie in the workspace").to_owned()
    })
}

/// The folder of the built programs. Builds them on the first call, as `cargo xtask` does.
pub fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo).args(["build", "--quiet", "--workspace", "--bins"]).current_dir(workspace()).status();
        assert!(status.expect("cargo starts").success(), "the programs do not build");
        let test = std::env::current_exe().expect("a test knows its path");
        test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps").to_owned()
    })
}

/// What a program did.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; none after a signal.
    pub code: Option<i32>,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
}

impl Finished {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Self {
        let output = command.output().expect("the program starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("programs write UTF-8");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// This, which must have succeeded.
    #[track_caller]
    pub fn success(self) -> Self {
        assert_eq!(self.code, Some(0), "it failed:\n{}\n{}", self.stdout, self.stderr);
        self
    }

    /// The error, which must have come with exit code 1.
    #[track_caller]
    pub fn failure(self) -> String {
        assert_eq!(self.code, Some(1), "it should have failed:\n{}\n{}", self.stdout, self.stderr);
        self.stderr
    }

    /// The instances that ran, in order.
    #[must_use]
    pub fn ran(&self) -> Vec<&str> {
        self.instances("  ran     ")
    }

    /// The instances that were taken from the store, in order.
    #[must_use]
    pub fn cached(&self) -> Vec<&str> {
        self.instances("  cached  ")
    }

    fn instances(&self, mark: &str) -> Vec<&str> {
        self.stderr.lines().filter_map(|line| line.strip_prefix(mark)?.split(' ').next()).collect()
    }
}

/// A stage program or the runner, in the folder of the workspace.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(programs().join(name));
    command.current_dir(workspace());
    command
}

/// A folder with a pipeline file and a store.
#[derive(Debug)]
pub struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    /// A new folder with this pipeline file.
    #[must_use]
    pub fn new(pipeline: &str) -> Self {
        let project = Self { folder: tempfile::tempdir().expect("there is a folder for temporary files") };
        std::fs::write(project.pipeline(), pipeline).expect("the folder can be written to");
        project
    }

    /// Where a file of this project lies.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The pipeline file.
    #[must_use]
    pub fn pipeline(&self) -> PathBuf {
        self.path("pipeline.yaml")
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// The runner's `command` on this pipeline and store.
    #[must_use]
    pub fn command(&self, command: &str, more: &[&str]) -> Command {
        let mut xtask = program("xtask");
        xtask.arg(command).arg(self.pipeline()).arg("--store").arg(self.store()).args(more);
        xtask
    }

    /// Runs [`Self::command`] to its end.
    pub fn xtask(&self, command: &str, more: &[&str]) -> Finished {
        Finished::of(&mut self.command(command, more))
    }

    /// The path of the only output of an instance, or of the named one (`data.train`).
    #[must_use]
    pub fn artifact(&self, name: &str, more: &[&str]) -> PathBuf {
        let (instance, output) = name.split_once('.').map_or((name, None), |(instance, output)| (instance, Some(output)));
        let mut xtask = program("xtask");
        xtask.arg("inspect").arg(self.pipeline()).arg(instance).args(["--json", "--store"]).arg(self.store()).args(more);
        let entries: Value = serde_json::from_str(&Finished::of(&mut xtask).success().stdout).expect("it prints JSON");
        let fitting = entries.as_array().expect("an array").iter().find(|entry| output.is_none_or(|output| entry["output"] == output));
        PathBuf::from(fitting.expect("there is such an output")["path"].as_str().expect("a path"))
    }

    /// The rows of `metrics --format json`.
    #[must_use]
    pub fn metrics(&self, more: &[&str]) -> Vec<Value> {
        let more = [&["--format", "json"], more].concat();
        let rows: Value = serde_json::from_str(&self.xtask("metrics", &more).success().stdout).expect("it prints JSON");
        rows.as_array().expect("an array").clone()
    }
}

/// The row of a method.
#[must_use]
pub fn row<'a>(rows: &'a [Value], method: &str) -> &'a Value {
    rows.iter().find(|row| row["method"] == method).unwrap_or_else(|| panic!("no row of `{method}`"))
}

/// All artifacts of a store by path, with their bytes.
#[must_use]
pub fn artifacts(store: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![store.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("the store can be read").flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "safetensors") {
                let bytes = std::fs::read(&path).expect("the store can be read");
                found.insert(path.strip_prefix(store).expect("it lies in the store").to_owned(), bytes);
            }
        }
    }
    found
}

/// A running program of a test, killed when it is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    output: Option<JoinHandle<(String, String)>>,
}

impl Running {
    /// The variable that marks all processes of one test.
    pub const MARK: &str = "DCU_TEST_MARK";

    /// Starts a command. It and all that it starts can be found by `mark`.
    pub fn start(command: &mut Command, mark: &Path) -> Self {
        let command = command.env(Self::MARK, mark).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let (mut stdout, mut stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let output = std::thread::spawn(move || {
            let listen = std::thread::spawn(move || {
                let mut text = String::new();
                stdout.read_to_string(&mut text).expect("programs write UTF-8");
                text
            });
            let mut text = String::new();
            stderr.read_to_string(&mut text).expect("programs write UTF-8");
            (listen.join().expect("reading does not panic"), text)
        });
        Self { child, output: Some(output) }
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end, which must come within `limit`.
    #[track_caller]
    pub fn finish(mut self, limit: Duration) -> Finished {
        let status = within(limit, || self.child.try_wait().expect("it can be waited for"));
        let status = status.unwrap_or_else(|| panic!("it still runs after {limit:?}"));
        let (stdout, stderr) = self.output.take().expect("it is taken once").join().expect("reading does not panic");
        Finished { code: status.code(), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until there is an answer.
pub fn within<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        match ask() {
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            answer => return answer,
        }
    }
}

/// The living processes of a test, with their command lines. What only builds the programs is left out.
#[cfg(target_os = "linux")]
#[must_use]
pub fn processes(mark: &Path) -> Vec<(u32, String)> {
    use std::os::unix::ffi::OsStrExt as _;

    let wanted = [Running::MARK.as_bytes(), b"=", mark.as_os_str().as_bytes()].concat();
    let folders = std::fs::read_dir("/proc").expect("there is /proc").flatten();
    let pids = folders.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let living = pids.filter_map(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        if !environment.split(|&byte| byte == 0).any(|variable| variable == wanted) {
            return None;
        }
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<_> = line.split(|&byte| byte == 0).map(String::from_utf8_lossy).collect();
        let builds = ["cargo", "rustc", "cc", "ld"].iter().any(|name| words[0].rsplit('/').next() == Some(name));
        // A process that has ended, but was not waited for, has no command line.
        (!line.is_empty() && !builds).then(|| (pid, words.join(" ")))
    });
    living.collect()
}

/// Sends a signal.
#[cfg(unix)]
pub fn send(pid: u32, signal: i32) {
    // SAFETY: a plain call of the system.
    unsafe { libc::kill(pid.try_into().expect("process ids are small"), signal) };
}
