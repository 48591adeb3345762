//! Commands that only show: the methods there are, the graph of a pipeline, the inside of an artifact.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::bail;
use dcu_artifact::{Metrics, Payload as _, SampleId};
use serde_json::{Value, json};

use crate::catalogue::{Catalogue, Method};
use crate::diagnostic::nearest;
use crate::files::{self, Seems};
use crate::programs::{self, Mode};
use crate::reasons::in_one_line;
use crate::session::{Session, State, workspace};
use crate::table;

/// How a graph is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum GraphFormat {
    Text,
    Mermaid,
    Dot,
}

/// All methods, or one with its parameters.
pub(crate) fn list(name: Option<&str>, as_json: bool) -> anyhow::Result<()> {
    let needed = match name {
        Some(name) => BTreeSet::from([name.split('/').next().unwrap_or(name).to_owned()]),
        None => programs::first_programs(workspace())?,
    };
    let mut catalogue = Catalogue::open(workspace(), None, &needed, Mode::Look, None)?;
    if catalogue.is_outdated() {
        // What a program says of itself may be what has changed.
        catalogue = catalogue.rebuilt()?;
    }
    let Some(name) = name else {
        if as_json {
            let methods: serde_json::Map<String, Value> =
                catalogue.methods().map(|(name, method)| Ok((name, serde_json::to_value(method)?))).collect::<anyhow::Result<_>>()?;
            println!("{:#}", Value::Object(methods));
            return Ok(());
        }
        let width = catalogue.methods().map(|(name, _)| name.len()).max().unwrap_or(0);
        catalogue.methods().for_each(|(name, method)| println!("  {name:width$}  {}", method.summary));
        println!("`cargo xtask list METHOD` shows the parameters of one");
        return Ok(());
    };
    let Some((_, method)) = catalogue.find(name) else {
        let names = catalogue.names();
        let help = nearest(name, names.iter().map(String::as_str)).unwrap_or_default();
        anyhow::bail!("there is no method `{name}`\n  help: {help}");
    };
    if as_json {
        println!("{:#}", serde_json::to_value(method)?);
    } else {
        describe(name, method);
    }
    Ok(())
}

fn describe(name: &str, method: &Method) {
    println!("{name}  (version {})\n{}\n", method.version, method.summary);
    let seed = match (method.uses_seed, method.pinned) {
        (false, _) => "not used",
        (true, false) => "used",
        (true, true) => "used, held fixed unless the stage gives `seed:`",
    };
    println!("seed: {seed}");
    println!("in:");
    for input in &method.inputs {
        let kind = match (input.optional, input.many) {
            _ if input.unused => " (may be given, is not read)",
            (true, _) => " (optional)",
            (_, true) => " (one or more)",
            _ => "",
        };
        println!("  {}: {}{kind}", input.name, input.schema);
    }
    println!("out:");
    method.outputs.iter().for_each(|output| println!("  {}: {}", output.name, output.schema));
    println!("with:");
    for (parameter, schema) in method.parameters["properties"].as_object().into_iter().flatten() {
        let default = schema.get("default").map_or(String::new(), |default| format!(" = {default}"));
        println!("  {parameter}{default}");
        if let Some(text) = schema["description"].as_str() {
            println!("      {}", text.replace('\n', "\n      "));
        }
        for choice in choices(&method.parameters, schema) {
            println!("      - {choice}");
        }
    }
}

/// The values of a parameter that has a fixed choice of them, with what each means.
fn choices(whole: &Value, schema: &Value) -> Vec<String> {
    let target = schema["$ref"]
        .as_str()
        .or_else(|| schema["anyOf"][0]["$ref"].as_str())
        .and_then(|path| whole.pointer(path.trim_start_matches('#')));
    let schema = target.unwrap_or(schema);
    let one = |choice: &Value| {
        let value = choice.get("const").and_then(Value::as_str)?;
        let text = choice["description"].as_str().unwrap_or_default().replace('\n', " ");
        Some(format!("{value}: {text}"))
    };
    let plain = schema["enum"].as_array().into_iter().flatten().filter_map(|value| value.as_str().map(str::to_owned));
    plain.chain(schema["oneOf"].as_array().into_iter().flatten().filter_map(one)).collect()
}

