//! The state directory: where cells and leases live while they run.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat, fstat, mkdirat};
use nix::unistd::{AccessFlags, faccessat, geteuid};

use crate::types::error::{Error, Result};

/// The state directory.
#[derive(Debug)]
pub struct State {
    /// Its path.
    pub path: PathBuf,
    /// The directory of the cells, open.
    pub cells: OwnedFd,
    dir: OwnedFd,
    named: bool,
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl State {
    /// Opens the state directory, and makes it where it is not there.
    ///
    /// # Errors
    /// The named one cannot be made, or is not this user's alone; without a name, no place does.
    pub fn open(named: Option<&Path>) -> Result<State> {
        if let Some(path) = named {
            let path = std::path::absolute(path).map_err(|error| Error::new("find the state directory", error))?;
            return State::at(path, true);
        }
        let mut first = None;
        for path in defaults() {
            match State::at(path, false).and_then(State::writable) {
                Ok(state) => return Ok(state),
                Err(error) => first = first.or(Some(error)),
            }
        }
        if let Some(state) = stepped_round() {
            return Ok(state);
        }
        if !defaults().iter().any(|path| path.parent().is_some_and(Path::exists)) {
            return Err(Error::new("find a place for the state", "this root has neither /run nor /var/tmp nor /tmp")
                .hint("mount a tmpfs on /tmp, or name a directory of this user's own with --state-dir"));
        }
        Err(first
            .unwrap_or_else(|| Error::new("find a state directory", "there is no place for one"))
            .hint("name a directory of this user's own with --state-dir"))
    }

    fn at(path: PathBuf, named: bool) -> Result<State> {
        let (dir, cells) = open_pair(&path, "cells")?;
        Ok(State { path, cells, dir, named })
    }

    /// Itself, where cells can be made in it: an image may bring the directory on its read-only root.
    fn writable(self) -> Result<State> {
        match faccessat(&self.cells, ".", AccessFlags::W_OK, AtFlags::empty()) {
            Err(errno @ (Errno::EROFS | Errno::EACCES)) => {
                Err(Error::new(format!("use state directory {}", self.path.display()), errno))
            }
            _ => Ok(self),
        }
    }

    /// The file on which runs say which directories they work in.
    ///
    /// # Errors
    /// The errno of openat(2).
    pub fn working(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.dir, "working", flags, Mode::S_IRUSR | Mode::S_IWUSR)
    }

    /// The path of a cell.
    pub fn cell_path(&self, id: &str) -> PathBuf {
        self.path.join("cells").join(id)
    }

    /// The directory of the UID leases. Always that of the default state directory: a UID belongs to the whole host,
    /// and two launchers with state directories of their own must not lend the same one.
    ///
    /// # Errors
    /// As for [`State::open`].
    pub fn leases(&self) -> Result<OwnedFd> {
        let shared = |error: Error| {
            error.hint(
                "UIDs are leased in one place for all launchers, whatever --state-dir says: mount a tmpfs on /run",
            )
        };
        let default = if self.named { Some(State::open(None).map_err(shared)?) } else { None };
        let dir = default.as_ref().map_or(self.dir.as_fd(), |state| state.dir.as_fd());
        own_directory(dir, OsStr::new("uids"), true).map_err(|refused| {
            let cause = match refused {
                NotOurs::Errno(errno) => errno.desc().to_owned(),
                NotOurs::Foreign(why) => why,
            };
            Error::new("open the UID leases", cause).hint("make the default state directory writable for root")
        })
    }

    /// A directory of what outlives a run: `workspaces` of users with the key for their names, and `resume`.
    ///
    /// # Errors
    /// It cannot be made, or is not this user's alone.
    pub fn kept(&self, name: &str) -> Result<(PathBuf, OwnedFd)> {
        let place = self.persistent().ok_or_else(|| {
            Error::new("find the persistent state directory", "neither XDG_STATE_HOME nor HOME is set")
                .hint("name one with --state-dir")
        })?;
        // Root's is in /var/lib: an image without one keeps nothing, and what would be made there would be gone with it.
        if let (false, false, Some(base)) = (self.named, geteuid().is_root(), place.parent()) {
            let made = std::fs::create_dir_all(base);
            made.map_err(|error| Error::new(format!("make {}", base.display()), error).hint(HINT))?;
        }
        open_pair(&place, name).map(|(_, inner)| (place.join(name), inner))
    }

    /// The same where it is there already.
    ///
    /// # Errors
    /// Whether it is there cannot be seen, or it is not this user's alone.
    pub fn kept_before(&self, name: &str) -> Result<Option<OwnedFd>> {
        let Some(place) = self.persistent() else { return Ok(None) };
        let there = place.join(name).try_exists();
        match there.map_err(|error| Error::new(format!("look for {}", place.join(name).display()), error))? {
            true => open_pair(&place, name).map(|(_, inner)| Some(inner)),
            false => Ok(None),
        }
    }

    fn persistent(&self) -> Option<PathBuf> {
        if self.named {
            return Some(self.path.join("kept"));
        }
        if geteuid().is_root() {
            return Some("/var/lib/oubliette".into());
        }
        let base = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let base = base.or_else(|| crate::sys::environ::home().map(|home| home.join(".local/state")));
        base.map(|base| base.join("oubliette"))
    }
}

const HINT: &str =
    "name a directory of this user's own, on a disk that is neither full nor read-only, with --state-dir";

