//! Removes what a cell left behind: any depth, any mode, any name, nothing followed, no mount crossed.
//!
//! Precondition: every process of the cell is dead; otherwise this is a race that the launcher loses.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat};
use nix::unistd::{UnlinkatFlags, fdatasync, unlinkat};
use serde::Serialize;

use crate::fs::walk::{FileId, Kind, Mount, entries, is_dots, kind_of, open_dir, printable, status, status_of};
use crate::sys::inode::clear_fixed;

/// Something that could not be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Its path as the cell's program knew it, escaped for printing.
    pub name: String,
    /// The reason, and where it is now when the wipe has moved it.
    pub why: String,
}

/// What a wipe came to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Wiped {
    /// Names removed, of any kind.
    pub files: u64,
    /// What is still there; empty when all is gone. At most [`MOST_LEFT`] names and then a count.
    pub left: Vec<Left>,
}

/// How many names a report lists.
pub const MOST_LEFT: usize = 100;

/// How many bytes of original names are kept for the report while directories wait. A hostile tree may have millions
/// of directories; past this budget only the place where a leftover is now is told.
const NAMES: usize = 1 << 20;

/// How many mounts on one name are taken off before giving up.
const STACKED: usize = 64;

/// Empties the directory `top`, which was opened as `name` in `parent`, and removes it.
///
/// It takes what was opened: whoever may write to `parent` may have put something else under the name since, and that is
/// neither emptied nor removed.
///
/// A directory is emptied by moving each of its directories up into it under a counter, so that the depth is never
/// more than two: descriptors, stack and path lengths stay small however deep the tree is. Directories (never files: a
/// hard link leads outside) get mode 0700 where that is missing; a mount is detached and never entered; immutable and
/// append-only flags are cleared where that is allowed. A name that does not exist is no error.
pub fn wipe(parent: BorrowedFd<'_>, name: &OsStr, top: BorrowedFd<'_>) -> Wiped {
    let mut work = Work::default();
    let result = remove(&mut work, parent, name, top);
    if let Err(errno) = result
        && work.left.is_empty()
    {
        work.report(name.as_bytes(), errno, None);
    }
    if work.unlisted > 0 {
        let name = format!("{} more", work.unlisted);
        work.left.push(Left { name, why: "not listed".into() });
    }
    Wiped { files: work.removed, left: work.left }
}

/// Removes a name of a directory that nobody else may write to: a directory as [`wipe`] does, anything else as it is.
pub fn wipe_name(parent: BorrowedFd<'_>, name: &OsStr) -> Wiped {
    let mut work = Work::default();
    // An empty directory, and what is mounted on the name: all that this takes for one in a hundred.
    let done = match work.unlink(parent, name, UnlinkatFlags::RemoveDir) {
        Err(Errno::ENOTDIR) => work.unlink(parent, name, UnlinkatFlags::NoRemoveDir),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => {
            let opened = status_of(parent).and_then(|status| open_repaired(parent, name, status.mount));
            match opened {
                Ok(top) => return wipe(parent, name, top.as_fd()),
                Err(errno) => Err(errno),
            }
        }
        done => done,
    };
    if let Err(errno) = done {
        work.report(name.as_bytes(), errno, None);
    }
    Wiped { files: work.removed, left: work.left }
}

fn remove(work: &mut Work, parent: BorrowedFd<'_>, name: &OsStr, top: BorrowedFd<'_>) -> nix::Result<()> {
    let opened = status_of(top)?;
    if opened.mode & 0o700 != 0o700 {
        // An immutable directory says EPERM here and is loosened when its entries turn out to be stuck.
        let _ = fchmod(top, Mode::S_IRWXU);
    }
    work.inside = true;
    Wipe {
        work,
        top,
        mount: opened.mount,
        prefix: prefix(),
        moved: 0,
        pending: Vec::new(),
        stuck: Vec::new(),
        names: 0,
    }
    .run();
    work.inside = false;
    // Something that is mounted over the name hides what it is; unlinkat(2) says EBUSY of that.
    match status(parent, name) {
        Err(Errno::ENOENT) => Ok(()),
        Ok(found) if found.id == opened.id || !opened.mount.holds(&found) => {
            work.unlink(parent, name, UnlinkatFlags::RemoveDir)
        }
        Ok(_) => Err(Errno::ESTALE),
        Err(errno) => Err(errno),
    }
}

