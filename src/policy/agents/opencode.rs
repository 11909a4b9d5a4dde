//! opencode's settings. Of the rules for a call the last one that matches counts, so their order is made here, and no
//! map sorts them. A value that it does not know ends it; a key is passed over, so none here is free text.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::claude::ByCommands;
use super::denied::{Deny, Line, Place};
use super::rendered::{BASE_URL, FilePlace, Rendered, SERVERS, SettingsFile};
use crate::policy::agents::mcp::Servers;
use crate::policy::level::{Commands, Policy};
use crate::types::class::Class;
use crate::types::paths::HostPath;

/// How the classes and the commands of a policy read in opencode's settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Template {
    /// Where the machine's owner manages the settings: above the rules of a HOME, though not of an agent that is named there.
    pub managed: HostPath,
    /// The providers that there are, and no other one: of these it uses whose key it has.
    pub providers: Vec<Provider>,
    /// Tools that are allowed by what the policy says of commands; every other one does not exist.
    pub tools: ByCommands<Vec<Tool>>,
    /// Command lines that are allowed beside the listed programs.
    pub commands: Vec<Line>,
    /// What is denied by class, whatever else allows it.
    pub deny: BTreeMap<Class, Vec<Deny<Tool>>>,
}

/// A provider that it knows by itself, with the names of its models: a model of another one has to be described.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    /// The Responses API.
    Openai,
    /// The Messages API.
    Anthropic,
}

/// What its rules call a tool, or several: `edit` is every one that writes files. A name that is none is a rule that
/// matches nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "opencode's own names")]
pub enum Tool {
    Read,
    Edit,
    Glob,
    Grep,
    List,
    Bash,
    Task,
    TodoWrite,
    Question,
    WebFetch,
    WebSearch,
    Lsp,
    Skill,
}

/// Rules see a path as it leads there from the top of the repository, or from / where there is none.
fn spellings(Place(text): &Place) -> [String; 4] {
    let name = text.trim_start_matches('/');
    [name.to_owned(), format!("{name}/*"), format!("*/{name}"), format!("*/{name}/*")]
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Allow,
    Deny,
}

/// Rules, the weakest first.
#[derive(Default)]
struct Permission(Vec<(String, Rule)>);

enum Rule {
    Every(Action),
    Of(Vec<(String, Action)>),
}

impl Serialize for Permission {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(name, rule)| (name, rule)))
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Rule::Every(action) => action.serialize(to),
            Rule::Of(patterns) => {
                let mut map = to.serialize_map(Some(patterns.len()))?;
                patterns.iter().try_for_each(|(pattern, action)| map.serialize_entry(pattern, action))?;
                map.end()
            }
        }
    }
}

#[derive(Serialize)]
struct Config {
    /// It would write one into a file without.
    #[serde(rename = "$schema")]
    schema: &'static str,
    autoupdate: bool,
    share: &'static str,
    /// It would run git on a copy of the workspace before each step.
    snapshot: bool,
    /// Both run programs of the workspace; and language servers are downloaded.
    lsp: bool,
    formatter: bool,
    enabled_providers: Vec<Provider>,
    provider: BTreeMap<Provider, Options>,
    permission: Permission,
    mcp: &'static str,
}

#[derive(Clone, Copy, Serialize)]
struct Options {
    options: BaseUrl,
}

#[derive(Clone, Copy, Serialize)]
struct BaseUrl {
    #[serde(rename = "baseURL")]
    base_url: &'static str,
}

impl Template {
    /// The settings for a policy of ours with these MCP servers of the caller's, without the rules of these classes.
    ///
    /// The same text twice: a managed file comes after what lies in a HOME, and the other one is there without a private
    /// root, too.
    pub fn render(&self, policy: &Policy, servers: &[String], left_out: &[Class]) -> Rendered {
        let there = Options { options: BaseUrl { base_url: BASE_URL } };
        let config = Config {
            schema: "https://opencode.ai/config.json",
            autoupdate: false,
            share: "disabled",
            snapshot: false,
            lsp: false,
            formatter: false,
            enabled_providers: self.providers.clone(),
            provider: self.providers.iter().map(|provider| (*provider, there)).collect(),
            permission: self.permission(policy, servers, left_out),
            mcp: SERVERS,
        };
        let text = serde_json::to_string_pretty(&config).unwrap_or_else(|_| unreachable!("plain texts and booleans"));
        let text = text.replace(&format!("\"{SERVERS}\""), SERVERS);
        let file = |place| SettingsFile { place, text: text.clone() };
        Rendered {
            files: vec![file(FilePlace::Settings("opencode.json")), file(FilePlace::Managed(self.managed.clone()))],
            ..Rendered::default()
        }
    }

