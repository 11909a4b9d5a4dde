//! Wipe, export and patch by the real program: what a hostile agent leaves is gone or named, and what the caller asked
//! for is out.

mod out; // copies in, workspaces of the caller's, exports and patches, and each of them failing
mod resume; // what agents go on from, kept beside those
mod user; // workspaces that users keep

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde_json::{Value, json};

use crate::need::{self, need, need_program};
use crate::place::{Ended, PATIENCE, Place, Started, Who, children, marked, marker, within};

/// A private tmpfs, directories, and directories whose launcher relies on modes and names alone.
const LAYOUTS: [(&str, &str); 3] = [
    ("tmpfs", ""),
    ("directories", "root = \"off\""),
    (
        "permissions only",
        "pid = \"off\"\nroot = \"off\"\nipc = \"off\"\nuts = \"off\"\nlandlock-fs = \"off\"\nlandlock-net = \"off\"\n\
         landlock-scope = \"off\"\nseccomp = \"off\"\ncgroup = \"off\"",
    ),
];

/// One layout under a policy.
struct Layout {
    what: String,
    tmpfs: bool,
    policy: String,
}

/// A place that belongs to the launcher's user.
fn a_place(who: Who) -> Place {
    let place = Place::new(who);
    place.give(place.dir.path());
    place
}

/// The layouts of a place; `more` is text of the policy after its layers.
fn layouts(place: &Place, more: &str) -> Vec<Layout> {
    let layout = |(name, layers): (&str, &str)| {
        let policy = place.policy(&format!("{layers}\n{more}"));
        let private = place.enforces(&policy, &["root"]);
        let there = !layers.is_empty() || need("a private root", private);
        let policy = policy.to_str().unwrap().to_owned();
        there.then(|| Layout { what: format!("{:?}, {name}", place.who), tmpfs: private, policy })
    };
    LAYOUTS.into_iter().filter_map(layout).collect()
}

/// Starts `PROGRAM run …` as `PROGRAM run -q --report-fd 9 …` under the strictest umask; the report goes to the file
/// named first.
const WITH_REPORT: &str = "umask 077; p=$1; shift 2; exec \"$p\" run -q --report-fd 9 \"$@\" 9>\"$0\"";

/// A launch whose report is written to a file.
struct Reported {
    report: PathBuf,
    started: Started,
}

impl Reported {
    fn start(place: &Place, options: &[&str], command: &[&str]) -> Reported {
        let mut run = place.command("run");
        run.args(options).arg("--").args(command);
        Reported::of(place, &mut run)
    }

    /// The report comes by a descriptor of this file.
    fn of(place: &Place, run: &mut Command) -> Reported {
        let report = place.file(&format!("report-{:08x}", rand::random::<u32>()), "");
        let mut wrapped = through(place, &["sh", "-c", WITH_REPORT], &report, run);
        Reported { report, started: Started::new(&mut wrapped) }
    }

    fn end(self) -> (Ended, Value) {
        let ended = self.started.end();
        let said = fs::read(&self.report).unwrap();
        let report = serde_json::from_slice(&said).unwrap_or_else(|_| panic!("{ended:?}"));
        (ended, report)
    }
}

/// A command of the place as the last arguments of another program, whose own first one is a path.
fn through(place: &Place, words: &[&str], path: &Path, command: &Command) -> Command {
    let mut wrapped = Command::new(words[0]);
    wrapped.args(&words[1..]).arg(path).arg(command.get_program()).args(command.get_args()).env_clear();
    wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir(place.dir.path());
    if nix::unistd::geteuid().is_root() && place.who == Who::Plain {
        wrapped.uid(place.who.uid()).gid(place.who.uid());
    }
    wrapped
}

/// What must not change while a cell that knows its path is wiped.
struct Precious(PathBuf);

impl Precious {
    fn new(place: &Place) -> Precious {
        let precious = place.directory("precious");
        let mode = |name: &str, mode| {
            fs::set_permissions(precious.join(name), PermissionsExt::from_mode(mode)).unwrap();
        };
        place.file("precious/file", "precious");
        mode("file", 0o644);
        // Everybody may reach it: only the wipe itself keeps its hands off.
        mode("", 0o777);
        Precious(precious)
    }

