//! The stage programs: built by cargo, described by what cargo and the compiler say of them, and copied so that a run keeps its own.
//!
//! Cargo names the executable and the features of every package; the compiler's dependency list names every file that was compiled in. Both
//! are kept in a small record, so that commands which only look can do without cargo.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use dcu_artifact::{digest_bytes, digest_file};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::fingerprint::{Dependencies, Packages, Sources, read_toml};

/// How up to date the programs must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Cargo brings them up to date; copies of them are kept until the end.
    Build,
    /// They are taken as they are, without cargo, where all are there.
    Look,
}

/// A stage program.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// What is started.
    path: PathBuf,
    stamp: Stamp,
    pub(crate) sources: Sources,
    pub(crate) packages: Packages,
    /// Whether a source is newer than the program.
    pub(crate) outdated: bool,
}

impl Program {
    /// What to start, which is still what was looked at.
    pub(crate) fn path(&self) -> anyhow::Result<&Path> {
        let unchanged = stamp(&self.path).is_ok_and(|now| now == self.stamp);
        ensure!(unchanged, "`{}` was replaced while this command used it\n  help: run the command again", self.path.display());
        Ok(&self.path)
    }
}

/// By which a file that nobody touched is told without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    /// Nanoseconds since 1970.
    modified: u64,
    inode: u64,
}

fn stamp(path: &Path) -> std::io::Result<Stamp> {
    let metadata = std::fs::metadata(path)?;
    #[cfg(unix)]
    let inode = std::os::unix::fs::MetadataExt::ino(&metadata);
    #[cfg(not(unix))]
    let inode = 0;
    Ok(Stamp { size: metadata.len(), modified: nanoseconds(metadata.modified()?), inode })
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// What is known of a program since cargo last built it for this runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    executable: PathBuf,
    stamp: Stamp,
    packages: Packages,
}

/// The stage programs of a workspace, as far as they are needed.
#[derive(Debug)]
pub(crate) struct Programs {
    workspace: PathBuf,
    profile: String,
    /// Where records of builds are kept.
    records: PathBuf,
    mode: Mode,
    /// The feature of all members that they are built with.
    feature: Option<&'static str>,
    /// Also where programs are only looked at.
    asks_cargo: bool,
    /// Where copies may lie, and the folder of that place's lock; the best place first.
    places: Vec<(PathBuf, PathBuf)>,
    copies: Option<Copies>,
    loaded: BTreeMap<String, Program>,
}

impl Programs {
    /// No programs yet. A store is where copies of them go.
    pub(crate) fn new(workspace: &Path, store: Option<&Path>, mode: Mode, feature: Option<&'static str>) -> anyhow::Result<Self> {
        let runner = std::env::current_exe().context("cannot tell where this program is")?;
        let folder = runner.parent().context("this program has no folder")?;
        let user = std::env::var("USER").unwrap_or_default();
        let temporary = std::env::temp_dir().join(format!("dcu-programs{user}"));
        // Checkouts that share a build folder have records of their own.
        let digest = digest_bytes(workspace.as_os_str().as_encoded_bytes());
        Ok(Self {
            workspace: workspace.to_owned(),
            profile: profile_of(folder),
            records: folder.join("stages").join(digest.short()),
            mode,
            feature,
            asks_cargo: false,
            places: store
                .map(|store| store.join(crate::store::LAYOUT))
                .map(|layout| (layout.join("programs"), layout.join("locks")))
                .into_iter()
                .chain([(temporary.clone(), temporary)])
                .collect(),
            copies: None,
            loaded: BTreeMap::new(),
        })
    }

