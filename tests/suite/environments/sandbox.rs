//! Environments made for real: containers by bwrap, with the capabilities and the filter of Docker's, and gVisor by
//! runsc. In each of them a script runs whose output is cut into sections.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::{filter, machine};
use crate::need::{copy_launcher, need_program};

/// Whoever is not root.
pub const PLAIN: u32 = 50_001;

/// The longest that one sandbox may take on a busy machine.
const LONGEST: Duration = Duration::from_secs(300);

/// What Docker leaves to root.
const DOCKER: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// What stands round the launcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Linux as it is, with scratch directories for /run and /tmp.
    Linux,
    /// No user namespace can be made in it (`user.max_user_namespaces`).
    NoUserNamespaces,
    /// The kernel answers as if it had no Landlock.
    NoLandlock,
    /// Docker's capabilities and filter, no_new_privs, masked /proc, everything read-only but a /tmp.
    Container,
    /// The same without any /proc.
    NoProc,
    /// The same without /dev/shm.
    NoShm,
    /// The same with 64 KiB of /dev/shm, as Docker's `--shm-size=64k`.
    SmallShm,
    /// The same with 64 KiB of /tmp.
    SmallTmp,
    /// gVisor, everything read-only but a /tmp and a /run.
    Gvisor,
    /// A virtual machine with Linux 6.1 and the unified hierarchy of control groups.
    Machine,
}

impl Kind {
    /// A container as Docker makes it.
    fn closed(self) -> bool {
        matches!(self, Kind::Container | Kind::NoProc | Kind::NoShm | Kind::SmallShm | Kind::SmallTmp)
    }
}

/// One of them, and who starts the launcher in it.
#[derive(Debug, Clone, Copy)]
pub struct Sandbox {
    pub kind: Kind,
    pub uid: u32,
    /// gVisor's network is the host's, since a model must be reached.
    pub host_network: bool,
}

/// A directory with what is shown at /mnt.
pub struct Scratch(pub tempfile::TempDir);

impl Scratch {
    /// With a copy of the program.
    pub fn new() -> Scratch {
        let mode = fs::Permissions::from_mode(0o755);
        let dir = tempfile::Builder::new().prefix("environment-").permissions(mode).tempdir_in("/var/tmp").unwrap();
        copy_launcher(&dir.path().join("oubliette"));
        let scratch = Scratch(dir);
        scratch.file("no-landlock", &filter::no_landlock());
        scratch.file("docker", &filter::docker());
        scratch
    }

    /// One more file.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Sandbox {
    /// The programs that make it; says which one is missing.
    pub fn there(&self) -> bool {
        if self.kind == Kind::Machine {
            return machine::there();
        }
        let needed: &[&str] = if self.kind == Kind::Gvisor { &["runsc"] } else { &["bwrap", "setpriv"] };
        needed.iter().all(|name| need_program(name).is_some())
    }

    /// Words executed in it, with these variables, at /mnt a read-only view of the scratch directory.
    pub fn run(&self, scratch: &Scratch, variables: &[(&str, &str)], words: &[&str]) -> String {
        if self.kind == Kind::Machine {
            return machine::run(scratch, self.uid, machine::Root::Tmpfs, variables, words);
        }
        let (mut command, _bundle) = self.command(scratch, variables, words);
        finish(&mut command)
    }

