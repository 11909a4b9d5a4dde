//! Isolation in time, where there is none in space: one cell of a UID at a time.
//!
//! The lock is an abstract Unix socket that launcher and keeper hold and the agent never gets. It is no file, so nothing
//! that an agent does to files takes it away, and the kernel frees it with the last of the two. Its name can be bound by
//! anybody in the same network namespace while it is free: that delays or refuses runs, and lets no two of them meet.
//!
//! An agent that is nobody's equal but its launcher's may kill launcher and keeper and outlive both. So each process of
//! such a cell carries a mark that no process without rights gets rid of: a hard limit, which fork(2) and execve(2)
//! keep and which can only be lowered. Whoever has taken the lock ends every process with the mark before it starts.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket,
};
use nix::unistd::{Pid, Uid, geteuid};

use crate::cell::state::State;
use crate::cell::sweep::{end_until_none, sweep};
use crate::sys::proc::Status;
use crate::sys::process::hard_limit;
use crate::sys::signals::Signals;
use crate::types::error::{Error, Result};

/// The right to have the only cell of a UID. Given back when the last process that holds it has closed it.
#[derive(Debug)]
pub struct Alone {
    socket: OwnedFd,
}

/// Who has the lock.
enum Taken {
    /// A launcher, or its keeper: the connection ends when they do.
    Held(OwnedFd),
    /// Somebody who does not listen, or whom an agent has left.
    Squatted,
    /// Another user's process.
    Foreign(u32),
}

/// How long somebody who is no launcher is waited for at a time.
const A_MOMENT: Duration = Duration::from_millis(5);

/// How long a launcher may need between binding and listening.
const STARTING: Duration = Duration::from_secs(1);

