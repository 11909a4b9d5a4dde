//! What was found on a host.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::Serialize;

use crate::host::facts::{Cgroups, Fact, Kind, Maker, Shown};
use crate::host::groups::Group;
use crate::host::image::Image;
use crate::host::program::Program;
use crate::host::ranges::Ranges;
use crate::types::class::Class;

/// Taken over from the launcher's environment, where set: how text looks and sounds, never where it comes from.
pub const INHERITED: [&str; 9] =
    ["COLORTERM", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LC_MESSAGES", "NO_COLOR", "TERM", "TZ"];

/// What was found on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Host {
    /// The launcher's effective UID.
    pub uid: u32,
    /// The launcher's effective GID.
    pub gid: u32,
    /// Its supplementary groups beside that.
    pub groups: Vec<Group>,
    /// Its effective capabilities, as bits.
    pub capabilities: u64,
    /// How namespaces can be made.
    pub namespaces: Fact<Maker>,
    /// Mounts inside a new mount namespace.
    pub mounts: Fact<()>,
    /// A fresh /proc inside a new PID namespace.
    pub proc: Fact<()>,
    /// A name of the cell's own in a new UTS namespace.
    pub uts: Fact<()>,
    /// A network namespace of the cell's own.
    pub net: Fact<()>,
    /// The Landlock ABI.
    pub landlock: Fact<u32>,
    /// Seccomp filters.
    pub seccomp: Fact<()>,
    /// A filter that asks the launcher, which reads what the agent means.
    pub modes: Fact<()>,
    /// The file of the authorities that this host trusts, for a broker's connections.
    pub authorities: Fact<PathBuf>,
    /// The broker's program, where one is asked for.
    pub broker: Fact<Image>,
    /// Another UID for the agent.
    pub uids: Fact<()>,
    /// UIDs that exist in this user namespace: first and how many.
    pub uid_map: Vec<(u32, u32)>,
    /// Whose UIDs are whose, where runs get one of their own.
    pub ranges: Fact<Ranges>,
    /// Where a cgroup can be made.
    pub cgroup: Fact<Cgroups>,
    /// What the host counts beside that.
    pub counts: Counts,
    /// Whether nobody but root opens the descriptors of another process. Not so under gVisor.
    pub private_descriptors: bool,
    /// The launcher may put the agent before itself where memory runs out.
    pub oom_order: Fact<()>,
    /// Whether what the agent leaves behind becomes the launcher's to end. Not so under gVisor.
    pub orphans: bool,
    /// What of the policy's files is there.
    pub files: Vec<Shown>,
    /// What of /proc must be masked and is there.
    pub masked: Vec<(String, Kind)>,
    /// The programs of the run.
    pub programs: Programs,
    /// Names of the MCP servers that the caller names.
    pub servers: Vec<String>,
    /// Files that their arguments name.
    pub extra: Vec<(PathBuf, Kind)>,
    /// What the agent itself executes, as far as it is there.
    pub agent_programs: Vec<PathBuf>,
    /// Classes of deny rules for places where the cell's own directory lies, or its workspace.
    pub around: Vec<Class>,
    /// Variables of the launcher that an agent may see.
    #[serde(skip)]
    pub inherited: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    /// The shell that a cell has.
    pub shell: PathBuf,
}

/// The programs of a run: the agent's own, and those of the MCP servers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Programs {
    /// The agent.
    pub agent: Program,
    /// The agent's own program, where the caller's command is another that starts it.
    pub wrapped: Option<Program>,
    /// Servers that the caller named, and what else must be there.
    pub servers: Vec<Program>,
}

/// What the host counts, and for whom.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counts {
    /// Swap of a control group.
    pub swap: bool,
    /// The host swaps.
    pub swap_is_on: bool,
    /// Buffers of a control group's sockets, by themselves (version 1).
    pub sockets: bool,
    /// Open files of the whole host (fs.file-max).
    pub file_max: u64,
}
