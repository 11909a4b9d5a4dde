//! Agent files: how one agent is told a level, and where it wants its credential.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::claude;
use super::deny::Class;
use super::names;
use super::paths::HomePath;
use crate::request::Upstream;

/// One agent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AgentSpec {
    /// Its name for people.
    pub title: String,
    /// Names of its program, from which `--agent` is guessed.
    #[serde(default, deserialize_with = "names::programs")]
    pub commands: Vec<String>,
    /// Where it wants its credential.
    #[serde(default)]
    pub credential: Credential,
    /// Variables.
    #[serde(default)]
    pub environment: Environment,
    /// Arguments.
    #[serde(default)]
    pub arguments: Arguments,
    /// Files that it finds in its HOME at the start, by name; the text may name `{work}`.
    #[serde(default)]
    pub home: BTreeMap<HomePath, String>,
    /// More of them where it gets a terminal.
    #[serde(default)]
    pub home_terminal: BTreeMap<HomePath, String>,
    /// Programs that it runs itself, for levels with a list of programs.
    #[serde(default, deserialize_with = "names::executables")]
    pub execute: Vec<String>,
    /// Its settings.
    pub settings: Option<Settings>,
    /// How to see that it took them.
    #[serde(default)]
    pub check: Check,
}

/// Where an agent wants its credential.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Credential {
    /// It can do nothing without one.
    #[serde(default)]
    pub required: bool,
    /// Ways to hand it over; the first whose prefix fits is taken.
    #[serde(default)]
    pub way: Vec<Way>,
}

/// The variable by which an agent finds its credential, and the header in which it sends that.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Way {
    /// How such a credential begins; empty for any.
    #[serde(default)]
    pub prefix: String,
    /// It gets the number of a descriptor from which the credential can be read.
    #[serde(deserialize_with = "names::variable")]
    pub descriptor: String,
    /// The header in which the agent sends it; without one no broker can put another in its place.
    pub header: Option<HeaderName>,
    /// What comes before it in that header, and a space: `Bearer`.
    #[serde(default)]
    pub scheme: String,
    /// How the phantom begins that a broker's cell has instead, where the agent looks at that.
    #[serde(default)]
    pub phantom: String,
}

/// The name of a header, in small letters.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct HeaderName(http::HeaderName);

impl TryFrom<String> for HeaderName {
    type Error = String;

    fn try_from(text: String) -> Result<HeaderName, String> {
        text.parse().map(HeaderName).map_err(|_| format!("`{}` is no name of a header", text.escape_debug()))
    }
}

impl From<HeaderName> for String {
    fn from(name: HeaderName) -> String {
        name.0.to_string()
    }
}

impl HeaderName {
    /// As the HTTP library has it.
    pub fn get(&self) -> &http::HeaderName {
        &self.0
    }
}

impl Way {
    /// The header and what comes before the credential in it, for people; nothing without a header.
    pub fn shown(&self) -> Option<String> {
        let header = self.header.as_ref()?.get();
        Some(if self.scheme.is_empty() { header.to_string() } else { format!("{header}: {}", self.scheme) })
    }
}

/// Variables of an agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Environment {
    /// Set for it: values may name `{home}`, `{tmp}`, `{work}` and `{settings}`.
    #[serde(default, deserialize_with = "names::variables")]
    pub set: BTreeMap<String, String>,
    /// The variable for `--upstream`.
    #[serde(default, deserialize_with = "names::optional_variable")]
    pub base_url: Option<String>,
    /// Where a broker sends the agent's requests unless `--upstream` says otherwise.
    pub upstream: Option<Upstream>,
    /// Names that steer its settings or credential: `--setenv` refuses them. A trailing `*` stands for any ending.
    #[serde(default)]
    pub steer: Vec<String>,
}

/// Arguments of an agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Arguments {
    /// Put before the caller's own: may name `{settings}`, the directory of its settings, and `{mode}`.
    #[serde(default, deserialize_with = "names::arguments")]
    pub insert: Vec<String>,
    /// Put first where the caller names MCP servers; their file is `{settings}/mcp.json`.
    #[serde(default, deserialize_with = "names::arguments")]
    pub mcp: Vec<String>,
    /// Put first where the level has a list of tools: may name `{tools}`.
    #[serde(default, deserialize_with = "names::arguments")]
    pub tools: Vec<String>,
    /// Arguments of the caller's that could loosen the level, with or without `=value`.
    #[serde(default)]
    pub refuse: Vec<String>,
    /// Arguments that could loosen the level where there is no private root to show the managed settings in.
    #[serde(default)]
    pub refuse_unmanaged: Vec<String>,
}

/// The settings of an agent, by the format that it reads.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "format", rename_all = "kebab-case")]
pub enum Settings {
    /// Claude Code.
    Claude(claude::Template),
}

/// How to see that an agent took its settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Check {
    /// Text on its standard error that says a level did not take effect.
    #[serde(default)]
    pub stderr: Vec<String>,
    /// The first event of its JSON stream names its tools and mode.
    pub init_event: Option<InitEvent>,
}

/// The event in which an agent says what it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct InitEvent {
    /// The argument that makes the agent print such events.
    pub argument: String,
    /// `type` of the event.
    pub kind: String,
    /// `subtype` of the event.
    pub subtype: String,
}

impl AgentSpec {
    /// Whether the agent's settings say anything about a class.
    pub fn maps(&self, class: Class) -> bool {
        match &self.settings {
            None => false,
            Some(Settings::Claude(template)) => template.deny.get(&class).is_some_and(|rules| !rules.is_empty()),
        }
    }

    /// Whether a program of this name is the agent itself, and not something that starts it.
    pub fn is(&self, program: &str) -> bool {
        self.commands.iter().any(|known| known == program)
    }

    /// How a credential is handed over.
    pub fn way(&self, credential: &[u8]) -> Option<&Way> {
        self.credential.way.iter().find(|way| credential.starts_with(way.prefix.as_bytes()))
    }

    /// Whether `--setenv` may not set this variable.
    pub fn steers(&self, name: &str) -> bool {
        let own = self.environment.set.keys().chain(&self.environment.base_url);
        let ways = self.credential.way.iter().map(|way| &way.descriptor);
        own.chain(ways).any(|known| known == name) || self.environment.steer.iter().any(|known| matches(known, name))
    }
}

/// `NAME` or `PREFIX*`.
pub fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}
