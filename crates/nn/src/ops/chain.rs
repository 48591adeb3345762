//! Several operations as one in candle's graph. candle's backward pass sets the gradient of each value to zero and adds to it, on threads of its own that
//! wait without sleeping; within a chain a gradient is handed from one operation to the next.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::activation::add;
use super::storage::{apply1, dtype_of, for_real, stored, values};
use super::weight::Deposit;

thread_local! {
    /// The operations of the chain that this thread builds: candle does not tell which one a tensor is the result of.
    static LINKS: RefCell<Option<Vec<Link>>> = const { RefCell::new(None) };
}

/// A kernel of one to three arguments.
pub(super) enum Operation {
    One(Arc<Box<dyn CustomOp1 + Send + Sync>>),
    Two(Arc<Box<dyn CustomOp2 + Send + Sync>>),
    Three(Arc<Box<dyn CustomOp3 + Send + Sync>>),
}

/// An operation as it was applied.
struct Link {
    operation: Operation,
    arguments: Vec<Tensor>,
    result: Tensor,
}

impl Operation {
    /// The result, which a chain that is being built takes note of.
    pub(super) fn apply(self, arguments: Vec<Tensor>) -> Result<Tensor> {
        let result = match (&self, &arguments[..]) {
            (Self::One(kernel), [first]) => first.apply_op1_arc(kernel.clone())?,
            (Self::Two(kernel), [first, second]) => first.apply_op2_arc(second, kernel.clone())?,
            (Self::Three(kernel), [first, second, third]) => first.apply_op3_arc(second, third, kernel.clone())?,
            _ => bail!("a kernel does not take {} arguments", arguments.len()),
        };
        LINKS.with_borrow_mut(|links| {
            if let Some(links) = links.as_mut().filter(|_| result.track_op()) {
                links.push(Link { operation: self, arguments, result: result.clone() });
            }
        });
        Ok(result)
    }
}

impl Link {
    /// The gradients of the arguments, of those that take part in differentiation.
    fn backward(&self, gradient: &Tensor) -> Result<[Option<Tensor>; 3]> {
        Ok(match (&self.operation, &self.arguments[..]) {
            (Operation::One(kernel), [first]) => [kernel.bwd(first, &self.result, gradient)?, None, None],
            (Operation::Two(kernel), [first, second]) => {
                let (of_first, of_second) = kernel.bwd(first, second, &self.result, gradient)?;
                [of_first, of_second, None]
            }
            (Operation::Three(kernel), [first, second, third]) => {
                kernel.bwd(first, second, third, &self.result, gradient).map(<[Option<Tensor>; 3]>::from)?
            }
            (_, arguments) => bail!("a kernel does not take {} arguments", arguments.len()),
        })
    }
}

/// What `build` makes of `input` by operations of this module alone, as one operation. The gradients of `parameters` are left in their deposits. Where
/// `input` takes no part in differentiation, this is `build` and nothing else: candle collects the gradients then.
///
/// # Errors
/// Those of `build`; in the backward pass, when a gradient reaches what is neither of the chain nor among the parameters.
pub fn chain(input: &Tensor, parameters: Vec<(Tensor, Deposit)>, build: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    if !input.track_op() {
        return build(input);
    }
    let input = input.contiguous()?;
    let around = LINKS.replace(Some(Vec::new()));
    let output = build(&input);
    let links = LINKS.replace(around).unwrap_or_default();
    apply1(&input, Chain { links, parameters, output: output?.contiguous()? })
}

struct Chain {
    links: Vec<Link>,
    parameters: Vec<(Tensor, Deposit)>,
    output: Tensor,
}

impl CustomOp1 for Chain {
    fn name(&self) -> &'static str {
        "chain"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.output.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else { bail!("a chain runs on the CPU only") };
        for_real!(dtype_of(storage), T => Ok((stored(values::<T>(storage, layout)?.to_vec()), layout.shape().clone())))
    }

    fn bwd(&self, input: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let mut gradients = HashMap::from([(self.output.id(), gradient.clone())]);
        for link in self.links.iter().rev() {
            let Some(gradient) = gradients.remove(&link.result.id()) else { continue };
            for (argument, gradient) in link.arguments.iter().zip(link.backward(&gradient)?) {
                if let Some(gradient) = gradient {
                    let sum = match gradients.remove(&argument.id()) {
                        Some(sum) => add(&sum, &gradient)?,
                        None => gradient,
                    };
                    gradients.insert(argument.id(), sum);
                }
            }
        }
        for (parameter, deposit) in &self.parameters {
            gradients.remove(&parameter.id()).map_or(Ok(()), |gradient| deposit.add(gradient))?;
        }
        let of_input = gradients.remove(&input.id());
        if !gradients.is_empty() {
            bail!("gradients of {} tensors leave the chain, which has no place for them; name them among its parameters", gradients.len());
        }
        Ok(of_input)
    }
}
