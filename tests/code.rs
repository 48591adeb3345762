//! Edits of Rust code: what changes a result runs again, what does not is cached. In a workspace of its own, which cargo builds in a moment: a
//! stage crate written by hand, a helper that it uses, and a stage crate that does not compile.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use dcu_tests::{Finished, workspace};

const FILES: [(&str, &str); 12] = [
    (
        "Cargo.toml",
        "[workspace]\nresolver = \"3\"\nmembers = [\"crates/*\"]\n[profile.dev]\nopt-level = 0\ndebug = false\n[profile.release]\nopt-level = 1\n",
    ),
    (
        "crates/tiny/Cargo.toml",
        "[package]\nname = \"dcu-tiny\"\nversion = \"0.1.0\"\nedition = \"2024\"\nbuild = \"make.rs\"\n[lib]\nname = \"tiny\"
         [[bin]]\nname = \"dcu-tiny\"\npath = \"src/main.rs\"\n[features]\ncuda = []\n[dependencies]\nhelper = { path = \"../helper\" }\n",
    ),
    (
        "crates/tiny/make.rs",
        "fn main() {
             let folder = std::env::var(\"OUT_DIR\").unwrap();
             std::fs::write(std::path::Path::new(&folder).join(\"made.txt\"), \"made\").unwrap();
             println!(\"cargo:rerun-if-changed=make.rs\");
         }\n",
    ),
    ("crates/tiny/src/main.rs", "fn main() { tiny::main() }\n"),
    (
        "crates/tiny/src/lib.rs",
        r####"//! A stage crate without dependencies.
mod methods;

/// The registry.
pub fn methods() -> Vec<(&'static str, fn() -> String)> {
    vec![("one", methods::one::text), ("two", methods::two::text)]
}

pub fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let listed = |entry: &str| methods().iter().map(|(name, _)| entry.replace("NAME", name).replace("DEVICE", if *name == "one" { "true" } else { "false" })).collect::<Vec<_>>().join(",");
    match arguments[0].as_str() {
        "describe" => {
            let entry = r##"{"name":"NAME","version":1,"summary":"a text","uses_seed":false,"uses_device":DEVICE,"parameters":{"properties":{}},
                "inputs":[{"name":"after","schema":"file/txt","optional":true,"many":false}],
                "outputs":[{"name":"text","schema":"file/txt"}]}"##;
            println!("{}", r##"{"methods":[LIST]}"##.replace("LIST", &listed(entry)));
        }
        "check" => {
            let questions = std::io::read_to_string(std::io::stdin()).unwrap();
            let answers = vec![r#"{"parameters":{},"externals":[]}"#; questions.matches("\"method\"").count()];
            println!("[{}]", answers.join(","));
        }
        name => {
            let path = arguments.iter().find_map(|argument| argument.strip_prefix("text=")).unwrap();
            let (_, text) = methods().into_iter().find(|(known, _)| *known == name).unwrap();
            let made = include_str!(concat!(env!("OUT_DIR"), "/made.txt"));
            let device = arguments.iter().position(|argument| argument == "--device").map_or("", |place| &arguments[place + 1]);
            let built = if cfg!(feature = "cuda") { "with cuda" } else { "without" };
            std::fs::write(path, format!("{name}: {} {} {made} {built} {device}", text(), helper::shout!("loud"))).unwrap();
        }
    }
}
"####,
    ),
    ("crates/tiny/src/methods/mod.rs", "pub mod one;\npub mod two;\n"),
    ("crates/tiny/src/methods/one.rs", "pub fn text() -> String { helper::text(1) }\n"),
    ("crates/tiny/src/methods/two.rs", "pub fn text() -> String { helper::text(2) }\n"),
    ("crates/helper/Cargo.toml", "[package]\nname = \"helper\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[features]\nextra = []\n"),
    (
        "crates/helper/src/lib.rs",
        r#"//! What stages share.
/// A text.
pub fn text(number: u8) -> String {
    let extra = if cfg!(feature = "extra") { "extra" } else { option_env!("TINY_WORD").unwrap_or("plain") };
    format!("{number} {} {extra}", include_str!(concat!("../", "words.txt")))
}
#[macro_export]
macro_rules! shout {
    ($text:literal) => { concat!($text, "!") };
}
#[cfg(test)]
mod tests {
    #[test]
    fn it_is_a_text() { assert!(super::text(1).starts_with('1')); }
}
"#,
    ),
    ("crates/helper/words.txt", "words"),
    ("pipeline.yaml", "version: 1\nname: code\nstages:\n  one: { uses: tiny/one }\n  two: { uses: tiny/two }\n"),
];

/// A member that the stage does not depend on, and one that does not compile.
const OTHERS: [(&str, &str); 4] = [
    (
        "crates/other/Cargo.toml",
        "[package]\nname = \"other\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[dependencies]\nhelper = { path = \"../helper\" }\n",
    ),
    ("crates/other/src/lib.rs", "\n"),
    ("crates/broken/Cargo.toml", "[package]\nname = \"dcu-broken\"\nversion = \"0.1.0\"\nedition = \"2024\"\n"),
    ("crates/broken/src/main.rs", "fn main() { it does not compile }\n"),
];

/// The runner; no stage program of this workspace is needed here.
fn runner() -> &'static Path {
    static RUNNER: OnceLock<PathBuf> = OnceLock::new();
    RUNNER.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo).args(["build", "--quiet", "--bin", "xtask"]).current_dir(workspace()).status();
        assert!(status.expect("cargo starts").success(), "the runner does not build");
        let test = std::env::current_exe().expect("a test knows its path");
        test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps").join("xtask")
    })
}

