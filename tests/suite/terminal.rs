//! The terminal: a shell with job control on a pseudo-terminal of the test's starts runs, and the test types and reads.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;

use crate::need::{need, need_program};
use crate::place::{PATIENCE, Place, Who, children, lives, marked, marker, within};

const CTRL_C: &str = "\x03";
const CTRL_Z: &str = "\x1a";
const PROMPT: &str = "outer> ";

/// With a private root, without one, and with nothing that has an init.
const LAYERS: [&str; 3] = ["", "root = \"off\"", "pid = \"off\"\nroot = \"off\""];

/// A shell on a terminal, as a person has it.
struct Desk {
    place: Place,
    policy: PathBuf,
    marker: String,
    master: Option<PtyMaster>,
    terminal: PathBuf,
    shell: Child,
    before: Termios,
    screen: Vec<u8>,
    read: usize,
}

impl Desk {
    fn new(who: Who, layers: &str) -> Desk {
        let place = Place::new(who);
        let policy = place.policy(layers);
        // Close-on-exec, or what other tests start would keep the terminal alive.
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let terminal = PathBuf::from(ptsname_r(&master).unwrap());
        let slave = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&terminal).unwrap();
        let before = tcgetattr(&master).unwrap();
        let copy = || Stdio::from(slave.try_clone().unwrap());
        let mut command = Command::new("setsid");
        command.args(["--ctty", "bash", "--norc", "--noprofile", "--noediting", "-i"]).env_clear();
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("TERM", "xterm").env("PS1", PROMPT);
        command.stdin(copy()).stdout(copy()).stderr(copy()).current_dir(place.dir.path());
        if nix::unistd::geteuid().is_root() && who == Who::Plain {
            command.uid(who.uid()).gid(who.uid());
        }
        let shell = command.spawn().unwrap();
        let (screen, marker) = (Vec::new(), marker());
        let mut desk = Desk { place, policy, marker, master: Some(master), terminal, shell, before, screen, read: 0 };
        desk.see(PROMPT);
        desk
    }

    /// Types the start of a script in a cell. The command is in a file, so that its echo has nothing of the script.
    fn start(&mut self, options: &[&str], script: &str, after: &str) {
        let mark = format!("MARK={}", self.marker);
        let policy = self.policy.to_str().unwrap();
        let run = self.place.run(&[&["--policy", policy, "--setenv", &mark], options].concat(), script);
        let quoted = |text: &std::ffi::OsStr| format!("'{}'", text.to_str().unwrap().replace('\'', r"'\''"));
        let set = run.get_envs().map(|(name, value)| format!("{}={}", name.display(), quoted(value.unwrap())));
        let words = std::iter::once(run.get_program()).chain(run.get_args()).map(quoted);
        let line: Vec<String> = set.chain(["TERM=xterm".to_owned()]).chain(words).collect();
        let exec = if after.starts_with('|') { "" } else { "exec " };
        fs::write(self.place.path("go"), format!("{exec}env {} {after}\n", line.join(" "))).unwrap();
        self.keys("sh ./go\n");
    }

    fn keys(&mut self, keys: &str) {
        self.master.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for a text on the screen, after the one that was waited for before; gives what is before it.
    fn see(&mut self, text: &str) -> String {
        self.seen_within(PATIENCE, text).unwrap_or_else(|| {
            panic!("no {text:?} but {:?}", String::from_utf8_lossy(&self.screen[self.read..]));
        })
    }

    fn seen_within(&mut self, limit: Duration, text: &str) -> Option<String> {
        let until = Instant::now() + limit;
        let mut from = self.read;
        loop {
            if let Some(at) = self.screen[from..].windows(text.len()).position(|window| window == text.as_bytes()) {
                let said = String::from_utf8_lossy(&self.screen[self.read..from + at]).into_owned();
                self.read = from + at + text.len();
                return Some(said);
            }
            from = self.screen.len().saturating_sub(text.len()).max(self.read);
            let master = self.master.as_mut().unwrap();
            let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now())).unwrap();
            if poll(&mut [PollFd::new(master.as_fd(), PollFlags::POLLIN)], left).unwrap() == 0 {
                return None;
            }
            let mut chunk = [0; 65_536];
            let length = master.read(&mut chunk).unwrap_or(0);
            if length == 0 {
                return None;
            }
            self.screen.extend(&chunk[..length]);
        }
    }

    fn modes(&self) -> Termios {
        tcgetattr(self.master.as_ref().unwrap()).unwrap()
    }

    fn is_raw(&self) -> bool {
        !self.modes().local_flags.intersects(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG)
    }

    fn launcher(&self) -> Option<Pid> {
        children(Pid::from_raw(self.shell.id() as i32)).first().copied()
    }

    /// The shell is back, the terminal is as it was, and the job has ended with this status.
    fn ended(&mut self, status: i32) {
        self.see(PROMPT);
        self.as_before();
        self.keys("echo status $?\n");
        // The echo of what is typed has no number in it; and nothing else was typed into this shell.
        let echo = self.see(&format!("status {status}\r\n{PROMPT}"));
        assert_eq!(echo, "echo status $?\r\n");
        self.place.assert_nothing_left(&[]);
        assert_eq!(marked(&self.marker), []);
    }

    fn as_before(&self) {
        assert_eq!(self.modes(), self.before);
    }

    fn resize(&self, rows: u16, columns: u16) {
        let terminal = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&self.terminal);
        let size = [rows.to_string(), columns.to_string()];
        let mut stty = Command::new("stty");
        stty.args(["rows", &size[0], "cols", &size[1]]).stdin(terminal.unwrap());
        assert!(stty.status().unwrap().success());
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        // The hangup ends what runs in front.
        self.master = None;
        let _ = self.shell.kill();
        let _ = self.shell.wait();
        // After a test that failed; nobody else's process has the marker.
        for pid in marked(&self.marker) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