    fn assert_intact(&self, what: &str) {
        assert_eq!(fs::read_to_string(self.0.join("file")).unwrap(), "precious", "{what}");
        assert_eq!(fs::metadata(self.0.join("file")).unwrap().mode() & 0o7777, 0o644, "{what}");
        assert_eq!(fs::metadata(&self.0).unwrap().mode() & 0o7777, 0o777, "{what}");
        assert_eq!(fs::read_dir(&self.0).unwrap().count(), 1, "{what}");
    }
}

/// Leaves everything that is hard to remove in HOME, in /tmp and in its working directory, and says how much there is.
const HOSTILE: &str = r#"
import os, socket, sys
precious = os.fsencode(sys.argv[1])
start = os.getcwd()

def closed(at):
    for mode in (0o000, 0o500, 0o100, 0o400):
        tree = os.path.join(at, 'closed-%o' % mode)
        os.makedirs(os.path.join(tree, 'in', 'side'))
        for where in (tree, os.path.join(tree, 'in'), os.path.join(tree, 'in', 'side')):
            open(os.path.join(where, 'file'), 'w').close()
        for where in (os.path.join(tree, 'in', 'side'), os.path.join(tree, 'in'), tree):
            os.chmod(where, mode)

def deep(at, levels):
    os.chdir(at)
    for _ in range(levels):
        os.mkdir('d')
        os.chdir('d')
    open('bottom', 'w').close()
    os.chdir(start)

def odd(at):
    base = os.fsencode(at)
    for name in (b'two\nlines', b'\x1b[2J', b'\xff\xfe', b'-rf', b'*', b' ', b'n' * 255):
        open(os.path.join(base, name), 'w').close()
        os.mkdir(os.path.join(base, b'in-' + name[:250]))
        open(os.path.join(base, b'in-' + name[:250], name), 'w').close()
    os.mkfifo(os.path.join(base, b'fifo'), 0)
    os.chdir(at)
    try:
        socket.socket(socket.AF_UNIX).bind('socket')
    except OSError:
        # Where a socket with a path could reach others it cannot be made.
        os.mkfifo('socket')
    os.chdir(start)

def links(at):
    base = os.fsencode(at)
    for number, target in enumerate((precious, precious + b'/file', b'..', b'.', b'/', b'/etc/passwd', b'loop')):
        os.symlink(target, os.path.join(base, b'link-%d' % number))
    os.symlink(b'loop', os.path.join(base, b'loop'))
    try:
        os.link(precious + b'/file', os.path.join(base, b'hard'))
    except OSError:
        pass

for at in (os.environ['HOME'], os.environ['TMPDIR'], start):
    odd(at)
    links(at)
    closed(at)
deep(os.environ['HOME'], int(sys.argv[3]))
os.mkdir('many')
for number in range(int(sys.argv[2])):
    open('many/%d' % number, 'w').close()
    if number % 1000 == 0:
        print('at', number, flush=True)
print('left', len(os.listdir('many')), len(os.listdir(start)), flush=True)
for at in (os.environ['HOME'], os.environ['TMPDIR'], start):
    os.chmod(at, 0)
sys.stdin.readline()
sys.exit(7)
"#;

/// How many names it has made in its working directory: 7 files and 7 directories with odd names, fifo, socket, 8
/// links, 4 closed trees, `many`; perhaps a hard link.
const LEFT: [&str; 2] = ["29", "30"];

fn python() -> Option<&'static str> {
    let python = "/usr/bin/python3";
    need("python3", Path::new(python).is_file()).then_some(python)
}

/// The hostile agent when it has left everything and waits.
fn hostile(
    place: &Place,
    layout: &Layout,
    python: &str,
    precious: &Precious,
    mark: &str,
    (files, levels): (u32, u32),
) -> Reported {
    let mark = format!("MARK={mark}");
    let options = ["--policy", &layout.policy, "--setenv", &mark];
    let command = [python, "-c", HOSTILE, precious.0.to_str().unwrap(), &files.to_string(), &levels.to_string()];
    let mut run = Reported::start(place, &options, &command);
    // Many lines, for which it has as much time each: a busy disk is no failure.
    let mut said = String::from("at 0");
    while said.starts_with("at ") {
        said = crate::place::read_line(run.started.child.stdout.as_mut().unwrap());
    }
    let whole = LEFT.map(|names| format!("left {files} {names}")).contains(&said);
    assert!(whole, "{}: {said:?} {:?}", layout.what, run.end());
    run
}

