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
use nix::unistd::{AccessFlags, UnlinkatFlags, faccessat, unlinkat};

use crate::fs::walk::{Kind, Mount, entries, is_dots, open_dir, printable, status, status_of};
use crate::fs::wipe::{Left, wipe};
use crate::sys::ipc;

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
    /// What stays and is not in the list.
    unlisted: u64,
}

/// Removes what a UID owns in these places, and its objects of System V. Gives what stays. Comes after the last process
/// of the UID.
pub fn clear(uid: u32) -> Vec<Left> {
    let mut walk = Walk { uid, names: NAMES, until: Instant::now() + PATIENCE, left: Vec::new(), unlisted: 0 };
    let mut seen = Vec::new();
    for place in PLACES {
        // By whatever links the operator made on the way.
        let dir = match File::open(place) {
            Ok(dir) => OwnedFd::from(dir),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                walk.keep(place.as_bytes(), crate::fs::walk::errno(&error).desc());
                continue;
            }
        };
        // Nothing has been made where nobody can make anything.
        if faccessat(&dir, ".", AccessFlags::W_OK, AtFlags::empty()) == Err(Errno::EROFS) {
            continue;
        }
        match status_of(dir.as_fd()) {
            Ok(found) if found.kind != Kind::Directory || seen.contains(&found.id) => {}
            Ok(found) => {
                seen.push(found.id);
                walk.directory(dir.as_fd(), place.as_bytes(), found.mount, DEPTH);
            }
            Err(errno) => walk.keep(place.as_bytes(), errno.desc()),
        }
    }
    for kind in [ipc::Kind::Memory, ipc::Kind::Queue, ipc::Kind::Semaphores] {
        walk.objects(kind);
    }
    if walk.unlisted > 0 {
        walk.left.push(Left { name: format!("{} more of uid {uid}", walk.unlisted), why: "not listed".into() });
    }
    walk.left
}

impl Walk {
    fn keep(&mut self, path: &[u8], why: &str) {
        if self.left.len() < crate::fs::wipe::MOST_LEFT {
            self.left.push(Left { name: format!("{} of uid {}", printable(path), self.uid), why: why.into() });
        } else {
            self.unlisted += 1;
        }
    }

    /// The UID's names in a directory of somebody else's.
    fn directory(&mut self, dir: BorrowedFd<'_>, path: &[u8], mount: Mount, depth: usize) {
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
            self.entry(dir, name, &[path, b"/", name.as_bytes()].concat(), mount, depth);
        }
    }

    fn entry(&mut self, dir: BorrowedFd<'_>, name: &OsStr, path: &[u8], mount: Mount, depth: usize) {
        let found = match status(dir, name) {
            Ok(found) => found,
            Err(Errno::ENOENT) => return,
            Err(errno) => return self.keep(path, errno.desc()),
        };
        if found.kind != Kind::Directory {
            // In a sticky directory nobody else moves this name; elsewhere anybody may remove whatever stands there.
            let removed = if found.uid == self.uid { unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) } else { Ok(()) };
            return match removed {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => self.keep(path, errno.desc()),
            };
        }
        // Where others may not search, it could not get in.
        if !mount.holds(&found) || (found.uid != self.uid && found.mode & 0o001 == 0) {
            return;
        }
        let inner = match open_dir(dir, name) {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return,
            Err(errno) => return self.keep(path, errno.desc()),
            Ok(inner) => inner,
        };
        match status_of(inner.as_fd()) {
            Err(errno) => self.keep(path, errno.desc()),
            // Another one has come under this name since: it is of somebody who lives.
            Ok(now) if now.id != found.id => {}
            Ok(now) if now.uid == self.uid => {
                for left in wipe(dir, name, inner.as_fd()).left {
                    self.keep(path, &left.why);
                }
            }
            Ok(_) if depth == 0 => self.keep(path, "it is deeper than is looked at"),
            Ok(_) => self.directory(inner.as_fd(), path, mount, depth - 1),
        }
    }

    fn objects(&mut self, kind: ipc::Kind) {
        let owned = match ipc::of(kind, self.uid) {
            Ok(owned) => owned,
            Err(error) => return self.keep(format!("{kind:?}").as_bytes(), crate::fs::walk::errno(&error).desc()),
        };
        for object in owned {
            if let Err(errno) = ipc::remove(kind, object) {
                self.keep(format!("{kind:?} {object}").as_bytes(), errno.desc());
            }
        }
    }
}
