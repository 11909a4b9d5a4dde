//! The real program in the environments that services run it in: Linux as root and as a plain user, containers, gVisor.
//! Each declares what it must enforce and what it cannot keep apart.

mod agent; // the real agent at every level in each of them
mod attacks; // `doctor --attack` in each, and the table that README links
mod filter; // seccomp filters of a container runtime and of an old kernel
mod kills; // `kill -9` at every stage and at random moments in each
mod machine; // another kernel, in a virtual machine
pub mod sandbox; // makes an environment and runs a script in it

use std::collections::BTreeMap;

use sandbox::{Kind, PLAIN, Sandbox, Scratch, sections};

use crate::need;

/// What holds in an environment.
struct Expected {
    kind: Kind,
    uid: u32,
    /// Layers that must be in force.
    enforces: &'static [&'static str],
    /// What a neighbour can do to a file whose path he was told.
    open: &'static [&'static str],
    /// The layer that `--require all` misses first, and the remedy.
    lacks: Option<(&'static str, &'static str)>,
}

const EVERYWHERE: [&str; 4] = ["seccomp", "capabilities", "no-new-privs", "limits"];
const LANDLOCK: [&str; 3] = ["landlock-fs", "landlock-net", "landlock-scope"];
const AS_ROOT: (&str, &str) = ("uid", "run as root with CAP_SETUID");

impl Expected {
    /// Runs the checks and compares each. Nothing where the environment cannot be made here.
    fn check(&self, name: &'static str) {
        let sandbox = Sandbox { kind: self.kind, uid: self.uid, host_network: false };
        if !need::as_root() || !sandbox.there() {
            return;
        }
        let scratch = Scratch::new();
        scratch.file("checks.sh", include_bytes!("environments/checks.sh"));
        scratch.file("token", format!("token-{:032x}", rand::random::<u128>()).as_bytes());
        let mark = rand::random_range(10_000..100_000).to_string();
        let text = sandbox.run(&scratch, &[("S", "/tmp/scratch"), ("MARK", &mark)], &["sh", "/mnt/checks.sh"]);
        let said = sections(&text);
        assert!(said.contains_key("explain"), "the script ended before its end: {text}");
        self.check_run(&said);
        self.check_neighbours(&said);
        self.check_refusal(&said["all"]);
        for layer in EVERYWHERE.iter().chain(self.enforces) {
            let line = said["explain"].lines().find(|line| line.trim_start().starts_with(&format!("{layer} ")));
            assert!(line.is_some_and(|line| line.contains(" enforce ")), "{layer}: {}", said["explain"]);
        }
        golden(name, &said["explain"]);
    }

    /// Whether the agent has a UID of its own.
    fn own_uid(&self) -> bool {
        self.enforces.contains(&"uid")
    }

    fn check_run(&self, said: &BTreeMap<String, String>) {
        let run: Vec<&str> = said["run"].lines().collect();
        let [uid, text, home, work, status] = run[..] else { panic!("{run:?}") };
        assert_eq!(said["id"], format!("{}\n", self.uid));
        assert_eq!(uid != said["id"].trim(), self.own_uid(), "{run:?}");
        assert_eq!((text, status), ("text", "status 7"), "{run:?}");
        assert_eq!(home, format!("700 {uid}"));
        assert_eq!(work == "/work", self.enforces.contains(&"root"), "{run:?}");
        // A tmpfs has no more, and what is no tmpfs is counted.
        let disk = if self.enforces.contains(&"root") { "status 9\n" } else { "status 125\n" };
        let same = [
            ("disk", disk),
            ("network", "ran\nstatus 0\n"),
            ("statuses", "deadline 124\nsignal 137\nmissing 127\nnot executable 126\n"),
            ("orphans", "status 3\nalive 0\n"),
            ("credential", "status 0\nhanded over\n"),
            ("killed", "status 0\nalive 0 left 0\n"),
            ("outputs", "status 0\none\ntwo\nnew\n--- a/a\n+++ b/a\n+two\n--- /dev/null\n+++ b/b\n+new\n"),
            ("hostile", "status 0\nleft 0\n"),
            ("left", "0\n"),
        ];
        for (section, expected) in same {
            assert_eq!(said[section], expected, "{section}");
        }
        assert!(said["term"].ends_with("status 9\nup\nheard\n"), "{}", said["term"]);
        assert!(said["explain"].ends_with("status 0\n"), "{}", said["explain"]);
        // A Landlock domain without a /proc of its own does not show it.
        if !said["posture"].contains("Permission denied") {
            let posture: String = said["posture"].split_whitespace().collect();
            let zeros = "0000000000000000";
            assert!(posture.contains(&format!("CapEff:{zeros}")) && posture.contains("Seccomp:2"), "{posture}");
        }
    }

