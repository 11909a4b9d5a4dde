//! Walking a tree that a hostile program made: by directory descriptor, following nothing, crossing no mount.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::vec::IntoIter;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

pub use crate::sys::inode::{FileId, Kind, Mount, Status, status, status_of};

/// How much of a tree is taken at most. What exceeds it is an error, never a silent cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Sum of the apparent sizes of all regular files: a sparse file counts in full, because whoever reads it next
    /// may not keep the holes.
    pub bytes: u64,
    /// Names of any kind.
    pub files: u64,
    /// Directories inside each other. The walk holds one descriptor for each (twice while copying or comparing).
    pub depth: usize,
    /// What cannot be read, and what another mount covers, is passed over and named instead of ending the walk.
    pub lenient: bool,
}

impl Default for Bounds {
    /// 4 GiB, a million names, 256 levels (at most 512 descriptors, half of the usual RLIMIT_NOFILE).
    fn default() -> Bounds {
        Bounds { bytes: 4 << 30, files: 1_000_000, depth: 256, lenient: false }
    }
}

/// Why a tree was not taken.
#[derive(Debug)]
pub enum TreeError {
    /// One of the [`Bounds`] was reached at `path`.
    Bound {
        /// Where, relative to the tree, escaped for printing.
        path: String,
        /// Which: `bytes`, `files`, `depth` or `patch bytes`.
        bound: &'static str,
        /// Its value.
        limit: u64,
    },
    /// A call on `path` failed.
    Path {
        /// `read`, `create`, …
        verb: &'static str,
        /// On what, relative to the tree, escaped for printing.
        path: String,
        /// The reason.
        errno: Errno,
    },
    /// Something else is mounted at `path`, and files below it would be lost.
    Mount {
        /// Where, relative to the tree, escaped for printing.
        path: String,
    },
    /// The receiver of the output failed.
    Output(std::io::Error),
}

/// One name that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Where, relative to the tree, escaped for printing.
    pub path: String,
    /// Why, in a few words.
    pub why: String,
}

/// What was passed over: the first [`LISTED`] by name, and how many in all.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Passed {
    /// By name.
    pub listed: Vec<Skipped>,
    /// In all.
    pub total: u64,
}

/// How many names a [`Passed`] lists. A hostile tree has millions of fifos.
pub const LISTED: usize = 100;

/// How much of a name is listed, in bytes.
const NAME: usize = 512;

impl Passed {
    /// As messages of a channel, the count last.
    pub fn messages(&self) -> impl Iterator<Item = Vec<u8>> {
        let named = |one: &Skipped| [b"P", one.path.as_bytes(), b"\0", one.why.as_bytes()].concat();
        let count = [&b"Q"[..], &self.total.to_le_bytes()].concat();
        self.listed.iter().map(named).chain((self.total > 0).then_some(count))
    }

    /// Takes such a message; gives whether it was one.
    pub fn hear(&mut self, message: &[u8]) -> bool {
        match message {
            [b'P', named @ ..] => {
                let text = String::from_utf8_lossy(named);
                let (path, why) = text.split_once('\0').unwrap_or((&text, ""));
                self.listed.push(Skipped { path: path.to_owned(), why: why.to_owned() });
                self.total += 1;
                true
            }
            &[b'Q', a, b, c, d, e, f, g, h] => {
                self.total = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
                true
            }
            _ => false,
        }
    }

    /// Takes one more.
    pub fn add(&mut self, path: &[u8], why: impl Into<String>) {
        self.total += 1;
        if self.listed.len() < LISTED {
            let shown = printable(&path[..path.len().min(NAME)]);
            let path = if path.len() > NAME { shown + "…" } else { shown };
            self.listed.push(Skipped { path, why: why.into() });
        }
    }
}

/// What a walk does with a name that it is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// It is taken.
    Take,
    /// It is not part of what is wanted, and nobody misses it.
    Out,
    /// It is passed over and named, for this reason.
    Named(&'static str),
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TreeError::Bound { path, bound, limit } => write!(f, "`{path}` exceeds the bound of {limit} {bound}"),
            TreeError::Path { verb, path, errno } => write!(f, "cannot {verb} `{path}`: {}", errno.desc()),
            TreeError::Mount { path } => write!(f, "another file system is mounted at `{path}`"),
            TreeError::Output(error) => write!(f, "cannot write the output: {error}"),
        }
    }
}

impl std::error::Error for TreeError {}

impl From<std::io::Error> for TreeError {
    fn from(error: std::io::Error) -> TreeError {
        TreeError::Output(error)
    }
}

