//! A scratch place with a state directory, and the launcher started in it as root or as a plain user.

use std::ffi::OsString;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// How long anything is waited for before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The account that stands for a plain user when the tests run as root.
const PLAIN: u32 = 41_017;

/// Who starts the launcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Root.
    Root,
    /// A plain user.
    Plain,
}

impl Who {
    /// Everybody whom this test run can be.
    pub fn all() -> Vec<Who> {
        if nix::unistd::geteuid().is_root() { vec![Who::Root, Who::Plain] } else { vec![Who::Plain] }
    }

    /// The UID of the launcher.
    pub fn uid(self) -> u32 {
        let me = nix::unistd::geteuid();
        if self == Who::Plain && me.is_root() { PLAIN } else { me.as_raw() }
    }
}

/// A scratch directory with a state directory of its own.
pub struct Place {
    pub who: Who,
    pub dir: TempDir,
    program: PathBuf,
    uids: u32,
}

impl Place {
    /// A new one, through which every UID may go.
    pub fn new(who: Who) -> Place {
        let dir =
            tempfile::Builder::new().prefix("place-").permissions(PermissionsExt::from_mode(0o755)).tempdir().unwrap();
        let mut program = PathBuf::from(env!("CARGO_BIN_EXE_oubliette"));
        let open = |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o001 != 0);
        if !program.ancestors().all(open) {
            let copy = dir.path().join("oubliette");
            crate::need::copy_launcher(&copy);
            program = copy;
        }
        let uids = 1_800_000_000 + rand::random_range(0..1_000_000) * 64;
        let place = Place { who, dir, program, uids };
        place.directory("state");
        place
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new directory of the launcher's user in it.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        self.give(&path);
        path
    }

    /// A new file of the launcher's user in it.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        self.give(&path);
        path
    }

    /// Gives something to the launcher's user.
    pub fn give(&self, path: &Path) {
        if nix::unistd::geteuid().is_root() {
            chown(path, Some(self.who.uid()), Some(self.who.uid())).unwrap();
        }
    }

    /// A policy that denies nothing and has these layers. Cells of it live side by side, also where nothing is between
    /// them, unless it says otherwise.
    pub fn policy(&self, layers: &str) -> PathBuf {
        let alone = if layers.contains("alone") { "" } else { "alone = \"off\"\n" };
        let text = format!("description = \"for a test\"\ndeny = []\ncommands = \"any\"\n[layers]\n{alone}{layers}\n");
        self.file(&format!("policy-{:08x}.toml", rand::random::<u32>()), &text)
    }

    /// A subcommand of the launcher.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(name).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", self.dir.path());
        command.env("OUBLIETTE_STATE_DIR", self.path("state")).current_dir(self.dir.path()).stdin(Stdio::null());
        if name == "run" || name == "explain" {
            command.env("OUBLIETTE_UID_RANGE", format!("{}-{}", self.uids, self.uids + 63));
        }
        self.as_launcher(&mut command);
        command
    }

    fn as_launcher(&self, command: &mut Command) {
        if nix::unistd::geteuid().is_root() && self.who == Who::Plain {
            command.uid(self.who.uid()).gid(self.who.uid());
        }
    }

    /// The same command, started by another program: `env`, `setpriv`.
    pub fn through(&self, command: &Command, program: &str, options: &[&str]) -> Command {
        let mut outer = Command::new(program);
        outer.args(options).arg(command.get_program()).args(command.get_args()).env_clear().stdin(Stdio::null());
        outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        outer.current_dir(command.get_current_dir().unwrap_or(Path::new("/")));
        self.as_launcher(&mut outer);
        outer
    }

    /// `run` of a shell script.
    pub fn run(&self, options: &[&str], script: &str) -> Command {
        let mut command = self.command("run");
        command.args(options).args(["--", "sh", "-c", script, "sh"]);
        command
    }

    /// Whether every one of these layers is enforced under a policy file.
    pub fn enforces(&self, policy: &Path, layers: &[&str]) -> bool {
        let output =
            self.command("explain").arg("--json").arg("--policy").arg(policy).args(["--", "sh"]).output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
        let all = said["plan"]["layers"].as_array().unwrap();
        let on = |name: &&str| all.iter().any(|layer| layer["layer"] == **name && layer["decision"] == "enforce");
        layers.iter().all(on)
    }

    /// Sweeps and gives what it says. It must say that nothing is left.
    pub fn sweep(&self) -> Value {
        let output = self.command("sweep").arg("--json").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["left"], serde_json::json!([]));
        said
    }

    /// Names of cells in the state directory, dead or alive.
    pub fn cells(&self) -> Vec<OsString> {
        let entries = fs::read_dir(self.path("state/cells")).into_iter().flatten();
        entries
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| !name.as_encoded_bytes().starts_with(b"."))
            .collect()
    }

    /// UIDs of this place that are marked as leased.
    pub fn leases(&self) -> Vec<u32> {
        let names = fs::read_dir("/run/oubliette/uids").into_iter().flatten().flatten();
        let uids = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        uids.filter(|uid| (self.uids..self.uids + 64).contains(uid)).collect()
    }

    /// Nothing of any cell is there: neither a directory nor a lease nor a control group of one of these names.
    pub fn assert_nothing_left(&self, cells: &[OsString]) {
        assert_eq!(self.cells(), Vec::<OsString>::new());
        assert_eq!(self.leases(), Vec::<u32>::new());
        for cell in cells {
            let name = format!("oubliette-{}", cell.to_string_lossy());
            assert_eq!(find_named(Path::new("/sys/fs/cgroup"), &name), None);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What a failed test has left; processes of the launchers that it has killed above all.
        let _ = self.command("sweep").output();
    }
}

