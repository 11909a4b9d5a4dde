//! The file of Qwen Code's settings, in the tier of the machine's owner: above what a user or a workspace says.
#![forbid(unsafe_code)]

use serde::Serialize;

use super::Tool;

/// The file, with these tools, and these rules for them.
pub fn text(tools: &[Tool], allow: Vec<String>, deny: Vec<String>) -> String {
    let text = serde_json::to_string_pretty(&Settings::new(tools, Permissions { allow, deny }));
    text.unwrap_or_else(|_| unreachable!("plain strings and booleans"))
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Settings<'a> {
    /// Of the format. With another one it would rewrite the file, or what it holds.
    #[serde(rename = "$version")]
    version: u8,
    general: General,
    privacy: Privacy,
    telemetry: Enabled,
    ide: Enabled,
    omni: Enabled,
    skills: Skills,
    tools: Tools<'a>,
    memory: Memory,
    security: Security,
    disable_all_hooks: bool,
    permissions: Permissions,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct General {
    enable_auto_update: bool,
    git_co_author: CoAuthor,
}

#[derive(Debug, Clone, Serialize)]
struct CoAuthor {
    commit: bool,
    pr: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Privacy {
    usage_statistics_enabled: bool,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Enabled {
    enabled: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Skills {
    disabled_levels: [&'static str; 4],
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Tools<'a> {
    core: &'a [Tool],
    approval_mode: &'static str,
    use_ripgrep: bool,
    list_directory: Enabled,
    tool_search: Enabled,
    workflows_enabled: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    enable_managed_auto_memory: bool,
    enable_managed_auto_dream: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Security {
    folder_trust: Enabled,
    auth: Auth,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Auth {
    selected_type: &'static str,
}

#[derive(Debug, Clone, Serialize)]
struct Permissions {
    allow: Vec<String>,
    deny: Vec<String>,
}

impl Settings<'_> {
    fn new(tools: &[Tool], permissions: Permissions) -> Settings<'_> {
        let no = Enabled { enabled: false };
        Settings {
            version: 4,
            general: General { enable_auto_update: false, git_co_author: CoAuthor { commit: false, pr: false } },
            privacy: Privacy { usage_statistics_enabled: false },
            telemetry: no,
            ide: no,
            omni: no,
            // It tells the model of the skills of a workspace that it does not trust, too.
            skills: Skills { disabled_levels: ["project", "user", "extension", "bundled"] },
            tools: Tools {
                core: tools,
                // What no rule allows would ask a person, and is denied where there is none.
                approval_mode: "default",
                // It brings a program of its own for that, which the kernel may not let it execute.
                use_ripgrep: false,
                list_directory: Enabled { enabled: true },
                // A tool behind the search is one that the list of tools does not name.
                tool_search: no,
                workflows_enabled: false,
            },
            memory: Memory { enable_managed_auto_memory: false, enable_managed_auto_dream: false },
            security: Security {
                folder_trust: Enabled { enabled: true },
                // Without this file no type is selected, and it ends before its first request.
                auth: Auth { selected_type: "openai" },
            },
            disable_all_hooks: true,
            permissions,
        }
    }
}