    /// Whether there is a rule for a class.
    pub fn maps(&self, class: Class) -> bool {
        self.deny.get(&class).is_some_and(|rules| !rules.is_empty())
    }

    fn permission(&self, policy: &Policy, servers: &[String], left_out: &[Class]) -> Permission {
        let classes = policy.deny.iter().filter(|class| !left_out.contains(class));
        let denied: Vec<&Deny<Tool>> = classes.filter_map(|class| self.deny.get(class)).flatten().collect();
        let mut rules = Permission::default();
        rules.every("*", Action::Deny);
        for server in servers {
            rules.every(&format!("{server}_*"), Action::Allow);
        }
        for tool in self.tools.of(&policy.commands) {
            if denied.iter().all(|deny| !matches!(deny, Deny::Tool(none) if none == tool)) {
                rules.0.push((tool.name(), self.rule(*tool, &policy.commands, &denied)));
            }
        }
        for deny in &denied {
            if let Deny::Tool(tool) = deny {
                rules.every(&tool.name(), Action::Deny);
            }
        }
        // Last: a server may have a name that reads as theirs. The first is every path outside of the workspace, the
        // second a call that comes for the third time in a row, which it would ask a person about.
        rules.every("external_directory", Action::Deny);
        rules.every("doom_loop", Action::Deny);
        rules
    }

    /// What of an allowed tool is allowed.
    fn rule(&self, tool: Tool, commands: &Commands, denied: &[&Deny<Tool>]) -> Rule {
        let mut patterns = match (tool, commands) {
            (Tool::Bash, Commands::List(names)) => {
                let programs = names.iter().map(|name| format!("{name} *"));
                let all = programs.chain(self.commands.iter().map(|line| line.0.clone()));
                [("*".to_owned(), Action::Deny)].into_iter().chain(all.map(|line| (line, Action::Allow))).collect()
            }
            _ => vec![("*".to_owned(), Action::Allow)],
        };
        let less = denied.iter().flat_map(|deny| match (deny, tool) {
            (Deny::Path(place), Tool::Read | Tool::Edit | Tool::List) | (Deny::Write(place), Tool::Edit) => {
                spellings(place).into()
            }
            (Deny::Command(line), Tool::Bash) => vec![line.0.clone()],
            _ => Vec::new(),
        });
        for pattern in less {
            // A key that comes twice would keep its first place.
            patterns.retain(|(known, _)| *known != pattern);
            patterns.push((pattern, Action::Deny));
        }
        match &patterns[..] {
            [(_, action)] => Rule::Every(*action),
            _ => Rule::Of(patterns),
        }
    }
}

impl Permission {
    /// The last word on every call of a name.
    fn every(&mut self, name: &str, action: Action) {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.to_owned(), Rule::Every(action)));
    }
}

impl Tool {
    fn name(self) -> String {
        let name = serde_json::to_value(self).ok();
        name.as_ref().and_then(serde_json::Value::as_str).map(str::to_owned).unwrap_or_default()
    }
}

/// The caller's servers, as they stand in its settings.
pub fn servers(servers: &Servers) -> String {
    let all = servers.objects().into_iter().map(|(name, server)| (name, translated(server)));
    let all: BTreeMap<String, serde_json::Map<String, serde_json::Value>> = all.collect();
    serde_json::to_string(&all).unwrap_or_else(|_| unreachable!("JSON as it was read"))
}

