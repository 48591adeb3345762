//! The code that a method runs, as digests that change when its result could, and only then.
//!
//! Of each Rust file the tokens count (`tokens`), of any other file that is compiled in the bytes; which files those are says the compiler
//! (`programs`). Left out are the files of a crate's other methods and the lists of them. Beside the files count the locked dependencies
//! with the features they were built with, the compiler, its flags and the profile.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use dcu_artifact::{Digest, digest_bytes, digest_file, digest_json};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::tokens::{self, Reduced, Role};

/// The code behind a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Code {
    /// Digests of the files, by their path from the workspace's folder.
    pub(crate) files: BTreeMap<String, Digest>,
    /// The locked versions and features of all dependencies.
    pub(crate) dependencies: Option<Digest>,
    /// The compiler, its flags and the profile.
    pub(crate) build: Option<Digest>,
}

/// The code of an outside stage: the files of `code:`, and every file that a word of the command or a value of the parameters names.
pub(crate) fn outside(folder: &Path, command: &[String], code: &[String], parameters: &Value) -> anyhow::Result<Code> {
    let mut files = BTreeMap::new();
    let mut add = |name: String, path: &Path| -> anyhow::Result<()> {
        if let Entry::Vacant(vacant) = files.entry(name) {
            vacant.insert(digest_file(path)?);
        }
        Ok(())
    };
    for name in code {
        add(lexical(Path::new(name)), &folder.join(name))?;
    }
    let whole = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    for word in command {
        // Also `--script=FILE`.
        for text in [Some(word.as_str()), word.split_once('=').map(|(_, value)| value)].into_iter().flatten() {
            let inside = if Path::new(text).is_absolute() { Path::new(text).strip_prefix(&whole).ok() } else { Some(Path::new(text)) };
            if let Some(inside) = inside.filter(|inside| folder.join(inside).is_file()) {
                add(lexical(inside), &folder.join(inside))?;
            }
        }
    }
    let mut open = vec![(String::from("with"), parameters)];
    while let Some((name, value)) = open.pop() {
        match value {
            Value::Array(items) => open.extend(items.iter().enumerate().map(|(position, item)| (format!("{name}.{position}"), item))),
            Value::Object(map) => open.extend(map.iter().map(|(key, item)| (format!("{name}.{key}"), item))),
            Value::String(text) if folder.join(text).is_file() => {
                // A path of this machine stays out of keys.
                let path = folder.join(text);
                let name = match path.strip_prefix(&whole).ok().or(Some(Path::new(text)).filter(|path| path.is_relative())) {
                    Some(inside) => lexical(inside),
                    None => name,
                };
                add(name, &path)?;
            }
            _ => {}
        }
    }
    Ok(Code { files, dependencies: None, build: None })
}

/// A path with `/` between its parts, without `.` and, where something stands before it, without `..`.
fn lexical(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir | std::path::Component::RootDir => {}
            std::path::Component::ParentDir if parts.last().is_some_and(|part| part != "..") => drop(parts.pop()),
            part => parts.push(part.as_os_str().to_string_lossy().into_owned()),
        }
    }
    parts.join("/")
}

/// The files that a stage program was compiled from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    /// All files but those of methods.
    shared: BTreeMap<String, Reduced>,
    /// Files of methods, by name.
    methods: BTreeMap<String, BTreeMap<String, Reduced>>,
}

