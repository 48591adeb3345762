//! The code that a method runs, as digests that change when its result could, and only then.
//!
//! Of each Rust file the token stream counts, without comments, documentation and tests. Left out are the files of a crate's other methods
//! and the registry that lists them. Beside the files count what they embed, the locked dependencies with their features, the
//! toolchain and the profile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use dcu_artifact::{Digest, digest_bytes, digest_json};
use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

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

/// Computes fingerprints; reads what methods share only once.
#[derive(Debug)]
pub(crate) struct Fingerprints {
    workspace: PathBuf,
    manifest: toml::Table,
    lock: BTreeMap<String, Vec<Package>>,
    build: Digest,
    crates: BTreeMap<String, Sources>,
}

#[derive(Debug, Clone, Deserialize)]
struct Package {
    name: String,
    version: String,
    checksum: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

/// The files of one crate.
#[derive(Debug, Clone)]
struct Sources {
    /// All files but those of methods.
    shared: BTreeMap<String, Digest>,
    /// Files under `src/methods/`, by stem.
    methods: BTreeMap<String, (String, Digest)>,
    dependencies: Digest,
}

impl Fingerprints {
    pub(crate) fn new(workspace: &Path) -> anyhow::Result<Self> {
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
        let mut config = read_toml(&workspace.join(".cargo/config.toml")).unwrap_or_default();
        config.remove("alias");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let version = Command::new(rustc).arg("-vV").current_dir(workspace).output().context("cannot ask rustc for its version")?;
        let build = digest_json(&json!({
            "rustc": String::from_utf8_lossy(&version.stdout),
            "flags": std::env::var("RUSTFLAGS").ok(),
            "config": serde_json::to_value(config)?,
            "profile": serde_json::to_value(manifest.get("profile"))?,
        }));
        Ok(Self { workspace: workspace.to_owned(), manifest, lock, build, crates: BTreeMap::new() })
    }

    /// The code of a method of a stage crate, whose other methods are called `others`.
    pub(crate) fn method(&mut self, crate_name: &str, method: &str, others: &[&str]) -> anyhow::Result<Code> {
        if !self.crates.contains_key(crate_name) {
            let sources = self.sources(&self.workspace.join("crates").join(crate_name))?;
            self.crates.insert(crate_name.to_owned(), sources);
        }
        let sources = &self.crates[crate_name];
        let mut files = sources.shared.clone();
        let own = |stem: &str| stem == method || !others.contains(&stem);
        files.extend(sources.methods.iter().filter(|(stem, _)| own(stem)).map(|(_, (path, digest))| (path.clone(), digest.clone())));
        Ok(Code { files, dependencies: Some(sources.dependencies.clone()), build: Some(self.build.clone()) })
    }

    /// The code of an outside stage: the files that it declares.
    pub(crate) fn files(folder: &Path, names: &[String]) -> anyhow::Result<Code> {
        let digest = |name: &String| Ok((name.clone(), dcu_artifact::digest_file(&folder.join(name))?));
        Ok(Code { files: names.iter().map(digest).collect::<anyhow::Result<_>>()?, dependencies: None, build: None })
    }

    /// The files of a crate and of the workspace's crates that it depends on.
    fn sources(&self, folder: &Path) -> anyhow::Result<Sources> {
        let mut open = vec![folder.to_owned()];
        let mut crates = BTreeSet::new();
        let (mut outside, mut tables) = (BTreeSet::new(), BTreeMap::new());
        while let Some(next) = open.pop() {
            if !crates.insert(next.clone()) {
                continue;
            }
            let manifest = read_toml(&next.join("Cargo.toml"))?;
            for (name, specification) in dependencies(&manifest) {
                let inherited = specification.get("workspace").is_some();
                let given = self.manifest.get("workspace").and_then(|workspace| workspace.get("dependencies")?.get(&name));
                let full = if inherited { given.cloned().unwrap_or(specification.clone()) } else { specification.clone() };
                match full.get("path").and_then(toml::Value::as_str) {
                    Some(path) => open.push(if inherited { self.workspace.join(path) } else { next.join(path) }),
                    None => {
                        tables.insert(
                            format!("{} {name}", next.strip_prefix(&self.workspace).unwrap_or(&next).display()),
                            json!([specification, full]),
                        );
                        let package = full.get("package").and_then(toml::Value::as_str).unwrap_or(&name);
                        outside.insert(package.to_owned());
                    }
                }
            }
        }
        let mut sources = Sources { shared: BTreeMap::new(), methods: BTreeMap::new(), dependencies: self.locked(outside, &tables) };
        for member in crates {
            self.collect(&member, &member.join("src"), member == folder, &mut sources)?;
            let script = member.join("build.rs");
            if script.is_file() {
                sources.shared.insert(self.relative(&script), digest_bytes(&std::fs::read(&script)?));
            }
        }
        Ok(sources)
    }

