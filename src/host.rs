//! What this host offers, as facts. A fact is probed or learned from a failed attempt, never taken from a version.
#![forbid(unsafe_code)]

pub mod groups;
pub mod image;
mod learn;
pub mod program;
pub mod ranges;

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::Serialize;

use crate::host::program::Program;
use crate::host::ranges::Ranges;
use crate::plan::layers;
use crate::plan::rules::DEVICES;
use crate::policy::{NetworkMode, Policy};
use crate::request::Request;
use crate::sys;
use crate::types::class::Class;
use crate::types::layer::{Layer, Want};

use groups::Group;
use image::Image;
pub use learn::Step;
use learn::USERNS_REMEDY;

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

    fn lacks(why: impl Into<String>, remedy: impl Into<String>) -> Fact<T> {
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

/// What OCI runtimes mask of /proc, since some of it belongs to the whole host (runtime-spec, `maskedPaths`), and what
/// tells besides what others on the host do: their locks by process and inode, keys by UID, disks by request, wake-ups by
/// CPU. The host's boot options may hold a secret. What `free`, `uptime`, `vmstat` and runtimes read stays: cpuinfo,
/// loadavg, meminfo, stat, uptime, vmstat.
const MASKED: [&str; 17] = [
    "acpi",
    "asound",
    "cmdline",
    "diskstats",
    "interrupts",
    "kcore",
    "key-users",
    "keys",
    "latency_stats",
    "locks",
    "sched_debug",
    "schedstat",
    "scsi",
    "softirqs",
    "swaps",
    "timer_list",
    "timer_stats",
];

impl Host {
    /// Reads the facts that cost next to nothing: files of /proc and single calls, no process. What only an attempt can
    /// tell is taken as there until [`Host::learn`] is told otherwise, by the launch itself or by a rehearsal.
    /// What only layers need that nobody wants is not looked for.
    /// Nothing is kept from one run to the next, so no answer of yesterday's weakens a run of today's.
    pub fn probe(request: &Request, policy: &Policy) -> Host {
        let wanted = |layer| layers::want(request, policy, layer) != Want::Off;
        let files = wanted(Layer::Root) || wanted(Layer::LandlockFs);
        let off = || Fact::lacks("the policy switches it off", "change `layers` of the policy");
        let uid = nix::unistd::geteuid().as_raw();
        let capabilities = sys::process::effective_capabilities();
        let (uid_map, uids) = (uid_map(), uids(capabilities));
        let cgroup = || crate::confine::cgroup::find(uid, policy.limits.cpu_percent);
        let cgroup = if wanted(Layer::Cgroup) { cgroup() } else { off() };
        Host {
            uid,
            gid: nix::unistd::getegid().as_raw(),
            groups: groups::supplementary(capabilities & capability::SETGID == 0),
            capabilities,
            namespaces: namespaces(capabilities),
            mounts: if wanted(Layer::Root) { devices() } else { Fact::Has(()) },
            proc: Fact::Has(()),
            uts: Fact::Has(()),
            net: Fact::Has(()),
            landlock: landlock(),
            seccomp: seccomp(),
            modes: modes(capabilities),
            ranges: if uids.get().is_ok() && wanted(Layer::Uid) && layers::lends(request) {
                Ranges::read(&[&[layers::UIDS, layers::FEW_UIDS][..], request.uid_range.as_slice()].concat())
            } else {
                Fact::Has(Ranges::default())
            },
            uids,
            authorities: authorities(request, policy),
            broker: broker(request, policy),
            uid_map,
            counts: counts(&cgroup),
            cgroup,
            private_descriptors: sys::process::has_pidfd(),
            oom_order: Fact::Has(()),
            orphans: nix::sys::prctl::get_child_subreaper().is_ok(),
            files: policy
                .files
                .programs
                .iter()
                .chain(&policy.files.config)
                .filter(|_| files)
                .filter_map(|path| shown(path.as_path()))
                .collect(),
            masked: if wanted(Layer::Root) { masked() } else { Vec::new() },
            programs: Programs::default(),
            servers: Vec::new(),
            extra: Vec::new(),
            agent_programs: Vec::new(),
            around: Vec::new(),
            inherited: inherited(),
            shell: ["/bin/bash", "/bin/sh"]
                .map(PathBuf::from)
                .into_iter()
                .find(|path| path.exists())
                .unwrap_or_default(),
        }
    }

    /// Whether the launcher has a capability.
    pub fn has(&self, capability: u64) -> bool {
        self.capabilities & capability != 0
    }
}

fn counts(cgroup: &Fact<Cgroups>) -> Counts {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (swap, sockets) = cgroup.get().map(crate::confine::cgroup::counts).unwrap_or_default();
    Counts {
        swap,
        sockets,
        // The first line is a heading.
        swap_is_on: !swap && read("/proc/swaps").lines().count() > 1,
        file_max: read("/proc/sys/fs/file-max").trim().parse().unwrap_or(u64::MAX),
    }
}

fn masked() -> Vec<(String, Kind)> {
    let there = |name: &&str| Some(((*name).to_owned(), kind(&Path::new("/proc").join(name))?));
    MASKED.iter().filter_map(there).collect()
}

fn namespaces(capabilities: u64) -> Fact<Maker> {
    if capabilities & capability::SYS_ADMIN != 0 { Fact::Has(Maker::Privilege) } else { user_namespaces() }
}

fn user_namespaces() -> Fact<Maker> {
    let number = |name: &str| -> Option<u64> { std::fs::read_to_string(name).ok()?.trim().parse().ok() };
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        return Fact::lacks("user namespaces are off (user.max_user_namespaces = 0)", USERNS_REMEDY);
    }
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        return Fact::lacks("user namespaces are off for users (kernel.unprivileged_userns_clone = 0)", USERNS_REMEDY);
    }
    Fact::Has(Maker::UserNamespace)
}

