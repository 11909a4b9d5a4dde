//! `__victim` and `__attack` against each other without any cell: what file modes and user ids alone leave open.
//!
//! An attacker that finds nothing proves nothing, so here it has to find all of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use oubliette::attack::{ATTACKS, Target};
use serde_json::Value;

use crate::need;

/// One encounter at a time: kill(-1) hits whatever runs under the attacker's user id.
static ALONE: Mutex<()> = Mutex::new(());

/// Attack, then `X` (works) or `.` (blocked) with the same user id and with one of its own, and no other layer.
#[rustfmt::skip]
const MATRIX: &[(&str, char, char)] = &[
    ("read-file", 'X', '.'), ("list-dir", 'X', '.'), ("append-file", 'X', '.'), ("truncate-file", 'X', '.'),
    ("hard-link-file", 'X', '.'), ("symlink-file", 'X', '.'), ("rename-dir", 'X', '.'), ("unlink-file", 'X', '.'),
    ("stat-file", 'X', '.'), ("chmod-file", 'X', '.'), ("touch-file", 'X', '.'), ("chdir-dir", 'X', '.'),
    ("plant-file", 'X', '.'), ("path-socket", 'X', '.'), ("io-uring-open", 'X', '.'), ("ptrace-seize", 'X', '.'),
    ("inotify-dir", 'X', '.'), ("inotify-parent", 'X', 'X'), ("list-tmp", 'X', 'X'), ("tmp-socket", 'X', 'X'),
    ("read-tmp-file", 'X', '.'), ("read-shm-file", 'X', '.'), ("plant-tmp-name", 'X', 'X'),
    ("leaked-dir-open", 'X', '.'), ("leaked-dir-list", 'X', 'X'), ("leaked-file", 'X', 'X'), ("tiocsti", 'X', 'X'),
    ("see-pid", 'X', 'X'), ("proc-cmdline", 'X', 'X'), ("proc-status", 'X', 'X'),
    ("proc-environ", 'X', '.'), ("proc-maps", 'X', '.'), ("proc-fd-list", 'X', '.'), ("proc-fd-open", 'X', '.'),
    ("proc-mem", 'X', '.'), ("proc-cwd", 'X', '.'), ("proc-root", 'X', '.'),
    ("process-vm-readv", 'X', '.'), ("process-vm-writev", 'X', '.'), ("pidfd-getfd", 'X', '.'), ("kcmp", 'X', '.'),
    ("launcher-environ", 'X', '.'), ("launcher-mem", 'X', '.'), ("launcher-fd", 'X', '.'),
    ("launcher-ptrace", 'X', '.'), ("launcher-signal", 'X', '.'),
    ("setns-victim", '.', '.'), ("write-core-pattern", '.', '.'),
    ("abstract-socket", 'X', 'X'), ("tcp-connect", 'X', 'X'), ("udp-send", 'X', 'X'), ("proc-net", 'X', 'X'),
    ("sysv-shm", 'X', '.'), ("sysv-sem", 'X', '.'), ("sysv-msg", 'X', '.'), ("posix-mq", 'X', '.'),
    ("key-by-serial", 'X', '.'), ("key-by-name", 'X', '.'), ("unshare-user", 'X', 'X'),
    ("lease-file", 'X', 'X'), ("lock-shared", 'X', 'X'), ("aio-context", 'X', 'X'), ("socket-pairs", 'X', 'X'),
    ("read-host-proc", 'X', 'X'), ("setpriority-user", 'X', '.'), ("ioprio-set-user", 'X', '.'),
    ("signal-by-owner", 'X', '.'),
    ("prlimit", 'X', '.'), ("setpriority", 'X', '.'), ("sched-setaffinity", 'X', '.'),
    ("sched-setscheduler", 'X', '.'), ("ioprio-set", 'X', '.'),
    ("kill-usr1", 'X', '.'), ("pidfd-signal", 'X', '.'), ("kill-all", 'X', '.'),
    ("settings-write", 'X', '.'), ("settings-chmod", 'X', '.'), ("settings-replace", 'X', '.'),
    ("settings-plant", 'X', '.'), ("settings-unlink", 'X', '.'),
    ("egress-address", 'X', 'X'), ("egress-name", 'X', 'X'), ("egress-plain", 'X', 'X'), ("egress-victim", 'X', 'X'),
    ("egress-victims-list", 'X', 'X'),
];

