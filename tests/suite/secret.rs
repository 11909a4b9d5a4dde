//! The credential is found nowhere: not in arguments, environments, files, messages, reports, core files or the memory
//! of another process, however a run ends and wherever its launcher is stopped.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use oubliette::run::progress::Stage as At;
use oubliette::secret::{Secret, SecretSource};

use crate::need;
use crate::stage::{Done, Running, Stage, Who, children, output, wait_for};

/// Where the launcher gets the credential from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    File,
    Descriptor,
    Stdin,
    Variable,
}

const SOURCES: [Source; 4] = [Source::File, Source::Descriptor, Source::Stdin, Source::Variable];

/// Says how long the credential is.
const AGENT: &str = "wc -c <&3";

/// The same, and stays until it is asked to end.
const STAYS: &str = "trap 'exit 0' TERM; wc -c <&3; sleep 60 & wait";

/// A service with one token, and launches that get it.
struct Service {
    stage: Stage,
    who: Who,
    token: String,
    file: PathBuf,
}

impl Service {
    fn new(who: Who) -> Service {
        let stage = Stage::new();
        let token = format!("sk-test-{:032x}", rand::random::<u128>());
        let file = stage.private_file(who, "token", &format!("{token}\n"));
        Service { stage, who, token, file }
    }

    /// A launch with the credential; options and command to follow.
    fn run(&self, source: Source, wrap: &[&str]) -> Command {
        let open = format!("exec \"$@\" 9<{}", self.file.display());
        let opened = ["sh", "-c", &open, "sh"];
        let wrap: Vec<&str> = match source {
            Source::Descriptor => opened.iter().chain(wrap).copied().collect(),
            _ => wrap.to_vec(),
        };
        let mut command = self.stage.run(self.who, &wrap);
        command.args(["--agent", "none", "--network", "host", "--report-fd", "2"]).env("RUST_LOG", "trace");
        match source {
            Source::File => command.arg("--credential-file").arg(&self.file),
            Source::Descriptor => command.args(["--credential-fd", "9"]),
            Source::Stdin => command.arg("--credential-stdin").stdin(Stdio::piped()),
            Source::Variable => {
                command.args(["--credential-env", "TOKEN_OF_SERVICE"]).env("TOKEN_OF_SERVICE", &self.token)
            }
        };
        command
    }

    fn start(&self, source: Source, command: &mut Command) -> Running {
        let mut running = Running::start(command);
        if source == Source::Stdin {
            writeln!(running.child.stdin.take().unwrap(), "{}", self.token).unwrap();
        }
        running
    }

    /// A launch that stops itself at this stage, once it has.
    fn stopped(&self, source: Source, at: At, options: &[&str], agent: &str) -> Running {
        let mut command = self.run(source, &[]);
        command.args(options).args(["--", "sh", "-c", agent]).env("OUBLIETTE_PAUSE_AT", at.name());
        let running = self.start(source, &mut command);
        wait_for_stop(running)
    }

    fn holds(&self, bytes: &[u8]) -> bool {
        count(bytes, self.token.as_bytes()) > 0
    }

    /// Where it is in arguments and environments of all processes, and in files of the state directory.
    fn seen(&self) -> Vec<String> {
        let mut seen = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            for leaf in ["cmdline", "environ"] {
                let path = entry.path().join(leaf);
                if fs::read(&path).is_ok_and(|bytes| self.holds(&bytes)) {
                    seen.push(path.display().to_string());
                }
            }
        }
        seen.extend(self.files(&self.stage.state(self.who)));
        seen
    }

    /// Files below a directory that hold it.
    fn files(&self, top: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut directories = vec![top.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    directories.push(entry.path());
                } else if kind.is_file() && fs::read(entry.path()).is_ok_and(|bytes| self.holds(&bytes)) {
                    found.push(entry.path().display().to_string());
                }
            }
        }
        found
    }

    /// What a run said and left.
    fn check_end(&self, done: &Done) {
        assert!(!self.holds(done.out.as_bytes()), "standard output: {done:?}");
        assert!(!self.holds(done.err.as_bytes()), "standard error and report: {done:?}");
        assert_eq!(self.seen(), Vec::<String>::new(), "after the run");
        assert_eq!(self.stage.cells(self.who), Vec::<PathBuf>::new());
        let names = fs::read_dir(self.stage.own(self.who)).unwrap().flatten().map(|entry| entry.file_name());
        let cores: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("core")).collect();
        assert!(cores.is_empty(), "{cores:?}");
    }
}

