//! ?.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::types::error::{Error, Result};

/// The longest file that is read, in bytes.
pub(crate) const MAX: u64 = 256 * 1024;

/// A file and where it came from.
#[derive(Debug, Clone)]
pub struct Found<T> {
    /// Its name without directory and ending.
    pub name: String,
    /// `compiled in`, or its path.
    pub origin: String,
    /// Its text.
    pub text: String,
    /// What it says.
    pub value: T,
}

/// Whether nothing is at a path. A file that cannot be looked at is there: the operator's word is not passed over.
pub fn absent(path: &Path) -> bool {
    let looked = std::fs::symlink_metadata(path);
    looked.is_err_and(|error| matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)))
}

/// Reads a policy, an agent or a configuration file.
///
/// # Errors
/// Missing, not a file, too large, writable by others, or wrong in its content.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Found<T>> {
    let text = read_trusted(path)?;
    let value = parse(&text, &path.display().to_string())?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Found { name, origin: path.display().to_string(), text, value })
}

/// Reads a file that only its owner can have written, where the owner is this user or root.
///
/// # Errors
/// Missing, not a regular file, too large, or writable by somebody else: such a file decides nothing.
pub fn read_trusted(path: &Path) -> Result<String> {
    let bytes = read_trusted_bytes(path, MAX)?;
    String::from_utf8(bytes)
        .map_err(|_| Error::new(format!("read {}", path.display()), "it is not UTF-8").hint("write it as UTF-8 text"))
}

/// The same, of any content, up to `max` bytes.
///
/// # Errors
/// As for [`read_trusted`].
pub fn read_trusted_bytes(path: &Path, max: u64) -> Result<Vec<u8>> {
    let action = format!("read {}", path.display());
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(|error| Error::new(&*action, error).hint("check the path"))?;
    let meta = file.metadata().map_err(|error| Error::new(&*action, error).hint("check the path"))?;
    if !meta.is_file() {
        return Err(Error::new(&*action, "it is not a regular file").hint("name the file itself"));
    }
    let me = nix::unistd::geteuid().as_raw();
    if meta.mode() & 0o022 != 0 || (meta.uid() != me && meta.uid() != 0) {
        return Err(Error::new(
            &*action,
            format!("others can write it (owner {}, mode {:04o})", meta.uid(), meta.mode() & 0o7777),
        )
        .hint(format!("chown it to this user or root, and chmod go-w {}", path.display())));
    }
    if meta.len() > max {
        return Err(Error::new(&*action, format!("it is larger than {max} bytes")).hint("name a policy file"));
    }
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(|error| Error::new(&*action, error))?;
    Ok(bytes)
}

/// Reads TOML; an error names the line, and for an unknown key the known ones.
///
/// # Errors
/// What is wrong, where.
pub fn parse<T: DeserializeOwned>(text: &str, object: &str) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        let place = line.map_or_else(|| object.to_owned(), |line| format!("{object} line {line}"));
        let message = error.message().trim().replace('\n', ", ");
        Error::new(format!("use {place}"), message).hint("`oubliette policy show balanced` prints a policy that works")
    })
}