/// Nothing in the tree can be called so: it is drawn after the last process of the cell has died.
fn prefix() -> Vec<u8> {
    let drawn = crate::sys::random::name().unwrap_or_else(|_| std::process::id().to_string());
    format!(".wipe-{drawn}-").into_bytes()
}

/// Opens a directory, with its mode repaired, only if it is on `mount`.
pub(crate) fn open_repaired(at: BorrowedFd<'_>, name: &OsStr, mount: Mount) -> nix::Result<OwnedFd> {
    let dir = match open_dir(at, name) {
        Err(Errno::EACCES) => {
            // Without a link in the way: glibc pins the inode by O_PATH first where fchmodat2(2) is missing.
            fchmodat(at, name, Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink)?;
            open_dir(at, name)?
        }
        other => other?,
    };
    let status = status_of(dir.as_fd())?;
    if !mount.holds(&status) {
        return Err(Errno::EXDEV);
    }
    if status.mode & 0o700 != 0o700 {
        // An immutable directory says EPERM here and is loosened when its entries turn out to be stuck.
        let _ = fchmod(&dir, Mode::S_IRWXU);
    }
    Ok(dir)
}

/// The part that needs no top directory.
#[derive(Default)]
struct Work {
    removed: u64,
    repaired: u64,
    left: Vec<Left>,
    unlisted: u64,
    /// Below the directory to be wiped: only there is the directory around a name the cell's too.
    inside: bool,
}

impl Work {
    /// Removes one name; takes off what is mounted on it and loosens flags and modes when that is in the way.
    fn unlink(&mut self, dir: BorrowedFd<'_>, name: &OsStr, flag: UnlinkatFlags) -> nix::Result<()> {
        let (mut loosened, mut mounts) = (false, 0);
        loop {
            match unlinkat(dir, name, flag) {
                Ok(()) => {
                    self.removed += 1;
                    return Ok(());
                }
                Err(Errno::ENOENT) => return Ok(()),
                // The kernel looks for a mount before it looks for entries (vfs_rmdir, vfs_unlink): a directory that
                // answers ENOTEMPTY is none.
                Err(Errno::EBUSY) if mounts < STACKED => {
                    mounts += 1;
                    self.unmount(dir, name)?;
                }
                Err(Errno::EPERM | Errno::EACCES) if !loosened => {
                    loosened = true;
                    self.loosen(dir, name);
                }
                Err(errno) => return Err(errno),
            }
        }
    }

    /// The last component is not followed (UMOUNT_NOFOLLOW), the first part is a descriptor: no path of the tree is
    /// ever resolved.
    fn unmount(&mut self, dir: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
        let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
        path.extend_from_slice(name.as_bytes());
        umount2(OsStr::from_bytes(&path), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|_| Errno::EBUSY)?;
        self.repaired += 1;
        Ok(())
    }

    /// Clears flags and restores the mode of the directory, and clears the flags of the entry itself.
    fn loosen(&mut self, dir: BorrowedFd<'_>, name: &OsStr) {
        if self.inside {
            self.repaired += u64::from(clear_fixed(dir) == Ok(true));
            let closed = status_of(dir).is_ok_and(|status| status.mode & 0o700 != 0o700);
            self.repaired += u64::from(closed && fchmod(dir, Mode::S_IRWXU).is_ok());
        }
        let Ok(status) = status(dir, name) else { return };
        // A file with a second name may be somebody's outside this tree: its flags are not ours to clear. Only files
        // and directories can have any, and opening a device or a fifo may do something.
        let ours = match status.kind {
            Kind::File => status.links == 1,
            Kind::Directory => true,
            _ => false,
        };
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        if ours && let Ok(fd) = openat(dir, name, flags, Mode::empty()) {
            self.repaired += u64::from(clear_fixed(fd.as_fd()) == Ok(true));
        }
    }

    fn report(&mut self, name: &[u8], errno: Errno, now: Option<&[u8]>) {
        if self.left.len() >= MOST_LEFT {
            self.unlisted += 1;
            return;
        }
        let reason = match errno {
            Errno::EXDEV | Errno::EBUSY => "something is mounted here and cannot be unmounted",
            Errno::ESTALE => "somebody has put something else under its name",
            other => other.desc(),
        };
        let why = match now {
            Some(now) if now != name => format!("{reason}; now at {}", printable(now)),
            _ => reason.to_owned(),
        };
        self.left.push(Left { name: printable(name), why });
    }
}

/// A directory that was moved up under a number, and how it was called before.
struct Moved {
    number: u64,
    origin: Option<OsString>,
}

