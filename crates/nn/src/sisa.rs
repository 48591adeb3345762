//! Sharded, sliced training (SISA, Bourtoule et al., arXiv 1912.03817): networks that each learn from a shard of the samples, of which they take up one slice after the other,
//! and whose mean softmax is the prediction. Where samples are taken out, the networks of their shards go on from before the first slice that holds one, and become what
//! training without these samples makes, byte for byte.
//!
//! Shard and slice of a sample are drawn by its id alone, so that neither other samples nor requests move it; a class or a bucket is spread over all shards.

use std::collections::{BTreeMap, HashSet};

use candle_core::{Error, Result, bail};
use dcu_artifact::{Dataset, Shards, ShardsFacts, Tensor as Stored};

use crate::architecture::Architecture;
use crate::network::Network;
use crate::recipe::Recipe;
use crate::rng::Streams;
use crate::samples::Samples;
use crate::train::Fit;

/// How samples are divided, and what is trained on them how.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// How many networks there are.
    pub shards: usize,
    /// In how many parts each takes up its samples.
    pub slices: usize,
    /// What all random numbers come from.
    pub seed: u64,
    /// The network of one shard.
    pub member: Architecture,
    /// How a network is trained: its epochs are those of all slices together.
    pub recipe: Recipe,
}

impl Plan {
    /// The plan that an artifact was made by.
    ///
    /// # Errors
    /// When its architecture or recipe is none that this release knows, or it does not work in slices.
    pub fn of(facts: &ShardsFacts) -> Result<Self> {
        let broken = |what: &str, error: serde_json::Error| Error::Msg(format!("the {what} of the shards does not parse: {error}"));
        let plan = Self {
            shards: facts.shards,
            slices: facts.slices,
            seed: facts.seed,
            member: serde_json::from_value(facts.architecture.clone()).map_err(|error| broken("architecture", error))?,
            recipe: serde_json::from_value(facts.recipe.clone()).map_err(|error| broken("recipe", error))?,
        };
        plan.check().map_err(Error::Msg)?;
        Ok(plan)
    }

    /// As an artifact has it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn facts(&self) -> Result<ShardsFacts> {
        let [architecture, recipe] =
            [serde_json::to_value(&self.member), serde_json::to_value(&self.recipe)].map(|value| value.map_err(Error::wrap));
        Ok(ShardsFacts { shards: self.shards, slices: self.slices, seed: self.seed, architecture: architecture?, recipe: recipe? })
    }

    /// Whether the recipe can be followed slice by slice.
    ///
    /// # Errors
    /// Says why not.
    pub fn check(&self) -> std::result::Result<(), String> {
        if self.recipe.needs_validation() {
            return Err("a training by slices has an end that no validation sets; leave out `patience` and `keep: best`".into());
        }
        self.recipe.check().map_err(|(_, message)| message)?;
        let epochs = self.epochs();
        self.of_slice().check().map_err(|(_, message)| format!("in the {epochs} epochs of each of {} slices {message}", self.slices))?;
        self.recipe.check_network(&self.network().graph()?)
    }

    /// All networks side by side.
    #[must_use]
    pub fn network(&self) -> Architecture {
        Architecture { shards: Some(self.shards), ..self.member.clone() }
    }

    /// Epochs over what there is of a shard from one slice to the next: so many that its samples are gone through about as often as in the recipe's epochs, at least one.
    #[must_use]
    pub fn epochs(&self) -> usize {
        (2 * self.recipe.epochs).div_ceil(self.slices + 1).max(1)
    }

    fn of_slice(&self) -> Recipe {
        Recipe { epochs: self.epochs(), ..self.recipe.clone() }
    }

    fn streams(&self) -> Streams {
        Streams::new(self.seed, "train/sisa")
    }

    /// The random numbers of a network from one slice to the next.
    fn streams_of(&self, [shard, slice]: [usize; 2]) -> Result<Streams> {
        Ok(self.streams().replicate(u32::try_from(shard * self.slices + slice + 1).map_err(Error::wrap)?))
    }

    /// Shard and slice of a sample.
    #[must_use]
    pub fn place(&self, id: u64) -> [usize; 2] {
        let mut stream = self.streams().indexed("place", id);
        [stream.below(self.shards), stream.below(self.slices)]
    }

    /// The networks side by side, as they are behind their last slices.
    ///
    /// # Errors
    /// When the checkpoints are not of this plan.
    pub fn joined(&self, checkpoints: &BTreeMap<String, Stored>) -> Result<Network> {
        let mut tensors = BTreeMap::new();
        for shard in 0..self.shards {
            let own = of_stage(checkpoints, [shard, self.slices - 1]);
            tensors.extend(own.into_iter().map(|(name, tensor)| (format!("shard{shard}.{name}"), tensor)));
        }
        Network::from_tensors(&self.network(), &tensors)
    }
}