impl Sources {
    /// Reads the files that the programs of some stage crates were compiled from, each file once.
    pub(crate) fn read(workspace: &Path, listed: &BTreeMap<String, Vec<PathBuf>>) -> anyhow::Result<BTreeMap<String, Self>> {
        // What a file is depends on whose program it is in: the list of methods counts as code where another program links the crate.
        let roles = |stage: &String, path: &PathBuf| role(&name_of(workspace, path), stage);
        let files: BTreeSet<(&PathBuf, Role)> =
            listed.iter().flat_map(|(stage, files)| files.iter().map(move |path| (path, roles(stage, path)))).collect();
        let files: Vec<(&PathBuf, Role)> = files.into_iter().collect();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let digest = |part: &[(&PathBuf, Role)]| {
            let one = |&(path, role): &(&PathBuf, Role)| Ok(((path.clone(), role), (digest_source(path, role)?, name_of(workspace, path))));
            part.iter().map(one).collect::<anyhow::Result<Vec<_>>>()
        };
        let parts: Vec<_> = std::thread::scope(|scope| {
            let begun: Vec<_> = files.chunks(files.len().div_ceil(threads).max(1)).map(|part| scope.spawn(move || digest(part))).collect();
            begun.into_iter().map(|thread| thread.join().expect("reading does not panic")).collect()
        });
        let digests: BTreeMap<(PathBuf, Role), (Reduced, String)> =
            parts.into_iter().collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten().collect();
        let of = |(stage, files): (&String, &Vec<PathBuf>)| {
            let mut sources = Self::default();
            let methods = format!("crates/{stage}/src/methods/");
            for (reduced, name) in files.iter().map(|file| &digests[&(file.clone(), roles(stage, file))]) {
                match name.strip_prefix(&methods).and_then(|inside| inside.split('/').next()).filter(|first| *first != "mod.rs") {
                    Some(first) => {
                        let method = first.strip_suffix(".rs").unwrap_or(first).to_owned();
                        sources.methods.entry(method).or_default().insert(name.clone(), reduced.clone());
                    }
                    None => drop(sources.shared.insert(name.clone(), reduced.clone())),
                }
            }
            (stage.clone(), sources)
        };
        Ok(listed.iter().map(of).collect())
    }

    /// The files that a method runs: what is shared, its own, and those of other methods that it takes something from. `others` are the
    /// names of all methods of the crate.
    pub(crate) fn of_method(&self, method: &str, others: &[&str]) -> BTreeMap<String, Digest> {
        let named = |stem: &str, name: &str| stem == name || stem.replace('_', "-") == name;
        let mut files: BTreeMap<String, Digest> =
            self.shared.iter().map(|(name, reduced)| (name.clone(), reduced.digest.clone())).collect();
        let is_taken_from = |stem: &str| self.shared.values().any(|reduced| reduced.siblings.contains(stem));
        let mut open: Vec<&String> = self
            .methods
            .keys()
            .filter(|stem| named(stem, method) || is_taken_from(stem) || !others.iter().any(|other| named(stem, other)))
            .collect();
        let mut seen = BTreeSet::new();
        while let Some(stem) = open.pop() {
            if !seen.insert(stem) {
                continue;
            }
            for (name, reduced) in &self.methods[stem] {
                files.insert(name.clone(), reduced.digest.clone());
                open.extend(self.methods.keys().filter(|stem| reduced.siblings.contains(*stem)));
            }
        }
        files
    }
}

/// The name under which a file enters the key: its path from the workspace's folder. What a build script has made lies in a folder whose name
/// differs from machine to machine.
fn name_of(workspace: &Path, path: &Path) -> String {
    let parts: Vec<String> = path.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    if let Some(out) = (2..parts.len()).find(|&out| parts[out] == "out" && parts[out - 2] == "build") {
        let package = parts[out - 1].rsplit_once('-').map_or(parts[out - 1].as_str(), |(package, _)| package);
        return format!("out/{package}/{}", parts[out + 1..].join("/"));
    }
    if let Ok(inside) = path.strip_prefix(workspace) {
        return lexical(inside);
    }
    let real = workspace.canonicalize().unwrap_or_else(|_| workspace.to_owned());
    if let Ok(inside) = path.strip_prefix(&real) {
        return lexical(inside);
    }
    // A path package beside the workspace.
    let common = path.components().zip(real.components()).take_while(|(left, right)| left == right).count();
    let up = std::iter::repeat_n("..", real.components().count() - common).map(str::to_owned);
    up.chain(parts.into_iter().skip(common)).collect::<Vec<_>>().join("/")
}

/// What a file of the workspace is to the program of a stage crate.
fn role(name: &str, of: &str) -> Role {
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        ["crates", stage, "src", "lib.rs"] if *stage == of => Role::Root,
        ["crates", stage, "src", "methods", "mod.rs"] if *stage == of => Role::Methods,
        _ => Role::Plain,
    }
}

