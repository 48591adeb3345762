//! The command line that every stage binary shares.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::{Value, json};

use crate::context::{Arguments, Context};
use crate::progress::{Progress, Style};
use crate::{Entry, Failure, Input, Meter, Rejected};

/// Runs the binary of a stage crate. One without a meter has no networks: its cost is 0.
#[must_use]
pub fn main(crate_name: &'static str, methods: &[Entry], meter: Option<Meter>) -> ExitCode {
    crate::memory::keep_freed_memory();
    let matches = command_line(crate_name, methods).get_matches();
    let (name, arguments) = matches.subcommand().expect("clap asks for one");
    let style = arguments.try_get_one::<Style>("progress").ok().flatten().copied().unwrap_or(Style::Text);
    let result = match name {
        "describe" => describe(crate_name, methods),
        "check" => {
            crate::look::set(arguments.get_flag("look"));
            check(methods)
        }
        method => run(crate_name, methods.iter().find(|entry| entry.name == method).expect("clap knows the names"), arguments, meter),
    };
    let print = |value: Value| {
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{value:#}").and_then(|()| stdout.flush()).context("the result cannot be written to stdout")
    };
    match result.and_then(print) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            Progress::new(style).failed(&error);
            ExitCode::FAILURE
        }
    }
}

fn command_line(crate_name: &'static str, methods: &[Entry]) -> Command {
    let json = Arg::new("json").long("json").action(ArgAction::SetTrue).help("JSON, which is also the default");
    let describe = Command::new("describe").about("What methods there are, their parameters, inputs and outputs").arg(json);
    let look = Arg::new("look").long("look").action(ArgAction::SetTrue).help("Answer from this machine alone: no network is asked");
    let check = Command::new("check").about("Checks an array of {method, parameters} from stdin").arg(look);
    methods.iter().fold(
        Command::new(crate_name).version(env!("CARGO_PKG_VERSION")).subcommand_required(true).subcommand(describe).subcommand(check),
        |command, entry| command.subcommand(method_command(entry)),
    )
}

/// The device where no other is given.
const CPU: &str = "cpu";

fn method_command(entry: &Entry) -> Command {
    let inputs: Vec<String> = entry.inputs.iter().map(|input| format!("  {} ({}{})", input.name, input.schema, note_on(input))).collect();
    let outputs: Vec<String> = entry.outputs.iter().map(|output| format!("  {} ({})", output.name, output.schema)).collect();
    let device = Arg::new("device").long("device").value_name("NAME").default_value(CPU);
    let device = device.help("Where networks compute: `cpu`, `cpu-composed` or `cuda:N`; the result depends on it");
    Command::new(entry.name)
        .about(entry.summary)
        .after_help(format!("Inputs:\n{}\nOutputs:\n{}", inputs.join("\n"), outputs.join("\n")))
        .arg(path("params", "FILE", "The parameters, in YAML or JSON; without it the defaults"))
        .arg(Arg::new("seed").long("seed").value_name("N").value_parser(value_parser!(u64)).help("The seed of all random numbers"))
        .args(entry.device.map(|_| device))
        .arg(named("in", "An input; repeat it for an input of many values"))
        .arg(named("out", "Where an output goes"))
        .arg(path("checkpoint", "DIR", "Where to keep the state of a long run, so that a killed one goes on there"))
        .arg(Arg::new("checkpoint-seconds").long("checkpoint-seconds").value_name("S").value_parser(value_parser!(u64)).hide(true))
        .arg(
            Arg::new("threads")
                .long("threads")
                .value_name("N")
                .value_parser(value_parser!(u16).range(1..))
                .help("Threads; the result does not depend on it"),
        )
        .arg(
            Arg::new("progress")
                .long("progress")
                .default_value("text")
                .value_parser(value_parser!(Style))
                .help("How to show progress on stderr"),
        )
        .arg(path("timings", "FILE", "The runner's timings, for reports"))
}

fn note_on(input: &Input) -> &'static str {
    match (input.unused, input.optional) {
        (true, _) => ", accepted but not read",
        (false, true) => ", optional",
        (false, false) => "",
    }
}

fn path(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).value_parser(value_parser!(PathBuf)).help(help)
}

fn named(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name("NAME=PATH")
        .action(ArgAction::Append)
        .value_parser(OsStringValueParser::new().try_map(|text| parse_named(&text)))
        .help(help)
}

