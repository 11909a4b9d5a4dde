//! Claude Code's settings as typed values: one value that it does not know makes it drop the whole file and go on
//! without a single rule, so nothing here is free text.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::rendered::{FilePlace, Rendered, SERVERS, SettingsFile};
use crate::policy::level::{AllCommands, Commands, Policy};
use crate::types::class::Class;
use crate::types::paths::HostPath;

/// How the classes and the commands of a policy read in Claude Code's settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Template {
    /// Where the machine's owner manages the settings: they hold for an agent that the agent starts, too.
    pub managed: Option<HostPath>,
    /// `permissions.defaultMode` by what the policy says of commands.
    pub mode: ByCommands<DefaultMode>,
    /// `permissions.allow`, beside one rule for each listed command.
    pub allow: ByCommands<Vec<Rule>>,
    /// `--tools`: the built-in tools that exist at all; empty for all of them.
    pub tools: ByCommands<Vec<Tool>>,
    /// Whether file tools are kept inside the workspace by the newer keys as well. They also refuse `python3 -c` and
    /// the like, so a policy that allows any command leaves them out.
    pub confine_files: ByCommands<bool>,
    /// `permissions.deny` by class.
    pub deny: BTreeMap<Class, Vec<Rule>>,
}

/// One value for each thing that a policy can say of commands.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ByCommands<T> {
    /// No command.
    pub none: T,
    /// A list of commands.
    pub list: T,
    /// Any command.
    pub any: T,
}

impl<T> ByCommands<T> {
    /// The one that a policy asks for.
    pub(super) fn of(&self, commands: &Commands) -> &T {
        match commands {
            Commands::All(AllCommands::None) => &self.none,
            Commands::All(AllCommands::Any) => &self.any,
            Commands::List(_) => &self.list,
        }
    }
}

/// Modes that hold in a run without a person: what would ask is denied. `plan` and `auto` read every file of the disk
/// and are no choice; `bypassPermissions` least of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum DefaultMode {
    /// Reads in the workspace and what the rules allow.
    #[serde(rename = "dontAsk")]
    DontAsk,
    /// Edits in the workspace too.
    #[serde(rename = "acceptEdits")]
    AcceptEdits,
}

impl DefaultMode {
    /// As it stands in the settings, in `--permission-mode` and in the init event.
    pub fn name(self) -> &'static str {
        match self {
            DefaultMode::DontAsk => "dontAsk",
            DefaultMode::AcceptEdits => "acceptEdits",
        }
    }
}

/// One permission rule, checked for the forms that Claude Code accepts and never matches.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule(String);

impl From<Rule> for String {
    fn from(rule: Rule) -> String {
        rule.0
    }
}

impl TryFrom<String> for Rule {
    type Error = String;

    /// `Tool` or `Tool(argument)`.
    fn try_from(text: String) -> Result<Rule, String> {
        let (tool, argument) = match text.split_once('(') {
            None => (text.as_str(), None),
            Some((tool, rest)) => match rest.strip_suffix(')') {
                Some(argument) => (tool, Some(argument)),
                None => return Err(format!("rule `{text}` has no closing parenthesis")),
            },
        };
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '*');
        if tool.is_empty() || !tool.chars().all(named) {
            return Err(format!("rule `{text}` does not begin with the name of a tool"));
        }
        match (tool, argument) {
            ("Write" | "NotebookEdit" | "MultiEdit", Some(_)) => {
                Err(format!("rule `{text}` never matches: paths are only checked in Edit(…) and Read(…)"))
            }
            ("Edit" | "Read", Some(path)) if !["//", "~/", "./"].iter().any(|start| path.starts_with(start)) => {
                Err(format!("rule `{text}` never matches: a path begins with //, ~/ or ./"))
            }
            (_, Some(argument)) if argument.trim() != argument => {
                Err(format!("rule `{text}` never matches: its argument begins or ends with a blank"))
            }
            (_, Some("")) => Err(format!("rule `{text}` has nothing in its parentheses")),
            _ => Ok(Rule(text)),
        }
    }
}

/// The name of a built-in tool: one word of a list with commas.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Tool(String);

impl TryFrom<String> for Tool {
    type Error = String;

    fn try_from(name: String) -> Result<Tool, String> {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')) {
            return Err(format!("`{}` is no tool; write its name alone", name.escape_debug()));
        }
        Ok(Tool(name))
    }
}

