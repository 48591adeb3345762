//! `cargo xtask times`: what the results of a pipeline cost to make, stage by stage.

use anyhow::bail;
use dcu_artifact::Cost;
use serde_json::{Map, Value, json};

use crate::session::{Session, coordinates};
use crate::store::Record;
use crate::table::{self, Format};

/// One result, and the record of the run that made it.
struct Row<'a> {
    stage: &'a str,
    instance: &'a str,
    seed: Option<u64>,
    coordinates: Map<String, Value>,
    record: &'a Record,
}

/// Prints a row for each result that is up to date; with `across`, a column for each value of that coordinate.
pub(crate) fn print(session: &Session, across: Option<&str>, format: Format) -> anyhow::Result<()> {
    let (_, known) = session.states();
    let rows: Vec<Row<'_>> = session
        .plan
        .instances
        .iter()
        .zip(&known)
        .filter_map(|(instance, stored)| {
            let record = &stored.as_ref()?.record;
            let (stage, name) = (instance.stage.as_str(), instance.name.as_str());
            Some(Row { stage, instance: name, seed: instance.row_seed, coordinates: coordinates(instance), record })
        })
        .collect();
    if rows.is_empty() {
        bail!(
            "nothing of the pipeline `{}` is up to date\n  help: run `cargo xtask run {}` first, with the same `--set`",
            session.pipeline_name(),
            session.plan.pipeline.document.file.display()
        );
    }
    let left_out = known.iter().filter(|stored| stored.is_none()).count();
    if left_out > 0 {
        eprintln!("{left_out} of {} stages are not up to date, and left out", known.len());
    }
    if format == Format::Json {
        println!("{:#}", Value::Array(rows.iter().map(Row::to_json).collect()));
        return Ok(());
    }
    let cells = match across {
        Some(key) => table_across(&rows, key)?,
        None => table_of(&rows),
    };
    table::print(&cells, format);
    Ok(())
}

fn table_of(rows: &[Row<'_>]) -> Vec<Vec<String>> {
    let heading =
        ["stage", "seconds", "load", "compute", "write", "GiB", "forward", "backward", "steps", "GFLOP"].map(str::to_owned).to_vec();
    let line = |row: &Row<'_>| {
        let seconds = row.record.seconds;
        let mut line = vec![row.instance.to_owned()];
        line.extend([seconds.total, seconds.load, seconds.compute, seconds.write].map(|seconds| format!("{seconds:.2}")));
        line.push(row.record.profile.peak_gibibytes().map_or(String::new(), |peak| format!("{peak:.2}")));
        line.extend(match row.record.cost {
            Some(Cost { forward, backward, steps, operations, .. }) => {
                let counts = [forward, backward, steps].map(|count| count.to_string());
                counts.into_iter().chain([format!("{:.3}", operations as f64 / 1e9)]).collect()
            }
            None => vec![String::new(); 4],
        });
        line
    };
    std::iter::once(heading).chain(rows.iter().map(line)).collect()
}

/// Seconds of what differs in the coordinate `key` alone, beside one another.
fn table_across(rows: &[Row<'_>], key: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let mut values: Vec<&str> = Vec::new();
    let mut lines: Vec<(String, Vec<Option<f64>>)> = Vec::new();
    for row in rows {
        let Some(value) = row.coordinates.get(key).and_then(Value::as_str) else { continue };
        let column = values.iter().position(|known| *known == value).unwrap_or_else(|| {
            values.push(value);
            values.len() - 1
        });
        let name = row.name_without(key);
        let line = lines.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
            lines.push((name, Vec::new()));
            lines.len() - 1
        });
        let seconds = &mut lines[line].1;
        seconds.resize(seconds.len().max(column + 1), None);
        seconds[column] = Some(row.record.seconds.total);
    }
    if values.is_empty() {
        let mut keys: Vec<&String> = rows.iter().flat_map(|row| row.coordinates.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        bail!("no stage has a coordinate `{key}`\n  help: coordinates come from `matrix:`; those of this pipeline: {keys:?}");
    }
    let heading = std::iter::once("stage".to_owned()).chain(values.iter().map(|value| format!("{key}={value}"))).collect();
    let cell = |seconds: Option<&Option<f64>>| seconds.copied().flatten().map_or(String::new(), |seconds| format!("{seconds:.2}"));
    let lines = lines.iter().map(|(name, seconds)| {
        std::iter::once(name.clone()).chain((0..values.len()).map(|column| cell(seconds.get(column)))).collect::<Vec<String>>()
    });
    Ok(std::iter::once(heading).chain(lines).collect())
}

impl Row<'_> {
    /// Stage, other coordinates and seed.
    fn name_without(&self, key: &str) -> String {
        let others = self.coordinates.iter().filter(|(name, _)| *name != key).filter_map(|(_, value)| value.as_str());
        let seed = self.seed.map_or(String::new(), |seed| format!("#{seed}"));
        std::iter::once(self.stage).chain(others).collect::<Vec<_>>().join("@") + &seed
    }

    fn to_json(&self) -> Value {
        let phases: Map<String, Value> = self.record.profile.phases.iter().map(|(name, seconds)| (name.clone(), json!(seconds))).collect();
        json!({
            "stage": self.stage, "instance": self.instance, "seed": self.seed, "coordinates": self.coordinates,
            "seconds": self.record.seconds, "cost": self.record.cost, "phases": phases, "peak_memory": self.record.profile.peak_memory,
            "threads": self.record.threads,
        })
    }
}
