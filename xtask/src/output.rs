//! What the runner prints. `println!` and `eprintln!` of this crate are the ones below: a closed pipe or a full disk behind stdout or stderr
//! must neither panic nor stop a run in the middle.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Prints a line for the user to stdout; what could not be printed is told by [`finish`].
macro_rules! println {
    () => { $crate::output::to_stdout(::std::format_args!("")) };
    ($($text:tt)*) => { $crate::output::to_stdout(::std::format_args!($($text)*)) };
}

/// Prints a line of progress or an error to stderr, if it can be written to.
macro_rules! eprintln {
    () => { $crate::output::to_stderr(::std::format_args!("")) };
    ($($text:tt)*) => { $crate::output::to_stderr(::std::format_args!($($text)*)) };
}

/// The first error of stdout. Nothing is written after it, so that no line is missing in between.
static FAILURE: Mutex<Option<io::Error>> = Mutex::new(None);
static MUST_ARRIVE: AtomicBool = AtomicBool::new(false);

pub(crate) fn to_stdout(line: Arguments<'_>) {
    let mut failure = FAILURE.lock().expect("printing does not panic");
    if failure.is_none() {
        *failure = writeln!(io::stdout(), "{line}").err();
    }
}

pub(crate) fn to_stderr(line: Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// From here on a reader that closes stdout early is an error too. A command that only shows something has nothing more to do then.
pub(crate) fn must_arrive() {
    MUST_ARRIVE.store(true, Ordering::Relaxed);
}

/// Whether all that was printed has arrived.
pub(crate) fn finish() -> io::Result<()> {
    let failure = FAILURE.lock().expect("printing does not panic").take();
    match failure.or_else(|| io::stdout().flush().err()) {
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe && !MUST_ARRIVE.load(Ordering::Relaxed) => Ok(()),
        Some(error) => Err(error),
        None => Ok(()),
    }
}
