//! From where each value comes: the command line, a variable, the operator's file, or nobody.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use clap::parser::ValueSource;
use serde::{Deserialize, Serialize};

use crate::types::error::{Error, Result};
use crate::types::layout::ETC;
use crate::types::network::NetworkMode;

/// A value and where it came from, for `explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// The flag's name.
    pub name: &'static str,
    /// Its value, as text.
    pub value: String,
    /// Where it came from.
    pub from: From,
}

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum From {
    /// The command line.
    Flag,
    /// A variable `OUBLIETTE_…`.
    Variable,
    /// /etc/oubliette/config.toml.
    File,
    /// The line of `oubliette` in /etc/subuid and /etc/subgid.
    Subuid,
    /// Built in, or the policy's.
    Default,
    /// The policy.
    Policy,
}

impl From {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            From::Flag => "flag",
            From::Variable => "variable",
            From::File => "config.toml",
            From::Subuid => "/etc/subuid",
            From::Default => "default",
            From::Policy => "policy",
        }
    }
}

/// /etc/oubliette/config.toml: defaults of the operator's, under the names of the flags.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    pub(super) level: Option<String>,
    pub(super) policy: Option<PathBuf>,
    pub(super) agent: Option<String>,
    pub(super) network: Option<NetworkMode>,
    pub(super) allow: Vec<String>,
    pub(super) require: Vec<String>,
    pub(super) timeout: Option<String>,
    pub(super) grace: Option<String>,
    pub(super) wait: Option<String>,
    pub(super) mcp_config: Option<PathBuf>,
    pub(super) endpoint: Option<String>,
    pub(super) upstream: Option<String>,
    pub(super) ca: Option<PathBuf>,
    pub(super) client_cert: Option<PathBuf>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) uid_range: Option<String>,
    pub(super) policy_dir: Option<PathBuf>,
}

impl Config {
    /// Reads the operator's file, where there is one.
    ///
    /// # Errors
    /// A file that others can write, or with keys that do not exist.
    pub fn read() -> Result<Config> {
        let path = Path::new(ETC).join("config.toml");
        if crate::fs::trusted::absent(&path) {
            return Ok(Config::default());
        }
        crate::fs::trusted::load(&path).map(|found| found.value)
    }

    /// The directory of policies.
    pub fn policy_dir(self) -> Option<PathBuf> {
        self.policy_dir
    }

    /// Where cells live.
    pub fn state_dir(&self) -> Option<PathBuf> {
        self.state_dir.clone()
    }
}

/// Takes a value from the command line or a variable, else from the file, and notes where it came from.
pub(super) struct Merge<'a> {
    pub(super) matches: &'a ArgMatches,
    pub(super) sources: Vec<Setting>,
}

impl Merge<'_> {
    pub(super) fn pick<T: Show>(&mut self, name: &'static str, argument: Option<T>, file: Option<T>) -> Option<T> {
        let id = name.replace('-', "_");
        let (value, from) = match (argument, file) {
            (Some(value), _) if self.matches.value_source(&id) == Some(ValueSource::EnvVariable) => {
                (value, From::Variable)
            }
            (Some(value), _) => (value, From::Flag),
            (None, Some(value)) => (value, From::File),
            (None, None) => return None,
        };
        self.sources.push(Setting { name, value: value.show(), from });
        Some(value)
    }

    pub(super) fn parsed<T: std::str::FromStr<Err = String>>(&self, name: &str, text: &str) -> Result<T> {
        parsed(name, text, self.from(name).unwrap_or(From::Flag))
    }

    pub(super) fn default(&mut self, name: &'static str, value: &str) {
        if self.from(name).is_none() {
            self.sources.push(Setting { name, value: value.to_owned(), from: From::Default });
        }
    }

    pub(super) fn from(&self, name: &str) -> Option<From> {
        self.sources.iter().find(|setting| setting.name == name).map(|setting| setting.from)
    }
}

/// A value as `explain` writes it.
pub(super) trait Show {
    fn show(&self) -> String;
}

impl Show for String {
    fn show(&self) -> String {
        self.clone()
    }
}

impl Show for PathBuf {
    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Show for OsString {
    fn show(&self) -> String {
        self.to_string_lossy().into_owned()
    }
}

impl Show for NetworkMode {
    fn show(&self) -> String {
        self.name().to_owned()
    }
}

pub(super) fn parsed<T: std::str::FromStr<Err = String>>(name: &str, text: &str, from: From) -> Result<T> {
    let (object, hint) = match from {
        From::Variable => {
            (format!("OUBLIETTE_{}", name.replace('-', "_").to_uppercase()), "correct or unset the variable")
        }
        From::File => (format!("`{name}` of {ETC}/config.toml"), "correct the file"),
        From::Flag | From::Subuid | From::Default | From::Policy => (format!("--{name}"), "see `oubliette run --help`"),
    };
    text.parse().map_err(|error: String| Error::new(format!("use {object}"), error).hint(hint))
}
