//! The classes of what a level denies, and what of the kernel stops each of them.
#![forbid(unsafe_code)]

use std::path::Path;

use serde::{Deserialize, Serialize};

/// One class of what an agent must not do. An agent file maps each to that agent's own names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// HOMEs and workspaces of other runs and users.
    OtherHomes,
    /// The /tmp that others use.
    SharedTmp,
    /// /proc of processes outside the cell.
    ForeignProc,
    /// /proc and /sys at all, through the agent's file tools.
    Proc,
    /// sudo, su and whatever else gains rights.
    Privilege,
    /// Files and memory that hold a credential.
    Credentials,
    /// The agent's own settings, and files of the workspace that would change them.
    AgentSettings,
    /// The agent's own state in HOME: transcripts, caches.
    AgentState,
    /// Writes to /etc, /usr and the like.
    SystemWrites,
    /// Reading /etc.
    SystemReads,
    /// Lists of processes: ps, top.
    ProcessList,
    /// Listing the root directory.
    ListRoot,
    /// Listing /tmp, even one of the cell's own.
    ListTmp,
    /// Making links: ln.
    Links,
    /// Changing modes: chmod.
    Modes,
    /// Changing owners: chown.
    Owners,
    /// Commands that run others from their arguments or input: xargs, find.
    Indirection,
    /// Any command, and tools that run code.
    Shell,
    /// Web tools of the agent.
    Web,
    /// Commands that open connections: curl, ssh.
    NetworkTools,
    /// Work that goes on after the turn: schedules, monitors.
    Background,
    /// Agents that an agent starts.
    Subagents,
    /// Removing everything: rm -rf /.
    Destructive,
    /// Working directories beside the workspace.
    Worktrees,
}

impl Class {
    /// Every class, in the order of `explain`.
    pub const ALL: [Class; 24] = [
        Class::OtherHomes,
        Class::SharedTmp,
        Class::ForeignProc,
        Class::Proc,
        Class::Privilege,
        Class::Credentials,
        Class::AgentSettings,
        Class::AgentState,
        Class::SystemWrites,
        Class::SystemReads,
        Class::ProcessList,
        Class::ListRoot,
        Class::ListTmp,
        Class::Links,
        Class::Modes,
        Class::Owners,
        Class::Indirection,
        Class::Shell,
        Class::Web,
        Class::NetworkTools,
        Class::Background,
        Class::Subagents,
        Class::Destructive,
        Class::Worktrees,
    ];

    /// The name in a policy.
    pub fn name(self) -> &'static str {
        match self {
            Class::OtherHomes => "other-homes",
            Class::SharedTmp => "shared-tmp",
            Class::Proc => "proc",
            Class::ForeignProc => "foreign-proc",
            Class::Privilege => "privilege",
            Class::Credentials => "credentials",
            Class::AgentState => "agent-state",
            Class::AgentSettings => "agent-settings",
            Class::SystemReads => "system-reads",
            Class::SystemWrites => "system-writes",
            Class::ProcessList => "process-list",
            Class::ListTmp => "list-tmp",
            Class::ListRoot => "list-root",
            Class::Links => "links",
            Class::Modes => "modes",
            Class::Indirection => "indirection",
            Class::Owners => "owners",
            Class::Shell => "shell",
            // Not by a broker: the model's API has web tools of its own.
            Class::Web => "web",
            Class::NetworkTools => "network-tools",
            Class::Background => "background",
            Class::Subagents => "subagents",
            Class::Destructive => "destructive",
            Class::Worktrees => "worktrees",
        }
    }

    /// Classes whose rules name a directory that one of these places lies in, as `Read(//tmp/**)` names /tmp. In a cell
    /// without a root of its own they would deny the agent its own files.
    pub fn around(places: &[&Path]) -> Vec<Class> {
        let inside = |directory: &str| places.iter().any(|place| place.starts_with(directory));
        let named = [(Class::OtherHomes, "/root"), (Class::SharedTmp, "/tmp")];
        named.into_iter().filter(|(_, directory)| inside(directory)).map(|(class, _)| class).collect()
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
