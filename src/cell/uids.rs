//! Leases of UIDs: each run of root's has one that no other live run has.
#![forbid(unsafe_code)]

mod kill;
mod places;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Uid, UnlinkatFlags, ftruncate, unlinkat};

use crate::cell::state::State;
use crate::fs::wipe::Left;
use crate::sys::ids::Ids;
use crate::sys::ids::gid_of;
use crate::types::error::{Error, Result};
use crate::types::values::UidRange;

pub use kill::kill_all;

/// A UID that is this run's alone. When dropped in use it stays marked, and `sweep` frees it.
#[derive(Debug)]
pub struct Lease {
    /// The UID.
    pub uid: Uid,
    /// A process runs under it, or may.
    in_use: Cell<bool>,
    /// What runs under it can write to places that all UIDs share.
    shares: Cell<bool>,
    leases: OwnedFd,
    lock: Flock<OwnedFd>,
}

/// The last quarter of a range is bound to user workspaces, which outlive a run.
pub fn split(range: UidRange) -> (UidRange, UidRange) {
    let count = range.last - range.first + 1;
    let middle = range.first + count - count / 4;
    (UidRange { first: range.first, last: middle - 1 }, UidRange { first: middle, last: range.last })
}

impl Lease {
    /// Takes a UID that nobody has. Where none is free, what dead runs left in this state directory is wiped first: their
    /// UIDs own it until then.
    ///
    /// # Errors
    /// All are taken, or the leases cannot be written.
    pub fn take(state: &State, range: UidRange) -> Result<Lease> {
        let (range, _) = split(range);
        if let Some(lease) = Lease::take_new(state, range)? {
            return Ok(lease);
        }
        crate::cell::sweep::sweep(state, false)?;
        Lease::take_new(state, range)?.map_or_else(|| Err(exhausted(state, range)), Ok)
    }

    /// One that nobody has marked.
    fn take_new(state: &State, range: UidRange) -> Result<Option<Lease>> {
        let leases = state.leases()?;
        let count = range.last - range.first + 1;
        let cursor = Cursor::open(&leases, range)
            .map_err(|errno| Error::new("lease a UID", errno).hint("make the state directory writable"))?;
        let start = cursor.next() % count;
        for step in 0..count {
            // In 64 bits: a range may hold nearly every number of 32.
            let nth = (u64::from(start) + u64::from(step)) % u64::from(count);
            let uid = range.first + u32::try_from(nth).unwrap_or_default();
            match try_take_new(&leases, uid) {
                Ok(Some(lock)) => {
                    cursor.set((uid - range.first).wrapping_add(1));
                    return Lease::new(state, uid, leases, lock).map(Some);
                }
                Ok(None) => {}
                Err(errno) => {
                    return Err(Error::new(format!("lease UID {uid}"), errno).hint("make the state directory writable"));
                }
            }
        }
        Ok(None)
    }

    fn new(state: &State, uid: u32, leases: OwnedFd, lock: Flock<OwnedFd>) -> Result<Lease> {
        let lease = Lease { uid: Uid::from_raw(uid), in_use: Cell::new(false), shares: Cell::new(false), leases, lock };
        let Err(errno) = Owner::of(state).and_then(|owner| owner.write(&lease.lock)) else { return Ok(lease) };
        let place = std::fs::read_link(format!("/proc/self/fd/{}", lease.leases.as_raw_fd())).unwrap_or_default();
        Err(Error::new(format!("lease UID {uid} in {}", place.display()), errno)
            .hint("free that disk: UIDs are leased in one place for all launchers, whatever --state-dir says"))
    }

    /// Takes the UID that is bound to a workspace, for as long as a run uses that: `sweep` ends what has a UID that no
    /// live run has.
    ///
    /// # Errors
    /// A live run has it, or the leases cannot be written.
    pub fn bound(state: &State, uid: Uid) -> Result<Lease> {
        let leases = state.leases()?;
        let object = format!("lease UID {uid} of the user's workspace");
        let until = Instant::now() + Duration::from_secs(1);
        loop {
            match try_take(&leases, uid.as_raw()) {
                Ok(Some(lock)) => return Lease::new(state, uid.as_raw(), leases, lock),
                // A sweep may have it for a moment.
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
                Ok(None) => return Err(Error::new(object, "another run has it").hint("wait for that run to end")),
                Err(errno) => return Err(Error::new(object, errno).hint("make the state directory writable")),
            }
        }
    }

    /// The IDs.
    pub fn ids(&self) -> Ids {
        Ids { uid: self.uid, gid: gid_of(self.uid.as_raw()) }
    }

    /// Gives the UID back. Comes after nothing runs under it any more.
    pub fn release(self) {
        self.in_use.set(false);
    }

