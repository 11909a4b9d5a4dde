//! What a UID owns in places that every UID may write to. Without a private root and without Landlock an agent leaves files
//! there, which whoever gets its UID next could open, or find in the place of its own.
//!
//! Other users write to these places meanwhile. So each directory is held by descriptor, no link is followed and no mount
//! crossed, and names and time are bounded. What a directory of the UID holds goes with it, whoever owns that: the owner
//! of a directory says what is in it.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{fstat, fstatat};

use crate::sys::ipc::{self, Kind};
use crate::tree::{entries, is_dots, open_dir, printable};
use crate::wipe::{Left, wipe};

/// Where everybody may write on a usual system. Message queues and shared memory of POSIX are files, too.
pub const PLACES: [&str; 6] = ["/tmp", "/var/tmp", "/dev/shm", "/run/lock", "/var/lock", "/dev/mqueue"];

/// How deep directories of others are looked into.
const DEPTH: usize = 64;

/// How many names are looked at in all.
const NAMES: u64 = 1_000_000;

/// How long.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is left to look at, and what stays.
struct Walk {
    uid: u32,
    names: u64,
    until: Instant,
    left: Vec<Left>,
}

/// Removes what a UID owns in these places, and its objects of System V. Gives what stays. Comes after the last process
/// of the UID.
pub fn clear(uid: u32) -> Vec<Left> {
    let mut walk = Walk { uid, names: NAMES, until: Instant::now() + PATIENCE, left: Vec::new() };
    let mut seen = Vec::new();
    for place in PLACES {
        // By whatever links the operator made on the way.
        let dir = match File::open(place) {
            Ok(dir) => OwnedFd::from(dir),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                walk.keep(place.as_bytes(), crate::tree::errno(&error).desc());
                continue;
            }
        };
        let Ok(stat) = fstat(&dir) else { continue };
        if stat.st_mode & libc::S_IFMT == libc::S_IFDIR && !seen.contains(&(stat.st_dev, stat.st_ino)) {
            seen.push((stat.st_dev, stat.st_ino));
            walk.directory(dir.as_fd(), place.as_bytes(), stat.st_dev, DEPTH);
        }
    }
    for kind in [Kind::Memory, Kind::Queue, Kind::Semaphores] {
        walk.objects(kind);
    }
    walk.left
}

impl Walk {
    fn keep(&mut self, path: &[u8], why: &str) {
        match self.left.len() {
            0..crate::wipe::MOST_LEFT => {
                self.left.push(Left { name: format!("{} of uid {}", printable(path), self.uid), why: why.into() });
            }
            _ => {}
        }
    }

    /// The UID's names in a directory of somebody else's.
    fn directory(&mut self, dir: BorrowedFd<'_>, path: &[u8], device: libc::dev_t, depth: usize) {
        let mut list = match entries(dir) {
            Ok(list) => list,
            Err(errno) => return self.keep(path, errno.desc()),
        };
        for entry in list.iter() {
            let name = match &entry {
                Ok(entry) => OsStr::from_bytes(entry.file_name().to_bytes()),
                Err(errno) => return self.keep(path, errno.desc()),
            };
            if is_dots(name.as_bytes()) {
                continue;
            }
            let Some(names) = self.names.checked_sub(1).filter(|_| Instant::now() < self.until) else {
                return self.keep(path, "there is more in it than is looked at");
            };
            self.names = names;
            self.entry(dir, name, &[path, b"/", name.as_bytes()].concat(), device, depth);
        }
    }

    fn entry(&mut self, dir: BorrowedFd<'_>, name: &OsStr, path: &[u8], device: libc::dev_t, depth: usize) {
        let stat = match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return,
            Err(errno) => return self.keep(path, errno.desc()),
        };
        if stat.st_uid == self.uid {
            for left in wipe(dir, name).left {
                self.keep(path, &left.why);
            }
            return;
        }
        // Where others may not search, it could not get in.
        if stat.st_mode & libc::S_IFMT != libc::S_IFDIR || stat.st_mode & 0o001 == 0 || stat.st_dev != device {
            return;
        }
        match open_dir(dir, name) {
            // Another one may have come under this name since.
            Ok(inner) if fstat(&inner).is_ok_and(|now| now.st_ino == stat.st_ino && now.st_dev == device) => {
                match depth {
                    0 => self.keep(path, "it is deeper than is looked at"),
                    _ => self.directory(inner.as_fd(), path, device, depth - 1),
                }
            }
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
            Err(errno) => self.keep(path, errno.desc()),
        }
    }

    fn objects(&mut self, kind: Kind) {
        for object in ipc::of(kind, self.uid) {
            if let Err(errno) = ipc::remove(kind, object) {
                self.keep(format!("{kind:?} {object}").as_bytes(), errno.desc());
            }
        }
    }
}
