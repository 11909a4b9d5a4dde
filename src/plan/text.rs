//! Texts of a plan that name places of the cell.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use serde::Serialize;

use crate::types::error::Result;
use crate::types::paths::WorkName;

/// A script that starts the agent with the arguments of its level.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shim {
    /// The agent's name.
    pub name: String,
    /// Its program.
    pub program: PathBuf,
    /// What comes before the arguments that the script gets.
    pub arguments: Vec<Text>,
    /// Names of the workspace that the agent would read for its settings: it starts beside them alone, and not where the
    /// cell has made one since.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<WorkName>,
}

/// A text that may name a place in the cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// As it is.
    Plain(OsString),
    /// As it is, and never shown: the value may be a secret of the caller's.
    Hidden(OsString),
    /// With `{home}`, `{tmp}`, `{work}` or `{settings}` to be filled in.
    Template(String),
    /// With `{pass}`, the word that the broker wants of whoever uses it as a proxy.
    Pass(String),
}

impl Text {
    /// As it is.
    pub fn plain(text: impl AsRef<OsStr>) -> Text {
        Text::Plain(text.as_ref().to_owned())
    }

    /// For people and for JSON.
    pub fn show(&self) -> String {
        match self {
            Text::Plain(text) => text.to_string_lossy().into_owned(),
            Text::Hidden(_) => "(--setenv)".to_owned(),
            Text::Template(text) | Text::Pass(text) => text.clone(),
        }
    }
}

impl Serialize for Text {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.show())
    }
}
