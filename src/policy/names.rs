//! Names in policies and agent files that end up in another language than TOML: a rule of the agent's, a file name, an
//! environment, an argument list. What would mean something else there is refused when it is read.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::types::paths::plain;

/// Words of `Bash(…)` rules. A rule that the agent does not know makes it drop all of them; `*` would allow everything.
pub(super) fn commands<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '/' | '@' | '=' | '[' | ' ');
    let sound = |name: &str| !name.is_empty() && name.trim() == name && name.chars().all(allowed);
    each(from, sound, "is no program; write its name or path, without blanks at the ends, parentheses and wildcards")
}

/// File names of programs: one is the name of a script of the launcher's.
pub(super) fn programs<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let sound = |name: &str| !name.is_empty() && !name.contains('/') && plain(Path::new(name), name);
    each(from, sound, "is no name of a program; write it without directory")
}

/// Programs of a Landlock rule: by name as PATH finds them, or by path. What is relative to a directory would be found
/// in the workspace.
pub(super) fn executables<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let sound =
        |name: &str| !name.is_empty() && (name.starts_with('/') || !name.contains('/')) && plain(Path::new(name), name);
    each(from, sound, "is no program; write its name, or its path from / on")
}

/// Arguments: what the kernel would cut off at a NUL byte, or not take at all.
pub(super) fn arguments<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    each(from, |text| !text.contains('\0'), "cannot be an argument: it contains a NUL byte")
}

/// Variables with their values.
pub(super) fn variables<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    let all = BTreeMap::<String, String>::deserialize(from)?;
    match all.iter().find(|(name, value)| !is_variable(name) || value.contains('\0')) {
        None => Ok(all),
        Some((name, _)) => Err(Error::custom(format!("`{}` is no variable; {VARIABLE}", name.escape_debug()))),
    }
}

/// A variable's name.
pub(super) fn variable<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let name = String::deserialize(from)?;
    if is_variable(&name) {
        return Ok(name);
    }
    Err(Error::custom(format!("`{}` is no variable; {VARIABLE}", name.escape_debug())))
}

/// The same where there may be none.
pub(super) fn optional_variable<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    variable(from).map(Some)
}

const VARIABLE: &str = "write a name without `=` and control characters, and no NUL byte in its value";

fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains('=') && !name.contains(char::is_control)
}

fn each<'de, D: Deserializer<'de>>(from: D, sound: impl Fn(&str) -> bool, why: &str) -> Result<Vec<String>, D::Error> {
    let all = Vec::<String>::deserialize(from)?;
    match all.iter().find(|text| !sound(text)) {
        None => Ok(all),
        Some(text) => Err(Error::custom(format!("`{}` {why}", text.escape_debug()))),
    }
}
