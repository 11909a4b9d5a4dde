//! What this host offers, as facts. A fact is probed or learned from a failed attempt, never taken from a version.
#![forbid(unsafe_code)]

pub mod cgroup;
pub mod facts;
pub mod found;
pub mod groups;
pub mod image;
mod learn;
pub mod program;
pub mod ranges;
pub mod wanted;

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::host::facts::{Cgroups, Fact, Kind, Maker, Shown, capability, kind, user_namespaces};
use crate::host::program::Program;
use crate::host::ranges::{FEW_UIDS, Ranges, UIDS};
use crate::host::wanted::Wanted;
use crate::sys;
use crate::types::layer::Layer;
use crate::types::layout::DEVICES;
use image::Image;

pub use crate::host::learn::Step;
pub use found::Counts;
pub use found::{Host, Programs};

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
    pub fn probe(wanted: &Wanted<'_>) -> Host {
        let files = wanted.has(Layer::Root) || wanted.has(Layer::LandlockFs);
        let off = || Fact::lacks("the policy switches it off", "change `layers` of the policy");
        let uid = nix::unistd::geteuid().as_raw();
        let capabilities = sys::process::effective_capabilities();
        let (uid_map, uids) = (uid_map(), uids(capabilities));
        let cgroup = || crate::host::cgroup::find(uid, wanted.cpu_percent);
        let cgroup = if wanted.has(Layer::Cgroup) { cgroup() } else { off() };
        Host {
            uid,
            gid: nix::unistd::getegid().as_raw(),
            groups: groups::supplementary(capabilities & capability::SETGID == 0),
            capabilities,
            namespaces: namespaces(capabilities),
            mounts: if wanted.has(Layer::Root) { devices() } else { Fact::Has(()) },
            proc: Fact::Has(()),
            uts: Fact::Has(()),
            net: Fact::Has(()),
            landlock: landlock(),
            seccomp: seccomp(),
            modes: modes(capabilities),
            ranges: if uids.get().is_ok() && wanted.has(Layer::Uid) && wanted.lends {
                Ranges::read(&[&[UIDS, FEW_UIDS][..], wanted.uid_range.as_slice()].concat())
            } else {
                Fact::Has(Ranges::default())
            },
            uids,
            authorities: authorities(wanted),
            broker: broker(wanted),
            uid_map,
            counts: counts(&cgroup),
            cgroup,
            private_descriptors: sys::process::has_pidfd(),
            oom_order: Fact::Has(()),
            orphans: nix::sys::prctl::get_child_subreaper().is_ok(),
            files: wanted.files.iter().filter(|_| files).filter_map(|path| shown(path)).collect(),
            masked: if wanted.has(Layer::Root) { masked() } else { Vec::new() },
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
    let (swap, sockets) = cgroup.get().map(crate::host::cgroup::counts).unwrap_or_default();
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
fn broker(wanted: &Wanted<'_>) -> Fact<Image> {
    if !wanted.broker {
        return no_broker();
    }
    Image::find().map_or_else(Fact::Lacks, Fact::Has)
}

fn no_broker<T>() -> Fact<T> {
    Fact::lacks("no broker is asked for", "use --network broker")
}

/// The caller's own file, else the host's.
fn authorities(wanted: &Wanted<'_>) -> Fact<PathBuf> {
    if !wanted.broker {
        return no_broker();
    }
    let files = AUTHORITIES.iter().map(PathBuf::from).find(|path| path.is_file());
    wanted.ca.map(Path::to_owned).or(files).map_or_else(
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
    let set = crate::host::found::INHERITED.iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?)));
    set.collect()
}

fn shown(path: &Path) -> Option<Shown> {
    Some(Shown { path: path.to_owned(), kind: kind(path)? })
}

impl Programs {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Program> {
        std::iter::once(&self.agent).chain(&self.wrapped).chain(&self.servers)
    }
}
