//! Where an output goes: a directory that is held by its descriptor, and a file in it that has no name before it is whole.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Uid, UnlinkatFlags, geteuid, linkat, unlinkat};

use crate::fs::rights::Rights;
use crate::fs::walk::{TreeError, status, status_of};
use crate::types::error::{Error, Result};

/// The directory of an output, and the name of the output in it.
#[derive(Debug)]
pub struct Place {
    /// The directory, opened once.
    pub parent: OwnedFd,
    /// With whose rights everything is done in it.
    pub rights: Rights,
    /// The name in it.
    pub name: OsString,
    /// As the caller wrote it, for people.
    pub path: PathBuf,
}

/// How many links a path may lead through (path_resolution(7)).
const LINKS: usize = 40;

impl Place {
    /// Opens the parent of a path of the caller's. A link on the way counts where root or the launcher's user made it: one
    /// that somebody else can put there leads the output elsewhere.
    ///
    /// # Errors
    /// `verb` and the path, and why.
    pub fn open(path: &Path, verb: &str) -> Result<Place> {
        let object = format!("{verb} {}", path.display());
        let full = std::path::absolute(path).map_err(|error| Error::new(&*object, error))?;
        let (Some(above), Some(name)) = (full.parent(), full.file_name().map(OsStr::to_owned)) else {
            let why = if full.parent().is_none() { "it is the root directory" } else { "its last part is `..`" };
            return Err(Error::new(object, why).hint("name something new in a directory that is there"));
        };
        let parent = walk(above).map_err(|(part, errno)| match errno {
            Errno::ELOOP => Error::new(&*object, format!("{} is a link that somebody else has made", part.display()))
                .hint("name the directory itself"),
            errno => Error::new(&*object, format!("{}: {}", part.display(), errno.desc()))
                .hint("make its parent directory first"),
        })?;
        let rights = Rights::of(parent.as_fd()).map_err(|errno| Error::new(object, errno))?;
        Ok(Place { parent, rights, name, path: path.to_owned() })
    }
}

/// Opens a directory part by part. The path at which that failed, and why: ELOOP for somebody else's link.
fn walk(path: &Path) -> Result<OwnedFd, (PathBuf, Errno)> {
    let top = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = || openat(AT_FDCWD, "/", top, Mode::empty()).map_err(|errno| (PathBuf::from("/"), errno));
    let parts = |path: &Path| -> Vec<OsString> {
        let named = path.components().filter(|part| !matches!(part, Component::RootDir | Component::CurDir));
        named.map(|part| part.as_os_str().to_owned()).rev().collect()
    };
    let (mut dir, mut at, mut rest, mut links) = (root()?, PathBuf::from("/"), parts(path), 0);
    while let Some(part) = rest.pop() {
        let here = at.join(&part);
        let failed = |errno| (here.clone(), errno);
        let next = openat(&dir, part.as_os_str(), flags, Mode::empty()).map_err(failed)?;
        let stat = fstat(&next).map_err(failed)?;
        match SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT) {
            SFlag::S_IFDIR => (dir, at) = (next, here),
            SFlag::S_IFLNK => {
                links += 1;
                let trusted = [Uid::from_raw(0), geteuid()].contains(&Uid::from_raw(stat.st_uid));
                if !trusted || links > LINKS {
                    return Err(failed(Errno::ELOOP));
                }
                // The text of a link never changes; that it is this link's is seen by its number.
                let text = readlinkat(&dir, part.as_os_str()).map_err(failed)?;
                let same = status(dir.as_fd(), &part).and_then(|now| Ok(now.id == status_of(next.as_fd())?.id));
                if !same.map_err(failed)? {
                    return Err(failed(Errno::ELOOP));
                }
                let target = Path::new(&text);
                rest.extend(parts(target));
                if target.is_absolute() {
                    (dir, at) = (root()?, PathBuf::from("/"));
                }
            }
            _ => return Err(failed(Errno::ENOTDIR)),
        }
    }
    Ok(dir)
}

/// A file that is written after the run.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    place: Place,
    made: Made,
}

/// What the file is until it is written.
#[derive(Debug)]
enum Made {
    /// It was there: what is in it stays until it is written. A write that fails half-way leaves half.
    Before,
    /// A new one without a name (O_TMPFILE).
    Unnamed,
    /// A new one under this name, where the file system has none without.
    Draft(OsString),
}

/// More than its owner may write to such a file, or read it.
const OTHERS_WRITE: u32 = 0o022;