/// The path is whatever the system allows, the name is text.
fn parse_named(text: &OsStr) -> Result<(String, PathBuf), String> {
    let bytes = text.as_encoded_bytes();
    let end = bytes.iter().position(|&byte| byte == b'=').ok_or("write NAME=PATH")?;
    let name = std::str::from_utf8(&bytes[..end]).map_err(|_| "the name in NAME=PATH is no text")?;
    // SAFETY: the bytes come from a text of the system and are cut right after a character of ASCII.
    let path: OsString = unsafe { OsStr::from_encoded_bytes_unchecked(&bytes[end + 1..]) }.to_owned();
    Ok((name.to_owned(), path.into()))
}

/// How often checkpoints are written unless the command line says otherwise. Tests want more of them than anybody else.
fn checkpoint_seconds() -> u64 {
    std::env::var("DCU_CHECKPOINT_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(30)
}

fn describe(crate_name: &str, methods: &[Entry]) -> anyhow::Result<Value> {
    Ok(json!({ "crate": crate_name, "methods": methods.iter().map(Entry::describe).collect::<Vec<_>>() }))
}

fn check(methods: &[Entry]) -> anyhow::Result<Value> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
    let questions: Vec<Value> = serde_json::from_str(&text).context("stdin is no JSON array of {method, parameters}")?;
    questions.into_iter().map(|question| answer(methods, question)).collect()
}

fn answer(methods: &[Entry], mut question: Value) -> anyhow::Result<Value> {
    let name = question["method"].as_str().unwrap_or_default();
    let entry = methods.iter().find(|entry| entry.name == name).with_context(|| format!("there is no method `{name}`"))?;
    Ok(match (entry.check)(question["parameters"].take()) {
        Ok(checked) => serde_json::to_value(checked)?,
        Err(error) => {
            let rejected = error.chain().find_map(|cause| cause.downcast_ref::<Rejected>());
            let message = rejected.map_or_else(|| crate::failure::plain(&format!("{error:#}")), |rejected| rejected.message.clone());
            let remedy = crate::failure::remedy_of(&error);
            // A parameter is wrong whatever lies outside; a file that is missing stops only those who need it.
            let kind = if rejected.is_some() { "parameter" } else { "outside" };
            let parameter = rejected.and_then(|rejected| rejected.parameter.clone());
            json!({ "error": { "message": message, "parameter": parameter, "remedy": remedy, "kind": kind } })
        }
    })
}

fn run(crate_name: &'static str, entry: &Entry, matches: &ArgMatches, meter: Option<Meter>) -> anyhow::Result<Value> {
    if let Some(&threads) = matches.get_one::<u16>("threads") {
        rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global().context("cannot start the threads")?;
    }
    let device = entry.device.and_then(|choose| Some((choose, matches.get_one::<String>("device").filter(|name| *name != CPU)?)));
    if let Some((choose, name)) = device {
        choose(name).map_err(|(message, remedy)| Failure::new(message, remedy))?;
    }
    let parameters = match matches.get_one::<PathBuf>("params") {
        Some(path) => read_parameters(path)?,
        None => json!({}),
    };
    let all = |name: &str| matches.get_many::<(String, PathBuf)>(name).into_iter().flatten().cloned().collect();
    let arguments = Arguments {
        seed: matches.get_one::<u64>("seed").copied(),
        device: device.map(|(_, name)| name.clone()),
        inputs: all("in"),
        outputs: all("out"),
        timings: matches.get_one::<PathBuf>("timings").cloned(),
        checkpoint: matches.get_one::<PathBuf>("checkpoint").cloned(),
        checkpoint_interval: Duration::from_secs(matches.get_one::<u64>("checkpoint-seconds").copied().unwrap_or_else(checkpoint_seconds)),
        progress: Progress::new(matches.get_one::<Style>("progress").copied().unwrap_or(Style::Text)),
    };
    let mut context = Context::new(crate_name, arguments, meter);
    context.check(entry.inputs, entry.outputs, entry.uses_seed)?;
    (entry.run)(parameters, &mut context)?;
    context.finish(entry.outputs)
}

fn read_parameters(path: &PathBuf) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    serde_yaml::from_str(&text).with_context(|| format!("`{}` is no YAML", path.display()))
}