struct Workspace {
    folder: tempfile::TempDir,
}

impl Workspace {
    fn new() -> Self {
        let own = Self { folder: tempfile::Builder::new().prefix("a workspace").tempdir().unwrap() };
        FILES.iter().chain(&OTHERS).for_each(|(name, text)| own.write(name, text));
        own
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), text).unwrap();
    }

    fn edit(&self, name: &str, old: &str, new: &str) {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(old), "no `{old}` in {name}");
        self.write(name, &text.replacen(old, new, 1));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(runner());
        command.args(arguments).current_dir(self.folder.path());
        command.env("CARGO_MANIFEST_DIR", self.path("xtask")).env("CARGO_TARGET_DIR", self.path("target")).env("CARGO_NET_OFFLINE", "true");
        command
    }

    fn run(&self) -> Finished {
        Finished::of(&mut self.command(&["run", "pipeline.yaml"])).success()
    }

    #[track_caller]
    fn runs(&self, what: &str, expected: &[&str], text: &str) {
        let run = self.run();
        assert_eq!(run.ran(), expected, "{what}:\n{}", run.stderr);
        assert!(run.stdout.contains(text), "{what}: no `{text}` in\n{}", run.stdout);
    }
}

#[test]
fn edits_of_code_run_what_they_change_and_nothing_else() {
    let own = Workspace::new();
    let both = ["one", "two"];
    own.runs("the first run", &both, "two: 2 words plain loud! made");
    own.runs("nothing", &[], "one: 1 words plain loud! made");

    own.edit("crates/helper/src/lib.rs", "/// A text.", "/// A text, documented. // And\n// commented.");
    own.edit("crates/helper/src/lib.rs", "starts_with('1')", "starts_with(\"1\")");
    own.write("crates/helper/tests/other.rs", "#[test] fn it() {}\n");
    own.write("crates/tiny/src/methods/three.rs", "pub fn text() -> String { String::new() }\n");
    own.edit("crates/tiny/src/methods/mod.rs", "pub mod two;", "pub mod three;\npub mod two;");
    own.edit("crates/tiny/src/lib.rs", "(\"two\"", "(\"three\", methods::three::text), (\"two\"");
    own.edit("Cargo.toml", "[profile.release]\nopt-level = 1", "[profile.release]\nopt-level = 2");
    own.write(".cargo/config.toml", "[net]\nretry = 3\n[alias]\na = \"build\"\n");
    own.runs("comments, documentation, tests, another method, another profile, the network", &[], "one: 1 words plain loud! made");

    own.edit("crates/tiny/src/methods/one.rs", "helper::text(1)", "helper::text(11)");
    own.runs("a method", &["one"], "one: 11 words");
    own.edit("crates/helper/src/lib.rs", "{number} {}", "{number}, {}");
    own.runs("a helper in another crate", &both, "one: 11, words");
    let run = Finished::of(own.command(&["run", "pipeline.yaml"]).env("TINY_WORD", "compiled in")).success();
    assert_eq!(run.ran(), both, "a variable that is compiled in:\n{}", run.stderr);
    assert!(run.stdout.contains("words compiled in"), "{}", run.stdout);
    own.edit("crates/tiny/src/lib.rs", "shout!(\"loud\")", "shout!(\"louder\")");
    own.runs("the argument of a macro", &both, "louder!");
    own.write("crates/helper/words.txt", "other words");
    own.runs("an included file whose name is put together", &both, "two: 2, other words");
    own.edit("crates/tiny/make.rs", "\"made\"", "\"made anew\"");
    own.runs("a build script under another name", &both, "made anew");
    own.edit("crates/other/Cargo.toml", "path = \"../helper\"", "path = \"../helper\", features = [\"extra\"]");
    own.runs("a feature that another member asks for", &both, "other words extra");
    own.edit("Cargo.toml", "opt-level = 0", "opt-level = 1");
    own.runs("the profile", &both, "made anew");
    own.write(".cargo/config.toml", "[build]\nrustflags = [\"--cfg\", \"something\"]\n");
    own.runs("flags of the compiler", &both, "made anew");
}