struct Wipe<'a> {
    work: &'a mut Work,
    top: BorrowedFd<'a>,
    mount: Mount,
    prefix: Vec<u8>,
    moved: u64,
    pending: Vec<Moved>,
    stuck: Vec<Moved>,
    names: usize,
}

impl Wipe<'_> {
    /// Rounds as long as each makes progress, and one more that reports what is left.
    fn run(&mut self) {
        let mut reporting = false;
        loop {
            let before = self.progress();
            let stuck = self.round(reporting);
            if stuck == 0 || reporting {
                return;
            }
            reporting = self.progress() == before;
        }
    }

    fn progress(&self) -> u64 {
        self.work.removed + self.work.repaired + self.moved
    }

    fn round(&mut self, reporting: bool) -> u64 {
        let again = std::mem::take(&mut self.stuck);
        let top = Moved { number: u64::MAX, origin: Some(OsString::new()) };
        let mut stuck = self.empty(self.top, &top, reporting);
        self.pending.extend(again);
        // Last in, first out: what waits is at most the siblings along one path.
        while let Some(moved) = self.pending.pop() {
            stuck += self.finish(moved, reporting);
        }
        stuck
    }

    /// Empties one directory that has been moved up, and removes it.
    fn finish(&mut self, moved: Moved, reporting: bool) -> u64 {
        let name = self.numbered(moved.number);
        let inside = match open_repaired(self.top, &name, self.mount) {
            Ok(dir) => self.empty(dir.as_fd(), &moved, reporting),
            Err(errno) => {
                self.tell(&moved, None, errno, reporting);
                1
            }
        };
        match self.work.unlink(self.top, &name, UnlinkatFlags::RemoveDir) {
            Ok(()) => {
                self.names -= moved.origin.map_or(0, |origin| origin.len());
                inside
            }
            // It is stuck because of what is in it, which has been told.
            Err(errno) => {
                if inside == 0 {
                    self.tell(&moved, None, errno, reporting);
                }
                self.stuck.push(moved);
                inside.max(1)
            }
        }
    }

    /// Removes every file of `dir` and moves every directory up; gives how many names withstood.
    fn empty(&mut self, dir: BorrowedFd<'_>, at: &Moved, reporting: bool) -> u64 {
        let mut listing = match entries(dir) {
            Ok(listing) => listing,
            Err(errno) => {
                self.tell(at, None, errno, reporting);
                return 1;
            }
        };
        let mut stuck = 0;
        for entry in listing.iter() {
            let Ok(entry) = entry else { break };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if is_dots(name.as_bytes()) || (at.number == u64::MAX && name.as_bytes().starts_with(&self.prefix)) {
                continue;
            }
            let done = match kind_of(dir, name, entry.file_type()) {
                Ok(Kind::Directory) => self.raise(dir, name, at),
                Ok(_) => self.work.unlink(dir, name, UnlinkatFlags::NoRemoveDir),
                Err(errno) => Err(errno),
            };
            if let Err(errno) = done {
                self.tell(at, Some(name), errno, reporting);
                stuck += 1;
            }
        }
        stuck
    }

    /// Removes a directory if it is empty, else moves it up. rename(2) of a directory needs write permission on the
    /// directory itself (its `..` changes), so mode 000 is repaired first.
    fn raise(&mut self, dir: BorrowedFd<'_>, name: &OsStr, at: &Moved) -> nix::Result<()> {
        match self.work.unlink(dir, name, UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
            other => return other,
        }
        let number = self.moved;
        let target = self.numbered(number);
        if let Err(errno) = renameat(dir, name, self.top, target.as_os_str()) {
            if !matches!(errno, Errno::EACCES | Errno::EPERM) {
                return Err(errno);
            }
            self.work.loosen(dir, name);
            let _ = fchmodat(dir, name, Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink);
            renameat(dir, name, self.top, target.as_os_str())?;
        }
        self.moved += 1;
        let origin = self.remember(at, name);
        self.pending.push(Moved { number, origin });
        Ok(())
    }

    fn numbered(&self, number: u64) -> OsString {
        let mut name = self.prefix.clone();
        name.extend_from_slice(number.to_string().as_bytes());
        OsString::from_vec(name)
    }

    fn remember(&mut self, at: &Moved, name: &OsStr) -> Option<OsString> {
        let above = at.origin.as_ref()?;
        let length = above.len() + 1 + name.len();
        if length > libc::PATH_MAX as usize || self.names + length > NAMES {
            return None;
        }
        let path = join(above, name);
        self.names += path.len();
        Some(path)
    }

    fn tell(&mut self, at: &Moved, name: Option<&OsStr>, errno: Errno, reporting: bool) {
        if !reporting {
            return;
        }
        let mut now = if at.number == u64::MAX { OsString::new() } else { self.numbered(at.number) };
        let mut was = at.origin.clone().unwrap_or_else(|| OsString::from("…"));
        if let Some(name) = name {
            now = join(&now, name);
            was = join(&was, name);
        }
        self.work.report(was.as_bytes(), errno, Some(now.as_bytes()));
    }
}

