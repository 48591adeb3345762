//! `data/request`: what is to be forgotten. Nothing that is paid once depends on it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use dcu_artifact::{Dataset, Ensemble, Holdout, Part, Request, RequestFacts, SampleId, digest_file};
use dcu_nn::rng::Streams;
use dcu_stage::{Context, External, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::readers::{List, Readers};
use crate::sources::Share;

/// The method, with the readers that its program has.
#[derive(Debug)]
pub struct MakeRequest<R>(PhantomData<R>);

/// How the forget set is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    /// A random share of all samples.
    Random,
    /// All samples of some classes.
    Class,
    /// A random share of the samples of some classes.
    Partial,
    /// The samples that a file names.
    Ids,
    /// The samples whose labels were swapped.
    Poisoned,
    /// The share that models have learned by heart the most, as the input `ensemble` shows.
    Exposed,
}

/// The parameters.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Parameters {
    /// How the forget set is chosen. Parameters of other scenarios are ignored.
    scenario: Scenario,
    /// The share to forget, for `random`, `partial` and `exposed`, rounded down.
    ratio: f64,
    /// The classes, for `class` and `partial`.
    classes: Vec<u32>,
    /// A CSV or parquet file with a column `id` (`train:17`, or the number in the artifacts) or `path` (as in the source), for `ids`.
    #[schemars(extend("x-location" = true))]
    file: Option<PathBuf>,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { scenario: Scenario::Random, ratio: 0.1, classes: Vec::new(), file: None }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Choice {
    Random { ratio: f64 },
    Class { classes: Vec<u32> },
    Partial { ratio: f64, classes: Vec<u32> },
    Ids(#[serde(skip)] PathBuf),
    Poisoned,
    Exposed { ratio: f64 },
}

/// The parameters after the check.
#[derive(Debug, Serialize)]
pub struct Checked {
    scenario: Choice,
}

impl<R: Readers> Method for MakeRequest<R> {
    const NAME: &'static str = "request";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Draws up a deletion request; with `previous`, on top of an earlier one";
    const USES_SEED: bool = true;
    const INPUTS: &'static [Input] = &[
        Input::one::<Dataset>("dataset"),
        Input::optional::<Holdout>("holdout"),
        Input::optional::<Request>("previous"),
        // For `exposed` alone.
        Input::optional::<Ensemble>("ensemble"),
    ];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Request>("request")];

    type Parameters = Parameters;
    type Checked = Checked;

    fn check(parameters: Parameters) -> Result<Checked, Rejected> {
        let Parameters { scenario, ratio, classes, file } = parameters;
        let uses_ratio = matches!(scenario, Scenario::Random | Scenario::Partial | Scenario::Exposed);
        Rejected::unless(
            !uses_ratio || ratio > 0.0,
            "ratio",
            format!("with `ratio: {ratio}` the forget set is empty; it must be above 0"),
        )?;
        Rejected::unless(
            !uses_ratio || ratio < 1.0,
            "ratio",
            format!("with `ratio: {ratio}` the forget set is everything; it must be below 1"),
        )?;
        let uses_classes = matches!(scenario, Scenario::Class | Scenario::Partial);
        Rejected::unless(!uses_classes || !classes.is_empty(), "classes", "without `classes` the forget set is empty; name one at least")?;
        let scenario = match scenario {
            Scenario::Random => Choice::Random { ratio },
            Scenario::Class => Choice::Class { classes },
            Scenario::Partial => Choice::Partial { ratio, classes },
            Scenario::Ids => Choice::Ids(file.ok_or_else(|| Rejected::parameter("file", "`file` must name a CSV or parquet file of ids"))?),
            Scenario::Poisoned => Choice::Poisoned,
            Scenario::Exposed => Choice::Exposed { ratio },
        };
        Ok(Checked { scenario })
    }

    fn elsewhere(parameters: &Checked) -> Option<&'static str> {
        R::ELSEWHERE.filter(|_| matches!(&parameters.scenario, Choice::Ids(file) if is_parquet(file)))
    }

    /// The list is read here already, so that one that is wrong is refused before anything has run.
    fn externals(parameters: &Checked) -> anyhow::Result<Vec<External>> {
        let Choice::Ids(file) = &parameters.scenario else { return Ok(Vec::new()) };
        let digest = digest_file(file).map_err(anyhow::Error::from).and_then(|digest| named::<R>(file).map(|_| digest));
        Ok(vec![External { name: "ids".into(), digest: Some(digest.map_err(|error| Rejected::because("file", &error))?) }])
    }

    fn run(parameters: &Checked, context: &mut Context) -> anyhow::Result<()> {
        let dataset: Dataset = context.read("dataset")?;
        let holdout: Option<Holdout> = context.read_optional("holdout")?;
        let previous: Option<Request> = context.read_optional("previous")?;
        let ensemble: Option<Ensemble> = context.read_optional("ensemble")?;
        let streams = Streams::new(context.seed(), "data/request");
        let known = Known { dataset: &dataset, holdout: holdout.as_ref(), ensemble: ensemble.as_ref() };
        let request = draw_up::<R>(&parameters.scenario, known, previous.as_ref(), &streams)?;
        let kind = match request.facts.cumulative {
            true => format!("on top of {} forgotten earlier", request.earlier.len()),
            false => "an independent what-if".into(),
        };
        context.progress().note(&format!("{} samples to forget, {} to retain; {kind}", request.forget.len(), request.retain.len()));
        context.write("request", &request)
    }
}