/// The errno of an I/O error that came from a system call.
pub fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// A name for a terminal or a log: no control or invisible character survives, bytes that are no UTF-8 become `\xNN`.
pub fn printable(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\'' | '"' => text.push(c),
                c => text.extend(c.escape_debug()),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Opens the directory `name` in `dir`, never through a link.
///
/// # Errors
/// The errno of openat(2): ENOTDIR for a link or anything else that is no directory.
pub fn open_dir(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

/// Opens the regular file `name` in `dir` for reading, never through a link, and looks at what was opened: a live
/// neighbour may have put a fifo there since the name was looked at (O_NONBLOCK: the open of a fifo does not wait).
///
/// # Errors
/// The errno of openat(2); EINVAL when it is no regular file.
pub fn open_file(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(File, Status), Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let fd = openat(dir, name, flags, Mode::empty())?;
    let status = status_of(fd.as_fd())?;
    match status.kind {
        Kind::File => Ok((fd.into(), status)),
        _ => Err(Errno::EINVAL),
    }
}

/// A second, independent reading position on an open directory.
///
/// # Errors
/// The errno of openat(2): EACCES when the directory lost its read or search bit.
pub fn entries(dir: BorrowedFd<'_>) -> Result<Dir, Errno> {
    Dir::from_fd(open_dir(dir, OsStr::new("."))?)
}

/// What a name is; asks the inode where the file system does not tell in the listing.
pub fn kind_of(dir: BorrowedFd<'_>, name: &OsStr, listed: Option<Type>) -> Result<Kind, Errno> {
    Ok(match listed {
        Some(Type::Directory) => Kind::Directory,
        Some(Type::File) => Kind::File,
        Some(Type::Symlink) => Kind::Link,
        Some(Type::Fifo) => Kind::Fifo,
        Some(Type::Socket) => Kind::Socket,
        Some(_) => Kind::Device,
        None => status(dir, name)?.kind,
    })
}

/// `.` and `..`.
pub fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

/// One name of a tree.
#[derive(Debug)]
pub struct Entry {
    /// Its name in its directory.
    pub name: OsString,
    /// What it was when the walk looked.
    pub status: Status,
}

/// What a walk comes across.
#[derive(Debug)]
pub enum Step {
    /// A directory; [`Walk::dir`] is this directory now.
    Enter(Entry),
    /// The end of a directory; [`Walk::dir`] is its parent again.
    Leave,
    /// A regular file in [`Walk::dir`].
    File(Entry),
    /// A symbolic link in [`Walk::dir`].
    Link(Entry),
}

struct Level {
    dir: OwnedFd,
    names: IntoIter<OsString>,
    path: usize,
}

/// A walk through a tree in the byte order of full paths, which is git's order, within [`Bounds`].
///
/// Fifos, sockets and devices are passed over, named and counted. What another mount covers and what cannot be read is an
/// error, or with [`Bounds::lenient`] the same.
pub struct Walk<'a> {
    levels: Vec<Level>,
    path: Vec<u8>,
    mount: Mount,
    bounds: Bounds,
    leave_out: &'a dyn Fn(&[u8], Kind) -> Leave,
    files: u64,
    bytes: u64,
    passed: Passed,
}

impl<'a> Walk<'a> {
    /// A walk through all of the open directory `root`.
    ///
    /// # Errors
    /// When the directory itself cannot be read.
    pub fn new(root: BorrowedFd<'_>, bounds: &Bounds) -> Result<Walk<'static>, TreeError> {
        Walk::without(root, bounds, &|_, _| Leave::Take)
    }

    /// The same without the paths (and what is below them) that `leave_out` does not take.
    ///
    /// # Errors
    /// When the directory itself cannot be read.
    pub fn without(
        root: BorrowedFd<'_>,
        bounds: &Bounds,
        leave_out: &'a dyn Fn(&[u8], Kind) -> Leave,
    ) -> Result<Walk<'a>, TreeError> {
        let failed = |errno| TreeError::Path { verb: "read", path: ".".into(), errno };
        let mount = status_of(root).map_err(failed)?.mount;
        let dir = open_dir(root, OsStr::new(".")).map_err(failed)?;
        let (path, levels) = (Vec::new(), Vec::new());
        let passed = Passed::default();
        let mut walk = Walk { levels, path, mount, bounds: *bounds, leave_out, files: 0, bytes: 0, passed };
        walk.push(dir)?;
        Ok(walk)
    }

    /// The directory that the last step is about.
    ///
    /// # Panics
    /// After [`Walk::step`] said that there is no more.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.levels.last().expect("a walk that has ended has no directory").dir.as_fd()
    }

    /// The path of the last step, relative to the root, without a trailing slash.
    pub fn path(&self) -> &[u8] {
        self.path.strip_suffix(b"/").unwrap_or(&self.path)
    }

    /// What was passed over.
    pub fn passed(self) -> Passed {
        self.passed
    }

    /// Passes over the file of the last step, which could not be read, where the bounds are lenient.
    ///
    /// # Errors
    /// They are not, or the reason is another than its permissions.
    pub fn pass_unreadable(&mut self, verb: &'static str, errno: Errno) -> Result<(), TreeError> {
        if !self.bounds.lenient || !matches!(errno, Errno::EACCES | Errno::EPERM) {
            return Err(self.failed(verb, errno));
        }
        let path = self.path().to_vec();
        self.passed.add(&path, format!("cannot {verb} it: {}", errno.desc()));
        Ok(())
    }

    /// An error about the last step.
    pub fn failed(&self, verb: &'static str, errno: Errno) -> TreeError {
        TreeError::Path { verb, path: printable(self.path()), errno }
    }

    /// The next step, or nothing at the end.
    ///
    /// # Errors
    /// A bound is exceeded, or a directory cannot be read.
    pub fn step(&mut self) -> Result<Option<Step>, TreeError> {
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            self.path.truncate(level.path);
            let Some(name) = level.names.next() else {
                self.levels.pop();
                return Ok((!self.levels.is_empty()).then_some(Step::Leave));
            };
            self.path.extend_from_slice(name.as_bytes());
            let status = status(self.dir(), &name).map_err(|errno| self.failed("read", errno))?;
            match (self.leave_out)(&self.path, status.kind) {
                Leave::Take => {}
                Leave::Out => continue,
                Leave::Named(why) => {
                    self.passed.add(&self.path, why);
                    continue;
                }
            }
            if !self.mount.holds(&status) {
                if !self.bounds.lenient {
                    return Err(TreeError::Mount { path: printable(&self.path) });
                }
                self.passed.add(&self.path, "another file system is mounted there");
                continue;
            }
            let entry = Entry { name, status };
            let odd = match status.kind {
                Kind::Directory => match self.enter(entry)? {
                    Some(step) => return Ok(Some(step)),
                    None => continue,
                },
                Kind::File => {
                    self.charge(status.size)?;
                    return Ok(Some(Step::File(entry)));
                }
                Kind::Link => return Ok(Some(Step::Link(entry))),
                Kind::Fifo => "a fifo",
                Kind::Socket => "a socket",
                Kind::Device => "a device",
            };
            self.passed.add(&self.path, odd);
        }
    }

    /// Nothing where it cannot be read and the bounds are lenient.
    fn enter(&mut self, entry: Entry) -> Result<Option<Step>, TreeError> {
        if self.levels.len() > self.bounds.depth {
            return Err(self.exceeded("levels", self.bounds.depth as u64));
        }
        let opened = open_dir(self.dir(), &entry.name).and_then(|dir| entries(dir.as_fd()).map(|_| dir));
        let dir = match opened {
            Ok(dir) => dir,
            Err(errno) => return self.pass_unreadable("open", errno).map(|()| None),
        };
        self.path.push(b'/');
        self.push(dir)?;
        Ok(Some(Step::Enter(entry)))
    }

    fn push(&mut self, dir: OwnedFd) -> Result<(), TreeError> {
        let names = self.list(dir.as_fd())?;
        self.levels.push(Level { dir, names: names.into_iter(), path: self.path.len() });
        Ok(())
    }

    /// Sorted as git sorts a tree: a directory as if its name ended in a slash. Bounded while it is read, because a
    /// directory of a hundred million names would fill the launcher's memory.
    fn list(&mut self, dir: BorrowedFd<'_>) -> Result<Vec<OsString>, TreeError> {
        let failed = |walk: &Walk<'_>, errno| walk.failed("list", errno);
        let mut names: Vec<Vec<u8>> = Vec::new();
        for entry in entries(dir).map_err(|errno| failed(self, errno))?.iter() {
            let entry = entry.map_err(|errno| failed(self, errno))?;
            let mut name = entry.file_name().to_bytes().to_vec();
            if is_dots(&name) {
                continue;
            }
            self.files += 1;
            if self.files > self.bounds.files {
                return Err(self.exceeded("files", self.bounds.files));
            }
            let kind = kind_of(dir, OsStr::from_bytes(&name), entry.file_type());
            if kind.map_err(|errno| failed(self, errno))? == Kind::Directory {
                name.push(b'/');
            }
            names.push(name);
        }
        names.sort_unstable();
        let bare = |mut name: Vec<u8>| {
            name.pop_if(|last| *last == b'/');
            OsString::from_vec(name)
        };
        Ok(names.into_iter().map(bare).collect())
    }

    fn charge(&mut self, size: u64) -> Result<(), TreeError> {
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.bounds.bytes { Err(self.exceeded("bytes", self.bounds.bytes)) } else { Ok(()) }
    }

    fn exceeded(&self, bound: &'static str, limit: u64) -> TreeError {
        TreeError::Bound { path: printable(self.path()), bound, limit }
    }
}

/// A directory that was checked, known again by its device and inode: its name may by now stand for another.
#[derive(Debug)]
pub struct CheckedDirectory {
    /// Its name.
    pub path: PathBuf,
    /// The checked directory itself.
    pub fd: OwnedFd,
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn names_for_people() {
        for (name, shown) in [
            (&b"plain.txt"[..], "plain.txt"),
            (b"it's \"quoted\"", "it's \"quoted\""),
            (b"new\nline", "new\\nline"),
            (b"\x1b[2J", "\\u{1b}[2J"),
            (b"\xff\xfe", "\\xff\\xfe"),
            ("übung".as_bytes(), "übung"),
            ("right\u{202e}left".as_bytes(), "right\\u{202e}left"),
            (b"back\\slash", "back\\\\slash"),
        ] {
            assert_eq!(printable(name), shown);
        }
    }
}
