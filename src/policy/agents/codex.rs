//! Codex's settings. It ends at a value that it does not know and, with `--strict-config`, at a key; what stands in
//! `requirements.toml` it lets neither its own configuration nor an argument loosen.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::rendered::{BASE_URL, FilePlace, Rendered, SERVERS, SettingsFile};
use crate::policy::agents::mcp::Servers;
use crate::policy::level::Policy;
use crate::types::class::Class;
use crate::types::paths::{HomePath, HostPath};

/// How the classes of a policy read in Codex's settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Template {
    /// Its configuration.
    pub config: HomePath,
    /// Its rules for commands.
    pub rules_file: HomePath,
    /// Where the machine's owner says what neither of them may loosen.
    pub requirements: HostPath,
    /// Features that are switched off at every level.
    pub off: Vec<Feature>,
    /// Features that are switched off where a class is denied.
    pub features: BTreeMap<Class, Vec<Feature>>,
    /// Beginnings of commands that are forbidden, by class.
    pub rules: BTreeMap<Class, Vec<Pattern>>,
}

/// The name of a feature.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Feature(String);

impl TryFrom<String> for Feature {
    type Error = String;

    fn try_from(name: String) -> Result<Feature, String> {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
            return Err(format!("`{}` is no feature; write its name alone", name.escape_debug()));
        }
        Ok(Feature(name))
    }
}

impl From<Feature> for String {
    fn from(feature: Feature) -> String {
        feature.0
    }
}

/// The first words of a command. Of several that stand in one place any will do.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<WrittenWord>")]
pub struct Pattern(Vec<Vec<String>>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a word or a list of words")]
enum WrittenWord {
    One(String),
    AnyOf(Vec<String>),
}

impl TryFrom<Vec<WrittenWord>> for Pattern {
    type Error = String;

    fn try_from(words: Vec<WrittenWord>) -> Result<Pattern, String> {
        let all = words.into_iter().map(|word| match word {
            WrittenWord::One(word) => vec![word],
            WrittenWord::AnyOf(words) => words,
        });
        let all: Vec<Vec<String>> = all.collect();
        // A word with a blank is never the word of a command, and a rule without words is none.
        let sound = |word: &String| !word.is_empty() && word.chars().all(|c| c.is_ascii_graphic() && c != '"');
        if all.is_empty() || all.iter().any(|words| words.is_empty() || !words.iter().all(sound)) {
            return Err("a rule is a list of words without blanks and quotes; of a list in it any will do".into());
        }
        Ok(Pattern(all))
    }
}

/// What Codex reads as its configuration.
#[derive(Serialize)]
struct Config<'a> {
    approval_policy: &'static str,
    sandbox_mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    web_search: Option<&'static str>,
    check_for_update_on_startup: bool,
    cli_auth_credentials_store: &'static str,
    /// Text of the workspace's AGENTS.md that goes into the prompt.
    project_doc_max_bytes: u32,
    model_provider: &'static str,
    agents: Enabled,
    analytics: Enabled,
    history: History,
    shell_environment_policy: ShellEnvironment,
    skills: Skills,
    features: BTreeMap<&'a str, bool>,
    model_providers: BTreeMap<&'static str, Provider>,
}

#[derive(Serialize)]
struct Enabled {
    enabled: bool,
}

#[derive(Serialize)]
struct History {
    persistence: &'static str,
}

/// It would tell its model of those of the workspace, trusted or not.
#[derive(Serialize)]
struct Skills {
    include_instructions: bool,
    bundled: Enabled,
}

