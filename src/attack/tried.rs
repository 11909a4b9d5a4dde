//! What an attack came to.
#![forbid(unsafe_code)]

use std::fmt;

use nix::errno::Errno;

/// Why an attack did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Miss {
    /// Stopped: errno or a reason.
    Blocked(String),
    /// Nothing to attack.
    Absent(String),
}

/// The proof, or why there is none.
pub(crate) type Tried = std::result::Result<String, Miss>;

impl From<Errno> for Miss {
    fn from(errno: Errno) -> Miss {
        match errno {
            Errno::ENOSYS => Miss::Absent("ENOSYS".into()),
            other => Miss::Blocked(format!("{other:?}")),
        }
    }
}

impl From<std::io::Error> for Miss {
    fn from(error: std::io::Error) -> Miss {
        match error.raw_os_error() {
            Some(number) => Errno::from_raw(number).into(),
            None => Miss::Blocked(error.to_string()),
        }
    }
}

/// Nothing to attack, because …
pub(crate) fn absent(why: impl fmt::Display) -> Miss {
    Miss::Absent(why.to_string())
}

/// Stopped, because …
pub(crate) fn blocked(why: impl fmt::Display) -> Miss {
    Miss::Blocked(why.to_string())
}
