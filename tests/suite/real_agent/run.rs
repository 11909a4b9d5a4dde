//! One run of the real agent: a launcher, a scratch directory of its own, and what came out.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::model::{Answer, Call, Model, Request};
use crate::need::{self, need, need_program};

/// Who starts oubliette.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    Root,
    Plain,
}

pub const LAUNCHERS: [Launcher; 2] = [Launcher::Root, Launcher::Plain];
pub const LEVELS: [&str; 3] = ["paranoid", "balanced", "developer"];

/// The plain user, where the tests run as root.
const PLAIN: u32 = 50_001;

/// A run that takes longer than this hangs.
pub const LIMIT: Duration = Duration::from_secs(240);

/// A scratch directory, and in it what a launcher needs: a copy of the program that its user can read, and a directory
/// of its own with a credential.
pub struct Stage {
    dir: tempfile::TempDir,
    launcher: Launcher,
    pub agent: PathBuf,
    pub token: String,
}

impl Stage {
    /// With Claude Code.
    pub fn new(launcher: Launcher) -> Option<Stage> {
        Stage::with(launcher, "claude", "sk-ant-api03-")
    }

    /// With this agent and a credential that begins like this. Nothing, and the reason said aloud, where the agent, the
    /// user or the private root is missing.
    pub fn with(launcher: Launcher, name: &str, beginning: &str) -> Option<Stage> {
        if launcher == Launcher::Root && !need::as_root() {
            return None;
        }
        let stage = Stage::without_agent(launcher, beginning);
        let explained = output(stage.oubliette().args(["explain", "--json", "--", "true"]));
        let plan: Value = serde_json::from_slice(&explained.stdout).expect("a plan in JSON");
        let layers = plan["plan"]["layers"].as_array().expect("layers").iter();
        let missing =
            layers.filter(|l| ["pid", "root"].iter().any(|name| l["layer"] == *name) && l["decision"] != "enforce");
        let what = if launcher == Launcher::Root { "mount namespaces" } else { "user namespaces" };
        let there = need(what, missing.count() == 0);
        Some(Stage { agent: agent(name)?, ..stage }).filter(|_| there)
    }

    fn without_agent(launcher: Launcher, beginning: &str) -> Stage {
        let mut dir = tempfile::Builder::new();
        let dir = dir.prefix("real-agent-").permissions(fs::Permissions::from_mode(0o755));
        let dir = dir.tempdir_in("/var/tmp").expect("a scratch directory");
        crate::need::copy_launcher(&dir.path().join("oubliette"));
        let token = format!("{beginning}{:032x}", rand::random::<u128>());
        let stage = Stage { dir, launcher, agent: PathBuf::new(), token };
        fs::create_dir(stage.own()).expect("a directory of the launcher's own");
        stage.write("token", &stage.token);
        stage.give(&stage.own());
        stage
    }

    /// The scratch directory: everybody may enter it.
    pub fn open(&self) -> &Path {
        self.dir.path()
    }

    /// The launcher's own directory.
    pub fn own(&self) -> PathBuf {
        self.dir.path().join("own")
    }