    /// Its output alone. What the sandbox itself says meanwhile would stand in the middle of a long one.
    pub fn output(&self, scratch: &Scratch, words: &[&str]) -> String {
        let (mut command, _bundle) = self.command(scratch, &[], words);
        let ended = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let [text, said] = [ended.stdout, ended.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(ended.status.success(), "{}\n{text}\n{said}", ended.status);
        text
    }

    /// The same, with a pipe on its standard input, while it goes on.
    pub fn start(&self, scratch: &Scratch, variables: &[(&str, &str)], words: &[&str]) -> Session {
        let (mut command, bundle) = self.command(scratch, variables, words);
        let (from, to) = std::io::pipe().unwrap();
        command.stdin(Stdio::piped()).stdout(to.try_clone().unwrap()).stderr(to);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Session { to: child.stdin.take(), child, from: BufReader::new(from), _bundle: bundle }
    }

    /// What is to be executed here, and what must stay until it has ended.
    fn command(
        &self,
        scratch: &Scratch,
        variables: &[(&str, &str)],
        words: &[&str],
    ) -> (Command, Option<tempfile::TempDir>) {
        if self.kind == Kind::Gvisor {
            let inside = Inside { root: Path::new("/"), uid: self.uid, host_network: self.host_network };
            let mounts = [tmpfs("/run", "755"), tmpfs("/var/tmp", "1777"), shown("/mnt", scratch.0.path())];
            let (command, bundle) = inside.command(scratch.0.path(), &mounts, variables, words);
            return (command, Some(bundle));
        }
        let mut command = patient();
        command.args(["sh", "-c", &format!("exec \"$@\" {}", self.filter(scratch)), "sh", "bwrap"]);
        command.args(self.container(scratch.0.path()));
        for (name, value) in variables {
            command.args(["--setenv", name, value]);
        }
        command.arg("--");
        if self.uid != 0 {
            let uid = self.uid.to_string();
            command.args(["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups", "--inh-caps=-all"]);
        }
        if self.kind == Kind::NoUserNamespaces {
            command.args(["bwrap", "--dev-bind", "/", "/", "--unshare-user", "--disable-userns", "--"]);
        }
        command.args(words);
        (command, None)
    }

    /// A redirection to the descriptor from which bwrap reads the filter.
    fn filter(&self, scratch: &Scratch) -> String {
        let name = match self.kind {
            Kind::NoLandlock => "no-landlock",
            kind if kind.closed() => "docker",
            _ => return String::new(),
        };
        format!("9<{}", scratch.0.path().join(name).display())
    }

    fn container(&self, scratch: &Path) -> Vec<String> {
        let scratch = scratch.display().to_string();
        let mut words = vec!["--die-with-parent"];
        let closed = self.kind.closed();
        if closed {
            words.extend(["--unshare-pid", "--ro-bind", "/", "/"]);
            match self.kind {
                Kind::NoShm => {
                    words.extend(["--tmpfs", "/dev"]);
                    let nodes = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];
                    nodes.iter().for_each(|node| words.extend(["--dev-bind", node, node]));
                }
                Kind::SmallShm => words.extend(["--dev", "/dev", "--size", "65536", "--tmpfs", "/dev/shm"]),
                _ => words.extend(["--dev", "/dev"]),
            }
            let small: &[&str] = if self.kind == Kind::SmallTmp { &["--size", "65536"] } else { &[] };
            words.extend(small);
            words.extend(["--tmpfs", "/tmp"]);
            match self.kind {
                Kind::NoProc => words.extend(["--tmpfs", "/proc"]),
                _ => words.extend(["--proc", "/proc", "--ro-bind", "/dev/null", "/proc/interrupts"]),
            }
            words.extend(["--cap-drop", "ALL"]);
            for capability in DOCKER {
                words.extend(["--cap-add", capability]);
            }
        } else {
            words.extend(["--dev-bind", "/", "/", "--tmpfs", "/run", "--tmpfs", "/tmp", "--tmpfs", "/var/tmp"]);
            words.extend(["--cap-add", "ALL"]);
        }
        if closed || self.kind == Kind::NoLandlock {
            words.extend(["--seccomp", "9"]);
        }
        words.extend(["--chmod", "1777", "/tmp", "--ro-bind", &scratch, "/mnt", "--chdir", "/", "--clearenv"]);
        words.extend(["--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin", "--setenv", "HOME", "/tmp"]);
        if !closed {
            words.extend(["--chmod", "1777", "/var/tmp"]);
        }
        words.into_iter().map(str::to_owned).collect()
    }
}

/// A gVisor sandbox with this root, which nobody can write to.
pub struct Inside<'a> {
    pub root: &'a Path,
    pub uid: u32,
    pub host_network: bool,
}

fn mount(at: &str, kind: &str, options: &[&str]) -> Value {
    json!({"destination": at, "type": kind, "source": kind, "options": options})
}

/// A tmpfs with this mode.
pub fn tmpfs(at: &str, mode: &str) -> Value {
    mount(at, "tmpfs", &[&format!("mode={mode}")])
}

/// A read-only view of a directory.
fn shown(at: &str, directory: &Path) -> Value {
    json!({"destination": at, "type": "bind", "source": directory, "options": ["rbind", "ro"]})
}