/// What a choice may look at.
#[derive(Clone, Copy)]
struct Known<'a> {
    dataset: &'a Dataset,
    holdout: Option<&'a Holdout>,
    ensemble: Option<&'a Ensemble>,
}

fn draw_up<R: Readers>(choice: &Choice, known: Known<'_>, previous: Option<&Request>, streams: &Streams) -> anyhow::Result<Request> {
    let dataset = known.dataset;
    let earlier: HashSet<u64> = previous.into_iter().flat_map(|request| request.forget.iter().chain(&request.earlier)).copied().collect();
    let left: Vec<usize> = (0..dataset.len()).filter(|&row| !earlier.contains(&dataset.ids[row])).collect();
    let forget = chosen::<R>(choice, known, &left, &earlier, streams)?;
    let remedy = "choose another scenario, ratio, class or file";
    if forget.is_empty() {
        return Err(Failure::new(format!("the forget set is empty: {}", choice.describe()), remedy).into());
    }
    if forget.len() == left.len() {
        return Err(Failure::new(format!("the forget set is everything: {} leaves nothing to retain", choice.describe()), remedy).into());
    }
    let ids = |rows: &mut dyn Iterator<Item = &usize>| rows.map(|&row| dataset.ids[row]).collect::<Vec<u64>>();
    let facts = RequestFacts {
        scenario: choice.name().into(),
        classes: if let Choice::Class { classes } = choice { classes.clone() } else { Vec::new() },
        cumulative: previous.is_some(),
    };
    Ok(Request {
        forget: ids(&mut forget.iter()),
        retain: ids(&mut left.iter().filter(|row| !forget.contains(row))),
        earlier: dataset.ids.iter().copied().filter(|id| earlier.contains(id)).collect(),
        facts,
    })
}

impl Choice {
    fn name(&self) -> &'static str {
        match self {
            Self::Random { .. } => "random",
            Self::Class { .. } => "class",
            Self::Partial { .. } => "partial",
            Self::Ids(_) => "ids",
            Self::Poisoned => "poisoned",
            Self::Exposed { .. } => "exposed",
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Random { ratio } => format!("a random share of {ratio}"),
            Self::Class { classes } => format!("classes {classes:?}"),
            Self::Partial { ratio, classes } => format!("a share of {ratio} of classes {classes:?}"),
            Self::Ids(file) => format!("the ids in `{}`", file.display()),
            Self::Poisoned => "the samples whose labels were swapped".into(),
            Self::Exposed { ratio } => format!("the share of {ratio} that is learned by heart the most"),
        }
    }
}

