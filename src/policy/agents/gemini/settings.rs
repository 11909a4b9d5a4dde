//! Gemini CLI's own settings, beside its policy: the same at every level.
#![forbid(unsafe_code)]

use serde_json::json;

use crate::policy::agents::rendered::SERVERS;

/// The file for an agent with a token of its login or with a key, and with a place for the caller's servers.
pub fn text(login: bool) -> String {
    let no = json!({ "enabled": false });
    let settings = json!({
        "general": { "enableAutoUpdate": false, "enableAutoUpdateNotification": false },
        "ui": { "showCompatibilityWarnings": false },
        "privacy": { "usageStatisticsEnabled": false },
        "telemetry": no,
        "tools": { "useRipgrep": false },
        "security": {
            "disableYoloMode": true,
            "folderTrust": { "enabled": true },
            "auth": {
                "selectedType": if login { "oauth-personal" } else { "gemini-api-key" },
                // To validate the key it would read all settings a second time, after `--skip-trust` has made the workspace
                // a trusted one, and with them the variables in .gemini/.env of the workspace: a proxy, another key,
                // LD_PRELOAD for its commands and servers.
                "useExternal": true,
            },
            // Its commands and servers do not inherit the key.
            "environmentVariableRedaction": {
                "enabled": true,
                "blocked": ["GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_CLOUD_ACCESS_TOKEN"],
            },
        },
        // .env of the workspace may name a key even where it is not trusted.
        "advanced": { "ignoreLocalEnv": true, "autoConfigureMemory": false },
        "hooksConfig": no,
        "skills": no,
        "mcpServers": SERVERS,
    });
    format!("{settings:#}").replace(&format!("\"{SERVERS}\""), SERVERS)
}
