//! A stage and whatever it starts, as one process group that ends with the runner, however the runner ends.
//!
//! The group's leader is a watcher: a shell that waits for the end of a pipe whose other end only the runner holds. The system closes it when the
//! runner dies, even by SIGKILL, and the watcher kills the group and itself with it. On Linux the stage itself asks for a signal at the runner's
//! death as well. Only a process that leaves its group on purpose (a daemon) gets away.

use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

/// `read` returns at the end of the pipe, which is the end of the runner.
#[cfg(unix)]
const WATCH: &str = "read -r line; kill -KILL 0";

/// A running stage. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Group {
    child: Option<Child>,
    #[cfg(unix)]
    watcher: Child,
    is_over: bool,
}

impl Group {
    /// Starts a command in a group of its own. The thread that calls this must live as long as the group: on Linux its end counts as the runner's.
    #[cfg(unix)]
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        use std::os::unix::process::CommandExt as _;

        let mut watch = Command::new("/bin/sh");
        watch.args(["-c", WATCH]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        // SAFETY: `signal` may be called between fork and exec. What is ignored there stays so: the group is told to stop, its watcher is not.
        unsafe {
            watch.pre_exec(|| {
                for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                    libc::signal(signal, libc::SIG_IGN);
                }
                Ok(())
            });
        }
        let watcher = watch.spawn().context("cannot start `/bin/sh`, which ends the stages when the runner ends")?;
        let leader = libc::pid_t::try_from(watcher.id()).context("a process id is too large")?;
        let mut group = Self { child: None, watcher, is_over: false };
        command.process_group(leader);
        die_with_this_process(command);
        let program = command.get_program().to_string_lossy().into_owned();
        group.child = Some(command.spawn().with_context(|| format!("cannot start `{program}`"))?);
        Ok(group)
    }

    /// Other systems have no groups: only the stage itself can be ended.
    #[cfg(not(unix))]
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start `{program}`"))?;
        Ok(Self { child: Some(child), is_over: false })
    }

    /// The process that was started.
    pub(crate) fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("a group is started with its child")
    }

    /// Asks all processes of the group to end.
    pub(crate) fn ask_to_end(&mut self) {
        #[cfg(unix)]
        self.signal(libc::SIGTERM);
        #[cfg(not(unix))]
        self.kill();
    }

    /// Kills what is left of the group.
    pub(crate) fn kill(&mut self) {
        if self.is_over {
            return;
        }
        #[cfg(unix)]
        self.signal(libc::SIGKILL);
        self.is_over = true;
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Until here the leader was not waited for, so that no other group could get its number.
        #[cfg(unix)]
        let _ = self.watcher.wait();
    }

    #[cfg(unix)]
    fn signal(&self, signal: libc::c_int) {
        if !self.is_over {
            let leader = libc::pid_t::try_from(self.watcher.id()).expect("checked at the start");
            // SAFETY: sends a signal to the group that this process has made.
            unsafe { libc::kill(-leader, signal) };
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The system kills the command when the thread that starts it ends.
#[cfg(target_os = "linux")]
fn die_with_this_process(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;

    let runner = libc::pid_t::try_from(std::process::id()).unwrap_or(0);
    // SAFETY: `prctl` and `getppid` may be called between fork and exec.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // The runner may have died before it was asked for.
            if libc::getppid() != runner { Err(std::io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(()) }
        });
    }
}

/// The watcher alone does it there.
#[cfg(all(unix, not(target_os = "linux")))]
fn die_with_this_process(_command: &mut Command) {}