/// The rows to forget, among those that are left.
fn chosen<R: Readers>(
    choice: &Choice,
    known: Known<'_>,
    left: &[usize],
    earlier: &HashSet<u64>,
    streams: &Streams,
) -> anyhow::Result<BTreeSet<usize>> {
    let Known { dataset, holdout, ensemble } = known;
    let share = |mut rows: Vec<usize>, ratio: f64, purpose: u64| {
        let count = (rows.len() as f64 * ratio) as usize;
        streams.indexed("share", purpose).shuffle(&mut rows);
        rows.truncate(count);
        rows
    };
    let of_class = |class: u32| left.iter().copied().filter(|&row| dataset.labels[row] == class).collect::<Vec<usize>>();
    if let Choice::Class { classes } | Choice::Partial { classes, .. } = choice
        && let Some(class) = classes.iter().find(|&&class| class as usize >= dataset.classes())
    {
        let message = format!("class {class} is out of range: there are {} classes, counted from 0", dataset.classes());
        return Err(Failure::new(message, "name classes that exist").into());
    }
    Ok(match choice {
        Choice::Random { ratio } => share(left.to_vec(), *ratio, 0).into_iter().collect(),
        Choice::Class { classes } => classes.iter().flat_map(|&class| of_class(class)).collect(),
        Choice::Partial { ratio, classes } => {
            classes.iter().flat_map(|&class| share(of_class(class), *ratio, 1 + u64::from(class))).collect()
        }
        Choice::Poisoned => {
            let Some(original) = &dataset.original_labels else {
                let remedy = "put `data/poison` before the request, or choose another scenario";
                return Err(Failure::new("no label was swapped in this dataset", remedy).into());
            };
            left.iter().copied().filter(|&row| dataset.labels[row] != original[row]).collect()
        }
        Choice::Ids(file) => from_file::<R>(file, dataset, holdout, earlier)?,
        Choice::Exposed { ratio } => {
            let mut by_heart =
                left.iter().map(|&row| Ok((row, memorisation(dataset, ensemble, row)?))).collect::<anyhow::Result<Vec<_>>>()?;
            by_heart.sort_by(|(row, one), (other_row, other)| other.total_cmp(one).then(row.cmp(other_row)));
            by_heart.truncate((left.len() as f64 * ratio) as usize);
            by_heart.into_iter().map(|(row, _)| row).collect()
        }
    })
}

/// How far models have learned a sample by heart (after Feldman, arXiv 1906.05271): the mean probability of its label by the models of the ensemble that were trained on it, less that by those that
/// were not.
fn memorisation(dataset: &Dataset, ensemble: Option<&Ensemble>, row: usize) -> anyhow::Result<f64> {
    let Some(ensemble) = ensemble else {
        let remedy = "connect a `train/ensemble` with `scheme: halves` or `folds`";
        return Err(Failure::new("`scenario: exposed` needs the input `ensemble`", remedy).into());
    };
    if ensemble.ids != dataset.ids || ensemble.classes() != dataset.classes() {
        return Err(Failure::new("the ensemble is of another dataset", "make ensemble and request from the same dataset").into());
    }
    let probability = |model: usize| {
        let logits = ensemble.of(model, row);
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exponential = |logit: f32| f64::from(logit - largest).exp();
        exponential(logits[dataset.labels[row] as usize]) / logits.iter().map(|&logit| exponential(logit)).sum::<f64>()
    };
    let strangers: BTreeSet<usize> = ensemble.strangers_to(row).collect();
    let mean = |is_stranger: bool| {
        let values: Vec<f64> = (0..ensemble.models()).filter(|model| strangers.contains(model) == is_stranger).map(probability).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    mean(false).zip(mean(true)).map(|(with, without)| with - without).ok_or_else(|| {
        let message = format!("no two models of the ensemble differ in whether they were trained on sample {}", SampleId(dataset.ids[row]));
        Failure::new(message, "use an ensemble of `halves` or `folds`").into()
    })
}

/// What a file names: ids that are well-formed, or paths; nothing twice.
enum Named {
    Ids(Vec<u64>),
    Paths(Vec<String>),
}

fn is_parquet(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "parquet")
}

