//! The rules of the Landlock domain and of the seccomp filter, as data.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::apart;
use crate::host::Host;
use crate::host::facts::Kind;
use crate::plan::on::On;
use crate::policy::Policy;
use crate::request::Request;
use crate::types::layer::Layer;
use crate::types::layout::DEVICES;
use crate::types::network::NetworkMode;

/// A Landlock domain.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Landlock {
    /// The kernel's ABI.
    pub abi: u32,
    /// Rules for files; nothing where files are not restricted.
    pub files: Option<Vec<FileRule>>,
    /// Only listed programs may be executed.
    pub few_programs: bool,
    /// TCP ports that may be connected to; nothing where connecting is not restricted.
    pub connect: Option<Vec<u16>>,
    /// The port of the broker on the host's loopback may be connected to, too. It is known when the broker listens.
    pub broker: bool,
    /// TCP ports that may be bound.
    pub bind: Option<Vec<u16>>,
    /// Signals and abstract sockets stay in the domain.
    pub scope: bool,
    /// Sockets with a path that were made outside of the domain are not connected to.
    pub path_sockets: bool,
}

/// What may be done below a place.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct FileRule {
    /// Where.
    pub place: Place,
    /// What.
    pub access: Access,
}

/// A place in the cell or on the host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The agent's HOME.
    Home,
    /// Its /tmp.
    Tmp,
    /// Its /dev/shm.
    Shm,
    /// Its working directory.
    Work,
    /// Its settings.
    Settings,
    /// /proc/PID of the agent's own process.
    OwnProc,
    /// This path, as it is inside the cell.
    Path(PathBuf),
}

/// What may be done below a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Read files, list directories.
    Read,
    /// Read and execute.
    Execute,
    /// Execute this one file, which another rule lets the agent read.
    Program,
    /// Everything but executing.
    Write,
    /// Everything.
    All,
    /// Read, write and ioctl(2) a device.
    Device,
}

/// What of the seccomp filter depends on the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Filter {
    /// ptrace(2) and process_vm_readv(2) are allowed.
    pub ptrace: bool,
    /// New namespaces and mounts are allowed.
    pub namespaces: bool,
    /// SysV IPC and POSIX queues are allowed: they are the cell's own.
    pub ipc: bool,
    /// Unix sockets are allowed, and not only pairs of them.
    pub unix: bool,
    /// Internet sockets are allowed.
    pub inet: bool,
    /// UDP sockets are allowed.
    pub udp: bool,
    /// Sockets may listen. Landlock has no rule for one that was not bound and so gets a port of the kernel's.
    pub listen: bool,
    /// Scheduling, limits, kill(-1) and owners of descriptors may name other processes: all of them are the cell's own.
    pub others: bool,
    /// Who changes modes, owners and times of files.
    pub modes: Modes,
}

/// Who changes modes, owners and times of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Modes {
    /// The agent.
    Free,
    /// The launcher, where the agent asks it to and the file is the cell's own: others have the agent's UID, and Landlock
    /// has no right for it.
    Asked,
}

/// Files of /proc that belong to no process. Without a PID namespace /proc as a whole would show every process.
const PROC_FILES: [&str; 9] = [
    "/proc/cpuinfo",
    "/proc/filesystems",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/kernel",
    "/proc/sys/vm",
    "/proc/uptime",
    "/proc/version",
];

/// Files of /etc that name nobody's secret, for hosts without a private root.
const ETC_FILES: [&str; 10] = [
    // Debian's bash reads it where its standard input is a socket, as an agent's commands have it, and complains if not.
    "/etc/bash.bashrc",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
];

/// The domain, where any of its parts is in force.
pub fn landlock(policy: &Policy, request: &Request, host: &Host, on: &On, network: NetworkMode) -> Option<Landlock> {
    let [files, net, scope] = [Layer::LandlockFs, Layer::LandlockNet, Layer::LandlockScope].map(|layer| on.has(layer));
    if !(files || net || scope) {
        return None;
    }
    let listed = policy.kernel.execute.list();
    let brokered = hosts_broker(network, on);
    let allowed = if brokered { Some(&[][..]) } else { policy.network.connect.list() };
    let connect = allowed.filter(|_| net).map(|ports| {
        let mut ports = ports.to_vec();
        if brokered {
            return ports;
        }
        ports.extend(request.upstream.as_ref().map(|upstream| upstream.port).filter(|port| !ports.contains(port)));
        ports
    });
    Some(Landlock {
        abi: host.landlock.get().copied().unwrap_or_default(),
        files: files.then(|| file_rules(host, on, listed)),
        few_programs: files && listed.is_some(),
        connect,
        broker: net && brokered,
        bind: policy.network.bind.list().filter(|_| net).map(<[u16]>::to_vec),
        scope,
        path_sockets: files && on.has(Layer::PathSockets) && knows_path_sockets(host),
    })
}

/// Whether there is a broker that listens on the host's loopback.
fn hosts_broker(network: NetworkMode, on: &On) -> bool {
    network == NetworkMode::Broker && !on.has(Layer::Net)
}

/// The port of DNS, for long answers.
const DNS: u16 = 53;

