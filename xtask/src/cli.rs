//! The command line.

use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::device::Device;
use crate::diagnostic::near;
use crate::metrics;
use crate::programs::Mode;
use crate::session::Session;
use crate::show::{self, GraphFormat};
use crate::store::Care;
use crate::table::Format;
use crate::{bench, export, regress, results, run, times, verify};

/// Runs pipelines of dataset-condensation-driven unlearning, keeps their results, and tells what has changed.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, arg_required_else_help = true)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

/// A pipeline and the store of its results.
#[derive(Debug, Args)]
struct Target {
    /// The pipeline file, such as `pipelines/quickstart.yaml`.
    pipeline: PathBuf,
    /// Overrides a parameter, as `STAGE.PARAMETER=VALUE`; also `seeds=[1, 2]`, `STAGE.uses=METHOD`, `STAGE.in.NAME=STAGE`,
    /// `STAGE.matrix.KEY=[1, 2]`, `STAGE.label=`, `STAGE.seed=`, `STAGE.gather=`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// The store of results; by default `artifacts/` of the workspace.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Where networks compute: `cpu`, `cpu-composed` (candle's own operations) or `cuda:N`. Results of one device are none of another.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: Device,
}

impl Target {
    fn open(&self, mode: Mode) -> anyhow::Result<Session> {
        let store = self.store.as_deref().map(std::path::absolute).transpose()?;
        Session::open(&self.pipeline, &self.settings, store.as_deref(), mode, &self.device)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring the results of a pipeline up to date: run what is stale, take the rest from the store.
    Run {
        #[command(flatten)]
        target: Target,
        /// Only this stage, whose inputs must be up to date. May be repeated.
        #[arg(long, value_name = "STAGE", conflicts_with = "from")]
        only: Vec<String>,
        /// This stage and all that depends on it. May be repeated.
        #[arg(long, value_name = "STAGE")]
        from: Vec<String>,
        /// Run even what is cached.
        #[arg(long)]
        force: bool,
        /// Read every result whole before it is used, so that damage which left size and time of a file alone is found, and mended.
        #[arg(long)]
        verify: bool,
        /// Say what would run, and run nothing.
        #[arg(long)]
        dry_run: bool,
        /// Threads of a stage; results do not depend on it.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        threads: Option<u16>,
        /// Show where the time of each stage went, and the most memory it held; for what is cached, of the run that made it.
        #[arg(long)]
        profile: bool,
    },
    /// Say of each stage whether it is cached, stale and why, or waits for another.
    Status {
        #[command(flatten)]
        target: Target,
    },
    /// List the methods that a stage can use, or show the parameters of one.
    List {
        /// The method, such as `train/fit`.
        method: Option<String>,
        /// As JSON, with the JSON schema of the parameters.
        #[arg(long)]
        json: bool,
    },
    /// Show which stage needs which.
    Graph {
        #[command(flatten)]
        target: Target,
        #[arg(long, default_value = "text")]
        format: GraphFormat,
    },
    /// Print the numbers of a pipeline, one row a method and seed.
    Metrics {
        #[command(flatten)]
        target: Target,
        #[arg(long, default_value = "table")]
        format: Format,
    },
    /// Print what the results of a pipeline cost to make, one row a stage.
    Times {
        #[command(flatten)]
        target: Target,
        /// Seconds alone, with a column for each value of this key of a `matrix:`.
        #[arg(long, value_name = "KEY")]
        across: Option<String>,
        #[arg(long, default_value = "table")]
        format: Format,
    },
    /// Compare the numbers of a pipeline with the accepted ones in `baselines/`.
    Regress {
        #[command(flatten)]
        target: Target,
        /// Accept the present numbers.
        #[arg(long, conflicts_with = "update_tolerances")]
        update: bool,
        /// Take the tolerances for other CPUs from the present numbers, which need five seeds.
        #[arg(long)]
        update_tolerances: bool,
    },
    /// Compute once more from the artifacts what needs no training, from data and requests to scores and reports, and fail where anything comes out otherwise.
    Verify {
        #[command(flatten)]
        target: Target,
        /// A report that was handed on, which must be one of the pipeline's to the byte.
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
        /// Sign the files of the reports: with a private key for ed25519, in PEM as openssl writes it. Each signature lies beside its file as `.sig`.
        #[arg(long, value_name = "KEY", conflicts_with = "public")]
        sign: Option<PathBuf>,
        /// Check these signatures, or with `--report` that beside this file, with a public key in PEM.
        #[arg(long, value_name = "KEY")]
        public: Option<PathBuf>,
    },
    /// Write the tables of a pipeline into a Markdown file, in a section of its own that the next time replaces.
    Results {
        #[command(flatten)]
        target: Target,
        /// The file to write to; what else is in it stays.
        #[arg(short, long, value_name = "FILE", default_value = "RESULTS.md")]
        output: PathBuf,
        /// The heading of the section; by default the pipeline's name.
        #[arg(long, value_name = "NAME")]
        section: Option<String>,
    },
    /// Time the work of the stages, beside the machine's floor and the same work in Python.
    Bench {
        /// Only what has this in its name, such as `train-step`.
        #[arg(default_value = "")]
        filter: String,
        /// The Python with torch and scikit-learn; without them there is nothing to compare with.
        #[arg(long, default_value = "python3")]
        python: String,
        /// As JSON: `name`, `seconds` (median), `floor_share`, `peer_seconds`, `ratio` and more.
        #[arg(long)]
        json: bool,
    },
    /// Write a model as a plain state dict in safetensors, for PyTorch.
    Export {
        /// A model's artifact (`.safetensors`), or a pipeline file.
        path: PathBuf,
        /// With a pipeline file: the stage or instance that made the model, such as `base` or `base#42`.
        stage: Option<String>,
        /// The file to write.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Replace the file if it exists.
        #[arg(long)]
        force: bool,
        #[arg(long = "set", value_name = "KEY=VALUE")]
        settings: Vec<String>,
        #[arg(long, value_name = "DIR")]
        store: Option<PathBuf>,
        /// Where networks compute: `cpu`, `cpu-composed` (candle's own operations) or `cuda:N`. Results of one device are none of another.
        #[arg(long, value_name = "DEVICE", default_value_t)]
        device: Device,
    },
    /// Show what is in an artifact, or where the results of a pipeline lie.
    Inspect {
        /// An artifact (`.safetensors`), or a pipeline file.
        path: PathBuf,
        /// With a pipeline file: only this stage, instance or output, such as `base`, `base#42` or `data.train`.
        stage: Option<String>,
        #[arg(long = "set", value_name = "KEY=VALUE")]
        settings: Vec<String>,
        #[arg(long, value_name = "DIR")]
        store: Option<PathBuf>,
        /// Where networks compute: `cpu`, `cpu-composed` (candle's own operations) or `cuda:N`. Results of one device are none of another.
        #[arg(long, value_name = "DEVICE", default_value_t)]
        device: Device,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

impl CommandLine {
    /// Reads the command line of this process; what it cannot read ends it.
    pub(crate) fn read() -> Self {
        Self::try_parse().unwrap_or_else(|error| with_suggestion(error).exit())
    }

    pub(crate) fn execute(self) -> anyhow::Result<()> {
        match self.command {
            Command::Run { target, only, from, force, verify, dry_run, threads, profile } => {
                let request = run::Request { only, from, force, dry: dry_run, threads: threads.map(usize::from), profile };
                let mut session = target.open(if dry_run { Mode::Look } else { Mode::Build })?;
                if verify {
                    session.care = Care::Bytes;
                }
                run::run(&session, &request)
            }
            Command::Status { target } => {
                run::status(&target.open(Mode::Look)?);
                Ok(())
            }
            Command::List { method, json } => show::list(method.as_deref(), json),
            Command::Graph { target, format } => {
                show::graph(&target.open(Mode::Look)?, format);
                Ok(())
            }
            Command::Metrics { target, format } => metrics::print(&target.open(Mode::Look)?, format),
            Command::Times { target, across, format } => times::print(&target.open(Mode::Look)?, across.as_deref(), format),
            Command::Regress { target, update: true, .. } => regress::update(&target.open(Mode::Build)?),
            Command::Regress { target, update_tolerances: true, .. } => regress::update_tolerances(&target.open(Mode::Build)?),
            Command::Regress { target, .. } => regress::compare(&target.open(Mode::Look)?),
            Command::Verify { target, report, sign, public } => {
                let key = match (sign, public) {
                    (Some(key), _) => verify::Key::Sign(key),
                    (None, Some(key)) => verify::Key::Check(key),
                    (None, None) => verify::Key::None,
                };
                verify::verify(target.open(Mode::Build)?, report.as_deref(), &key)
            }
            Command::Results { target, output, section } => {
                results::write(&target.open(Mode::Look)?, &target.settings, &output, section.as_deref())
            }
            Command::Bench { filter, python, json } => bench::bench(&filter, &python, json),
            Command::Export { path, stage, output, force, settings, store, device } => {
                let artifact = match stage {
                    None if !show::is_pipeline(&path)? => path,
                    Some(stage) => export::of_pipeline(&Target { pipeline: path, settings, store, device }.open(Mode::Look)?, &stage)?,
                    None => anyhow::bail!(
                        "a pipeline has many results\n  help: say which stage made the model: `cargo xtask export {} STAGE -o FILE`",
                        path.display()
                    ),
                };
                export::write(&artifact, &output, force)
            }
            Command::Inspect { path, stage, settings, store, device, json } => {
                if stage.is_none() && !show::is_pipeline(&path)? {
                    return show::artifact(&path, json);
                }
                show::results(&Target { pipeline: path, settings, store, device }.open(Mode::Look)?, stage.as_deref(), json)
            }
        }
    }
}

/// Proposes the nearest command where clap finds none near enough: it counts swapped letters as two mistakes.
fn with_suggestion(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(wrong)) = error.get(ContextKind::InvalidSubcommand) else { return error };
    let command = CommandLine::command();
    let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
    if error.get(ContextKind::SuggestedSubcommand).is_none()
        && let Some(best) = near(wrong, &names)
    {
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(vec![best.to_owned()]));
    }
    error
}
