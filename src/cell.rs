//! A cell: the directory of one run, locked by its launcher. Alive means locked.
#![forbid(unsafe_code)]

pub mod alone;
pub mod disk_use;
pub mod nested;
pub mod outputs;
pub mod place;
pub mod resume;
pub mod state;
pub mod sweep;
pub mod uids;
pub mod workspace;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, fchownat, unlinkat};
use serde::{Deserialize, Serialize};

use crate::cell::state::{State, open_shut, reopen_cells};
use crate::fs::walk::{FileId, status, status_of};
use crate::fs::wipe::{Left, Wiped, open_repaired, overwrite, wipe};
use crate::sys;
use crate::sys::ids::Ids;
use crate::types::error::{Error, Result};
use crate::types::layout::{CellFile, Places};

/// The file with what `sweep` and `ps` must know.
pub const RECORD: &str = "cell.json";

/// The longest record, in bytes.
const RECORD_MAX: u64 = 16 * 1024;

/// What a cell says of itself. No secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Record {
    /// Whose run it is.
    pub user: String,
    /// Which agent.
    pub agent: String,
    /// Which level.
    pub level: String,
    /// Seconds since 1970.
    pub started: u64,
    /// The launcher.
    pub launcher: i32,
    /// The run's own UID: `sweep` kills what has it. Nothing where somebody else may have it, too.
    pub uid: Option<u32>,
    /// Its control groups.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
    /// Its processes ended with its launcher.
    #[serde(default)]
    pub pid_namespace: bool,
    /// HOME, /tmp and workspace are directories of the cell; else they were on a tmpfs and are gone with it.
    pub directories: bool,
    /// The file in HOME that holds the credential, or its phantom.
    #[serde(default)]
    pub credential: Option<String>,
}

impl Record {
    /// From the content of the file; nothing where that is half-written or not a record.
    pub fn parse(text: &[u8]) -> Option<Record> {
        serde_json::from_slice(text).ok()
    }
}