/// The broker's domain, under the layers of the run. It reads what others sent, and holds what they are after: no file,
/// since it has read the resolver's before it enters, and the ports that the plan leads to.
pub fn brokers_landlock(host: &Host, on: &On, ports: impl Iterator<Item = u16>) -> Option<Landlock> {
    let abi = host.landlock.get().copied().ok()?;
    let mut connect: Vec<u16> = ports.chain([DNS]).collect();
    connect.sort_unstable();
    connect.dedup();
    on.has(Layer::LandlockFs).then(|| Landlock {
        abi,
        files: Some(Vec::new()),
        few_programs: true,
        connect: (abi >= 4).then_some(connect),
        broker: false,
        bind: (abi >= 4).then(Vec::new),
        scope: abi >= 6,
        path_sockets: abi >= PATH_SOCKETS,
    })
}

/// The broker's filter.
pub const BROKERS_FILTER: Filter = Filter {
    ptrace: false,
    namespaces: false,
    ipc: false,
    unix: false,
    inet: true,
    udp: true,
    listen: true,
    others: false,
    modes: Modes::Free,
};

/// The ABI from which on Landlock has a right for sockets with a path.
pub const PATH_SOCKETS: u32 = 9;

/// Whether this kernel's Landlock keeps a domain from sockets with a path.
pub fn knows_path_sockets(host: &Host) -> bool {
    host.landlock.get().is_ok_and(|abi| *abi >= PATH_SOCKETS)
}

fn file_rules(host: &Host, on: &On, listed: Option<&[String]>) -> Vec<FileRule> {
    let few = listed.is_some();
    let visible = if few { Access::Read } else { Access::Execute };
    let own = if few { Access::Write } else { Access::All };
    let rule = |place, access| FileRule { place, access };
    let at = |path: &str, access| rule(Place::Path(path.into()), access);
    let mut rules = vec![rule(Place::Home, own), rule(Place::Tmp, own), rule(Place::Work, own)];
    if on.has(Layer::Root) {
        // The private root shows what it shows: one rule covers it, also what is mounted below.
        rules.extend([rule(Place::Shm, own), at("/", visible), at("/dev/pts", Access::Device)]);
    } else {
        rules.extend(host_rules(host, visible));
    }
    // The shim of a wrapped agent is a script of the launcher's, where the agent cannot write.
    rules.push(rule(Place::Settings, if host.programs.wrapped.is_some() { Access::Execute } else { Access::Read }));
    rules.extend(DEVICES.iter().map(|name| at(&format!("/dev/{name}"), Access::Device)));
    if let Some(listed) = listed {
        // Names were looked up on PATH before: here one would be looked up in the workspace, where the child stands.
        let listed = listed.iter().map(PathBuf::from).filter(|path| path.is_absolute());
        let own = host.programs.all().flat_map(|program| &program.executed).cloned();
        let mut programs: Vec<PathBuf> = own.chain(listed).chain(host.agent_programs.iter().cloned()).collect();
        programs.sort();
        programs.dedup();
        rules.extend(programs.into_iter().map(|path| rule(Place::Path(path), Access::Program)));
    }
    rules
}

/// Without a private root: the same allow-list as the mounts would be, on the host's own paths.
fn host_rules(host: &Host, visible: Access) -> Vec<FileRule> {
    let rule = |path: PathBuf, access| FileRule { place: Place::Path(path), access };
    let directories = host.files.iter().filter(|shown| !matches!(shown.kind, Kind::Link(_)));
    let mut rules: Vec<FileRule> = directories.map(|shown| rule(shown.path.clone(), visible)).collect();
    let programs = host.programs.all().flat_map(|program| &program.shown).cloned();
    rules.extend(programs.map(|path| rule(path, visible)));
    rules.extend(host.extra.iter().map(|(path, _)| rule(path.clone(), Access::Read)));
    rules.extend(PROC_FILES.iter().chain(&ETC_FILES).map(|path| rule(PathBuf::from(path), Access::Read)));
    rules.push(FileRule { place: Place::OwnProc, access: Access::Read });
    rules
}

/// The filter, where the layer is in force.
pub fn filter(policy: &Policy, request: &Request, host: &Host, on: &On, network: NetworkMode) -> Option<Filter> {
    let own_net = on.has(Layer::Net);
    on.has(Layer::Seccomp).then_some(Filter {
        // Without a fence between UIDs of the same number ptrace(2) would reach other cells.
        ptrace: policy.kernel.ptrace && (on.has(Layer::Pid) || on.has(Layer::Uid) || on.has(Layer::LandlockFs)),
        namespaces: policy.kernel.nested_namespaces,
        ipc: on.has(Layer::Ipc),
        unix: !on.has(Layer::PathSockets)
            || on.has(Layer::Root)
            || on.has(Layer::LandlockFs) && knows_path_sockets(host),
        inet: own_net || network != NetworkMode::None,
        udp: own_net || (network == NetworkMode::Host && policy.network.udp),
        listen: !(hosts_broker(network, on) && on.has(Layer::LandlockNet)) || policy.network.bind.list() != Some(&[]),
        others: on.has(Layer::Pid),
        modes: if apart::asks_for_modes(request, host, |layer| on.has(layer)) { Modes::Asked } else { Modes::Free },
    })
}