impl NewFile {
    /// Opens the file that is there, or makes one without a name.
    ///
    /// # Errors
    /// It is a link, or somebody else could have put it there or could change it; no file can be made there.
    pub fn open(path: &Path, verb: &str) -> Result<NewFile> {
        let place = Place::open(path, verb)?;
        let object = format!("{verb} {}", path.display());
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let (parent, name) = (place.parent.as_fd(), place.name.as_os_str());
        let (file, made) = match place.rights.with(|| openat(parent, name, flags, Mode::empty())) {
            Ok(file) => {
                check(file.as_fd(), place.rights).map_err(|why| {
                    Error::new(&*object, why).hint("name a new file in a directory that nobody else may write to")
                })?;
                (file, Made::Before)
            }
            Err(Errno::ENOENT) => place.rights.with(|| make(parent)).map_err(|errno| {
                Error::new(&*object, errno).hint("name a file in a directory that this user may write to")
            })?,
            Err(Errno::ELOOP) => {
                return Err(Error::new(object, "it is a symbolic link").hint("name the file itself"));
            }
            Err(Errno::ENXIO) => {
                return Err(Error::new(object, "it is a pipe that nobody reads").hint("name a new file"));
            }
            Err(errno) => {
                return Err(Error::new(object, errno).hint("name a file in a directory that this user may write to"));
            }
        };
        Ok(NewFile { file: file.into(), place, made })
    }

    /// Writes it and gives it its name.
    ///
    /// # Errors
    /// What `content` fails with; somebody has taken the name meanwhile. A new file is then gone.
    pub fn write(mut self, verb: &str, content: impl FnOnce(&mut File) -> Result<(), TreeError>) -> Result<()> {
        let object = format!("{verb} {}", self.place.path.display());
        // A pipe or a device has no length.
        if matches!(self.made, Made::Before) && self.file.metadata().is_ok_and(|meta| meta.is_file()) {
            self.file.set_len(0).map_err(|error| Error::new(&*object, error))?;
        }
        content(&mut self.file).map_err(|error| {
            Error::new(&*object, error.to_string())
                .hint("free the disk; see limits.disk and limits.files of the policy")
        })?;
        self.name()
            .map_err(|errno| Error::new(object, errno).hint("name a file that nobody else makes while the run lasts"))
    }

    fn name(&mut self) -> nix::Result<()> {
        let (parent, name) = (self.place.parent.as_fd(), self.place.name.as_os_str());
        match &self.made {
            Made::Before => return Ok(()),
            Made::Unnamed => self.place.rights.with(|| link_open(&self.file, parent, name))?,
            Made::Draft(draft) => self.place.rights.with(|| {
                if status(parent, draft)?.id != status_of(self.file.as_fd())?.id {
                    return Err(Errno::ESTALE);
                }
                linkat(parent, draft.as_os_str(), parent, name, AtFlags::empty())?;
                if status(parent, name)?.id == status_of(self.file.as_fd())?.id { Ok(()) } else { Err(Errno::ESTALE) }
            })?,
        }
        self.drop_draft();
        self.made = Made::Before;
        Ok(())
    }

    /// Removes the draft's name, while it is the draft's.
    fn drop_draft(&self) {
        let Made::Draft(draft) = &self.made else { return };
        let parent = self.place.parent.as_fd();
        let _ = self.place.rights.with(|| {
            if status(parent, draft)?.id != status_of(self.file.as_fd())?.id {
                return Err(Errno::ESTALE);
            }
            unlinkat(parent, draft.as_os_str(), UnlinkatFlags::NoRemoveDir)
        });
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        self.drop_draft();
    }
}

/// A file that was there must be the caller's own, under one name, and nobody else may write to it: whoever made it first
/// in a shared directory would read the result, or add to it. fs.protected_regular knows sticky directories only.
fn check(file: BorrowedFd<'_>, rights: Rights) -> Result<(), &'static str> {
    let stat = fstat(file).map_err(|_| "it cannot be looked at")?;
    let owner = Uid::from_raw(stat.st_uid);
    match SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT) {
        // The machine's own: /dev/null, a tape.
        SFlag::S_IFCHR if owner.is_root() => Ok(()),
        SFlag::S_IFREG | SFlag::S_IFIFO if !rights.owns(owner) => Err("it belongs to somebody else"),
        SFlag::S_IFREG | SFlag::S_IFIFO if stat.st_mode & OTHERS_WRITE != 0 => Err("others may write to it"),
        SFlag::S_IFREG if stat.st_nlink != 1 => Err("it has another name, too"),
        SFlag::S_IFREG | SFlag::S_IFIFO => Ok(()),
        _ => Err("it is neither a file nor a pipe"),
    }
}

fn make(parent: BorrowedFd<'_>) -> nix::Result<(OwnedFd, Made)> {
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let unnamed = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    match openat(parent, ".", unnamed, mode) {
        // gVisor and some file systems have no such thing.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL | Errno::ENOENT) => {}
        made => return made.map(|file| (file, Made::Unnamed)),
    }
    let draft = OsString::from(format!(".oubliette-{}", crate::sys::random::name()?));
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, draft.as_os_str(), flags, mode).map(|file| (file, Made::Draft(draft)))
}

/// By /proc: AT_EMPTY_PATH takes CAP_DAC_READ_SEARCH (linkat(2)).
fn link_open(file: &File, parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(AT_FDCWD, OsStr::from_bytes(path.as_bytes()), parent, name, AtFlags::AT_SYMLINK_FOLLOW)
}
