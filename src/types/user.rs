//! User ids: any text that a service may have for its users. Compared and hashed, printed escaped, never a path.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use serde::{Serialize, Serializer};

use crate::types::error::{Error, Result};

/// The longest user id, in bytes.
pub const MAX: usize = 512;

/// A user of the calling service; not an account of this host.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct UserId(Vec<u8>);

impl UserId {
    /// # Errors
    /// Empty, longer than [`MAX`] bytes, or with a control character: such an id would forge lines of a log.
    pub fn new(text: &OsStr) -> Result<UserId> {
        let bytes = text.as_bytes();
        let refuse = |cause: String| {
            let hint = "a mail address, a UUID or a name does; leave --user out for one anonymous user";
            Err(Error::new("use this user id", cause).hint(hint))
        };
        if bytes.is_empty() {
            return refuse("it is empty".into());
        }
        if bytes.len() > MAX {
            return refuse(format!("it has {} bytes, more than {MAX}", bytes.len()));
        }
        if let Some(at) = bytes.iter().position(u8::is_ascii_control) {
            return refuse(format!("byte {at} of it is a control character (0x{:02x})", bytes[at]));
        }
        Ok(UserId(bytes.to_vec()))
    }

    /// The bytes, for a keyed hash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(text) => text.escape_debug().fmt(f),
            Err(_) => self.0.escape_ascii().fmt(f),
        }
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserId({self})")
    }
}

impl Serialize for UserId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_services_have() {
        for good in ["alice", "a@b.example", "../../etc", "用户", "9b2e-…", "-rf", "a b"] {
            assert!(UserId::new(OsStr::new(good)).is_ok(), "{good}");
        }
        assert!(UserId::new(OsStr::from_bytes(b"\xff\xfe")).is_ok());
        for bad in ["", "a\nb", "\x1b[2J", "\0"] {
            assert!(UserId::new(OsStr::new(bad)).is_err());
        }
        assert!(UserId::new(OsStr::new(&"x".repeat(MAX + 1))).is_err());
    }
}
