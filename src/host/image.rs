//! The broker's program: a file of its own beside the launcher's. An exec of it shares no address and no memory with the
//! launcher, which a fork would; it is position-independent, so that two runs have nothing at the same place.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde::Serialize;

use crate::host::facts::Lack;

/// Its name.
pub const NAME: &str = "oubliette-broker";

/// The program, held by descriptor: what was looked at is what is executed.
#[derive(Debug, Clone, Serialize)]
pub struct Image {
    /// Where it was found.
    pub path: PathBuf,
    #[serde(skip)]
    file: Arc<OwnedFd>,
}

impl PartialEq for Image {
    fn eq(&self, other: &Image) -> bool {
        self.path == other.path
    }
}

impl Eq for Image {}

impl Image {
    /// One that is held already.
    pub fn of(path: PathBuf, file: File) -> Image {
        Image { path, file: Arc::new(file.into()) }
    }

    /// The one beside the launcher's own program.
    ///
    /// # Errors
    /// It is not there, or somebody could have changed it who could not have changed the launcher.
    pub fn find() -> Result<Image, Lack> {
        const REMEDY: &str = "let the container's runtime mount /proc";
        // After an update the link ends in ` (deleted)`, in the same directory.
        let own = std::fs::read_link("/proc/self/exe").map_err(|error| {
            Lack::new(format!("the launcher does not find its own program: {}", error.kind()), REMEDY)
        })?;
        let owner = std::fs::metadata("/proc/self/exe").map(|meta| meta.uid());
        let owner = owner.map_err(|error| {
            Lack::new(format!("the launcher cannot inspect its own program: {}", error.kind()), REMEDY)
        })?;
        Image::open(own.with_file_name(NAME), owner)
    }

    /// The program at a path, beside a launcher that belongs to `owner`. Directories are not looked at: who may write to
    /// this one can change the launcher itself, and in a sticky one a file of somebody else's is not taken.
    ///
    /// # Errors
    /// As for [`Image::find`].
    pub fn open(path: PathBuf, owner: u32) -> Result<Image, Lack> {
        let lack = |why: &str| Lack::new(format!("the broker's program {} {why}", path.display()), remedy(&path));
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = open(&path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::ENOENT => lack("is missing"),
            Errno::ELOOP => lack("is a symbolic link"),
            errno => lack(&format!("cannot be opened: {}", errno.desc())),
        })?;
        let file = File::from(file);
        let meta = file.metadata().map_err(|error| lack(&format!("cannot be inspected: {}", error.kind())))?;
        let me = nix::unistd::geteuid().as_raw();
        if !meta.is_file() || meta.mode() & 0o111 == 0 {
            return Err(lack("is not an executable file"));
        }
        if ![0, me, owner].contains(&meta.uid()) {
            return Err(lack(&format!("belongs to uid {}, who has no say over the launcher", meta.uid())));
        }
        if meta.mode() & 0o022 != 0 {
            let mode = meta.mode() & 0o7777;
            let chmod = format!("chmod go-w {}", path.display());
            return Err(Lack::new(format!("{} (mode {mode:04o})", lack("can be changed by others").why), chmod));
        }
        Ok(Image::of(path, file))
    }
}

impl AsFd for Image {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn remedy(path: &Path) -> String {
    let place = path.parent().unwrap_or(path).display();
    format!("install both programs (`cargo install` does), or copy {NAME} of the same build to {place}")
}
