//! The last layer as a linear model of what it reads, in f64: its loss is convex, and its derivatives are products of small matrices.

use dcu_nn::derivatives::per_sample;
use dcu_nn::graph::{Operation, Role};
use dcu_nn::matrix::{Matrix, product};
use dcu_nn::network::all;
use dcu_nn::{DType, Gradients, Mode, Network, Place, Samples, Tensor, Trainable};
use dcu_stage::Failure;

/// Samples whose inputs are read at once.
const AT_ONCE: usize = 128;

/// A linear layer with bias on some samples.
pub(crate) struct Head {
    names: [String; 2],
    pub(crate) classes: usize,
    /// Inputs, and one more for the bias.
    pub(crate) width: usize,
    /// What the layer reads of each sample, and a 1: [N, width].
    inputs: Vec<f64>,
    /// Weight and bias, [K, width].
    weights: Vec<f64>,
}

impl Head {
    /// The last layer of a network in eval mode.
    ///
    /// # Errors
    /// When it is not a linear layer, or the samples do not fit.
    pub(crate) fn read(network: &Network, samples: &Samples) -> anyhow::Result<Self> {
        let network = network.moved_to(Place { dtype: DType::F64, ..network.place().clone() })?;
        let step = network.graph().head().filter(|step| matches!(step.operation, Operation::Linear { .. }));
        let Some(step) = step else {
            return Err(Failure::new("the last layer of this network is not linear", "use `parameters: all`").into());
        };
        let named = |role: Role| step.slots.iter().find(|slot| slot.role == role).expect("a linear layer has both").name.clone();
        let names = [Role::Weight, Role::Bias].map(named);
        let trainable = Trainable::which(network.graph(), |_, slot| slot.name == names[0]);
        // The gradient of a logit by its row of the weight is what the layer reads.
        let first = |logits: &Tensor, _: &[usize]| logits.narrow(1, 0, 1)?.sum_all();
        let (mut inputs, rows) = (Vec::new(), (0..samples.len()).collect::<Vec<_>>());
        for rows in rows.chunks(AT_ONCE) {
            let gradients = per_sample(&network, &samples.batch(rows)?.0, &first, &trainable, all(Mode::EVAL))?;
            let read = gradients.get(&names[0]).expect("is trainable").narrow(1, 0, 1)?.squeeze(1)?;
            let ones = Tensor::ones((rows.len(), 1), DType::F64, read.device())?;
            inputs.extend(Tensor::cat(&[read, ones], 1)?.flatten_all()?.to_vec1::<f64>()?);
        }
        let both = Trainable::which(network.graph(), |_, slot| names.contains(&slot.name));
        let classes = network.architecture().classes;
        let mut head = Self { names, classes, width: inputs.len() / samples.len(), inputs, weights: Vec::new() };
        head.weights = head.joined(&crate::algebra::values(&network, &both)?)?;
        Ok(head)
    }

    /// What the layer reads, [N, width].
    pub(crate) fn inputs(&self) -> Matrix<'_, f64> {
        Matrix::new(&self.inputs, self.rows(), self.width)
    }

    pub(crate) fn rows(&self) -> usize {
        self.inputs.len() / self.width
    }

    /// The network's probabilities, [N, K].
    pub(crate) fn probabilities(&self) -> Vec<f64> {
        let mut values = product(self.inputs(), Matrix::new(&self.weights, self.classes, self.width).transposed());
        softmax(&mut values, self.classes);
        values
    }

    /// The gradient of the summed cross-entropy with targets [N, K]: [K, width].
    pub(crate) fn gradient(&self, targets: &[f32]) -> Vec<f64> {
        let errors: Vec<f64> = self.probabilities().iter().zip(targets).map(|(said, target)| said - f64::from(*target)).collect();
        product(Matrix::new(&errors, self.rows(), self.classes).transposed(), self.inputs())
    }

    /// The product of the Hessian of the summed cross-entropy with a direction [K, width], where the layer says `probabilities`.
    pub(crate) fn curvature(&self, probabilities: &[f64], direction: &[f64]) -> Vec<f64> {
        let mut changes = product(self.inputs(), Matrix::new(direction, self.classes, self.width).transposed());
        for (changes, said) in changes.chunks_exact_mut(self.classes).zip(probabilities.chunks_exact(self.classes)) {
            let mean: f64 = changes.iter().zip(said).map(|(change, said)| change * said).sum();
            changes.iter_mut().zip(said).for_each(|(change, said)| *change = said * (*change - mean));
        }
        product(Matrix::new(&changes, self.rows(), self.classes).transposed(), self.inputs())
    }

    /// Values of weight and bias as [K, width].
    ///
    /// # Errors
    /// When these are of other parameters.
    pub(crate) fn joined(&self, values: &Gradients) -> dcu_nn::Result<Vec<f64>> {
        match self.names.each_ref().map(|name| values.get(name)) {
            [Some(weight), Some(bias)] => Tensor::cat(&[weight, &bias.unsqueeze(1)?], 1)?.flatten_all()?.to_vec1(),
            _ => Err(dcu_nn::Error::Msg(format!("these are no values of {:?}", self.names))),
        }
    }

    /// Values [K, width] as those of weight and bias.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub(crate) fn split(&self, values: Vec<f64>) -> anyhow::Result<Gradients> {
        let whole = Tensor::from_vec(values, (self.classes, self.width), &dcu_nn::Device::Cpu)?;
        let weight = whole.narrow(1, 0, self.width - 1)?.contiguous()?;
        let bias = whole.narrow(1, self.width - 1, 1)?.squeeze(1)?.contiguous()?;
        Ok([(self.names[0].clone(), weight), (self.names[1].clone(), bias)].into_iter().collect())
    }
}

/// The softmax of each row of so many classes, in place.
pub(crate) fn softmax(values: &mut [f64], classes: usize) {
    for row in values.chunks_exact_mut(classes) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row.iter_mut().for_each(|value| *value = (*value - largest).exp());
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|value| *value /= sum);
    }
}
