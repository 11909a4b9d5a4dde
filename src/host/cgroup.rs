//! Where this launcher may make control groups.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Component, Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::host::facts::{Cgroups, Fact, Lack};

/// Where control groups are mounted (file-hierarchy(7)).
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";

/// The period of CPU shares, in microseconds (cgroups(7), the kernel's default).
pub(crate) const PERIOD: u64 = 100_000;

/// Finds where this process may make control groups. Reads and asks; makes nothing. A share of the CPU that is no less
/// than all of this host's needs none.
pub fn find(uid: u32, cpu_percent: u32) -> Fact<Cgroups> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    if let Some(found) = own_v2(&own).and_then(|start| find_v2(&start)) {
        return Fact::Has(Cgroups::V2(found));
    }
    let at = |controller| find_v1(&own, controller);
    let cpus = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
    let cpu = if usize::try_from(cpu_percent).is_ok_and(|percent| percent / 100 >= cpus) { None } else { at("cpu") };
    match (at("memory"), at("pids"), cpu) {
        (None, None, None) => Fact::Lacks(Lack::new(
            if uid == 0 { "no cgroup file system can be written" } else { "no cgroup is delegated to this user" },
            "mount it writable, run as root, or delegate one whose cgroup.subtree_control has memory and pids (systemd: Delegate=memory pids cpu, DelegateSubgroup=)",
        )),
        (memory, pids, cpu) => Fact::Has(Cgroups::V1 { memory, pids, cpu }),
    }
}

/// The nearest group above this process whose children may have limits.
pub(crate) fn find_v2(start: &Path) -> Option<PathBuf> {
    let root = Path::new(MOUNT);
    start.ancestors().take_while(|path| path.starts_with(root)).map(Path::to_owned).find(|path| {
        let enabled = fs::read_to_string(path.join("cgroup.subtree_control")).unwrap_or_default();
        ["memory", "pids"].iter().all(|name| enabled.split_ascii_whitespace().any(|word| word == *name))
            && writable(path)
    })
}

pub(crate) fn find_v1(own: &str, controller: &str) -> Option<PathBuf> {
    own_v1(own, controller).filter(|directory| writable(directory))
}

/// This process's own group of the unified hierarchy, by what /proc/self/cgroup says (cgroups(7)).
pub fn own_v2(own: &str) -> Option<PathBuf> {
    below(Path::new(MOUNT), own.lines().find_map(|line| line.strip_prefix("0::"))?)
}

/// The same of one controller's own hierarchy.
pub fn own_v1(own: &str, controller: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        fields.next()?.split(',').any(|name| name == controller).then(|| fields.next())?
    })?;
    below(&Path::new(MOUNT).join(controller), path)
}

/// A group outside of this process's cgroup namespace is shown as `/..`, and is nowhere below the mount.
pub(crate) fn below(mount: &Path, path: &str) -> Option<PathBuf> {
    let path = Path::new(path.trim_start_matches('/'));
    path.components().all(|part| matches!(part, Component::Normal(_))).then(|| mount.join(path))
}

pub(crate) fn writable(directory: &Path) -> bool {
    access(directory, AccessFlags::W_OK).is_ok()
}

/// Whether the kernel accounts swap for a group, and by itself the buffers of its sockets, which version 2 counts as
/// memory.
pub fn counts(found: &Cgroups) -> (bool, bool) {
    let has = |directory: &Path, file: &str| directory.join(file).exists();
    match found {
        Cgroups::V1 { memory: Some(memory), .. } => {
            (has(memory, "memory.memsw.limit_in_bytes"), has(memory, "memory.kmem.tcp.limit_in_bytes"))
        }
        Cgroups::V1 { .. } => (false, false),
        // The root has no limits of its own, but those below it.
        Cgroups::V2(parent) if parent == Path::new(MOUNT) => {
            let own = own_v2(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default());
            (own.is_some_and(|own| has(&own, "memory.swap.max")), false)
        }
        Cgroups::V2(parent) => (has(parent, "memory.swap.max"), false),
    }
}