/// What the agent reads.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    permissions: Permissions,
    disable_all_hooks: bool,
    enable_all_project_mcp_servers: bool,
    include_co_authored_by: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_managed_permission_rules_only: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_managed_hooks_only: Option<bool>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Permissions {
    default_mode: DefaultMode,
    disable_bypass_permissions_mode: Disable,
    disable_auto_mode: Disable,
    #[serde(skip_serializing_if = "Option::is_none")]
    block_reads_outside_working_directories: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    block_writes_outside_working_directories: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deny_instead_of_prompting: Option<bool>,
    allow: Vec<Rule>,
    deny: Vec<Rule>,
}

/// The only value that these keys take.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum Disable {
    Disable,
}

impl Template {
    /// The settings for a policy with these MCP servers of the caller's, without the rules of these classes.
    pub fn render(&self, policy: &Policy, servers: &[String], left_out: &[Class]) -> Rendered {
        let commands = &policy.commands;
        let confine = self.confine_files.of(commands).then_some(true);
        let permissions = Permissions {
            default_mode: *self.mode.of(commands),
            disable_bypass_permissions_mode: Disable::Disable,
            disable_auto_mode: Disable::Disable,
            block_reads_outside_working_directories: confine,
            block_writes_outside_working_directories: confine,
            deny_instead_of_prompting: confine,
            allow: self.allowed(commands, servers),
            deny: self.denied(policy, left_out),
        };
        let absent = permissions.deny.iter().filter(|r| !r.0.contains(['(', '*'])).map(|r| r.0.clone()).collect();
        let mut settings = Settings {
            permissions,
            disable_all_hooks: true,
            enable_all_project_mcp_servers: false,
            include_co_authored_by: false,
            allow_managed_permission_rules_only: None,
            allow_managed_hooks_only: None,
        };
        let file = |place, text| SettingsFile { place, text };
        let mut files = vec![file(FilePlace::Settings("settings.json"), to_json(&settings))];
        settings.allow_managed_permission_rules_only = Some(true);
        settings.allow_managed_hooks_only = Some(true);
        files.extend(self.managed.clone().map(|path| file(FilePlace::Managed(path), to_json(&settings))));
        files.extend((!servers.is_empty()).then(|| file(FilePlace::Settings("mcp.json"), SERVERS.to_owned())));
        let tools = self.tools.of(commands);
        Rendered {
            files,
            mode: self.mode.of(commands).name(),
            tools: (!tools.is_empty()).then(|| tools.iter().map(|tool| tool.0.clone()).collect()),
            absent,
        }
    }

    /// Whether there is a rule for a class.
    pub fn maps(&self, class: Class) -> bool {
        self.deny.get(&class).is_some_and(|rules| !rules.is_empty())
    }

    fn allowed(&self, commands: &Commands, servers: &[String]) -> Vec<Rule> {
        let mut allow = self.allow.of(commands).clone();
        if let Commands::List(names) = commands {
            allow
                .extend(names.iter().flat_map(|name| [Rule(format!("Bash({name})")), Rule(format!("Bash({name} *)"))]));
        }
        allow.extend(servers.iter().map(|server| Rule(format!("mcp__{server}"))));
        allow
    }

    fn denied(&self, policy: &Policy, left_out: &[Class]) -> Vec<Rule> {
        let mut deny = Vec::new();
        let classes = policy
            .deny
            .iter()
            .filter(|class| !left_out.contains(class))
            .filter_map(|class| self.deny.get(class))
            .flatten();
        for rule in classes {
            if !deny.contains(rule) {
                deny.push(rule.clone());
            }
        }
        deny
    }
}

fn to_json(settings: &Settings) -> String {
    serde_json::to_string_pretty(settings).unwrap_or_else(|_| unreachable!("plain strings and booleans"))
}

/// Whether a name can stand for an MCP server in a rule (`mcp__name`).
pub fn server_name_holds(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_never_match_are_refused() {
        for bad in ["Write(//etc/**)", "Edit(/etc/**)", "Read(etc)", "Bash(", "(x)", "Ba sh", "Bash()", "Bash(doas )"] {
            assert!(Rule::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        for good in ["Bash", "Bash(*sudo*)", "Edit(//etc/**)", "Read(~/.ssh/**)", "Edit(./.git/hooks/**)", "mcp__x"] {
            assert!(Rule::try_from(good.to_owned()).is_ok(), "{good}");
        }
    }
}
