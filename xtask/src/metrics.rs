//! `cargo xtask metrics`: the numbers of a pipeline, one row a method and seed, joined with what they cost.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};
use dcu_artifact::{Metrics, Role, role_of};
use serde_json::{Map, Value, json};

use crate::reasons::in_one_line;
use crate::session::{Known, Session, State, coordinates};
use crate::table::{self, Format};

/// One judged model.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) seed: Option<u64>,
    pub(crate) method: String,
    pub(crate) stage: String,
    pub(crate) instance: String,
    pub(crate) coordinates: Map<String, Value>,
    pub(crate) scalars: BTreeMap<String, f64>,
    pub(crate) absent: BTreeMap<String, String>,
    /// Seconds of the stage that made the model forget; 0 for a model that has forgotten nothing.
    pub(crate) unlearn_seconds: f64,
    /// Seconds of all that a new request costs: the request, what is made of it, and the unlearning.
    pub(crate) request_seconds: f64,
}

/// All rows of a pipeline, which must be up to date.
pub(crate) fn rows(session: &Session) -> anyhow::Result<(Vec<Row>, Known)> {
    let (states, known) = session.states();
    let instances = &session.plan.instances;
    let judging = |index: &usize| instances[*index].outputs.iter().any(|output| role_of(&output.schema) == Some(Role::Scores));
    let evaluations: Vec<usize> = (0..instances.len()).filter(judging).collect();
    if evaluations.is_empty() {
        bail!("the pipeline `{}` evaluates nothing: no stage of it gives metrics/1", session.pipeline_name());
    }
    let needed: BTreeSet<usize> = evaluations.iter().flat_map(|&index| session.plan.ancestors(index).into_iter().chain([index])).collect();
    if let Some(&index) = needed.iter().find(|&&index| known[index].is_none()) {
        let name = &instances[index].name;
        let why = match &states[index] {
            State::Stale(reasons) => in_one_line(reasons),
            _ => "it waits for others".into(),
        };
        bail!(
            "`{name}` is not up to date ({why}), so there is nothing to show\n  help: run `cargo xtask run {}` first, with the same `--set`",
            session.plan.pipeline.document.file.display()
        );
    }
    let rows = evaluations.into_iter().map(|index| row(session, index, &known)).collect::<anyhow::Result<_>>()?;
    Ok((rows, known))
}

fn row(session: &Session, index: usize, known: &Known) -> anyhow::Result<Row> {
    let instance = &session.plan.instances[index];
    let stored = known[index].as_ref().context("it is up to date")?;
    let (name, _) =
        stored.record.outputs.iter().find(|(_, made)| role_of(&made.schema) == Some(Role::Scores)).context("it gives metrics")?;
    let metrics = Metrics::read(&stored.path(name))?;
    let total = |index: usize| known[index].as_ref().map_or(0.0, |stored| stored.record.seconds.total);
    let model = instance.inputs.iter().find(|(name, _)| name == "model").and_then(|(_, sources)| sources.first());
    let (mut unlearn_seconds, mut request_seconds) = (0.0, 0.0);
    if let Some(model) = model {
        let is_asked = |index: usize| {
            let all = session.plan.ancestors(index).into_iter().chain([index]);
            all.flat_map(|other| &session.plan.instances[other].outputs).any(|output| role_of(&output.schema) == Some(Role::Request))
        };
        if is_asked(model.instance) {
            unlearn_seconds = total(model.instance);
            request_seconds = unlearn_seconds
                + session.plan.ancestors(model.instance).into_iter().filter(|&other| is_asked(other)).map(total).sum::<f64>();
        }
    }
    Ok(Row {
        seed: instance.row_seed,
        method: session.plan.row_label(index).to_owned(),
        stage: instance.stage.clone(),
        instance: instance.name.clone(),
        coordinates: coordinates(instance),
        scalars: metrics.scalars,
        absent: metrics.absent,
        unlearn_seconds,
        request_seconds,
    })
}

impl Row {
    /// As JSON, with `names` as keys even where this row lacks the number.
    fn to_json(&self, pipeline: &str, names: &[&str]) -> Value {
        let mut map = Map::new();
        map.insert("pipeline".into(), json!(pipeline));
        map.insert("seed".into(), json!(self.seed));
        map.insert("method".into(), json!(self.method));
        for &name in names {
            map.insert(name.into(), json!(self.scalars.get(name)));
        }
        map.insert("unlearn_seconds".into(), json!(self.unlearn_seconds));
        map.insert("request_seconds".into(), json!(self.request_seconds));
        map.insert("absent".into(), json!(self.absent));
        map.insert("stage".into(), json!(self.stage));
        map.insert("instance".into(), json!(self.instance));
        map.insert("coordinates".into(), Value::Object(self.coordinates.clone()));
        Value::Object(map)
    }
}

/// Prints the rows.
pub(crate) fn print(session: &Session, format: Format) -> anyhow::Result<()> {
    let (rows, _) = rows(session)?;
    let pipeline = session.pipeline_name();
    let names: BTreeSet<&str> = rows.iter().flat_map(|row| row.scalars.keys().chain(row.absent.keys())).map(String::as_str).collect();
    // What most rows have comes first.
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_by_key(|name| std::cmp::Reverse(rows.iter().filter(|row| row.scalars.contains_key(*name)).count()));
    if format == Format::Json {
        println!("{:#}", Value::Array(rows.iter().map(|row| row.to_json(pipeline, &names)).collect()));
        return Ok(());
    }
    let mut heading = vec!["method", "seed", "unlearn_seconds", "request_seconds"];
    heading.extend(&names);
    heading.extend(["instance", "pipeline"]);
    let mut cells = vec![heading.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()];
    for row in &rows {
        let number = |name: &str| {
            row.scalars
                .get(name)
                .map_or(String::new(), |value| if format == Format::Csv { value.to_string() } else { format!("{value:.4}") })
        };
        let mut line = vec![row.method.clone(), row.seed.map_or(String::new(), |seed| seed.to_string())];
        line.extend([row.unlearn_seconds, row.request_seconds].map(|seconds| format!("{seconds:.3}")));
        line.extend(names.iter().map(|name| number(name)));
        line.extend([row.instance.clone(), pipeline.to_owned()]);
        cells.push(line);
    }
    table::print(&cells, format);
    Ok(())
}
