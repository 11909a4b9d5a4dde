//! Where a workspace goes after the run.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::openat;
use nix::sys::stat::Mode;

use super::DIRECTORY;
use crate::error::{Error, Result};
use crate::export::{to_directory, to_tar};
use crate::report::Skips;
use crate::request::{Export, Request};
use crate::tree::{Bounds, Passed, TreeError};

/// Where things go after the run: opened before it, so that a run whose result could not be kept does not start.
#[derive(Debug)]
pub struct Outputs {
    export: Option<Target>,
    patch: Option<NewFile>,
}

/// A file that is written after the run. What was in it before stays until then; one that was made for nothing goes.
#[derive(Debug)]
struct NewFile {
    file: File,
    path: PathBuf,
    unused: bool,
}

#[derive(Debug)]
enum Target {
    Directory { parent: OwnedFd, name: std::ffi::OsString, path: PathBuf },
    Tar(NewFile),
    Stdout(File),
}

impl Outputs {
    /// Opens what `--export` and `--patch` name.
    ///
    /// # Errors
    /// A file that cannot be made, a parent that does not exist.
    pub fn open(request: &Request) -> Result<Outputs> {
        let export = match &request.export {
            None => None,
            Some(Export::Stdout) => {
                let stdout = std::io::stdout().as_fd().try_clone_to_owned();
                let stdout = stdout.map_err(|error| Error::new("export to standard output", error))?;
                Some(Target::Stdout(stdout.into()))
            }
            Some(Export::Tar(path)) => Some(Target::Tar(NewFile::open(path, "export to")?)),
            Some(Export::Directory(path)) => Some(target_directory(path)?),
        };
        let patch = match &request.patch {
            None => None,
            Some(path) => Some(NewFile::open(path, "write patch")?),
        };
        Ok(Outputs { export, patch })
    }

    /// Whether the workspace is read after the run.
    pub fn any(&self) -> bool {
        self.export.is_some() || self.patch.is_some()
    }

    /// Whether the workspace as it was at the start is needed.
    pub fn needs_base(&self) -> bool {
        self.patch.is_some()
    }

    /// Writes them. Comes after the last process of the cell is dead.
    ///
    /// # Errors
    /// What could not be written.
    pub fn write(
        self,
        top: BorrowedFd<'_>,
        kept: Option<BorrowedFd<'_>>,
        bounds: &Bounds,
        skipped: &mut Skips,
    ) -> Result<()> {
        let dir = |name: &str| {
            openat(top, name, DIRECTORY, Mode::empty())
                .map_err(|errno| Error::new(format!("read the cell's {name}"), errno))
        };
        let own = if kept.is_none() { Some(dir("work")?) } else { None };
        let work = kept.or(own.as_ref().map(OwnedFd::as_fd)).unwrap_or(top);
        let patched = match self.patch {
            None => Ok(()),
            Some(patch) => dir("base").and_then(|base| {
                patch.write("write patch", |file| {
                    let done = crate::patch::write(base.as_fd(), work, file, bounds)?;
                    skipped.take("patch", done.skipped);
                    Ok(())
                })
            }),
        };
        // Each on its own: the workspace is wiped after this, and one that fails must not take the other with it.
        let exported = match self.export {
            None => Ok(()),
            Some(target) => target.write(work, bounds).map(|passed| skipped.take("export", passed)),
        };
        patched.and(exported)
    }
}

impl Target {
    /// Gives what was passed over.
    fn write(self, work: BorrowedFd<'_>, bounds: &Bounds) -> Result<Passed> {
        let mut passed = Passed::default();
        let mut to_tar = |file: &mut File| to_tar(work, file, bounds).map(|done| passed = done.skipped);
        match self {
            Target::Tar(tar) => tar.write("export to", &mut to_tar)?,
            Target::Stdout(mut file) => {
                to_tar(&mut file).map_err(|error| Error::new("export to standard output", error.to_string()))?;
            }
            Target::Directory { parent, name, path } => {
                let done = to_directory(work, parent.as_fd(), &name, bounds).map_err(|error| {
                    Error::new(format!("export to {}", path.display()), error.to_string())
                        .hint("name a directory that does not exist yet")
                })?;
                passed = done.skipped;
            }
        }
        Ok(passed)
    }
}

impl NewFile {
    fn open(path: &Path, verb: &str) -> Result<NewFile> {
        let mut options = File::options();
        options.write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let (opened, unused) = match options.create_new(true).open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                (options.create_new(false).open(path), false)
            }
            other => (other, true),
        };
        let object = format!("{verb} {}", path.display());
        let file = opened.map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => Error::new(object, "it is a symbolic link").hint("name the file itself"),
            Some(libc::ENXIO) => Error::new(object, "it is a pipe that nobody reads").hint("name a new file"),
            _ => Error::new(object, error).hint("name a file in a directory that this user may write"),
        })?;
        Ok(NewFile { file, path: path.to_owned(), unused })
    }

    fn write(mut self, verb: &str, content: impl FnOnce(&mut File) -> Result<(), TreeError>) -> Result<()> {
        let object = format!("{verb} {}", self.path.display());
        // A pipe or a device has no length.
        if self.file.metadata().is_ok_and(|meta| meta.is_file()) {
            self.file.set_len(0).map_err(|error| Error::new(&*object, error))?;
        }
        content(&mut self.file).map_err(|error| {
            Error::new(object, error.to_string()).hint("free the disk; see limits.disk and limits.files of the policy")
        })?;
        self.unused = false;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if self.unused {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn target_directory(path: &Path) -> Result<Target> {
    let object = format!("export to {}", path.display());
    let path = std::path::absolute(path).map_err(|error| Error::new(&*object, error))?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().map(OsStr::to_owned)) else {
        return Err(Error::new(object, "it is the root directory").hint("name a new directory"));
    };
    let taken = std::fs::read_dir(&path).map(|mut entries| entries.next().is_some());
    if taken.is_ok_and(|taken| taken) || path.is_symlink() || (path.exists() && !path.is_dir()) {
        return Err(Error::new(object, "it exists and is not an empty directory").hint("name a new directory"));
    }
    let opened = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(parent);
    let parent = opened.map_err(|error| Error::new(&*object, error).hint("make its parent directory first"))?;
    Ok(Target::Directory { parent: parent.into(), name, path })
}