fn hostile_leftovers(who: Who) {
    let Some(python) = python() else { return };
    let place = a_place(who);
    let precious = Precious::new(&place);
    for layout in layouts(&place, "") {
        let what = &layout.what;
        let (ended, report) = hostile(&place, &layout, python, &precious, "ends", (20_000, 2000)).end();
        assert_eq!(ended.status.code(), Some(7), "{what}: {ended:?}");
        assert_eq!((&report["left"], &report["status"]), (&json!([]), &json!(7)), "{what}");
        assert_eq!(ended.err, "", "{what}");
        place.assert_nothing_left(&[report["cell"].as_str().unwrap().into()]);
        precious.assert_intact(what);

        let mark = marker();
        let mut killed = hostile(&place, &layout, python, &precious, &mark, (100, 100));
        let cells = place.cells();
        assert_eq!(cells.len(), 1, "{what}");
        killed.started.kill();
        // A cell is alive until the last process that has its lock is gone.
        within(PATIENCE, what, || {
            place.sweep();
            place.cells().is_empty() && marked(&mark).is_empty()
        });
        place.assert_nothing_left(&cells);
        precious.assert_intact(what);
    }
}

#[test]
fn hostile_leftovers_as_root() {
    if need::as_root() {
        hostile_leftovers(Who::Root);
    }
}

#[test]
fn hostile_leftovers_as_a_plain_user() {
    hostile_leftovers(Who::Plain);
}

fn flag(chattr: &Path, change: &str, at: &Path) -> bool {
    Command::new(chattr).arg(change).arg(at).stderr(Stdio::null()).status().unwrap().success()
}

/// A run in the layout of directories that has left a tree and waits, and the tree with these flags on it.
fn with_flags(place: &Place, chattr: &Path, flags: &[(&str, &str)]) -> Option<(Reported, PathBuf)> {
    let policy = place.policy("root = \"off\"");
    let script =
        "mkdir -p \"$HOME/a/b\"; echo x >\"$HOME/a/b/file\"; echo x >\"$HOME/a/log\"; echo ready; read l; exit 3";
    let mut run = Reported::start(place, &["--policy", policy.to_str().unwrap()], &["sh", "-c", script]);
    run.started.line("ready");
    let home = place.path("state/cells").join(&place.cells()[0]).join("home");
    let set = flags.iter().all(|(change, at)| flag(chattr, change, &home.join(at)));
    need("immutable flags", set).then_some((run, home))
}

const EVERY_FLAG: [(&str, &str); 4] = [("+i", "a/b/file"), ("+a", "a/log"), ("+i", "a/b"), ("+a", "a")];

#[test]
fn immutable_flags_as_root() {
    let Some(chattr) = need_program("chattr").filter(|_| need::as_root()) else { return };
    let place = Place::new(Who::Root);
    let Some((run, _)) = with_flags(&place, &chattr, &EVERY_FLAG) else { return };
    let (ended, report) = run.end();
    assert_eq!((ended.status.code(), &report["left"]), (Some(3), &json!([])), "{ended:?}");
    place.assert_nothing_left(&[]);

    // The keeper removes what the launcher left, and a sweep what both did.
    for both in [false, true] {
        let Some((mut run, home)) = with_flags(&place, &chattr, &EVERY_FLAG) else { return };
        if both {
            run.started.signal(Signal::SIGSTOP);
            assert!(run.started.stopped());
            kill(children(run.started.pid())[0], Signal::SIGKILL).unwrap();
        }
        run.started.kill();
        assert!(!both || home.join("a/b/file").exists());
        within(PATIENCE, "it is removed", || {
            both.then(|| place.sweep());
            // The keeper gives the UID back when the cell is gone.
            place.cells().is_empty() && place.leases().is_empty()
        });
        place.assert_nothing_left(&[]);
    }
}