    /// The profile that they are built with: that of this program.
    pub(crate) fn profile(&self) -> &str {
        &self.profile
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    pub(crate) fn get(&self, stage: &str) -> anyhow::Result<&Program> {
        self.loaded.get(stage).with_context(|| format!("the program of `{stage}` was not asked for"))
    }

    /// Whether sources are newer than a program that was taken as it is.
    pub(crate) fn outdated(&self) -> bool {
        self.loaded.values().any(|program| program.outdated)
    }

    /// Takes no program as it is from now on.
    pub(crate) fn forget(&mut self) {
        self.loaded.clear();
        self.asks_cargo = true;
    }

    /// Makes the programs of some stage crates ready.
    pub(crate) fn load(&mut self, stages: &BTreeSet<String>) -> anyhow::Result<()> {
        let mut missing = stages.clone();
        if self.mode == Mode::Look && !self.asks_cargo {
            let known: BTreeMap<&String, Record> = stages.iter().filter_map(|stage| Some((stage, self.record(stage)?))).collect();
            let listed: BTreeMap<String, Vec<PathBuf>> = known
                .iter()
                .filter_map(|(stage, record)| Some(((*stage).clone(), listed_sources(&self.workspace, &record.executable).ok()?)))
                .filter(|(_, files)| files.iter().all(|file| file.is_file()))
                .collect();
            for (stage, sources) in Sources::read(&self.workspace, &listed)? {
                let Record { executable, stamp, packages } = known[&stage].clone();
                let newer = |file: &PathBuf| self::stamp(file).is_ok_and(|source| source.modified > stamp.modified);
                let outdated = listed[&stage].iter().any(newer);
                missing.remove(&stage);
                self.loaded.insert(stage, Program { path: executable, stamp, sources, packages, outdated });
            }
        }
        if !missing.is_empty() {
            self.build(&missing)?;
        }
        Ok(())
    }

    /// The record of a program that is still the one that was recorded.
    fn record(&self, stage: &str) -> Option<Record> {
        let record: Record = serde_json::from_slice(&std::fs::read(self.record_path(stage)).ok()?).ok()?;
        stamp(&record.executable).is_ok_and(|now| now == record.stamp).then_some(record)
    }

    fn record_path(&self, stage: &str) -> PathBuf {
        // The program of either kind lies at the same path, but only one at a time fits its record.
        self.records.join(self.feature.map_or_else(|| format!("{stage}.json"), |feature| format!("{stage}.{feature}.json")))
    }

    /// Builds programs. Sources must not change until the programs are copied and the sources are read, or it is done again.
    fn build(&mut self, stages: &BTreeSet<String>) -> anyhow::Result<()> {
        for _ in 0..3 {
            if let Some(programs) = self.try_build(stages)? {
                for (stage, program) in &programs {
                    self.remember(stage, program);
                }
                self.loaded.extend(programs.into_iter().map(|(stage, (program, _))| (stage, program)));
                return Ok(());
            }
            eprintln!("the code changed while it was built; building it again");
        }
        bail!("the code keeps changing while it is built\n  help: wait for the other build or stop editing, then run this again")
    }

    /// Programs with their executables, or nothing where something moved meanwhile.
    fn try_build(&mut self, stages: &BTreeSet<String>) -> anyhow::Result<Option<BTreeMap<String, (Program, PathBuf)>>> {
        let files = |stage: &String| listed_sources(&self.workspace, &self.record(stage)?.executable).ok();
        let before: BTreeMap<PathBuf, Option<Stamp>> =
            stages.iter().filter_map(files).flatten().map(|file| (file.clone(), stamp(&file).ok())).collect();
        let begin = nanoseconds(SystemTime::now());
        let built = cargo(&self.workspace, &self.profile, self.feature, stages)?;
        let stamps: BTreeMap<&String, Stamp> = built
            .executables
            .iter()
            .map(|(stage, path)| Ok((stage, stamp(path).with_context(|| format!("cannot read `{}`", path.display()))?)))
            .collect::<anyhow::Result<_>>()?;
        let mut listed = BTreeMap::new();
        for (stage, executable) in &built.executables {
            let files = listed_sources(&self.workspace, executable)?;
            let own = self.workspace.join("crates").join(stage);
            let own = [own.canonicalize().unwrap_or_else(|_| own.clone()), own];
            if !files.iter().any(|file| own.iter().any(|own| file.starts_with(own))) {
                // Another checkout that shares the build folder has put its own program there.
                return Ok(None);
            }
            listed.insert(stage.clone(), files);
        }
        let paths = match self.mode {
            Mode::Look => built.executables.clone(),
            Mode::Build => self.copy(&built.executables)?,
        };
        let mut sources = Sources::read(&self.workspace, &listed)?;
        let moved = |file: &PathBuf| match (before.get(file).copied().flatten(), stamp(file)) {
            (Some(before), Ok(now)) => before != now && !is_generated(file),
            (None, Ok(now)) => now.modified >= begin && !is_generated(file),
            (before, Err(_)) => before.is_some(),
        };
        if listed.values().flatten().any(moved) {
            return Ok(None);
        }
        let mut programs = BTreeMap::new();
        for (stage, executable) in &built.executables {
            if stamp(executable).ok().as_ref() != stamps.get(stage) {
                return Ok(None);
            }
            let path = paths[stage].clone();
            let program = Program {
                stamp: stamp(&path).with_context(|| format!("cannot read `{}`", path.display()))?,
                path,
                sources: sources.remove(stage).unwrap_or_default(),
                packages: built.packages.clone(),
                outdated: false,
            };
            programs.insert(stage.clone(), (program, executable.clone()));
        }
        Ok(Some(programs))
    }

    /// Keeps for later commands what they cannot know without cargo. Where that is not possible, they ask cargo.
    fn remember(&self, stage: &str, (program, executable): &(Program, PathBuf)) {
        let write = || -> anyhow::Result<()> {
            let record = Record { executable: executable.clone(), stamp: stamp(executable)?, packages: program.packages.clone() };
            if self.record(stage).as_ref() != Some(&record) {
                std::fs::create_dir_all(&self.records)?;
                dcu_artifact::replace_file(&self.record_path(stage), &serde_json::to_vec(&record)?)?;
            }
            Ok(())
        };
        write().ok();
    }

    fn copy(&mut self, executables: &BTreeMap<String, PathBuf>) -> anyhow::Result<BTreeMap<String, PathBuf>> {
        if let Some(copies) = &self.copies {
            return copies.add(executables);
        }
        let mut failure = None;
        for (place, locks) in &self.places {
            match Copies::new(place, locks).and_then(|copies| Ok((copies.add(executables)?, copies))) {
                Ok((paths, copies)) => {
                    self.copies = Some(copies);
                    return Ok(paths);
                }
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.expect("there is a place").context("cannot keep copies of the programs for this run"))
    }
}

/// Cargo's name of the profile that builds into a folder.
fn profile_of(folder: &Path) -> String {
    match folder.file_name().and_then(|name| name.to_str()) {
        Some(profile) if profile != "debug" => profile.to_owned(),
        _ => "dev".into(),
    }
}

/// The stage crates of a workspace: the folders under `crates/` with a program.
pub(crate) fn stage_crates(workspace: &Path) -> anyhow::Result<BTreeSet<String>> {
    let folder = workspace.join("crates");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read `{}`", folder.display()))?;
    let stages = entries.flatten().filter(|entry| entry.path().join("src/main.rs").is_file());
    Ok(stages.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// The stage crates without those that another hands its work over to, which say so in their manifest.
pub(crate) fn first_programs(workspace: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut stages = stage_crates(workspace)?;
    stages.retain(|name| {
        let manifest = read_toml(&workspace.join("crates").join(name).join("Cargo.toml")).unwrap_or_default();
        let stage = manifest.get("package").and_then(|package| package.get("metadata")?.get("stage"));
        stage.is_none_or(|stage| stage.get("second-program-of").is_none())
    });
    Ok(stages)
}

/// The names of a stage crate's methods as its files tell them, for messages about programs that were not built.
pub(crate) fn method_files(workspace: &Path, stage: &str) -> Vec<String> {
    let folder = workspace.join("crates").join(stage).join("src/methods");
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| {
        let path = entry.path();
        Some(path.file_stem()?.to_str()?.replace('_', "-"))
    });
    let mut names: Vec<String> = names.filter(|name| name != "mod").collect();
    names.sort();
    names
}

/// The files that a program was compiled from: of this workspace's crates and of those that lie beside it, what they include and what their
/// build scripts read. The compiler lists them in a file beside the program.
fn listed_sources(workspace: &Path, executable: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let list = executable.with_extension("d");
    let files = dependencies(&list)?;
    let mut open: Vec<PathBuf> = files.into_iter().map(|file| workspace.join(file)).collect();
    let mut files = Vec::new();
    while let Some(path) = open.pop() {
        // A build script may name a whole folder.
        match std::fs::read_dir(&path) {
            Ok(entries) => open.extend(entries.flatten().map(|entry| entry.path())),
            Err(_) => files.push(path),
        }
    }
    files.sort();
    Ok(files)
}

/// How long a list may stay unfinished.
const LIST_PATIENCE: Duration = Duration::from_secs(5);

/// The files of a list. Each cargo that finds a program up to date writes its list anew in place, so that one which another run started may be just
/// writing it.
fn dependencies(list: &Path) -> anyhow::Result<Vec<String>> {
    let begin = Instant::now();
    loop {
        let text = std::fs::read_to_string(list).with_context(|| format!("cannot read `{}`", list.display()))?;
        match parse_dependencies(&text) {
            Some(files) => return Ok(files),
            None if begin.elapsed() < LIST_PATIENCE => std::thread::sleep(Duration::from_millis(20)),
            None => bail!("`{}` is no list of dependencies\n  help: delete it and build again", list.display()),
        }
    }
}

/// The files after the colon of the first rule; a blank in a name follows a backslash. None where the text has no end yet.
fn parse_dependencies(text: &str) -> Option<Vec<String>> {
    if !text.ends_with('\n') {
        return None;
    }
    let (_, rule) = text.lines().next()?.split_once(": ")?;
    let mut files = vec![String::new()];
    let mut characters = rule.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' if characters.peek() == Some(&' ') => files.last_mut()?.extend(characters.next()),
            ' ' => files.push(String::new()),
            other => files.last_mut()?.push(other),
        }
    }
    files.retain(|file| !file.is_empty());
    Some(files)
}

/// The compiler's list beside a library, `libname.rlib` or `libname.rmeta`.
fn dependency_list(library: &Path) -> Option<PathBuf> {
    let name = library.file_name()?.to_str()?.strip_prefix("lib")?;
    Some(library.with_file_name(name).with_extension("d"))
}

/// The variables of the environment that were compiled in, with their values; cargo's own follow from the manifest.
fn parse_variables(text: &str) -> Vec<(String, Option<String>)> {
    let variables = text.lines().filter_map(|line| line.strip_prefix("# env-dep:"));
    let split = |line: &str| match line.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (line.to_owned(), None),
    };
    variables.map(split).filter(|(name, _)| !name.starts_with("CARGO") && name != "OUT_DIR").collect()
}

