//! Ends every process of a UID. What is to be ended may be hostile: it stops or kills whoever it may signal.
//!
//! The kernel lets a process signal another one where its real or effective UID is the other's real or saved one
//! (kill(2)). So the killer has the run's UID as its effective one alone: it reaches every process of the run, and none
//! of them reaches it. Its real and saved UID is a spare one that no process has.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, Uid, pipe2};

use crate::sys::ids::become_killer;
use crate::sys::ids::gid_of;
use crate::sys::ids::{Ids, become_run};
use crate::sys::proc::Status;
use crate::sys::process::{Fork, effective_capabilities, exit_now, fork_into, pidfd, pidfd_kill};

/// UIDs below this are the system's.
const FIRST: u32 = 1000;

/// From here on UIDs are nobody's: too many programs take them for negative numbers, so that no system assigns them
/// (systemd's "Users, Groups, UIDs and GIDs").
const NOBODYS: u32 = 1 << 31;

/// How long it goes on in all.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a process that does one step may take. One that has the run's UID may have been stopped.
const STEP: Duration = Duration::from_millis(250);

/// Ends every process of a UID. Gives whether none is left. Never those of the system or of the caller, whatever a file
/// says that names them: no run has such a UID, and `kill(-1)` would end the host.
pub fn kill_all(uid: u32) -> bool {
    if uid < FIRST || uid == nix::unistd::geteuid().as_raw() {
        return true;
    }
    let ids = Ids { uid: Uid::from_raw(uid), gid: gid_of(uid) };
    let until = Instant::now() + PATIENCE;
    for round in 0.. {
        // First, since nearly always nothing is left. A survivor that stops or kills it has said that it is there.
        if step(|| become_run(ids).is_ok() && is_alone()) {
            return true;
        }
        if Instant::now() > until {
            break;
        }
        let spared = step(|| kill_spared(ids));
        // No spare UID in this user namespace, or no right to it: then by number from here, where no UID is changed.
        if !spared || round > 0 {
            step(|| become_run(ids).is_ok() && kill_own());
            kill_each(uid);
        }
        if round > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    false
}

/// Does something in a process of its own. Gives whether it came to a good end in time.
fn step(work: impl FnOnce() -> bool) -> bool {
    // The end of the process closes its end: a wait with a bound, without SIGCHLD and without a pidfd.
    let Ok((read, write)) = pipe2(OFlag::O_CLOEXEC) else { return false };
    let child = match fork_into(CloneFlags::empty()) {
        Ok(Fork::Child) => {
            drop(read);
            exit_now(i32::from(!work()));
        }
        Ok(Fork::Parent(child)) => child,
        Err(_) => return false,
    };
    drop(write);
    let until = Instant::now() + STEP;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(read.as_fd(), PollFlags::POLLIN)], wait) {
            Err(Errno::EINTR) if !left.is_zero() => {}
            Ok(0) | Err(_) => {
                let _ = kill(child, Signal::SIGKILL);
                break;
            }
            Ok(_) => break,
        }
    }
    // Without a bound: it is about to exit, or has a KILL that nothing takes back. Orphans of the agent that come to us are
    // reaped here, too: a dead process counts until then.
    loop {
        match waitpid(None, None) {
            Ok(status) if status.pid() == Some(child) => return matches!(status, WaitStatus::Exited(_, 0)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// With a real UID that nobody has. With a capability left `kill(-1)` would end the host.
fn kill_spared(ids: Ids) -> bool {
    ids.uid.as_raw() < NOBODYS
        && become_killer(ids, Uid::from_raw(ids.uid.as_raw() | NOBODYS)).is_ok()
        && effective_capabilities() == 0
        && kill_own()
}

/// `kill(-1)` reaches what this UID may signal, without itself and init. A process that has a KILL cannot fork any more
/// (fork(2) starts again first), so that none gets away. Its answer tells nothing: with other users' processes about it
/// is 0 even when none could be signalled.
fn kill_own() -> bool {
    for _ in 0..3 {
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    }
    true
}

/// Whether no other process has this real UID: a limit of two processes leaves room for one fork. It needs neither /proc
/// nor pidfds, which gVisor lacks. Nobody but this process can make it say so: it may be ended, not written to.
fn is_alone() -> bool {
    if setrlimit(Resource::RLIMIT_NPROC, 2, 2).is_err() {
        return false;
    }
    match fork_into(CloneFlags::empty()) {
        Ok(Fork::Child) => exit_now(0),
        // Its parent waits no longer than a step.
        Ok(Fork::Parent(child)) => waitpid(child, None).is_ok(),
        Err(_) => false,
    }
}

/// By number, from this process, whose UID no target may signal. One that forks faster than /proc is read gets away, and is
/// found again.
fn kill_each(uid: u32) {
    let Ok(entries) = std::fs::read_dir("/proc") else { return };
    for entry in entries {
        // An end of the list that comes too early is no harm: whether none is left is seen elsewhere.
        let Ok(entry) = entry else { return };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw) else {
            continue;
        };
        // Opened first, looked at then: the number may be somebody else's meanwhile.
        let held = pidfd(pid);
        if pid.as_raw() > 1 && Status::of(pid).is_some_and(|status| status.alive && status.uid == uid) {
            let _ = match &held {
                Ok(held) => pidfd_kill(held.as_fd(), Signal::SIGKILL as i32),
                Err(Errno::ESRCH) => Ok(()),
                Err(_) => kill(pid, Signal::SIGKILL),
            };
        }
    }
}
