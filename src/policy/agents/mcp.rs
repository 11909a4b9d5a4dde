//! The file of MCP servers that a caller names for a run.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::fs::trusted::read_trusted;
use crate::policy::agents::claude::server_name_holds;
use crate::types::error::{Error, Result};

/// The servers of a run.
#[derive(Debug, Default)]
pub struct Servers {
    /// The file as the agent gets it.
    pub text: String,
    pub(crate) servers: BTreeMap<String, Server>,
}

#[derive(Deserialize)]
struct McpFile {
    #[serde(rename = "mcpServers")]
    pub(crate) servers: BTreeMap<String, Server>,
}

/// Where the file is wrong, and never with what: serde_json repeats the value, which may be a token.
fn place(error: &serde_json::Error) -> String {
    let what = if error.is_data() { "it has another form" } else { "it is no JSON" };
    format!("{what} (line {} column {})", error.line(), error.column())
}

/// Other keys are the agent's business.
#[derive(Debug, Deserialize)]
pub(crate) struct Server {
    pub(crate) command: Option<String>,
    #[serde(default)]
    pub(crate) args: Vec<String>,
}

impl Servers {
    /// Reads the file.
    ///
    /// # Errors
    /// It is missing, writable by others, no JSON, or names a server in a way that no rule of the agent's can hold.
    pub fn read(path: &Path) -> Result<Servers> {
        Servers::parse(read_trusted(path)?, &format!("use MCP file {}", path.display()))
    }

    /// The same from its content.
    ///
    /// # Errors
    /// As for [`Servers::read`], and never with what the file says: it may hold tokens.
    pub fn parse(text: String, object: &str) -> Result<Servers> {
        let hint = r#"write {"mcpServers": {"NAME": {"command": "PROGRAM", "args": []}}}"#;
        let file: McpFile =
            serde_json::from_str(&text).map_err(|error| Error::new(object, place(&error)).hint(hint))?;
        if let Some(name) = file.servers.keys().find(|name| !server_name_holds(name)) {
            return Err(Error::new(object, format!("`{}` cannot be the name of a server", name.escape_debug()))
                .hint("name it with letters, digits, - and _"));
        }
        Ok(Servers { text, servers: file.servers })
    }

    /// Each server as the caller wrote it. It may hold tokens.
    pub fn objects(&self) -> BTreeMap<String, serde_json::Map<String, serde_json::Value>> {
        #[derive(Deserialize, Default)]
        struct Objects {
            #[serde(rename = "mcpServers")]
            servers: BTreeMap<String, serde_json::Map<String, serde_json::Value>>,
        }
        // Nothing where there is no file; every other text was read as such a one before.
        serde_json::from_str::<Objects>(&self.text).unwrap_or_default().servers
    }
}
