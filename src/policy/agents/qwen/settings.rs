//! The file of Qwen Code's settings, in the tier of the machine's owner: above what a user or a workspace says.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use serde_json::json;

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

/// One of its tools.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String")]
pub struct Tool(pub(crate) String);

/// All that it has, but the one that only hands over an answer of the form that the caller asked for.
pub(crate) const TOOLS: [&str; 67] = [
    "agent",
    "artifact",
    "ask_user_question",
    "create_sub_session",
    "cron_create",
    "cron_delete",
    "cron_list",
    "display_image",
    "edit",
    "enter_plan_mode",
    "enter_worktree",
    "exec",
    "exit_plan_mode",
    "exit_worktree",
    "get_goal",
    "glob",
    "grep_search",
    "image_gen",
    "list_agents",
    "list_directory",
    "loop_wakeup",
    "lsp",
    "monitor",
    "notebook_edit",
    "omni_caption_audio",
    "omni_caption_image",
    "omni_clip_audio",
    "omni_clip_image",
    "omni_clip_video",
    "omni_convert_image",
    "omni_downsample_audio",
    "omni_downsample_image",
    "omni_downscale_video",
    "omni_extract_audio",
    "omni_extract_keyframes",
    "omni_ocr_image",
    "omni_recall_media_memory",
    "omni_transcribe_audio",
    "omni_understand_video_segments",
    "propose_goal",
    "read_file",
    "read_mcp_resource",
    "record_artifact",
    "record_source",
    "report_findings",
    "request_shutdown",
    SHELL,
    "save_memory",
    "send_message",
    "skill",
    "task_create",
    "task_list",
    "task_stop",
    "task_update",
    "team_create",
    "team_delete",
    "team_plan_approval",
    "todo_write",
    "tool_call",
    "tool_search",
    "update_goal",
    "web_fetch",
    "web_search",
    "workflow",
    "write_file",
    "zoom_image",
    CALLERS_FORM,
];

impl TryFrom<String> for Tool {
    type Error = String;

    fn try_from(name: String) -> Result<Tool, String> {
        match TOOLS.contains(&name.as_str()) {
            true => Ok(Tool(name)),
            false => Err(format!("`{}` is none of its tools: {}", name.escape_debug(), TOOLS.join(", "))),
        }
    }
}

pub(crate) const SHELL: &str = "run_shell_command";

/// Not denied: the caller asks for it with an argument, and it does nothing.
pub(crate) const CALLERS_FORM: &str = "structured_output";
