//! What an agent's settings come to, whatever their format: files, words for its arguments, and what it must say of
//! itself when they are in force.
#![forbid(unsafe_code)]

use serde::Serialize;

use crate::types::paths::{HomePath, HostPath};

/// Settings, and what the agent must say of itself at its start when they are in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Rendered {
    /// Files that the agent reads.
    pub files: Vec<SettingsFile>,
    /// `{mode}` in its arguments, and the mode in its init event; empty where it has none.
    pub mode: &'static str,
    /// `{tools}` in its arguments, and the only built-in tools that the init event may name.
    pub tools: Option<Vec<String>>,
    /// Tools that the init event must not name.
    pub absent: Vec<String>,
}

/// A file of the launcher's, mode 0444.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SettingsFile {
    /// Where.
    pub place: FilePlace,
    /// Its text. It may name the places of the cell, `{base-url}`, and the caller's MCP servers as `{servers}`.
    pub text: String,
}

/// Where a file of settings is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FilePlace {
    /// By this name in the directory of the settings, which is outside of HOME and of the workspace.
    Settings(&'static str),
    /// In HOME. The directory is the agent's, so that it can put another file in the place of this one.
    Home(HomePath),
    /// Where the machine's owner manages the settings. Only a private root shows it.
    Managed(HostPath),
}

/// Stands in a text for the URL to which the agent sends its requests.
pub const BASE_URL: &str = "{base-url}";

/// Stands in a text for the caller's MCP servers, in the agent's own form.
pub const SERVERS: &str = "{servers}";

impl Rendered {
    /// Puts in a base URL that is known by now.
    pub fn with_base_url(mut self, url: &str) -> Rendered {
        for file in &mut self.files {
            file.text = file.text.replace(BASE_URL, &quoted(url));
        }
        self
    }

    /// The text of the file at a place.
    pub fn text(&self, place: &FilePlace) -> Option<&str> {
        self.files.iter().find(|file| file.place == *place).map(|file| file.text.as_str())
    }
}

/// A text as it stands between double quotes in JSON, and in TOML, which knows the same escapes.
pub fn quoted(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    json[1..json.len() - 1].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_text_reads_back_from_json_and_from_toml() {
        for text in ["", "plain", "a\"b\\c", "tab\t, line\n, escape \u{1b}, ä"] {
            let line = format!("\"{}\"", quoted(text));
            assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
            let table: toml::Table = toml::from_str(&format!("a = {line}")).unwrap();
            assert_eq!(table["a"].as_str(), Some(text));
        }
    }
}
