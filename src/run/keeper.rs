//! The keeper: a process between launcher and agent where no PID namespace ends the cell with its launcher. It shares
//! the launcher's locks, so the cell stays alive while it lives, and does what the launcher cannot after its own
//! `kill -9`: it ends every process of the cell and wipes it.
//!
//! It is a fork of the launcher that runs no byte of the agent's and keeps the launcher's UID and rights, since it must
//! kill by UID and remove files of another's. It has no copy of the credential (that memory is not copied by fork), no
//! descriptor but the cell's locks and its channel, and a session of its own, so that neither a key nor a signal to the
//! launcher's process group reaches it. Orphans of the agent become its children.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, Uid, getpid, setsid};

use crate::cell::Cell;
use crate::cell::alone::end_marked;
use crate::cell::sweep::end_inside;
use crate::cell::uids::{self, Lease};
use crate::confine::failure::Failure;
use crate::confine::ids::{fork_mappable, map_child};
use crate::confine::{Confinement, init};
use crate::fs::wipe::{Left, Wiped};
use crate::host::Step;
use crate::run::supervise::end_orphans;
use crate::sys::channel::Channel;
use crate::sys::process::{Fork, exit_now, fork_into};

/// The IDs of its child are mapped, or not: the first of its messages, where there is something to map.
const MAPPED: u8 = b'M';

/// The agent, or init, has ended.
const ENDED: u8 = b'X';

/// Every process that it left is dead, or does not end.
const DEAD: u8 = b'E';

/// How long the keeper may take to end everything. Longer than it ever tries: one that was stopped answers nothing.
const PATIENCE: Duration = Duration::from_secs(15);

/// The launcher's side.
#[derive(Debug)]
pub struct Keeper {
    pid: Pid,
    channel: Channel,
}

impl Keeper {
    /// The keeper of this number, at the other end of this channel.
    pub fn new(pid: Pid, channel: Channel) -> Keeper {
        Keeper { pid, channel }
    }

    /// Sends its child a signal. The keeper does it: a number is only sure for whoever waits for the process.
    pub fn pass_on(&self, signal: Signal) {
        let _ = self.channel.send(&[b'k', signal as u8], None);
    }

    /// Waits until the IDs of its child are mapped.
    ///
    /// # Errors
    /// The errno of writing the map.
    pub fn has_mapped(&self) -> Result<(), Errno> {
        match self.channel.receive()?.map(|message| message.bytes).as_deref() {
            Some(&[MAPPED, a, b, c, d]) => match i32::from_le_bytes([a, b, c, d]) {
                0 => Ok(()),
                errno => Err(Errno::from_raw(errno)),
            },
            // It is dead, and so is its child.
            _ => Ok(()),
        }
    }

    /// How its child has ended, where the next message says that.
    pub fn hear(&self) -> Option<init::Ended> {
        match self.channel.receive().ok()??.bytes[..] {
            [ENDED, how, number] => Some((how, number)),
            _ => None,
        }
    }

    /// Waits until it has ended every process of the cell, and gives whether none is left. Nothing when it died itself
    /// or answers nothing: then it is the launcher's to do.
    pub fn has_ended_all(&self) -> Option<bool> {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now())).ok()?;
            match poll(&mut [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)], left) {
                Err(Errno::EINTR) => continue,
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
            match self.channel.receive().ok()??.bytes[..] {
                [DEAD, none_left] => return Some(none_left != 0),
                _ => continue,
            }
        }
    }

    /// Ends it: the launcher has nothing left that it could finish. What the agent used is counted to the launcher then.
    pub fn dismiss(self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        while waitpid(self.pid, None) == Err(Errno::EINTR) {}
    }
}

impl AsFd for Keeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// What the keeper looks after.
#[derive(Debug)]
pub struct Charge<'a> {
    /// The cell.
    pub cell: Cell,
    /// Its UID, where it has one of its own.
    pub lease: Option<Lease>,
    /// The UID of which this is the only cell, where it is that.
    pub alone: Option<Uid>,
    /// Its control groups, which the launcher makes.
    pub cgroups: Vec<PathBuf>,
    /// What else the run holds until nothing is left of it.
    pub held: Vec<BorrowedFd<'a>>,
    /// Whom it looks after.
    pub ward: Ward,
}