#[test]
fn immutable_flags_as_a_plain_user() {
    let Some(chattr) = need_program("chattr").filter(|_| need::as_root()) else { return };
    let place = Place::new(Who::Plain);
    let Some((run, _)) = with_flags(&place, &chattr, &[("+i", "a/b/file")]) else { return };
    let cell = place.path("state/cells").join(&place.cells()[0]);
    let (ended, report) = run.end();
    // What the wipe has moved is still there, under a name that the report tells.
    let left = report["left"].as_array().unwrap();
    let told = left[0]["why"].as_str().unwrap();
    let now = cell.join(told.rsplit_once("; now at ").unwrap().1);
    let there = now.exists();
    let swept = place.command("sweep").arg("--json").output().unwrap();
    let again: Value = serde_json::from_slice(&swept.stdout).unwrap();
    let still = find_file(&cell, "file").unwrap();
    assert!(flag(&chattr, "-i", &still));
    assert_eq!((ended.status.code(), left.len()), (Some(3), 1), "{ended:?} {report}");
    assert_eq!(left[0]["name"], "home/a/b/file");
    assert!(told.starts_with("Operation not permitted"), "{told}");
    assert!(there, "{}", now.display());
    assert!(ended.err.contains("cannot remove home/a/b/file: Operation not permitted"), "{}", ended.err);
    assert_ne!(again["left"], json!([]), "{again}");
    assert_ne!(swept.status.code(), Some(0));
    place.sweep();
    place.assert_nothing_left(&[]);
}

fn find_file(dir: &Path, name: &str) -> Option<PathBuf> {
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name() == name {
                return Some(entry.path());
            }
            waiting.extend(entry.file_type().is_ok_and(|kind| kind.is_dir()).then(|| entry.path()));
        }
    }
    None
}

const TOKEN: &str = "sk-test-0123456789abcdef0123456789abcdef";

/// An agent with settings, a HOME and a credential, whose program is a script.
fn plant_agent(place: &Place, script: &str) {
    let text = fs::read_to_string(need::root().join("policies/agents/claude.toml")).unwrap();
    let text = text.replace("commands = [\"claude\"]", "commands = [\"scripted\"]");
    let text = text.replace("[home]\n", "[home]\n\".scripted\" = \"the launcher's\"\n");
    place.directory("policies");
    place.directory("policies/agents");
    place.file("policies/agents/scripted.toml", &text);
    place.directory("bin");
    let read = "for a; do case $a in --settings=*) cat \"${a#*=}\" >/dev/null || exit 9;; esac; done";
    let program = place.file("bin/scripted", &format!("#!/bin/sh\n{read}\n{script}\n"));
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let token = place.file("token", TOKEN);
    fs::set_permissions(&token, PermissionsExt::from_mode(0o600)).unwrap();
}