/// Whether a build script has made a file.
fn is_generated(file: &Path) -> bool {
    let parts: Vec<_> = file.components().map(|part| part.as_os_str()).collect();
    parts.windows(3).any(|parts| parts[0] == "build" && parts[2] == "out")
}

/// Private copies of programs, in a folder that goes with this process.
#[derive(Debug)]
struct Copies {
    folder: PathBuf,
    /// Locked as long as this process lives.
    _marker: File,
}

const MARKER: &str = "marker";

impl Copies {
    /// A new folder in `place`. Folders of processes that are no more are removed.
    fn new(place: &Path, locks: &Path) -> anyhow::Result<Self> {
        let failed = || format!("cannot use `{}`", place.display());
        std::fs::create_dir_all(place).and_then(|()| std::fs::create_dir_all(locks)).with_context(failed)?;
        // Nobody sweeps between the making of a folder and the locking of its marker.
        let gate = open(&locks.join("programs")).with_context(failed)?;
        gate.lock().with_context(failed)?;
        for folder in std::fs::read_dir(place).with_context(failed)?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
            let is_free = open(&folder.join(MARKER)).is_ok_and(|marker| marker.try_lock().is_ok());
            if is_free {
                std::fs::remove_dir_all(&folder).ok();
            }
        }
        let folder = place.join(format!("RUN-{}-{:x}", std::process::id(), nanoseconds(SystemTime::now())));
        std::fs::create_dir(&folder).with_context(failed)?;
        let marker = open(&folder.join(MARKER)).with_context(failed)?;
        marker.lock().with_context(failed)?;
        Ok(Self { folder, _marker: marker })
    }

    /// Copies of some programs; where the file system allows it a second name is enough.
    fn add(&self, executables: &BTreeMap<String, PathBuf>) -> anyhow::Result<BTreeMap<String, PathBuf>> {
        let mut copies = BTreeMap::new();
        for (stage, executable) in executables {
            let name = executable.file_name().with_context(|| format!("`{}` has no name", executable.display()))?;
            let copy = self.folder.join(name);
            if copy.exists() {
                // Of an attempt that was given up.
                std::fs::remove_file(&copy).with_context(|| format!("cannot remove `{}`", copy.display()))?;
            }
            if std::fs::hard_link(executable, &copy).is_err() {
                let failed = || format!("cannot copy `{}` to `{}`", executable.display(), copy.display());
                std::fs::copy(executable, &copy).with_context(failed)?;
                let same = digest_file(executable)? == digest_file(&copy)?;
                ensure!(same, "`{}` changed while it was copied\n  help: run the command again", executable.display());
            }
            copies.insert(stage.clone(), copy);
        }
        Ok(copies)
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(path)
}

