//! Where a workspace goes after the run.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::openat;
use nix::sys::stat::Mode;

use super::place::{NewFile, Place};
use crate::cell::workspace::DIRECTORY;
use crate::fs::export::{to_directory, to_tar};
use crate::fs::passed::Skips;
use crate::fs::walk::{Bounds, Passed, entries, is_dots, open_dir};
use crate::request::{Export, Request};
use crate::types::error::{Error, Result};

/// Where things go after the run: opened before it, so that a run whose result could not be kept does not start.
#[derive(Debug)]
pub struct Outputs {
    export: Option<Target>,
    patch: Option<NewFile>,
}

#[derive(Debug)]
enum Target {
    Directory(Place),
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
                    let done = crate::fs::patch::write(base.as_fd(), work, file, bounds)?;
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
            Target::Directory(Place { parent, rights, name, path }) => {
                let done = to_directory(work, parent.as_fd(), rights, &name, bounds).map_err(|error| {
                    Error::new(format!("export to {}", path.display()), error.to_string())
                        .hint("name a directory that does not exist yet")
                })?;
                passed = done.skipped;
            }
        }
        Ok(passed)
    }
}

fn target_directory(path: &Path) -> Result<Target> {
    let place = Place::open(path, "export to")?;
    let taken = place.rights.with(|| match open_dir(place.parent.as_fd(), &place.name) {
        Err(Errno::ENOENT) => Ok(false),
        Err(Errno::ENOTDIR | Errno::ELOOP) => Ok(true),
        opened => Ok::<_, Errno>(
            !entries(opened?.as_fd())?.iter().all(|one| one.is_ok_and(|one| is_dots(one.file_name().to_bytes()))),
        ),
    });
    let object = || format!("export to {}", path.display());
    match taken {
        Ok(false) => Ok(Target::Directory(place)),
        Ok(true) => Err(Error::new(object(), "it exists and is not an empty directory").hint("name a new directory")),
        Err(errno) => Err(Error::new(object(), errno).hint("name a directory that this user may write to")),
    }
}
