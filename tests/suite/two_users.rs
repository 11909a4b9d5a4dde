//! Two users at once: A's agent is the victim, B's agent tries everything, each in a cell of its own.
//!
//! A tier is what stands between the two. The lower ones are made by switching layers off: they show what a host that
//! lacks them leaves open, and that the attacks work where nothing stops them.

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Mutex;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use oubliette::attack::{ATTACKS, Target};
use serde_json::Value;

use crate::attack::host_refuses;
use crate::need;
use crate::stage::{Done, Running, Stage, Who, descendants};

/// One encounter at a time: each keeps a core busy.
static ALONE: Mutex<()> = Mutex::new(());

const NAMESPACES: [&str; 5] = ["pid", "root", "ipc", "uts", "net"];
const LANDLOCK: [&str; 3] = ["landlock-fs", "landlock-net", "landlock-scope"];

/// What stands between A and B.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Modes and names: one UID, no namespace, no Landlock, no seccomp.
    Permissions,
    /// Landlock and seccomp: one UID, no namespace.
    Landlock,
    /// A UID for each run, Landlock and seccomp: no namespace.
    Uid,
    /// Everything that the host has.
    Full,
}

/// What B sees of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Net {
    /// The host's.
    Host,
    /// The host's without a port.
    Ports,
    /// None.
    None,
}

