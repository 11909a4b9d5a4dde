//! Two runs do not work in a directory and in one below it at once: each would write what the other reads.
//!
//! A run holds a lock for writing that stands for its directory, and one for reading for each directory above it. They are
//! ranges of one byte in one file of the state directory, at a place that device and inode say, and not locks of the
//! directories: somebody else's could not be opened, and anybody who may read one could hold its lock for ever.
//! What has another state directory, and one below that is mounted at a second place, is not seen.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, openat};
use nix::sys::stat::{Mode, fstat};
use sha2::{Digest, Sha256};

use crate::cell::state::State;

/// The most directories above one that are looked at.
const DEPTH: usize = 4096;

/// The locks of a run; the kernel gives them back with the last process that has the file.
#[derive(Debug)]
pub struct Nested {
    file: OwnedFd,
}

impl Nested {
    /// Takes the locks of a directory; none where a run works in it, below it, or above it.
    ///
    /// # Errors
    /// The errno of the call that failed.
    pub fn take(state: &State, dir: BorrowedFd<'_>) -> Result<Option<Nested>, Errno> {
        let file = state.working()?;
        let up = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut at = openat(dir, ".", up, Mode::empty())?;
        let mut kind = libc::F_WRLCK;
        for _ in 0..DEPTH {
            let here = fstat(&at)?;
            match lock(file.as_fd(), kind, place(here.st_dev, here.st_ino)) {
                Err(Errno::EAGAIN | Errno::EACCES) => return Ok(None),
                done => done?,
            }
            let above = openat(&at, "..", up, Mode::empty())?;
            let there = fstat(&above)?;
            if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino) {
                return Ok(Some(Nested { file }));
            }
            (at, kind) = (above, libc::F_RDLCK);
        }
        Err(Errno::ELOOP)
    }

    /// What holds them, for a process that closes everything else.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The byte that stands for a directory.
fn place(device: libc::dev_t, inode: libc::ino_t) -> i64 {
    let mut hash = Sha256::new();
    hash.update(device.to_ne_bytes());
    hash.update(inode.to_ne_bytes());
    let digest = hash.finalize();
    let bytes = digest.first_chunk().copied().unwrap_or_default();
    // Below the largest offset.
    i64::from_ne_bytes(bytes) & (i64::MAX >> 1)
}

fn lock(file: BorrowedFd<'_>, kind: i32, start: i64) -> Result<(), Errno> {
    let range =
        libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: 1, l_pid: 0 };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range)) {
        // gVisor has locks of processes alone: the launcher holds them, and no keeper after it.
        Err(Errno::EINVAL) => fcntl(file, FcntlArg::F_SETLK(&range)).map(drop),
        done => done.map(drop),
    }
}