/// The tensors of a network behind a slice, by its own names.
fn of_stage(checkpoints: &BTreeMap<String, Stored>, [shard, slice]: [usize; 2]) -> BTreeMap<String, Stored> {
    let prefix = ShardsFacts::prefix(shard, slice);
    let own =
        checkpoints.range(prefix.clone()..).map_while(|(name, tensor)| Some((name.strip_prefix(&prefix)?.to_owned(), tensor.clone())));
    own.collect()
}

/// A training of all shards, or of what is to be trained anew, which can be interrupted between epochs.
pub struct Training<'a> {
    plan: &'a Plan,
    dataset: &'a Dataset,
    /// The rows of the dataset to learn from, with their places.
    rows: Vec<(usize, [usize; 2])>,
    /// What there is already.
    checkpoints: BTreeMap<String, Stored>,
    /// What is still to be trained, in order, and how much of it is done.
    stages: Vec<[usize; 2]>,
    done: usize,
    fit: Option<(Fit, Samples)>,
}

/// The names of a snapshot's tensors that are of the network in training begin with this.
const NOW: &str = "now.";

impl<'a> Training<'a> {
    /// Of all shards, on the samples with these ids.
    ///
    /// # Errors
    /// When one is not in the dataset, or a shard would have nothing to learn from.
    pub fn from_scratch(plan: &'a Plan, dataset: &'a Dataset, ids: &[u64]) -> Result<Self> {
        let stages = (0..plan.shards).flat_map(|shard| (0..plan.slices).map(move |slice| [shard, slice])).collect();
        Self::new(plan, dataset, ids, (BTreeMap::new(), stages))
    }

    /// Of what samples that are no longer among these ids had a part in.
    ///
    /// # Errors
    /// As [`Self::from_scratch`], and when the shards were not trained on one of these.
    pub fn without(plan: &'a Plan, dataset: &'a Dataset, ids: &[u64], shards: &Shards) -> Result<Self> {
        let (known, left): (HashSet<u64>, HashSet<u64>) = (shards.ids.iter().copied().collect(), ids.iter().copied().collect());
        if let Some(&id) = ids.iter().find(|id| !known.contains(id)) {
            bail!(
                "the shards were not trained on the sample {}; make shards and request from the same dataset",
                dcu_artifact::SampleId(id)
            );
        }
        // The first slice of each shard that is not as it was.
        let mut first = vec![plan.slices; plan.shards];
        for &id in shards.ids.iter().filter(|id| !left.contains(id)) {
            let [shard, slice] = plan.place(id);
            first[shard] = first[shard].min(slice);
        }
        let stages: Vec<[usize; 2]> =
            (0..plan.shards).flat_map(|shard| (first[shard]..plan.slices).map(move |slice| [shard, slice])).collect();
        let mut checkpoints = shards.checkpoints.clone();
        for &[shard, slice] in &stages {
            let prefix = ShardsFacts::prefix(shard, slice);
            checkpoints.retain(|name, _| !name.starts_with(&prefix));
        }
        Self::new(plan, dataset, ids, (checkpoints, stages))
    }

    fn new(
        plan: &'a Plan,
        dataset: &'a Dataset,
        ids: &[u64],
        (checkpoints, stages): (BTreeMap<String, Stored>, Vec<[usize; 2]>),
    ) -> Result<Self> {
        let wanted: HashSet<u64> = ids.iter().copied().collect();
        // In the order of the dataset, whatever that of the ids is.
        let rows: Vec<_> =
            (0..dataset.len()).filter(|&row| wanted.contains(&dataset.ids[row])).map(|row| (row, plan.place(dataset.ids[row]))).collect();
        if rows.len() != wanted.len() {
            bail!("{} of {} samples to learn from are not in the dataset", wanted.len() - rows.len(), wanted.len());
        }
        if let Some(shard) = (0..plan.shards).find(|&shard| rows.iter().all(|(_, place)| place[0] != shard)) {
            bail!("no sample is left in shard {shard} of {}; give fewer `shards`", plan.shards);
        }
        Ok(Self { plan, dataset, rows, checkpoints, stages, done: 0, fit: None })
    }