fn join(dir: &OsStr, name: &OsStr) -> OsString {
    let mut path = dir.to_owned();
    if !path.is_empty() {
        path.push("/");
    }
    path.push(name);
    path
}

/// How much of a file is zeroed: more than the launcher ever writes into one (credential, settings). What an agent has
/// put behind it, a sparse exabyte for instance, is not worth the time or the blocks.
const ZEROED: u64 = 1 << 20;

/// Overwrites a file that the launcher wrote with zeros in place, syncs it, and unlinks it.
///
/// In place and without O_TRUNC, because truncated blocks are freed with their content; synced before the unlink,
/// because zeros in the page cache of a deleted file are never written. This helps on ext4 in its default mode and on
/// xfs, not on btrfs or another copy-on-write file system, not with a data journal, and never against a copy that the
/// agent made.
///
/// `written` is the inode that the launcher created under this name. An agent owns the file: it may have put a link or
/// another file there, or given the file a second name. So:
/// - the inode is `written`: zeroed, however many names it has. The content is the launcher's, and all of its names
///   lie where the agent could write;
/// - `written` is not known (`sweep` after a crash): zeroed only with a single name. A second one may be a file of
///   somebody else that the agent has linked here, and zeroing that would be the agent's attack, not our defence;
/// - anything else (a link, another inode, another mount): only the name is removed.
///
/// # Errors
/// In each case the name is removed if that is possible. ESTALE: it was not the launcher's file any more. EMLINK:
/// there are other names. EXDEV: it is mounted from elsewhere. Else the errno of the open, the write or the sync.
pub fn overwrite(dir: BorrowedFd<'_>, name: &OsStr, written: Option<FileId>) -> nix::Result<()> {
    let zeroed = zero(dir, name, written);
    if zeroed == Err(Errno::ENOENT) {
        return zeroed;
    }
    let unlinked = Work::default().unlink(dir, name, UnlinkatFlags::NoRemoveDir);
    zeroed.and(unlinked)
}

fn zero(dir: BorrowedFd<'_>, name: &OsStr, written: Option<FileId>) -> nix::Result<()> {
    ours(dir, name, written)?;
    let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let mut file = match openat(dir, name, flags, Mode::empty()) {
        Err(Errno::EACCES | Errno::EPERM) => {
            // Allowed here only, because the inode has just been found to be the launcher's.
            Work::default().loosen(dir, name);
            let _ = fchmodat(dir, name, Mode::S_IRUSR | Mode::S_IWUSR, FchmodatFlags::NoFollowSymlink);
            File::from(openat(dir, name, flags, Mode::empty())?)
        }
        other => File::from(other?),
    };
    let status = ours(file.as_fd(), OsStr::new(""), written)?;
    let mut rest = status.size.min(ZEROED) as usize;
    while rest > 0 {
        let n = rest.min(4096);
        file.write_all(&[0; 4096][..n]).map_err(|error| crate::fs::walk::errno(&error))?;
        rest -= n;
    }
    fdatasync(&file)
}

fn ours(dir: BorrowedFd<'_>, name: &OsStr, written: Option<FileId>) -> nix::Result<crate::fs::walk::Status> {
    let found = if name.is_empty() { status_of(dir)? } else { status(dir, name)? };
    match written {
        _ if found.kind != Kind::File => Err(Errno::ESTALE),
        _ if !name.is_empty() && !status_of(dir)?.mount.holds(&found) => Err(Errno::EXDEV),
        Some(id) if id != found.id => Err(Errno::ESTALE),
        None if found.links > 1 => Err(Errno::EMLINK),
        _ => Ok(found),
    }
}

/// Something that could not be removed.
#[derive(Debug, Clone, Serialize)]
pub struct Leftover {
    /// Its name, escaped.
    pub name: String,
    /// Why.
    pub why: String,
}

impl From<Left> for Leftover {
    fn from(left: Left) -> Leftover {
        Leftover { name: left.name, why: left.why }
    }
}
