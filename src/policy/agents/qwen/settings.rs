//! The file of Qwen Code's settings, in the tier of the machine's owner: above what a user or a workspace says.
#![forbid(unsafe_code)]

use serde_json::json;

use super::Tool;

/// The file, with these tools, and these rules for them.
pub fn text(tools: &[Tool], allow: Vec<String>, deny: Vec<String>) -> String {
    let no = json!({ "enabled": false });
    let settings = json!({
        // Of the format. With another one it would rewrite the file, or what it holds.
        "$version": 4,
        "general": { "enableAutoUpdate": false, "gitCoAuthor": { "commit": false, "pr": false } },
        "privacy": { "usageStatisticsEnabled": false },
        "telemetry": no,
        "ide": no,
        "omni": no,
        // It tells the model of the skills of a workspace that it does not trust, too.
        "skills": { "disabledLevels": ["project", "user", "extension", "bundled"] },
        "tools": {
            "core": tools,
            // What no rule allows would ask a person, and is denied where there is none.
            "approvalMode": "default",
            // It brings a program of its own for that, which the kernel may not let it execute.
            "useRipgrep": false,
            "listDirectory": { "enabled": true },
            // A tool behind the search is one that the list of tools does not name.
            "toolSearch": no,
            "workflowsEnabled": false,
        },
        "memory": { "enableManagedAutoMemory": false, "enableManagedAutoDream": false },
        "security": {
            "folderTrust": { "enabled": true },
            // Without this file no type is selected, and it ends before its first request.
            "auth": { "selectedType": "openai" },
        },
        "disableAllHooks": true,
        "permissions": { "allow": allow, "deny": deny },
    });
    format!("{settings:#}")
}