#[test]
fn looking_needs_no_cargo_and_only_what_is_named_is_built() {
    let own = Workspace::new();
    let look = |arguments: &[&str]| Finished::of(own.command(arguments).env("CARGO", own.path("no-cargo")));
    let error = look(&["status", "pipeline.yaml"]).failure();
    assert!(error.contains("cannot start cargo"), "{error}");
    // The crate that does not compile is not named.
    let run = own.run();
    assert!(run.stderr.contains("building dcu-tiny: "), "{}", run.stderr);
    assert_eq!(std::fs::read_dir(own.path("artifacts/v2/programs")).unwrap().count(), 0, "copies of the programs are left");

    let status = look(&["status", "pipeline.yaml"]).success();
    assert!(status.stdout.contains("2 of 2 stages are cached") && status.stderr.is_empty(), "{status:?}");
    assert!(look(&["list", "tiny/one"]).success().stdout.contains("after: file/txt (optional)"));
    own.edit("crates/tiny/src/methods/two.rs", "helper::text(2)", "helper::text(3)");
    let status = look(&["status", "pipeline.yaml"]).success().stdout;
    assert!(status.contains("stale: code of crates/tiny/src/methods/two.rs") && status.contains("1 of 2 stages are cached"), "{status}");

    // A method that the old program does not know: it is built after all.
    own.write("crates/tiny/src/methods/three.rs", "pub fn text() -> String { String::new() }\n");
    own.edit("crates/tiny/src/methods/mod.rs", "pub mod two;", "pub mod three;\npub mod two;");
    own.edit("crates/tiny/src/lib.rs", "(\"two\"", "(\"three\", methods::three::text), (\"two\"");
    own.edit("pipeline.yaml", "tiny/one", "tiny/three");
    let status = Finished::of(&mut own.command(&["status", "pipeline.yaml"])).success();
    assert!(status.stderr.contains("older than their code") && status.stdout.contains("stale: "), "{status:?}");

    own.edit("pipeline.yaml", "tiny/three", "tinny/one");
    let error = look(&["status", "pipeline.yaml"]).failure();
    assert!(error.contains("did you mean `tiny/one`?") && error.contains("pipeline.yaml:4:"), "{error}");
    own.edit("pipeline.yaml", "tinny/one", "broken/one");
    let error = Finished::of(&mut own.command(&["status", "pipeline.yaml"])).failure();
    assert!(error.contains("do not build; see the messages above") && error.contains("dcu-broken"), "{error}");
}

#[test]
fn for_a_gpu_the_programs_are_built_with_the_feature_and_the_results_are_others() {
    let own = Workspace::new();
    let on = |command: &str, device: &str| Finished::of(&mut own.command(&[command, "pipeline.yaml", "--device", device])).success();
    own.runs("the CPU", &["one", "two"], "one: 1 words plain loud! made without \n");
    // `two` says that its result does not depend on the device.
    let run = on("run", "cpu-composed");
    assert_eq!((run.ran(), run.cached()), (vec!["one"], vec!["two"]), "{}", run.stderr);
    assert!(run.stdout.contains("made without cpu-composed"), "{}", run.stdout);
    let run = on("run", "cuda:0");
    assert_eq!(run.ran(), ["one", "two"], "another program:\n{}", run.stderr);
    assert!(run.stderr.contains("device cpu-composed -> cuda:0; locked dependencies"), "{}", run.stderr);
    assert!(run.stdout.contains("one: 1 words plain loud! made with cuda cuda:0"), "{}", run.stdout);
    assert!(run.stdout.contains("two: 2 words plain loud! made with cuda \n"), "{}", run.stdout);
    let run = on("run", "cuda:1");
    assert_eq!((run.ran(), run.cached()), (vec!["one"], vec!["two"]), "{}", run.stderr);
    for device in ["cpu", "cuda:0", "cpu-composed", "cuda:1", "cpu"] {
        let status = on("status", device).stdout;
        assert!(status.contains("2 of 2 stages are cached"), "{device}: {status}");
    }
}

#[test]
#[cfg(unix)]
fn a_run_keeps_the_programs_that_it_began_with() {
    let own = Workspace::new();
    let program = own.path("target/debug/dcu-tiny");
    let script = format!(
        "rm -f '{program}' && printf '#!/bin/sh\\nexit 9\\n' > '{program}' && chmod +x '{program}'\nfor argument; do case \"$argument\" in done=*) echo done > \"${{argument#done=}}\";; esac; done\n",
        program = program.display()
    );
    own.write("swap.sh", &script);
    own.write(
        "pipeline.yaml",
        "version: 1\nname: code\nstages:\n  one: { uses: tiny/one }\n  swap: { command: [sh, swap.sh], in: { text: one }, out: { done: file/txt } }\n  two: { uses: tiny/two, in: { after: swap } }\n",
    );
    let run = own.run();
    assert!(run.stdout.contains("two: 2 words plain loud! made"), "{}", run.stdout);
    assert_eq!(std::fs::read(&program).unwrap(), b"#!/bin/sh\nexit 9\n");

    // Its script enters the key, though it does not stand under `code:`.
    let name = |finished: &Finished| finished.ran().into_iter().map(|name| name.split('#').next().unwrap().to_owned()).collect::<Vec<_>>();
    own.write("swap.sh", &format!("{script}# more\n"));
    let run = own.run();
    assert_eq!(name(&run), ["swap"], "{}", run.stderr);
}
