//! Agents' settings as they are rendered: they read back, and nothing that was denied is missing.

use oubliette::policy::agents::denied::Deny;
use oubliette::policy::agents::rendered::{FilePlace, Rendered, SERVERS};
use oubliette::policy::agents::spec::Settings;
use oubliette::policy::agents::{codex, gemini, opencode, qwen};
use oubliette::policy::{AllCommands, Commands, Policy};
use oubliette::types::class::Class;
use serde_json::Value;

use crate::settings::check_settings;

/// Renders an agent's settings for a policy.
pub fn check_rendered(settings: &Settings, policy: &Policy) {
    match settings {
        Settings::Claude(template) => check_settings(template, policy),
        Settings::Codex(template) => check_codex(template, policy),
        Settings::Gemini(template) => check_gemini(template, policy),
        Settings::Opencode(template) => check_opencode(template, policy),
        Settings::Qwen(template) => check_qwen(template, policy),
    }
}

fn at(rendered: &Rendered, file: impl Fn(&FilePlace) -> bool) -> &str {
    let found = rendered.files.iter().find(|one| file(&one.place));
    found.map(|one| one.text.as_str()).expect("a file of settings")
}

fn toml_of(text: &str) -> Value {
    toml::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Renders Codex's settings for a policy.
fn check_codex(template: &codex::Template, policy: &Policy) {
    for websocket in [false, true] {
        let rendered = template.render(policy, websocket).with_base_url("http://127.0.0.1:1/\"\\\n");
        let config =
            toml_of(&at(&rendered, |place| *place == FilePlace::Home(template.config.clone())).replace(SERVERS, ""));
        let requirements = toml_of(at(&rendered, |place| matches!(place, FilePlace::Managed(_))));
        let rules = at(&rendered, |place| *place == FilePlace::Home(template.rules_file.clone()));
        let provider = &config["model_providers"][config["model_provider"].as_str().expect("a provider")];
        assert_eq!(provider["base_url"], "http://127.0.0.1:1/\"\\\n");
        assert_eq!(provider["supports_websockets"], websocket);
        assert_eq!(config["approval_policy"], "never");
        assert_eq!(requirements["allow_managed_hooks_only"], true);
        let denied = |class: &&Class| policy.deny.contains(class);
        let off = template.features.iter().filter(|(class, _)| denied(class)).flat_map(|(_, features)| features);
        for feature in template.off.iter().chain(off) {
            let name = String::from(feature.clone());
            for settings in [&config, &requirements] {
                assert_eq!(settings["features"][&name], false, "{name} is on");
            }
        }
        let web = policy.deny.contains(&Class::Web);
        assert_eq!(config["web_search"] == "disabled", web);
        assert_eq!(requirements["allowed_web_search_modes"][0] == "disabled", web);
        assert_eq!(config["agents"]["enabled"], !policy.deny.contains(&Class::Subagents));
        check_prefixes(template, policy, &requirements["rules"]["prefix_rules"], rules);
    }
}

/// Each denied beginning of a command stands in both files, and reads the same in both.
fn check_prefixes(template: &codex::Template, policy: &Policy, managed: &Value, rules: &str) {
    let wanted = policy.deny.iter().map(|class| template.rules.get(class).map_or(0, Vec::len)).sum();
    let managed = managed.as_array().expect("a list of rules");
    let lines: Vec<&str> = rules.lines().collect();
    assert_eq!((managed.len(), lines.len()), (wanted, wanted));
    for (rule, line) in managed.iter().zip(lines) {
        assert_eq!(rule["decision"], "forbidden");
        let pattern =
            line.strip_prefix("prefix_rule(pattern=").and_then(|rest| rest.split_once(", decision=")).expect(line);
        assert!(pattern.1.starts_with("\"forbidden\", "), "{line}");
        let words: Value = serde_json::from_str(pattern.0).expect("a list of lists");
        let any_of: Vec<Value> =
            rule["pattern"].as_array().expect("words").iter().map(|word| word["any_of"].clone()).collect();
        assert_eq!(words, Value::from(any_of));
        assert!(words.as_array().is_some_and(|words| !words.is_empty()), "a rule for every command");
    }
}

/// Renders Gemini CLI's settings for a policy, with and without a server of the caller's.
fn check_gemini(template: &gemini::Template, policy: &Policy) {
    for servers in [vec![], vec!["server-1".to_owned()]] {
        for left_out in [&[][..], &[Class::SharedTmp]] {
            let rendered = template.render(policy, &servers, left_out);
            let settings = at(&rendered, |place| matches!(place, FilePlace::Home(_))).replace(SERVERS, "{}");
            let settings: Value = serde_json::from_str(&settings).expect("settings are JSON");
            assert_eq!(settings["security"]["disableYoloMode"], true, "{settings}");
            let text = at(&rendered, |place| matches!(place, FilePlace::Settings(_)));
            check_rules(template, policy, &servers, left_out, &toml_of(text)["rule"]);
        }
    }
}

fn check_rules(template: &gemini::Template, policy: &Policy, servers: &[String], left_out: &[Class], rules: &Value) {
    let rules = rules.as_array().expect("a list of rules");
    let (mut denied, mut others) = (0, Vec::new());
    for rule in rules {
        let tool = &rule["toolName"];
        assert!(
            tool.is_string() || tool.as_array().is_some_and(|tools| !tools.is_empty()),
            "a rule for every tool: {rule}"
        );
        match (rule["priority"].as_u64(), rule["decision"].as_str()) {
            (Some(100), Some("deny")) => assert_eq!(tool, "*"),
            (Some(900), Some("deny")) => denied += 1,
            (Some(500), Some("allow")) => others.push(rule),
            _ => panic!("a rule of no rank: {rule}"),
        }
        for expression in ["argsPattern", "commandRegex"].into_iter().filter_map(|key| rule[key].as_str()) {
            assert!(!expression.is_empty() && expression.len() <= 2048, "{expression}");
        }
    }
    assert_eq!(rules[0]["priority"], 100, "what nothing allows is denied");
    let classes = policy.deny.iter().filter(|class| !left_out.contains(class));
    let wanted: usize = classes.map(|class| template.deny.get(class).map_or(0, Vec::len)).sum();
    // Four more close a hole of one of its tools.
    assert_eq!(denied, wanted + 4);
    let all: Vec<&&Value> = others.iter().filter(|rule| rule["toolName"] == "*").collect();
    assert_eq!(all.len(), servers.len());
    assert!(all.iter().zip(servers).all(|(rule, server)| rule["mcpName"] == server.as_str()), "{all:?}");
    let shell = others.iter().filter(|rule| rule["toolName"] == "run_shell_command");
    for rule in shell {
        match &policy.commands {
            Commands::All(AllCommands::None) => {}
            Commands::All(AllCommands::Any) => assert_eq!(rule["commandRegex"], "."),
            Commands::List(names) => {
                let prefixes = rule["commandPrefix"].as_array();
                assert!(prefixes.is_none_or(|all| all.iter().eq(names.iter().map(String::as_str))), "{rule}");
                assert!(prefixes.is_some() || rule["commandRegex"].as_str().is_some_and(|text| text != "."), "{rule}");
            }
        }
    }
}

/// Renders opencode's settings for a policy, with and without a server of the caller's.
fn check_opencode(template: &opencode::Template, policy: &Policy) {
    for servers in [vec![], vec!["server-1".to_owned()]] {
        for left_out in [&[][..], &[Class::SharedTmp]] {
            let rendered = template.render(policy, &servers, left_out);
            let text = at(&rendered, |place| matches!(place, FilePlace::Settings(_)));
            assert_eq!(at(&rendered, |place| matches!(place, FilePlace::Managed(_))), text);
            let settings: Value = serde_json::from_str(&text.replace(SERVERS, "{}")).expect("settings are JSON");
            // A key that came twice would keep its first place, and there the last rule counts.
            assert_eq!(serde_json::to_string_pretty(&settings).expect("JSON"), text.replace(SERVERS, "{}"));
            let rules = settings["permission"].as_object().expect("rules");
            assert_eq!(rules.iter().next().expect("a first rule"), (&"*".to_owned(), &"deny".into()));
            for last in ["external_directory", "doom_loop"] {
                let place = rules.keys().position(|name| name == last).expect("a last rule");
                assert!(rules[last] == "deny" && place >= rules.len() - 2, "{text}");
            }
            let classes = policy.deny.iter().filter(|class| !left_out.contains(class));
            for deny in classes.filter_map(|class| template.deny.get(class)).flatten() {
                if let Deny::Tool(tool) = deny {
                    let name = serde_json::to_value(tool).expect("a name");
                    assert_eq!(rules[name.as_str().expect("a text")], "deny", "{text}");
                }
            }
            let listed = rules.get("bash").filter(|_| matches!(policy.commands, Commands::List(_)));
            if let Some(Value::Object(lines)) = listed {
                assert_eq!(lines.iter().next().expect("a first line"), (&"*".to_owned(), &"deny".into()), "{text}");
            }
        }
    }
}

/// Renders Qwen Code's settings for a policy.
fn check_qwen(template: &qwen::Template, policy: &Policy) {
    for left_out in [&[][..], &[Class::SharedTmp]] {
        let rendered = template.render(policy, left_out);
        let text = at(&rendered, |place| *place == FilePlace::Settings("settings.json"));
        let settings: Value = serde_json::from_str(text).expect("settings are JSON");
        assert_eq!(settings["tools"]["approvalMode"], "default");
        assert_eq!(settings["security"]["folderTrust"]["enabled"], true);
        let list = |value: &Value| value.as_array().cloned().expect("a list");
        let (core, denied) = (list(&settings["tools"]["core"]), list(&settings["permissions"]["deny"]));
        let offered = rendered.tools.as_ref().expect("a list of tools");
        assert!(core.iter().all(|tool| offered.iter().any(|name| tool == name.as_str())), "{text}");
        let classes = policy.deny.iter().filter(|class| !left_out.contains(class));
        for rule in classes.filter_map(|class| template.deny.get(class)).flatten() {
            assert!(denied.contains(&serde_json::to_value(rule).expect("a rule")), "{rule:?} is missing in {text}");
        }
        // What is neither offered nor denied by name would be offered by the next version.
        for name in ["run_shell_command", "web_fetch", "agent", "skill"] {
            assert!(core.contains(&name.into()) || denied.contains(&name.into()), "{name}: {text}");
        }
    }
}