fn digest_source(path: &Path, role: Role) -> anyhow::Result<Reduced> {
    let bytes = match std::fs::read(path) {
        // A build script may name a file that is not there.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => b"missing".to_vec(),
        bytes => bytes.with_context(|| format!("cannot read `{}`", path.display()))?,
    };
    Ok(match String::from_utf8(bytes) {
        Ok(text) if path.extension().is_some_and(|extension| extension == "rs") => tokens::reduce(&text, role),
        Ok(text) => Reduced { digest: digest_bytes(text.as_bytes()), siblings: BTreeSet::new() },
        Err(error) => Reduced { digest: digest_bytes(error.as_bytes()), siblings: BTreeSet::new() },
    })
}

/// What cargo said of the packages when it built a program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Packages {
    /// The features that each was compiled with, by `name version`; several lists where it was compiled several times.
    pub(crate) features: BTreeMap<String, BTreeSet<Vec<String>>>,
    /// What the build scripts of packages without a checksum (this workspace's and those beside it) gave to the compiler.
    pub(crate) scripts: BTreeMap<String, Value>,
    /// The variables of the environment that the same packages were compiled with (`option_env!`).
    #[serde(default)]
    pub(crate) variables: BTreeMap<String, BTreeMap<String, Option<String>>>,
}

