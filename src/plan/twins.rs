//! What of the kernel stops a denied class.
#![forbid(unsafe_code)]

use serde::Serialize;

use crate::host::Host;
use crate::plan::on::Identity;
use crate::policy::Policy;
use crate::policy::agents::spec::{AgentSpec, Settings};
use crate::types::class::Class;
use crate::types::layer::Layer;
use crate::types::network::{Hold, NetworkMode};

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
    pub(crate) fn has(&self, layer: Layer) -> bool {
        self.enforced.contains(&layer)
    }
}

/// Files of others: a root that does not show them, a UID that may not, a Landlock domain without a rule.
pub(crate) fn files(twins: &Twins<'_>) -> Option<&'static str> {
    if twins.has(Layer::Root) {
        return Some("root: they are not mounted");
    }
    if twins.has(Layer::LandlockFs) {
        return Some("landlock: no rule for them (their names and modes stay open)");
    }
    (twins.has(Layer::Uid) && !twins.shared_uid).then_some("uid: they are another UID's")
}

impl Class {
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

/// A denied class and what stops it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Denied {
    /// Which.
    pub class: Class,
    /// The agent's settings deny it.
    pub settings: bool,
    /// What of the kernel stops it.
    pub kernel: Option<&'static str>,
    /// The settings leave it out, since the cell itself lies there.
    pub inside: bool,
}

pub(crate) fn classes(
    policy: &Policy,
    agent: &AgentSpec,
    host: &Host,
    on: &crate::plan::on::On,
    network: NetworkMode,
    landlock: Option<&crate::plan::rules::Landlock>,
    identity: Identity,
) -> Vec<Denied> {
    let listed = policy.kernel.execute.list().is_some_and(<[_]>::is_empty) && host.programs.wrapped.is_none();
    let few = landlock.is_some_and(|landlock| landlock.few_programs) && listed;
    let enforced: Vec<Layer> = Layer::ALL.into_iter().filter(|layer| on.has(*layer)).collect();
    let twins = Twins {
        enforced: &enforced,
        few_programs: few,
        shell: agent.has_shell(),
        settings_in_home: agent.settings.as_ref().is_some_and(Settings::in_home),
        no_network: network == NetworkMode::None && (on.has(Layer::Net) || on.has(Layer::Seccomp)),
        broker: (network == NetworkMode::Broker).then(|| crate::plan::hold::of(|layer| on.has(layer))),
        private_proc: host.private_descriptors,
        shared_uid: identity == Identity::Owner,
    };
    let left_out = left_out(host, on);
    let row = |&class: &Class| {
        let settings = agent.maps(class) && !left_out.contains(&class);
        let inside = agent.maps(class) && !settings && !on.has(Layer::Root);
        Denied { class, settings, kernel: class.kernel(&twins), inside }
    };
    policy.deny.iter().map(row).collect()
}

/// Classes that the settings cannot deny, since the agent's own files are there: in a /tmp of the cell's own it keeps
/// the output of its tasks; without a root of its own all of the cell may lie in a /tmp that others have, too.
pub(crate) fn left_out(host: &Host, on: &crate::plan::on::On) -> Vec<Class> {
    if on.has(Layer::Root) { vec![Class::SharedTmp] } else { host.around.clone() }
}