/// A directory of this user's own and one in it, both made where they are not there.
fn open_pair(path: &Path, below: &str) -> Result<(OwnedFd, OwnedFd)> {
    let object = format!("use state directory {}", path.display());
    let refused = |refused: NotOurs| {
        let error = match refused {
            NotOurs::Errno(errno) => Error::new(&*object, errno),
            NotOurs::Foreign(why) => Error::new(&*object, why),
        };
        error.hint(HINT)
    };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::new(&*object, "it is no directory of its own").hint(HINT));
    };
    let parent = open(parent, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let parent = parent.map_err(|errno| refused(NotOurs::Errno(errno)))?;
    let dir = own_directory(parent.as_fd(), name, false).map_err(refused)?;
    let inner = own_directory(dir.as_fd(), OsStr::new(below), true).map_err(refused)?;
    Ok((dir, inner))
}

enum NotOurs {
    Errno(Errno),
    Foreign(String),
}

/// Opens or makes a directory that is this user's and that nobody else can write. A name that somebody else took
/// first (in /tmp) is never used. `inner`: it is in a directory of that kind, so that whatever it holds is ours.
fn own_directory(parent: BorrowedFd<'_>, name: &OsStr, inner: bool) -> Result<OwnedFd, NotOurs> {
    let opened = match openat(parent, name, DIRECTORY, Mode::empty()) {
        Err(Errno::ENOENT) => {
            match mkdirat(parent, name, Mode::from_bits_truncate(0o711)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(NotOurs::Errno(errno)),
            }
            openat(parent, name, DIRECTORY, Mode::empty())
        }
        other => other,
    };
    let (opened, was) = match opened {
        Err(Errno::EACCES) => open_shut(parent, name).map(|(dir, was)| (Ok(dir), Some(was))).unwrap_or((opened, None)),
        other => (other, None),
    };
    let dir = opened.map_err(|errno| match errno {
        Errno::ELOOP | Errno::ENOTDIR => NotOurs::Foreign("it is a link or a file".into()),
        errno => NotOurs::Errno(errno),
    })?;
    let stat = fstat(&dir).map_err(NotOurs::Errno)?;
    if stat.st_uid != geteuid().as_raw() {
        return Err(NotOurs::Foreign(format!("it belongs to uid {}", stat.st_uid)));
    }
    if stat.st_mode & 0o7777 != 0o711 {
        if !inner && !ours(dir.as_fd()).map_err(NotOurs::Errno)? {
            let _ = was.map(|was| fchmod(&dir, Mode::from_bits_truncate(was)));
            return Err(NotOurs::Foreign("it holds other files than oubliette's".into()));
        }
        // Nobody lists it, and a run's UID gets through: cells have unguessable names.
        fchmod(&dir, Mode::from_bits_truncate(0o711)).map_err(NotOurs::Errno)?;
    }
    Ok(dir)
}

/// Opens a directory of ours whose mode keeps us out, with a mode that does not; gives also the one that it had. Where
/// nothing holds the modes of a UID's files back, an agent may have set that.
///
/// # Errors
/// EACCES where it is somebody else's.
pub fn open_shut(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(OwnedFd, u32), Errno> {
    let there = openat(parent, name, DIRECTORY | OFlag::O_PATH, Mode::empty())?;
    let stat = fstat(&there)?;
    if stat.st_uid != geteuid().as_raw() {
        return Err(Errno::EACCES);
    }
    // By the link of its descriptor: a name could stand for another directory by now.
    let link = format!("/proc/self/fd/{}", there.as_raw_fd());
    fchmodat(AT_FDCWD, &*link, Mode::S_IRWXU, FchmodatFlags::FollowSymlink)?;
    Ok((openat(&there, ".", DIRECTORY, Mode::empty())?, stat.st_mode & 0o7777))
}

/// Gives the directory of the cells its mode back, before one of them is removed.
pub fn reopen_cells(cells: BorrowedFd<'_>) {
    if fstat(cells).is_ok_and(|stat| stat.st_mode & 0o700 != 0o700 && stat.st_uid == geteuid().as_raw()) {
        let _ = fchmod(cells, Mode::from_bits_truncate(0o711));
    }
}

/// Whether a directory is empty or holds nothing but what [`State`] puts there: whoever names /etc or his HOME would
/// find its mode changed.
fn ours(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    let known =
        |name: &std::ffi::CStr| matches!(name.to_bytes(), b"." | b".." | b"cells" | b"uids" | b"kept" | b"working");
    Ok(crate::fs::walk::entries(dir)?.iter().all(|entry| entry.is_ok_and(|entry| known(entry.file_name()))))
}

fn defaults() -> Vec<PathBuf> {
    let uid = geteuid();
    let mut places = Vec::new();
    if uid.is_root() {
        places.push(PathBuf::from("/run/oubliette"));
    } else if let Some(runtime) =
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute())
    {
        places.push(runtime.join("oubliette"));
    }
    places.extend(["/var/tmp", "/tmp"].map(|place| Path::new(place).join(format!("oubliette-{uid}"))));
    places
}

/// Where somebody else has taken every usual name first: another name, found again by its owner.
fn stepped_round() -> Option<State> {
    let start = format!("oubliette-{}.", geteuid());
    for place in ["/var/tmp", "/tmp"] {
        let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
        let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&start));
        if let Some(state) = ours.filter_map(|entry| State::at(entry.path(), false).ok()).next() {
            return Some(state);
        }
        let fresh = Path::new(place).join(format!("{start}{}", crate::sys::random::name().ok()?));
        if let Ok(state) = State::at(fresh.clone(), false) {
            return Some(state);
        }
        // With too few descriptors, say, each try would leave one more. Only what is empty goes, and nothing is followed.
        for made in [fresh.join("cells"), fresh] {
            let _ = std::fs::remove_dir(made);
        }
    }
    None
}
