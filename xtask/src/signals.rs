//! Signals that ask the runner to stop. The first one is noted: what waits asks [`check`] and returns, so that everything is cleaned up on the way
//! out. A second Ctrl-C ends the runner at once, and its stages with it (see `group`).

use std::sync::atomic::{AtomicI32, Ordering};

/// The signal that came first, or 0.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// The user or the system wants the runner to stop. What is kept is added on the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.sentence())]
pub(crate) struct Stopped {
    pub(crate) signal: i32,
    /// How many results of this pipeline are finished.
    pub(crate) finished: usize,
    /// The instance that has a checkpoint to go on from.
    pub(crate) checkpoint: Option<String>,
}

impl Stopped {
    /// The exit code by which a shell knows the signal.
    pub(crate) fn exit_code(&self) -> u8 {
        u8::try_from(128 + self.signal).unwrap_or(u8::MAX)
    }

    fn sentence(&self) -> String {
        let mut parts = match self.finished {
            0 => Vec::new(),
            1 => vec!["1 finished result is kept".to_owned()],
            count => vec![format!("{count} finished results are kept")],
        };
        parts.extend(self.checkpoint.iter().map(|name| format!("the checkpoint of `{name}` is kept")));
        match parts.is_empty() {
            true => "stopped: nothing was finished yet; the same command starts anew".into(),
            false => format!("stopped: {}; the same command goes on from there", parts.join("; ")),
        }
    }
}

/// Notes SIGINT, SIGTERM and SIGHUP from here on, but for those that whoever started the runner has it ignore (`nohup`, a background job).
#[cfg(unix)]
pub(crate) fn install() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: `sigaction` reads and fills plain structures, for which all zeros is a valid value; the handler only does what is safe in one.
        unsafe {
            let mut before: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &mut before) != 0 || before.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = note as extern "C" fn(libc::c_int) as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

/// Other systems end the runner at once.
#[cfg(not(unix))]
pub(crate) fn install() {}

#[cfg(unix)]
extern "C" fn note(signal: libc::c_int) {
    let is_second = SIGNAL.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed).is_err();
    if is_second && signal == libc::SIGINT {
        // SAFETY: `_exit` may be called from a handler.
        unsafe { libc::_exit(128 + signal) }
    }
}

/// Whether the runner was asked to stop.
pub(crate) fn stopped() -> bool {
    SIGNAL.load(Ordering::Relaxed) != 0
}

/// Fails once the runner was asked to stop.
pub(crate) fn check() -> Result<(), Stopped> {
    match SIGNAL.load(Ordering::Relaxed) {
        0 => Ok(()),
        signal => Err(Stopped { signal, finished: 0, checkpoint: None }),
    }
}

/// Says how many results are finished, if the error is that the runner was stopped.
pub(crate) fn with_finished(mut error: anyhow::Error, finished: usize) -> anyhow::Error {
    if let Some(stopped) = error.downcast_mut::<Stopped>() {
        stopped.finished = finished;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_says_what_is_kept() {
        let line = |finished, checkpoint: Option<&str>| Stopped { signal: 2, finished, checkpoint: checkpoint.map(Into::into) }.to_string();
        assert_eq!(line(0, None), "stopped: nothing was finished yet; the same command starts anew");
        assert_eq!(line(1, None), "stopped: 1 finished result is kept; the same command goes on from there");
        assert_eq!(
            line(5, Some("offline#1")),
            "stopped: 5 finished results are kept; the checkpoint of `offline#1` is kept; the same command goes on from there"
        );
        assert_eq!(line(0, Some("base#1")), "stopped: the checkpoint of `base#1` is kept; the same command goes on from there");
        assert_eq!(Stopped { signal: 15, finished: 0, checkpoint: None }.exit_code(), 143);
    }
}
