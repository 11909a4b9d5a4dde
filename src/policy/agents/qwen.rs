//! Qwen Code's settings as typed values. Its rules read as those of Claude Code do, but one for a tool that it does not
//! have matches nothing, and it says nothing of that.
#![forbid(unsafe_code)]

mod settings;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::claude::{self, ByCommands};
use super::rendered::{FilePlace, Rendered, SettingsFile};
use crate::policy::agents::qwen::settings::{CALLERS_FORM, SHELL, TOOLS, Tool};
use crate::policy::level::{Commands, Policy};
use crate::types::class::Class;
use crate::types::paths::HostPath;

/// How the classes and the commands of a policy read in the settings of Qwen Code.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Template {
    /// Where it looks for the settings of the machine's owner when no variable says where they are: they hold for an
    /// agent that the agent starts, too.
    pub managed: Option<HostPath>,
    /// The tools that exist at all.
    pub tools: ByCommands<Vec<Tool>>,
    /// `permissions.allow`, beside one rule for each listed command.
    pub allow: ByCommands<Vec<Rule>>,
    /// `permissions.deny` by class, beside every tool that does not exist.
    pub deny: BTreeMap<Class, Vec<Rule>>,
}

/// Names that stand for several tools in a rule: those that run commands, read, and write.
const GROUPS: [&str; 3] = ["Bash", "Read", "Edit"];

/// One permission rule, checked for what Qwen Code takes and never matches.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String")]
pub struct Rule(claude::Rule);

impl TryFrom<String> for Rule {
    type Error = String;

    fn try_from(text: String) -> Result<Rule, String> {
        let tool = text.split('(').next().unwrap_or_default();
        match GROUPS.contains(&tool) || TOOLS.contains(&tool) {
            true => claude::Rule::try_from(text).map(Rule),
            false => Err(format!(
                "rule `{}` never matches: it begins with none of {}, {}",
                text.escape_debug(),
                GROUPS.join(", "),
                TOOLS.join(", ")
            )),
        }
    }
}

impl Template {
    /// The settings for a policy of ours, without the rules of these classes.
    pub fn render(&self, policy: &Policy, left_out: &[Class]) -> Rendered {
        let tools = self.tools.of(&policy.commands);
        let text = settings::text(tools, self.allowed(&policy.commands), self.denied(policy, tools, left_out));
        let file = |place, text: &str| SettingsFile { place, text: text.to_owned() };
        let mut files =
            vec![file(FilePlace::Settings("settings.json"), &text), file(FilePlace::Settings("trust.json"), NO_TRUST)];
        files.extend(self.managed.clone().map(|path| file(FilePlace::Managed(path), &text)));
        let offered = tools.iter().map(|tool| tool.0.clone()).chain([CALLERS_FORM.to_owned()]);
        Rendered { files, tools: Some(offered.collect()), ..Rendered::default() }
    }

    /// Whether there is a rule for a class.
    pub fn maps(&self, class: Class) -> bool {
        self.deny.get(&class).is_some_and(|rules| !rules.is_empty())
    }

    fn allowed(&self, commands: &Commands) -> Vec<String> {
        let own = self.allow.of(commands).iter().map(|rule| rule.0.clone().into());
        let listed = match commands {
            Commands::List(names) => names.as_slice(),
            Commands::All(_) => &[],
        };
        // Without a star it stands for the program with any arguments. The tool's own name must be there: in a run
        // without a person the tool does not exist else.
        own.chain(listed.iter().map(|name| format!("{SHELL}({name})"))).collect()
    }

    fn denied(&self, policy: &Policy, tools: &[Tool], left_out: &[Class]) -> Vec<String> {
        let kept = |name: &&str| *name == CALLERS_FORM || tools.iter().any(|tool| tool.0 == **name);
        let mut deny: Vec<String> = TOOLS.into_iter().filter(|name| !kept(name)).map(str::to_owned).collect();
        let classes = policy.deny.iter().filter(|class| !left_out.contains(class));
        for rule in classes.filter_map(|class| self.deny.get(class)).flatten() {
            let rule = rule.0.clone().into();
            if !deny.contains(&rule) {
                deny.push(rule);
            }
        }
        deny
    }
}

/// No directory is trusted, be it the workspace or one that the agent goes to: of an untrusted one it reads no settings,
/// no variables, no hooks, skills, agents, commands or extensions. It starts no MCP server there either.
const NO_TRUST: &str = r#"{"/":"DO_NOT_TRUST"}"#;

#[cfg(test)]
mod tests {
    use super::super::spec::Settings;
    use super::*;
    use crate::policy::library::Library;

    #[test]
    fn what_never_matches_is_refused() {
        for bad in ["Write(//etc/**)", "Sh(x)", "Edit(/etc/**)", "Bash(", "bash(ls)", "WebFetch", "", "Bash(ls )"] {
            assert!(Rule::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        for good in ["Bash(*sudo*)", "Read(//etc/**)", "write_file(./**)", "web_fetch", "run_shell_command(ps)"] {
            assert!(Rule::try_from(good.to_owned()).is_ok(), "{good}");
        }
        assert!(serde_json::from_str::<Tool>(r#""read_filee""#).is_err());
    }

    #[test]
    fn a_tool_that_a_level_does_not_name_is_denied_and_no_other_one() {
        let spec = Library::new(None).agent("qwen").unwrap().value;
        let Some(Settings::Qwen(template)) = spec.settings else { panic!() };
        for (level, shell) in [("paranoid", false), ("balanced", true), ("developer", true)] {
            let policy = Library::new(None).level(level).unwrap().value;
            let rendered = template.render(&policy, &[]);
            let settings: serde_json::Value = serde_json::from_str(&rendered.files[0].text).unwrap();
            let texts = |value: &serde_json::Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
            let (core, deny) = (texts(&settings["tools"]["core"]), texts(&settings["permissions"]["deny"]));
            assert_eq!(core.iter().any(|tool| tool == SHELL), shell, "{level}");
            for tool in TOOLS.into_iter().filter(|tool| *tool != CALLERS_FORM) {
                let is_in = |list: &[String]| list.iter().any(|name| name == tool);
                assert!(is_in(&core) != is_in(&deny), "{level}: {tool}");
            }
            assert_eq!(rendered.files[2].text, rendered.files[0].text);
        }
    }
}