/// What cargo has built.
struct Built {
    executables: BTreeMap<String, PathBuf>,
    packages: Packages,
}

/// Builds the programs of some stage crates. No package is selected, so that cargo unites the features of all members, and nothing is
/// compiled twice whatever is asked for.
fn cargo(workspace: &Path, profile: &str, feature: Option<&str>, stages: &BTreeSet<String>) -> anyhow::Result<Built> {
    let names: Vec<String> = stages.iter().map(|stage| format!("dcu-{stage}")).collect();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.arg("build").args(["--profile", profile, "--message-format", "json-render-diagnostics"]).current_dir(workspace);
    command.args(names.iter().flat_map(|name| ["--bin", name])).args(feature.into_iter().flat_map(|feature| ["--features", feature]));
    let terminal = std::io::stderr().is_terminal();
    if terminal {
        command.env("CARGO_TERM_PROGRESS_WHEN", "always").env("CARGO_TERM_PROGRESS_WIDTH", "80");
        if std::env::var_os("CARGO_TERM_COLOR").is_none() && std::env::var_os("NO_COLOR").is_none() {
            command.env("CARGO_TERM_COLOR", "always");
        }
    }
    let packages = || Dependencies::read(workspace).and_then(|dependencies| dependencies.count(stages)).ok();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start cargo to build the stage programs")?;
    let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let messages = std::thread::scope(|scope| {
        let listener = scope.spawn(|| Listener::new(&names, terminal, packages()).listen(stderr));
        let messages: std::io::Result<Vec<Value>> =
            BufReader::new(stdout).lines().map(|line| Ok(serde_json::from_str(&line?).unwrap_or_default())).collect();
        listener.join().expect("listening does not panic");
        messages
    });
    let status = child.wait().context("cannot wait for cargo")?;
    let hint = feature.map_or_else(String::new, |feature| {
        format!("\n  help: with `{feature}` they need what README.md names under \"On a GPU\"; `--device cpu` needs nothing of it")
    });
    ensure!(status.success(), "the stage programs do not build; see the messages above{hint}");
    let messages = messages.context("cannot read what cargo says")?;
    let executables: BTreeMap<String, PathBuf> = stages
        .iter()
        .zip(&names)
        .map(|(stage, name)| {
            let is_it = |message: &&Value| message["target"]["name"] == **name && message["target"]["kind"] == json!(["bin"]);
            let executable = messages.iter().filter(is_it).find_map(|message| message["executable"].as_str());
            Ok((stage.clone(), executable.with_context(|| format!("cargo built no program `{name}`"))?.into()))
        })
        .collect::<anyhow::Result<_>>()?;
    Ok(Built { executables, packages: packages_of(workspace, &messages) })
}

