//! Whether what a file asks for fits into memory, before it is asked of the system.

use dcu_stage::Failure;

/// Refuses what does not fit into the memory that is left. `bytes` is none where a product of sizes has overflowed.
///
/// # Errors
/// Says how much `what` needs and how much there is, with `remedy`.
pub fn room_for(bytes: Option<usize>, what: &str, remedy: &str) -> Result<(), Failure> {
    refuse(bytes, available(), what, remedy)
}

fn refuse(bytes: Option<usize>, available: Option<usize>, what: &str, remedy: &str) -> Result<(), Failure> {
    let message = match (bytes, available) {
        (None, _) => format!("{what} would need more bytes than can be counted"),
        (Some(bytes), Some(available)) if bytes > available => {
            format!("{what} would need {} of memory, but {} are left", readable(bytes), readable(available))
        }
        _ => return Ok(()),
    };
    Err(Failure::new(message, remedy))
}

/// Bytes as a person reads them.
fn readable(bytes: usize) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes < 1024.0 { format!("{mebibytes:.0} MiB") } else { format!("{:.1} GiB", mebibytes / 1024.0) }
}

/// The memory that this process can still get, by the system and by its control group, where they tell.
fn available() -> Option<usize> {
    let system = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
    });
    let number = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<usize>().ok();
    // What is cached of files counts as used, but is given up first.
    let cached = std::fs::read_to_string("/sys/fs/cgroup/memory.stat")
        .ok()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("inactive_file "))?.trim().parse::<usize>().ok());
    let group = number("memory.max")
        .zip(number("memory.current"))
        .map(|(most, used)| most.saturating_sub(used.saturating_sub(cached.unwrap_or(0))));
    system.into_iter().chain(group).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_in_readable_numbers() {
        let error = refuse(Some(5 << 30), Some(3 << 20), "x", "y").unwrap_err();
        assert_eq!(error.message, "x would need 5.0 GiB of memory, but 3 MiB are left");
        assert!(refuse(None, None, "x", "y").unwrap_err().message.contains("more bytes than can be counted"));
        assert!(refuse(Some(5), None, "x", "y").is_ok() && refuse(Some(5), Some(5), "x", "y").is_ok());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn linux_tells_what_is_left() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
