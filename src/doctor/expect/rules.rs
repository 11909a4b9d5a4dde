//! The table: which stops are known to hold against which attack, and what it means where none does.
#![forbid(unsafe_code)]

use crate::types::layer::Layer;

/// One thing that stops attacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// A private root.
    Root,
    /// A PID namespace.
    Pid,
    /// The same with a /proc of its own: without one the host's lists everybody all the same.
    OwnProc,
    /// A PID namespace whose first process cannot be signalled from inside, as on Linux.
    OwnInit,
    /// An IPC namespace.
    Ipc,
    /// A network namespace.
    Net,
    /// The same, where the kernel lists sockets by namespace.
    NetInProc,
    /// Another UID than the victim's.
    Uid,
    /// The same, where the kernel guards /proc and scheduling by UID.
    UidInProc,
    /// Landlock rules for files.
    Files,
    /// Landlock rules that leave out /proc/PID.
    ProcRules,
    /// Any Landlock domain: nobody traces out of one.
    Domain,
    /// Landlock scope.
    Scope,
    /// Landlock rules for the ports that are connected to.
    Ports,
    /// What keeps it from sockets with a path, be it Landlock or the filter.
    PathSockets,
    /// A filter without Unix sockets.
    UnixSockets,
    /// The launcher, which is asked for modes and times of files.
    Modes,
    /// A cgroup namespace.
    OwnCgroup,
    /// A seccomp filter, whatever the plan.
    Filter,
    /// One without ptrace(2).
    Tracing,
    /// One without calls that name other processes.
    OtherProcesses,
    /// One without SysV and POSIX IPC.
    IpcCalls,
    /// One without new namespaces and mounts.
    NewNamespaces,
    /// One without Internet sockets.
    Internet,
    /// One without UDP.
    Udp,
    /// No capability.
    Powerless,
    /// The same, where the kernel asks for capabilities as Linux does.
    PowerlessOnLinux,
    /// No capability, and not UID 0, who owns the files.
    Plain,
    /// `no_new_privs`.
    NoNewPrivs,
    /// The cell's own /proc with what belongs to the host masked.
    MaskedProc,
    /// The cell's /proc is read-only.
    ReadOnlyProc,
    /// The host's process 1 is somebody else's.
    ForeignInit,
    /// The program's file is somebody else's.
    ForeignProgram,
    /// The launcher is not dumpable, and that counts here.
    Hidden,
    /// The broker wants a word that nobody guesses.
    Phantom,
    /// The broker leads to listed names and to no private address.
    List,
    /// The launcher closes or replaces it in every cell.
    Launcher,
}

impl Stop {
    /// The layer that this is, where it is exactly one.
    pub(super) fn layer(self) -> Option<Layer> {
        match self {
            Stop::Root => Some(Layer::Root),
            Stop::Pid => Some(Layer::Pid),
            Stop::Ipc => Some(Layer::Ipc),
            Stop::Net => Some(Layer::Net),
            _ => None,
        }
    }
}

/// What stops an attack.
pub(super) struct Rule {
    names: &'static [&'static str],
    /// Each alone is enough.
    pub(super) stops: &'static [Stop],
    /// What it means where none holds.
    pub(super) why: &'static str,
}

const fn rule(names: &'static [&'static str], stops: &'static [Stop], why: &'static str) -> Rule {
    Rule { names, stops, why }
}

/// The rule for an attack.
pub(super) fn of(attack: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.names.contains(&attack))
}

pub(super) const ONE_UID: &str = "both agents have one UID, and neither a private root nor Landlock is between them";
pub(super) const NO_RIGHT: &str = "Landlock has no right for it, and both agents have one UID and one root";
pub(super) const NOT_BY_UID: &str = "this kernel does not guard it by UID, as Linux does";
const ONE_PROC: &str = "the host's /proc lists every process";
const TRACE: &str = "both agents have one UID, and the kernel lets a UID trace itself";
const NO_FILTER: &str = "there is no seccomp filter against it";
pub(super) const BROKER_NET: &str = "nothing holds an agent to its broker: it reaches what the host reaches";
pub(super) const HOST_NET: &str = "the host's network is asked for, and the level allows it";
const HOST_FILES: &str = "the modes of the host's files alone decide";
const POWER: &str = "the agent keeps the capabilities of root";
const KILL: &str = "both agents have one UID, and nothing keeps signals in the cell";