/// What a launcher that has made itself non-dumpable keeps even from its own user.
const HIDDEN: &[&str] = &["launcher-environ", "launcher-mem", "launcher-fd", "launcher-ptrace"];

/// Attacks that this very host refuses to everybody, by a setting of its own.
pub fn host_refuses(attack: &str) -> bool {
    let setting = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    match attack {
        "tiocsti" => setting("/proc/sys/dev/tty/legacy_tiocsti") == "0",
        "io-uring-open" => ["1", "2"].contains(&setting("/proc/sys/kernel/io_uring_disabled").as_str()),
        "unshare-user" => setting("/proc/sys/user/max_user_namespaces") == "0",
        "ptrace-seize" | "process-vm-readv" | "process-vm-writev" | "pidfd-getfd" | "proc-mem" | "launcher-mem"
        | "launcher-ptrace" => !["", "0"].contains(&setting("/proc/sys/kernel/yama/ptrace_scope").as_str()),
        _ => false,
    }
}

/// The `nth` user id under which nothing runs.
fn free_uid(nth: usize) -> u32 {
    let owners: Vec<u32> =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|e| Some(e.metadata().ok()?.uid())).collect();
    (41_001..).filter(|uid| !owners.contains(uid)).nth(nth).unwrap()
}

struct Stage {
    dir: tempfile::TempDir,
    program: PathBuf,
}

impl Stage {
    /// A directory that everybody may enter, with a copy of the program in it.
    fn new() -> Stage {
        let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir_in("/tmp").unwrap();
        let program = dir.path().join("oubliette");
        need::copy_launcher(&program);
        Stage { dir, program }
    }

    /// A private HOME, and the program started in it as this user.
    fn command(&self, who: &str, uid: u32, wrap: &[&str]) -> Command {
        let home = self.dir.path().join(who);
        fs::create_dir(&home).unwrap();
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
        chown(&home, Some(uid), Some(uid)).unwrap();
        let mut words = wrap.iter().map(Path::new).chain([self.program.as_path()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).env_clear().env("HOME", &home).env("PATH", "/usr/bin:/bin").current_dir(home);
        // The standard library also empties the supplementary groups when root gives a user id.
        command.uid(uid).gid(uid);
        command
    }

    fn victim(&self, who: &str, uid: u32, hidden: bool) -> Victim {
        let mut command = self.command(who, uid, &[]);
        command.arg("__victim").args(hidden.then_some("--hidden")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let target = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        Victim { child, out, target }
    }
}

/// Leads everybody everywhere, or says so: the port of a broker without a list.
fn leads_anywhere() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).and_then(|_| stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n"));
        }
    });
    port
}

/// An agent's settings that belong to this user.
fn settings_of(stage: &Stage, uid: u32) -> PathBuf {
    let dir = stage.dir.path().join("settings");
    fs::create_dir(&dir).unwrap();
    let file = dir.join("settings.json");
    fs::write(&file, "{}").unwrap();
    [&dir, &file].into_iter().for_each(|path| chown(path, Some(uid), Some(uid)).unwrap());
    file
}

struct Victim {
    child: Child,
    out: BufReader<ChildStdout>,
    target: Target,
}

impl Victim {
    /// Its damage list, or nothing when it did not live to tell.
    fn end(mut self) -> Option<String> {
        drop(self.child.stdin.take());
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        let status = self.child.wait().unwrap();
        self.target.remove();
        status.success().then_some(line)
    }
}

struct Outcome {
    verdicts: BTreeMap<String, (String, String)>,
    damage: Option<String>,
}

