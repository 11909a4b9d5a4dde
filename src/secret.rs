//! The credential: read once, kept in memory that no fork, swap or core file gets, printed never.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use zeroize::{Zeroize, Zeroizing};

use crate::sys;
use crate::sys::vault::{MAX, Vault};
use crate::types::error::{Error, Result};

/// A credential. No `Clone`, no `Serialize`, a redacted `Debug`; wiped when dropped.
pub struct Secret {
    vault: Vault,
    /// How much of the vault was written.
    touched: usize,
}

/// Where the caller keeps the credential.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretSource {
    /// A file of mode 0600 or stricter.
    File(PathBuf),
    /// An open descriptor.
    Fd(i32),
    /// A variable of the launcher's environment.
    Variable(String),
    /// Standard input, whole.
    Stdin,
    /// A file that the agent's own login wrote, for the token in it.
    Login(PathBuf),
}

impl SecretSource {
    /// Takes the caller's descriptor over, before the launcher opens anything: a number that was not open would by then
    /// be a descriptor of the launcher's own.
    ///
    /// # Errors
    /// It is not open, or one of the standard streams.
    pub fn take(&self) -> Result<Option<File>> {
        match self {
            SecretSource::Fd(number @ ..=2) => Err(Error::new(
                format!("read credential descriptor {number}"),
                "0, 1 and 2 are the agent's standard streams",
            )
            .hint("use --credential-stdin, or a descriptor from 3 on as in `--credential-fd 3 3<token`")),
            SecretSource::Fd(number) => {
                sys::fds::take(*number).map(Some).map_err(|_| not_open(*number, "it is not open"))
            }
            SecretSource::File(_) | SecretSource::Variable(_) | SecretSource::Stdin | SecretSource::Login(_) => {
                Ok(None)
            }
        }
    }
}

fn no_memory(errno: Errno) -> Error {
    Error::new("keep the credential in memory", errno).hint("raise the limits on memory and on locked memory")
}

fn not_open(number: i32, cause: impl Into<crate::types::error::Cause>) -> Error {
    Error::new(format!("read credential descriptor {number}"), cause)
        .hint("open it in the caller, as in `--credential-fd 3 3<token`")
}

impl Secret {
    /// Reads the credential; from `descriptor` where that is the source, see [`SecretSource::take`]. A trailing line
    /// end is not part of it.
    ///
    /// # Errors
    /// Missing, unreadable, empty, larger than [`MAX`], not one line, readable by others, a link, or not a file.
    pub fn read(source: &SecretSource, descriptor: Option<File>) -> Result<Secret> {
        match source {
            SecretSource::File(path) => {
                let object = format!("credential file {}", path.display());
                Secret::from_reader(open_private(path, &object)?, &object)
            }
            SecretSource::Fd(number) => {
                let file = descriptor.ok_or_else(|| not_open(*number, "it is not open"))?;
                Secret::from_reader(file, &format!("credential descriptor {number}"))
            }
            SecretSource::Stdin => {
                let stdin = std::io::stdin();
                let file = stdin.as_fd().try_clone_to_owned().map_err(|e| {
                    Error::new("read the credential from standard input", e).hint("pipe the token into it")
                })?;
                Secret::from_reader(File::from(file), "credential on standard input")
            }
            SecretSource::Variable(name) => Secret::from_variable(name),
            // Only who knows the agent can read one: crate::run::login.
            SecretSource::Login(path) => Err(Error::new(
                format!("use login file {}", path.display()),
                "this agent's file does not say what one looks like",
            )
            .hint("name a token with --credential-file")),
        }
    }

    /// Reads a file of several lines, `what` it is: a private key with its certificates, or what an agent's login wrote. The
    /// rules are those of a credential file but for the lines.
    ///
    /// # Errors
    /// Missing, unreadable, empty, larger than [`MAX`], readable by others, a link, or not a file.
    pub fn read_lines(path: &Path, what: &str) -> Result<Secret> {
        let object = format!("{what} file {}", path.display());
        let (mut vault, length) = Secret::fill(open_private(path, &object)?, &object)?;
        if length == 0 {
            return Err(Error::new(format!("use {object}"), "it is empty").hint("name the file that holds it"));
        }
        vault.set_len(length);
        Ok(Secret { vault, touched: length })
    }

    /// A copy of a part of another secret.
    ///
    /// # Errors
    /// It is no credential, or there is no memory for it.
    pub fn copy(bytes: &[u8], object: &str) -> Result<Secret> {
        let mut vault = Vault::new().map_err(no_memory)?;
        vault.space()[..bytes.len()].copy_from_slice(bytes);
        Secret::checked(vault, bytes.len(), object)
    }