/// Attack; `X` where it works and `.` where it does not, in the tiers from permissions to full with the host's network
/// (`?` where the host decides); and why it is open wherever it is open above permissions.
#[rustfmt::skip]
pub const MATRIX: &[(&str, &str, &str)] = &[
    // Files and names.
    ("read-file", "X...", ""), ("list-dir", "X...", ""), ("hard-link-file", "X...", ""), ("symlink-file", "X...", ""),
    ("append-file", "X...", ""), ("truncate-file", "X...", ""), ("plant-file", "X...", ""), ("rename-dir", "X...", ""),
    ("unlink-file", "X...", ""), ("io-uring-open", "X...", ""),
    ("stat-file", "XX..", NO_RIGHT), ("chdir-dir", "XX..", NO_RIGHT), ("inotify-dir", "XX..", NO_RIGHT),
    ("inotify-parent", "XX..", NO_RIGHT), ("chmod-file", "X...", ""), ("touch-file", "X...", ""),
    ("chmod-state-dir", "X...", ""), ("lease-file", "X...", ""), ("lock-shared", "XXXX", ONE_LOCK),
    ("list-tmp", "X...", ""), ("read-tmp-file", "X...", ""), ("list-shm", "X...", ""), ("read-shm-file", "X...", ""),
    ("plant-tmp-name", "X...", ""), ("search-files", "X...", ""),
    ("cell-dir", "X...", ""), ("state-dir", "X...", ""), ("dot-dot", "X...", ""),
    ("write-outside", "?...", ""), ("foreign-hard-link", "?...", ""),
    // What was left open, and terminals: the launcher closes and replaces them, whatever the host lacks.
    ("leaked-dir-open", "....", ""), ("leaked-dir-list", "....", ""), ("leaked-dir-climb", "....", ""),
    ("leaked-file", "....", ""), ("tiocsti", "....", ""), ("tioclinux", "....", ""), ("foreign-terminals", "?...", ""),
    ("take-terminals", "?...", ""), ("block-devices", "....", ""), ("kernel-devices", "?...", ""),
    // Processes.
    ("see-pid", "X...", ""), ("see-strangers", "X...", ""), ("proc-cmdline", "X...", ""), ("proc-status", "X...", ""),
    ("proc-environ", "X...", ""), ("proc-maps", "X...", ""), ("proc-fd-list", "X...", ""), ("proc-fd-open", "X...", ""),
    ("proc-cwd", "X...", ""), ("proc-root", "X...", ""), ("proc-mem", "X...", ""), ("process-vm-readv", "X...", ""),
    ("process-vm-writev", "X...", ""), ("ptrace-seize", "X...", ""), ("pidfd-getfd", "X...", ""), ("kcmp", "X...", ""),
    ("setns-victim", "....", ""), ("launcher-environ", "....", ""), ("launcher-mem", "....", ""),
    ("launcher-fd", "....", ""), ("launcher-ptrace", "....", ""), ("launcher-signal", "X...", ""),
    ("init-environ", "....", ""), ("init-root", "....", ""), ("init-fd", "....", ""), ("init-mem", "....", ""),
    ("init-ptrace", "....", ""), ("setns-init", "....", ""), ("overwrite-program", "....", ""),
    // Sockets and the network.
    ("abstract-socket", "X...", ""), ("path-socket", "X...", ""), ("tmp-socket", "X...", ""),
    ("socket-pairs", "X...", ""),
    ("tcp-connect", "XXXX", HOST_NET), ("tcp-mapped", "XXXX", HOST_NET), ("mptcp-connect", "?...", ""),
    ("fastopen-connect", "?...", ""), ("udp-send", "XXXX", HOST_NET), ("proc-net", "X..X", "the host's network is asked for, and /proc lists its sockets"),
    ("socket-vsock", "?...", ""), ("socket-packet", "....", ""), ("socket-raw", "....", ""), ("socket-alg", "?...", ""),
    ("socket-sock-diag", "?...", ""), ("socket-audit", "?...", ""), ("socket-netfilter", "?...", ""),
    ("socket-families", "?...", ""),
    ("host-tcp", "XXXX", HOST_NET), ("host-mptcp", "?...", ""), ("host-fastopen", "?...", ""), ("host-udp", "XXXX", HOST_NET),
    // There is none; `doctor --attack --network broker` has its own.
    ("broker-own-phantom", "....", ""), ("broker-no-phantom", "....", ""), ("broker-guess", "....", ""),
    ("broker-known", "....", ""), ("egress-address", "....", ""), ("egress-name", "....", ""), ("egress-plain", "....", ""),
    ("egress-victim", "....", ""), ("egress-victims-list", "....", ""), ("host-socket", "X...", ""),
    ("host-datagram", "X...", ""),
    // Kernel objects.
    ("sysv-shm", "X...", ""), ("sysv-sem", "X...", ""), ("sysv-msg", "X...", ""), ("posix-mq", "X...", ""),
    ("key-by-serial", "....", ""), ("key-by-name", "....", ""), ("add-key", "X...", ""),
    // Namespaces, mounts, other entries.
    ("unshare-user", "X...", ""), ("clone-user", "?...", ""), ("clone3-user", "?...", ""), ("unshare-others", "....", ""),
    ("mount", "....", ""), ("mount-nested", "?...", ""), ("fsopen", "....", ""), ("open-tree", "....", ""),
    ("chroot", "....", ""), ("mknod", "....", ""), ("open-by-handle", "....", ""), ("int80", "?...", ""),
    ("x32", "?...", ""), ("userfaultfd", "?...", ""), ("bpf", "?...", ""), ("perf-event", "?...", ""),
    ("kernel-log", "?...", ""),
    // Privilege and the kernel's files.
    ("set-uid-root", "....", ""), ("set-uid-victim", "....", ""), ("set-groups", "....", ""),
    ("set-capabilities", "....", ""), ("set-id-programs", "....", ""), ("write-sysctl", "....", ""),
    ("write-core-pattern", "....", ""), ("write-sysrq", "....", ""), ("read-kcore", "....", ""), ("read-keys", "?...", ""),
    ("read-timers", "....", ""), ("read-firmware", "?...", ""), ("write-cgroup", "?...", ""),
    ("read-host-proc", "X...", ""), ("aio-context", "X...", ""),
    // Below which group of the host's the launcher runs is the host's.
    ("cgroup-path", "???.", ""),
    // Scheduling and limits.
    ("raise-limits", "....", ""), ("raise-nice", "....", ""), ("real-time", "....", ""), ("oom-score", "....", ""),
    ("setpriority-user", "X...", ""), ("ioprio-set-user", "X...", ""),
    ("prlimit", "X...", ""), ("setpriority", "X...", ""), ("sched-setaffinity", "X...", ""),
    ("sched-setscheduler", "X...", ""), ("ioprio-set", "X...", ""),
    // The agent's own settings.
    ("settings-write", "....", ""), ("settings-chmod", "X...", ""), ("settings-replace", "X...", ""),
    ("settings-plant", "X...", ""), ("settings-unlink", "X...", ""),
    // Signals.
    ("signal-by-owner", "X...", ""),
    ("kill-usr1", "X...", ""), ("pidfd-signal", "X...", ""), ("kill-all", "X...", ""), ("stop-init", "....", ""),
    ("kill-victim", "X...", ""), ("kill-init", "....", ""),
];

const NO_RIGHT: &str = "Landlock has no right for it, and both agents have the UID of the plain user who started them";
const HOST_NET: &str = "the host's network is asked for, and the level allows every port and UDP";