    /// Whether it is still this run's: another process of the run that shares it may have given it back.
    pub fn held(&self) -> bool {
        fstat(&*self.lock).is_ok_and(|stat| stat.st_nlink > 0)
    }

    /// What holds it, for a process that closes everything else.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.leases.as_fd(), self.lock.as_fd()]
    }

    /// From here on what runs under it can write to places that all UIDs share. Not for one that is bound to a workspace:
    /// that may lie in such a place, and nobody but its user gets the UID again.
    pub fn share(&self) {
        self.shares.set(true);
        // For a sweep, where this run is killed. On a file of our own that is open it does not fail.
        let _ = fchmod(&*self.lock, SHARES);
    }

    /// Removes what is left under the UID in such places, where there can be something. Gives what stays.
    pub fn clear(&self) -> Vec<Left> {
        if self.shares.get() { places::clear(self.uid.as_raw()) } else { Vec::new() }
    }

    /// From here on something runs under it.
    pub fn use_it(&self) {
        self.in_use.set(true);
    }
}

/// Where the next search begins in a range: behind the UID that was lent last, so that each is lent again as late as can
/// be. A hint alone: two launchers that read the same number meet at the names of the leases.
struct Cursor(OwnedFd);

impl Cursor {
    fn open(leases: &OwnedFd, range: UidRange) -> Result<Cursor, Errno> {
        let name = format!("next-{}-{}", range.first, range.last);
        openat(leases, name.as_str(), LEASE | OFlag::O_CREAT, Mode::S_IRUSR | Mode::S_IWUSR).map(Cursor)
    }

    /// The rank of the UID to try first.
    fn next(&self) -> u32 {
        let mut bytes = [0; 4];
        match nix::sys::uio::pread(&self.0, &mut bytes, 0) {
            Ok(4) => u32::from_ne_bytes(bytes),
            _ => 0,
        }
    }

