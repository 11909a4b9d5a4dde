//! Gemini CLI's policy and settings as typed values: a key that it does not know in a rule is passed over, which can
//! leave a rule that holds for every call, and a rule that it cannot read is dropped while the run goes on.
#![forbid(unsafe_code)]

mod settings;

use std::collections::BTreeMap;

use serde::Deserialize;

use super::claude::ByCommands;
use super::denied::{Deny, Line, Place};
use super::rendered::{FilePlace, Rendered, SettingsFile, quoted};
use crate::policy::agents::mcp::Servers;
use crate::policy::level::{Commands, Policy};
use crate::types::class::Class;
use crate::types::paths::HomePath;

/// How the classes and the commands of a policy read in the rules of Gemini CLI.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Template {
    /// Where it looks for its settings.
    pub settings: HomePath,
    /// Tools that are allowed by what the policy says of commands; every other one does not exist.
    pub tools: ByCommands<Vec<Tool>>,
    /// Whether an allowed command may redirect its input and output.
    pub redirect: ByCommands<bool>,
    /// Command lines that are allowed beside the listed programs.
    pub commands: Vec<Line>,
    /// What is denied by class, whatever else allows it.
    pub deny: BTreeMap<Class, Vec<Deny<Tool>>>,
    /// The credential is a token of its login, and no key.
    #[serde(skip)]
    pub login: bool,
}

/// One of its tools. A name that is none is a warning to it, and a rule that matches nothing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Tool(String);

/// All that it has.
const TOOLS: [&str; 27] = [
    "activate_skill",
    "ask_user",
    "complete_task",
    "enter_plan_mode",
    "exit_plan_mode",
    "get_internal_docs",
    GLOB,
    "google_web_search",
    "grep_search",
    "invoke_agent",
    "list_directory",
    "list_mcp_resources",
    "read_file",
    "read_many_files",
    "read_mcp_resource",
    "replace",
    SHELL,
    "tracker_add_dependency",
    "tracker_create_task",
    "tracker_get_task",
    "tracker_list_tasks",
    "tracker_update_task",
    "tracker_visualize",
    "update_topic",
    "web_fetch",
    "write_file",
    "write_todos",
];

const GLOB: &str = "glob";
const SHELL: &str = "run_shell_command";

impl TryFrom<String> for Tool {
    type Error = String;

    fn try_from(name: String) -> Result<Tool, String> {
        match TOOLS.contains(&name.as_str()) {
            true => Ok(Tool(name)),
            false => Err(format!("`{}` is none of its tools: {}", name.escape_debug(), TOOLS.join(", "))),
        }
    }
}

/// Tools with the path of a file or directory among their arguments.
const FILES: [&str; 6] = ["read_file", "list_directory", GLOB, "grep_search", "write_file", "replace"];
const WRITERS: [&str; 2] = ["write_file", "replace"];

/// What a rule looks at in a call.
///
/// It sees the arguments as JSON with its keys in order, and a NUL byte on both sides of each pair. Expressions of its
/// users' with a repeated group are dropped as dangerous, so none here has one.
enum Seen {
    /// The tool alone.
    Anything,
    /// The command begins with one of these programs.
    Programs(Vec<String>),
    /// An expression that begins in the command.
    Command(String),
    /// An expression on all arguments.
    Arguments(String),
}

/// Of a command line.
fn line(Line(text): &Line) -> String {
    format!("{}\"", spelled(text, "[^\\x00]*"))
}

/// Of a path that is the value of these keys. There `*` stands for no slash.
fn place(Place(text): &Place, keys: &str) -> String {
    let before = if text.starts_with('/') { "" } else { "[^\\x00]*" };
    format!("\\x00\"({keys})\":\"{before}{}[/\"]", spelled(text, "[^\\x00/]*"))
}

/// A text of ours as it stands in JSON, in an expression.
fn spelled(text: &str, any: &str) -> String {
    let mut expression = String::new();
    for c in quoted(text).chars() {
        match c {
            '*' => expression.push_str(any),
            '/' | '-' | '_' | '"' => expression.push(c),
            c if c.is_ascii_punctuation() => expression.extend(['\\', c]),
            c => expression.push(c),
        }
    }
    expression
}