/// Looks at one byte of each length of the word until it fits: memory is large, and this is not optimized.
fn count(bytes: &[u8], word: &[u8]) -> usize {
    let (mut found, mut at) = (0, word.len() - 1);
    while let Some(last) = bytes.get(at) {
        match word.iter().rposition(|byte| byte == last) {
            Some(place) => {
                let start = at - place;
                if bytes.get(start..start + word.len()) == Some(word) {
                    found += 1;
                    at = start + 2 * word.len() - 1;
                } else {
                    at += 1;
                }
            }
            None => at += word.len(),
        }
    }
    found
}

#[test]
fn words_are_found_wherever_they_are() {
    for (text, times) in
        [("", 0), ("ab", 0), ("aab", 1), ("xxaabx", 1), ("aabaab", 2), ("aaabxaabb", 2), ("baabaxab", 1)]
    {
        assert_eq!(count(text.as_bytes(), b"aab"), times, "{text}");
    }
}

/// The letter that the kernel has for what a process does.
fn state(pid: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('X')
}

fn wait_for_stop(running: Running) -> Running {
    match wait_for("a launcher that stops itself", || Some(state(running.pid())).filter(|state| "TZX".contains(*state)))
    {
        'T' => running,
        _ => panic!("it ended instead: {:?}", running.end()),
    }
}

/// How often a word is in the memory of a process. Only what is there is read: a runtime of JavaScript reserves far more
/// than any machine has.
pub fn in_memory(pid: i32, word: &[u8]) -> usize {
    const PAGE: u64 = 4096;
    const PART: u64 = 256 * PAGE;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let [memory, pages] = ["mem", "pagemap"].map(|name| File::open(format!("/proc/{pid}/{name}")).unwrap());
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" r") && !line.contains("[v")) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut bytes = Vec::new();
        let mut at = from;
        while at < to {
            let end = to.min(at + PART);
            let mut entries = vec![0; ((end - at) / PAGE * 8) as usize];
            pages.read_exact_at(&mut entries, at / PAGE * 8).unwrap();
            // Bits 62 and 63: swapped, present (proc_pid_pagemap(5)).
            if entries.chunks(8).any(|entry| entry[7] & 0xc0 != 0) {
                let start = bytes.len();
                bytes.resize(start + (end - at) as usize, 0);
                // What cannot be read by anybody holds nothing.
                let length = memory.read_at(&mut bytes[start..], at).unwrap_or(0);
                bytes.truncate(start + length);
            } else {
                // What is on both sides of a gap is not one word.
                found += count(&std::mem::take(&mut bytes), word);
            }
            at = end;
        }
        found += count(&bytes, word);
    }
    found
}

/// What the open descriptors of a process lead to.
fn descriptors(pid: i32) -> Vec<PathBuf> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    open.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
}

/// Whoever this test can be.
fn everybody() -> Vec<Who> {
    if need::as_root() { vec![Who::Root, Who::User] } else { vec![Who::User] }
}

/// Without namespaces the cell's files are on the host's disk.
fn options(service: &Service) -> [Vec<String>; 2] {
    let off = ["pid", "root", "ipc", "uts", "net"];
    let policy = service.stage.policy(&off, None).display().to_string();
    [vec!["--level".into(), "developer".into()], vec!["--policy".into(), policy]]
}