/// Reads and checks a file, as far as this can be done without the dataset.
fn named<R: Readers>(file: &Path) -> anyhow::Result<Named> {
    let list = if is_parquet(file) { R::read_list(file)? } else { read_csv(file)? };
    let (List::Ids(texts) | List::Paths(texts)) = &list;
    if texts.is_empty() {
        return Err(Failure::new(format!("`{}` names no sample", file.display()), "write one a line below the heading").into());
    }
    let twice = |text: &str| Failure::new(format!("`{}` names `{text}` twice", file.display()), "name each sample once");
    match list {
        List::Paths(paths) => {
            let mut seen = HashSet::new();
            if let Some(path) = paths.iter().find(|path| !seen.insert(tidy(path))) {
                return Err(twice(path).into());
            }
            Ok(Named::Paths(paths))
        }
        List::Ids(texts) => {
            let mut seen = HashSet::new();
            let mut ids = Vec::with_capacity(texts.len());
            for text in &texts {
                let id = text.parse::<SampleId>().map_err(|reason| {
                    Failure::new(format!("`{}`: {reason}", file.display()), "write one id a line under the heading `id`")
                })?;
                if !seen.insert(id.0) {
                    return Err(twice(text).into());
                }
                ids.push(id.0);
            }
            Ok(Named::Ids(ids))
        }
    }
}

fn from_file<R: Readers>(
    file: &Path,
    dataset: &Dataset,
    holdout: Option<&Holdout>,
    earlier: &HashSet<u64>,
) -> anyhow::Result<BTreeSet<usize>> {
    let ids: Vec<u64> = match named::<R>(file)? {
        Named::Ids(ids) => ids,
        Named::Paths(paths) => by_path(file, &paths, dataset)?,
    };
    let held: HashSet<u64> = holdout
        .into_iter()
        .flat_map(|holdout| holdout.remembrance.iter().chain(&holdout.validation).chain(&holdout.test))
        .copied()
        .collect();
    let is_held = |id: &u64| held.contains(id) || SampleId(*id).part() == Some(Part::Test) && !dataset.ids.contains(id);
    if let Some(id) = ids.iter().find(|id| is_held(id)) {
        let message = format!("sample {} is held out for remembrance or testing; no model was trained on it", SampleId(*id));
        return Err(Failure::new(message, "leave it out of the request").into());
    }
    if let Some(id) = ids.iter().find(|id| earlier.contains(id)) {
        return Err(
            Failure::new(format!("sample {} was forgotten by an earlier request", SampleId(*id)), "leave it out of the request").into()
        );
    }
    let rows: HashMap<u64, usize> = dataset.ids.iter().enumerate().map(|(row, id)| (*id, row)).collect();
    let unknown: Vec<String> = ids.iter().filter(|id| !rows.contains_key(id)).map(|id| format!("`{}`", SampleId(*id))).collect();
    refuse_unknown(file, &unknown, "id")?;
    Ok(ids.iter().map(|id| rows[id]).collect())
}

fn by_path(file: &Path, paths: &[String], dataset: &Dataset) -> anyhow::Result<Vec<u64>> {
    let Some(names) = &dataset.facts.names else {
        let remedy = "name the samples by `id` instead";
        return Err(Failure::new(format!("`{}` names paths, but the samples of this source have none", file.display()), remedy).into());
    };
    let exact: HashMap<String, u64> = names.iter().map(|name| tidy(name)).zip(dataset.ids.iter().copied()).collect();
    // The same path may be told from the folder of the source, or from its folder of training images.
    let mut loose: HashMap<&str, Vec<u64>> = HashMap::new();
    exact.iter().for_each(|(name, id)| loose.entry(below_train(name)).or_default().push(*id));
    let (mut ids, mut unknown) = (Vec::with_capacity(paths.len()), Vec::new());
    for path in paths {
        let tidied = tidy(path);
        let found = exact.get(&tidied).map(std::slice::from_ref).or_else(|| loose.get(below_train(&tidied)).map(Vec::as_slice));
        match found {
            Some([id]) => ids.push(*id),
            Some(several) => {
                let message = format!("`{}` names `{path}`, which fits {} samples", file.display(), several.len());
                return Err(Failure::new(message, "write the path as the source has it, from its folder on").into());
            }
            None => unknown.push(format!("`{path}`")),
        }
    }
    refuse_unknown(file, &unknown, "path")?;
    let mut seen = HashSet::new();
    if let Some(index) = ids.iter().position(|id| !seen.insert(*id)) {
        let message = format!("`{}` names the sample of `{}` twice", file.display(), paths[index]);
        return Err(Failure::new(message, "name each sample once").into());
    }
    Ok(ids)
}