    /// Writes a file of mode 0600 in the launcher's own directory.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.own().join(name);
        let parent = path.parent().expect("a path below the own directory");
        fs::create_dir_all(parent).unwrap_or_else(|error| panic!("{}: {error}", parent.display()));
        let mut file = fs::File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        file.set_permissions(fs::Permissions::from_mode(0o600)).expect("mode 0600");
        file.write_all(text.as_bytes()).expect("room on the disk");
        self.give(&path);
        path
    }

    /// Makes a file or a tree the launcher's.
    pub fn give(&self, path: &Path) {
        let Some(uid) = self.uid() else { return };
        chown(path, Some(uid), Some(uid)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if path.is_dir() && !path.is_symlink() {
            fs::read_dir(path).expect("a directory").for_each(|entry| self.give(&entry.expect("an entry").path()));
        }
    }

    /// The launcher's user id where it is not the one of the tests.
    fn uid(&self) -> Option<u32> {
        (self.launcher == Launcher::Plain && nix::unistd::geteuid().is_root()).then_some(PLAIN)
    }

    /// The program, as the launcher's user, with nothing in its environment but what it needs.
    pub fn oubliette(&self) -> Command {
        let mut command = Command::new(self.dir.path().join("oubliette"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.own());
        command.env("OUBLIETTE_STATE_DIR", self.state()).current_dir(self.own()).stdin(Stdio::null());
        if let Some(uid) = self.uid() {
            // The standard library also empties the supplementary groups when root gives a user id.
            command.uid(uid).gid(uid);
        }
        command
    }

    pub fn state(&self) -> PathBuf {
        self.own().join("state")
    }

    /// `oubliette run` at this level, led by this model. Credential, options and command are to be added.
    pub fn start(&self, level: &str, model: &Model) -> Command {
        let mut command = self.oubliette();
        command.args([
            "run",
            "--user",
            "alice@example.org",
            "--timeout",
            "200s",
            "--level",
            level,
            "--upstream",
            &model.url(),
        ]);
        command
    }

    /// The same with the credential.
    pub fn run(&self, level: &str, model: &Model) -> Command {
        let mut command = self.start(level, model);
        command.arg("--credential-file").arg(self.own().join("token"));
        command
    }

    /// The same with the agent as the command.
    pub fn claude<S: AsRef<OsStr>>(&self, level: &str, model: &Model, options: &[S], arguments: &[&str]) -> Command {
        let mut command = self.run(level, model);
        command.args(options).arg("--").arg(&self.agent).args(arguments);
        command
    }

    /// Cells and files that are left in the state directory.
    pub fn left(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut dirs = vec![self.state().join("cells")];
        while let Some(dir) = dirs.pop() {
            for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
                dirs.extend(path.is_dir().then(|| path.clone()));
                found.push(path);
            }
        }
        found
    }
}

/// An agent: where `.ci/run` installs the version that it pins, else wherever PATH leads.
pub fn agent(name: &str) -> Option<PathBuf> {
    let line = pinned(&format!("\"{name} ")).expect("a line of its own");
    let version = line.split(' ').nth(1).expect("a pinned version");
    installed(&format!("{name}-{version}/bin/{name}")).or_else(|| need_program(name))
}

/// What `.ci/run` says behind this beginning of a line.
pub fn pinned(beginning: &str) -> Option<String> {
    let ci = fs::read_to_string(need::root().join(".ci/run")).expect(".ci/run");
    ci.lines().find_map(|line| line.trim().strip_prefix(beginning)).map(str::to_owned)
}

/// A file that `.ci/run` has installed.
pub fn installed(path: &str) -> Option<PathBuf> {
    let home = std::env::home_dir().unwrap_or_default();
    let prefixes = [PathBuf::from("/opt"), home.join(".cache")];
    prefixes.map(|prefix| prefix.join("oubliette-ci").join(path)).into_iter().find(|path| path.exists())
}

/// Claude Code.
pub fn claude() -> Option<PathBuf> {
    agent("claude")
}

/// Runs a command to its end.
///
/// # Panics
/// After [`LIMIT`]; the process is killed.
pub fn output(command: &mut Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let pid = Pid::from_raw(child.id() as i32);
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        // Nobody listens after the limit, and then the test has failed already.
        let _ = done.send(child.wait_with_output());
    });
    ended.recv_timeout(LIMIT).map_or_else(
        |_| {
            // Not waited for, so the number is still that of this process.
            let _ = kill(pid, Signal::SIGKILL);
            panic!("{command:?} did not end within {LIMIT:?}");
        },
        |output| output.expect("the output of a child"),
    )
}

/// What a finished run showed.
pub struct Seen {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub answers: Vec<Answer>,
    pub requests: Vec<Request>,
}

impl Seen {
    /// Standard error without the note on what a plain user's cell cannot have.
    pub fn complaints(&self) -> String {
        self.stderr.lines().filter(|line| !line.starts_with("oubliette: not enforced here: ")).collect()
    }
}

/// Runs a command, which the model leads, to its end.
pub fn play(mut command: Command, model: Model) -> Seen {
    let output = output(&mut command);
    let requests = model.requests();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Seen {
        status: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
        answers: model.finish(),
        requests,
    }
}

/// `Bash` with a command.
pub fn bash(command: &str) -> Call {
    Call::new("Bash", serde_json::json!({ "command": command }))
}