    /// Epochs that are done, and all.
    #[must_use]
    pub fn epochs(&self) -> [usize; 2] {
        let now = self.fit.as_ref().map_or(0, |(fit, _)| fit.done());
        [self.done * self.plan.epochs() + now, self.stages.len() * self.plan.epochs()]
    }

    /// Trains for one more epoch; false when all are done.
    ///
    /// # Errors
    /// When the training diverges, or a network does not fit the samples.
    pub fn next_epoch(&mut self) -> Result<bool> {
        let Some(&stage) = self.stages.get(self.done) else { return Ok(false) };
        let (mut fit, samples) = match self.fit.take() {
            Some(begun) => begun,
            None => self.begun(stage)?,
        };
        if !samples.is_empty() {
            fit.next_epoch(&samples)?;
        }
        if samples.is_empty() || fit.done() == self.plan.epochs() {
            let prefix = ShardsFacts::prefix(stage[0], stage[1]);
            let tensors = fit.finish().to_tensors()?;
            self.checkpoints.extend(tensors.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)));
            self.done += 1;
        } else {
            self.fit = Some((fit, samples));
        }
        Ok(true)
    }

    /// The training of a shard from one slice to the next: on all of its samples in slices up to that one. Nothing of the optimiser is kept from slice to slice.
    fn begun(&self, [shard, slice]: [usize; 2]) -> Result<(Fit, Samples)> {
        let streams = self.plan.streams_of([shard, slice])?;
        let network = match slice {
            0 => Network::initialised(&self.plan.member, &streams)?,
            _ => Network::from_tensors(&self.plan.member, &of_stage(&self.checkpoints, [shard, slice - 1]))?,
        };
        let own = self.rows.iter().filter(|(_, place)| place[0] == shard && place[1] <= slice).map(|(row, _)| *row);
        let samples = Samples::of_dataset(self.dataset, &own.collect::<Vec<_>>());
        Ok((Fit::new(network, self.plan.of_slice(), streams), samples))
    }

    /// All that [`Self::restore`] needs: slices done, and epochs of the next one.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn snapshot(&self) -> Result<([usize; 2], BTreeMap<String, Stored>)> {
        let mut tensors = self.checkpoints.clone();
        let Some((fit, _)) = &self.fit else { return Ok(([self.done, 0], tensors)) };
        tensors.extend(fit.snapshot()?.into_iter().map(|(name, tensor)| (format!("{NOW}{name}"), tensor)));
        Ok(([self.done, fit.done()], tensors))
    }

    /// Goes on where a snapshot of this training was taken.
    ///
    /// # Errors
    /// When it is of another one.
    pub fn restore(&mut self, [done, epochs]: [usize; 2], tensors: BTreeMap<String, Stored>) -> Result<()> {
        let (now, checkpoints): (BTreeMap<_, _>, BTreeMap<_, _>) = tensors.into_iter().partition(|(name, _)| name.starts_with(NOW));
        (self.checkpoints, self.done, self.fit) = (checkpoints, done, None);
        if let (true, Some(&stage)) = (epochs > 0, self.stages.get(done)) {
            let (mut fit, samples) = self.begun(stage)?;
            fit.restore(epochs, now.into_iter().map(|(name, tensor)| (name[NOW.len()..].to_owned(), tensor)).collect())?;
            self.fit = Some((fit, samples));
        }
        Ok(())
    }

    /// What each network has behind each slice, by the names of [`Shards`].
    #[must_use]
    pub fn finish(self) -> BTreeMap<String, Stored> {
        self.checkpoints
    }
}

#[cfg(test)]
mod tests {
    use dcu_artifact::{Array, DatasetFacts, Normalisation};

    use super::*;
    use crate::architecture::Family;
    use crate::network::Trainable;
    use crate::place::Place;
    use crate::{evaluate, ops};

    const SAMPLES: usize = 60;