fn translated(mut server: serde_json::Map<String, serde_json::Value>) -> serde_json::Map<String, serde_json::Value> {
    server.remove("type");
    let program = server.remove("command");
    let kind = if program.is_some() { "local" } else { "remote" };
    if let Some(program) = program {
        let arguments = server.remove("args").and_then(|list| list.as_array().cloned()).unwrap_or_default();
        server.insert("command".into(), [program].into_iter().chain(arguments).collect());
    }
    if let Some(variables) = server.remove("env") {
        server.insert("environment".into(), variables);
    }
    server.insert("type".into(), kind.into());
    server
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::agents::spec::Settings;
    use crate::policy::library::Library;

    fn template() -> Template {
        let spec = Library::new(None).agent("opencode").unwrap().value;
        let Some(Settings::Opencode(template)) = spec.settings else { panic!() };
        template
    }

    /// The file of a level, and its rules in their order.
    fn rendered(level: &str, servers: &[String]) -> (serde_json::Value, Vec<(String, String, bool)>) {
        let policy = Library::new(None).level(level).unwrap().value;
        let template = template();
        let text = template.render(&policy, servers, &[]).files[0].text.replace(SERVERS, "{}");
        let flat = template.permission(&policy, servers, &[]).0.into_iter().flat_map(|(name, rule)| match rule {
            Rule::Every(action) => vec![(name, "*".to_owned(), matches!(action, Action::Allow))],
            Rule::Of(list) => {
                list.into_iter().map(|(p, action)| (name.clone(), p, matches!(action, Action::Allow))).collect()
            }
        });
        (serde_json::from_str(&text).unwrap(), flat.collect())
    }

    #[test]
    fn what_is_none_of_its_tools_is_refused() {
        for bad in [r#""write""#, r#""external_directory""#, r#""Bash""#] {
            assert!(serde_json::from_str::<Tool>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_denied_comes_after_what_is_allowed() {
        for level in ["paranoid", "balanced", "developer"] {
            for server in ["sum", "external", "doom", "bash", "web"] {
                let (file, rules) = rendered(level, &[server.to_owned()]);
                assert_eq!(rules[0], ("*".into(), "*".into(), false), "{level}");
                let last = |name: &str| rules.iter().rposition(|(known, ..)| known == name).unwrap();
                let allowed = last(&format!("{server}_*"));
                for denied in ["external_directory", "doom_loop", "webfetch", "websearch"] {
                    assert!(last(denied) > allowed && !rules[last(denied)].2, "{level} {server} {denied}");
                }
                for (place, (name, _, allow)) in rules.iter().enumerate() {
                    let later = rules[place..].iter().any(|(other, _, more)| other == name && *more);
                    assert!(*allow || !later || place == 0 || name == "bash", "{level}: {name} is allowed again");
                }
                assert!(file["permission"].is_object() && file["mcp"].is_object());
            }
        }
    }

    #[test]
    fn a_level_without_commands_has_no_shell() {
        let (file, rules) = rendered("paranoid", &[]);
        assert_eq!(file["permission"]["bash"], "deny");
        assert!(!rules.iter().any(|(name, _, allow)| name == "bash" && *allow));
        let (file, _) = rendered("developer", &[]);
        assert_eq!(file["permission"]["bash"]["*"], "allow");
        assert_eq!(file["permission"]["edit"][".opencode/*"], "deny");
        assert_eq!(file["enabled_providers"], serde_json::json!(["openai", "anthropic"]));
        assert_eq!(file["provider"]["openai"]["options"]["baseURL"], BASE_URL);
    }

    #[test]
    fn servers_in_its_own_words() {
        let text = r#"{"mcpServers": {"a": {"type": "stdio", "command": "/bin/x", "args": ["{home}"], "env": {"K": "v"}},
            "b": {"type": "http", "url": "http://127.0.0.1:1", "headers": {"h": "1"}}}}"#;
        let written = servers(&Servers::parse(text.to_owned(), "test").unwrap());
        let read: serde_json::Value = serde_json::from_str(&written).unwrap();
        assert_eq!(
            read,
            serde_json::json!({
                "a": {"type": "local", "command": ["/bin/x", "{home}"], "environment": {"K": "v"}},
                "b": {"type": "remote", "url": "http://127.0.0.1:1", "headers": {"h": "1"}},
            })
        );
    }
}
