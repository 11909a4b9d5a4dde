//! A fact of the host, or what it lacks.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde::Serialize;

/// Something is there, or what it lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fact<T> {
    /// It is there.
    Has(T),
    /// It is not.
    Lacks(Lack),
}

/// Why something is missing, and what the operator can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lack {
    /// What the kernel or the container said.
    pub why: String,
    /// A sysctl, a capability, a container flag, a newer kernel.
    pub remedy: String,
}

impl Lack {
    /// From two sentences without full stop.
    pub fn new(why: impl Into<String>, remedy: impl Into<String>) -> Lack {
        Lack { why: why.into(), remedy: remedy.into() }
    }
}

impl<T> Fact<T> {
    /// The value, or why not.
    ///
    /// # Errors
    /// The lack.
    pub fn get(&self) -> Result<&T, &Lack> {
        match self {
            Fact::Has(value) => Ok(value),
            Fact::Lacks(lack) => Err(lack),
        }
    }

    pub(crate) fn lacks(why: impl Into<String>, remedy: impl Into<String>) -> Fact<T> {
        Fact::Lacks(Lack::new(why, remedy))
    }
}

/// Who makes namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Maker {
    /// CAP_SYS_ADMIN.
    Privilege,
    /// A user namespace.
    UserNamespace,
}

/// The kind of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file.
    File,
    /// A link, to this.
    Link(PathBuf),
}

/// A path that a policy shows and that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub kind: Kind,
}

/// Where cgroups can be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cgroups {
    /// The unified hierarchy: below this directory.
    V2(PathBuf),
    /// Hierarchies of their own: below these directories.
    V1 {
        /// `memory`.
        memory: Option<PathBuf>,
        /// `pids`.
        pids: Option<PathBuf>,
        /// `cpu`.
        cpu: Option<PathBuf>,
    },
}

/// Capabilities that facts depend on, as bits (capabilities(7)).
pub mod capability {
    /// CAP_SETGID
    pub const SETGID: u64 = 1 << 6;
    /// CAP_SETUID
    pub const SETUID: u64 = 1 << 7;
    /// CAP_SETPCAP
    pub const SETPCAP: u64 = 1 << 8;
    /// CAP_SYS_PTRACE
    pub const SYS_PTRACE: u64 = 1 << 19;
    /// CAP_CHOWN
    pub const CHOWN: u64 = 1;
    /// CAP_SYS_ADMIN
    pub const SYS_ADMIN: u64 = 1 << 21;
}

/// What is at a path, without following a link. Nothing for a socket, a device or a fifo: a mount makes them no safer,
/// whoever may write to a socket speaks with the host by it, read-only or not.
pub fn kind(path: &Path) -> Option<Kind> {
    let file_type = std::fs::symlink_metadata(path).ok()?.file_type();
    Some(if file_type.is_dir() {
        Kind::Directory
    } else if file_type.is_symlink() {
        Kind::Link(std::fs::read_link(path).ok()?)
    } else if file_type.is_file() {
        Kind::File
    } else {
        return None;
    })
}

pub(crate) const USERNS_REMEDY: &str = "run as root with CAP_SYS_ADMIN, or allow user namespaces: sysctl user.max_user_namespaces=10000, kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0 where they exist";

pub(crate) fn user_namespaces() -> Fact<Maker> {
    let number = |name: &str| -> Option<u64> { std::fs::read_to_string(name).ok()?.trim().parse().ok() };
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        return Fact::lacks("user namespaces are off (user.max_user_namespaces = 0)", USERNS_REMEDY);
    }
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        return Fact::lacks("user namespaces are off for users (kernel.unprivileged_userns_clone = 0)", USERNS_REMEDY);
    }
    Fact::Has(Maker::UserNamespace)
}