    fn dataset() -> Dataset {
        let facts = DatasetFacts {
            source: "test".into(),
            class_names: ["a", "b", "c"].map(str::to_owned).to_vec(),
            normalisation: Normalisation { mean: vec![0.5], std: vec![0.25] },
            names: None,
        };
        let images = Array::new(vec![SAMPLES, 1, 4, 4], (0..SAMPLES * 16).map(|value| (value * 89 % 256) as u8).collect());
        let labels = (0..SAMPLES as u32).map(|row| row % 3).collect();
        Dataset { images, labels, original_labels: None, ids: (100..100 + SAMPLES as u64).collect(), facts }
    }

    /// With what there is of randomness and state: dropout, batch statistics, momentum.
    fn plan() -> Plan {
        let member = Architecture { widths: vec![3, 4], hidden: 5, ..Architecture::of_family(Family::Cnn, [1, 4, 4], 3) };
        Plan { shards: 3, slices: 4, seed: 7, member, recipe: Recipe { epochs: 5, batch: 4, ..Recipe::default() } }
    }

    fn trained(mut training: Training<'_>) -> BTreeMap<String, Stored> {
        while training.next_epoch().unwrap() {}
        training.finish()
    }

    fn shards(plan: &Plan, dataset: &Dataset) -> Shards {
        let checkpoints = trained(Training::from_scratch(plan, dataset, &dataset.ids).unwrap());
        Shards { ids: dataset.ids.clone(), checkpoints, facts: plan.facts().unwrap() }
    }

    #[test]
    fn samples_that_are_taken_out_leave_what_training_without_them_makes_byte_for_byte() {
        let (plan, dataset) = (plan(), dataset());
        let all = shards(&plan, &dataset);
        assert_eq!(Plan::of(&all.facts).unwrap(), plan);
        let of_place = |shard: usize, slice: usize| dataset.ids.iter().copied().filter(move |&id| plan_place(id) == [shard, slice]);
        // One of the first and one of the last slice, several, a whole slice, and more and more of them.
        let requests: Vec<Vec<u64>> = vec![
            vec![of_place(1, 0).next().unwrap()],
            vec![of_place(2, 3).next().unwrap()],
            vec![110, 131, 142, 103],
            of_place(0, 2).collect(),
            of_place(0, 0).collect(),
            of_place(0, 2).chain([110]).collect(),
            of_place(0, 2).chain([110, 111, 112]).collect(),
        ];
        for gone in requests {
            let left: Vec<u64> = dataset.ids.iter().copied().filter(|id| !gone.contains(id)).collect();
            let training = Training::without(&plan, &dataset, &left, &all).unwrap();
            let affected: HashSet<usize> = gone.iter().map(|&id| plan.place(id)[0]).collect();
            assert_eq!(training.stages.iter().map(|stage| stage[0]).collect::<HashSet<_>>(), affected);
            let forgotten = trained(training);
            assert_eq!(forgotten, trained(Training::from_scratch(&plan, &dataset, &left).unwrap()), "{gone:?}");
            assert_ne!(forgotten, all.checkpoints);
            // Pixels of what is gone change nothing.
            let mut blank = dataset.clone();
            gone.iter().for_each(|id| blank.images.data[(id - 100) as usize * 16..][..16].fill(0));
            assert_eq!(trained(Training::without(&plan, &blank, &left, &all).unwrap()), forgotten);
        }
        assert_eq!(trained(Training::without(&plan, &dataset, &dataset.ids, &all).unwrap()), all.checkpoints);
    }

    fn plan_place(id: u64) -> [usize; 2] {
        plan().place(id)
    }

    #[test]
    fn a_late_slice_costs_less_than_an_early_one_and_all_of_them_about_the_recipe() {
        let (plan, dataset) = (plan(), dataset());
        let all = shards(&plan, &dataset);
        let epochs = |slice: usize| {
            let gone = dataset.ids.iter().copied().find(|&id| plan.place(id) == [1, slice]).unwrap();
            let left: Vec<u64> = dataset.ids.iter().copied().filter(|&id| id != gone).collect();
            Training::without(&plan, &dataset, &left, &all).unwrap().epochs()[1]
        };
        assert_eq!([epochs(0), epochs(1), epochs(2), epochs(3)], [8, 6, 4, 2]);
        assert_eq!(Training::from_scratch(&plan, &dataset, &dataset.ids).unwrap().epochs(), [0, 24]);
    }