const ONE_LOCK: &str = "a lock on a file that both may read is one lock";

/// What no port, no UDP or no network stops.
const BY_NETWORK: [&str; 9] = [
    "tcp-connect",
    "tcp-mapped",
    "mptcp-connect",
    "fastopen-connect",
    "udp-send",
    "host-tcp",
    "host-mptcp",
    "host-fastopen",
    "host-udp",
];

impl Tier {
    /// The layers that it lacks.
    pub fn off(self) -> Vec<&'static str> {
        match self {
            Tier::Permissions => {
                NAMESPACES.into_iter().chain(["uid"]).chain(LANDLOCK).chain(["path-sockets", "seccomp"]).collect()
            }
            Tier::Landlock => NAMESPACES.into_iter().chain(["uid"]).collect(),
            Tier::Uid => NAMESPACES.to_vec(),
            Tier::Full => Vec::new(),
        }
    }

    /// What the matrix says.
    pub fn expected(self, net: Net, row: &(&str, &str, &str)) -> char {
        let closed = match row.0 {
            "proc-net" => net == Net::None && self != Tier::Permissions,
            name => net != Net::Host && BY_NETWORK.contains(&name),
        };
        if closed { '.' } else { row.1.chars().nth(self as usize).unwrap() }
    }
}

struct Encounter {
    verdicts: BTreeMap<String, (String, String)>,
    /// What A says was done to it, unless it was killed.
    damage: Option<Vec<String>>,
}

/// A's launcher, and what B may know of A.
fn victim(stage: &Stage, who: Who, tier: Tier, net: Net) -> (Running, Target) {
    let mut command = stage.run(who, &[]);
    let network = if net == Net::None { "none" } else { "host" };
    command.arg("--policy").arg(stage.policy(&tier.off(), None)).args(["--network", network, "--quiet"]);
    command.args(["--agent", "none", "--user", "a", "--"]).arg(&stage.program).arg("__victim");
    let mut running = Running::start(command.stdin(Stdio::piped()));
    let line = running.line();
    let mut target: Target = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    target.launcher_pid = Some(running.pid());
    target.host_pid = descendants(running.pid()).last().copied();
    target.cell_dir = stage.cells(who).pop();
    target.state_dir = Some(stage.state(who));
    target.own_init = tier == Tier::Full;
    // Nobody else has the UIDs of this stage.
    target.allow_kill_all = true;
    // B's own: its working directory lies beside them where there is no private root.
    let settings = if tier == Tier::Full { "/etc/oubliette/settings.json" } else { "../settings/settings.json" };
    target.settings = Some(settings.into());
    (running, target)
}

/// An agent without arguments of its own, but with settings.
fn agent_with_settings(stage: &Stage) -> PathBuf {
    let text = include_str!("../../policies/agents/claude.toml");
    let settings = &text[text.find("[settings]").unwrap()..];
    let agents = stage.path().join("policies/agents");
    fs::create_dir_all(&agents).unwrap();
    fs::write(agents.join("probe.toml"), format!("title = \"a probe\"\ncommands = [\"oubliette\"]\n{settings}"))
        .unwrap();
    stage.path().join("policies")
}

/// A terminal: its master and its slave.
fn terminal() -> (nix::pty::PtyMaster, OwnedFd) {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = nix::pty::posix_openpt(flags).unwrap();
    nix::pty::grantpt(&master).unwrap();
    nix::pty::unlockpt(&master).unwrap();
    let slave = nix::pty::ptsname_r(&master).unwrap();
    let slave = open(slave.as_str(), flags, Mode::empty()).unwrap();
    (master, slave)
}

/// B's run to its end, on a terminal and with a directory and a file of A's that whoever started it left open.
fn attack(stage: &Stage, who: Who, tier: Tier, net: Net, target: &Target) -> Done {
    let dir = target.dirs.first().map(|place| place.path.strip_prefix("/").unwrap().to_owned()).unwrap();
    let dir = PathBuf::from(format!("/proc/{}/root", target.host_pid.unwrap())).join(dir).display().to_string();
    let leak = r#"exec 5<"$1" 6<"$1/secret.txt"; shift; exec "$@""#;
    let (_master, slave) = terminal();
    let mut command = stage.run(who, &["setsid", "--ctty", "sh", "-c", leak, "sh", &dir]);
    let no_port = "[network]\nconnect = []\nbind = []\nudp = false";
    let network = if net == Net::None { "none" } else { "host" };
    command.arg("--policy").arg(stage.policy(&tier.off(), (net == Net::Ports).then_some(no_port)));
    command.arg("--policy-dir").arg(agent_with_settings(stage)).args(["--agent", "probe"]);
    command.args(["--network", network, "--quiet", "--user", "b", "--"]).arg(&stage.program).arg("__attack");
    command.arg(serde_json::to_string(target).unwrap()).stdin(Stdio::from(slave));
    Running::start(&mut command).end()
}

