//! Weights, and a way for their gradients past candle's accumulator.

use std::sync::{Arc, Mutex};

use candle_core::{Result, Tensor, Var};

/// A place where operations leave the gradient of a parameter. candle would set a tensor of the same size to zero and add the gradient to it,
/// which costs a tenth of a training step where a layer is large.
#[derive(Debug, Clone, Default)]
pub struct Deposit(Arc<Mutex<Option<Tensor>>>);

impl Deposit {
    /// What was left since the last time: the sum, where it was more than one gradient.
    #[must_use]
    pub fn take(&self) -> Option<Tensor> {
        self.0.lock().expect("no thread panicked").take()
    }

    pub(super) fn add(&self, gradient: Tensor) -> Result<()> {
        let mut sum = self.0.lock().expect("no thread panicked");
        *sum = Some(match sum.take() {
            Some(sum) => sum.add(&gradient)?,
            None => gradient,
        });
        Ok(())
    }
}

/// The weight of a layer as an operation takes it: a tensor, whose gradient candle collects, or one with a deposit.
#[derive(Debug, Clone, Copy)]
pub struct Weight<'a> {
    tensor: &'a Tensor,
    deposit: Option<&'a Deposit>,
}

impl<'a> From<&'a Tensor> for Weight<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self::new(tensor, None)
    }
}

impl<'a> From<&'a Var> for Weight<'a> {
    fn from(variable: &'a Var) -> Self {
        Self::new(variable.as_tensor(), None)
    }
}

impl<'a> Weight<'a> {
    /// A weight whose gradient is left in `deposit`, if there is one. What is composed of candle's own lets candle collect it all the same, and where no
    /// other argument of the operation takes part in differentiation: without one that does, there is no backward pass.
    #[must_use]
    pub fn new(tensor: &'a Tensor, deposit: Option<&'a Deposit>) -> Self {
        Self { tensor, deposit }
    }

    pub(super) fn tensor(&self) -> &'a Tensor {
        self.tensor
    }

    /// The operation's argument, and where it has to leave the argument's gradient, given the other arguments.
    pub(super) fn argument(self, others: &[&Tensor]) -> Result<(Tensor, Target)> {
        let deposit = self.deposit.filter(|_| others.iter().any(|other| other.track_op()));
        let tensor = if deposit.is_some() { self.tensor.detach() } else { self.tensor.clone() };
        Ok((tensor.contiguous()?, Target(deposit.cloned())))
    }
}

/// The bias, or a tensor of no values that stands for none, on the device of `like`.
pub(super) fn or_none(bias: Option<&Tensor>, like: &Tensor) -> Result<Tensor> {
    match bias {
        Some(bias) => bias.contiguous(),
        None => Tensor::zeros(0, like.dtype(), like.device()),
    }
}

/// Where the gradient of a weight goes.
pub(super) struct Target(Option<Deposit>);

impl Target {
    pub(super) fn wants_gradient(&self, weight: &Tensor) -> bool {
        self.0.is_some() || weight.track_op()
    }

    /// What is left for candle to collect.
    pub(super) fn hand_over(&self, gradient: Option<Tensor>) -> Result<Option<Tensor>> {
        match (&self.0, gradient) {
            (Some(deposit), Some(gradient)) => deposit.add(gradient).map(|()| None),
            (_, gradient) => Ok(gradient),
        }
    }
}
