//! Copies a tree: what can be content is copied, what can do something on its own is not.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, Whence, fchown, fchownat, ftruncate, lseek, symlinkat};

use crate::fs::rights::Rights;
use crate::fs::walk::{Bounds, Entry, Kind, Leave, Passed, Status, Step, TreeError, Walk, errno, open_dir, open_file};
use crate::types::paths::HomePath;

/// Why a copy ended early; what was copied until then is still there, for the caller to wipe.
pub type CopyError = TreeError;

/// What was copied.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Regular files.
    pub files: u64,
    /// Directories, without the root.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Apparent size of all files.
    pub bytes: u64,
    /// What was not copied.
    pub skipped: Passed,
}

/// Copies everything in `from` into the directory `to`, in which a directory may be there already and nothing else of it.
///
/// Regular files keep their content, holes, permission bits and time; set-id and sticky bits, extended attributes and
/// hard links between files are not carried over. A directory keeps its mode and always rwx for its owner. Links are
/// made anew with the same text and never followed. With `owner` everything new belongs to it; `to` itself is left as
/// it is.
///
/// # Errors
/// A bound is exceeded, or a call fails; the error names the path.
pub fn copy_tree(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    owner: Option<(Uid, Gid)>,
    bounds: &Bounds,
) -> Result<Copied, CopyError> {
    copy(Walk::new(from, bounds)?, to, owner, Rights::OWN)
}

/// The same into a directory of somebody else's, with his rights: it all belongs to him.
///
/// # Errors
/// As for [`copy_tree`].
pub fn copy_out(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    rights: Rights,
    bounds: &Bounds,
) -> Result<Copied, CopyError> {
    copy(Walk::new(from, bounds)?, to, None, rights)
}

/// Copies of `from` what has one of these names, with all that is below it and the directories above it. In a part of a
/// name one `*` stands for any text.
///
/// # Errors
/// As for [`copy_tree`].
pub fn copy_named(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    names: &[HomePath],
    bounds: &Bounds,
) -> Result<Copied, CopyError> {
    let others = |path: &[u8], kind: Kind| {
        if names.iter().any(|name| leads(name.as_str(), path, kind)) { Leave::Take } else { Leave::Out }
    };
    copy(Walk::without(from, bounds, &others)?, to, None, Rights::OWN)
}

/// Whether a path is at or below a name, or a directory above it. In a part of the name one `*` stands for any text.
fn leads(name: &str, path: &[u8], kind: Kind) -> bool {
    let (mut name, mut path) = (name.split('/'), path.split(|byte| *byte == b'/'));
    loop {
        match (name.next(), path.next()) {
            (Some(wanted), Some(part)) if fits(wanted, part) => {}
            (Some(_), Some(_)) => return false,
            (None, _) => return true,
            (Some(_), None) => return kind == Kind::Directory,
        }
    }
}

fn fits(wanted: &str, part: &[u8]) -> bool {
    match wanted.split_once('*') {
        None => wanted.as_bytes() == part,
        Some((start, end)) => {
            part.len() >= start.len() + end.len()
                && part.starts_with(start.as_bytes())
                && part.ends_with(end.as_bytes())
        }
    }
}

fn copy(
    mut walk: Walk<'_>,
    to: BorrowedFd<'_>,
    owner: Option<(Uid, Gid)>,
    rights: Rights,
) -> Result<Copied, CopyError> {
    let mut copy = Copy { to, owner, rights, open: Vec::new(), buffer: vec![0; 128 << 10], done: Copied::default() };
    while let Some(step) = walk.step()? {
        let (verb, result) = match step {
            Step::Enter(entry) => ("create", copy.enter(entry)),
            Step::Leave => ("finish", copy.leave()),
            Step::File(entry) => match open_file(walk.dir(), &entry.name) {
                Ok((file, status)) => ("copy", copy.file(file, &status, &entry)),
                Err(errno) => {
                    walk.pass_unreadable("open", errno)?;
                    continue;
                }
            },
            Step::Link(entry) => ("copy", copy.link(walk.dir(), &entry)),
        };
        result.map_err(|errno| walk.failed(verb, errno))?;
    }
    Ok(Copied { skipped: walk.passed(), ..copy.done })
}

struct Copy<'a> {
    to: BorrowedFd<'a>,
    owner: Option<(Uid, Gid)>,
    /// Everything at the target is done with these; the source is read with the launcher's.
    rights: Rights,
    open: Vec<(OwnedFd, Status)>,
    buffer: Vec<u8>,
    done: Copied,
}