/// A listener that takes connections, and a datagram socket that answers, outside of both cells.
struct HostServer {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl HostServer {
    fn start() -> HostServer {
        let (tcp, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let answers = udp.try_clone().unwrap();
        std::thread::spawn(move || {
            // Until the word of its owner.
            while let Ok((length, from)) = answers.recv_from(&mut [0; 64]) {
                if length == 0 {
                    return;
                }
                let _ = answers.send_to(b"host", from);
            }
        });
        HostServer { tcp, udp }
    }

    fn ports(&self) -> (Option<u16>, Option<u16>) {
        (Some(self.tcp.local_addr().unwrap().port()), Some(self.udp.local_addr().unwrap().port()))
    }
}

impl Drop for HostServer {
    fn drop(&mut self) {
        let _ = self.udp.send_to(&[], self.udp.local_addr().unwrap());
    }
}

/// Sockets with a path that everybody may connect to, outside of both cells.
fn host_paths(stage: &Stage, target: &mut Target) -> (UnixListener, UnixDatagram) {
    let [stream, datagram] = ["stream", "datagram"].map(|name| stage.path().join(name));
    let held = (UnixListener::bind(&stream).unwrap(), UnixDatagram::bind(&datagram).unwrap());
    for path in [&stream, &datagram] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    (target.host_socket, target.host_datagram) = (Some(stream), Some(datagram));
    held
}

fn encounter(who: Who, tier: Tier, net: Net) -> Encounter {
    let stage = Stage::new();
    let host = HostServer::start();
    let (a, mut target) = victim(&stage, who, tier, net);
    (target.host_tcp, target.host_udp) = host.ports();
    let _held = host_paths(&stage, &mut target);
    let b = attack(&stage, who, tier, net, &target);
    let lines: Result<Vec<Value>, _> = b.out.lines().map(serde_json::from_str).collect();
    let mut lines = lines.unwrap_or_else(|error| panic!("{error}: {b:?}"));
    let last = lines.pop().unwrap_or_else(|| panic!("no verdict: {b:?}"));
    assert_eq!(last["done"], ATTACKS.len(), "the last line counts the attacks: {b:?}");
    assert_eq!((b.status.code(), b.err.as_str()), (Some(0), ""));
    let a = a.end();
    assert_eq!(a.err, "", "what A's launcher had to say");
    let damage = a.status.success().then(|| {
        let report: Value = serde_json::from_str(a.out.lines().last().unwrap_or_default()).unwrap();
        let hurt =
            report["damage"].as_array().unwrap().iter().map(|entry| entry["object"].as_str().unwrap().to_owned());
        let mut hurt: Vec<String> = hurt.collect();
        hurt.sort();
        hurt
    });
    // Where A was killed only its cell knows what it had made.
    target.remove();
    assert_eq!(stage.cells(who), Vec::<PathBuf>::new(), "both cells are gone");
    let word = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let verdict = |line: &Value| (word(line, "attack"), (word(line, "verdict"), word(line, "detail")));
    Encounter { verdicts: lines.iter().map(verdict).collect(), damage }
}

/// Every attack that came out otherwise than the matrix says.
fn differences(met: &Encounter, tier: Tier, net: Net) -> Vec<String> {
    let mut differences = Vec::new();
    for row in MATRIX {
        let (verdict, detail) = &met.verdicts[row.0];
        let expected = match tier.expected(net, row) {
            'X' if tier == Tier::Permissions && host_refuses(row.0) => '.',
            other => other,
        };
        if expected != '?' && (expected == 'X') != (verdict == "open") {
            differences.push(format!("{}: expected {expected}, is {verdict}: {detail}", row.0));
        }
    }
    differences
}

/// Both in the same tier, and what must be left of A.
fn meet(who: Who, tier: Tier, net: Net, damage: Option<&[&str]>) {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    let met = encounter(who, tier, net);
    assert_eq!(differences(&met, tier, net), Vec::<String>::new(), "{who:?} {tier:?} {net:?}");
    let (_, settings) = &met.verdicts["settings-write"];
    assert!(["EROFS", "EACCES"].iter().any(|errno| settings.contains(errno)), "the settings are there: {settings}");
    let damage = damage.map(|objects| objects.iter().map(|&object| object.to_owned()).collect());
    assert_eq!(met.damage, damage, "what was done to A: {who:?} {tier:?} {net:?}");
}

/// A plan for these layers, so that a host without one skips by name.
pub fn offers(who: Who, tier: Tier) -> bool {
    if who == Who::Root && !need::as_root() {
        return false;
    }
    let stage = Stage::new();
    let mut command = stage.command(who, &[]);
    command
        .args(["explain", "--json", "--policy"])
        .arg(stage.policy(&tier.off(), None))
        .arg("--state-dir")
        .arg(stage.state(who));
    let done = Running::start(command.args(["--network", "none", "--agent", "none", "--", "/bin/true"])).end();
    let said: Value = serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    let layers = said["plan"]["layers"].as_array().unwrap();
    let missing =
        layers.iter().filter(|layer| layer["decision"] == "degrade").map(|layer| layer["layer"].as_str().unwrap());
    // Neither decides what one agent can do to another, and a plain user never has them.
    let missing: Vec<&str> = missing
        .filter(|layer| !(["cgroup", "settings"].contains(layer) || (who == Who::User && *layer == "uid")))
        .collect();
    missing.iter().all(|layer| need::need(layer, false))
}

#[test]
fn every_attack_has_its_row_and_what_is_open_has_its_reason() {
    let mut rows: Vec<&str> = MATRIX.iter().map(|row| row.0).collect();
    let mut attacks: Vec<&str> = ATTACKS.iter().map(|attack| attack.name).collect();
    rows.sort_unstable();
    attacks.sort_unstable();
    assert_eq!(rows, attacks);
    for (name, row, why) in MATRIX {
        assert_eq!(row.len(), 4, "{name}");
        assert_eq!(row[1..].contains('X'), !why.is_empty(), "{name}: a reason exactly where it is open");
    }
}

#[test]
fn root_with_everything_and_no_network_leaves_nothing_open() {
    if offers(Who::Root, Tier::Full) {
        meet(Who::Root, Tier::Full, Net::None, Some(&[]));
    }
}

#[test]
fn root_with_everything_and_no_port_leaves_the_list_of_sockets() {
    if offers(Who::Root, Tier::Full) {
        meet(Who::Root, Tier::Full, Net::Ports, Some(&[]));
    }
}

#[test]
fn root_with_everything_and_the_hosts_network_leaves_loopback() {
    if offers(Who::Root, Tier::Full) {
        meet(Who::Root, Tier::Full, Net::Host, Some(&["tcp", "udp"]));
    }
}

#[test]
fn a_plain_user_with_everything_and_no_network_leaves_nothing_open() {
    if offers(Who::User, Tier::Full) {
        meet(Who::User, Tier::Full, Net::None, Some(&[]));
    }
}

#[test]
fn a_plain_user_with_everything_and_no_port_leaves_the_list_of_sockets() {
    if offers(Who::User, Tier::Full) {
        meet(Who::User, Tier::Full, Net::Ports, Some(&[]));
    }
}

#[test]
fn a_plain_user_with_everything_and_the_hosts_network_leaves_loopback() {
    if offers(Who::User, Tier::Full) {
        meet(Who::User, Tier::Full, Net::Host, Some(&["tcp", "udp"]));
    }
}

#[test]
fn uids_and_landlock_without_namespaces_leave_the_hosts_loopback_alone() {
    if offers(Who::Root, Tier::Uid) {
        meet(Who::Root, Tier::Uid, Net::None, Some(&[]));
        meet(Who::Root, Tier::Uid, Net::Ports, Some(&[]));
        meet(Who::Root, Tier::Uid, Net::Host, Some(&["tcp", "udp"]));
    }
}

#[test]
fn landlock_with_one_uid_leaves_what_it_has_no_right_for() {
    if offers(Who::User, Tier::Landlock) {
        meet(Who::User, Tier::Landlock, Net::None, Some(&[]));
        meet(Who::User, Tier::Landlock, Net::Ports, Some(&[]));
        meet(Who::User, Tier::Landlock, Net::Host, Some(&["tcp", "udp"]));
    }
}

#[test]
fn permissions_with_one_uid_leave_all_of_it() {
    if offers(Who::User, Tier::Permissions) {
        meet(Who::User, Tier::Permissions, Net::Host, None);
    }
}
