//! Launches of the real program, each in a place of its own: as root in a private mount namespace whose /run is the
//! test's, as a plain user with a runtime directory of the test's. Every wait is bounded.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::need;

/// The longest that one launch may take on a busy machine.
const LONGEST: Duration = Duration::from_secs(60);

/// Who launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Root, with every capability.
    Root,
    /// A user without any right.
    Plain,
}

/// Those whom this test can be.
pub fn everybody() -> Vec<Who> {
    let mut all = vec![Who::Plain];
    all.extend(need::as_root().then_some(Who::Root));
    all
}

/// A place for launches: the program, two state directories, files of the test's.
pub struct Lab {
    dir: tempfile::TempDir,
    /// The plain user.
    pub uid: u32,
}

impl Lab {
    /// A directory that everybody may enter, with the program in it.
    pub fn new() -> Lab {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new()
            .prefix("lab-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in("/tmp")
            .unwrap();
        let program = dir.path().join("oubliette");
        crate::need::copy_launcher(&program);
        let root = nix::unistd::geteuid().is_root();
        let own = nix::unistd::geteuid().as_raw();
        let fresh = 52_000 + std::process::id() % 500 * 64 + NEXT.fetch_add(1, Ordering::Relaxed) % 64;
        let lab = Lab { dir, uid: if root { fresh } else { own } };
        fs::create_dir(lab.path("run")).unwrap();
        fs::set_permissions(lab.path("run"), Permissions::from_mode(0o755)).unwrap();
        lab.directory("mine", 0o700);
        lab
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The plain user's directory, with this mode.
    pub fn directory(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        self.give(&path, mode)
    }

    /// The plain user's file, with this mode.
    pub fn file(&self, name: &str, text: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        self.give(&path, mode)
    }

    /// Gives something to the plain user.
    pub fn give(&self, path: &Path, mode: u32) -> PathBuf {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        if nix::unistd::geteuid().is_root() {
            chown(path, Some(self.uid), Some(self.uid)).unwrap();
        }
        path.to_owned()
    }

    /// A launch with these words after the program's name.
    pub fn launch<I: IntoIterator<Item = S>, S: Into<OsString>>(&self, who: Who, words: I) -> Launch<'_> {
        Launch {
            lab: self,
            who,
            words: words.into_iter().map(Into::into).collect(),
            mounts: String::new(),
            setup: String::new(),
            through: String::new(),
            redirect: String::new(),
            after: String::new(),
            program: self.path("oubliette"),
            variables: Vec::new(),
        }
    }

    /// What is left of launches: entries of the state directories, and processes that were started from here.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for place in ["run/oubliette/cells", "run/oubliette/uids", "mine/oubliette/cells", "mine/oubliette/uids"] {
            let entries = fs::read_dir(self.path(place)).into_iter().flatten().flatten();
            // Which number is lent next outlives every run.
            let entries = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with("next-"));
            left.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        left.extend(self.processes().into_iter().map(|(pid, words)| format!("{pid}: {words}")));
        left
    }

    /// Processes whose arguments name this place.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let here = self.dir.path().to_string_lossy().into_owned();
        let pids =
            fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let with_words = pids.map(|pid: u32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            (pid, String::from_utf8_lossy(&words).replace('\0', " "))
        });
        with_words.filter(|(_, words)| words.contains(&here)).collect()
    }
}

/// One launch that is being put together.
pub struct Launch<'a> {
    lab: &'a Lab,
    who: Who,
    words: Vec<OsString>,
    mounts: String,
    setup: String,
    through: String,
    redirect: String,
    after: String,
    program: PathBuf,
    variables: Vec<(OsString, OsString)>,
}

