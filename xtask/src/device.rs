//! The device that the networks of a run compute on, as docs/contracts.md names it.

use std::fmt;
use std::str::FromStr;

/// The device where no other is given. It is in no key.
const CPU: &str = "cpu";

/// A device, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device(String);

impl Default for Device {
    fn default() -> Self {
        Self(CPU.into())
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        // One name for each: it enters keys.
        let is_gpu = name.strip_prefix("cuda:").is_some_and(|number| number.parse::<u16>().is_ok_and(|known| known.to_string() == number));
        match name {
            CPU | "cpu-composed" => Ok(Self(name.into())),
            _ if is_gpu => Ok(Self(name.into())),
            _ => Err("give `cpu`, `cpu-composed` or `cuda:N`, such as `cuda:0`".into()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Device {
    /// Its name, where it is not the CPU as usual.
    pub(crate) fn unusual(&self) -> Option<&str> {
        (self.0 != CPU).then_some(self.0.as_str())
    }

    /// The feature that the stage programs must be built with.
    pub(crate) fn feature(&self) -> Option<&'static str> {
        self.0.starts_with("cuda:").then_some("cuda")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_one_name() {
        let read = |name: &str| name.parse::<Device>();
        assert_eq!(read("cpu"), Ok(Device::default()));
        assert_eq!((read("cpu").unwrap().unusual(), read("cpu-composed").unwrap().unusual()), (None, Some("cpu-composed")));
        assert_eq!((read("cpu-composed").unwrap().feature(), read("cuda:12").unwrap().feature()), (None, Some("cuda")));
        for name in ["", "gpu", "CPU", "cuda", "cuda:", "cuda:00", "cuda:+1", "cuda:-1", "cuda:0 "] {
            assert!(read(name).is_err(), "`{name}`");
        }
    }
}