#[derive(Serialize)]
struct ShellEnvironment {
    inherit: &'static str,
    exclude: [&'static str; 3],
}

#[derive(Serialize)]
struct Provider {
    name: &'static str,
    base_url: &'static str,
    wire_api: &'static str,
    /// The credential is read from `auth.json`.
    requires_openai_auth: bool,
    supports_websockets: bool,
}

/// What Codex lets nothing loosen.
#[derive(Serialize)]
struct Requirements<'a> {
    allowed_approval_policies: [&'static str; 1],
    /// It takes no list without the first.
    allowed_sandbox_modes: [&'static str; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed_web_search_modes: Option<[&'static str; 1]>,
    allow_managed_hooks_only: bool,
    allow_browser_and_computer_use: bool,
    allow_remote_control: bool,
    features: BTreeMap<&'a str, bool>,
    rules: PrefixRules<'a>,
}

#[derive(Serialize)]
struct PrefixRules<'a> {
    prefix_rules: Vec<PrefixRule<'a>>,
}

#[derive(Serialize)]
struct PrefixRule<'a> {
    pattern: Vec<AnyOf<'a>>,
    decision: &'static str,
    justification: &'static str,
}

#[derive(Serialize)]
struct AnyOf<'a> {
    any_of: &'a [String],
}

const OFF: &str = "disabled";
const FORBIDDEN: &str = "forbidden";
const WHY: &str = "the level denies this";
/// Nobody is asked.
const NEVER: &str = "never";
/// Its own sandbox needs namespaces that no cell grants, and without them not one command of its would run: the cell
/// is the sandbox.
const NO_SANDBOX: &str = "danger-full-access";
const PROVIDER: &str = "cell";

impl Template {
    /// The settings for a policy.
    pub fn render(&self, policy: &Policy, websocket: bool) -> Rendered {
        let features = self.switched_off(policy);
        let rules = self.forbidden(policy);
        let web = policy.deny.contains(&Class::Web).then_some(OFF);
        let file = |place, text| SettingsFile { place, text };
        Rendered {
            files: vec![
                file(FilePlace::Home(self.config.clone()), config(policy, features.clone(), web, websocket)),
                file(FilePlace::Home(self.rules_file.clone()), rules.iter().map(|rule| starlark(rule)).collect()),
                file(FilePlace::Managed(self.requirements.clone()), requirements(features, &rules, web)),
            ],
            ..Rendered::default()
        }
    }

    /// Whether there is a rule, a feature or a key for a class.
    pub fn maps(&self, class: Class) -> bool {
        matches!(class, Class::Web | Class::Subagents)
            || self.rules.contains_key(&class)
            || self.features.contains_key(&class)
    }

    fn switched_off(&self, policy: &Policy) -> BTreeMap<&str, bool> {
        let denied = policy.deny.iter().filter_map(|class| self.features.get(class)).flatten();
        self.off.iter().chain(denied).map(|feature| (feature.0.as_str(), false)).collect()
    }

    fn forbidden(&self, policy: &Policy) -> Vec<&Pattern> {
        policy.deny.iter().filter_map(|class| self.rules.get(class)).flatten().collect()
    }
}

fn config(
    policy: &Policy,
    features: BTreeMap<&str, bool>,
    web_search: Option<&'static str>,
    supports_websockets: bool,
) -> String {
    let provider = Provider {
        name: "the model's API",
        base_url: BASE_URL,
        wire_api: "responses",
        requires_openai_auth: true,
        supports_websockets,
    };
    let config = Config {
        approval_policy: NEVER,
        sandbox_mode: NO_SANDBOX,
        web_search,
        check_for_update_on_startup: false,
        cli_auth_credentials_store: "file",
        project_doc_max_bytes: 0,
        model_provider: PROVIDER,
        agents: Enabled { enabled: !policy.deny.contains(&Class::Subagents) },
        analytics: Enabled { enabled: false },
        history: History { persistence: "none" },
        shell_environment_policy: ShellEnvironment { inherit: "core", exclude: ["*KEY*", "*TOKEN*", "*SECRET*"] },
        skills: Skills { include_instructions: false, bundled: Enabled { enabled: false } },
        features,
        model_providers: [(PROVIDER, provider)].into(),
    };
    to_toml(&config) + "\n" + SERVERS
}