/// One victim, the stand-in for its launcher, and an attacker on a terminal with two descriptors left open.
fn encounter(same: bool, hidden: bool, spare: bool) -> Outcome {
    let stage = Stage::new();
    let (uid, launcher_uid) = (free_uid(0), if same { free_uid(0) } else { 0 });
    let attacker = if same { uid } else { free_uid(1) };
    let launcher = stage.victim("launcher", launcher_uid, hidden);
    let victim = stage.victim("victim", uid, false);
    let mut target = victim.target.clone();
    target.host_pid = Some(victim.child.id() as i32);
    target.launcher_pid = Some(launcher.child.id() as i32);
    (target.allow_kill_all, target.spare_victim) = (true, spare);
    target.settings = Some(settings_of(&stage, uid));
    (target.broker, target.host_tcp) = (Some(leads_anywhere()), Some(leads_anywhere()));

    let leak = |path: PathBuf| -> OwnedFd { open(&path, OFlag::O_RDONLY, Mode::empty()).unwrap() };
    let leaked = target.dirs.first().map(|place| (leak(place.path.clone()), leak(place.path.join("secret.txt"))));
    let master = nix::pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    nix::pty::grantpt(&master).unwrap();
    nix::pty::unlockpt(&master).unwrap();
    let slave = nix::pty::ptsname_r(&master).unwrap();
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let terminal = open(slave.as_str(), flags, Mode::empty()).unwrap();

    let mut command = stage.command("attacker", attacker, &["setsid", "--ctty"]);
    command.arg("__attack").arg(serde_json::to_string(&target).unwrap());
    let own = leads_anywhere();
    command.env("OUBLIETTE_BROKER_URL", format!("http://127.0.0.1:{own}"));
    command.env("HTTPS_PROXY", format!("http://cell:pass@127.0.0.1:{own}"));
    let mut child = command.stdin(Stdio::from(terminal)).stdout(Stdio::piped()).spawn().unwrap();
    drop(leaked);
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success());

    let damage = victim.end();
    launcher.end();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.pop().unwrap()["done"], ATTACKS.len(), "the last line counts the attacks");
    let word = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let verdict = |line: &Value| (word(line, "attack"), (word(line, "verdict"), word(line, "detail")));
    Outcome { verdicts: lines.iter().map(verdict).collect(), damage }
}

impl Outcome {
    /// Every attack that came out otherwise than the matrix says.
    fn differences(&self, column: impl Fn(&(&str, char, char)) -> char) -> Vec<String> {
        let differs = |row: &&(&str, char, char)| {
            let open = self.verdicts.get(row.0).is_some_and(|(verdict, _)| verdict == "open");
            open != (column(row) == 'X' && !host_refuses(row.0))
        };
        let say =
            |row: &(&str, char, char)| format!("{}: expected {}, {:?}", row.0, column(row), self.verdicts.get(row.0));
        MATRIX.iter().filter(differs).map(say).collect()
    }

    fn verdict(&self, attack: &str) -> &str {
        &self.verdicts[attack].0
    }
}

#[test]
fn same_user_without_a_cell_loses_everything() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    if !need::as_root() {
        return;
    }
    let spared = encounter(true, false, true);
    assert_eq!(spared.differences(|row| row.1), Vec::<String>::new());
    let damage = spared.damage.expect("a spared victim lives to tell");
    for word in [
        "SIGUSR1",
        "traced by",
        "got a connection",
        "got a datagram",
        "victim.txt",
        "planted",
        "affinity",
        "nice",
        "policy",
        "io priority",
        "lock limit",
        "\"sem\"",
        "\"msg\"",
    ] {
        assert!(damage.contains(word) || word == "traced by" && host_refuses("ptrace-seize"), "{word} not in {damage}");
    }

    let killed = encounter(true, true, false);
    for attack in HIDDEN {
        assert_eq!(killed.verdict(attack), "blocked", "{attack} on a non-dumpable launcher");
    }
    assert_eq!(killed.verdict("kill-victim"), "open");
    assert_eq!(killed.damage, None, "the victim is dead");
}

#[test]
fn a_user_of_its_own_without_a_cell_still_leaks_names_and_loopback() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    if !need::as_root() {
        return;
    }
    let other = encounter(false, false, false);
    assert_eq!(other.differences(|row| row.2), Vec::<String>::new());
    assert_eq!(other.verdict("kill-victim"), "blocked");
    assert_eq!(other.verdict("set-uid-victim"), "blocked");
    let damage: Value = serde_json::from_str(&other.damage.expect("the victim lives")).unwrap();
    let hurt: Vec<_> =
        damage["damage"].as_array().unwrap().iter().map(|entry| entry["object"].as_str().unwrap()).collect();
    assert_eq!(
        hurt,
        ["abstract_socket", "tmp_socket", "tcp", "udp"],
        "sockets that everybody may use, and nothing else"
    );
}

#[test]
fn attacks_have_unique_names_in_kebab_case_and_words() {
    let mut names: Vec<_> = ATTACKS.iter().map(|attack| attack.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), ATTACKS.len());
    for attack in ATTACKS {
        assert!(
            attack.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
            "{}",
            attack.name
        );
        assert!(!attack.about.is_empty(), "{}", attack.name);
    }
    for (name, ..) in MATRIX {
        assert!(names.binary_search(name).is_ok(), "{name} is in the matrix and not in the list");
    }
}