/// A run of that agent that waits, and every file that its launcher has written, opened from outside.
fn written(place: &Place, command: &[&str]) -> (Reported, Vec<(PathBuf, File)>) {
    let policy = place.policy("root = \"off\"");
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", place.path("bin").display());
    let mut run = place.command("run");
    run.env("PATH", path).arg("--policy-dir").arg(place.path("policies")).arg("--policy").arg(policy);
    run.args(["--agent", "scripted", "--network", "host", "--credential-file", "token", "--"]).args(command);
    let mut run = Reported::of(place, &mut run);
    let said = crate::place::read_line(run.started.child.stdout.as_mut().unwrap());
    assert_eq!(said, "ready", "{:?}", run.started.end());
    let cell = place.path("state/cells").join(&place.cells()[0]);
    let names = ["home/.scripted", "home/.gitconfig", "settings/settings.json", "home/.credential"];
    let open = |name: &&str| Some((PathBuf::from(name), File::open(cell.join(name)).ok()?));
    (run, names.iter().filter_map(open).collect())
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn on_disk(place: &Place) -> bool {
    need("a scratch directory on a disk", statfs(place.dir.path()).unwrap().filesystem_type() != TMPFS_MAGIC)
}

/// What an agent does to the launcher's files before it ends.
const MEANWHILE: [&str; 4] =
    ["", "chmod 0 \"$HOME\"", "chmod 0 \"$HOME\"/.[a-z]* \"$HOME\"", "ln \"$HOME/.scripted\" \"$HOME/again\""];

#[test]
fn files_of_the_launcher_are_zeroed() {
    for who in Who::all() {
        for meanwhile in MEANWHILE {
            let what = format!("{who:?} {meanwhile:?}");
            let place = Place::new(who);
            if !on_disk(&place) {
                return;
            }
            plant_agent(&place, &format!("{meanwhile}\necho ready; read l; exit 0"));
            let (run, files) = written(&place, &["scripted"]);
            assert_eq!(files.len(), 3, "{what}: {files:?}");
            let before: Vec<Vec<u8>> = files.iter().map(|(_, file)| content(file)).collect();
            assert_eq!(before[0], b"the launcher's", "{what}");
            let (ended, report) = run.end();
            assert_eq!((ended.status.code(), &report["left"]), (Some(0), &json!([])), "{what}: {ended:?}");
            for ((name, file), before) in files.iter().zip(before) {
                assert_eq!(file.metadata().unwrap().nlink(), 0, "{what}: {}", name.display());
                assert_eq!(content(file), vec![0; before.len()], "{what}: {}", name.display());
            }
            place.assert_nothing_left(&[]);
        }
    }
}

/// A command that starts the agent gets the credential as a file: zeroed by the launcher, and by a sweep after a crash.
#[test]
fn the_credential_file_is_zeroed() {
    for (who, killed) in Who::all().into_iter().flat_map(|who| [(who, false), (who, true)]) {
        for meanwhile in ["", "chmod 0 \"$HOME/.credential\" \"$HOME\""] {
            let what = format!("{who:?} killed: {killed} {meanwhile:?}");
            let place = Place::new(who);
            if !on_disk(&place) {
                return;
            }
            plant_agent(&place, &format!("{meanwhile}\necho ready; read l; exit 0"));
            let (mut run, files) = written(&place, &["sh", "-c", "scripted; exit $?"]);
            let (_, file) = files.iter().find(|(name, _)| name.ends_with(".credential")).expect(&what);
            assert_eq!(content(file), TOKEN.as_bytes(), "{what}");
            if killed {
                run.started.kill();
                within(PATIENCE, &what, || {
                    place.sweep();
                    place.cells().is_empty()
                });
            } else {
                let (ended, report) = run.end();
                assert_eq!((ended.status.code(), &report["left"]), (Some(0), &json!([])), "{what}: {ended:?}");
            }
            assert_eq!(file.metadata().unwrap().nlink(), 0, "{what}");
            assert_eq!(content(file), vec![0; TOKEN.len()], "{what}");
            place.assert_nothing_left(&[]);
        }
    }
}

/// Calls of the launcher itself that remove or list.
fn calls(place: &Place, layout: &Layout, strace: &Path, python: &str, files: usize) -> usize {
    let log = place.path(&format!("trace-{:08x}", rand::random::<u32>()));
    let many = "import sys\nfor number in range(int(sys.argv[1])):\n    open(str(number), 'w').close()\n\
                print('ready', flush=True)\nsys.stdin.readline()";
    let files = files.to_string();
    let mut run = place.command("run");
    run.args(["-q", "--policy", &layout.policy, "--", python, "-c", many, &files]);
    let trace =
        [strace.to_str().unwrap(), "-qq", "-e", "trace=unlinkat,unlink,rmdir,getdents64", "-e", "signal=none", "-o"];
    place.file(log.file_name().unwrap().to_str().unwrap(), "");
    let mut started = Started::new(&mut through(place, &trace, &log, &run));
    started.line("ready");
    let killed = place.command("kill").arg(&place.cells()[0]).output().unwrap();
    assert_eq!(killed.status.code(), Some(0), "{}", crate::place::text(&killed));
    let ended = started.end();
    assert_eq!(ended.status.code(), Some(128 + Signal::SIGTERM as i32), "{}: {ended:?}", layout.what);
    place.assert_nothing_left(&[]);
    fs::read_to_string(log).unwrap().lines().count()
}

#[test]
fn twenty_thousand_files_are_wiped_without_a_walk() {
    let (Some(strace), Some(python)) = (need_program("strace"), python()) else { return };
    for who in Who::all() {
        let place = Place::new(who);
        for layout in layouts(&place, "") {
            // Fewer where each is removed on its own: they only show that the count counts.
            let files = if layout.tmpfs { 20_000 } else { 1000 };
            let calls = calls(&place, &layout, &strace, python, files);
            if layout.tmpfs {
                assert!(calls <= 8, "{}: {calls} calls", layout.what);
            } else {
                assert!(calls > files, "{}: the count counts nothing: {calls} calls", layout.what);
            }
        }
    }
}
