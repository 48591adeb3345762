//! Where networks compute, and by what.

use std::sync::OnceLock;

use candle_core::{DType, Device};

/// Where and by what a network computes.
#[derive(Debug, Clone)]
pub struct Place {
    /// The device. On others than the CPU operations are composed of candle's own.
    pub device: Device,
    /// The numbers: f32, or f64.
    pub dtype: DType,
    /// Whether operations are composed of candle's own on the CPU too. Slower, and differentiable twice where candle's are.
    pub composed: bool,
}

impl Default for Place {
    fn default() -> Self {
        Self { device: Device::Cpu, dtype: DType::F32, composed: false }
    }
}

/// What [`choose`] chose.
static CHOSEN: OnceLock<Place> = OnceLock::new();

/// What a user can do who has no such device.
const REMEDY: &str =
    "give `--device cpu`, `cpu-composed` (candle's own operations, on the CPU) or `cuda:N`, the GPU number N, counted from 0";

/// Puts the networks that this process makes from now on where `name` says: `cpu`, `cpu-composed` or `cuda:N`. Once for a process, before it has made one.
///
/// # Errors
/// What is wrong and what to do: there is no such device, the program was built without what it needs, or the process has chosen before.
pub fn choose(name: &str) -> Result<(), (String, String)> {
    let place = Place::named(name)?;
    let chosen = |_| (format!("networks cannot compute on `{name}`: this process has chosen another device"), REMEDY.to_owned());
    CHOSEN.set(place).map_err(chosen)
}

impl Place {
    /// Where this process makes its networks: what [`choose`] chose, else the CPU with the kernels.
    #[must_use]
    pub fn of_process() -> Self {
        CHOSEN.get().cloned().unwrap_or_default()
    }

    /// The place that a user calls `cpu`, `cpu-composed` or `cuda:N`, with f32. Opens the device.
    fn named(name: &str) -> Result<Self, (String, String)> {
        let number = |name: &str| name.strip_prefix("cuda:")?.parse().ok();
        match (name, number(name)) {
            ("cpu", _) => Ok(Self::default()),
            ("cpu-composed", _) => Ok(Self { composed: true, ..Self::default() }),
            (_, Some(_)) if !candle_core::utils::cuda_is_available() => Err((
                format!("this program was built without `cuda` and cannot compute on `{name}`"),
                format!("build it with `--features cuda`, as `cargo xtask run --device {name}` does, or {REMEDY}"),
            )),
            (_, Some(number)) => match Device::new_cuda(number) {
                Ok(device) => Ok(Self { device, ..Self::default() }),
                Err(error) => {
                    Err((format!("cannot use `{name}`: {error}"), format!("`nvidia-smi` lists the GPUs that there are; {REMEDY}")))
                }
            },
            (_, None) => Err((format!("there is no device `{name}`"), REMEDY.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named_and_what_is_none_is_refused_with_a_remedy() {
        let [kernels, composed] = ["cpu", "cpu-composed"].map(|name| Place::named(name).unwrap());
        assert!(kernels.device.is_cpu() && composed.device.is_cpu());
        assert_eq!((kernels.composed, composed.composed), (false, true));
        for name in ["", "gpu", "cuda", "cuda:", "cuda:first", "cuda:-1", "CPU", "cpu:0"] {
            let (message, remedy) = Place::named(name).unwrap_err();
            assert_eq!(message, format!("there is no device `{name}`"));
            assert!(remedy.contains("`--device cpu`, `cpu-composed`"), "{remedy}");
        }
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_gpu_is_refused_by_a_program_that_was_built_without_it() {
        let (message, remedy) = Place::named("cuda:1").unwrap_err();
        assert_eq!(message, "this program was built without `cuda` and cannot compute on `cuda:1`");
        assert!(remedy.contains("`--features cuda`") && remedy.contains("`cargo xtask run --device cuda:1`"), "{remedy}");
    }
}