/// A relative path without what says nothing.
fn tidy(path: &str) -> String {
    path.replace('\\', "/").split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/")
}

/// A path from the folder of training images on.
fn below_train(path: &str) -> &str {
    let is_train = |folder: &str| Share::of_name(folder) == Some(Share::Train) && folder.chars().all(char::is_alphabetic);
    path.split_once('/').filter(|(folder, _)| is_train(folder)).map_or(path, |(_, rest)| rest)
}

fn refuse_unknown(file: &Path, unknown: &[String], what: &str) -> anyhow::Result<()> {
    if unknown.is_empty() {
        return Ok(());
    }
    let first = unknown.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    let counted = if unknown.len() == 1 { format!("an unknown {what}") } else { format!("{} unknown {what}s", unknown.len()) };
    let message = format!("`{}` names {counted}: {first}{}", file.display(), if unknown.len() > 3 { ", ..." } else { "" });
    Err(Failure::new(message, "name samples of the training set; with `per_class` only those that were drawn are in it").into())
}

fn read_csv(file: &Path) -> anyhow::Result<List> {
    let mut reader =
        csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    let headings = reader.headers().with_context(|| format!("`{}` is no CSV file", file.display()))?.clone();
    let find = |name: &str| headings.iter().position(|heading| heading == name);
    let (column, is_id) =
        find("id").map(|column| (column, true)).or_else(|| find("path").map(|column| (column, false))).ok_or_else(|| {
            let message = format!("`{}` has neither a column `id` nor a column `path`", file.display());
            Failure::new(message, "give it a heading: `id` or `path`")
        })?;
    let texts = reader
        .records()
        .map(|record| Ok(record?.get(column).unwrap_or_default().to_owned()))
        .collect::<Result<Vec<String>, csv::Error>>()
        .with_context(|| format!("`{}` is no CSV file", file.display()))?;
    Ok(if is_id { List::Ids(texts) } else { List::Paths(texts) })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use dcu_artifact::{Array, EnsembleFacts};
    use serde_json::json;

    use super::*;
    use crate::methods::fixtures::dataset;
    use crate::readers::Without;

    fn streams() -> Streams {
        Streams::new(1, "test")
    }

    fn request(choice: &Choice, previous: Option<&Request>) -> anyhow::Result<Request> {
        draw_up::<Without>(choice, only(&dataset(&[0, 0, 0, 0, 1, 1, 1, 1, 2, 2])), previous, &streams())
    }

    fn only(dataset: &Dataset) -> Known<'_> {
        Known { dataset, holdout: None, ensemble: None }
    }

    fn ids_file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn every_scenario_divides_the_whole_training_set() {
        for (choice, count) in [
            (Choice::Random { ratio: 0.3 }, 3),
            (Choice::Class { classes: vec![2] }, 2),
            (Choice::Partial { ratio: 0.5, classes: vec![0, 1] }, 4),
        ] {
            let request = request(&choice, None).unwrap();
            assert_eq!((request.forget.len(), request.retain.len(), request.earlier.len()), (count, 10 - count, 0), "{choice:?}");
        }
    }

    #[test]
    fn the_most_exposed_are_those_that_only_models_know_which_saw_them() {
        let set = dataset(&[0, 1, 0, 1]);
        // Two models, each trained on half: sample 2 is known to the model that saw it alone, 0 and 1 to both, 3 to none.
        let (sure, lost) = ([4.0, 0.0], [0.0, 4.0]);
        let logits = [[sure, lost, sure, sure], [sure, lost, lost, sure]].concat().concat();
        let ensemble = |membership: Vec<u8>| Ensemble {
            ids: set.ids.clone(),
            membership: Array::new(vec![2, 4], membership),
            logits: Array::new(vec![2, 4, 2], logits.clone()),
            facts: EnsembleFacts { scheme: "halves".into(), seed: 1, architecture: json!({}), recipe: json!({}) },
        };
        let asked = |ensemble: Option<&Ensemble>, ratio: f64, previous: Option<&Request>| {
            draw_up::<Without>(&Choice::Exposed { ratio }, Known { ensemble, ..only(&set) }, previous, &streams())
        };
        let halves = ensemble(vec![1, 0, 1, 0, 0, 1, 0, 1]);
        let first = asked(Some(&halves), 0.25, None).unwrap();
        assert_eq!((first.forget.as_slice(), first.facts.scenario.as_str()), ([set.ids[2]].as_slice(), "exposed"));
        // The others are equally exposed: in the order of the dataset.
        assert_eq!(asked(Some(&halves), 0.5, Some(&first)).unwrap().forget, [set.ids[0]]);
        let error = |ensemble: Option<&Ensemble>| asked(ensemble, 0.5, None).unwrap_err().to_string();
        assert!(error(None).contains("needs the input `ensemble`"));
        assert!(error(Some(&ensemble(vec![1; 8]))).contains("no two models of the ensemble differ"));
        let other = Ensemble { ids: vec![7, 8, 9, 10], ..halves.clone() };
        assert!(error(Some(&other)).contains("of another dataset"));
    }

    #[test]
    fn a_later_request_adds_to_the_earlier_ones() {
        let first = request(&Choice::Random { ratio: 0.3 }, None).unwrap();
        let second = request(&Choice::Random { ratio: 0.3 }, Some(&first)).unwrap();
        assert_eq!((second.forget.len(), second.retain.len(), second.earlier.len()), (2, 5, 3));
        assert!(second.facts.cumulative && second.forget.iter().all(|id| !first.forget.contains(id)));
        let third = request(&Choice::Random { ratio: 0.3 }, Some(&second)).unwrap();
        assert_eq!(third.earlier.len(), 5);
    }

    #[test]
    fn an_empty_forget_set_and_one_that_is_everything_are_refused() {
        let message = |choice: Choice| request(&choice, None).unwrap_err().to_string();
        assert!(message(Choice::Random { ratio: 0.01 }).contains("empty"));
        assert!(message(Choice::Class { classes: vec![0, 1, 2] }).contains("everything"));
        assert!(message(Choice::Class { classes: vec![3] }).contains("out of range"));
        assert!(message(Choice::Poisoned).contains("no label was swapped"));
        let rejected = |ratio: f64| MakeRequest::<Without>::check(Parameters { ratio, ..Parameters::default() }).unwrap_err();
        assert!(rejected(0.0).message.contains("empty") && rejected(1.0).message.contains("everything"));
    }

    #[test]
    fn a_file_names_samples_by_id_or_by_path() {
        let file = ids_file("note,id\na,train:3\nb, 7\n");
        assert_eq!(request(&Choice::Ids(file.path().into()), None).unwrap().forget, vec![3, 7]);
        let mut named = dataset(&[0, 0, 1]);
        named.facts.names = Some(["a/1.png", "a/2.png", "b/1.png"].map(str::to_owned).to_vec());
        let file = ids_file("path\nb/1.png\n");
        let choice = Choice::Ids(file.path().into());
        assert_eq!(draw_up::<Without>(&choice, only(&named), None, &streams()).unwrap().forget, vec![2]);
    }

    #[test]
    fn unknown_held_out_and_repeated_ids_are_refused_by_name() {
        let message = |text: &str| {
            let file = ids_file(text);
            let holdout =
                Holdout { train: (0..10).collect(), remembrance: vec![SampleId::new(Part::Test, 5).0], validation: vec![], test: vec![] };
            let set = dataset(&[0, 0, 0, 0, 1, 1, 1, 1, 2, 2]);
            draw_up::<Without>(&Choice::Ids(file.path().into()), Known { holdout: Some(&holdout), ..only(&set) }, None, &streams())
                .unwrap_err()
                .to_string()
        };
        assert!(message("id\ntrain:99\n").contains("`train:99`"));
        assert!(message("id\ntest:5\n").contains("test:5 is held out"));
        assert!(message("id\nnonsense\n").contains("`nonsense` is no sample id"));
        assert!(message("name\n3\n").contains("neither a column `id`"));
        assert!(message("path\na.png\n").contains("have none"));
        assert!(message("id\ntrain:3\n3\n").contains("names `3` twice"));
    }

    #[test]
    fn a_path_may_start_at_the_source_or_at_its_training_folder() {
        let of = |names: &[&str], text: &str| {
            let mut set = dataset(&vec![0; names.len()]);
            set.facts.names = Some(names.iter().map(ToString::to_string).collect());
            let file = ids_file(&format!("path\n{text}\n"));
            draw_up::<Without>(&Choice::Ids(file.path().into()), only(&set), None, &streams()).map(|request| request.forget)
        };
        for text in ["train/3/0003.png", "./train/3/0003.png", "3/0003.png", "./3//0003.png", "train\\3\\0003.png"] {
            assert_eq!(of(&["train/3/0002.png", "train/3/0003.png"], text).unwrap(), [1], "{text}");
            assert_eq!(of(&["3/0002.png", "3/0003.png"], text).unwrap(), [1], "{text}");
            assert_eq!(of(&["Train/3/0002.png", "Train/3/0003.png"], text).unwrap(), [1], "{text}");
        }
        assert!(of(&["train/3/1.png", "training/3/1.png", "x/2.png"], "3/1.png").unwrap_err().to_string().contains("fits 2 samples"));
        assert_eq!(of(&["train/3/1.png", "3/1.png", "x/2.png"], "3/1.png").unwrap(), [1]);
        assert!(of(&["a/1.png", "a/2.png"], "test/a/1.png").unwrap_err().to_string().contains("unknown path"));
        assert!(of(&["train/a/1.png", "a/2.png"], "a/1.png\ntrain/a/1.png").unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn a_list_is_checked_before_anything_runs() {
        let externals = |text: &str| {
            let file = ids_file(text);
            let parameters = Parameters { scenario: Scenario::Ids, file: Some(file.path().into()), ..Parameters::default() };
            MakeRequest::<Without>::externals(&MakeRequest::<Without>::check(parameters).unwrap())
        };
        assert_eq!(externals("id\n3\n").unwrap().len(), 1);
        for (text, part) in [
            ("name\n3\n", "neither a column `id`"),
            ("id\nnonsense\n", "`nonsense` is no sample id"),
            ("id\n3\ntrain:3\n", "names `train:3` twice"),
            ("id\n", "names no sample"),
        ] {
            let error = externals(text).unwrap_err();
            let rejected = error.downcast_ref::<Rejected>().expect("a parameter is to blame");
            assert!(rejected.message.contains(part) && rejected.remedy.is_some(), "{rejected:?}");
            assert_eq!(rejected.parameter.as_deref(), Some("file"));
        }
    }

    #[test]
    fn a_list_as_csv_may_come_from_a_spreadsheet() {
        let file = ids_file("\u{feff}id,note\r\n\"train:3\",\"a, b\"\r\n");
        assert_eq!(request(&Choice::Ids(file.path().into()), None).unwrap().forget, vec![3]);
    }

    #[test]
    fn a_list_in_parquet_is_left_to_the_program_that_reads_it() {
        let parameters = Parameters { scenario: Scenario::Ids, file: Some("ids.parquet".into()), ..Parameters::default() };
        assert_eq!(MakeRequest::<Without>::elsewhere(&MakeRequest::<Without>::check(parameters).unwrap()), Some("tables"));
    }
}
