//! The classes of what a level denies, and what of the kernel stops each of them.
#![forbid(unsafe_code)]

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::policy::Hold;
use crate::types::layer::Layer;

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

/// What a plan holds that a kernel twin depends on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Twins<'a> {
    /// Layers in force.
    pub enforced: &'a [Layer],
    /// The Landlock list of programs is short: nothing but the agent's own.
    pub few_programs: bool,
    /// A shell and `ls` are among those.
    pub shell: bool,
    /// Some of the agent's settings lie in its HOME.
    pub settings_in_home: bool,
    /// Nothing outside the cell can be connected to.
    pub no_network: bool,
    /// There is a broker, and this holds the agent to it.
    pub broker: Option<Hold>,
    /// /proc keeps environ, maps and descriptors from other UIDs. Not so under gVisor.
    pub private_proc: bool,
    /// The workspace is on the host and the agent's UID owns it.
    pub shared_uid: bool,
}

impl Twins<'_> {
    fn has(&self, layer: Layer) -> bool {
        self.enforced.contains(&layer)
    }
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

    /// What of the kernel stops this class under a plan, in a few words; nothing where only settings can.
    ///
    /// A class counts as stopped when nothing of another user or of the host is reached, even where the command as
    /// such runs: `ls /tmp` lists a /tmp that is the cell's own.
    pub fn kernel(self, twins: &Twins<'_>) -> Option<&'static str> {
        let ran = twins.shell && matches!(self, Class::Shell | Class::ListTmp);
        let few = (twins.few_programs && !ran).then_some("landlock: only the agent's own programs may be executed");
        match self {
            Class::OtherHomes | Class::Destructive => files(twins),
            Class::SharedTmp => twins
                .has(Layer::Root)
                .then_some("root: /tmp is the cell's own")
                .or_else(|| twins.has(Layer::LandlockFs).then_some("landlock: no rule for /tmp")),
            Class::ForeignProc if twins.has(Layer::Pid) && twins.has(Layer::Root) => {
                Some("pid: /proc shows the cell only")
            }
            Class::ForeignProc if twins.has(Layer::LandlockFs) => Some("landlock: no rule for /proc of others"),
            Class::ForeignProc => (twins.has(Layer::Uid) && twins.private_proc && !twins.shared_uid)
                .then_some("uid: environ, maps and descriptors are another UID's"),
            Class::Privilege => twins.has(Layer::NoNewPrivs).then_some("no-new-privs: a setuid program gains nothing"),
            Class::AgentSettings if twins.has(Layer::Root) && twins.settings_in_home => {
                Some("root: the level is on a read-only mount, not all of the settings")
            }
            Class::AgentSettings if twins.has(Layer::Root) => Some("root: the settings are on a read-only mount"),
            Class::AgentSettings => (twins.has(Layer::LandlockFs) && !twins.settings_in_home)
                .then_some("landlock: the settings are read-only"),
            Class::SystemWrites if twins.has(Layer::Root) => Some("root: every system path is read-only"),
            Class::SystemWrites if twins.has(Layer::LandlockFs) => Some("landlock: every system path is read-only"),
            Class::SystemWrites => twins.has(Layer::Uid).then_some("uid: system paths are another UID's"),
            Class::ProcessList if twins.has(Layer::Pid) && twins.has(Layer::Root) => {
                Some("pid: it lists the cell only")
            }
            Class::ListRoot => twins.has(Layer::Root).then_some("root: it lists the cell only"),
            Class::Owners => twins.has(Layer::Capabilities).then_some("capabilities: no CAP_CHOWN"),
            Class::ProcessList | Class::ListTmp | Class::Links | Class::Modes | Class::Indirection | Class::Shell => {
                few
            }
            Class::NetworkTools if twins.no_network => Some("net: there is no network"),
            Class::NetworkTools if twins.broker == Some(Hold::Namespace) => {
                Some("net: nothing but the broker is reached")
            }
            Class::NetworkTools if twins.broker == Some(Hold::Port) => {
                Some("landlock-net: no port but the broker's is reached")
            }
            Class::NetworkTools => few,
            Class::Web => twins.no_network.then_some("net: there is no network"),
            Class::Background => twins.has(Layer::Pid).then_some("pid: everything ends with the run"),
            Class::SystemReads => twins.has(Layer::Root).then_some("root: /etc is the cell's own"),
            Class::Credentials => (twins.broker.is_some() && twins.has(Layer::Root))
                .then_some("root: no file of the host's, and the cell holds a phantom"),
            Class::Proc | Class::AgentState | Class::Subagents | Class::Worktrees => None,
        }
    }
}

/// Files of others: a root that does not show them, a UID that may not, a Landlock domain without a rule.
fn files(twins: &Twins<'_>) -> Option<&'static str> {
    if twins.has(Layer::Root) {
        return Some("root: they are not mounted");
    }
    if twins.has(Layer::LandlockFs) {
        return Some("landlock: no rule for them (their names and modes stay open)");
    }
    (twins.has(Layer::Uid) && !twins.shared_uid).then_some("uid: they are another UID's")
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