use Stop::{
    Domain, Files, Filter, ForeignInit, ForeignProgram, Hidden, Internet, Ipc, IpcCalls, Launcher, List, MaskedProc,
    Modes, Net, NetInProc, NewNamespaces, NoNewPrivs, OtherProcesses, OwnCgroup, OwnInit, OwnProc, PathSockets,
    Phantom, Pid, Plain, Ports, Powerless, PowerlessOnLinux, ProcRules, ReadOnlyProc, Root, Scope, Tracing, Udp, Uid,
    UidInProc, UnixSockets,
};

#[rustfmt::skip]
const RULES: &[Rule] = &[
    // Files and names.
    rule(&["read-file", "list-dir", "hard-link-file", "symlink-file", "append-file", "truncate-file", "plant-file",
        "rename-dir", "unlink-file", "search-files", "list-tmp", "read-tmp-file", "read-shm-file", "plant-tmp-name",
        "cell-dir", "state-dir", "dot-dot", "settings-replace", "settings-plant", "settings-unlink"],
        &[Root, Uid, Files], ONE_UID),
    rule(&["io-uring-open"], &[Root, Uid, Files, Filter], ONE_UID),
    rule(&["stat-file", "chdir-dir", "inotify-parent"], &[Root, Uid], NO_RIGHT),
    rule(&["chmod-file", "touch-file", "chmod-state-dir", "settings-chmod"], &[Root, Uid, Modes], NO_RIGHT),
    rule(&["lease-file", "aio-context", "socket-pairs"], &[Filter], NO_FILTER),
    rule(&["lock-shared"], &[], "a lock on a file that both may read is one lock, whatever else is between them"),
    // gVisor lets every UID watch even a directory of mode 0700.
    rule(&["inotify-dir"], &[Root, UidInProc], NO_RIGHT),
    rule(&["list-shm"], &[Root, Files], "everybody lists the host's /dev/shm"),
    rule(&["write-outside", "kernel-devices", "read-firmware", "write-cgroup", "foreign-hard-link"],
        &[Root, Files], HOST_FILES),
    rule(&["foreign-terminals"], &[Root, Uid, Files], HOST_FILES),
    rule(&["take-terminals"], &[Root, Files], "the host's pseudo-terminals are counted for everybody"),
    rule(&["block-devices"], &[Root, Files, Plain], HOST_FILES),
    rule(&["leaked-dir-open", "leaked-dir-list", "leaked-dir-climb", "leaked-file", "settings-write"], &[Launcher], ""),
    rule(&["tiocsti", "tioclinux"], &[Filter, Launcher], ""),
    rule(&["overwrite-program"], &[Root, Files, Uid, ForeignProgram], "the agent's UID owns the launcher's program"),
    // Processes.
    rule(&["see-pid", "see-strangers", "proc-cmdline", "proc-status"], &[OwnProc, ProcRules], ONE_PROC),
    rule(&["proc-environ", "proc-maps", "proc-fd-open"], &[OwnProc, UidInProc, Domain], TRACE),
    // Its list is a directory of the owner's: the kernel asks for tracing only where a descriptor is looked at.
    rule(&["proc-fd-list"], &[OwnProc, UidInProc, ProcRules], ONE_PROC),
    rule(&["proc-cwd", "proc-root", "proc-mem"], &[OwnProc, Uid, Domain], TRACE),
    rule(&["process-vm-readv", "process-vm-writev", "ptrace-seize"], &[Pid, Uid, Domain, Tracing], TRACE),
    rule(&["pidfd-getfd", "kcmp"], &[Pid, Uid, Domain, Filter], TRACE),
    rule(&["setns-victim", "setns-init"], &[Filter, Powerless], POWER),
    rule(&["launcher-environ", "launcher-fd"], &[OwnProc, UidInProc, Domain, Hidden],
        "this kernel shows them of every process, whoever asks"),
    rule(&["launcher-mem"], &[OwnProc, Uid, Domain, Hidden], TRACE),
    rule(&["launcher-ptrace"], &[Pid, Uid, Domain, Hidden, Tracing], TRACE),
    rule(&["launcher-signal", "kill-usr1", "pidfd-signal", "kill-victim"], &[Pid, Uid, Scope], KILL),
    rule(&["kill-all"], &[Pid, Uid, Scope, OtherProcesses], KILL),
    rule(&["stop-init", "kill-init"], &[OwnInit], "this kernel does not drop such a signal; it ends the own cell"),
    rule(&["init-environ", "init-root", "init-fd"], &[OwnProc, Domain, ForeignInit],
        "the host's process 1 is shown to this UID"),
    rule(&["init-mem"], &[OwnProc, Domain, ForeignInit], "the host's process 1 has this UID"),
    rule(&["init-ptrace"], &[Pid, Domain, ForeignInit, Tracing], "the host's process 1 has this UID"),
    // Sockets and the network.
    rule(&["path-socket", "tmp-socket"], &[Root, Uid, PathSockets], NO_RIGHT),
    rule(&["host-socket", "host-datagram"], &[Root, PathSockets],
        "the modes of sockets with a path alone decide, and everybody's are open"),
    rule(&["abstract-socket"], &[Net, Scope, UnixSockets], "abstract names belong to the network that both share"),
    rule(&["tcp-connect", "tcp-mapped", "host-tcp"], &[Net, Internet, Ports], HOST_NET),
    rule(&["mptcp-connect", "fastopen-connect", "host-mptcp", "host-fastopen"], &[Net, Filter], HOST_NET),
    rule(&["udp-send", "host-udp"], &[Net, Udp], HOST_NET),
    rule(&["egress-address", "egress-name", "egress-plain", "egress-victim"], &[List], ""),
    rule(&["broker-own-phantom", "broker-no-phantom", "broker-guess", "egress-victims-list"], &[Net, Ports, Uid, Phantom], ""),
    rule(&["broker-known"], &[Net, Ports, Uid],
        "the broker knows agents by their UID and their phantom, and both agents have one UID"),
    // gVisor lists the sockets of every network namespace in each.
    rule(&["proc-net"], &[NetInProc, ProcRules],
        "/proc lists the sockets of the host's network, or of every network where the kernel keeps one list"),
    rule(&["socket-packet", "socket-raw"], &[Filter, Powerless], POWER),
    rule(&["socket-vsock", "socket-alg", "socket-sock-diag", "socket-audit", "socket-netfilter", "socket-families",
        "add-key", "int80", "x32", "userfaultfd", "bpf", "perf-event", "kernel-log"], &[Filter], NO_FILTER),
    // Kernel objects.
    rule(&["sysv-shm", "sysv-sem", "sysv-msg", "posix-mq"], &[Ipc, Uid, IpcCalls],
        "both agents have one UID and the host's IPC objects"),
    rule(&["key-by-serial", "key-by-name"], &[Uid, Filter, Launcher], ""),
    // Namespaces, mounts, other entries.
    rule(&["unshare-user", "clone-user", "clone3-user"], &[NewNamespaces], NO_FILTER),
    rule(&["mount-nested"], &[NewNamespaces, Files], "the policy allows nested namespaces, or nothing forbids them"),
    rule(&["unshare-others"], &[NewNamespaces, Powerless], POWER),
    rule(&["mount", "fsopen", "open-tree", "chroot"], &[NewNamespaces, Powerless], POWER),
    rule(&["open-by-handle"], &[Filter, Powerless], POWER),
    // Privilege and the kernel's files.
    // gVisor asks for no capability here: its niceness and its score decide nothing, and its nodes lead to no device.
    rule(&["mknod", "raise-nice", "oom-score"], &[PowerlessOnLinux], "this kernel asks for no capability here"),
    rule(&["set-uid-victim", "set-groups", "set-capabilities", "raise-limits", "real-time"], &[Powerless], POWER),
    rule(&["set-uid-root"], &[Plain], "the launcher is root and lends the agent no other UID"),
    rule(&["set-id-programs"], &[NoNewPrivs, Root], "set-id programs count"),
    rule(&["write-sysctl", "write-core-pattern", "write-sysrq"], &[ReadOnlyProc, Files, Plain],
        "the agent has UID 0, which owns the files of the kernel"),
    rule(&["read-kcore", "read-timers"], &[MaskedProc, ProcRules, Plain],
        "the agent has UID 0, which owns the files of the kernel"),
    rule(&["cgroup-path"], &[OwnCgroup], "the kernel names the control group as the launcher sees it"),
    rule(&["read-keys", "read-host-proc"], &[MaskedProc, ProcRules], "the host's /proc is shown"),
    // Scheduling: what names another process.
    rule(&["prlimit"], &[Pid, Uid, OtherProcesses], KILL),
    rule(&["signal-by-owner"], &[Pid, Uid, Scope, OtherProcesses], KILL),
    rule(&["setpriority", "setpriority-user", "sched-setaffinity", "sched-setscheduler", "ioprio-set",
        "ioprio-set-user"], &[Pid, UidInProc, OtherProcesses],
        "nothing keeps calls on other processes away from the victim"),
];