/// The locked dependencies of the workspace.
#[derive(Debug)]
pub(crate) struct Dependencies {
    workspace: PathBuf,
    manifest: toml::Table,
    lock: BTreeMap<String, Vec<Package>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Package {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

impl Dependencies {
    pub(crate) fn read(workspace: &Path) -> anyhow::Result<Self> {
        let manifest = read_toml(&workspace.join("Cargo.toml"))?;
        let lock_file = read_toml(&workspace.join("Cargo.lock"))?;
        let packages: Vec<Package> = lock_file
            .get("package")
            .cloned()
            .context("Cargo.lock names no package")?
            .try_into()
            .context("Cargo.lock is not of the known form")?;
        let mut lock: BTreeMap<String, Vec<Package>> = BTreeMap::new();
        for package in packages {
            lock.entry(package.name.clone()).or_default().push(package);
        }
        Ok(Self { workspace: workspace.to_owned(), manifest, lock })
    }

    /// How many packages the program of a stage crate may need.
    pub(crate) fn count(&self, stages: &BTreeSet<String>) -> anyhow::Result<usize> {
        let mut names = BTreeSet::new();
        for stage in stages {
            names.extend(self.closure(stage)?.0.into_iter().map(|package| (&package.name, &package.version)));
        }
        Ok(names.len())
    }

    /// The digest of all that the program of a stage crate is built from beside its sources.
    pub(crate) fn digest(&self, stage: &str, built: &Packages) -> anyhow::Result<Digest> {
        let (packages, manifests) = self.closure(stage)?;
        let ids: BTreeSet<String> = packages.iter().map(|package| format!("{} {}", package.name, package.version)).collect();
        let locked: BTreeSet<_> =
            packages.iter().map(|package| (&package.name, &package.version, &package.source, &package.checksum)).collect();
        let features: BTreeMap<_, _> = built.features.iter().filter(|(id, _)| ids.contains(*id)).collect();
        let scripts: BTreeMap<_, _> = built.scripts.iter().filter(|(id, _)| ids.contains(*id)).collect();
        let variables: BTreeMap<_, _> =
            built.variables.iter().filter(|(id, variables)| ids.contains(*id) && !variables.is_empty()).collect();
        Ok(digest_json(&json!({
            "packages": locked, "manifests": manifests, "features": features, "scripts": scripts, "variables": variables,
        })))
    }

    /// The locked packages that the program of a stage crate may need, and what the manifests of the workspace's own crates say that changes the
    /// code.
    fn closure(&self, stage: &str) -> anyhow::Result<(Vec<&Package>, BTreeMap<String, Value>)> {
        let mut open = vec![self.workspace.join("crates").join(stage)];
        let mut folders = BTreeSet::new();
        let (mut outside, mut manifests) = (BTreeSet::new(), BTreeMap::new());
        let mut packages = Vec::new();
        while let Some(next) = open.pop() {
            if !folders.insert(next.clone()) {
                continue;
            }
            let manifest = read_toml(&next.join("Cargo.toml"))?;
            let mut declared = BTreeMap::new();
            for (name, specification) in dependencies(&manifest) {
                let inherited = specification.get("workspace").is_some();
                let given = self.manifest.get("workspace").and_then(|workspace| workspace.get("dependencies")?.get(&name));
                let full = if inherited { given.cloned().unwrap_or(specification.clone()) } else { specification.clone() };
                if let Some(path) = full.get("path").and_then(toml::Value::as_str) {
                    let folder = if inherited { self.workspace.join(path) } else { next.join(path) };
                    open.push(folder.canonicalize().unwrap_or(folder));
                } else {
                    outside.insert(full.get("package").and_then(toml::Value::as_str).unwrap_or(&name).to_owned());
                }
                declared.insert(name, json!([specification, full]));
            }
            let own = self.manifest_digest(&manifest, &declared);
            let name = own["package"]["name"].as_str().unwrap_or_default().to_owned();
            packages.extend(self.lock.get(&name).into_iter().flatten().filter(|package| package.source.is_none()));
            manifests.insert(name, own);
        }
        let mut open: Vec<String> = outside.into_iter().collect();
        let mut seen = BTreeSet::new();
        while let Some(next) = open.pop() {
            if !seen.insert(next.clone()) {
                continue;
            }
            let mut words = next.split(' ');
            let (name, version) = (words.next().unwrap_or_default(), words.next());
            for package in self.lock.get(name).into_iter().flatten() {
                if version.is_none_or(|version| version == package.version) {
                    packages.push(package);
                    open.extend(package.dependencies.iter().cloned());
                }
            }
        }
        Ok((packages, manifests))
    }

    /// What a manifest says that changes the code; what it inherits from the workspace is looked up.
    fn manifest_digest(&self, manifest: &toml::Table, declared: &BTreeMap<String, Value>) -> Value {
        let inherited = |key: &str| self.manifest.get("workspace")?.get("package")?.get(key);
        let package = manifest.get("package").and_then(toml::Value::as_table);
        let fields = ["name", "version", "edition", "build", "links"].into_iter().filter_map(|key| {
            let value = package?.get(key)?;
            let value = if value.get("workspace").is_some() { inherited(key)? } else { value };
            Some((key, json!(value)))
        });
        let fields: BTreeMap<&str, Value> = fields.collect();
        json!({ "package": fields, "features": manifest.get("features"), "dependencies": declared })
    }
}

/// All dependencies that are built into a crate, by name; those of its tests are left out.
fn dependencies(manifest: &toml::Table) -> Vec<(String, toml::Value)> {
    let tables = |table: &toml::Table| {
        let named = ["dependencies", "build-dependencies"].into_iter().filter_map(|key| table.get(key)?.as_table().cloned());
        named.flatten().collect::<Vec<_>>()
    };
    let targets = manifest.get("target").and_then(toml::Value::as_table).into_iter().flat_map(|targets| targets.values());
    tables(manifest).into_iter().chain(targets.filter_map(toml::Value::as_table).flat_map(tables)).collect()
}

pub(crate) fn read_toml(path: &Path) -> anyhow::Result<toml::Table> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    text.parse().with_context(|| format!("`{}` is no TOML", path.display()))
}

/// The digest of how things are compiled: compiler, flags, profile and cargo's configuration.
pub(crate) fn build(workspace: &Path, profile: &str) -> anyhow::Result<Digest> {
    let configurations = configurations(workspace)?;
    let version = compiler(workspace, &configurations)?;
    let manifest = read_toml(&workspace.join("Cargo.toml"))?;
    let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
    Ok(digest_json(&build_parts(&version, profile, &manifest, &configurations, variables)))
}

/// What the compiler says of itself.
fn compiler(workspace: &Path, configurations: &[toml::Table]) -> anyhow::Result<String> {
    let configured = || configurations.iter().find_map(|table| Some(table.get("build")?.get("rustc")?.as_str()?.to_owned().into()));
    let named = ["RUSTC", "CARGO_BUILD_RUSTC"].into_iter().filter_map(std::env::var_os).find(|name| !name.is_empty());
    let rustc = named.or_else(configured).unwrap_or_else(|| "rustc".into());
    let shown = Path::new(&rustc).display();
    let output = Command::new(&rustc).arg("-vV").current_dir(workspace).output();
    let output = output.with_context(|| format!("cannot start `{shown} -vV` to learn the compiler's version"))?;
    ensure!(output.status.success(), "`{shown} -vV` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// All that is in the digest of how things are compiled.
fn build_parts(
    compiler: &str,
    profile: &str,
    manifest: &toml::Table,
    configurations: &[toml::Table],
    variables: impl Iterator<Item = (String, String)>,
) -> Value {
    let tables: Vec<&toml::Table> = std::iter::once(manifest).chain(configurations).collect();
    let profiles = inherited_profiles(profile, &tables);
    let of_profile: Vec<Value> = tables.iter().map(|table| json!(profile_tables(table, &profiles))).collect();
    let prefixes: Vec<String> = profiles.iter().map(|name| format!("CARGO_PROFILE_{}_", name.to_uppercase().replace('-', "_"))).collect();
    let counts = |name: &str| {
        ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC_BOOTSTRAP"].contains(&name)
            || name.starts_with("CARGO_TARGET_") && (name.ends_with("_RUSTFLAGS") || name.ends_with("_LINKER"))
            || name.starts_with("CARGO_UNSTABLE_")
            || prefixes.iter().any(|prefix| name.starts_with(prefix))
    };
    let variables: BTreeMap<String, String> = variables.filter(|(name, value)| !value.trim().is_empty() && counts(name)).collect();
    let configurations: Vec<toml::Table> = configurations.iter().map(that_change_code).filter(|table| !table.is_empty()).collect();
    json!({
        "rustc": compiler, "profile": profiles, "profiles": of_profile.iter().filter(|table| **table != json!({})).collect::<Vec<_>>(),
        "variables": variables, "configurations": configurations,
    })
}

/// A profile and those that it inherits from.
fn inherited_profiles(profile: &str, tables: &[&toml::Table]) -> Vec<String> {
    let mut profiles = vec![profile.to_owned()];
    while let Some(next) =
        profiles.last().and_then(|last| tables.iter().find_map(|table| table.get("profile")?.get(last)?.get("inherits")?.as_str()))
        && !profiles.iter().any(|known| known == next)
    {
        profiles.push(next.to_owned());
    }
    profiles
}

fn profile_tables(table: &toml::Table, profiles: &[String]) -> BTreeMap<String, toml::Value> {
    let all = table.get("profile").and_then(toml::Value::as_table).into_iter().flatten();
    all.filter(|(name, _)| profiles.contains(name)).map(|(name, table)| (name.clone(), table.clone())).collect()
}

/// The tables of a configuration that change what is compiled; profiles are looked at apart.
fn that_change_code(table: &toml::Table) -> toml::Table {
    let mut kept = toml::Table::new();
    for key in ["target", "host", "env", "unstable"] {
        kept.extend(table.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    // A runner starts what is compiled.
    if let Some(targets) = kept.get_mut("target").and_then(toml::Value::as_table_mut) {
        targets.iter_mut().filter_map(|(_, target)| target.as_table_mut()).for_each(|target| drop(target.remove("runner")));
        targets.retain(|_, target| target.as_table().is_none_or(|target| !target.is_empty()));
    }
    let build = table.get("build").and_then(toml::Value::as_table).into_iter().flatten();
    let build: toml::Table =
        build.filter(|(key, _)| ["rustflags", "target"].contains(&key.as_str())).map(|(key, value)| (key.clone(), value.clone())).collect();
    kept.insert("build".into(), build.into());
    kept.retain(|_, value| value.as_table().is_none_or(|table| !table.is_empty()));
    kept
}

/// Cargo's configuration files, the nearest first: of the workspace, of the folders that it lies in, and of cargo's home.
fn configurations(workspace: &Path) -> anyhow::Result<Vec<toml::Table>> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let mut folders: Vec<PathBuf> = workspace.ancestors().map(|folder| folder.join(".cargo")).collect();
    if let Some(home) = home.filter(|home| !folders.contains(home)) {
        folders.push(home);
    }
    // As in cargo, the old name goes before the new one.
    let files =
        folders.iter().filter_map(|folder| ["config", "config.toml"].map(|name| folder.join(name)).into_iter().find(|file| file.is_file()));
    let mut open: Vec<PathBuf> = files.collect();
    open.reverse();
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    while let Some(file) = open.pop() {
        if !seen.insert(file.clone()) {
            continue;
        }
        let table = read_toml(&file)?;
        let included = match table.get("include") {
            Some(toml::Value::Array(items)) => items.clone(),
            Some(one) => vec![one.clone()],
            None => Vec::new(),
        };
        let path = |item: &toml::Value| item.as_str().or_else(|| item.get("path")?.as_str()).map(|path| file.with_file_name(path));
        open.extend(included.iter().filter_map(path).filter(|path| path.is_file()));
        found.push(table);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "[profile.dev]\nopt-level = 2\n[profile.release]\nopt-level = 3\n[profile.quick]\ninherits = \"dev\"\n";

    fn parts(profile: &str, manifest: &str, configuration: &str, variables: &[(&str, &str)]) -> Value {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        build_parts("rustc 1", profile, &manifest.parse().unwrap(), &[configuration.parse().unwrap()], variables)
    }

    #[test]
    fn flags_and_the_profile_that_is_used_count() {
        let plain = parts("dev", MANIFEST, "", &[]);
        for name in [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "CARGO_PROFILE_DEV_OPT_LEVEL",
        ] {
            assert_ne!(parts("dev", MANIFEST, "", &[(name, "-Copt-level=1")]), plain, "{name}");
            assert_eq!(parts("dev", MANIFEST, "", &[(name, "")]), plain, "an empty {name}");
        }
        for name in ["CARGO_PROFILE_RELEASE_OPT_LEVEL", "CARGO_TARGET_DIR", "CARGO_NET_OFFLINE", "CARGO_TERM_COLOR", "PATH"] {
            assert_eq!(parts("dev", MANIFEST, "", &[(name, "1")]), plain, "{name}");
        }
        assert_ne!(parts("release", MANIFEST, "", &[]), plain);
        assert_ne!(parts("dev", &MANIFEST.replace("opt-level = 2", "opt-level = 1"), "", &[]), plain);
        assert_eq!(parts("dev", &MANIFEST.replace("opt-level = 3", "opt-level = 1"), "", &[]), plain);
        let inherited = |manifest: &str| parts("quick", manifest, "", &[("CARGO_PROFILE_DEV_LTO", "true")]);
        assert_ne!(inherited(&MANIFEST.replace("opt-level = 2", "opt-level = 1")), inherited(MANIFEST));
        assert_ne!(inherited(MANIFEST), parts("quick", MANIFEST, "", &[]));
    }

    #[test]
    fn of_cargos_configuration_only_what_changes_code_counts() {
        let plain = parts("dev", MANIFEST, "", &[]);
        for text in [
            "[build]\nrustflags = [\"-Copt-level=1\"]",
            "[target.'cfg(unix)']\nrustflags = [\"-Copt-level=1\"]",
            "[profile.dev]\nlto = true",
            "[env]\nA = \"1\"",
        ] {
            assert_ne!(parts("dev", MANIFEST, text, &[]), plain, "{text}");
        }
        for text in [
            "[net]\noffline = true",
            "[http]\ntimeout = 3",
            "[registries.a]\nindex = \"b\"",
            "[alias]\na = \"b\"",
            "[term]\nquiet = true",
            "[build]\njobs = 3\ntarget-dir = \"/a\"",
            "[target.'cfg(unix)']\nrunner = \"a\"",
            "[profile.release]\nlto = true",
        ] {
            assert_eq!(parts("dev", MANIFEST, text, &[]), plain, "{text}");
        }
    }

    #[test]
    fn configurations_come_from_the_workspace_and_the_folders_around_it() {
        let folder = tempfile();
        let workspace = folder.join("around/workspace");
        for (place, value) in [("around", "outer"), ("around/workspace", "inner")] {
            std::fs::create_dir_all(folder.join(place).join(".cargo")).unwrap();
            std::fs::write(folder.join(place).join(".cargo/config.toml"), format!("[env]\nA = \"{value}\"\n")).unwrap();
        }
        let found = configurations(&workspace).unwrap();
        let values: Vec<&str> = found.iter().take(2).map(|table| table["env"]["A"].as_str().unwrap()).collect();
        assert_eq!(values, ["inner", "outer"]);
        std::fs::write(workspace.join(".cargo/config.toml"), "no toml").unwrap();
        assert!(configurations(&workspace).unwrap_err().to_string().contains("is no TOML"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_compiler_that_fails_is_an_error() {
        let configured: toml::Table = "[build]\nrustc = \"false\"".parse().unwrap();
        if std::env::var_os("RUSTC").is_none() {
            assert!(compiler(Path::new("."), &[configured]).unwrap_err().to_string().contains("`false -vV` failed"));
        }
    }

    /// A new folder for one test.
    fn tempfile() -> PathBuf {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("dcu-fingerprint-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn names_of_files_hold_nothing_of_this_machine() {
        let workspace = Path::new("/home/me/work");
        let name = |path: &str| name_of(workspace, Path::new(path));
        assert_eq!(name("/home/me/work/crates/nn/src/../data/a.bin"), "crates/nn/data/a.bin");
        assert_eq!(name("/home/me/other/src/lib.rs"), "../other/src/lib.rs");
        assert_eq!(name("/home/me/work/target/debug/build/dcu-nn-0123456789abcdef/out/made.rs"), "out/dcu-nn/made.rs");
    }

    #[test]
    fn other_methods_files_do_not_count_unless_something_is_taken_from_them() {
        let folder = tempfile();
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let files = vec![
            write("crates/train/src/lib.rs", "fn methods() { 1 }"),
            write("crates/train/src/methods/mod.rs", "mod fit; mod offline;"),
            write("crates/train/src/methods/fit.rs", "fn f() {}"),
            write("crates/train/src/methods/offline.rs", "use super::fit::f;"),
            write("crates/train/src/methods/by_hand/mod.rs", "fn h() {}"),
            write("crates/train/src/methods/common.rs", "fn g() {}"),
            write("crates/nn/src/table.txt", "1"),
        ];
        let sources = Sources::read(&folder, &BTreeMap::from([("train".to_owned(), files)])).unwrap();
        let of = |method: &str| sources["train"].of_method(method, &["fit", "offline", "by-hand"]).into_keys().collect::<Vec<_>>();
        let shared = ["crates/nn/src/table.txt", "crates/train/src/lib.rs"];
        let own = |names: &[&str]| {
            let own = names.iter().map(|name| format!("crates/train/src/methods/{name}"));
            let mut all: Vec<String> = shared.iter().map(|name| (*name).to_owned()).chain(own).collect();
            all.sort();
            all
        };
        assert_eq!(of("fit"), own(&["common.rs", "fit.rs", "mod.rs"]));
        assert_eq!(of("offline"), own(&["common.rs", "fit.rs", "mod.rs", "offline.rs"]));
        assert_eq!(of("by-hand"), own(&["by_hand/mod.rs", "common.rs", "mod.rs"]));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn every_file_that_an_outside_stage_is_given_counts() {
        let folder = tempfile();
        let elsewhere = folder.join("elsewhere.csv");
        let beside = folder.join("pipeline");
        std::fs::create_dir_all(beside.join("scripts")).unwrap();
        for name in ["pipeline/scripts/a.py", "pipeline/b.py", "pipeline/ids.csv", "pipeline/c.py", "pipeline/d.json", "elsewhere.csv"] {
            std::fs::write(folder.join(name), name).unwrap();
        }
        let inside = beside.join("c.py").display().to_string();
        let command = ["python3", "./scripts/a.py", inside.as_str(), "--settings=d.json", "none.py"].map(str::to_owned);
        let parameters = json!({ "ids": ["ids.csv"], "nested": { "other": elsewhere }, "text": "no.csv", "number": 3 });
        let code = outside(&beside, &command, &["b.py".to_owned()], &parameters).unwrap();
        let names: Vec<&str> = code.files.keys().map(String::as_str).collect();
        assert_eq!(names, ["b.py", "c.py", "d.json", "ids.csv", "scripts/a.py", "with.nested.other"]);
        std::fs::write(&elsewhere, "changed").unwrap();
        assert_ne!(outside(&beside, &command, &["b.py".to_owned()], &parameters).unwrap(), code);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