/// Every account and every set of layers, each at a desk of its own.
fn each(act: impl Fn(&mut Desk)) {
    if need_program("bash").is_none() {
        return;
    }
    for who in Who::all() {
        for layers in LAYERS {
            eprintln!("{who:?} with {layers:?}");
            act(&mut Desk::new(who, layers));
        }
    }
}

/// The state letter of a process.
fn state(pid: Pid) -> Option<char> {
    fs::read_to_string(format!("/proc/{pid}/stat")).ok()?.rsplit_once(") ")?.1.chars().next()
}

/// The state letters of the agent's processes.
fn states(marker: &str) -> String {
    let is_init = |pid: &Pid| fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with(b"oubliette"));
    marked(marker).into_iter().filter(|pid| !is_init(pid)).filter_map(state).collect()
}

#[test]
fn ctrl_c_interrupts_what_is_in_front() {
    each(|desk| {
        let script = "trap 'echo trapped' INT; sh -c 'echo ready; exec sleep 1000'; echo status of it: $?; \
                      read line; echo got $line; exit 7";
        desk.start(&[], script, "");
        desk.see("ready");
        assert!(desk.is_raw());
        desk.keys(CTRL_C);
        desk.see("trapped");
        desk.see("status of it: 130");
        desk.keys("a word\n");
        desk.see("got a word");
        desk.ended(7);
    });
}

#[test]
fn ctrl_c_ends_a_program_that_does_nothing_about_it() {
    each(|desk| {
        desk.start(&[], "echo ready; exec sleep 1000", "");
        desk.see("ready");
        desk.keys(CTRL_C);
        desk.ended(130);
    });
}

#[test]
fn ctrl_z_stops_the_run_and_fg_resumes_it() {
    each(|desk| {
        desk.start(&[], "trap 'echo continued' CONT; echo ready; while :; do read line && echo got $line; done", "");
        desk.see("ready");
        for _ in 0..2 {
            desk.keys(CTRL_Z);
            desk.see("Stopped");
            desk.see(PROMPT);
            desk.as_before();
            assert_eq!(states(&desk.marker), "T");
            assert_eq!(desk.launcher().and_then(state), Some('T'));
            desk.keys("fg\n");
            desk.see("continued");
            within(PATIENCE, "raw again", || desk.is_raw());
            desk.keys("a word\n");
            desk.see("got a word");
        }
        desk.keys(CTRL_C);
        desk.ended(130);
    });
}

#[test]
fn a_stopped_run_can_be_killed() {
    each(|desk| {
        desk.start(&[], "echo ready; exec sleep 1000", "");
        desk.see("ready");
        desk.keys(CTRL_Z);
        desk.see("Stopped");
        desk.see(PROMPT);
        desk.keys("kill %1\n");
        desk.see(PROMPT);
        within(PATIENCE, "nothing is left", || marked(&desk.marker).is_empty() && desk.place.cells().is_empty());
        within(PATIENCE, "the launcher is gone", || !desk.launcher().is_some_and(lives));
        desk.keys("\n");
        desk.see("Exit 143");
        desk.see(PROMPT);
        desk.as_before();
        desk.place.assert_nothing_left(&[]);
        assert_eq!(marked(&desk.marker), []);
    });
}

#[test]
fn the_window_can_be_resized() {
    each(|desk| {
        desk.resize(30, 90);
        desk.start(&[], "stty size; trap 'stty size' WINCH; echo ready; while :; do read line; done", "");
        desk.see("30 90\r\nready");
        desk.resize(41, 133);
        desk.see("41 133");
        desk.keys(CTRL_C);
        desk.ended(130);
    });
}

