//! Launches that go on while the test looks at them: what they say is read line by line, and they are killed when dropped.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

/// Longest time for anything that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Who starts the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Root.
    Root,
    /// A plain user: one that nobody else has, where the tests run as root; else whoever runs the tests.
    User,
}

/// A scratch directory that everybody may enter, with a copy of the program.
pub struct Stage {
    dir: tempfile::TempDir,
    /// The copy.
    pub program: PathBuf,
    uid: Option<u32>,
    /// Supplementary groups of whoever starts the program. Only root can give some.
    pub groups: Vec<u32>,
    /// Options of setpriv(1) for it, beside groups.
    pub rights: &'static [&'static str],
}

/// A number for one user of one test: kill(-1) and limits on processes must not reach those of another.
fn fresh_uid() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    1_000_000_000 + (std::process::id() % 1_000_000) * 256 + NEXT.fetch_add(1, Ordering::Relaxed) % 256
}

impl Stage {
    /// Makes it, with a private directory for each user.
    pub fn new() -> Stage {
        let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir_in("/tmp").unwrap();
        let program = dir.path().join("oubliette");
        crate::need::copy_launcher(&program);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o555)).unwrap();
        let uid = geteuid().is_root().then(fresh_uid);
        for (name, owner) in [("root", None), ("user", uid)] {
            let own = dir.path().join(name);
            fs::create_dir(&own).unwrap();
            // Root's cells have agents with UIDs of their own, which must get to them.
            let mode = if name == "root" { 0o711 } else { 0o700 };
            fs::set_permissions(&own, fs::Permissions::from_mode(mode)).unwrap();
            chown(&own, owner, owner).unwrap();
        }
        Stage { dir, program, uid, groups: Vec::new(), rights: &[] }
    }

    /// The scratch directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A directory of this user's that nobody else lists.
    pub fn own(&self, who: Who) -> PathBuf {
        self.path().join(if who == Who::Root { "root" } else { "user" })
    }

    /// Where this user's cells are.
    pub fn state(&self, who: Who) -> PathBuf {
        self.own(who).join("state")
    }

    /// The UID of this user.
    pub fn uid(&self, who: Who) -> u32 {
        self.uid.filter(|_| who == Who::User).unwrap_or_else(|| geteuid().as_raw())
    }

    /// Gives a file to this user.
    pub fn give(&self, who: Who, path: &Path) {
        chown(path, Some(self.uid(who)), Some(self.uid(who))).unwrap();
    }

    /// A file of this user's own that nobody else reads.
    pub fn private_file(&self, who: Who, name: &str, text: &str) -> PathBuf {
        let path = self.own(who).join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        self.give(who, &path);
        path
    }

    /// Words executed as this user: `wrap` and then the program, in an environment of PATH and HOME.
    pub fn command(&self, who: Who, wrap: &[&str]) -> Command {
        let uid = self.uid.filter(|_| who == Who::User);
        let with_groups = self.with_groups(uid);
        let wrap = with_groups.iter().map(String::as_str).chain(wrap.iter().copied()).map(Path::new);
        let mut words = wrap.chain([self.program.as_path()]);
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.own(who))
            .current_dir(self.own(who));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(uid) = uid.filter(|_| with_groups.is_empty()) {
            // The standard library also empties the supplementary groups when root gives a user id.
            command.uid(uid).gid(uid);
        }
        command
    }

    /// What starts a command with the groups.
    fn with_groups(&self, uid: Option<u32>) -> Vec<String> {
        if self.groups.is_empty() {
            return Vec::new();
        }
        let groups = self.groups.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let ids = uid.iter().flat_map(|uid| [format!("--reuid={uid}"), format!("--regid={uid}")]);
        let rights = self.rights.iter().map(|option| (*option).to_owned());
        ["setpriv".to_owned(), format!("--groups={groups}")].into_iter().chain(ids).chain(rights).collect()
    }

    /// `oubliette run` as this user, with the state directory of the stage; options to follow.
    pub fn run(&self, who: Who, wrap: &[&str]) -> Command {
        let mut command = self.command(who, wrap);
        command.arg("run").arg("--state-dir").arg(self.state(who));
        command
    }

    /// The cells that are there.
    pub fn cells(&self, who: Who) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.state(who).join("cells")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// A policy file: the level `developer` with these layers off, and with other text for its network.
    pub fn policy(&self, off: &[&str], network: Option<&str>) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = self.path().join(format!("policy-{}.toml", NEXT.fetch_add(1, Ordering::Relaxed)));
        let layers: String = off.iter().map(|layer| format!("{layer} = \"off\"\n")).collect();
        let mut level = include_str!("../../policies/developer.toml").to_owned();
        assert!(!level.contains("[layers]"), "the level says itself how much it insists on layers");
        if let Some(network) = network {
            let start = level.find("[network]").unwrap();
            let end = start + level[start..].find("\n\n").unwrap();
            level.replace_range(start..end, network);
        }
        // Cells of it live side by side, also where nothing is between them.
        let alone = if off.contains(&"alone") { "" } else { "alone = \"off\"\n" };
        fs::write(&path, format!("{level}\n[layers]\n{alone}{layers}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        path
    }
}

/// A started program, killed when dropped.
pub struct Running {
    /// The process.
    pub child: Child,
    lines: Receiver<String>,
    reader: Option<JoinHandle<()>>,
    errors: Option<JoinHandle<String>>,
}

/// What a program came to.
#[derive(Debug)]
pub struct Done {
    /// Its status.
    pub status: ExitStatus,
    /// What it wrote to standard output since the last line that was read.
    pub out: String,
    /// What it wrote to standard error.
    pub err: String,
}

impl Running {
    /// Starts it and reads its output, where that is piped.
    pub fn start(command: &mut Command) -> Running {
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (send, lines) = channel();
        let reader = child.stdout.take().map(|out| {
            std::thread::spawn(move || {
                let mut out = BufReader::new(out);
                let mut line = Vec::new();
                while out.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                    let _ = send.send(String::from_utf8_lossy(&std::mem::take(&mut line)).into_owned());
                }
            })
        });
        let errors = child.stderr.take().map(|mut err| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = err.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        });
        Running { child, lines, reader, errors }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The next line of its output.
    pub fn line(&mut self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap_or_else(|error| {
            let _ = self.child.kill();
            let said = self.errors.take().and_then(|thread| thread.join().ok());
            panic!("no line of output: {error}; standard error: {said:?}")
        })
    }

    /// Waits for its end.
    pub fn end(mut self) -> Done {
        drop(self.child.stdin.take());
        let status = wait_for("the end of a program", || self.child.try_wait().unwrap());
        let out: String = match self.reader.take() {
            Some(reader) => {
                reader.join().unwrap();
                self.lines.try_iter().collect()
            }
            None => String::new(),
        };
        let err = self.errors.take().map(|thread| thread.join().unwrap()).unwrap_or_default();
        Done { status, out, err }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A process that has been waited for is not signalled again.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs it to its end.
pub fn output(command: &mut Command) -> Done {
    Running::start(command).end()
}

/// Asks again and again until there is an answer.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < until, "waited too long for {what}");
        sleep(Duration::from_millis(2));
    }
}

/// The processes that descend from this one, nearest first.
pub fn descendants(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let mut next = 0;
    while next < all.len() {
        all.extend(children(all[next]));
        next += 1;
    }
    all.split_off(1)
}

/// Its children, the oldest first.
pub fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    texts.flat_map(|text| text.split_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<_>>()).collect()
}