    fn check_neighbours(&self, said: &BTreeMap<String, String>) {
        let neighbours = &said["neighbours"];
        let open: Vec<&str> = neighbours.lines().filter(|line| line.ends_with(" the file")).collect();
        assert_eq!(open, self.open, "{neighbours}");
        // However open the files are, nobody ends another one's agent.
        assert!(neighbours.contains("status 0\n"), "{neighbours}");
        let written = self.open.contains(&"writes the file");
        assert_eq!(neighbours.ends_with("private\n"), !written, "{neighbours}");
        let secret = &said["secret"];
        assert!(secret.ends_with("in arguments and environments 0\nstatus 0\n"), "{secret}");
        assert_eq!(secret.starts_with("seen by a neighbour 0\n"), !self.open.contains(&"reads the file"), "{secret}");
    }

    fn check_refusal(&self, said: &str) {
        let Some((layer, remedy)) = self.lacks else {
            assert_eq!(said, "status 0\n");
            return;
        };
        assert!(said.starts_with(&format!("oubliette: cannot enforce layer {layer}: ")), "{said}");
        assert!(said.contains("\nhint: ") && said.contains(remedy), "{said}");
        assert!(said.ends_with("\nstatus 125\n"), "{said}");
    }
}

/// Compares what `explain` says with a file; `OUBLIETTE_BLESS=1` writes it. Versions and files are the host's.
fn golden(name: &str, text: &str) {
    let mut kept = String::new();
    for part in text.split("\n\n").filter(|part| !part.starts_with("files\n") && !part.starts_with("values\n")) {
        for line in part.lines() {
            let line = line.split(", ABI ").next().unwrap();
            let line = if line.starts_with("  cgroup") { line.split(" v").next().unwrap() } else { line };
            // Which version of control groups there is, and how many open files, is the host's.
            let line = line.replace(" without swap, 256MiB of socket buffers", "").replace(" without swap", "");
            let hosts = ["  program ", "  PATH=", "  SHELL=", "  uncounted   open files:"]
                .iter()
                .any(|start| line.starts_with(start));
            kept += if hosts { "" } else { line.trim_end() };
            kept += if hosts { "" } else { "\n" };
        }
        kept.push('\n');
    }
    let file = need::root().join(format!("tests/suite/environments/golden/{name}.txt"));
    if std::env::var_os("OUBLIETTE_BLESS").is_some() {
        std::fs::write(&file, &kept).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(kept, expected, "{}; OUBLIETTE_BLESS=1 writes it", file.display());
}

#[test]
fn linux_as_root() {
    let enforces = &["pid", "root", "ipc", "uts", "net", "uid", "landlock-fs", "landlock-scope", "cgroup"];
    Expected { kind: Kind::Linux, uid: 0, enforces, open: &[], lacks: None }.check("linux-root");
}

#[test]
fn linux_as_a_plain_user() {
    let enforces = &["pid", "root", "ipc", "uts", "net", "landlock-fs", "landlock-scope"];
    Expected { kind: Kind::Linux, uid: PLAIN, enforces, open: &[], lacks: Some(AS_ROOT) }.check("linux-user");
}

#[test]
fn a_plain_user_without_user_namespaces() {
    let open = &["sees the file"];
    Expected { kind: Kind::NoUserNamespaces, uid: PLAIN, enforces: &LANDLOCK, open, lacks: Some(AS_ROOT) }
        .check("no-user-namespaces");
}

#[test]
fn a_plain_user_without_landlock() {
    let enforces = &["pid", "root", "ipc", "uts", "net"];
    Expected { kind: Kind::NoLandlock, uid: PLAIN, enforces, open: &[], lacks: Some(AS_ROOT) }.check("no-landlock");
}

#[test]
fn a_container_as_root() {
    let enforces = &["uid", "landlock-fs", "landlock-net", "landlock-scope"];
    let lacks = Some(("cgroup", "mount it writable"));
    Expected { kind: Kind::Container, uid: 0, enforces, open: &[], lacks }.check("container-root");
}

#[test]
fn a_container_as_a_plain_user() {
    let lacks = Some(AS_ROOT);
    let open = &["sees the file"];
    Expected { kind: Kind::Container, uid: PLAIN, enforces: &LANDLOCK, open, lacks }.check("container-user");
}

#[test]
fn a_container_without_proc_is_refused() {
    for uid in [0, PLAIN] {
        let sandbox = Sandbox { kind: Kind::NoProc, uid, host_network: false };
        if !need::as_root() || !sandbox.there() {
            return;
        }
        let script = "/mnt/oubliette run -- true; echo $?; /mnt/oubliette explain -- true; echo $?; ls -A /tmp";
        let said = sandbox.run(&Scratch::new(), &[], &["sh", "-c", script]);
        let refused = "oubliette: cannot use this host: it shows no /proc\n\
                       hint: mount it in the container: mount -t proc proc /proc\n125\n";
        assert_eq!(said, refused.repeat(2));
    }
}

/// Shared memory that is small or absent is nothing that a launch needs.
#[test]
fn a_container_with_little_or_no_shared_memory() {
    const SCRIPT: &str = "
        /mnt/oubliette run -q -- sh -c 'echo ran; ls -d /dev/shm; df -k /dev/shm | tail -n 1' 2>&1 | head -n 1
        /mnt/oubliette run -q -- sh -c 'exit 7'; echo $?
        find /tmp/oubliette-*/cells -mindepth 1";
    for (kind, uid) in [Kind::NoShm, Kind::SmallShm].into_iter().flat_map(|kind| [(kind, 0), (kind, PLAIN)]) {
        let sandbox = Sandbox { kind, uid, host_network: false };
        if !need::as_root() || !sandbox.there() {
            return;
        }
        assert_eq!(sandbox.run(&Scratch::new(), &[], &["sh", "-c", SCRIPT]), "ran\n7\n", "{kind:?} {uid}");
    }
}

/// The only place for cells is full: before a launch, by a workspace that does not fit, and by the agent.
#[test]
fn a_container_whose_tmp_is_full() {
    const SCRIPT: &str = "
        O=/mnt/oubliette
        left() { find /tmp/oubliette-*/cells -mindepth 1; }
        head -c 99999 /dev/zero >/tmp/x 2>/dev/null
        $O run -q -- true; echo $?
        rm /tmp/x; mkdir /tmp/in; head -c 40000 /dev/zero >/tmp/in/file
        $O run -q --copy-in /tmp/in -- true; echo $?; left
        rm -r /tmp/in
        $O run -q -- sh -c 'head -c 99999 /dev/zero >file 2>/dev/null; echo full; exit 7'; echo $?; left
        $O run -q -- true; echo $?; left";
    for uid in [0, PLAIN] {
        let sandbox = Sandbox { kind: Kind::SmallTmp, uid, host_network: false };
        if !need::as_root() || !sandbox.there() {
            return;
        }
        let said = sandbox.run(&Scratch::new(), &[], &["sh", "-c", SCRIPT]);
        let lines: Vec<&str> = said.lines().collect();
        let [full, hint, status, fill, fill_hint, fill_status, rest @ ..] = &lines[..] else { panic!("{uid}: {said}") };
        assert!(full.starts_with("oubliette: cannot ") && full.contains("No space left"), "{uid}: {said}");
        assert!(fill.starts_with("oubliette: cannot fill the workspace"), "{uid}: {said}");
        assert!(hint.starts_with("hint: ") && fill_hint.starts_with("hint: "), "{uid}: {said}");
        assert_eq!((*status, *fill_status, rest), ("125", "125", &["full", "7", "0"][..]), "{uid}: {said}");
    }
}

#[test]
fn gvisor_as_root() {
    let lacks = Some(("landlock-fs", "use a kernel from 5.13"));
    Expected { kind: Kind::Gvisor, uid: 0, enforces: &["pid", "net", "uid"], open: &[], lacks }.check("gvisor-root");
}

#[test]
fn gvisor_as_a_plain_user() {
    // One UID, and nothing that knows more than UIDs: the files of every cell would be open to every other, so there is
    // no second one.
    let enforces = &["pid", "ipc", "uts", "net", "alone"];
    Expected { kind: Kind::Gvisor, uid: PLAIN, enforces, open: &[], lacks: Some(AS_ROOT) }.check("gvisor-user");
}

#[test]
fn linux_6_1_as_root() {
    let enforces = &["pid", "root", "ipc", "uts", "net", "uid", "landlock-fs", "cgroup"];
    let lacks = Some(("landlock-scope", "use a kernel from 6.12"));
    Expected { kind: Kind::Machine, uid: 0, enforces, open: &[], lacks }.check("linux-6.1-root");
}

#[test]
fn linux_6_1_as_a_plain_user() {
    let enforces = &["pid", "root", "ipc", "uts", "net", "landlock-fs", "cgroup"];
    Expected { kind: Kind::Machine, uid: PLAIN, enforces, open: &[], lacks: Some(AS_ROOT) }.check("linux-6.1-user");
}

/// What the bounds come to in the unified hierarchy, for root and for a user to whom a group is delegated.
#[test]
fn control_groups_of_the_unified_hierarchy() {
    if !machine::there() {
        return;
    }
    let level = include_str!("../../policies/developer.toml");
    let start = level.find("[limits]").unwrap();
    let end = level[start..].find("\n\n").map_or(level.len(), |length| start + length);
    let limits = "[limits]\nmemory = \"64MiB\"\nprocesses = 30\ncpu-percent = 50";
    let small = [&level[..start], limits, &level[end..]].concat();
    let at_once = |uid: u32| {
        let scratch = Scratch::new();
        scratch.file("small.toml", small.as_bytes());
        scratch.file("groups.sh", include_bytes!("environments/groups.sh"));
        let variables = [("S", "/tmp/scratch")];
        let text = machine::run(&scratch, uid, machine::Root::Tmpfs, &variables, &["sh", "/mnt/groups.sh"]);
        let said = sections(&text);
        let bounds = "67108864\n30\n50000 100000\n0\n1\n2\nstatus 0\n0::/";
        assert_eq!(said["bounds"], format!("{bounds}\n"), "the group is / in the cell, and /sys empty: {text}");
        let (status, peak) = said["memory"].split_once('\n').unwrap();
        assert_eq!(status, "status 137", "{text}");
        let peak: u64 = peak.trim().strip_prefix("\"peak-cell\":").unwrap().parse().unwrap();
        assert!((60 << 20..=64 << 20).contains(&peak), "{text}");
        assert_eq!(said["processes"], "Cannot fork\n", "{text}");
        assert_eq!(said["killed"], "groups 1\nstatus 0\n", "{text}");
        assert_eq!(said["left"], "", "{text}");
    };
    std::thread::scope(|scope| [0, PLAIN].map(|uid| scope.spawn(move || at_once(uid))).map(|one| one.join().unwrap()));
}

/// A micro-VM that never leaves its initial ramfs has no root that could be changed.
#[test]
fn the_initial_ramfs_cannot_be_left() {
    if !machine::there() {
        return;
    }
    let script = "/mnt/oubliette run -q -- sh -c 'echo ran; id -u | cut -c 1-2' 2>&1; /mnt/oubliette explain -- true";
    let said = machine::run(&Scratch::new(), 0, machine::Root::Ramfs, &[], &["sh", "-c", script]);
    assert!(said.contains("ran\n"), "{said}");
    for layer in ["root", "pid"] {
        let row = said.lines().find(|line| line.starts_with(&format!("  {layer} "))).unwrap();
        assert!(row.contains("degrade  pivot_root(2) answers invalid argument (EINVAL)"), "{said}");
        assert!(row.contains("switch_root(8)"), "{said}");
    }
    for layer in ["uid", "landlock-fs", "ipc", "cgroup"] {
        assert!(said.contains(&format!("  {layer:<15} enforce")), "{said}");
    }
}
