//! `cargo xtask bench`: times the work of the stages, beside what the machine can do at best and the same work in Python.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::session::workspace;
use crate::table;

const FLOOR_OF_OPERATIONS: &str = "floor/product";
const FLOOR_OF_BYTES: &str = "floor/copy";

/// What was measured of one piece of work. `null` where there is nothing to compare with.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// Median.
    seconds: f64,
    /// Needed operations (or bytes) in a second, as a share of those of a large matrix product (or copy) in the same process.
    floor_share: Option<f64>,
    /// Needed operations in a second, in 1e9.
    gflops: Option<f64>,
    /// Bytes read and written in a second, in 1e9.
    gigabytes_per_second: Option<f64>,
    /// Median of the same work in Python, taken right after.
    peer_seconds: Option<f64>,
    /// `seconds / peer_seconds`: below 1 is faster than Python.
    ratio: Option<f64>,
}

/// Times every piece of work whose name contains `filter`, and prints a table or JSON.
pub(crate) fn bench(filter: &str, python: &str, json: bool) -> anyhow::Result<()> {
    let scratch = std::env::temp_dir().join(format!("dcu-bench-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).with_context(|| format!("cannot make `{}`", scratch.display()))?;
    let rows = Bench { program: build()?, scratch: scratch.clone(), python: python.to_owned() }.run(filter);
    std::fs::remove_dir_all(&scratch).ok();
    let rows = rows?;
    if json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        table::markdown(&cells(&rows)).iter().for_each(|line| println!("{line}"));
    }
    Ok(())
}

/// Builds the benchmarks with the profile of the stages, whose dependencies are compiled already.
fn build() -> anyhow::Result<PathBuf> {
    eprintln!("building the benchmarks");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["bench", "--workspace", "--bench", "work", "--profile", "dev", "--no-run", "--message-format=json"];
    let output = Command::new(cargo)
        .args(arguments)
        .current_dir(workspace())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo to build the benchmarks")?;
    ensure!(output.status.success(), "the benchmarks do not build; see the messages above");
    let messages = output.stdout.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let program =
        messages.filter(|message| message["target"]["name"] == "work").find_map(|message| Some(message["executable"].as_str()?.into()));
    program.context("cargo built no benchmarks")
}

struct Bench {
    program: PathBuf,
    scratch: PathBuf,
    python: String,
}

/// A time, and what the work needs at least.
struct Measured {
    seconds: f64,
    needed: Option<Throughput>,
}

#[derive(Clone, Copy, Deserialize)]
enum Throughput {
    Elements(u64),
    Bytes(u64),
}

impl Throughput {
    fn of(self, seconds: f64) -> f64 {
        let (Self::Elements(count) | Self::Bytes(count)) = self;
        count as f64 / seconds
    }
}

impl Bench {
    fn run(&self, filter: &str) -> anyhow::Result<Vec<Row>> {
        let output = self.command().arg("--list").output().context("cannot start the benchmarks")?;
        let list = String::from_utf8_lossy(&output.stdout).into_owned();
        let names: Vec<&str> = list.lines().filter_map(|line| line.strip_suffix(": benchmark")).collect();
        let chosen: Vec<&str> = names.iter().copied().filter(|name| name.contains(filter)).collect();
        if chosen.is_empty() {
            bail!("no benchmark has `{filter}` in its name\n  help: there are {}", names.join(", "));
        }
        let rows = chosen.iter().enumerate().map(|(position, name)| {
            eprintln!("{}/{} {name}", position + 1, chosen.len());
            self.row(name)
        });
        rows.collect()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--bench").env("CRITERION_HOME", &self.scratch).envs(self.files());
        command
    }

    /// Where the benchmarks leave data for the same work in Python.
    fn files(&self) -> [(&'static str, PathBuf); 2] {
        [("DCU_BENCH_POINTS", self.scratch.join("points.f32")), ("DCU_BENCH_IMAGES", self.scratch.join("images"))]
    }

    fn row(&self, name: &str) -> anyhow::Result<Row> {
        let pattern = format!("^({FLOOR_OF_OPERATIONS}|{FLOOR_OF_BYTES}|{name})$");
        let output = self.command().arg(pattern).output().context("cannot start the benchmarks")?;
        ensure!(output.status.success(), "`{name}` failed: {}", String::from_utf8_lossy(&output.stderr));
        let Measured { seconds, needed } = self.measured(name)?;
        let rate = needed.map(|needed| needed.of(seconds));
        let floor = needed.map(|needed| match needed {
            Throughput::Elements(_) => self.measured(FLOOR_OF_OPERATIONS),
            Throughput::Bytes(_) => self.measured(FLOOR_OF_BYTES),
        });
        let floor = floor.transpose()?.and_then(|floor| Some(floor.needed?.of(floor.seconds)));
        let peer_seconds = if name.starts_with("floor/") { None } else { self.peer(name) };
        Ok(Row {
            name: name.to_owned(),
            seconds,
            floor_share: rate.zip(floor).map(|(rate, floor)| rate / floor),
            gflops: rate.filter(|_| matches!(needed, Some(Throughput::Elements(_)))).map(|rate| rate / 1e9),
            gigabytes_per_second: rate.filter(|_| matches!(needed, Some(Throughput::Bytes(_)))).map(|rate| rate / 1e9),
            peer_seconds,
            ratio: peer_seconds.map(|peer| seconds / peer),
        })
    }

    /// What criterion wrote down.
    fn measured(&self, name: &str) -> anyhow::Result<Measured> {
        let read = |file: &str| -> anyhow::Result<Value> {
            let path = self.scratch.join(name).join("new").join(file);
            let bytes = std::fs::read(&path).with_context(|| format!("criterion left no `{}`", path.display()))?;
            Ok(serde_json::from_slice(&bytes)?)
        };
        let nanoseconds = read("estimates.json")?["median"]["point_estimate"].as_f64();
        Ok(Measured {
            seconds: nanoseconds.context("criterion left no median")? / 1e9,
            needed: serde_json::from_value(read("benchmark.json")?["throughput"].clone())?,
        })
    }

    /// Seconds of the same work in Python; nothing where Python or a package is missing, or the work has no counterpart.
    fn peer(&self, name: &str) -> Option<f64> {
        let script: &Path = &workspace().join("crates/bench/peer.py");
        let output = Command::new(&self.python).arg(script).arg(name).envs(self.files()).stderr(Stdio::inherit()).output();
        let answer: Value = serde_json::from_slice(&output.ok()?.stdout).ok()?;
        answer["seconds"].as_f64()
    }
}

fn cells(rows: &[Row]) -> Vec<Vec<String>> {
    let number = |value: Option<f64>, digits: usize| value.map_or(String::new(), |value| format!("{value:.digits$}"));
    let heading = ["work", "ms", "GFLOP/s", "GB/s", "share of floor", "Python ms", "ratio"].map(str::to_owned).to_vec();
    let lines = rows.iter().map(|row| {
        vec![
            row.name.clone(),
            number(Some(row.seconds * 1e3), 1),
            number(row.gflops, 1),
            number(row.gigabytes_per_second, 1),
            number(row.floor_share, 2),
            number(row.peer_seconds.map(|seconds| seconds * 1e3), 1),
            number(row.ratio, 2),
        ]
    });
    std::iter::once(heading).chain(lines).collect()
}