/// The keeper's child, and what it has to do with it.
#[derive(Debug)]
pub struct Ward {
    /// The keeper's end of the channel to the launcher.
    channel: Channel,
    /// Nothing where it could not be cloned.
    child: Option<Pid>,
    /// Orphans of it come to the keeper. Under gVisor they do not.
    adopts: bool,
}

/// Makes this process, a fork of the launcher, the keeper, and clones its child.
pub fn start(mut confinement: Confinement<'_>, namespaces: CloneFlags, channel: Channel) -> Ward {
    let _ = setsid();
    let adopts = prctl::set_child_subreaper(true).is_ok();
    confinement.keeper = Some(getpid());
    let (launcher, agent) = (confinement.launcher, confinement.agent);
    let maps = confinement.plan.mapped_outside;
    let fork = if maps { fork_mappable } else { fork_into };
    let child = match fork(namespaces) {
        Ok(Fork::Child) => {
            drop(channel);
            confinement.start()
        }
        Ok(Fork::Parent(child)) => Some(child),
        Err(errno) => {
            let failure = Failure::at(Step::Clone, errno, "clone into new namespaces");
            let _ = confinement.channel.send(&failure.to_bytes(), None);
            None
        }
    };
    if maps {
        let mapped = child.map_or(Ok(()), |child| map_child(child, launcher, agent));
        let errno = mapped.err().map_or(0, |errno| errno as i32);
        let _ = channel.send(&[&[MAPPED][..], &errno.to_le_bytes()].concat(), None);
    }
    Ward { channel, child, adopts }
}

impl Charge<'_> {
    /// Stays until the launcher dismisses it or dies; in the second case nothing of the cell is left.
    pub fn keep(self) -> ! {
        crate::sys::environ::rename(b"oubliette-keeper");
        let mut kept = self.held.clone();
        kept.extend(self.cell.descriptors());
        kept.extend(self.lease.iter().flat_map(Lease::descriptors));
        kept.push(self.ward.channel.as_fd());
        let _ = crate::sys::fds::keep_only(&kept);
        let Ward { channel, child, adopts } = &self.ward;
        let ended = match *child {
            Some(child) => init::watch(child, channel),
            None => Some((0, 125)),
        };
        if let Some((how, number)) = ended {
            let _ = channel.send(&[ENDED, how, number], None);
            let dead = end_all(&self.cell, self.lease.as_ref(), self.alone, *adopts);
            let _ = channel.send(&[DEAD, u8::from(dead)], None);
            while matches!(channel.receive(), Ok(Some(_))) {}
        }
        self.finish()
    }

    /// The launcher is dead.
    fn finish(self) -> ! {
        let kept = self.cgroups.iter().filter(|group| !crate::sys::cgroup::remove(group)).count();
        // Given back by the launcher before it died, it may be another run's by now.
        let lease = self.lease.filter(Lease::held);
        let dead = end_all(&self.cell, lease.as_ref(), self.alone, self.ward.adopts);
        wipe(self.cell, lease, dead && kept == 0);
        exit_now(0)
    }
}

/// Ends every process of the cell: orphans of the agent, which come to this process, and what has the run's UID. Where
/// there is neither, what still names the cell or carries its mark. Gives whether none is left.
pub fn end_all(cell: &Cell, lease: Option<&Lease>, alone: Option<Uid>, adopts: bool) -> bool {
    // Reaped first: a zombie counts as a process of the UID.
    end_orphans()
        && lease.is_none_or(|lease| uids::kill_all(lease.uid.as_raw()))
        && (adopts || lease.is_some() || (end_inside(&cell.path) && alone.is_none_or(end_marked)))
}

/// Removes the cell, and gives its UID back where nothing is left of it.
pub fn wipe(cell: Cell, lease: Option<Lease>, dead: bool) -> Wiped {
    let mut wiped = cell.wipe();
    if !dead {
        wiped.left.push(Left { name: "processes".into(), why: "they do not end; run `oubliette sweep`".into() });
    }
    if let Some(lease) = lease.as_ref().filter(|_| dead) {
        wiped.left.extend(lease.clear());
    }
    if let Some(lease) = lease.filter(|_| dead && wiped.left.is_empty()) {
        lease.release();
    }
    wiped
}