#[test]
fn a_full_screen_program_works() {
    if need_program("less").is_none() || need_program("top").is_none() {
        return;
    }
    each(|desk| {
        desk.resize(24, 80);
        desk.start(&[], "seq 1 500 >numbers; exec less numbers", "");
        desk.see("\x1b[?1049h");
        desk.see("23\r\n");
        desk.keys("G");
        desk.see("500");
        desk.keys("q");
        desk.see("\x1b[?1049l");
        desk.ended(0);
        if desk.place.enforces(&desk.policy, &["root"]) {
            // It needs a /proc to read.
            desk.start(&[], "exec top -d 100", "");
            desk.see("PID");
            desk.keys("q");
            desk.ended(0);
        }
    });
}

#[test]
fn the_modes_are_as_before_however_a_run_ends() {
    each(|desk| {
        let stty = "stty raw -echo; ";
        desk.start(&[], &format!("{stty} exit 3"), "");
        desk.ended(3);
        desk.start(&[], &format!("{stty} kill -9 $$"), "");
        desk.ended(137);
        desk.start(&["--timeout", "1s"], &format!("{stty} echo ready; exec sleep 1000"), "");
        desk.see("ready");
        desk.see("oubliette: cannot let ");
        // Its messages come when the modes are back.
        desk.see("\r\n");
        desk.ended(124);
        desk.start(&[], &format!("{stty} echo ready; exec sleep 1000"), "");
        desk.see("ready");
        kill(desk.launcher().unwrap(), Signal::SIGTERM).unwrap();
        desk.ended(143);
        desk.start(&[], "exec /nonexistent/program", "");
        desk.see("not found");
        desk.ended(127);
    });
}

/// What the terminal is, its number in /proc where there is one, every open file, and an attempt to type into it.
const INSIDE: &str = r#"tty; set -- $(sed 's/.*) //' /proc/$$/stat 2>/dev/null); echo number $5
/usr/bin/python3 -c 'import fcntl, os, termios
for fd in range(1024):
    try: print("open", os.fstat(fd).st_dev, os.fstat(fd).st_rdev)
    except OSError: pass
try: fcntl.ioctl(0, termios.TIOCSTI, b"x")
except OSError as error: print("TIOCSTI", error.errno)'
: >/dev/tty && echo has a tty; exit 4"#;

#[test]
fn the_terminal_inside_is_another() {
    if !need("python3", fs::metadata("/usr/bin/python3").is_ok()) {
        return;
    }
    each(|desk| {
        desk.start(&[], INSIDE, "");
        let said = desk.see("has a tty");
        let outer = fs::metadata(&desk.terminal).unwrap();
        assert!(!said.contains(&format!("open {} {}\r\n", outer.dev(), outer.rdev())), "{said}");
        assert!(said.contains("open ") && said.contains("TIOCSTI 1\r\n"), "{said}");
        assert!(said.contains("/dev/pts/"), "{said}");
        if desk.place.enforces(&desk.policy, &["root"]) {
            assert!(said.contains("/dev/pts/0\r\n"), "{said}");
            assert!(said.contains("number ") && !said.contains("number 0"), "{said}");
        }
        desk.ended(4);
    });
}

#[test]
fn a_shell_inside_has_job_control() {
    each(|desk| {
        desk.start(&[], "exec bash --norc --noprofile --noediting -i", "");
        desk.see("$ ");
        desk.keys("PS1=in'ner> '\n");
        desk.see("inner> ");
        desk.keys("sleep 1000 &\n");
        desk.see("[1] ");
        desk.keys("jobs\n");
        desk.see("Running");
        desk.keys("fg\n");
        desk.see("fg\r\n");
        desk.see("sleep 1000\r\n");
        // It comes to the front a moment after the shell has said its name; at its prompt the shell ignores the key.
        let stopped = (0..100).any(|_| {
            desk.keys(CTRL_Z);
            desk.seen_within(Duration::from_millis(200), "Stopped").is_some()
        });
        assert!(stopped);
        // The second is for a shell that has not heard yet that the job is dead.
        desk.keys("kill -9 %1; exit 5; exit 5\n");
        desk.ended(5);
    });
}

