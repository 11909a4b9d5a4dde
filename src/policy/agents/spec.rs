//! Agent files: how one agent is told a level, and where it wants its credential.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::endpoint::Endpoint;
use super::login::Login;
use super::rendered::Rendered;
use super::way::{Credential, Way};
use super::{claude, codex, gemini, opencode, qwen};
use crate::policy::agents::mcp::Servers;
use crate::policy::level::Policy;
use crate::policy::names;
use crate::types::class::Class;
use crate::types::paths::{HomePath, WorkName};
use crate::types::values::Upstream;

/// One agent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AgentSpec {
    /// Its name for people.
    pub title: String,
    /// Names of its program, from which `--agent` is guessed.
    #[serde(default, deserialize_with = "names::programs")]
    pub commands: Vec<String>,
    /// The version of it that the tests drive; nothing where none was, and the file says what its makers document.
    pub tested: Option<String>,
    /// Where it wants its credential.
    #[serde(default)]
    pub credential: Credential,
    /// Other APIs that serve its model, by the name that `--endpoint` gives them.
    #[serde(default)]
    pub endpoint: BTreeMap<String, Endpoint>,
    /// What the caller may set at the endpoint that is in use.
    #[serde(skip)]
    pub callers: Vec<String>,
    /// Its own login, where a token out of that is a credential, too.
    pub login: Option<Login>,
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
    /// Programs of its npm package, below its directory: the first that is there runs in the place of its script.
    #[serde(default)]
    pub native: Vec<HomePath>,
    /// Programs in the directory of its own that it runs itself.
    #[serde(default, deserialize_with = "names::programs")]
    pub beside: Vec<String>,
    /// Programs that it runs itself, for levels with a list of programs.
    #[serde(default, deserialize_with = "names::executables")]
    pub execute: Vec<String>,
    /// Names at the top of the workspace that it reads for its settings whatever it is told: they are hidden from it.
    #[serde(default)]
    pub hide: Vec<WorkName>,
    /// What of its HOME it needs to resume a conversation: files, or directories with all in them. One `*` in a name is any text.
    #[serde(default)]
    pub resume: Vec<HomePath>,
    /// Its settings.
    pub settings: Option<Settings>,
    /// How to see that it took them.
    #[serde(default)]
    pub check: Check,
}

/// Variables of an agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "WrittenEnvironment")]
pub struct Environment {
    /// Set for it: values may name `{home}`, `{tmp}`, `{work}` and `{settings}`.
    pub set: BTreeMap<String, String>,
    /// The variable for `--upstream`.
    pub base_url: Option<String>,
    /// Where a broker sends the agent's requests unless `--upstream` says otherwise.
    pub upstream: Option<Upstream>,
    /// Whether the broker lets the agent's requests change to WebSockets there.
    pub websocket: bool,
    /// Names that steer its settings or credential: `--setenv` refuses them. A trailing `*` stands for any ending.
    pub steer: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct WrittenEnvironment {
    #[serde(default, deserialize_with = "names::variables")]
    set: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "names::optional_variable")]
    base_url: Option<String>,
    upstream: Option<Upstream>,
    #[serde(default)]
    websocket: bool,
    #[serde(default)]
    steer: Vec<String>,
}

impl TryFrom<WrittenEnvironment> for Environment {
    type Error = String;

    fn try_from(written: WrittenEnvironment) -> Result<Environment, String> {
        let WrittenEnvironment { set, base_url, upstream, websocket, steer } = written;
        match (websocket, &upstream) {
            (true, None) => Err("`websocket` says something of `upstream`, and there is none".into()),
            _ => Ok(Environment { set, base_url, upstream, websocket, steer }),
        }
    }
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
    /// What the first of the caller's arguments may be, where there is one; empty for anything.
    #[serde(default, deserialize_with = "names::arguments")]
    pub first: Vec<String>,
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
    /// Codex.
    Codex(codex::Template),
    /// Gemini CLI.
    Gemini(gemini::Template),
    /// opencode.
    Opencode(opencode::Template),
    /// Qwen Code.
    Qwen(qwen::Template),
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

impl Settings {
    /// The settings for a policy with these MCP servers of the caller's, without the rules of these classes; whether the
    /// agent's requests may change to WebSockets.
    pub fn render(&self, policy: &Policy, servers: &[String], left_out: &[Class], websocket: bool) -> Rendered {
        match self {
            Settings::Claude(template) => template.render(policy, servers, left_out),
            Settings::Codex(template) => template.render(policy, websocket),
            Settings::Gemini(template) => template.render(policy, servers, left_out),
            Settings::Opencode(template) => template.render(policy, servers, left_out),
            Settings::Qwen(template) => template.render(policy, left_out),
        }
    }