/// The order of the rules, in the tier of the machine's owner: above whatever a user, a workspace or an extension says.
/// 950 is not among them: with `disableAlwaysAllow`, rules of that number are skipped as a user's "always".
#[derive(Clone, Copy)]
enum Rank {
    Nothing = 100,
    Allowed = 500,
    Denied = 900,
}

#[derive(Default)]
struct Rules(String);

impl Rules {
    fn add(&mut self, rank: Rank, tools: &[&str], seen: &Seen) -> &mut Rules {
        let text = |text: &str| format!("\"{}\"", quoted(text));
        let list = |all: &mut dyn Iterator<Item = &str>| format!("[{}]", all.map(text).collect::<Vec<_>>().join(", "));
        let looks = match seen {
            Seen::Anything => String::new(),
            Seen::Programs(names) => format!("commandPrefix = {}\n", list(&mut names.iter().map(String::as_str))),
            Seen::Command(expression) => format!("commandRegex = {}\n", text(expression)),
            Seen::Arguments(expression) => format!("argsPattern = {}\n", text(expression)),
        };
        let decision = if matches!(rank, Rank::Allowed) { "allow" } else { "deny" };
        // A rule on commands is none where the tool is in a list.
        let tools = if let [tool] = tools { text(tool) } else { list(&mut tools.iter().copied()) };
        let rank = rank as u16;
        self.0 += &format!("\n[[rule]]\ntoolName = {tools}\n{looks}decision = \"{decision}\"\npriority = {rank}\n");
        self
    }

    fn redirecting(&mut self, redirect: bool) {
        if redirect {
            self.0 += "allowRedirection = true\n";
        }
    }

    fn of_server(&mut self, name: &str) {
        self.0 += &format!("mcpName = \"{name}\"\n");
    }
}

impl Template {
    /// The policy and the settings for a policy of ours with these MCP servers of the caller's, without the rules of
    /// these classes.
    pub fn render(&self, policy: &Policy, servers: &[String], left_out: &[Class]) -> Rendered {
        let mut rules = Rules::default();
        rules.add(Rank::Nothing, &["*"], &Seen::Anything);
        self.allow(&mut rules, &policy.commands);
        for server in servers {
            rules.add(Rank::Allowed, &["*"], &Seen::Anything).of_server(server);
        }
        for expression in OUTSIDE {
            rules.add(Rank::Denied, &[GLOB], &Seen::Arguments(expression.to_owned()));
        }
        let classes = policy.deny.iter().filter(|class| !left_out.contains(class));
        for deny in classes.filter_map(|class| self.deny.get(class)).flatten() {
            rules.deny(deny);
        }
        let file = |place, text| SettingsFile { place, text };
        Rendered {
            files: vec![
                file(FilePlace::Settings("policy.toml"), rules.0),
                file(FilePlace::Home(self.settings.clone()), settings::text(self.login)),
            ],
            ..Rendered::default()
        }
    }

    /// Whether there is a rule for a class.
    pub fn maps(&self, class: Class) -> bool {
        self.deny.get(&class).is_some_and(|rules| !rules.is_empty())
    }

    fn allow(&self, rules: &mut Rules, commands: &Commands) {
        let names = self.tools.of(commands).iter().map(|tool| tool.0.as_str());
        let (shell, tools): (Vec<&str>, Vec<&str>) = names.partition(|name| *name == SHELL);
        let redirect = *self.redirect.of(commands);
        // A rule without a tool would be one for all of them.
        if !tools.is_empty() {
            rules.add(Rank::Allowed, &tools, &Seen::Anything);
        }
        match commands {
            _ if shell.is_empty() => {}
            // A rule that looks at the command is taken as it is. With one that does not, it holds `ln -s`, `rm -r` and
            // more for dangerous, and would ask a person.
            Commands::All(_) => rules.add(Rank::Allowed, &shell, &Seen::Command(".".into())).redirecting(redirect),
            Commands::List(names) => {
                rules.add(Rank::Allowed, &shell, &Seen::Programs(names.clone())).redirecting(redirect);
                for command in &self.commands {
                    rules.add(Rank::Allowed, &shell, &Seen::Command(line(command))).redirecting(redirect);
                }
            }
        }
    }
}