impl Copy<'_> {
    fn target(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(self.to, |(dir, _)| dir.as_fd())
    }

    fn enter(&mut self, entry: Entry) -> nix::Result<()> {
        let dir = self.rights.with(|| {
            match mkdirat(self.target(), entry.name.as_os_str(), Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
            open_dir(self.target(), &entry.name)
        })?;
        self.open.push((dir, entry.status));
        self.done.directories += 1;
        Ok(())
    }

    /// Owner, mode and time come last: files were still being made in it.
    fn leave(&mut self) -> nix::Result<()> {
        let Some((dir, status)) = self.open.pop() else { return Ok(()) };
        self.finish(dir.as_fd(), status.permissions() | Mode::S_IRWXU, status.modified)
    }

    fn finish(&self, fd: BorrowedFd<'_>, mode: Mode, modified: TimeSpec) -> nix::Result<()> {
        self.rights.with(|| {
            if let Some((uid, gid)) = self.owner {
                fchown(fd, Some(uid), Some(gid))?;
            }
            fchmod(fd, mode)?;
            futimens(fd, &TimeSpec::UTIME_OMIT, &modified)
        })
    }

    fn file(&mut self, mut source: File, status: &Status, entry: &Entry) -> nix::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let new = self.rights.with(|| openat(self.target(), entry.name.as_os_str(), flags, mode))?;
        let mut new = File::from(new);
        // No more than the size that the walk has charged, whatever a live writer adds meanwhile.
        let size = status.size.min(entry.status.size);
        if status.is_sparse() {
            sparse(&mut source, &mut new, size, &mut self.buffer)?;
        } else {
            transfer(&mut source, &mut new, size, &mut self.buffer)?;
        }
        self.finish(new.as_fd(), status.permissions(), status.modified)?;
        self.done.files += 1;
        self.done.bytes += size;
        Ok(())
    }

    fn link(&mut self, dir: BorrowedFd<'_>, entry: &Entry) -> nix::Result<()> {
        let text = readlinkat(dir, entry.name.as_os_str())?;
        let name = entry.name.as_os_str();
        let to = self.target();
        self.rights.with(|| {
            symlinkat(text.as_os_str(), to, name)?;
            if let Some((uid, gid)) = self.owner {
                fchownat(to, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            }
            utimensat(to, name, &TimeSpec::UTIME_OMIT, &entry.status.modified, UtimensatFlags::NoFollowSymlink)
        })?;
        self.done.links += 1;
        Ok(())
    }
}

fn transfer(from: &mut File, to: &mut File, size: u64, buffer: &mut [u8]) -> nix::Result<()> {
    let mut rest = size;
    while rest > 0 {
        let want = usize::try_from(rest).unwrap_or(usize::MAX).min(buffer.len());
        let n = from.read(&mut buffer[..want]).map_err(|error| errno(&error))?;
        if n == 0 {
            break;
        }
        to.write_all(&buffer[..n]).map_err(|error| errno(&error))?;
        rest -= n as u64;
    }
    Ok(())
}

/// Copies the data between the holes. A file system without SEEK_DATA says that all is data (lseek(2)).
fn sparse(from: &mut File, to: &mut File, size: u64, buffer: &mut [u8]) -> nix::Result<()> {
    let size_signed = i64::try_from(size).map_err(|_| Errno::EFBIG)?;
    let mut position = 0;
    while position < size_signed {
        let data = match lseek(&*from, position, Whence::SeekData) {
            Err(Errno::ENXIO) => break,
            other => other?,
        };
        let hole = lseek(&*from, data, Whence::SeekHole)?.min(size_signed);
        if hole <= data {
            break;
        }
        for file in [&mut *from, &mut *to] {
            file.seek(SeekFrom::Start(data.cast_unsigned())).map_err(|error| errno(&error))?;
        }
        transfer(from, to, (hole - data).cast_unsigned(), buffer)?;
        position = hole;
    }
    ftruncate(&*to, size_signed)
}

#[cfg(test)]
mod tests {
    use super::leads;
    use crate::fs::walk::Kind;

    #[test]
    fn names_lead_to_what_is_at_below_and_above_them() {
        for (name, path, kind, leads_there) in [
            ("a/b", "a", Kind::Directory, true),
            ("a/b", "a", Kind::File, false),
            ("a/b", "a/b", Kind::File, true),
            ("a/b", "a/b/c/d", Kind::Link, true),
            ("a/b", "a/bc", Kind::File, false),
            ("a/b", "b", Kind::Directory, false),
            ("a/*/c", "a/x", Kind::Directory, true),
            ("a/*/c", "a/x/c/d", Kind::File, true),
            ("a/*/c", "a/x/d", Kind::Directory, false),
            ("a/*/c", "a/x/y/c", Kind::Directory, false),
            ("*", "a", Kind::File, true),
            ("a/*.txt", "a/b.txt", Kind::File, true),
            ("a/*.txt", "a/.txt", Kind::File, true),
            ("a/*.txt", "a/b.txt.x", Kind::File, false),
            ("a/b*b", "a/b", Kind::File, false),
        ] {
            assert_eq!(leads(name, path.as_bytes(), kind), leads_there, "{name} {path}");
        }
    }
}
