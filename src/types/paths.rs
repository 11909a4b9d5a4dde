//! Paths in policies and agent files, checked when they are read: a wrong one would quietly hide a place of the cell
//! behind the host's, or put a file outside of HOME.
#![forbid(unsafe_code)]

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use crate::types::layout::{HOME, SETTINGS, WORK};

/// Places of every cell that no file of the host may take. What lies inside the first ones is the cell's, too; in /tmp
/// and /sys single things of the host's may be shown.
const OWN: [(&str, bool); 7] =
    [(HOME, true), (WORK, true), (SETTINGS, true), ("/proc", true), ("/dev", true), ("/tmp", false), ("/sys", false)];

/// A file or directory of the host's that a cell shows: absolute, without `.` and `..`, and beside the cell's own places.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPath(String);

impl HostPath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl TryFrom<String> for HostPath {
    type Error = String;

    fn try_from(text: String) -> Result<HostPath, String> {
        let path = Path::new(&text);
        if !path.is_absolute() || !plain(path, &text) {
            return Err(format!(
                "`{text}` is no path to show; write it from / on, without `.`, `..` and a slash at the end"
            ));
        }
        for (own, inside) in OWN {
            if Path::new(own).starts_with(path) || (inside && path.starts_with(own)) {
                return Err(format!(
                    "`{text}` cannot be shown: a cell has its own {own}; name what is needed beside it"
                ));
            }
        }
        Ok(HostPath(text))
    }
}

impl From<HostPath> for String {
    fn from(path: HostPath) -> String {
        path.0
    }
}

/// The name of a file in HOME, with the directories it lies in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct HomePath(String);

impl HomePath {
    /// The path, relative to HOME.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for HomePath {
    type Error = String;

    fn try_from(text: String) -> Result<HomePath, String> {
        let path = Path::new(&text);
        if text.is_empty() || path.is_absolute() || !plain(path, &text) {
            return Err(format!("`{text}` is no name in HOME; write it from HOME on, without `.` and `..`"));
        }
        Ok(HomePath(text))
    }
}

impl From<HomePath> for String {
    fn from(path: HomePath) -> String {
        path.0
    }
}

/// A name at the top of the workspace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkName(String);

impl WorkName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for WorkName {
    type Error = String;

    fn try_from(text: String) -> Result<WorkName, String> {
        if text.is_empty() || text.contains('/') || !plain(Path::new(&text), &text) {
            return Err(format!("`{}` is no name at the top of the workspace; write it alone", text.escape_debug()));
        }
        Ok(WorkName(text))
    }
}

impl From<WorkName> for String {
    fn from(name: WorkName) -> String {
        name.0
    }
}

/// Nothing but names, written in the one way that there is.
pub(crate) fn plain(path: &Path, text: &str) -> bool {
    let names = |part| matches!(part, Component::Normal(_) | Component::RootDir);
    !text.contains('\0')
        && path.components().all(names)
        && path.components().collect::<std::path::PathBuf>().as_os_str() == text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_to_show() {
        for good in ["/usr", "/etc/ssl", "/home/ann/tools", "/tmp/agent", "/opt/a b", "/sys/devices/system/cpu"] {
            assert!(HostPath::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in [
            "",
            "usr",
            "/",
            "//usr",
            "/usr/",
            "/usr/../etc",
            "/usr/./lib",
            "/etc",
            "/home",
            "/home/agent",
            "/home/agent/x",
            "/work",
            "/work/x",
            "/tmp",
            "/proc",
            "/proc/1",
            "/dev",
            "/dev/sda",
            "/sys",
            "/etc/oubliette",
            "/usr\0",
        ] {
            assert!(HostPath::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_shown_by_default_is_sound() {
        let files = crate::policy::Files::default();
        assert_eq!((files.programs.len(), files.config.len()), (7, 9));
    }

    #[test]
    fn names_at_the_top_of_the_workspace() {
        for good in [".opencode", "opencode.json", "a b"] {
            assert!(WorkName::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "/", "/etc", "a/b", "a/", "a\0"] {
            assert!(WorkName::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_in_home() {
        for good in [".gitconfig", ".claude/settings.json"] {
            assert!(HomePath::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "/etc/passwd", "../x", "a/../b", "./a", "a//b", "a/"] {
            assert!(HomePath::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