/// A private root shows the host's own devices. A cell without one of them would be worse than none: programs take an
/// empty file for randomness.
fn devices() -> Fact<()> {
    let there = |path: &Path| std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_char_device());
    let missing = DEVICES.iter().map(|name| Path::new("/dev").join(name)).find(|path| !there(path));
    missing.map_or(Fact::Has(()), |path| {
        Fact::lacks(format!("there is no device {}", path.display()), "let the container's runtime make /dev")
    })
}

fn landlock() -> Fact<u32> {
    match sys::landlock::abi() {
        Ok(abi) => Fact::Has(abi),
        Err(Errno::EOPNOTSUPP) => {
            Fact::lacks("Landlock is built in but not enabled", "add landlock to the kernel's lsm= list")
        }
        Err(_) => Fact::lacks("this kernel has no Landlock", "use a kernel from 5.13 on with CONFIG_SECURITY_LANDLOCK"),
    }
}

fn seccomp() -> Fact<()> {
    if sys::seccomp::available() {
        Fact::Has(())
    } else {
        Fact::lacks("this kernel has no seccomp", "use a kernel with CONFIG_SECCOMP_FILTER")
    }
}

/// The launcher reads the path that an agent means out of its memory, as a debugger would.
fn modes(capabilities: u64) -> Fact<()> {
    if !sys::notify::available() {
        return Fact::lacks(
            "this kernel's seccomp asks nobody, so that nothing holds modes and times of files back",
            "use Linux from 5.5 on",
        );
    }
    // Yama (ptrace_scope) from 2 on lets nobody be traced without CAP_SYS_PTRACE, not even by his parent.
    let guarded = || std::fs::read("/proc/sys/kernel/yama/ptrace_scope").is_ok_and(|scope| scope > b"1\n".to_vec());
    if capabilities & capability::SYS_PTRACE == 0 && guarded() {
        return Fact::lacks(
            "kernel.yama.ptrace_scope keeps the launcher from reading what an agent asks, so that nothing holds modes and times of files back",
            "set kernel.yama.ptrace_scope to 1",
        );
    }
    Fact::Has(())
}

fn uids(capabilities: u64) -> Fact<()> {
    let needed = capability::SETUID | capability::SETGID | capability::CHOWN;
    if capabilities & needed == needed {
        return Fact::Has(());
    }
    Fact::lacks("a plain user cannot take another UID", "run as root with CAP_SETUID, CAP_SETGID and CAP_CHOWN")
}

/// Where distributions keep the authorities that they trust, as one file in PEM.
const AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A run that asks for no broker looks for no program of it.
fn broker(request: &Request, policy: &Policy) -> Fact<Image> {
    if !asks_for_broker(request, policy) {
        return no_broker();
    }
    Image::find().map_or_else(Fact::Lacks, Fact::Has)
}

fn asks_for_broker(request: &Request, policy: &Policy) -> bool {
    request.network.unwrap_or(policy.network.mode) == NetworkMode::Broker
}

fn no_broker<T>() -> Fact<T> {
    Fact::lacks("no broker is asked for", "use --network broker")
}

/// The caller's own file, else the host's.
fn authorities(request: &Request, policy: &Policy) -> Fact<PathBuf> {
    if !asks_for_broker(request, policy) {
        return no_broker();
    }
    let files = AUTHORITIES.iter().map(PathBuf::from).find(|path| path.is_file());
    request.ca.clone().or(files).map_or_else(
        || {
            Fact::lacks(
                "this host has no file of trusted authorities",
                "install ca-certificates, or name a file with --ca",
            )
        },
        Fact::Has,
    )
}

/// The UIDs of this user namespace (user_namespaces(7)); all of them where /proc does not say.
fn uid_map() -> Vec<(u32, u32)> {
    let text = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let map = crate::sys::proc::id_map(&text);
    if map.is_empty() { vec![(0, u32::MAX)] } else { map }
}

fn inherited() -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    let set = crate::plan::environ::INHERITED.iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?)));
    set.collect()
}

fn shown(path: &Path) -> Option<Shown> {
    Some(Shown { path: path.to_owned(), kind: kind(path)? })
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

impl Programs {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Program> {
        std::iter::once(&self.agent).chain(&self.wrapped).chain(&self.servers)
    }
}