/// As any other process of the launcher's user: nothing of it can be read.
pub fn closed(stage: &Stage, pid: i32) {
    let script =
        "cat /proc/$1/environ || ls /proc/$1/fd/ || head -c1 /proc/$1/mem || cat /proc/$1/maps || cat /proc/$1/auxv";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", &pid.to_string()]).env_clear().env("PATH", "/usr/bin:/bin");
    if nix::unistd::geteuid().is_root() {
        command.uid(stage.uid(Who::User)).gid(stage.uid(Who::User));
    }
    let done = output(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    assert!(!done.status.success() && done.out.is_empty(), "{done:?}");
    assert_eq!(done.err.lines().filter(|line| line.contains("Permission denied")).count(), 5, "{done:?}");
}

/// At one stage of one run.
fn look(service: &Service, running: &Running, at: At) {
    assert_eq!(service.seen(), Vec::<String>::new(), "at {}", at.name());
    if service.who == Who::User {
        closed(&service.stage, running.pid());
    }
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let token = service.token.as_bytes();
    assert_eq!(in_memory(running.pid(), token), 1, "the launcher has one copy at {}", at.name());
    let environ = fs::read(format!("/proc/{}/environ", running.pid())).unwrap();
    assert!(environ.iter().all(|byte| *byte == 0), "the launcher has no variable at {}", at.name());
    if at == At::Cloned || at == At::Running {
        for child in children(running.pid()) {
            assert_eq!(in_memory(child, token), 0, "its child has no copy at {}", at.name());
        }
    }
    if at == At::Running {
        // Init or the keeper first, and what counts the cell's files.
        let family = children(running.pid());
        let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
        let init = family.first().filter(|child| namespace(**child) != namespace(running.pid()));
        if let Some(init) = init {
            // A root of the cell's own; without one its files are in the state directory.
            let root = PathBuf::from(format!("/proc/{init}/root"));
            let found: Vec<String> = ["home", "tmp", "work", "dev/shm", "etc"]
                .iter()
                .flat_map(|place| service.files(&root.join(place)))
                .collect();
            assert_eq!(found, Vec::<String>::new());
        }
        // The pipe is anonymous: its number is the same wherever it is open. The agent itself is looked at, the child of
        // init or keeper: what it starts may just have ended.
        let pipe = fs::read_link(format!("/proc/{}/fd/3", children(family[0])[0])).unwrap();
        for other in family.iter().chain([&running.pid()]) {
            assert!(!descriptors(*other).contains(&pipe), "{other} has the agent's pipe");
        }
    }
}

fn at_each_stage(source: Source) {
    for who in everybody() {
        let service = Service::new(who);
        for options in options(&service) {
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            for at in At::ALL {
                let agent = if at == At::Running { STAYS } else { AGENT };
                let running = service.stopped(source, at, &options, agent);
                look(&service, &running, at);
                if at == At::Running {
                    kill(Pid::from_raw(running.pid()), Signal::SIGTERM).unwrap();
                }
                kill(Pid::from_raw(running.pid()), Signal::SIGCONT).unwrap();
                let done = running.end();
                assert_eq!(done.status.code(), Some(0), "{done:?}");
                assert_eq!(
                    done.out.trim(),
                    service.token.len().to_string(),
                    "the agent gets the whole token, and no line end"
                );
                service.check_end(&done);
            }
        }
    }
}

#[test]
fn at_each_stage_from_a_file() {
    at_each_stage(Source::File);
}

#[test]
fn at_each_stage_from_a_descriptor() {
    at_each_stage(Source::Descriptor);
}

#[test]
fn at_each_stage_from_standard_input() {
    at_each_stage(Source::Stdin);
}

#[test]
fn at_each_stage_from_a_variable() {
    at_each_stage(Source::Variable);
}

#[test]
fn after_a_run_that_ends_badly() {
    // Options, command of the agent, status.
    let ends: [(&[&str], &str, i32); 6] = [
        (&[], "cat <&3 >/dev/null; exit 7", 7),
        (&[], "cat <&3 >/dev/null; kill -TERM $$", 128 + 15),
        (&["--timeout", "100ms", "--grace", "100ms"], "exec sleep 60", 124),
        (&["--require", "net"], "exit 0", 125),
        (&["--credential-file", "/nowhere"], "exit 0", 125),
        (&["--workspace", "/nowhere"], "exit 0", 125),
    ];
    for who in everybody() {
        let service = Service::new(who);
        for source in SOURCES {
            for (options, agent, status) in ends {
                let mut command = service.run(source, &[]);
                command.args(["--level", "developer"]).args(options).args(["--", "sh", "-c", agent]);
                let mut running = Running::start(&mut command);
                if let Some(mut stdin) = running.child.stdin.take() {
                    // One that is refused may be gone before it has read it.
                    let _ = writeln!(stdin, "{}", service.token);
                }
                let done = running.end();
                assert_eq!(done.status.code(), Some(status), "{source:?} {options:?}: {done:?}");
                service.check_end(&done);
            }
        }
    }
}

#[test]
fn after_the_launcher_is_killed() {
    for who in everybody() {
        let service = Service::new(who);
        for options in options(&service) {
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            for (at, source) in At::ALL.into_iter().zip(SOURCES.into_iter().cycle()) {
                let agent = if at == At::Running { STAYS } else { AGENT };
                let running = service.stopped(source, at, &options, agent);
                kill(Pid::from_raw(running.pid()), Signal::SIGKILL).unwrap();
                let done = running.end();
                assert_eq!(done.status.signal(), Some(9));
                assert_eq!(service.seen(), Vec::<String>::new(), "before the sweep, killed at {}", at.name());
                let mut sweep = service.stage.command(who, &[]);
                let swept = output(sweep.arg("sweep").arg("--state-dir").arg(service.stage.state(who)));
                assert_eq!(swept.status.code(), Some(0), "{swept:?}");
                service.check_end(&done);
            }
        }
    }
}

/// Whether this host writes core files where the crashed process was.
fn writes_core_files() -> bool {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -c unlimited; kill -SEGV $$"]).current_dir(dir.path()).stdin(Stdio::null());
    output(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let wrote = fs::read_dir(dir.path()).unwrap().count() > 0;
    need::need("core files in the current directory", wrote && !pattern.starts_with('|'))
}

#[test]
fn in_no_core_file_of_the_launcher() {
    if !writes_core_files() {
        return;
    }
    for who in everybody() {
        let service = Service::new(who);
        for at in [At::Planned, At::Running, At::Ended] {
            let agent = if at == At::Running { STAYS } else { AGENT };
            // Rust's runtime takes a first SIGSEGV and goes on when no access was at fault.
            for signal in [Signal::SIGABRT, Signal::SIGILL] {
                let mut command =
                    service.run(Source::Variable, &["sh", "-c", "ulimit -c unlimited; exec \"$@\"", "sh"]);
                command.args(["--", "sh", "-c", agent]).env("OUBLIETTE_PAUSE_AT", at.name());
                let running = Running::start(&mut command);
                let running = wait_for_stop(running);
                kill(Pid::from_raw(running.pid()), signal).unwrap();
                kill(Pid::from_raw(running.pid()), Signal::SIGCONT).unwrap();
                let done = running.end();
                assert_eq!(done.status.signal(), Some(signal as i32));
                assert!(!done.status.core_dumped());
                let mut sweep = service.stage.command(who, &[]);
                let swept = output(sweep.arg("sweep").arg("--state-dir").arg(service.stage.state(who)));
                assert_eq!(swept.status.code(), Some(0), "{swept:?}");
                service.check_end(&done);
            }
        }
    }
}

#[test]
fn in_no_core_file_of_the_agent() {
    if !writes_core_files() {
        return;
    }
    for who in everybody() {
        let service = Service::new(who);
        let workspace = service.stage.own(who).join("workspace");
        fs::create_dir(&workspace).unwrap();
        service.stage.give(who, &workspace);
        let export = service.stage.own(who).join("out");
        // It has the credential in its memory when it crashes.
        let agent = "ulimit -c unlimited 2>&1; read -r token <&3; kill -SEGV $$";
        let mut command = service.run(Source::File, &["sh", "-c", "ulimit -c unlimited; exec \"$@\"", "sh"]);
        let done = output(command.arg("--export").arg(&export).args(["--", "sh", "-c", agent]));
        assert_eq!(done.status.code(), Some(128 + 11), "{done:?}");
        assert_eq!(fs::read_dir(&export).unwrap().count(), 0, "nothing is in its working directory");
        service.check_end(&done);
    }
}

#[test]
fn in_no_text_about_it() {
    let service = Service::new(if nix::unistd::geteuid().is_root() { Who::Root } else { Who::User });
    let secret = Secret::read(&SecretSource::File(service.file.clone()), None).unwrap();
    assert_eq!(secret.expose(), service.token.as_bytes());
    assert_eq!(format!("{secret:?} {secret:#?}"), "Secret(…) Secret(…)");
}
