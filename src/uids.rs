//! Leases of UIDs: each run of root's has one that no other live run has.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sched::CloneFlags;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, fstat};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, Uid, UnlinkatFlags, unlinkat};

use crate::cell::gid_of;
use crate::confine::ids::{Ids, become_run};
use crate::error::{Error, Result};
use crate::request::UidRange;
use crate::state::State;
use crate::sys::process::{Fork, exit_now, fork_into};

/// A UID that is this run's alone. When dropped without [`Lease::release`] it stays marked, and `sweep` frees it.
#[derive(Debug)]
pub struct Lease {
    /// The UID.
    pub uid: Uid,
    leases: OwnedFd,
    _lock: Flock<OwnedFd>,
}

/// The last quarter of a range is bound to user workspaces, which outlive a run.
pub fn split(range: UidRange) -> (UidRange, UidRange) {
    let count = range.last - range.first + 1;
    let middle = range.first + count - count / 4;
    (UidRange { first: range.first, last: middle - 1 }, UidRange { first: middle, last: range.last })
}

impl Lease {
    /// Takes a UID that nobody has.
    ///
    /// # Errors
    /// All are taken, or the leases cannot be written.
    pub fn take(state: &State, range: UidRange) -> Result<Lease> {
        let leases = state.leases()?;
        let (range, _) = split(range);
        let count = range.last - range.first + 1;
        let start = rand::random_range(0..count);
        for step in 0..count {
            let uid = range.first + (start + step) % count;
            match try_take(&leases, uid) {
                Ok(Some(lock)) => return Ok(Lease { uid: Uid::from_raw(uid), leases, _lock: lock }),
                Ok(None) => {}
                Err(errno) => {
                    return Err(Error::new(format!("lease UID {uid}"), errno).hint("make the state directory writable"));
                }
            }
        }
        Err(Error::new(
            "lease a UID",
            format!("all {count} of {}-{} are taken by live cells or wait for a sweep", range.first, range.last),
        )
        .hint("run `oubliette sweep`, wait for a run to end, or name a larger range with --uid-range"))
    }

    /// Takes this UID: that of a user's workspace, whose lock the run holds.
    ///
    /// # Errors
    /// A live run has it, or the leases cannot be written.
    pub fn exact(state: &State, uid: Uid) -> Result<Lease> {
        let leases = state.leases()?;
        let failed = |cause: &str| {
            Error::new(format!("lease UID {uid}"), cause)
                .hint("run `oubliette sweep`, or wait for the other run to end")
        };
        match try_take(&leases, uid.as_raw()) {
            Ok(Some(lock)) => Ok(Lease { uid, leases, _lock: lock }),
            Ok(None) => Err(failed("a live run has it, or what a dead one left does not end")),
            Err(errno) => Err(failed(errno.desc())),
        }
    }

    /// The IDs.
    pub fn ids(&self) -> Ids {
        Ids { uid: self.uid, gid: gid_of(self.uid.as_raw()) }
    }

    /// Gives the UID back. Comes after nothing runs under it any more.
    pub fn release(self) {
        let _ = unlinkat(&self.leases, self.uid.to_string().as_str(), UnlinkatFlags::NoRemoveDir);
    }
}

/// The lock of a UID; nothing when a live run has it.
fn try_take(leases: &OwnedFd, uid: u32) -> Result<Option<Flock<OwnedFd>>, Errno> {
    let name = uid.to_string();
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    loop {
        let new = openat(leases, name.as_str(), flags | OFlag::O_CREAT | OFlag::O_EXCL, Mode::S_IRUSR | Mode::S_IWUSR);
        let (file, fresh) = match new {
            Ok(file) => (file, true),
            Err(Errno::EEXIST) => match openat(leases, name.as_str(), flags, Mode::empty()) {
                Ok(file) => (file, false),
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(errno),
            },
            Err(errno) => return Err(errno),
        };
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(errno),
        };
        // Released between our open and our lock: the name may already be another file's.
        if fstat(&*lock).is_ok_and(|stat| stat.st_nlink == 0) {
            continue;
        }
        // A run that was killed left it: what it left running would be the next one's equal.
        return Ok((fresh || kill_all(uid)).then_some(lock));
    }
}

/// Ends what a dead run has left under its UID. A live run that has the UID by now has seen to that itself, before it
/// took it, and is not touched. Gives whether nothing of the dead one is left.
pub fn kill_dead(state: &State, uid: u32) -> bool {
    let Ok(leases) = state.leases() else { return false };
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_CREAT;
    let Ok(file) = openat(&leases, uid.to_string().as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR) else {
        return false;
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(_held) => kill_all(uid),
        Err((_, errno)) => errno == Errno::EWOULDBLOCK,
    }
}

/// UIDs below this are the system's. `kill(-1)` under one of them would end the host.
const FIRST: u32 = 1000;

/// Ends every process of a UID. Gives whether none is left.
pub fn kill_all(uid: u32) -> bool {
    if uid < FIRST {
        return false;
    }
    let ids = Ids { uid: Uid::from_raw(uid), gid: gid_of(uid) };
    match fork_into(CloneFlags::empty()) {
        Ok(Fork::Child) => {
            let gone = become_run(ids).is_ok() && kill_own();
            exit_now(i32::from(!gone));
        }
        // Orphans of the agent that come to us are reaped here, too: a dead process counts until then.
        Ok(Fork::Parent(child)) => loop {
            match waitpid(None, None) {
                Ok(status) if status.pid() == Some(child) => return matches!(status, WaitStatus::Exited(_, 0)),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        },
        Err(_) => false,
    }
}

/// `kill(-1)` reaches what this UID may signal, without itself and init, and no process can fork away from it for ever.
/// Its answer tells nothing: with other users' processes about it is 0 even when none could be signalled. Whether one
/// is left a limit of two processes tells, which leaves room for one fork. Neither needs /proc or pidfds, which gVisor
/// lacks.
fn kill_own() -> bool {
    if setrlimit(Resource::RLIMIT_NPROC, 2, 2).is_err() {
        return false;
    }
    for _ in 0..2000 {
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        match fork_into(CloneFlags::empty()) {
            Ok(Fork::Child) => exit_now(0),
            Ok(Fork::Parent(child)) => return waitpid(child, None).is_ok(),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    false
}

/// Frees what killed runs left marked; gives the UIDs that are free again, and those that are not.
///
/// # Errors
/// The leases cannot be read.
pub fn sweep(state: &State, dry_run: bool) -> Result<(Vec<u32>, Vec<u32>)> {
    let leases = state.leases()?;
    let failed = |errno: Errno| Error::new("read the UID leases", errno).hint("run it as root");
    let (mut freed, mut stuck) = (Vec::new(), Vec::new());
    for entry in crate::tree::entries(leases.as_fd()).map_err(failed)?.iter().flatten() {
        let Some(uid) = entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if dry_run {
            continue;
        }
        match try_take(&leases, uid) {
            Ok(Some(lock)) => {
                Lease {
                    uid: Uid::from_raw(uid),
                    leases: leases.try_clone().map_err(|e| Error::new("read the UID leases", e))?,
                    _lock: lock,
                }
                .release();
                freed.push(uid);
            }
            Ok(None) => stuck.push(uid),
            Err(_) => {}
        }
    }
    Ok((freed, stuck))
}