/// A live cell of this launcher's.
#[derive(Debug)]
pub struct Cell {
    /// Its name: 128 random bits.
    pub id: String,
    /// Its path.
    pub path: PathBuf,
    parent: OwnedFd,
    lock: Flock<OwnedFd>,
    written: Vec<(PathBuf, FileId)>,
    directories: bool,
    wiped: bool,
}

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Cell {
    /// Makes a cell and locks it.
    ///
    /// # Errors
    /// The directory cannot be made: full or read-only disk. Nothing is left.
    pub fn create(state: &State) -> Result<Cell> {
        let parent = state
            .cells
            .try_clone()
            .map_err(|error| Error::new("make a cell", error).hint("raise the limit on open files"))?;
        loop {
            let id = sys::random::name()
                .map_err(|errno| Error::new("make a cell", errno).hint("use a kernel with getrandom(2)"))?;
            let path = state.cell_path(&id);
            let failed = |errno: Errno| {
                Error::new(format!("make cell {}", path.display()), errno)
                    .hint("free the disk or make it writable, or name another place with --state-dir")
            };
            mkdirat(&parent, id.as_str(), Mode::S_IRWXU).map_err(failed)?;
            // A sweep may have found it before it was locked, taken it for dead and removed it; `ps` only looks.
            let dir = match openat(&parent, id.as_str(), DIRECTORY, Mode::empty()) {
                Err(Errno::ENOENT) => continue,
                other => other.map_err(|errno| {
                    let _ = unlinkat(&parent, id.as_str(), UnlinkatFlags::RemoveDir);
                    failed(errno)
                })?,
            };
            let lock = match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((_, errno)) => {
                    let _ = unlinkat(&parent, id.as_str(), UnlinkatFlags::RemoveDir);
                    if errno == Errno::EWOULDBLOCK {
                        continue;
                    }
                    return Err(failed(errno));
                }
            };
            if still_there(parent.as_fd(), &id, &lock) {
                return Ok(Cell { id, path, parent, lock, written: Vec::new(), directories: false, wiped: false });
            }
        }
    }

    /// Writes the record.
    ///
    /// # Errors
    /// A full disk.
    pub fn record(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec(record).unwrap_or_default();
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&*self.lock, RECORD, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let written = file.map_err(std::io::Error::from).and_then(|file| File::from(file).write_all(&text));
        written.map_err(|error| {
            Error::new(format!("write {}", self.path.join(RECORD).display()), error)
                .hint("free the disk, or name another place with --state-dir")
        })
    }

    /// What holds it, for a process that closes everything else.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.parent.as_fd(), self.lock.as_fd()]
    }

    /// Its directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// HOME, /tmp, workspace and settings as directories, where no tmpfs can be mounted.
    ///
    /// # Errors
    /// A full disk.
    pub fn lay_out(&mut self, agent: Ids, launcher: Ids) -> Result<Places> {
        let failed =
            |errno: Errno| Error::new(format!("lay out cell {}", self.path.display()), errno).hint("free the disk");
        self.directories = true;
        for name in ["home", "tmp", "work", "settings", "base"] {
            mkdirat(&*self.lock, name, Mode::S_IRWXU).map_err(failed)?;
            let to_agent = !matches!(name, "settings" | "base");
            if to_agent && agent != launcher {
                fchownat(&*self.lock, name, Some(agent.uid), Some(agent.gid), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
                    .map_err(failed)?;
            }
        }
        if agent != launcher {
            // The outer directory stays the launcher's: whatever modes the agent sets inside, nobody else gets in.
            fchownat(&self.parent, self.id.as_str(), None, Some(agent.gid), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(failed)?;
            fchmodat(&self.parent, self.id.as_str(), Mode::from_bits_truncate(0o710), FchmodatFlags::NoFollowSymlink)
                .map_err(failed)?;
            fchownat(&*self.lock, "settings", None, Some(agent.gid), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(failed)?;
            fchmodat(&*self.lock, "settings", Mode::from_bits_truncate(0o750), FchmodatFlags::NoFollowSymlink)
                .map_err(failed)?;
        }
        let at = |name: &str| self.path.join(name);
        Ok(Places { home: at("home"), tmp: at("tmp"), work: at("work"), settings: at("settings"), broker: None })
    }

    /// Writes the launcher's files into the laid-out directories, before anything else can touch them.
    ///
    /// # Errors
    /// A full disk.
    pub fn write(&mut self, files: &[CellFile], agent: Ids, launcher: Ids) -> Result<()> {
        for file in files {
            let Ok(rest) = file.path.strip_prefix(&self.path) else { continue };
            let failed = |error: std::io::Error| {
                Error::new(format!("write {}", file.path.display()), error).hint("free the disk")
            };
            self.write_one(rest, file, (agent != launcher).then_some(agent)).map_err(failed)?;
        }
        Ok(())
    }

    /// `agent` is who gets the directories down to a file in HOME, and mostly the file.
    fn write_one(&mut self, rest: &Path, file: &CellFile, agent: Option<Ids>) -> std::io::Result<()> {
        let at_home = file.to_agent || rest.starts_with("home");
        let mut dir = self.lock.try_clone()?;
        let parts: Vec<&OsStr> = rest.iter().collect();
        let Some((name, parents)) = parts.split_last() else { return Ok(()) };
        for part in parents {
            // What stays the launcher's the agent must still get through; the directory around it is closed to others.
            let mode = if at_home { 0o700 } else { 0o755 };
            match mkdirat(&dir, *part, Mode::S_IRWXU) {
                Ok(()) => {
                    fchmodat(&dir, *part, Mode::from_bits_truncate(mode), FchmodatFlags::NoFollowSymlink)?;
                    give(dir.as_fd(), part, agent.filter(|_| at_home))?;
                }
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            dir = openat(&dir, *part, DIRECTORY, Mode::empty())?;
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut out = File::from(openat(&dir, *name, flags, Mode::from_bits_truncate(file.mode))?);
        // Whatever the caller's umask says: the agent reads its settings.
        fchmod(&out, Mode::from_bits_truncate(file.mode))?;
        out.write_all(&file.bytes)?;
        give(dir.as_fd(), name, agent.filter(|_| file.to_agent))?;
        self.written.push((rest.to_owned(), status(dir.as_fd(), name)?.id));
        Ok(())
    }

    /// Removes everything. Comes after the last process of the cell is dead.
    pub fn wipe(mut self) -> Wiped {
        self.remove()
    }

    fn remove(&mut self) -> Wiped {
        self.wiped = true;
        reopen_cells(self.parent.as_fd());
        if !self.directories
            && unlinkat(&*self.lock, RECORD, UnlinkatFlags::NoRemoveDir).is_ok_and(|()| true)
            && unlinkat(&self.parent, self.id.as_str(), UnlinkatFlags::RemoveDir).is_ok()
        {
            return Wiped { files: 2, left: Vec::new() };
        }
        let left = self.zero_written();
        let mut wiped = wipe(self.parent.as_fd(), OsStr::new(&self.id), self.lock.as_fd());
        wiped.left.extend(left);
        wiped
    }
}

impl Cell {
    /// Zeroes what the launcher itself has written, where that helps: a tmpfs gives its pages back and no disk ever saw
    /// them, and zeros would only cost.
    fn zero_written(&mut self) -> Vec<Left> {
        let mut left = Vec::new();
        let written = std::mem::take(&mut self.written);
        if nix::sys::statfs::fstatfs(&*self.lock).is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
        {
            return left;
        }
        for (path, id) in written {
            match zero(self.lock.as_fd(), &path, id) {
                // What the agent itself removed or replaced is no failure of the wipe.
                Ok(()) | Err(Errno::ENOENT | Errno::ESTALE | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(errno) => {
                    left.push(Left { name: path.display().to_string(), why: format!("not zeroed: {}", errno.desc()) });
                }
            }
        }
        left
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if !self.wiped {
            self.remove();
        }
    }
}

fn give(dir: BorrowedFd<'_>, name: &OsStr, owner: Option<Ids>) -> Result<(), Errno> {
    let Some(Ids { uid, gid }) = owner else { return Ok(()) };
    fchownat(dir, name, Some(uid), Some(gid), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// Zeroes what the launcher of a dead cell had written where others could find it on the disk: its credential and its
/// settings. Their inodes are not known any more, so what has a second name by now is left as it is ([`overwrite`]).
///
/// `credential` is from the record.
pub fn zero_dead(cell: BorrowedFd<'_>, credential: Option<&str>) {
    let Ok(mount) = status_of(cell).map(|status| status.mount) else { return };
    if let Some(name) = credential {
        let _ = zero_below(cell, &Path::new("home").join(name), None);
    }
    let Ok(settings) = open_repaired(cell, OsStr::new("settings"), mount) else { return };
    let entries = crate::fs::walk::entries(settings.as_fd());
    for entry in entries.into_iter().flat_map(|mut dir| dir.iter().flatten().collect::<Vec<_>>()) {
        let _ = overwrite(settings.as_fd(), OsStr::from_bytes(entry.file_name().to_bytes()), None);
    }
}

/// Zeroes a file of the launcher's in place, down a path that the agent may have changed since.
fn zero(cell: BorrowedFd<'_>, path: &Path, id: FileId) -> Result<(), Errno> {
    zero_below(cell, path, Some(id))
}

/// The same where the inode may not be known any more.
fn zero_below(cell: BorrowedFd<'_>, path: &Path, id: Option<FileId>) -> Result<(), Errno> {
    let parts: Vec<&OsStr> = path.iter().collect();
    let Some((name, parents)) = parts.split_last() else { return Ok(()) };
    if path.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(Errno::EINVAL);
    }
    let mount = status_of(cell)?.mount;
    let mut dir = cell.try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
    for part in parents {
        // The agent may have closed its HOME.
        dir = open_repaired(dir.as_fd(), part, mount)?;
    }
    overwrite(dir.as_fd(), name, id)
}

/// Whether a name is one that [`Cell::create`] gives.
pub fn is_id(name: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    bytes.len() == 32 && bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn still_there(parent: BorrowedFd<'_>, id: &str, dir: &OwnedFd) -> bool {
    let here = fstat(dir);
    let named = fstatat(parent, id, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW);
    matches!((here, named), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

/// A cell as another process finds it.
#[derive(Debug)]
pub enum Found {
    /// Its launcher lives.
    Live(OwnedFd),
    /// Its launcher is dead; the lock is ours now.
    Dead(Flock<OwnedFd>),
}

/// Looks at a cell and tries to lock it.
///
/// # Errors
/// ENOENT when it has just gone; ELOOP or ENOTDIR for what is no directory.
pub fn look(cells: BorrowedFd<'_>, id: &OsStr) -> Result<Found, Errno> {
    let dir = match openat(cells, id, DIRECTORY, Mode::empty()) {
        // Its owner has shut it, or another agent of his UID.
        Err(Errno::EACCES) => open_shut(cells, id)?.0,
        other => other?,
    };
    match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Found::Dead(lock)),
        Err((dir, Errno::EWOULDBLOCK)) => Ok(Found::Live(dir)),
        Err((_, errno)) => Err(errno),
    }
}

/// Reads the record of a cell; nothing when it is missing, half-written or not a record.
pub fn read_record(cell: BorrowedFd<'_>) -> Option<Record> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(cell, RECORD, flags, Mode::empty()).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(RECORD_MAX).read_to_end(&mut text).ok()?;
    Record::parse(&text)
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