/// What cargo's messages say of the packages.
fn packages_of(workspace: &Path, messages: &[Value]) -> Packages {
    let mut packages = Packages::default();
    for message in messages {
        let Some(id) = message["package_id"].as_str() else { continue };
        let name = package_name(id);
        if let Some(features) = message["features"].as_array() {
            let features: BTreeSet<String> = features.iter().filter_map(|feature| feature.as_str().map(str::to_owned)).collect();
            packages.features.entry(name.clone()).or_default().insert(features.into_iter().collect());
            if id.starts_with("path+") {
                let files = message["filenames"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let variables = files.filter_map(|file| std::fs::read_to_string(dependency_list(Path::new(file))?).ok());
                packages.variables.entry(name).or_default().extend(variables.flat_map(|text| parse_variables(&text)));
            }
        } else if message["reason"] == "build-script-executed" && id.starts_with("path+") {
            let given = json!([message["cfgs"], message["env"]]).to_string().replace(&workspace.display().to_string(), ".");
            packages.scripts.insert(name, Value::String(given));
        }
    }
    packages
}

/// `name version` of a package's id: `registry+https://...#name@1.0.0`, or `path+file:///folder/name#1.0.0`.
fn package_name(id: &str) -> String {
    let (source, fragment) = id.rsplit_once('#').unwrap_or(("", id));
    match fragment.rsplit_once('@') {
        Some((name, version)) => format!("{name} {version}"),
        None => {
            let path = source.split('?').next().unwrap_or(source);
            format!("{} {fragment}", path.rsplit('/').next().unwrap_or(path))
        }
    }
}

/// Shows what cargo says on stderr: all but its report that nothing was left to do, and without a terminal a line from time to time.
struct Listener {
    names: String,
    terminal: bool,
    /// How many packages there are at most.
    packages: Option<usize>,
    compiled: usize,
    begin: Instant,
    last: Instant,
}

/// How long it is silent where nobody watches.
const SILENCE: Duration = Duration::from_secs(20);

impl Listener {
    fn new(names: &[String], terminal: bool, packages: Option<usize>) -> Self {
        let now = Instant::now();
        Self { names: names.join(", "), terminal, packages, compiled: 0, begin: now, last: now }
    }

    fn listen(mut self, mut stderr: impl Read) {
        let (mut rest, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let length = stderr.read(&mut buffer).unwrap_or(0);
            rest.extend_from_slice(&buffer[..length]);
            while let Some(end) = rest.iter().position(|&byte| byte == b'\n' || byte == b'\r') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                show(&self.answer(&line));
            }
            if length == 0 {
                return show(&rest);
            }
        }
    }

    /// What to show of a line, its end included.
    fn answer(&mut self, line: &[u8]) -> Vec<u8> {
        let plain = without_colours(&String::from_utf8_lossy(line));
        let mut words = plain.split_whitespace();
        let first = words.next().unwrap_or_default();
        let is_status = plain.starts_with(' ');
        let mut shown = Vec::new();
        match first {
            "Finished" if is_status => return shown,
            "Compiling" if is_status => {
                if self.compiled == 0 {
                    let packages = self.packages.map_or(String::new(), |count| format!(" ({count} packages at most)"));
                    shown.extend(
                        format!(
                            "building {}: what is new or changed since the last build is compiled{packages}; all of it takes minutes, the next time a moment\n",
                            self.names
                        )
                        .bytes(),
                    );
                    self.last = Instant::now();
                }
                self.compiled += 1;
                if !self.terminal && self.last.elapsed() >= SILENCE {
                    self.last = Instant::now();
                    let seconds = self.begin.elapsed().as_secs();
                    shown
                        .extend(format!("  {} packages in {seconds} s, now {}\n", self.compiled, words.next().unwrap_or_default()).bytes());
                }
            }
            _ => {}
        }
        const QUIET: [&str; 12] = [
            "Compiling",
            "Checking",
            "Downloading",
            "Downloaded",
            "Updating",
            "Locking",
            "Adding",
            "Fresh",
            "Building",
            "Dirty",
            "Unpacking",
            "Updated",
        ];
        if self.terminal || !is_status || !QUIET.contains(&first) {
            shown.extend_from_slice(line);
        }
        shown
    }
}