    #[test]
    fn an_interrupted_training_goes_on_to_the_same_bytes() {
        let (plan, dataset) = (plan(), dataset());
        let whole = trained(Training::from_scratch(&plan, &dataset, &dataset.ids).unwrap());
        for epochs in [0, 1, 2, 13, 24] {
            let mut begun = Training::from_scratch(&plan, &dataset, &dataset.ids).unwrap();
            (0..epochs).for_each(|_| assert!(begun.next_epoch().unwrap()));
            let (position, tensors) = begun.snapshot().unwrap();
            let mut again = Training::from_scratch(&plan, &dataset, &dataset.ids).unwrap();
            again.restore(position, tensors).unwrap();
            assert_eq!(again.epochs()[0], epochs);
            assert_eq!(trained(again), whole, "{epochs}");
        }
    }

    #[test]
    fn the_networks_predict_together_with_their_mean_softmax() {
        let (plan, dataset) = (plan(), dataset());
        let all = shards(&plan, &dataset);
        let samples = Samples::of_whole_dataset(&dataset);
        let said = evaluate::judge(&plan.joined(&all.checkpoints).unwrap(), &samples).unwrap().logits;
        let mut means = vec![0.0_f64; said.data.len()];
        for shard in 0..plan.shards {
            let member = Network::from_tensors(&plan.member, &of_stage(&all.checkpoints, [shard, plan.slices - 1])).unwrap();
            let logits = evaluate::judge(&member, &samples).unwrap().logits;
            for (row, own) in logits.data.chunks_exact(3).zip(means.chunks_exact_mut(3)) {
                let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
                own.iter_mut().zip(row).for_each(|(mean, &logit)| *mean += f64::from(logit).exp() / sum / 3.0);
            }
        }
        said.data.iter().zip(&means).for_each(|(&said, mean)| assert!((f64::from(said).exp() - mean).abs() < 1e-6, "{said} {mean}"));
    }

    /// Of networks that say the same, each has its share of the slope.
    #[test]
    fn a_loss_of_what_they_predict_together_goes_back_to_each_of_them() {
        let (plan, dataset) = (plan(), dataset());
        let member = Network::initialised(&plan.member, &Streams::new(1, "test")).unwrap();
        let own = member.to_tensors().unwrap();
        let prefixed = |shard| own.iter().map(move |(name, tensor)| (format!("shard{shard}.{name}"), tensor.clone()));
        let together = Network::from_tensors(&plan.network(), &(0..plan.shards).flat_map(prefixed).collect()).unwrap();
        let (images, labels) = Samples::of_whole_dataset(&dataset).batch(&[0, 1, 2, 3, 4]).unwrap();
        for composed in [false, true] {
            let place = Place { composed, ..member.place().clone() };
            let slopes = |network: &Network| {
                let network = network.moved_to(place.clone()).unwrap();
                let trainable = Trainable::all(network.graph());
                let loss = ops::cross_entropy(&network.judge(&images, &trainable).unwrap(), &labels).unwrap();
                network.backward(&loss, &trainable).unwrap()
            };
            let (of_member, of_all) = (slopes(&member), slopes(&together));
            assert_eq!(of_all.len(), plan.shards * of_member.len());
            for (name, slope) in of_all.iter() {
                let expected = of_member.get(name.split_once('.').unwrap().1).unwrap();
                let [found, expected] = [slope, expected].map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap());
                found.iter().zip(&expected).for_each(|(found, expected)| assert!((found - expected / 3.0).abs() < 1e-6, "{name}"));
            }
        }
    }

    #[test]
    fn what_cannot_be_sharded_is_refused_with_what_to_change() {
        let (plan, dataset) = (plan(), dataset());
        let refused = |plan: Plan| plan.check().unwrap_err();
        assert!(refused(Plan { recipe: Recipe { patience: 3, ..plan.recipe.clone() }, ..plan.clone() }).contains("leave out `patience`"));
        assert!(refused(Plan { shards: 0, ..plan.clone() }).contains("give one at least"));
        let many = Plan { shards: 50, ..plan.clone() };
        let error = Training::from_scratch(&many, &dataset, &dataset.ids).map(drop).unwrap_err().to_string();
        assert!(error.contains("no sample is left in shard") && error.contains("fewer `shards`"), "{error}");
        let mut known = shards(&plan, &dataset);
        known.ids.truncate(10);
        let error = Training::without(&plan, &dataset, &dataset.ids, &known).map(drop).unwrap_err().to_string();
        assert!(error.contains("were not trained on the sample train:110"), "{error}");
    }
}