fn requirements(features: BTreeMap<&str, bool>, rules: &[&Pattern], web_search: Option<&'static str>) -> String {
    let rules = rules.iter().map(|Pattern(words)| PrefixRule {
        pattern: words.iter().map(|any_of| AnyOf { any_of }).collect(),
        decision: FORBIDDEN,
        justification: WHY,
    });
    to_toml(&Requirements {
        allowed_approval_policies: [NEVER],
        allowed_sandbox_modes: ["read-only", NO_SANDBOX],
        allowed_web_search_modes: web_search.map(|mode| [mode]),
        allow_managed_hooks_only: true,
        allow_browser_and_computer_use: false,
        allow_remote_control: false,
        features,
        rules: PrefixRules { prefix_rules: rules.collect() },
    })
}

/// One line of a `.rules` file. A list of lists of words reads in its language as it does in JSON.
fn starlark(Pattern(words): &Pattern) -> String {
    let words = serde_json::Value::from(words.clone());
    format!("prefix_rule(pattern={words}, decision=\"{FORBIDDEN}\", justification=\"{WHY}\")\n")
}

/// The caller's servers as tables of the configuration. What Codex does not know in them it refuses by itself.
pub fn servers(servers: &Servers) -> String {
    let all = servers.objects();
    let tables = all.into_iter().map(|(name, server)| {
        let renamed = server.into_iter().filter(|(key, _)| key != "type");
        let renamed =
            renamed.map(|(key, value)| (if key == "headers" { "http_headers".to_owned() } else { key }, value));
        (name, renamed.collect::<serde_json::Map<_, _>>())
    });
    let tables: BTreeMap<String, serde_json::Map<String, serde_json::Value>> = tables.collect();
    if tables.is_empty() {
        return String::new();
    }
    toml::to_string(&BTreeMap::from([("mcp_servers", tables)])).unwrap_or_default()
}

fn to_toml(value: &impl Serialize) -> String {
    toml::to_string(value).unwrap_or_else(|_| unreachable!("plain texts, lists and booleans"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Result<Pattern, String> {
        let table: BTreeMap<String, Pattern> = toml::from_str(&format!("a = {text}")).map_err(|e| e.to_string())?;
        Ok(table["a"].clone())
    }

    #[test]
    fn a_rule_reads_the_same_in_both_of_its_languages() {
        let rule = pattern(r#"["ps", ["aux", "-ef"]]"#).unwrap();
        assert_eq!(
            starlark(&rule),
            "prefix_rule(pattern=[[\"ps\"],[\"aux\",\"-ef\"]], decision=\"forbidden\", justification=\"the level denies this\")\n"
        );
        let text = requirements(BTreeMap::new(), &[&rule], Some(OFF));
        let read: toml::Table = toml::from_str(&text).unwrap();
        let words = &read["rules"]["prefix_rules"][0]["pattern"];
        assert_eq!(words[1]["any_of"].as_array().unwrap().len(), 2, "{text}");
        assert_eq!(read["allowed_web_search_modes"][0].as_str(), Some(OFF));
        for bad in ["[]", "[[]]", "[\"\"]", "[\"a b\"]", "[\"a\\\"\"]", "\"sudo\"", "[1]"] {
            assert!(pattern(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn servers_become_tables() {
        let text = r#"{"mcpServers": {"a": {"type": "stdio", "command": "/bin/x", "args": ["{home}"], "env": {"K": "v\"w"}},
            "b": {"type": "http", "url": "http://127.0.0.1:1", "headers": {"h": "1"}}}}"#;
        let written = servers(&Servers::parse(text.to_owned(), "test").unwrap());
        let read: toml::Table = toml::from_str(&written).unwrap();
        assert_eq!(read["mcp_servers"]["a"]["env"]["K"].as_str(), Some("v\"w"));
        assert_eq!(read["mcp_servers"]["a"]["args"][0].as_str(), Some("{home}"));
        assert_eq!(read["mcp_servers"]["b"]["http_headers"]["h"].as_str(), Some("1"));
        assert!(read["mcp_servers"]["a"].get("type").is_none());
    }
}
