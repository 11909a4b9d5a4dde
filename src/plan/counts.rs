//! What a cell can take of the host that nothing counts for it alone. The kernel counts by control group, by mount, by
//! namespace, by process or by UID, and some things for the whole host; a neighbour gets his where a count is the cell's.
#![forbid(unsafe_code)]

use serde::Serialize;

use super::Limits;
use crate::host::Host;
use crate::host::facts::Cgroups;
use crate::plan::on::{Identity, On};
use crate::policy::Policy;
use crate::request::Workspace;
use crate::types::layer::Layer;
use crate::types::network::NetworkMode;

/// Something that a cell shares with its neighbours, and can use up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Uncounted {
    /// What.
    pub what: &'static str,
    /// By whom it is counted instead.
    pub why: String,
}

/// What bounds `limits.disk` and `limits.files`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskBy {
    /// Size and inodes of the cell's tmpfs: a write beyond it fails.
    Tmpfs,
    /// Counts before, during and after the run: it ends, or does not begin.
    Counts,
}

/// Where a run writes, and what bounds that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Disk {
    /// HOME, /tmp, /dev/shm and a fresh workspace.
    pub cell: DiskBy,
    /// A workspace that outlives the run; counted together with the cell where that is counted, too.
    pub workspace: Option<DiskBy>,
}

impl Disk {
    /// Of a run with such a workspace.
    pub fn new(on: &On, workspace: &Workspace) -> Disk {
        Disk {
            cell: if on.has(Layer::Root) { DiskBy::Tmpfs } else { DiskBy::Counts },
            workspace: (*workspace != Workspace::Fresh).then_some(DiskBy::Counts),
        }
    }

    /// In words.
    pub fn text(self) -> &'static str {
        match (self.cell, self.workspace) {
            (DiskBy::Tmpfs, None) => "the cell's tmpfs",
            (DiskBy::Tmpfs, Some(_)) => {
                "the cell's tmpfs; as much again the workspace, counted before, during and after the run"
            }
            (DiskBy::Counts, None) => "the cell's directory, counted before, during and after the run",
            (DiskBy::Counts, Some(_)) => {
                "the cell's directory and the workspace together, counted before, during and after the run"
            }
        }
    }
}

/// Everything of that kind, on a host that is confined like this.
pub fn uncounted(
    policy: &Policy,
    disk: Disk,
    host: &Host,
    on: &On,
    network: NetworkMode,
    identity: Identity,
    limits: &Limits,
) -> Vec<Uncounted> {
    let group = if on.has(Layer::Cgroup) { host.cgroup.get().ok() } else { None };
    let mut all = Vec::new();
    let mut say = |what, why: String| all.push(Uncounted { what, why });
    if limits.data.is_some() {
        say("memory", "of each process, not of the cell, and without pages of files and sockets".into());
    }
    if limits.processes.is_none() && !counts_processes(group) {
        say("processes", "the UID has others, too".into());
    }
    if group.is_none() {
        say("CPU", "the host's scheduler shares it between sessions".into());
    }
    if group.is_some() && !limits.swap && host.counts.swap_is_on {
        say("swap", "this kernel accounts none (swapaccount=1)".into());
    }
    if group.is_none_or(|group| matches!(group, Cgroups::V1 { .. }) && limits.socket_buffers.is_none()) {
        say("socket buffers", "the host's net.ipv4.tcp_mem; a socket beyond that keeps its minimum".into());
    }
    if disk.cell == DiskBy::Counts || disk.workspace.is_some() {
        say("disk", "what is written between two counts, and files that are deleted while they are open".into());
    }
    if !on.has(Layer::Root) && !on.has(Layer::LandlockFs) {
        say("files elsewhere", "wherever their modes let the agent's UID write".into());
        say("pseudo-terminals", "the host's /dev/pts; all have kernel.pty.max".into());
    }
    if host.counts.file_max < u64::from(policy.limits.processes) * u64::from(policy.limits.open_files) {
        let bound = format!("fs.file-max is {}, less than processes × open-files", host.counts.file_max);
        say("open files", bound);
    }
    if identity == Identity::Caller {
        say("inotify, epoll, pending signals, pipes", "bounds of the UID, which other cells have".into());
    }
    say("locks", "of files that others read, too: whoever may open one may lock it for all (flock(2))".into());
    if !on.has(Layer::Net) && network != NetworkMode::None {
        say("ports, connections", "the host's network".into());
    }
    all
}

fn counts_processes(group: Option<&Cgroups>) -> bool {
    matches!(group, Some(Cgroups::V2(_) | Cgroups::V1 { pids: Some(_), .. }))
}

/// Whether a group counts memory: else each process has a limit of its own.
pub fn counts_memory(group: Option<&Cgroups>) -> bool {
    matches!(group, Some(Cgroups::V2(_) | Cgroups::V1 { memory: Some(_), .. }))
}