/// The stages of a pipeline and what each takes from which.
pub(crate) fn graph(session: &Session, format: GraphFormat) {
    let instances = &session.plan.instances;
    let mut stages: Vec<(&str, Vec<String>, usize, Vec<&str>)> = Vec::new();
    for instance in instances {
        let position = stages.iter().position(|(name, ..)| *name == instance.stage).unwrap_or_else(|| {
            stages.push((&instance.stage, Vec::new(), 0, Vec::new()));
            stages.len() - 1
        });
        let (_, uses, count, needs) = &mut stages[position];
        *count += 1;
        let task = instance.task.uses();
        if !uses.contains(&task) {
            uses.push(task);
        }
        for need in instance.needs() {
            let need = instances[need].stage.as_str();
            if !needs.contains(&need) {
                needs.push(need);
            }
        }
    }
    match format {
        GraphFormat::Text => {
            let heading = ["stage", "runs", "instances", "needs"].map(str::to_owned).to_vec();
            let in_short = |uses: &[String]| match uses {
                [first, second, third, others @ ..] if !others.is_empty() => format!("{first} {second} {third} and {} more", others.len()),
                few => few.join(" "),
            };
            let rows = stages
                .iter()
                .map(|(name, uses, count, needs)| vec![(*name).to_owned(), in_short(uses), count.to_string(), needs.join(" ")]);
            table::aligned(&std::iter::once(heading).chain(rows).collect::<Vec<_>>(), "  ", "", "")
                .iter()
                .for_each(|line| println!("{line}"));
        }
        GraphFormat::Mermaid => {
            println!("graph TD");
            stages.iter().for_each(|(name, uses, ..)| println!("  s_{name}[\"{name}<br>{}\"]", uses.join("<br>")));
            stages.iter().for_each(|(name, _, _, needs)| needs.iter().for_each(|need| println!("  s_{need} --> s_{name}")));
        }
        GraphFormat::Dot => {
            println!("digraph \"{}\" {{", session.pipeline_name());
            stages.iter().for_each(|(name, uses, ..)| println!("  \"{name}\" [label=\"{name}\\n{}\"];", uses.join("\\n")));
            stages.iter().for_each(|(name, _, _, needs)| needs.iter().for_each(|need| println!("  \"{need}\" -> \"{name}\";")));
            println!("}}");
        }
    }
}

/// Whether a file is a pipeline rather than an artifact.
pub(crate) fn is_pipeline(path: &Path) -> anyhow::Result<bool> {
    Ok(files::what(path).map_err(anyhow::Error::msg)? == Seems::Pipeline)
}

/// An artifact's schema, facts, origin and tensors; the whole file is checked.
pub(crate) fn artifact(path: &Path, as_json: bool) -> anyhow::Result<()> {
    if let Seems::Other(what) = files::what(path).map_err(anyhow::Error::msg)? {
        bail!("`{}` is no artifact: it seems to be {what}\n  help: give an artifact (`.safetensors`) or a pipeline file", path.display());
    }
    let header = dcu_artifact::verify(path).map_err(|error| {
        let remedy = error.remedy();
        anyhow::anyhow!("{error}\n  help: {remedy}")
    })?;
    let metrics = if header.schema == Metrics::SCHEMA { Some(Metrics::read(path)?) } else { None };
    if as_json {
        let mut value = serde_json::to_value(&header)?;
        if let (Some(metrics), Some(map)) = (&metrics, value.as_object_mut()) {
            map.insert("scalars".into(), json!(metrics.scalars));
        }
        println!("{value:#}");
        return Ok(());
    }
    println!("schema    {}", header.schema);
    println!("content   {}", header.digest);
    let producer = &header.provenance.producer;
    println!("producer  {} {} (version {})", producer.crate_name, producer.method, producer.version);
    println!("seed      {}", header.provenance.seed.map_or("none".into(), |seed| seed.to_string()));
    println!("parameters {:#}", header.provenance.parameters);
    for (name, digests) in &header.provenance.inputs {
        digests.iter().for_each(|digest| println!("input     {name} {digest}"));
    }
    for (name, digest) in &header.provenance.externals {
        println!("file      {name} {digest}");
    }
    if let Some(metrics) = &metrics {
        numbers(metrics);
        return Ok(());
    }
    println!("facts     {:#}", header.facts);
    println!("tensors");
    let rows: Vec<Vec<String>> = header
        .tensors
        .iter()
        .map(|tensor| vec![format!("  {}", tensor.name), tensor.dtype.clone(), format!("{:?}", tensor.shape)])
        .collect();
    table::aligned(&rows, "  ", "", "").iter().for_each(|line| println!("{line}"));
    if header.schema == "request/1" {
        let (request, _) = dcu_artifact::read::<dcu_artifact::Request>(path)?;
        let some: Vec<String> = request.forget.iter().take(10).map(|&id| SampleId(id).to_string()).collect();
        println!("forgets   {} samples: {}{}", request.forget.len(), some.join(", "), if request.forget.len() > 10 { ", ..." } else { "" });
    }
    Ok(())
}

