//! How much of a disk a tree takes, where no mount and no quota says so: counted by walking it. The tree is hostile and
//! changes meanwhile, so that a count is bounded and never fails: what it cannot read is a number of its own.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use serde::Serialize;

use crate::fs::walk::{FileId, Kind, Mount, entries, is_dots, open_dir, status, status_of};
use crate::policy::Limits;
use crate::types::units::Bytes;

/// Descriptors that are held of the directories inside each other, counted from either end.
const HELD: usize = 64;

/// Names between two looks at whether anybody still wants the count.
const ROUND: u64 = 1024;

/// What trees take together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DiskUse {
    /// Bytes of disk, by blocks: a hole takes none, and an inode with many names is one.
    pub bytes: u64,
    /// Names of any kind, as a tmpfs counts its inodes.
    pub files: u64,
    /// Directories that the launcher may not read, with whatever they hold.
    pub unread: u64,
}

/// Bounds on a [`DiskUse`].
#[derive(Debug, Clone, Copy)]
pub struct Most {
    /// `limits.disk`.
    pub bytes: u64,
    /// `limits.files`.
    pub files: u64,
}

impl From<&Limits> for Most {
    fn from(limits: &Limits) -> Most {
        Most { bytes: limits.disk.0, files: limits.files.into() }
    }
}

/// Why a count ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// More than `limits.disk`.
    Bytes(u64),
    /// More than `limits.files`.
    Files(u64),
    /// Nobody wants to know any more.
    Asked,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stopped::Bytes(most) => write!(f, "more bytes than limits.disk ({})", Bytes(*most)),
            Stopped::Files(most) => write!(f, "more files than limits.files ({most})"),
            Stopped::Asked => f.write_str("a count that was given up"),
        }
    }
}

/// Counts what is in these directories, without themselves.
///
/// # Errors
/// A bound is exceeded, or `wanted` says no.
pub fn count(roots: &[BorrowedFd<'_>], most: Most, wanted: &dyn Fn() -> bool) -> Result<DiskUse, Stopped> {
    let mut count = Count { most, wanted, used: DiskUse::default(), seen: HashSet::new() };
    for root in roots {
        count.tree(*root)?;
    }
    Ok(count.used)
}

struct Count<'a> {
    most: Most,
    wanted: &'a dyn Fn() -> bool,
    used: DiskUse,
    /// Inodes with more than one name, by device and number.
    seen: HashSet<(u64, u64)>,
}

/// A directory, and those in it that are still to be entered.
struct Level {
    /// Nothing in the middle of a deep tree: a limit on open files bounds no depth.
    dir: Option<OwnedFd>,
    id: FileId,
    below: Vec<OsString>,
}

