//! The layers of confinement, how much a policy insists on each, and what a plan decides about it.
#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};

/// One layer of confinement. The names are those of the policy, the report and `--require`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// A PID namespace with a small init: other processes are neither seen nor signalled.
    Pid,
    /// A mount namespace with a private root, HOME, /tmp and /dev/shm on one tmpfs.
    Root,
    /// An IPC namespace: SysV objects and POSIX queues of others are not there.
    Ipc,
    /// A UTS namespace: the host's name is neither seen nor changed.
    Uts,
    /// A network namespace without an interface but its own loopback (`--network none`).
    Net,
    /// A UID of its own for every run.
    Uid,
    /// Landlock rules for files.
    LandlockFs,
    /// Landlock rules for TCP ports (ABI 4).
    LandlockNet,
    /// Landlock scope: signals and abstract Unix sockets stay in the cell (ABI 6).
    LandlockScope,
    /// Sockets with a path that others made are out of reach: by the private root, by Landlock (ABI 9), or since the
    /// filter lets no Unix socket be made.
    PathSockets,
    /// A seccomp filter.
    Seccomp,
    /// No capability in any set, the bounding set included.
    Capabilities,
    /// `no_new_privs`: no setuid program gives anything.
    NoNewPrivs,
    /// Resource limits of the process (`setrlimit(2)`).
    Limits,
    /// A control group for memory, processes and CPU of the whole cell.
    Cgroup,
    /// The agent's own settings for the level, where it cannot rewrite them.
    Settings,
    /// Cells of one UID are apart: in space by another layer, else in time, one after the other.
    Alone,
}

impl Layer {
    /// Every layer, in the order in which a report lists them.
    pub const ALL: [Layer; 17] = [
        Layer::Pid,
        Layer::Root,
        Layer::Ipc,
        Layer::Uts,
        Layer::Net,
        Layer::Uid,
        Layer::LandlockFs,
        Layer::LandlockNet,
        Layer::LandlockScope,
        Layer::PathSockets,
        Layer::Seccomp,
        Layer::Capabilities,
        Layer::NoNewPrivs,
        Layer::Limits,
        Layer::Cgroup,
        Layer::Settings,
        Layer::Alone,
    ];

    /// The name in a policy, in a report and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Layer::Pid => "pid",
            Layer::Root => "root",
            Layer::Ipc => "ipc",
            Layer::Uts => "uts",
            Layer::Net => "net",
            Layer::Uid => "uid",
            Layer::LandlockFs => "landlock-fs",
            Layer::LandlockNet => "landlock-net",
            Layer::LandlockScope => "landlock-scope",
            Layer::PathSockets => "path-sockets",
            Layer::Seccomp => "seccomp",
            Layer::Capabilities => "capabilities",
            Layer::NoNewPrivs => "no-new-privs",
            Layer::Limits => "limits",
            Layer::Cgroup => "cgroup",
            Layer::Settings => "settings",
            Layer::Alone => "alone",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Layer {
    type Err = String;

    fn from_str(name: &str) -> Result<Layer, String> {
        Layer::ALL.into_iter().find(|layer| layer.name() == name).ok_or_else(|| {
            let known: Vec<&str> = Layer::ALL.iter().map(|layer| layer.name()).collect();
            format!("unknown layer `{name}`; known: {}", known.join(", "))
        })
    }
}

/// How much a policy insists on a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Want {
    /// Not used even where the host offers it.
    Off,
    /// Used where the host offers it; its absence is told.
    #[default]
    Preferred,
    /// Its absence refuses the run.
    Required,
}

/// What a plan decides about a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "decision", rename_all = "kebab-case")]
pub enum Decision {
    /// The kernel enforces it.
    Enforce {
        /// With what exactly, in a few words: `ABI 7, 9 rules`.
        how: String,
    },
    /// It is missing, the policy prefers it, and the rest still works.
    Degrade {
        /// What this host lacks.
        why: String,
        /// What the operator can change.
        remedy: String,
    },
    /// It is missing and the policy or `--require` insists.
    Refuse {
        /// What this host lacks.
        why: String,
        /// What the operator can change.
        remedy: String,
    },
    /// The policy or a flag switched it off, or it does not apply to this run.
    Off {
        /// Who said so.
        why: String,
    },
}

impl Decision {
    /// The layer is in force.
    pub fn enforced(&self) -> bool {
        matches!(self, Decision::Enforce { .. })
    }
}

/// A value of `--require`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Require {
    /// Every layer that the policy does not switch off.
    All,
    /// This layer.
    #[serde(untagged)]
    Layer(Layer),
}

impl Require {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Require::All => "all",
            Require::Layer(layer) => layer.name(),
        }
    }
}

/// `all` or the name of a layer.
///
/// # Errors
/// A sentence that names the known layers.
pub fn parse_require(text: &str) -> Result<Require, String> {
    if text == "all" {
        return Ok(Require::All);
    }
    text.parse().map(Require::Layer)
}

/// A layer and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// Which.
    pub layer: Layer,
    /// What.
    #[serde(flatten)]
    pub decision: Decision,
}
