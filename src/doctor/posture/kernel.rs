//! Ids, capabilities, filters, namespaces and limits.
#![forbid(unsafe_code)]

use caps::CapSet;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd;
use serde_json::{Value, json};

use crate::sys::attack::{kernel, process as sys};

/// User and group ids in all four forms (the fourth only where /proc is readable), supplementary groups.
pub(super) fn ids() -> Value {
    let numbers =
        |name: &str| -> Option<Vec<u32>> { status(name)?.split_whitespace().map(|word| word.parse().ok()).collect() };
    let uid = unistd::getresuid().map(|id| [id.real, id.effective, id.saved].map(unistd::Uid::as_raw)).ok();
    let gid = unistd::getresgid().map(|id| [id.real, id.effective, id.saved].map(unistd::Gid::as_raw)).ok();
    let groups = unistd::getgroups().map(|all| all.into_iter().map(unistd::Gid::as_raw).collect::<Vec<_>>()).ok();
    json!({
        "uid": uid, "gid": gid, "groups": groups,
        "fsuid": numbers("Uid").and_then(|all| all.get(3).copied()),
        "fsgid": numbers("Gid").and_then(|all| all.get(3).copied()),
    })
}

/// The five sets, as hexadecimal masks.
pub(super) fn capabilities() -> Value {
    let mask = |set: CapSet| -> Option<String> {
        let bits = caps::read(None, set).ok()?.into_iter().fold(0_u64, |mask, cap| mask | 1 << cap.index());
        Some(format!("{bits:016x}"))
    };
    json!({
        "effective": mask(CapSet::Effective),
        "permitted": mask(CapSet::Permitted),
        "inheritable": mask(CapSet::Inheritable),
        "bounding": mask(CapSet::Bounding),
        "ambient": mask(CapSet::Ambient),
    })
}

/// Whether exec can still give privileges.
pub(super) fn no_new_privs() -> Option<bool> {
    prctl::get_no_new_privs().ok()
}

/// Mode (0 none, 2 filter) and how many filters.
pub(super) fn seccomp() -> Value {
    json!({
        "mode": sys::seccomp_mode(),
        "filters": status("Seccomp_filters").and_then(|count| count.parse::<u32>().ok()),
    })
}

/// The ABI, or the errno.
pub(super) fn landlock() -> Value {
    kernel::landlock_abi().map_or_else(|errno| json!(format!("{errno:?}")), |abi| json!(abi))
}

/// Inode numbers, which are the same for everybody in the same namespace.
pub(super) fn namespaces() -> Value {
    let names = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
    let inode = |name: &str| -> Option<u64> {
        let link = std::fs::read_link(format!("/proc/self/ns/{name}")).ok()?;
        link.to_str()?.split(['[', ']']).nth(1)?.parse().ok()
    };
    names.iter().map(|name| ((*name).to_owned(), json!(inode(name)))).collect::<serde_json::Map<_, _>>().into()
}

/// Numbers of and settings for the process itself.
pub(super) fn process() -> Value {
    use nix::sys::stat::{Mode, umask};
    let mask = umask(Mode::from_bits_truncate(0o077));
    umask(mask);
    json!({
        "pid": unistd::getpid().as_raw(),
        "ppid": unistd::getppid().as_raw(),
        "pgid": unistd::getpgrp().as_raw(),
        "sid": unistd::getsid(None).map(unistd::Pid::as_raw).ok(),
        "umask": format!("{:04o}", mask.bits()),
        "dumpable": prctl::get_dumpable().ok(),
        "death_signal": prctl::get_pdeathsig().ok().map(|signal| signal.map_or("none", |s| s.as_str())),
        "timer_slack_ns": prctl::get_timerslack().ok(),
        "nice": sys::nice(),
        "policy": sys::policy(),
        "io_priority": sys::io_priority(),
        "personality": sys::personality(),
        "memory_merge": sys::memory_merge(),
        "oom_score_adj": std::fs::read_to_string("/proc/self/oom_score_adj").ok().map(|text| text.trim().to_owned()),
        "cpus": status("Cpus_allowed_list"),
        "blocked_signals": status("SigBlk"),
        "ignored_signals": status("SigIgn"),
    })
}

/// Soft and hard limits; `null` is unlimited.
pub(super) fn limits() -> Value {
    use Resource::*;
    let all = [
        ("as", RLIMIT_AS),
        ("core", RLIMIT_CORE),
        ("cpu", RLIMIT_CPU),
        ("data", RLIMIT_DATA),
        ("fsize", RLIMIT_FSIZE),
        ("locks", RLIMIT_LOCKS),
        ("memlock", RLIMIT_MEMLOCK),
        ("msgqueue", RLIMIT_MSGQUEUE),
        ("nice", RLIMIT_NICE),
        ("nofile", RLIMIT_NOFILE),
        ("nproc", RLIMIT_NPROC),
        ("rss", RLIMIT_RSS),
        ("rtprio", RLIMIT_RTPRIO),
        ("rttime", RLIMIT_RTTIME),
        ("sigpending", RLIMIT_SIGPENDING),
        ("stack", RLIMIT_STACK),
    ];
    let finite = |value: u64| (value != libc::RLIM_INFINITY).then_some(value);
    let pair = |limit| getrlimit(limit).map(|(soft, hard)| json!([finite(soft), finite(hard)])).ok();
    all.into_iter().map(|(name, limit)| (name.to_owned(), json!(pair(limit)))).collect::<serde_json::Map<_, _>>().into()
}

/// The line of /proc/self/status that begins with `name`.
pub(crate) fn status(name: &str) -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
}

/// `"ok"` or the name of the errno.
pub(crate) fn word<T>(tried: std::io::Result<T>) -> String {
    match tried {
        Ok(_) => "ok".into(),
        Err(error) => {
            error.raw_os_error().map_or(error.to_string(), |n| format!("{:?}", nix::errno::Errno::from_raw(n)))
        }
    }
}