impl Launch<'_> {
    /// Shell commands as root in the private mount namespace; `$L` is the place.
    pub fn mounts(mut self, commands: &str) -> Self {
        self.mounts += &format!("{commands} && ");
        self
    }

    /// Shell commands and redirections before the program, with the rights of the runner.
    pub fn setup(mut self, commands: &str) -> Self {
        self.setup += &format!("{commands} && ");
        self
    }

    /// A program that executes this one: `prlimit --nofile=3`.
    pub fn through(mut self, words: &str) -> Self {
        self.through = words.to_owned();
        self
    }

    /// Redirections of the program: `<&-`.
    pub fn redirect(mut self, words: &str) -> Self {
        self.redirect = words.to_owned();
        self
    }

    /// Shell commands when the program has ended.
    pub fn after(mut self, commands: &str) -> Self {
        self.after = commands.to_owned();
        self
    }

    /// The program under another name.
    pub fn program(mut self, path: &str) -> Self {
        self.program = path.into();
        self
    }

    /// One more variable.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    fn command(&self) -> Command {
        let root = nix::unistd::geteuid().is_root();
        let id = self.lab.uid;
        let become_user = if root && self.who == Who::Plain {
            format!("setpriv --reuid={id} --regid={id} --clear-groups")
        } else {
            String::new()
        };
        let mounts = if root { format!("mount --bind $L/run /run && {}", self.mounts) } else { String::new() };
        let Launch { setup, through, redirect, after, .. } = self;
        let (exec, after) =
            if after.is_empty() { ("exec", String::new()) } else { ("", format!("; s=$?; {after}; exit $s")) };
        let script = format!("L=$0; {mounts}{setup}{exec} {become_user} {through} \"$@\" {redirect}{after}");
        let mut command = Command::new(if root { "unshare" } else { "sh" });
        if root {
            command.args(["--mount", "--propagation", "private", "sh"]);
        }
        command.arg("-c").arg(script).arg(self.lab.dir.path()).arg(&self.program).args(&self.words);
        let mine = self.lab.path("mine");
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", &mine);
        if self.who == Who::Plain {
            command.env("XDG_RUNTIME_DIR", &mine);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value))).current_dir(self.lab.dir.path());
        command
    }

    /// Starts it; what it says is read when it has ended.
    pub fn start(self) -> Running {
        let mut child =
            self.command().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = collect(child.stdout.take().unwrap());
        let err = collect(child.stderr.take().unwrap());
        Running { child, out, err }
    }

    /// Runs it to its end.
    pub fn run(self) -> Ended {
        self.start().wait()
    }
}

/// A launch that goes on. The launcher has the pid of the child: everything before it executes the next.
pub struct Running {
    /// The launcher.
    pub child: Child,
    out: Receiver<Vec<u8>>,
    err: Receiver<Vec<u8>>,
}

/// Reads a pipe to its end, which comes when the last process that has it is gone.
fn collect(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        sender.send(bytes)
    });
    receiver
}

impl Running {
    /// Its end.
    ///
    /// # Panics
    /// When that does not come.
    pub fn wait(mut self) -> Ended {
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if start.elapsed() < LONGEST => std::thread::sleep(Duration::from_millis(2)),
                None => {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    panic!("it does not end; it said {:?}", self.err.recv_timeout(Duration::from_secs(1)));
                }
            }
        };
        let text = |pipe: &Receiver<Vec<u8>>| {
            let bytes = pipe.recv_timeout(LONGEST).expect("a process of the cell holds its output open");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Ended { status, stdout: text(&self.out), stderr: text(&self.err) }
    }

    /// Waits until the launcher has stopped itself.
    pub fn stopped(&self) -> bool {
        let start = Instant::now();
        while start.elapsed() < LONGEST {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
            match stat.rsplit(") ").next().and_then(|rest| rest.chars().next()) {
                Some('T') => return true,
                Some('Z') | None => return false,
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        false
    }
}

/// What a launch came to.
#[derive(Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ended {
    /// The exit status; 128 + n for a signal.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// What is wrong with this end, where it should be this status, one message that names these words, and one hint.
    pub fn wrong(&self, code: i32, words: &[&str]) -> Option<String> {
        let noted = |line: &&str| !line.starts_with("oubliette: not enforced here: ");
        let lines: Vec<&str> = self.stderr.lines().filter(noted).collect();
        let shape = match lines[..] {
            [message, hint] => {
                message.starts_with("oubliette: cannot ") && hint.starts_with("hint: ") && hint.len() > 8
            }
            _ => false,
        };
        let missing: Vec<&&str> = words.iter().filter(|word| !self.stderr.contains(**word)).collect();
        if shape && missing.is_empty() && self.code() == code && !self.stderr.contains("panicked") {
            return None;
        }
        Some(format!("status {} (wanted {code}), without {missing:?}:\n{}", self.code(), self.stderr))
    }
}