impl Inside<'_> {
    /// Words executed in it; `at` is where its files may be. It has /proc, /dev, /sys, a /tmp and these mounts.
    pub fn run(&self, at: &Path, mounts: &[Value], variables: &[(&str, &str)], words: &[&str]) -> String {
        let (mut command, _bundle) = self.command(at, mounts, variables, words);
        finish(&mut command)
    }

    fn command(
        &self,
        at: &Path,
        mounts: &[Value],
        variables: &[(&str, &str)],
        words: &[&str],
    ) -> (Command, tempfile::TempDir) {
        let bundle = tempfile::Builder::new().prefix("bundle-").tempdir_in(at).unwrap();
        let config = self.bundle(mounts, variables, words);
        fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
        let id = format!("oubliette-test-{:016x}", rand::random::<u64>());
        let network = if self.host_network { "--network=host" } else { "--network=none" };
        let mut command = patient();
        command.arg("runsc").arg("--root").arg(bundle.path().join("state"));
        command.args([network, "--platform=ptrace", "--rootless", "--ignore-cgroups", "run", "--bundle"]);
        command.arg(bundle.path()).arg(id);
        (command, bundle)
    }

    /// What runsc is to run (opencontainers/runtime-spec, config.md).
    fn bundle(&self, more: &[Value], variables: &[(&str, &str)], words: &[&str]) -> Value {
        let granted: &[&str] = if self.uid == 0 { &DOCKER } else { &[] };
        let variables = variables.iter().map(|(name, value)| format!("{name}={value}"));
        let fixed = ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp"].map(str::to_owned);
        let kinds = ["pid", "network", "ipc", "uts", "mount"].into_iter();
        let namespaces = kinds.filter(|kind| *kind != "network" || !self.host_network);
        let namespaces: Vec<Value> = namespaces.map(|kind| json!({"type": kind})).collect();
        let sys = mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]);
        let usual = [mount("/proc", "proc", &[]), mount("/dev", "tmpfs", &[]), sys, tmpfs("/tmp", "1777")];
        json!({
            "ociVersion": "1.0.0",
            "hostname": "gvisor",
            "root": {"path": self.root, "readonly": true},
            "process": {
                "user": {"uid": self.uid, "gid": self.uid},
                "args": words,
                "cwd": "/",
                "env": fixed.into_iter().chain(variables).collect::<Vec<_>>(),
                "capabilities": {"bounding": DOCKER, "effective": granted, "inheritable": granted, "permitted": granted},
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 4096, "soft": 4096}],
            },
            "mounts": usual.iter().chain(more).collect::<Vec<_>>(),
            "linux": {"namespaces": namespaces},
        })
    }
}

/// A command that ends in time, to which its words are to be added.
pub fn patient() -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &LONGEST.as_secs().to_string()]);
    command
}

/// Output and errors in one text: a message belongs to the section in which it is said.
pub fn finish(command: &mut Command) -> String {
    let (mut from, to) = std::io::pipe().unwrap();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(to.try_clone().unwrap())
        .stderr(to)
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // Its copies of the pipe would keep that open.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    let status = child.wait().unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(status.success(), "{status}\n{text}");
    text
}

/// A sandbox that goes on: it reads lines, and answers each with sections.
pub struct Session {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<PipeReader>,
    _bundle: Option<tempfile::TempDir>,
}

impl Session {
    pub fn tell(&mut self, line: &str) {
        writeln!(self.to.as_mut().unwrap(), "{line}").unwrap();
    }

    /// The sections up to the end of an answer.
    pub fn hear(&mut self) -> BTreeMap<String, String> {
        let mut text = String::new();
        while !text.ends_with("== end\n") {
            let length = self.from.read_line(&mut text).unwrap();
            assert!(length > 0, "the sandbox has ended: {text}");
        }
        sections(&text)
    }

    /// What it says when it has nothing more to read.
    pub fn end(mut self) -> BTreeMap<String, String> {
        drop(self.to.take());
        let mut text = String::new();
        self.from.read_to_string(&mut text).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}\n{text}");
        sections(&text)
    }
}

/// What stands below each `== name`.
pub fn sections(text: &str) -> BTreeMap<String, String> {
    let parts = text.split("== ").filter_map(|part| part.split_once('\n'));
    parts.map(|(name, text)| (name.to_owned(), text.to_owned())).collect()
}
