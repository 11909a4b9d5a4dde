//! What fork(2) and execve(2) hand on from the launcher's caller to the agent beside IDs, descriptors and environment:
//! it is set, or it may stay, and here is why. A service may run with `Nice=-10`, `OOMScoreAdjust=-1000` or under
//! `setarch -R`, and means itself by that.
//!
//! | inherited | what becomes of it |
//! |---|---|
//! | session, process group, controlling terminal, autogroup | new: setsid(2) ([`super::session`], [`super::init`]) |
//! | real, effective, saved and file system IDs, groups | set ([`super::ids`]) |
//! | capability sets, securebits | all sets are empty, also where securebits keep them across a change of UID |
//! | no_new_privs, seccomp filters, a Landlock domain | only more of them |
//! | dumpable, death signal | set; exec(2) makes the agent dumpable to its own UID |
//! | working directory, root, umask | set |
//! | descriptors, and with them flock(2), leases and F_SETOWN | closed |
//! | resource limits | set, or at most the caller's ([`super::limits`]); a deadline in CPU time stays his |
//! | blocked and ignored signals | none |
//! | pending signals, POSIX locks, itimers, semadj, memory locks | fork(2) hands none on |
//! | itimers of the launcher itself | alarm(2) before exec ends the run as a signal does ([`crate::run::supervise`]) |
//! | oom_score_adj | at least [`crate::plan::OOM_SCORE_ADJ`] ([`OomOrder`]) |
//! | scheduling policy, nice value | at most normal; lower is the caller's word |
//! | I/O class and level | at most normal; idle stays |
//! | timer slack | the kernel's 50 µs |
//! | personality | no flag |
//! | PR_SET_MEMORY_MERGE | off: merged pages tell of a neighbour's |
//! | PR_SET_IO_FLUSHER | off, where the launcher may |
//! | session keyring | refused by the filter; without one a keyring of its own |
//! | CPU affinity, cpuset, memory policy, THP, MDWE, TSC and CPUID faults | stay: they only take away |
//! | uclamp, speculation control, core scheduling cookie, MCE policy | stay: speed and side channels, which no cell bounds |
//! | coredump_filter | no core file is written |
//! | other control groups, audit's login UID, LSM label, perf counters | stay: the host's book of whose work this is |
//! | time namespace, PID namespace for children | stay: the caller's host is the launcher's |
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::prctl;

use crate::confine::failure::Failure;
use crate::host::Step;
use crate::plan::OOM_SCORE_ADJ;
use crate::sys::inherited;

/// The default of the kernel, in nanoseconds (PR_SET_TIMERSLACK(2const)).
const TIMER_SLACK: u64 = 50_000;

/// Of the launcher itself, and so of keeper, broker and agent: their exec(2) has the addresses that the kernel picks.
///
/// # Errors
/// The errno of personality(2).
pub fn leave_in_launcher() -> Result<(), Errno> {
    inherited::unmerged_memory();
    inherited::plain_personality()
}

/// Of the agent. Comes before it enters a control group, which may take no real-time process, and before capabilities go.
///
/// # Errors
/// What could not be put back.
pub fn leave() -> Result<(), Failure> {
    let failed = |action: &'static str| move |errno: Errno| Failure::plain(errno, action);
    inherited::at_most_normal_cpu().map_err(failed("give the agent a normal scheduling policy"))?;
    inherited::at_most_normal_io().map_err(failed("give the agent a normal I/O class"))?;
    inherited::no_io_flusher().map_err(failed("clear the agent's IO_FLUSHER state"))?;
    // gVisor has none.
    match prctl::get_timerslack() {
        Ok(slack) if u64::try_from(slack) != Ok(TIMER_SLACK) => {
            prctl::set_timerslack(TIMER_SLACK).map_err(failed("give the agent a normal timer slack"))
        }
        _ => Ok(()),
    }
}

/// The launcher's own oom_score_adj. A child has it from its parent, and where the launcher may not be dumped, and so is
/// root's in /proc, a plain user cannot write it any more: so it is opened before, and raised while the cell is cloned.
#[derive(Debug)]
pub struct OomOrder {
    file: Result<File, Errno>,
}

impl OomOrder {
    /// Comes before the launcher is made non-dumpable.
    pub fn open() -> OomOrder {
        let opened = File::options().read(true).write(true).open("/proc/self/oom_score_adj");
        OomOrder { file: opened.map_err(|error| errno(&error)) }
    }

    /// What is cloned now is killed first. Gives what restores the launcher's own.
    ///
    /// # Errors
    /// The file could not be opened, or cannot be written: EROFS, EACCES.
    pub fn raise(&self) -> Result<Raised<'_>, Failure> {
        let failed = |errno| Failure::at(Step::OomOrder, errno, "put the agent first in the order of the OOM killer");
        let file = self.file.as_ref().map_err(|errno| failed(*errno))?;
        let mut text = [0; 8];
        let length = file.read_at(&mut text, 0).map_err(|error| failed(errno(&error)))?;
        let own = std::str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().parse().ok());
        let own: i16 = own.ok_or_else(|| failed(Errno::EINVAL))?;
        if own < OOM_SCORE_ADJ {
            write(file, OOM_SCORE_ADJ).map_err(failed)?;
        }
        Ok(Raised { file, own })
    }
}

/// The launcher, and whatever it clones, is killed first until this is dropped.
#[derive(Debug)]
pub struct Raised<'a> {
    file: &'a File,
    own: i16,
}

impl Raised<'_> {
    /// In the keeper, after it has cloned in its turn: what is open is the launcher's file, and the keeper's own opens to
    /// root alone.
    pub fn restore_in_keeper(&self) {
        if self.own < OOM_SCORE_ADJ
            && let Ok(file) = File::options().write(true).open("/proc/self/oom_score_adj")
        {
            let _ = write(&file, self.own);
        }
    }
}

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        if self.own < OOM_SCORE_ADJ {
            // The kernel lets everybody go back to what a privileged process gave him last.
            let _ = write(self.file, self.own);
        }
    }
}

fn write(file: &File, value: i16) -> Result<(), Errno> {
    file.write_all_at(value.to_string().as_bytes(), 0).map_err(|error| errno(&error))
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