/// The numbers of metrics, each with what it means; of arrays the shape.
fn numbers(metrics: &Metrics) {
    println!("facts     {:#}", Value::Object(metrics.facts.clone()));
    let meaning = |name: &str| {
        let known = metrics.definitions.get(name);
        known.map(|known| (known.unit.clone(), known.definition.clone())).unwrap_or_default()
    };
    let row = |name: &str, value: String| {
        let (unit, definition) = meaning(name);
        vec![format!("  {name}"), value, unit, definition]
    };
    let print = |heading: &str, rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            println!("{heading}");
            table::aligned(&rows, "  ", "", "").iter().for_each(|line| println!("{}", line.trim_end()));
        }
    };
    print("numbers", metrics.scalars.iter().map(|(name, value)| row(name, value.to_string())).collect());
    print("arrays", metrics.arrays.iter().map(|(name, array)| row(name, format!("{:?}", array.shape))).collect());
    print("ids", metrics.ids.iter().map(|(name, ids)| vec![format!("  {name}"), format!("[{}]", ids.len())]).collect());
    print("absent", metrics.absent.iter().map(|(name, reason)| vec![format!("  {name}"), reason.clone()]).collect());
}

/// The results of a pipeline, or of what a name selects: where they lie, what they are and how long they took. Of what was asked for by name
/// nothing may be missing.
pub(crate) fn results(session: &Session, name: Option<&str>, as_json: bool) -> anyhow::Result<()> {
    let (selected, only) = match name {
        Some(name) => session.plan.select_output(name)?,
        None => ((0..session.plan.instances.len()).collect(), None),
    };
    let (states, known) = session.states();
    let mut entries = Vec::new();
    for index in selected {
        let instance = &session.plan.instances[index];
        let Some(stored) = known[index].as_ref() else {
            if name.is_some() {
                bail!(
                    "`{}` is not up to date\n  help: run `cargo xtask run {}` first",
                    instance.name,
                    session.plan.pipeline.document.file.display()
                );
            }
            let why = match (&instance.problem, &states[index]) {
                (Some(problem), _) => problem.message.clone(),
                (None, State::Stale(reasons)) => in_one_line(reasons),
                _ => "it waits for others".into(),
            };
            entries.push(json!({ "instance": instance.name, "stage": instance.stage, "path": null, "missing": why }));
            continue;
        };
        for (output, made) in stored.record.outputs.iter().filter(|(output, _)| only.is_none_or(|only| only == *output)) {
            entries.push(json!({ "instance": instance.name, "stage": instance.stage, "output": output, "schema": made.schema,
                "digest": made.digest, "path": stored.path(output), "seconds": stored.record.seconds, "cost": stored.record.cost,
                "cpu": stored.record.cpu, "threads": stored.record.threads }));
        }
    }
    if as_json {
        println!("{:#}", Value::Array(entries));
        return Ok(());
    }
    for entry in &entries {
        let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        if let Some(why) = entry["missing"].as_str() {
            println!("{}  is not up to date: {why}", text("instance"));
            continue;
        }
        println!(
            "{}  {} ({}, {:.12}, {:.1} s)\n  {}",
            text("instance"),
            text("output"),
            text("schema"),
            text("digest"),
            entry["seconds"]["total"].as_f64().unwrap_or_default(),
            text("path")
        );
    }
    Ok(())
}