fn find_named(dir: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_str() == Some(name) {
                return Some(entry.path());
            }
            if let Some(found) = find_named(&entry.path(), name) {
                return Some(found);
            }
        }
    }
    None
}

/// A text that no other process and no other file has.
pub fn marker() -> String {
    format!("marker-{:032x}", rand::random::<u128>())
}

/// Live processes that have a text in their arguments or in their environment.
pub fn marked(marker: &str) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has = |pid: &i32, file: &str| {
        let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        text.windows(marker.len()).any(|window| window == marker.as_bytes())
    };
    let mine = std::process::id() as i32;
    pids.filter(|pid| *pid != mine && (has(pid, "cmdline") || has(pid, "environ"))).map(Pid::from_raw).collect()
}

/// The children of a process.
pub fn children(parent: Pid) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        fields.split_ascii_whitespace().nth(1) == Some(&parent.to_string())
    };
    pids.filter(is_child).map(Pid::from_raw).collect()
}

/// Everything that descends from a process.
pub fn below(parent: Pid) -> Vec<Pid> {
    let mut all = children(parent);
    let mut at = 0;
    while at < all.len() {
        all.extend(children(all[at]));
        at += 1;
    }
    all
}

/// Whether a process is there, and not only its status.
pub fn lives(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Waits until something is so, and fails after this time.
pub fn within(limit: Duration, what: &str, mut so: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !so() {
        assert!(Instant::now() < until, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A started launcher; killed if the test fails before it has ended.
pub struct Started {
    pub child: Child,
    reaped: bool,
}

impl Started {
    /// Starts it with pipes.
    pub fn new(command: &mut Command) -> Started {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Started { child, reaped: false }
    }

    /// Its pid.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Waits for a line of its standard output.
    pub fn line(&mut self, expected: &str) {
        let got = read_line(self.child.stdout.as_mut().unwrap());
        assert_eq!(got, expected);
    }

    /// Waits until it has stopped itself; false when it has ended instead.
    pub fn stopped(&mut self) -> bool {
        let mut stopped = None;
        within(PATIENCE, "the launcher stops itself", || {
            match waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED | WaitPidFlag::WNOHANG)).unwrap() {
                WaitStatus::StillAlive => {}
                WaitStatus::Stopped(..) => stopped = Some(true),
                _ => {
                    self.reaped = true;
                    stopped = Some(false);
                }
            }
            stopped.is_some()
        });
        stopped == Some(true)
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) {
        if !self.reaped {
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.reaped = true;
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Closes its input, waits for its end and gives its status; what it has still said is in `out` and `err`.
    pub fn end(mut self) -> Ended {
        drop(self.child.stdin.take());
        let out = self.child.stdout.take().map(gather);
        let err = self.child.stderr.take().map(gather);
        let mut status = None;
        within(PATIENCE, "the launcher ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        self.reaped = true;
        let read =
            |thread: Option<std::thread::JoinHandle<String>>| thread.map(|t| t.join().unwrap()).unwrap_or_default();
        Ended { status: status.unwrap(), out: read(out), err: read(err) }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.kill();
    }
}

fn gather(mut from: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// How a started launcher ended.
#[derive(Debug)]
pub struct Ended {
    pub status: std::process::ExitStatus,
    pub out: String,
    pub err: String,
}

/// A line, byte by byte, so that nothing after it is taken; what there is at the end of the stream.
pub fn read_line(from: &mut (impl std::io::Read + AsFd)) -> String {
    let (mut line, mut byte) = (Vec::new(), [0]);
    let until = Instant::now() + PATIENCE;
    while byte != *b"\n" {
        let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now())).unwrap();
        let ready = poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], left).unwrap();
        assert!(ready > 0, "no line within {PATIENCE:?}, only {:?}", String::from_utf8_lossy(&line));
        if from.read(&mut byte).unwrap() == 0 {
            break;
        }
        line.extend(byte);
    }
    String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned()
}

/// Status, output and errors of a program, for a message.
pub fn text(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
