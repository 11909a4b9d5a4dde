//! The layers in force, and what they come to.
#![forbid(unsafe_code)]

use serde::Serialize;

use crate::host::Host;
use crate::host::facts::Maker;
use crate::host::ranges::{FEW_UIDS, UIDS};
use crate::types::layer::{Layer, Planned};
use crate::types::values::UidRange;

/// Namespaces of the cell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Namespaces {
    /// A user namespace, only where the others need one.
    pub user: bool,
    /// Processes.
    pub pid: bool,
    /// Mounts.
    pub mount: bool,
    /// SysV objects and POSIX queues.
    pub ipc: bool,
    /// The host's name.
    pub uts: bool,
    /// The network.
    pub net: bool,
    /// Control groups: the cell's own is `/` to it. Entered when the cell is in its group.
    pub cgroup: bool,
}

/// Whose UID the agent has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identity {
    /// The launcher's.
    Caller,
    /// One of its own, from this range.
    PerRun(UidRange),
    /// The owner's of the workspace, which outlives the run.
    Owner,
}

/// What is between cells that the same launcher starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Apart {
    /// A layer.
    InSpace,
    /// They live one after the other.
    InTime,
    /// Nothing: the policy switches it off.
    Neither,
}

/// The layers in force, and what else follows from them.
#[derive(Debug, Clone)]
pub struct On {
    layers: Vec<Layer>,
    /// The namespaces are made through a user namespace.
    pub via_user_namespace: bool,
    /// UIDs for runs by default.
    pub uid_range: UidRange,
}

impl On {
    /// The layers that were decided to be enforced.
    pub fn new(decided: &[Planned], host: &Host) -> On {
        let layers = decided.iter().filter(|planned| planned.decision.enforced()).map(|planned| planned.layer);
        On {
            layers: layers.collect(),
            via_user_namespace: host.namespaces.get() == Ok(&Maker::UserNamespace),
            uid_range: default_range(host),
        }
    }

    /// Whether a layer is in force.
    pub fn has(&self, layer: Layer) -> bool {
        self.layers.contains(&layer)
    }

    /// The namespaces that these layers need.
    pub fn namespaces(&self) -> Namespaces {
        let [pid, mount, ipc, uts, net] =
            [Layer::Pid, Layer::Root, Layer::Ipc, Layer::Uts, Layer::Net].map(|layer| self.has(layer));
        let any = pid || mount || ipc || uts || net;
        // Control groups are shown in /proc, and only a cell with a root of its own has one of its own.
        Namespaces { user: any && self.via_user_namespace, pid, mount, ipc, uts, net, cgroup: mount }
    }
}

pub(crate) fn covers(host: &Host, range: UidRange) -> bool {
    let covered = |&(first, count): &(u32, u32)| first <= range.first && range.last - first < count;
    host.uid_map.iter().any(covered)
}

/// The range where the caller names none: what /etc/subuid gives, else the built-in one.
pub fn default_range(host: &Host) -> UidRange {
    let given = host.ranges.get().ok().and_then(|ranges| ranges.given);
    given.unwrap_or(if covers(host, UIDS) { UIDS } else { FEW_UIDS })
}