    fn collect(&self, member: &Path, folder: &Path, is_stage: bool, sources: &mut Sources) -> anyhow::Result<()> {
        let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                self.collect(member, &path, is_stage, sources)?;
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let (digest, embedded) = digest_source(&path)?;
            for file in embedded {
                sources.shared.insert(self.relative(&file), dcu_artifact::digest_file(&file)?);
            }
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if is_stage && folder == member.join("src/methods") {
                sources.methods.insert(stem, (self.relative(&path), digest));
            } else {
                sources.shared.insert(self.relative(&path), digest);
            }
        }
        Ok(())
    }

    /// A path from the workspace's folder, with `/` and without `..`.
    fn relative(&self, path: &Path) -> String {
        let path = path.strip_prefix(&self.workspace).unwrap_or(path);
        let mut parts: Vec<String> = Vec::new();
        for part in path.components() {
            match part {
                std::path::Component::ParentDir => drop(parts.pop()),
                part => parts.push(part.as_os_str().to_string_lossy().into_owned()),
            }
        }
        parts.join("/")
    }

    /// The locked versions of the named packages and of all that they need.
    fn locked(&self, names: BTreeSet<String>, tables: &BTreeMap<String, Value>) -> Digest {
        let mut open: Vec<String> = names.into_iter().collect();
        let mut seen = BTreeSet::new();
        let mut packages = BTreeSet::new();
        while let Some(next) = open.pop() {
            if !seen.insert(next.clone()) {
                continue;
            }
            let mut words = next.split(' ');
            let (name, version) = (words.next().unwrap_or_default(), words.next());
            for package in
                self.lock.get(name).into_iter().flatten().filter(|package| version.is_none_or(|version| version == package.version))
            {
                packages.insert((package.name.clone(), package.version.clone(), package.checksum.clone()));
                open.extend(package.dependencies.iter().cloned());
            }
        }
        digest_json(&json!({ "packages": packages, "declared": tables }))
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

fn read_toml(path: &Path) -> anyhow::Result<toml::Table> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    text.parse().with_context(|| format!("`{}` is no TOML", path.display()))
}

/// The digest of a Rust file, and the files that it embeds.
fn digest_source(path: &Path) -> anyhow::Result<(Digest, Vec<PathBuf>)> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    // A file that is no Rust would not compile; its bytes will do until it is mended.
    let Ok(stream) = text.parse::<TokenStream>() else { return Ok((digest_bytes(text.as_bytes()), Vec::new())) };
    let is_root = path.ends_with("src/lib.rs");
    let mut reduced = String::new();
    let mut embedded = Vec::new();
    reduce(stream, is_root, &mut reduced, &mut embedded);
    let folder = path.parent().context("a file has a folder")?;
    Ok((digest_bytes(reduced.as_bytes()), embedded.into_iter().map(|file| folder.join(file)).collect()))
}

