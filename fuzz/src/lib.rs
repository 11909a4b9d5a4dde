//! What the targets share: hosts and requests made of a few bytes, and what must hold for every plan and every error.
#![forbid(unsafe_code)]

mod names;
mod plan;
mod rendered;
mod settings;
mod world;

pub use names::check_name;
pub use plan::check_plan;
pub use rendered::check_rendered;
pub use settings::check_settings;
pub use world::{Choices, host, requests};

use oubliette::run::progress::one_line;
use oubliette::types::error::Error;

/// The text of an input and, behind a NUL byte, choices: a plain file is an input as it is.
pub fn split(data: &[u8]) -> Option<(&str, Choices<'_>)> {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let choices = Choices::new(data.get(end + 1..).unwrap_or_default());
    std::str::from_utf8(&data[..end]).ok().map(|text| (text, choices))
}

/// Parts of an input that a line end or a NUL byte may be part of, so that they are separated by two bytes.
pub fn parts<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut rest = data;
    std::array::from_fn(|_| match rest.windows(2).position(|two| two == b"\0\0") {
        Some(at) => {
            let part = &rest[..at];
            rest = &rest[at + 2..];
            part
        }
        None => std::mem::take(&mut rest),
    })
}

/// An error is one line of plain text and says what could not be used.
pub fn check_error(error: &Error, object: &str) {
    let line = one_line(&error.to_string());
    assert!(line.starts_with("cannot ") && line.contains(object), "{line}");
    assert!(!line.contains(char::is_control), "{line:?}");
    assert!(!error.remedy().is_empty());
}