    fn from_variable(name: &str) -> Result<Secret> {
        let object = format!("credential variable {name}");
        let mut vault = Vault::new().map_err(no_memory)?;
        let length = sys::environ::take(name, vault.space()).ok_or_else(|| {
            Error::new(format!("read {object}"), "it is not set, or longer than any credential")
                .hint(format!("export {name} in the caller, or use --credential-file"))
        })?;
        Secret::checked(vault, length, &object)
    }

    fn from_reader(file: File, object: &str) -> Result<Secret> {
        let (vault, length) = Secret::fill(file, object)?;
        Secret::checked(vault, length, object)
    }

    fn fill(mut file: File, object: &str) -> Result<(Vault, usize)> {
        let mut vault = Vault::new().map_err(no_memory)?;
        let mut length = 0;
        loop {
            let space = &mut vault.space()[length..];
            if space.is_empty() {
                return Err(Error::new(format!("read {object}"), format!("it is larger than {MAX} bytes"))
                    .hint("name the file that holds the token alone"));
            }
            match file.read(space) {
                Ok(0) => break,
                Ok(n) => length += n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(
                        Error::new(format!("read {object}"), error).hint("name a file or a pipe that holds the token")
                    );
                }
            }
        }
        Ok((vault, length))
    }

    fn checked(mut vault: Vault, mut length: usize, object: &str) -> Result<Secret> {
        let touched = length;
        while length > 0 && matches!(vault.space()[length - 1], b'\n' | b'\r') {
            length -= 1;
        }
        let bytes = &vault.space()[..length];
        if length == 0 {
            return Err(Error::new(format!("use {object}"), "it is empty")
                .hint("put the token into it, or leave the option out for a program that needs none"));
        }
        // One header value: a line end or a NUL in it would be a second header or a cut.
        if bytes.iter().any(|b| b.is_ascii_control()) {
            return Err(Error::new(format!("use {object}"), "it has more than one line or a control character")
                .hint("a credential is one line of printable text"));
        }
        vault.set_len(length);
        Ok(Secret { vault, touched })
    }

    /// A phantom: stands in a cell for a credential, which it resembles in how it begins. 256 random bits.
    ///
    /// # Errors
    /// No memory for it, or a kernel without random bytes.
    pub fn phantom(beginning: &str) -> Result<Secret> {
        let failed = |errno| Error::new("make a phantom of the credential", errno).hint("raise the limit on memory");
        let random = Zeroizing::new(sys::random::bytes::<32>().map_err(failed)?);
        let mut vault = Vault::new().map_err(failed)?;
        let digits =
            random.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| b"0123456789abcdef"[digit as usize]);
        let mut length = 0;
        for (place, byte) in vault.space().iter_mut().zip(beginning.bytes().chain(digits)) {
            *place = byte;
            length += 1;
        }
        vault.set_len(length);
        Ok(Secret { vault, touched: length })
    }

    /// Takes over so many bytes that another process of ours sends. They come into no other memory of this one.
    ///
    /// # Errors
    /// There are fewer, or more than any secret has, or there is no memory for them.
    pub fn receive(mut from: &File, length: usize) -> io::Result<Secret> {
        let mut vault = Vault::new()?;
        let space = vault.space().get_mut(..length).ok_or(io::ErrorKind::FileTooLarge)?;
        from.read_exact(space)?;
        vault.set_len(length);
        Ok(Secret { vault, touched: length })
    }

    /// The bytes, for the one place that hands them over.
    pub fn expose(&self) -> &[u8] {
        self.vault.bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.vault.space()[..self.touched].zeroize();
    }
}

/// Opens a credential file that only its owner can read.
fn open_private(path: &Path, object: &str) -> Result<File> {
    let refuse = |cause: &str, hint: String| Err(Error::new(format!("use {object}"), cause).hint(hint));
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => {
                Error::new(format!("use {object}"), "it is a symbolic link").hint("name the file itself")
            }
            _ => Error::new(format!("open {object}"), error).hint("check the path and that this user may read it"),
        })?;
    let meta = file.metadata().map_err(|e| Error::new(format!("inspect {object}"), e))?;
    if meta.is_dir() {
        return refuse("it is a directory", "name the file in it that holds the token".into());
    }
    if !meta.is_file() {
        return refuse("it is not a regular file", "use --credential-fd for a pipe".into());
    }
    if meta.mode() & 0o077 != 0 {
        return refuse(
            &format!("others can read it (mode {:04o})", meta.mode() & 0o7777),
            format!("chmod 600 {}", path.display()),
        );
    }
    let me = nix::unistd::geteuid().as_raw();
    if meta.uid() != me && meta.uid() != 0 && me != 0 {
        return refuse(&format!("it belongs to uid {}", meta.uid()), "use a file of your own".into());
    }
    Ok(file)
}