impl Count<'_> {
    fn tree(&mut self, root: BorrowedFd<'_>) -> Result<(), Stopped> {
        let Ok(mount) = status_of(root).map(|status| status.mount) else {
            self.used.unread += 1;
            return Ok(());
        };
        let mut levels = Vec::new();
        levels.extend(self.enter(root, OsStr::new("."), mount)?);
        while let Some(level) = levels.last_mut() {
            let (name, dir) = (level.below.pop(), level.dir.as_ref());
            let (Some(name), Some(dir)) = (name, dir) else {
                let done = levels.pop();
                self.go_up(done, &mut levels);
                continue;
            };
            let next = self.enter(dir.as_fd(), &name, mount)?;
            levels.extend(next);
            if let Some(middle) = levels.len().checked_sub(HELD + 1).filter(|middle| *middle >= HELD) {
                levels[middle].dir = None;
            }
        }
        Ok(())
    }

    /// Opens the directory above `done` again, where it was closed: by `..`, and only if that is still the one. Else what
    /// was not counted between there and the next open one is not counted.
    fn go_up(&mut self, done: Option<Level>, levels: &mut Vec<Level>) {
        let Some(above) = levels.last_mut().filter(|above| above.dir.is_none()) else { return };
        let parent = done.and_then(|done| open_dir(done.dir?.as_fd(), OsStr::new("..")).ok());
        above.dir = parent.filter(|dir| status_of(dir.as_fd()).is_ok_and(|status| status.id == above.id));
        while levels.pop_if(|level| level.dir.is_none()).is_some() {
            self.used.unread += 1;
        }
    }

    /// Charges the names of a directory; nothing where it has gone or may not be read.
    fn enter(&mut self, parent: BorrowedFd<'_>, name: &OsStr, mount: Mount) -> Result<Option<Level>, Stopped> {
        let opened = open_dir(parent, name).and_then(|dir| entries(dir.as_fd()).map(|listing| (dir, listing)));
        let opened = opened.and_then(|(dir, listing)| Ok((status_of(dir.as_fd())?.id, dir, listing)));
        let (id, dir, mut listing) = match opened {
            Ok(opened) => opened,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
            Err(_) => {
                self.used.unread += 1;
                return Ok(None);
            }
        };
        let mut below = Vec::new();
        for entry in listing.iter() {
            let Ok(entry) = entry else {
                self.used.unread += 1;
                break;
            };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if !is_dots(name.as_bytes()) && self.charge_one(dir.as_fd(), name, mount)? {
                below.push(name.to_owned());
            }
        }
        Ok(Some(Level { dir: Some(dir), id, below }))
    }

    /// Charges one name, and says whether it is a directory of this file system's.
    fn charge_one(&mut self, dir: BorrowedFd<'_>, name: &OsStr, mount: Mount) -> Result<bool, Stopped> {
        self.used.files += 1;
        if self.used.files > self.most.files {
            return Err(Stopped::Files(self.most.files));
        }
        if self.used.files.is_multiple_of(ROUND) && !(self.wanted)() {
            return Err(Stopped::Asked);
        }
        let Ok(status) = status(dir, name) else { return Ok(false) };
        let directory = status.kind == Kind::Directory;
        // Whoever mounts something there pays for it elsewhere.
        if !mount.holds(&status) {
            return Ok(false);
        }
        let again = !directory && status.links > 1 && !self.seen.insert((status.id.device, status.id.inode));
        if !again {
            self.used.bytes = self.used.bytes.saturating_add(status.blocks.saturating_mul(512));
        }
        if self.used.bytes > self.most.bytes {
            return Err(Stopped::Bytes(self.most.bytes));
        }
        Ok(directory)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    use super::*;

    fn charge(dir: &tempfile::TempDir, bytes: u64, files: u64) -> Result<DiskUse, Stopped> {
        count(&[File::open(dir.path()).unwrap().as_fd()], Most { bytes, files }, &|| true)
    }

    #[test]
    fn holes_and_second_names_are_free_and_every_name_counts() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("a")).unwrap();
        fs::write(at("a/data"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(at("a/data"), at("again")).unwrap();
        File::create(at("sparse")).unwrap().set_len(1 << 40).unwrap();
        symlink("/", at("link")).unwrap();
        File::open(at("a/data")).unwrap().sync_all().unwrap();
        let all = charge(&dir, 1 << 30, 100).unwrap();
        assert_eq!((all.files, all.unread), (5, 0));
        assert!((1 << 20..(1 << 20) + (1 << 16)).contains(&all.bytes), "{all:?}");
        assert_eq!(charge(&dir, 1 << 19, 100), Err(Stopped::Bytes(1 << 19)));
        assert_eq!(charge(&dir, 1 << 30, 4), Err(Stopped::Files(4)));
    }

    #[test]
    fn a_deep_tree_is_counted_to_its_bottom_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut deep = dir.path().to_owned();
        for nth in 0..700 {
            deep.push("d");
            fs::create_dir(&deep).unwrap();
            fs::write(deep.join("f"), [b'x'; 5000]).unwrap();
            if nth % 100 == 0 {
                fs::create_dir_all(deep.join("e/e")).unwrap();
            }
        }
        let all = charge(&dir, 1 << 30, 2000).unwrap();
        assert_eq!((all.files, all.unread), (1400 + 14, 0));
        assert_eq!(charge(&dir, 1 << 30, 1413), Err(Stopped::Files(1413)));
    }

    #[test]
    fn a_count_that_nobody_wants_ends() {
        let dir = tempfile::tempdir().unwrap();
        for nth in 0..2000 {
            File::create(dir.path().join(nth.to_string())).unwrap();
        }
        let root = File::open(dir.path()).unwrap();
        let given_up = count(&[root.as_fd()], Most { bytes: 1 << 30, files: 10_000 }, &|| false);
        assert_eq!(given_up, Err(Stopped::Asked));
    }
}
