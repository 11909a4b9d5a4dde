//! Where everything is in a cell.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

/// HOME of every agent that has a private root.
pub const HOME: &str = "/home/agent";

/// Its working directory.
pub const WORK: &str = "/work";

/// Its settings.
pub const SETTINGS: &str = "/etc/oubliette";

/// A file that the launcher puts into a cell. Never the credential: these bytes are copied by fork.
#[derive(Debug, Clone)]
pub struct CellFile {
    /// Where, as the agent sees it.
    pub path: PathBuf,
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its mode.
    pub mode: u32,
    /// It belongs to the agent; else to the launcher.
    pub to_agent: bool,
}

/// Places of a cell, as the agent sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// HOME.
    pub home: PathBuf,
    /// TMPDIR.
    pub tmp: PathBuf,
    /// The working directory.
    pub work: PathBuf,
    /// The directory of the settings.
    pub settings: PathBuf,
    /// The port of the broker, where that listens on the host's loopback.
    pub broker: Option<u16>,
}

impl Places {
    /// In a cell with a private root.
    pub fn private() -> Places {
        Places { home: HOME.into(), tmp: "/tmp".into(), work: WORK.into(), settings: SETTINGS.into(), broker: None }
    }
}

impl Places {
    /// The file with the credential, where there is one of this name in HOME.
    pub fn credential(&self, name: Option<&str>) -> Option<PathBuf> {
        name.map(|name| self.home.join(name))
    }
}

/// Stands for the broker's port in a template.
pub const PORT: &str = "{broker-port}";

/// What a template's places stand for.
pub fn expand(text: &str, places: &Places) -> String {
    expand_as(text, places, str::to_owned)
}

/// The same, with each place written in the way of the text's language.
pub fn expand_as(text: &str, places: &Places, write: impl Fn(&str) -> String) -> String {
    let show = |path: &Path| write(&path.to_string_lossy());
    text.replace("{home}", &show(&places.home))
        .replace("{tmp}", &show(&places.tmp))
        .replace("{work}", &show(&places.work))
        .replace("{settings}", &show(&places.settings))
        .replace(PORT, &places.broker.map(|port| port.to_string()).unwrap_or_default())
}

/// Where the operator keeps files that take the place of the compiled-in ones.
pub const ETC: &str = "/etc/oubliette";

/// Devices that every program may need. Their nodes are the host's, so nothing else of /dev is shown.
pub const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
