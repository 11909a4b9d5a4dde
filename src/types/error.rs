//! One error type for people: what could not be done, to which object, why, and what to do about it.
#![forbid(unsafe_code)]

use std::fmt;

use nix::errno::Errno;

use crate::types::exit::Exit;

/// `oubliette: cannot <verb> <object>: <cause>`, then `hint: …`.
///
/// The cause is never a secret: callers hand in an `errno` or a sentence of their own, not the content of a file.
#[derive(Debug)]
pub struct Error {
    action: String,
    cause: anyhow::Error,
    errno: Option<Errno>,
    hint: Option<String>,
    exit: Exit,
}

/// What most functions of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// `action` is verb and object without "cannot": `open credential file /x`. Ends the program with 125.
    pub fn new(action: impl Into<String>, cause: impl Into<Cause>) -> Error {
        let Cause(cause, errno) = cause.into();
        Error { action: action.into(), cause, errno, hint: None, exit: Exit::Refused }
    }

    /// What the caller can do about it: one imperative sentence without a full stop.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// Another status than 125.
    #[must_use]
    pub fn exit(mut self, exit: Exit) -> Error {
        self.exit = exit;
        self
    }

    /// Verb and object, and why: for whoever says it elsewhere.
    pub fn parts(&self) -> (&str, String) {
        (&self.action, format!("{:#}", self.cause))
    }

    /// The status to end with.
    pub fn status(&self) -> Exit {
        self.exit
    }

    /// The remedy. What runs out in the launcher itself has one of its own, whatever the object.
    pub fn remedy(&self) -> &str {
        match (self.errno, &self.hint) {
            (Some(Errno::EMFILE | Errno::ENFILE), _) => "raise the limit on open files (ulimit -n)",
            (Some(Errno::EAGAIN), _) => "raise the limit on processes (ulimit -u), or wait for some to end",
            (Some(Errno::ENOMEM), _) => "free memory, or raise the limit on it (ulimit -v)",
            (Some(Errno::EFBIG), _) => "raise the limit on the size of a file (ulimit -f)",
            (_, Some(hint)) => hint,
            (Some(Errno::ENOSPC | Errno::EDQUOT), None) => "free the disk",
            (Some(Errno::EACCES | Errno::EPERM | Errno::EROFS), None) => {
                "check that this user may read and write there"
            }
            _ => "`oubliette doctor` says what this host offers",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {:#}", self.action, self.cause)
    }
}

impl std::error::Error for Error {}

/// Anything that says why: an `io::Error`, an `errno`, a sentence.
pub struct Cause(anyhow::Error, Option<Errno>);

impl From<&str> for Cause {
    fn from(text: &str) -> Cause {
        Cause(anyhow::Error::msg(text.to_owned()), None)
    }
}

impl From<String> for Cause {
    fn from(text: String) -> Cause {
        Cause(anyhow::Error::msg(text), None)
    }
}

impl From<std::io::Error> for Cause {
    fn from(error: std::io::Error) -> Cause {
        // "No such file or directory (os error 2)" is two names for one thing.
        match error.raw_os_error() {
            Some(number) => Errno::from_raw(number).into(),
            None => Cause(error.into(), None),
        }
    }
}

impl From<Errno> for Cause {
    fn from(error: Errno) -> Cause {
        Cause(anyhow::Error::msg(error.desc()), Some(error))
    }
}

impl From<anyhow::Error> for Cause {
    fn from(error: anyhow::Error) -> Cause {
        Cause(error, None)
    }
}
