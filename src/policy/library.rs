//! Where policies and agent files come from: `--policy`, `OUBLIETTE_POLICY_DIR`, /etc/oubliette, compiled in.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::Policy;
use crate::policy::agents::spec::AgentSpec;
use crate::types::error::{Error, Result};

/// Where the operator keeps files that take the place of the compiled-in ones.
pub const ETC: &str = "/etc/oubliette";

/// The longest file that is read, in bytes.
const MAX: u64 = 256 * 1024;

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

/// A file and where it came from.
#[derive(Debug, Clone)]
pub struct Found<T> {
    /// Its name without directory and ending.
    pub name: String,
    /// `compiled in`, or its path.
    pub origin: String,
    /// Its text.
    pub text: String,
    /// What it says.
    pub value: T,
}

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

/// Whether nothing is at a path. A file that cannot be looked at is there: the operator's word is not passed over.
pub fn absent(path: &Path) -> bool {
    let looked = std::fs::symlink_metadata(path);
    looked.is_err_and(|error| matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)))
}

/// Reads a policy, an agent or a configuration file.
///
/// # Errors
/// Missing, not a file, too large, writable by others, or wrong in its content.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Found<T>> {
    let text = read_trusted(path)?;
    let value = parse(&text, &path.display().to_string())?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Found { name, origin: path.display().to_string(), text, value })
}

/// Reads a file that only its owner can have written, where the owner is this user or root.
///
/// # Errors
/// Missing, not a regular file, too large, or writable by somebody else: such a file decides nothing.
pub fn read_trusted(path: &Path) -> Result<String> {
    let bytes = read_trusted_bytes(path, MAX)?;
    String::from_utf8(bytes)
        .map_err(|_| Error::new(format!("read {}", path.display()), "it is not UTF-8").hint("write it as UTF-8 text"))
}

/// The same, of any content, up to `max` bytes.
///
/// # Errors
/// As for [`read_trusted`].
pub fn read_trusted_bytes(path: &Path, max: u64) -> Result<Vec<u8>> {
    let action = format!("read {}", path.display());
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(|error| Error::new(&*action, error).hint("check the path"))?;
    let meta = file.metadata().map_err(|error| Error::new(&*action, error).hint("check the path"))?;
    if !meta.is_file() {
        return Err(Error::new(&*action, "it is not a regular file").hint("name the file itself"));
    }
    let me = nix::unistd::geteuid().as_raw();
    if meta.mode() & 0o022 != 0 || (meta.uid() != me && meta.uid() != 0) {
        return Err(Error::new(
            &*action,
            format!("others can write it (owner {}, mode {:04o})", meta.uid(), meta.mode() & 0o7777),
        )
        .hint(format!("chown it to this user or root, and chmod go-w {}", path.display())));
    }
    if meta.len() > max {
        return Err(Error::new(&*action, format!("it is larger than {max} bytes")).hint("name a policy file"));
    }
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(|error| Error::new(&*action, error))?;
    Ok(bytes)
}

/// Reads TOML; an error names the line, and for an unknown key the known ones.
///
/// # Errors
/// What is wrong, where.
pub fn parse<T: DeserializeOwned>(text: &str, object: &str) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        let place = line.map_or_else(|| object.to_owned(), |line| format!("{object} line {line}"));
        let message = error.message().trim().replace('\n', ", ");
        Error::new(format!("use {place}"), message).hint("`oubliette policy show balanced` prints a policy that works")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
