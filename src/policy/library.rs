//! Where policies and agent files come from: `--policy`, `OUBLIETTE_POLICY_DIR`, /etc/oubliette, compiled in.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::fs::trusted::{Found, absent, load};
use crate::policy::agents::spec::AgentSpec;
use crate::policy::level::Policy;
use crate::types::error::{Error, Result};
use crate::types::layout::ETC;

/// A file that is compiled in: for people, and as the build script wrote it for this program.
struct CompiledIn {
    name: &'static str,
    text: &'static str,
    json: &'static str,
}

macro_rules! compiled_in {
    ($name:literal, $file:literal) => {
        CompiledIn {
            name: $name,
            text: include_str!(concat!("../../policies/", $file, ".toml")),
            json: include_str!(concat!(env!("OUT_DIR"), "/", $file, ".json")),
        }
    };
}

const LEVELS: [CompiledIn; 3] = [
    compiled_in!("paranoid", "paranoid"),
    compiled_in!("balanced", "balanced"),
    compiled_in!("developer", "developer"),
];

const AGENTS: [CompiledIn; 8] = [
    compiled_in!("claude", "agents/claude"),
    compiled_in!("codex", "agents/codex"),
    compiled_in!("gemini", "agents/gemini"),
    compiled_in!("kimi", "agents/kimi"),
    compiled_in!("kiro", "agents/kiro"),
    compiled_in!("none", "agents/none"),
    compiled_in!("opencode", "agents/opencode"),
    compiled_in!("qwen", "agents/qwen"),
];

/// Agents that are found and not listed: nobody but this program itself has a use for them.
const UNLISTED: [CompiledIn; 1] = [compiled_in!("doctor", "agents/doctor")];

/// Finds levels and agents by name.
#[derive(Debug, Clone)]
pub struct Library {
    directories: Vec<PathBuf>,
}

impl Library {
    /// `extra` is `OUBLIETTE_POLICY_DIR`; it comes before /etc/oubliette.
    pub fn new(extra: Option<&Path>) -> Library {
        let mut directories: Vec<PathBuf> = extra.map(Path::to_owned).into_iter().collect();
        directories.push(PathBuf::from(ETC).join("policies"));
        Library { directories }
    }

    /// A level by name.
    ///
    /// # Errors
    /// Unknown name; a file that others can write; unknown keys, with line and known keys.
    pub fn level(&self, name: &str) -> Result<Found<Policy>> {
        self.find(name, "", &LEVELS)?.ok_or_else(|| {
            Error::new(format!("use level `{}`", name.escape_debug()), "there is no such level")
                .hint(format!("known: {}; or name a file with --policy", self.names("", &LEVELS).join(", ")))
        })
    }

    /// An agent by name.
    ///
    /// # Errors
    /// As for [`Library::level`].
    pub fn agent(&self, name: &str) -> Result<Found<AgentSpec>> {
        let unlisted = || self.find(name, "agents", &UNLISTED).transpose();
        self.find(name, "agents", &AGENTS).transpose().or_else(unlisted).transpose()?.ok_or_else(|| {
            Error::new(format!("use agent `{}`", name.escape_debug()), "there is no such agent file").hint(format!(
                "known: {}; `--agent none` runs any program without settings",
                self.names("agents", &AGENTS).join(", ")
            ))
        })
    }

    /// The agent whose program has this name, `none` where there is none.
    ///
    /// # Errors
    /// As for [`Library::level`].
    pub fn agent_for(&self, program: &str) -> Result<Found<AgentSpec>> {
        for name in self.names("agents", &AGENTS) {
            let found = self.agent(&name)?;
            if found.value.commands.iter().any(|known| known == program) {
                return Ok(found);
            }
        }
        self.agent("none")
    }

    /// Names of all levels.
    pub fn levels(&self) -> Vec<String> {
        self.names("", &LEVELS)
    }

    /// Names of all agents.
    pub fn agents(&self) -> Vec<String> {
        self.names("agents", &AGENTS)
    }

    fn names(&self, below: &str, compiled: &[CompiledIn]) -> Vec<String> {
        let mut names: Vec<String> = compiled.iter().map(|known| known.name.to_owned()).collect();
        for directory in &self.directories {
            let Ok(entries) = std::fs::read_dir(directory.join(below)) else { continue };
            let files = entries.flatten().map(|entry| PathBuf::from(entry.file_name()));
            let toml = files.filter(|file| file.extension().is_some_and(|ending| ending == "toml"));
            let found = toml.filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned()));
            let mut more: Vec<String> = found.filter(|name| !names.contains(name)).collect();
            more.sort();
            names.append(&mut more);
        }
        names
    }

    fn find<T: DeserializeOwned>(&self, name: &str, below: &str, compiled: &[CompiledIn]) -> Result<Option<Found<T>>> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || !name.chars().all(plain) {
            return Ok(None);
        }
        for directory in &self.directories {
            let path = directory.join(below).join(format!("{name}.toml"));
            if !absent(&path) {
                return load(&path).map(Some);
            }
        }
        let Some(known) = compiled.iter().find(|known| known.name == name) else { return Ok(None) };
        let value = serde_json::from_str(known.json)
            .map_err(|error| Error::new(format!("use {name}.toml (compiled in)"), error.to_string()))?;
        Ok(Some(Found { name: name.to_owned(), origin: "compiled in".into(), text: known.text.to_owned(), value }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::trusted::parse;

    #[test]
    fn every_compiled_in_file_is_sound() {
        let library = Library { directories: vec![] };
        for level in library.levels() {
            let found = library.level(&level).unwrap();
            assert_eq!(parse::<Policy>(&found.text, &level).unwrap(), found.value);
        }
        for agent in library.agents().into_iter().chain(["doctor".to_owned()]) {
            let found = library.agent(&agent).unwrap();
            assert_eq!(parse::<AgentSpec>(&found.text, &agent).unwrap(), found.value);
        }
        for (program, agent) in
            [("claude", "claude"), ("codex", "codex"), ("gemini", "gemini"), ("kiro-cli", "kiro"), ("qwen", "qwen")]
        {
            assert_eq!(library.agent_for(program).unwrap().name, agent);
        }
        assert_eq!(library.agent_for("ls").unwrap().name, "none");
    }

    #[test]
    fn a_typo_names_its_line_and_the_known_keys() {
        let text = LEVELS[1].text.replace("[limits]", "[limits]\nmemroy = \"1GiB\"");
        let line = 1 + text[..text.find("memroy").unwrap()].matches('\n').count();
        let error = parse::<Policy>(&text, "x.toml").unwrap_err().to_string();
        assert!(error.contains(&format!("x.toml line {line}")), "{error}");
        assert!(error.contains("memroy") && error.contains("memory"), "{error}");
    }

    #[test]
    fn names_never_become_paths() {
        let library = Library { directories: vec![PathBuf::from("/etc")] };
        assert!(library.level("../passwd").is_err());
        assert!(library.level("").is_err());
    }
}