/// Writes the tokens that count to `text`, and the files named in `include_bytes!` and its kin to `embedded`.
fn reduce(stream: TokenStream, is_root: bool, text: &mut String, embedded: &mut Vec<String>) {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        if let Some((end, attribute)) = attribute(&tokens, at) {
            at = match attribute.as_str() {
                "cfg (test)" | "test" => end_of_item(&tokens, end),
                documentation if documentation.starts_with("doc ") || documentation.starts_with("doc=") => end,
                _ => {
                    text.push_str(&attribute);
                    text.push('\n');
                    end
                }
            };
            continue;
        }
        if is_module_declaration(&tokens[at..]) || is_root && is_registry(&tokens[at..]) {
            at = end_of_item(&tokens, at);
            continue;
        }
        if let [TokenTree::Ident(name), TokenTree::Punct(bang), TokenTree::Group(argument), ..] = &tokens[at..]
            && bang.as_char() == '!'
            && ["include", "include_bytes", "include_str"].iter().any(|macro_name| name == macro_name)
            && let Some(TokenTree::Literal(literal)) = argument.stream().into_iter().next()
        {
            embedded.push(literal.to_string().trim_matches('"').to_owned());
        }
        match &tokens[at] {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                text.push_str(open);
                reduce(group.stream(), is_root, text, embedded);
                text.push_str(close);
            }
            TokenTree::Punct(punct) => {
                text.push(punct.as_char());
                text.push(if punct.spacing() == Spacing::Joint { '_' } else { ' ' });
            }
            other => {
                text.push_str(&other.to_string());
                text.push(' ');
            }
        }
        at += 1;
    }
}

/// An attribute at `at`: where it ends, and what stands in its brackets.
fn attribute(tokens: &[TokenTree], at: usize) -> Option<(usize, String)> {
    let TokenTree::Punct(hash) = tokens.get(at)? else { return None };
    if hash.as_char() != '#' {
        return None;
    }
    let inner = matches!(tokens.get(at + 1), Some(TokenTree::Punct(bang)) if bang.as_char() == '!');
    let position = at + 1 + usize::from(inner);
    match tokens.get(position)? {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => Some((position + 1, group.stream().to_string())),
        _ => None,
    }
}

/// The position after the item that begins at `at`, which ends with `;` or a block in braces.
fn end_of_item(tokens: &[TokenTree], at: usize) -> usize {
    let ends = |token: &TokenTree| match token {
        TokenTree::Punct(punct) => punct.as_char() == ';',
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        _ => false,
    };
    tokens[at..].iter().position(ends).map_or(tokens.len(), |length| at + length + 1)
}

/// `mod name;`: the file that it names counts by itself.
fn is_module_declaration(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Ident(keyword), TokenTree::Ident(_), TokenTree::Punct(end), ..] if keyword == "mod" && end.as_char() == ';')
}

/// `fn methods() ...` of a stage crate: the list of its methods, which no method depends on.
fn is_registry(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Ident(keyword), TokenTree::Ident(name), ..] if keyword == "fn" && name == "methods")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduced(text: &str) -> String {
        let mut output = String::new();
        reduce(text.parse().unwrap(), true, &mut output, &mut Vec::new());
        output
    }

    const CODE: &str =
        "//! Doc.\nmod a;\nuse x::{b, c};\n/// Doc.\n#[must_use]\npub fn f(x: u8) -> u8 { x + 1 }\nfn methods() -> Vec<u8> { vec![1] }\n";

    #[test]
    fn comments_layout_documentation_tests_and_the_registry_do_not_count() {
        let other = "mod a;\n#[cfg(test)]\nmod fixtures;\nmod b;\nuse x::{b, c};\n#[must_use] pub fn f(x: u8) -> u8 {\n // add\n x + 1 }
            fn methods() -> Vec<u8> { vec![1, 2] }\n#[cfg(test)]\nmod tests { fn g() {} }\n";
        assert_eq!(reduced(CODE), reduced(other));
    }

    #[test]
    fn code_counts() {
        let original = reduced(CODE);
        for (old, new) in [("x + 1", "x + 2"), ("u8) ->", "u16) ->"), ("b, c", "b, d"), ("must_use", "inline"), ("fn f", "fn g")] {
            assert_ne!(reduced(&CODE.replace(old, new)), original, "{old} -> {new}");
        }
    }

    #[test]
    fn operators_of_two_signs_are_not_two_operators() {
        assert_ne!(reduced("a && b"), reduced("a & & b"));
    }

    #[test]
    fn embedded_files_are_found() {
        let mut embedded = Vec::new();
        reduce(
            "const A: &[u8] = include_bytes!(\"../data/a.bin\"); fn f() { include_str!(\"b.txt\"); }".parse().unwrap(),
            false,
            &mut String::new(),
            &mut embedded,
        );
        assert_eq!(embedded, ["../data/a.bin", "b.txt"]);
    }
}