    fn set(&self, rank: u32) {
        // On a full disk the lease itself fails, and says so.
        let _ = nix::sys::uio::pwrite(&self.0, &rank.to_ne_bytes(), 0);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.in_use.get() {
            let _ = unlinkat(&self.leases, self.uid.to_string().as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Who lends a UID, as its file says: the state directory in which a cell of that UID may be left. Only a sweep of that
/// one knows that nothing is.
#[derive(Debug, PartialEq, Eq)]
struct Owner {
    /// Of the directory: another one of the same name has none of its cells.
    place: (u64, u64),
    path: PathBuf,
}

/// The longest text of a lease.
const TEXT_MAX: u64 = 8192;

impl Owner {
    fn of(state: &State) -> Result<Owner, Errno> {
        let stat = fstat(&state.cells)?;
        Ok(Owner { place: (stat.st_dev, stat.st_ino), path: state.path.clone() })
    }

    fn write(&self, lock: &OwnedFd) -> Result<(), Errno> {
        let text =
            [format!("{} {} ", self.place.0, self.place.1).as_bytes(), self.path.as_os_str().as_bytes()].concat();
        // Not a new file: ext4 takes a file that is cut to nothing and written for one that is being replaced, and its
        // close waits for the disk (auto_da_alloc, ext4(5)).
        if nix::sys::stat::fstat(lock)?.st_size > 0 {
            ftruncate(lock, 0)?;
        }
        let mut all = &text[..];
        while !all.is_empty() {
            let written = nix::sys::uio::pwrite(lock, all, (text.len() - all.len()) as i64)?;
            all = &all[written..];
        }
        Ok(())
    }

    /// Nothing where the file says nothing: nothing has run under such a UID yet.
    fn read(lock: BorrowedFd<'_>) -> Option<Owner> {
        let mut text = Vec::new();
        File::from(lock.try_clone_to_owned().ok()?).take(TEXT_MAX).read_to_end(&mut text).ok()?;
        let mut fields = text.splitn(3, |byte| *byte == b' ');
        let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
        let place = (number()?, number()?);
        Some(Owner { place, path: PathBuf::from(OsStr::from_bytes(fields.next()?)) })
    }

    /// Whether its cells are there no longer, since their directory is not.
    fn is_gone(&self) -> bool {
        let there = std::fs::symlink_metadata(self.path.join("cells"));
        there.map_or_else(|error| error.kind() == ErrorKind::NotFound, |meta| (meta.dev(), meta.ino()) != self.place)
    }
}

/// What has the UIDs of a range.
fn exhausted(state: &State, range: UidRange) -> Error {
    let (mut live, mut dead, mut places) = (0, 0, BTreeSet::new());
    let leases = match state.leases() {
        Ok(leases) => leases,
        Err(error) => return error,
    };
    for uid in range.first..=range.last {
        let Ok(file) = openat(&leases, uid.to_string().as_str(), LEASE, Mode::empty()) else { continue };
        let owner = Owner::read(file.as_fd());
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_) => {
                dead += 1;
                places.extend(owner.map(|owner| owner.path.display().to_string()));
            }
            Err(_) => live += 1,
        }
    }
    let places: Vec<String> = places.into_iter().collect();
    let of = if places.is_empty() { String::new() } else { format!(" in {}", places.join(", ")) };
    let cause = format!(
        "all {} of {}-{} are taken: {live} by live cells, {dead} by what dead ones left{of}",
        range.last - range.first + 1,
        range.first,
        range.last
    );
    let hint = "wait for a run to end, run `oubliette sweep` with the --state-dir of the dead ones, or name a larger range with --uid-range";
    Error::new("lease a UID", cause).hint(hint)
}

/// The mode of a lease whose run could write to places that all UIDs share.
const SHARES: Mode = Mode::S_IRWXU;

const LEASE: OFlag = OFlag::O_RDWR.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The lock of a UID that nobody has marked.
fn try_take_new(leases: &OwnedFd, uid: u32) -> Result<Option<Flock<OwnedFd>>, Errno> {
    let flags = LEASE | OFlag::O_CREAT | OFlag::O_EXCL;
    match openat(leases, uid.to_string().as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(file) => lock(file),
        Err(Errno::EEXIST) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The lock of a UID; nothing when a live run has it. A run that was killed left its mark: what it left running would
/// be the next one's equal, so it is ended first.
fn try_take(leases: &OwnedFd, uid: u32) -> Result<Option<Flock<OwnedFd>>, Errno> {
    if let Some(lock) = try_take_new(leases, uid)? {
        return Ok(Some(lock));
    }
    match openat(leases, uid.to_string().as_str(), LEASE, Mode::empty()) {
        Ok(file) => Ok(lock(file)?.filter(|_| kill_all(uid))),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn lock(file: OwnedFd) -> Result<Option<Flock<OwnedFd>>, Errno> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        // Released between our open and our lock: the name may already be another file's.
        Ok(lock) => Ok(Some(lock).filter(|lock| fstat(&**lock).is_ok_and(|stat| stat.st_nlink > 0))),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno),
    }
}

/// Ends what a dead run left running under its UID. Where no lease says that a run had it, nothing does; where a live
/// run has it by now, that one has ended it before it began. Gives whether none is left.
pub fn end(state: &State, uid: u32) -> bool {
    let Ok(leases) = state.leases() else { return false };
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        match openat(&leases, uid.to_string().as_str(), LEASE, Mode::empty()) {
            Err(Errno::ENOENT) => return true,
            Err(_) => return false,
            Ok(file) => match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(_lock) => return kill_all(uid),
                // Another sweep has it for a moment, a live run for longer.
                Err((_, Errno::EWOULDBLOCK)) if Instant::now() > until => return true,
                Err((_, Errno::EWOULDBLOCK)) => std::thread::sleep(Duration::from_millis(5)),
                Err(_) => return false,
            },
        }
    }
}

/// Frees what killed runs of this state directory left marked, except the UIDs whose cells are not gone; gives those that
/// are free again, and what of theirs is still in places that all UIDs share. Also of a state directory that is there no
/// longer.
///
/// # Errors
/// The leases cannot be read.
pub fn sweep(state: &State, except: &BTreeSet<u32>) -> Result<(Vec<u32>, Vec<Left>)> {
    let leases = state.leases()?;
    let failed = |errno: Errno| Error::new("read the UID leases", errno).hint("run it as root");
    let own = Owner::of(state).map_err(failed)?;
    let (mut freed, mut left) = (Vec::new(), Vec::new());
    for entry in crate::fs::walk::entries(leases.as_fd()).map_err(failed)?.iter().flatten() {
        let Some(uid) = entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if except.contains(&uid) {
            continue;
        }
        if let Ok(Some(lock)) = try_take(&leases, uid)
            && Owner::read(lock.as_fd()).is_none_or(|owner| owner.place == own.place || owner.is_gone())
        {
            let shares = fstat(&*lock).is_ok_and(|stat| stat.st_mode & 0o100 != 0);
            let stays = if shares { places::clear(uid) } else { Vec::new() };
            if !stays.is_empty() {
                left.extend(stays);
                continue;
            }
            Lease {
                uid: Uid::from_raw(uid),
                in_use: Cell::new(false),
                shares: Cell::new(false),
                leases: leases.try_clone().map_err(|e| Error::new("read the UID leases", e))?,
                lock,
            }
            .release();
            freed.push(uid);
        }
    }
    Ok((freed, left))
}