fn show(bytes: &[u8]) {
    let mut stderr = std::io::stderr();
    stderr.write_all(bytes).and_then(|()| stderr.flush()).ok();
}

/// A text without the escape sequences of terminals.
fn without_colours(text: &str) -> String {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => drop(characters.by_ref().skip(1).find(char::is_ascii_alphabetic)),
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compilers_list_of_files_is_read() {
        let text = "/t/dcu-a: /w/crates/a/src/main.rs /w/a\\ b/c.txt ../x.rs\n\n/w/other: /w/y.rs\n";
        assert_eq!(parse_dependencies(text).unwrap(), ["/w/crates/a/src/main.rs", "/w/a b/c.txt", "../x.rs"]);
        assert_eq!(parse_dependencies("nothing"), None);
    }

    #[test]
    fn a_list_that_is_just_being_written_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("dcu-x.d");
        std::fs::write(&list, "dcu-x: src/main.rs src/li").unwrap();
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| dependencies(&list).unwrap());
            std::thread::sleep(Duration::from_millis(100));
            std::fs::write(&list, "dcu-x: src/main.rs src/lib.rs\n").unwrap();
            assert_eq!(reading.join().unwrap(), ["src/main.rs", "src/lib.rs"]);
        });
    }

    #[test]
    fn variables_that_are_compiled_in_are_found() {
        let text = "/t/libnn.rlib: a.rs\n\na.rs:\n\n# env-dep:WORD=a=b\n# env-dep:CARGO_PKG_VERSION=0.1.0\n# env-dep:NONE\n";
        assert_eq!(parse_variables(text), [("WORD".to_owned(), Some("a=b".to_owned())), ("NONE".to_owned(), None)]);
        assert_eq!(dependency_list(Path::new("/t/deps/libnn-12.rmeta")).unwrap(), Path::new("/t/deps/nn-12.d"));
    }

    #[test]
    fn packages_are_known_by_name_and_version() {
        assert_eq!(package_name("registry+https://github.com/rust-lang/crates.io-index#serde@1.0.228"), "serde 1.0.228");
        assert_eq!(package_name("path+file:///work/crates/nn#dcu-nn@0.1.0"), "dcu-nn 0.1.0");
        assert_eq!(package_name("path+file:///work/crates/tiny#0.1.0"), "tiny 0.1.0");
        assert_eq!(package_name("git+https://host/tiny?branch=a#0.1.0"), "tiny 0.1.0");
    }

    #[test]
    fn features_and_what_build_scripts_give_are_taken_from_cargos_messages() {
        let messages = [
            json!({ "reason": "compiler-artifact", "package_id": "path+file:///w/a#1.0.0", "features": ["y", "x"] }),
            json!({ "reason": "compiler-artifact", "package_id": "path+file:///w/a#1.0.0", "features": [] }),
            json!({ "reason": "build-script-executed", "package_id": "path+file:///w/a#1.0.0", "cfgs": ["c"], "env": [["A", "/w/b"]] }),
            json!({ "reason": "build-finished", "success": true }),
        ];
        let packages = packages_of(Path::new("/w"), &messages);
        assert_eq!(packages.features["a 1.0.0"], BTreeSet::from([vec![], vec!["x".to_owned(), "y".to_owned()]]));
        assert_eq!(packages.scripts["a 1.0.0"], r#"[["c"],[["A","./b"]]]"#);
    }

    #[test]
    fn of_what_cargo_says_the_waiting_and_the_errors_are_shown() {
        let mut listener = Listener::new(&["dcu-a".into()], false, Some(9));
        let mut answer = |line: &str| String::from_utf8(listener.answer(line.as_bytes())).unwrap();
        assert_eq!(answer("    Finished `dev` profile in 0.5s\n"), "");
        let blocking = "\u{1b}[1m\u{1b}[36m    Blocking\u{1b}[0m waiting for file lock on build directory\n";
        assert_eq!(answer(blocking), blocking);
        let first = answer("   Compiling serde v1.0.0\n");
        assert!(first.starts_with("building dcu-a: ") && first.contains("9 packages") && first.lines().count() == 1, "{first}");
        assert_eq!(answer("   Compiling anyhow v1.0.0\n"), "");
        assert_eq!(answer("error[E0425]: cannot find value\n"), "error[E0425]: cannot find value\n");
        let mut watched = Listener::new(&["dcu-a".into()], true, None);
        assert_eq!(watched.answer(b"    Building [==> ] 1/9\r"), b"    Building [==> ] 1/9\r");
    }

    #[test]
    fn copies_outlive_what_they_were_made_of_and_go_with_their_process() {
        let place = std::env::temp_dir().join(format!("dcu-copies-{}", std::process::id()));
        let executable = place.with_extension("program");
        std::fs::write(&executable, "first").unwrap();
        let copies = Copies::new(&place, &place).unwrap();
        let paths = copies.add(&BTreeMap::from([("a".to_owned(), executable.clone())])).unwrap();
        std::fs::remove_file(&executable).unwrap();
        std::fs::write(&executable, "second").unwrap();
        assert_eq!(std::fs::read_to_string(&paths["a"]).unwrap(), "first");

        // What a killed process has left is removed by the next one, what is in use is not.
        let left = place.join("RUN-0-0");
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("dcu-a"), "left").unwrap();
        let others = Copies::new(&place, &place).unwrap();
        assert!(!left.exists() && paths["a"].exists());
        drop(copies);
        assert!(!paths["a"].exists());
        drop(others);
        std::fs::remove_dir_all(&place).unwrap();
        std::fs::remove_file(&executable).unwrap();
    }

    #[test]
    fn a_program_that_was_replaced_is_not_started() {
        let path = std::env::temp_dir().join(format!("dcu-replaced-{}", std::process::id()));
        std::fs::write(&path, "first").unwrap();
        let stamp = stamp(&path).unwrap();
        let program = Program { path: path.clone(), stamp, sources: Sources::default(), packages: Packages::default(), outdated: false };
        assert_eq!(program.path().unwrap(), path);
        std::fs::write(&path, "second").unwrap();
        assert!(program.path().unwrap_err().to_string().contains("was replaced while this command used it"));
        std::fs::remove_file(&path).unwrap();
    }
}