/// The caller's servers, as they stand in its settings.
pub fn servers(servers: &Servers) -> String {
    serde_json::to_string(&servers.objects()).unwrap_or_else(|_| unreachable!("JSON as it was read"))
}

/// `glob` checks that the directory to search lies in the workspace, but not where the pattern leads: from /, also behind
/// a brace, a class or a backslash, or up.
const OUTSIDE: [&str; 4] = [
    r#"\x00"pattern":"/"#,
    r#"\x00"pattern":"[^\x00]*[{(,|\[\\]/"#,
    r#"\x00"pattern":"[^\x00]*\.\."#,
    r#"\x00"pattern":"[^\x00]*[{(,|\[\\]\."#,
];

impl Rules {
    fn deny(&mut self, deny: &Deny<Tool>) {
        let denied = Rank::Denied;
        match deny {
            Deny::Tool(tool) => self.add(denied, &[&tool.0], &Seen::Anything),
            Deny::Path(path) => self.add(denied, &FILES, &Seen::Arguments(place(path, "dir_path|file_path"))),
            Deny::Write(path) => self.add(denied, &WRITERS, &Seen::Arguments(place(path, "file_path"))),
            Deny::Command(command) => self.add(denied, &[SHELL], &Seen::Command(line(command))),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::agents::rendered::SERVERS;
    use crate::policy::library::Library;

    #[test]
    fn what_is_none_of_its_tools_is_refused() {
        assert!(serde_json::from_str::<Tool>(r#""read_filee""#).is_err());
    }

    #[test]
    fn expressions_are_spelled_as_the_arguments_are() {
        let line = |text: &str| super::line(&Line::try_from(text.to_owned()).unwrap());
        assert_eq!(line("ps"), r#"ps""#);
        assert_eq!(line("*sudo*"), r#"[^\x00]*sudo[^\x00]*""#);
        assert_eq!(line("a.b \"c\""), r#"a\.b \\"c\\"""#);
        let place = |text: &str| super::place(&Place::try_from(text.to_owned()).unwrap(), "k");
        assert_eq!(place("/etc"), r#"\x00"(k)":"/etc[/"]"#);
        assert_eq!(place(".gemini/tmp/*"), r#"\x00"(k)":"[^\x00]*\.gemini/tmp/[^\x00/]*[/"]"#);
    }

    #[test]
    fn no_expression_repeats_a_group() {
        let place = place(&Place::try_from("a(b)*/c".to_owned()).unwrap(), "x|y");
        for expression in [place.as_str()].iter().chain(&OUTSIDE) {
            let mut pairs = expression.chars().zip(expression.chars().skip(1));
            assert!(!pairs.any(|(c, next)| c == ')' && "*+?{".contains(next)), "{expression}");
        }
    }

    #[test]
    fn a_rule_is_for_the_tools_that_it_names() {
        let spec = Library::new(None).agent("gemini").unwrap().value;
        let Some(crate::policy::agents::spec::Settings::Gemini(mut template)) = spec.settings else { panic!() };
        for level in ["paranoid", "balanced", "developer"] {
            let policy = Library::new(None).level(level).unwrap().value;
            let check = |template: &Template| {
                let rendered = template.render(&policy, &["sum".into()], &[]);
                let table: toml::Table = toml::from_str(&rendered.files[0].text).unwrap();
                let every = |rule: &&toml::Value| rule["toolName"].as_str() == Some("*");
                let rules = table["rule"].as_array().unwrap();
                let whole: Vec<_> = rules.iter().filter(every).collect();
                assert_eq!(whole.len(), 2, "{level}: {whole:?}");
                assert_eq!(whole[0]["decision"].as_str(), Some("deny"));
                assert_eq!(whole[1]["mcpName"].as_str(), Some("sum"));
                let named = |tools: &toml::Value| tools.as_array().is_none_or(|tools| !tools.is_empty());
                assert!(rules.iter().all(|rule| named(&rule["toolName"])));
                let settings = rendered.files[1].text.replace(SERVERS, "{}");
                serde_json::from_str::<serde_json::Value>(&settings).unwrap();
            };
            check(&template);
            template.tools.none.clear();
            template.tools.list.clear();
            check(&template);
        }
    }
}
