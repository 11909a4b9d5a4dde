//! A process that counts what a cell takes of a disk which nothing else bounds for it: a kept workspace, and without a
//! tmpfs all of the cell. It ends the run by what it says, and by its own end.
//!
//! It is a fork of the launcher that runs no byte of the agent's and has no copy of the credential. It has the lowest
//! priority, and rests twenty times as long as it counts, at most half a minute; in between it looks whether the file
//! system has lost more than the cell may still take, which costs one call.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::statfs::fstatfs;
use nix::unistd::{getpid, getppid, setsid};

use crate::cell::disk_use::{DiskUse, Most, Stopped, count};
use crate::fs::walk::open_dir;
use crate::sys::channel::Channel;
use crate::sys::process::{Fork, exit_now, fork_into};

/// How often it looks at the file system.
const TICK: Duration = Duration::from_millis(250);

/// The longest rest.
const LONGEST: Duration = Duration::from_secs(30);

/// How long it rests at least after a count, in lengths of that; and how long where nothing speaks for another.
const REST: [u32; 2] = [4, 20];

/// The launcher's end. When it is dropped, the other ends by itself.
#[derive(Debug)]
pub struct Counter {
    channel: Channel,
}

impl Counter {
    /// Starts one for these directories, which hold `charge` by now.
    ///
    /// # Errors
    /// The errno of what opens, pairs or forks.
    pub fn start(roots: &[BorrowedFd<'_>], most: Most, charge: DiskUse) -> Result<Counter, Errno> {
        // Open anew: a copy would keep the lock that the launcher has on a workspace.
        let opened = roots.iter().map(|root| open_dir(*root, ".".as_ref()));
        let roots: Vec<OwnedFd> = opened.collect::<Result<_, _>>()?;
        let (ours, theirs) = Channel::pair()?;
        let launcher = getpid();
        match fork_into(CloneFlags::empty())? {
            Fork::Parent(_) => Ok(Counter { channel: ours }),
            Fork::Child => {
                drop(ours);
                if prctl::set_pdeathsig(Signal::SIGKILL).is_err() || getppid() != launcher {
                    exit_now(1);
                }
                let _ = setsid();
                crate::sys::environ::rename(b"oubliette-counter");
                crate::sys::inherited::lowest_priority();
                let fds: Vec<BorrowedFd<'_>> = roots.iter().map(OwnedFd::as_fd).collect();
                let kept: Vec<BorrowedFd<'_>> = fds.iter().copied().chain([theirs.as_fd()]).collect();
                if crate::sys::fds::keep_only(&kept).is_err() {
                    exit_now(1);
                }
                if let Some(stopped) = watch(&fds, most, charge, &theirs) {
                    let _ = theirs.send(stopped.to_string().as_bytes(), None);
                }
                exit_now(0)
            }
        }
    }

    /// Readable when it has something to say, or has ended.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Why the run must end.
    pub fn hear(&self) -> String {
        match self.channel.receive() {
            Ok(Some(message)) => String::from_utf8_lossy(&message.bytes).into_owned(),
            Ok(None) | Err(_) => "an unknown amount: the process that counts it has ended".into(),
        }
    }
}

/// Counts again and again. Nothing when the launcher has no use for it any more.
fn watch(roots: &[BorrowedFd<'_>], most: Most, mut charge: DiskUse, launcher: &Channel) -> Option<Stopped> {
    let wanted = || !gone(launcher, Duration::ZERO);
    let mut spent = Duration::ZERO;
    loop {
        let left = most.bytes.saturating_sub(charge.bytes);
        let (counted, free) = (Instant::now(), free(roots));
        loop {
            if gone(launcher, TICK) {
                return None;
            }
            let rested = counted.elapsed();
            let fell = free.saturating_sub(self::free(roots)) > left;
            if rested >= (spent * REST[1]).clamp(TICK, LONGEST) || (fell && rested >= spent * REST[0]) {
                break;
            }
        }
        let began = Instant::now();
        match count(roots, most, &wanted) {
            Ok(now) => charge = now,
            Err(Stopped::Asked) => return None,
            Err(stopped) => return Some(stopped),
        }
        spent = began.elapsed();
    }
}

/// Whether the launcher has closed its end; waits for that.
fn gone(launcher: &Channel, wait: Duration) -> bool {
    let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
    !matches!(poll(&mut [PollFd::new(launcher.as_fd(), PollFlags::POLLIN)], timeout), Ok(0) | Err(Errno::EINTR))
}

/// Bytes that are free on the file systems of these directories, the fewest of any.
fn free(roots: &[BorrowedFd<'_>]) -> u64 {
    let free = |root: &BorrowedFd<'_>| {
        let status = fstatfs(root).ok()?;
        Some(status.blocks_free().saturating_mul(u64::try_from(status.block_size()).ok()?))
    };
    roots.iter().filter_map(free).min().unwrap_or(u64::MAX)
}
