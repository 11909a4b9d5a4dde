//! Gemini CLI's own settings, beside its policy: the same at every level.
#![forbid(unsafe_code)]

use serde::Serialize;

use crate::policy::rendered::SERVERS;

/// The file for an agent with a token of its login or with a key, and with a place for the caller's servers.
pub fn text(login: bool) -> String {
    let text = serde_json::to_string_pretty(&Settings::new(if login { "oauth-personal" } else { "gemini-api-key" }));
    let text = text.unwrap_or_else(|_| unreachable!("plain strings and booleans"));
    text.replace(&format!("\"{SERVERS}\""), SERVERS)
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    general: General,
    ui: Ui,
    privacy: Privacy,
    telemetry: Enabled,
    tools: Tools,
    security: Security,
    advanced: Advanced,
    hooks_config: Enabled,
    skills: Enabled,
    mcp_servers: &'static str,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct General {
    enable_auto_update: bool,
    enable_auto_update_notification: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ui {
    show_compatibility_warnings: bool,
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
struct Tools {
    use_ripgrep: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Security {
    disable_yolo_mode: bool,
    folder_trust: Enabled,
    auth: Auth,
    environment_variable_redaction: Redaction,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Auth {
    selected_type: &'static str,
    use_external: bool,
}

#[derive(Debug, Clone, Serialize)]
struct Redaction {
    enabled: bool,
    blocked: [&'static str; 3],
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Advanced {
    ignore_local_env: bool,
    auto_configure_memory: bool,
}

impl Settings {
    fn new(selected_type: &'static str) -> Settings {
        let no = Enabled { enabled: false };
        Settings {
            general: General { enable_auto_update: false, enable_auto_update_notification: false },
            ui: Ui { show_compatibility_warnings: false },
            privacy: Privacy { usage_statistics_enabled: false },
            telemetry: no,
            tools: Tools { use_ripgrep: false },
            security: Security {
                disable_yolo_mode: true,
                folder_trust: Enabled { enabled: true },
                // To validate the key it would read all settings a second time, after `--skip-trust` has made the
                // workspace a trusted one, and with them the variables in .gemini/.env of the workspace: a proxy,
                // another key, LD_PRELOAD for its commands and servers.
                auth: Auth { selected_type, use_external: true },
                // Its commands and servers do not inherit the key.
                environment_variable_redaction: Redaction {
                    enabled: true,
                    blocked: ["GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_CLOUD_ACCESS_TOKEN"],
                },
            },
            // .env of the workspace may name a key even where it is not trusted.
            advanced: Advanced { ignore_local_env: true, auto_configure_memory: false },
            hooks_config: no,
            skills: no,
            mcp_servers: SERVERS,
        }
    }
}