impl Alone {
    /// Takes the lock of a UID, and ends and wipes what the last one to have it has left. `tell` says to people why it takes
    /// so long, the first time.
    ///
    /// # Errors
    /// Somebody else has it for longer than the caller waits, the launcher is told to end, or what is left does not end.
    pub fn take(
        state: &State,
        uid: Uid,
        wait: Option<Duration>,
        signals: &Signals,
        tell: &dyn Fn(&'static str),
    ) -> Result<Alone> {
        let start = Instant::now();
        let wait = wait.unwrap_or_default();
        let mut cleaned = false;
        let socket = loop {
            let taken = match try_take(uid) {
                Ok(Ok(socket)) => break socket,
                Ok(Err(taken)) => taken,
                Err(errno) => {
                    return Err(Error::new(format!("take the lock of UID {uid}"), errno)
                        .hint("allow Unix sockets to the launcher, or switch layer alone off"));
                }
            };
            if let Some(signal) = signals.asked_to_end() {
                return Err(Error::new(
                    "wait for another cell to end",
                    format!("the launcher was told to end by {signal}"),
                )
                .hint("nothing of it is left; start it again"));
            }
            let waited = start.elapsed();
            let patience = if matches!(taken, Taken::Squatted) { wait.max(STARTING * 2) } else { wait };
            if waited >= patience {
                return Err(refused(uid, &taken));
            }
            if matches!(taken, Taken::Squatted) && waited >= STARTING && !std::mem::replace(&mut cleaned, true) {
                // No launcher has it, so no live cell has a process with the mark.
                end_marked(uid);
            }
            if !matches!(taken, Taken::Squatted) {
                tell("waiting for another cell, since nothing would separate it from this one");
            }
            taken.wait(signals, patience - waited);
        };
        let alone = Alone { socket };
        alone.clean(state, uid).map(|()| alone)
    }

    /// What the last one has left ends before the next one starts.
    fn clean(&self, state: &State, uid: Uid) -> Result<()> {
        let object = format!("end what the last cell of UID {uid} has left");
        if !end_marked(uid) {
            return Err(Error::new(object, "its processes do not end").hint("end them as root"));
        }
        match sweep(state, false)?.left.first() {
            None => Ok(()),
            Some(left) => Err(Error::new(object, format!("{}: {}", left.name, left.why))
                .hint("remove it by hand; `oubliette sweep` says what is left")),
        }
    }
}

impl AsFd for Alone {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Taken {
    /// Until the holder is gone, a signal comes, or the time is over.
    fn wait(&self, signals: &Signals, left: Duration) {
        let Taken::Held(connection) = self else { return std::thread::sleep(A_MOMENT) };
        let mut fds =
            [PollFd::new(connection.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
    }
}

fn refused(uid: Uid, taken: &Taken) -> Error {
    let object = format!("start a cell of UID {uid} now");
    match taken {
        Taken::Held(_) => Error::new(object, "another one is alive, and nothing would separate the two").hint(
            "try again when it has ended, or wait for it with --wait 30s; `oubliette explain` says what is missing",
        ),
        Taken::Squatted => Error::new(object, "a process that is no launcher has taken the name of the lock")
            .hint("end it; it has an abstract Unix socket oubliette-alone-UID"),
        Taken::Foreign(other) => Error::new(object, format!("UID {other} has taken the name of the lock"))
            .hint("end that process as root; it has an abstract Unix socket oubliette-alone-UID"),
    }
}

/// The name belongs to the network namespace, and ends with it.
fn try_take(uid: Uid) -> Result<Result<OwnedFd, Taken>, Errno> {
    let name = UnixAddr::new_abstract(format!("oubliette-alone-{uid}").as_bytes())?;
    let fresh =
        || socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None);
    let ours = fresh()?;
    match bind(ours.as_raw_fd(), &name) {
        Ok(()) => {
            // Whoever waits connects, and is never answered: the end of the connection is the answer.
            listen(&ours, Backlog::MAXCONN)?;
            return Ok(Ok(ours));
        }
        Err(Errno::EADDRINUSE) => {}
        Err(errno) => return Err(errno),
    }
    let theirs = fresh()?;
    Ok(Err(match connect(theirs.as_raw_fd(), &name) {
        Ok(()) => match getsockopt(&theirs, PeerCredentials) {
            Ok(peer) if ![0, uid.as_raw(), geteuid().as_raw()].contains(&peer.uid()) => Taken::Foreign(peer.uid()),
            Ok(peer) if is_marked(Pid::from_raw(peer.pid())) => Taken::Squatted,
            _ => Taken::Held(theirs),
        },
        // It has ended meanwhile, or does not listen. EAGAIN: too many wait already.
        _ => Taken::Squatted,
    }))
}

/// The highest value of the mark. High enough that nobody who asks how much he may use takes it for little.
const MARK: u64 = 0x6f75_626c_6965_7474;

/// A limit that no kernel has counted since 2.4 (getrlimit(2)); gVisor lets nobody set that, but one that is as dead.
fn resource() -> Resource {
    let settable = |resource| getrlimit(resource).and_then(|(soft, hard)| setrlimit(resource, soft, hard));
    if settable(Resource::RLIMIT_LOCKS).is_ok() { Resource::RLIMIT_LOCKS } else { Resource::RLIMIT_RSS }
}

/// The mark of this launcher's cells. Below its own, where it is itself in such a cell.
fn mark(resource: Resource) -> Result<u64, Errno> {
    let (_, own) = getrlimit(resource)?;
    own.checked_sub(1).map(|below| below.min(MARK)).ok_or(Errno::EPERM)
}

/// Marks this process, and so all that descend from it.
///
/// # Errors
/// The errno of setrlimit(2).
pub fn mark_self() -> Result<(), Errno> {
    let resource = resource();
    let mark = mark(resource)?;
    setrlimit(resource, mark, mark)
}

fn is_marked(pid: Pid) -> bool {
    let resource = resource();
    mark(resource).is_ok_and(|mark| hard_limit(pid, resource).is_ok_and(|hard| hard <= mark))
}

/// Ends every process of a UID that carries the mark. Gives whether none is left.
pub fn end_marked(uid: Uid) -> bool {
    end_until_none(|| marked(uid))
}

/// Processes of a UID with the mark, alive.
pub fn marked(uid: Uid) -> Vec<Pid> {
    let resource = resource();
    let Ok(mark) = mark(resource) else { return Vec::new() };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid::from_raw);
    let limited = pids.filter(|pid| hard_limit(*pid, resource).is_ok_and(|hard| hard <= mark));
    limited.filter(|pid| lives_as(*pid, uid)).collect()
}

/// Whether a process is alive, has this real UID, cannot gain privileges (a service whose operator lowered the limit need
/// not be one of ours, and each of ours has no_new_privs, which also stays), and is in this PID namespace: a container's
/// launcher has a lock that is not seen here (proc(5)). The owner of its directory would say of one that is not dumpable
/// that it is root's.
fn lives_as(pid: Pid, uid: Uid) -> bool {
    let status = Status::of(pid);
    status.is_some_and(|s| s.alive && !s.nested && s.gains != Some(true) && s.uid == uid.as_raw())
}

/// Ends what carries the mark where no live cell has it, for `sweep`.
pub fn sweep_marked(uid: Uid) {
    if !marked(uid).is_empty()
        && let Ok(Ok(_lock)) = try_take(uid)
    {
        end_marked(uid);
    }
}
