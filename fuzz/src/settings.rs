//! Claude Code's settings as they are rendered: JSON that it takes, with every rule that was asked for.

use oubliette::policy::agents::claude::{Rule, Template};
use oubliette::policy::agents::rendered::{FilePlace, SERVERS, SettingsFile};
use oubliette::policy::{AllCommands, Commands, Policy};
use oubliette::types::class::Class;
use serde_json::Value;

/// Renders the settings of a policy in every kind of cell.
pub fn check_settings(template: &Template, policy: &Policy) {
    for left_out in [&[][..], &[Class::SharedTmp]] {
        for servers in [vec![], vec!["server-1".to_owned(), "_".to_owned()]] {
            let rendered = template.render(policy, &servers, left_out);
            for SettingsFile { place, text } in rendered.files.iter().filter(|file| file.text != SERVERS) {
                let settings: Value = serde_json::from_str(text).expect("settings are JSON");
                check(&settings, template, policy, left_out, matches!(place, FilePlace::Managed(_)));
                for server in &servers {
                    let rule = format!("mcp__{server}");
                    assert!(rules(&settings, "allow").contains(&rule), "{rule} is not allowed");
                }
            }
        }
    }
}

fn check(settings: &Value, template: &Template, policy: &Policy, left_out: &[Class], managed: bool) {
    let denied = rules(settings, "deny");
    for class in policy.deny.iter().filter(|class| !left_out.contains(*class)) {
        for rule in template.deny.get(class).into_iter().flatten() {
            assert!(denied.contains(&String::from(rule.clone())), "{class}: {rule:?} is missing");
        }
    }
    let allowed = rules(settings, "allow");
    for rule in allowed.iter().chain(&denied) {
        // One value that it does not know makes it drop the whole file.
        assert!(Rule::try_from(rule.clone()).is_ok(), "{rule:?}");
    }
    let own = match &policy.commands {
        Commands::All(AllCommands::None) => &template.allow.none,
        Commands::All(AllCommands::Any) => &template.allow.any,
        Commands::List(names) => {
            assert!(names.iter().all(|name| allowed.contains(&format!("Bash({name})"))), "{allowed:?}");
            &template.allow.list
        }
    };
    let own: Vec<String> = own.iter().cloned().map(String::from).collect();
    for rule in allowed.iter().filter(|rule| !own.contains(rule)) {
        assert!(!rule.starts_with("Bash(*") && rule != "Bash", "{rule}: every command");
    }
    let at = |path: &str| settings.pointer(path).unwrap_or(&Value::Null);
    assert!(matches!(at("/permissions/defaultMode").as_str(), Some("dontAsk" | "acceptEdits")));
    assert_eq!(at("/permissions/disableBypassPermissionsMode"), "disable");
    assert_eq!(at("/disableAllHooks"), true);
    assert_eq!(at("/allowManagedPermissionRulesOnly").as_bool(), managed.then_some(true));
    assert_eq!(at("/allowManagedHooksOnly").as_bool(), managed.then_some(true));
}

fn rules(settings: &Value, kind: &str) -> Vec<String> {
    let list = settings.pointer(&format!("/permissions/{kind}")).and_then(Value::as_array).expect("a list of rules");
    list.iter().map(|rule| rule.as_str().expect("a rule is text").to_owned()).collect()
}