#[test]
fn ctrl_c_and_ctrl_z_where_the_output_is_no_terminal() {
    each(|desk| {
        let out = desk.place.file("out", "");
        desk.start(
            &[],
            "[ -t 0 ] && [ ! -t 1 ] && echo ready; read line; echo got $line; exec sleep 1000",
            "| (trap '' INT; exec cat >out)",
        );
        let says = |text: &str| {
            within(PATIENCE, text, || fs::read_to_string(&out).unwrap().ends_with(text));
        };
        says("ready\n");
        desk.as_before();
        desk.keys(CTRL_Z);
        desk.see("Stopped");
        desk.see(PROMPT);
        within(PATIENCE, "the agent is stopped, too", || states(&desk.marker) == "T");
        desk.keys("fg\n");
        desk.see("fg\r\n");
        within(PATIENCE, "the agent goes on", || states(&desk.marker) == "S");
        desk.keys("a word\n");
        says("got a word\n");
        desk.keys(CTRL_C);
        desk.ended(130);
    });
}

#[test]
fn a_long_output_is_complete() {
    each(|desk| {
        desk.start(&["-q"], "yes 0123456789abcde | head -c 1048576", "");
        desk.see("sh ./go\r\n");
        let said = desk.see(PROMPT);
        assert_eq!(said.len(), (1 << 20) + (1 << 16));
        assert_eq!(said.matches("0123456789abcde\r\n").count(), 1 << 16);
        desk.read -= PROMPT.len();
        desk.ended(0);
    });
}

#[test]
fn a_hangup_ends_the_run() {
    each(|desk| {
        desk.start(&["--grace", "300ms"], "trap '' HUP TERM; echo ready; while :; do sleep 1000; done", "");
        desk.see("ready");
        desk.master = None;
        within(Duration::from_secs(5), "nothing is left", || {
            marked(&desk.marker).is_empty() && desk.place.cells().is_empty() && desk.place.leases().is_empty()
        });
    });
}

#[test]
fn the_agent_dies_with_its_launcher() {
    each(|desk| {
        desk.start(&[], "echo ready; exec sleep 1000", "");
        desk.see("ready");
        kill(desk.launcher().unwrap(), Signal::SIGKILL).unwrap();
        within(Duration::from_secs(1), "no process is left", || marked(&desk.marker).is_empty());
        desk.see("Killed");
        desk.place.sweep();
        desk.place.assert_nothing_left(&[]);
    });
}

#[test]
fn a_terminal_that_nobody_reads_does_not_hold_up_the_deadline() {
    each(|desk| {
        desk.start(&["--timeout", "1s", "--grace", "200ms"], "exec yes", "");
        within(PATIENCE, "the run has started", || !desk.place.cells().is_empty());
        within(Duration::from_secs(10), "nothing is left", || {
            marked(&desk.marker).iter().all(|pid| Some(*pid) == desk.launcher()) && desk.place.cells().is_empty()
        });
        desk.ended(124);
    });
}

#[test]
fn a_paste_that_the_agent_does_not_read_does_not_hold_up_the_deadline() {
    each(|desk| {
        let options = ["--timeout", "1s", "--grace", "200ms"];
        desk.start(&options, "stty raw -echo; echo ready; exec sleep 1000", "");
        desk.see("ready");
        let master = desk.master.as_mut().unwrap();
        fcntl(&*master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK)).unwrap();
        // As much as every buffer on the way takes.
        within(PATIENCE, "the buffers are full or the run is over", || {
            let full = master.write(&[b'x'; 4096]).is_err();
            full || desk.place.cells().is_empty()
        });
        within(Duration::from_secs(10), "nothing is left", || {
            marked(&desk.marker).iter().all(|pid| Some(*pid) == desk.launcher()) && desk.place.cells().is_empty()
        });
    });
}

#[test]
fn stages_are_told_where_nothing_is_disturbed() {
    const STAGES: [&str; 9] =
        ["planned", "leased", "created", "written", "cloned", "running", "ended", "killed", "wiped"];
    each(|desk| {
        let told = |said: &str| {
            let first = |line: &str| line.strip_prefix("oubliette: ")?.split(' ').next().map(str::to_owned);
            let words: Vec<String> = said.lines().filter_map(first).collect();
            words.into_iter().filter(|word| STAGES.contains(&word.as_str())).collect::<Vec<String>>()
        };
        let mut said = |options: &[&str], after: &str| {
            desk.start(options, "exit 0", after);
            let said = desk.see(PROMPT);
            desk.read -= PROMPT.len();
            desk.ended(0);
            said
        };
        assert_eq!(told(&said(&[], "</dev/null")), STAGES);
        assert_eq!(said(&["-q"], "</dev/null"), "sh ./go\r\n");
        assert_eq!(told(&said(&[], "")), [""; 0], "the agent has the terminal");
        let file = desk.place.file("errors", "");
        let mut said = |after: &str| {
            desk.start(&[], "exit 0", after);
            desk.see(PROMPT);
            desk.read -= PROMPT.len();
            desk.ended(0);
        };
        said("</dev/null 2>errors");
        assert_eq!(told(&fs::read_to_string(file).unwrap()), [""; 0]);
    });
}