    /// Whether they say anything about a class under a policy.
    pub fn maps(&self, class: Class) -> bool {
        match self {
            Settings::Claude(template) => template.maps(class),
            Settings::Codex(template) => template.maps(class),
            Settings::Gemini(template) => template.maps(class),
            Settings::Opencode(template) => template.maps(class),
            Settings::Qwen(template) => template.maps(class),
        }
    }

    /// What stands for `{servers}` in their files.
    pub fn servers(&self, servers: &Servers) -> String {
        match self {
            Settings::Claude(_) => servers.text.clone(),
            Settings::Codex(_) => codex::servers(servers),
            Settings::Gemini(_) => gemini::servers(servers),
            Settings::Opencode(_) => opencode::servers(servers),
            Settings::Qwen(_) => String::new(),
        }
    }

    /// Whether a file of theirs says where the agent sends its requests.
    pub fn hold_base_url(&self) -> bool {
        matches!(self, Settings::Codex(_) | Settings::Opencode(_))
    }

    /// Whether a file of theirs says which MCP servers there are, and no argument must.
    pub fn hold_servers(&self) -> bool {
        matches!(self, Settings::Codex(_) | Settings::Gemini(_) | Settings::Opencode(_))
    }

    /// Whether some of them lie in HOME, where the agent can put others in their place.
    pub fn in_home(&self) -> bool {
        matches!(self, Settings::Codex(_) | Settings::Gemini(_) | Settings::Opencode(_) | Settings::Qwen(_))
    }

    /// Whether the level is in those.
    pub fn rest_on_home(&self) -> bool {
        matches!(self, Settings::Codex(_))
    }
}

impl AgentSpec {
    /// Whether the agent's settings say anything about a class.
    pub fn maps(&self, class: Class) -> bool {
        self.settings.as_ref().is_some_and(|settings| settings.maps(class))
    }

    /// Whether it can be told where its requests go.
    pub fn takes_base_url(&self) -> bool {
        self.environment.base_url.is_some() || self.settings.as_ref().is_some_and(Settings::hold_base_url)
    }

    /// Whether it can be told of the caller's MCP servers.
    pub fn takes_servers(&self) -> bool {
        !self.arguments.mcp.is_empty() || self.settings.as_ref().is_some_and(Settings::hold_servers)
    }

    /// Whether it runs a shell even where the level has a list of programs.
    pub fn has_shell(&self) -> bool {
        self.execute.iter().any(|name| matches!(name.rsplit('/').next(), Some("sh" | "bash")))
    }

    /// Whether a program of this name is the agent itself, and not something that starts it. Every program is, where the
    /// file names none.
    pub fn is(&self, program: &str) -> bool {
        self.commands.is_empty() || self.commands.iter().any(|known| known == program)
    }

    /// How a credential is handed over.
    pub fn way(&self, credential: &[u8]) -> Option<&Way> {
        self.credential.way.iter().find(|way| credential.starts_with(way.prefix.as_bytes()))
    }

    /// Whether `--setenv` may not set this variable.
    pub fn steers(&self, name: &str) -> bool {
        let own = self.environment.set.keys().chain(&self.environment.base_url);
        let ways = self.credential.way.iter().filter_map(Way::variable);
        let steered = self.environment.steer.iter().any(|known| matches(known, name));
        own.chain(ways).any(|known| known == name) || (steered && !self.callers.iter().any(|known| known == name))
    }
}

/// `NAME` or `PREFIX*`.
pub fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}

impl AgentSpec {
    /// The same agent at this endpoint.
    pub fn at(mut self, endpoint: Endpoint) -> AgentSpec {
        let Endpoint { way, set, setenv, base_url, upstream } = endpoint;
        if let Some(way) = way {
            self.credential.way = vec![way];
        }
        // Of another upstream nothing says that it speaks WebSocket.
        self.environment.websocket &= upstream == self.environment.upstream;
        // The agent's own upstream speaks the agent's own API.
        self.environment.upstream = upstream;
        self.environment.base_url = base_url.or(self.environment.base_url);
        self.environment.set.extend(set);
        self.callers = setenv;
        self
    }
}

impl AgentSpec {
    /// The same agent with the token of its login for a credential; nothing where its file knows of none.
    pub fn logged_in(mut self) -> Option<AgentSpec> {
        let Login { way, set, base_url, upstream, .. } = self.login.clone()?;
        let upstream = upstream.or_else(|| self.environment.upstream.clone());
        self = self.at(Endpoint { way, set, setenv: Vec::new(), base_url, upstream });
        if let Some(Settings::Gemini(template)) = &mut self.settings {
            template.login = true;
        }
        Some(self)
    }
}
