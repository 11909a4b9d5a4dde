//! One launch and what is timed about it; runs in a process that already has the row's UID.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// CLOCK_MONOTONIC in nanoseconds: the clock that the agent reads too.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is ours and has the right type.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    nanos(time.tv_sec, time.tv_nsec)
}

fn nanos(seconds: i64, rest: i64) -> u64 {
    seconds.unsigned_abs() * 1_000_000_000 + rest.unsigned_abs()
}

/// How a row starts its program.
#[derive(Debug, Clone)]
pub enum Start {
    /// `fork(2)`, `execve(2)`, `waitpid(2)`, nothing else.
    Fork,
    /// `std::process`, which is `posix_spawn(3)`: the parent's memory is not copied.
    Spawn,
}

/// One thing to launch.
#[derive(Debug, Clone)]
pub struct Job {
    /// How.
    pub start: Start,
    /// Program and arguments; the last one is the bench agent.
    pub argv: Vec<String>,
    /// HOME of the launcher.
    pub home: PathBuf,
}

impl Job {
    /// The command with more arguments for the agent.
    pub fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).args(more).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", &self.home);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        command
    }

    /// Time of a whole launch, from before the fork to the reaped end.
    pub fn whole(&self) -> io::Result<u64> {
        match self.start {
            Start::Fork => fork_and_wait(&self.argv),
            Start::Spawn => {
                let mut command = self.command(&[]);
                let before = now();
                let status = command.spawn()?.wait()?;
                let after = now();
                if status.success() { Ok(after - before) } else { Err(io::Error::other(status.to_string())) }
            }
        }
    }

    /// Time from before the fork to the first line of the agent's `main`.
    pub fn to_main(&self) -> io::Result<u64> {
        let mut command = self.command(&["clock"]);
        command.stdout(Stdio::piped());
        let before = now();
        let mut child = command.spawn()?;
        let start = read_clock(&mut child);
        finish(child)?;
        Ok(start? - before)
    }

    /// Time from the agent's end to the launcher's, when the agent made `files` files.
    pub fn after_agent(&self, files: u32) -> io::Result<u64> {
        let mut command = self.command(&["files", &files.to_string()]);
        command.stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let end = read_clock(&mut child);
        finish(child)?;
        let after = now();
        Ok(after - end?)
    }

    /// Time from TERM to the launcher's end, when a living agent made `files` files.
    pub fn after_kill(&self, files: u32) -> io::Result<u64> {
        let mut command = self.command(&["files", &files.to_string(), "wait"]);
        command.stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let made = read_clock(&mut child);
        // The agent still has to reach its sleep.
        std::thread::sleep(Duration::from_millis(2));
        let before = now();
        send(child.id(), libc::SIGTERM);
        let status = child.wait()?;
        let after = now();
        made?;
        if status.code().is_some_and(|code| code == 125) {
            return Err(io::Error::other("status 125"));
        }
        Ok(after - before)
    }

    /// Time of `doctor`, which ends with 1 where a layer is missing.
    pub fn doctor(&self) -> io::Result<u64> {
        let mut command = self.command(&[]);
        let before = now();
        let status = command.spawn()?.wait()?;
        let after = now();
        if matches!(status.code(), Some(0 | 1)) {
            Ok(after - before)
        } else {
            Err(io::Error::other(status.to_string()))
        }
    }

    /// What the report of a run on standard output says about the time to look at the host.
    pub fn probe(&self) -> io::Result<u64> {
        let report: serde_json::Value = serde_json::from_str(&self.output(&[])?)?;
        let micros = report["timings"]["probe"].as_u64();
        micros.map(|micros| micros * 1000).ok_or_else(|| io::Error::other("the report has no such time"))
    }

    /// What the agent printed.
    pub fn output(&self, more: &[&str]) -> io::Result<String> {
        let mut command = self.command(more);
        let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let first = said.lines().next().unwrap_or("nothing on stderr");
        Err(io::Error::other(format!("{}: {first}", output.status)))
    }
}

fn finish(mut child: Child) -> io::Result<()> {
    let status = child.wait()?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(match status.signal() {
        Some(number) => format!("signal {number}"),
        None => status.to_string(),
    }))
}

/// Sends a signal to a process that this bench started and has not reaped.
pub fn send(pid: u32, signal: i32) {
    // SAFETY: no memory is involved; the pid is that of a child not yet reaped.
    unsafe { libc::kill(i32::try_from(pid).unwrap_or(i32::MAX), signal) };
}

/// The clock value that the agent writes.
pub fn read_clock(child: &mut Child) -> io::Result<u64> {
    let mut bytes = [0u8; 16];
    child.stdout.as_mut().ok_or_else(|| io::Error::other("no pipe"))?.read_exact(&mut bytes)?;
    let half = |from: usize| i64::from_ne_bytes(bytes[from..from + 8].try_into().unwrap_or([0; 8]));
    Ok(nanos(half(0), half(8)))
}

fn fork_and_wait(argv: &[String]) -> io::Result<u64> {
    let path = std::ffi::CString::new(argv[0].as_str())?;
    let argv = [path.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null()];
    let before = now();
    // SAFETY: the process has one thread; the child calls nothing but execve and _exit, with strings made before.
    let pid = unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr());
            libc::_exit(127);
        }
        pid
    };
    let mut status = 0;
    // SAFETY: `status` is ours.
    let reaped = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    let after = now();
    if pid < 0 || reaped != pid || status != 0 {
        return Err(io::Error::other(format!("fork and exec: status {status}")));
    }
    Ok(after - before)
}

/// A process of the bench's own that has given up root, if asked to, and answers over pipes.
pub struct Worker {
    pid: i32,
    /// Requests go here.
    pub input: File,
    /// Answers come from here.
    pub output: File,
}

impl Worker {
    /// Forks; the child takes `uid` (with the same number as gid and no groups), runs `body` and ends.
    pub fn start(uid: Option<u32>, body: impl FnOnce(&mut File, &mut File)) -> io::Result<Worker> {
        let (child_input, input) = pipe()?;
        let (output, child_output) = pipe()?;
        // SAFETY: the process has one thread, so the child may use everything that it copied.
        let pid = unsafe { libc::fork() };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        if pid == 0 {
            drop((input, output));
            let code = if uid.is_none_or(become_user) {
                let (mut from, mut to) = (child_input, child_output);
                body(&mut from, &mut to);
                0
            } else {
                1
            };
            // SAFETY: ends this process without running the parent's exit handlers.
            unsafe { libc::_exit(code) };
        }
        Ok(Worker { pid, input, output })
    }

    /// Closes the request pipe, which ends the child, and reaps it.
    pub fn end(self) -> String {
        drop(self.input);
        let mut rest = String::new();
        let mut output = self.output;
        let _ = output.read_to_string(&mut rest);
        let mut status = 0;
        // SAFETY: `status` is ours.
        unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        rest
    }
}

fn become_user(uid: u32) -> bool {
    // SAFETY: no memory is involved.
    unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setresgid(uid, uid, uid) == 0
            && libc::setresuid(uid, uid, uid) == 0
    }
}

fn pipe() -> io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` holds two descriptors; each gets exactly one owner.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])))
    }
}

/// Runs `body` in a process with this UID and hands back what it says.
pub fn ask(uid: Option<u32>, body: impl FnOnce() -> io::Result<String>) -> Result<String, String> {
    let worker = Worker::start(uid, |_, to| {
        let answer = match body() {
            Ok(text) => format!("+{text}"),
            Err(error) => format!("-{error}"),
        };
        let _ = to.write_all(answer.as_bytes());
    })
    .map_err(|error| error.to_string())?;
    let answer = worker.end();
    match answer.split_at_checked(1) {
        Some(("+", text)) => Ok(text.to_owned()),
        Some(("-", text)) => Err(text.to_owned()),
        _ => Err("the worker ended without an answer".into()),
    }
}

/// Launches per second of `at_once` processes that launch `each` times as fast as they can.
pub fn rate(uid: Option<u32>, jobs: &[Job], each: u32) -> Result<f64, String> {
    let go = |job: &Job| {
        Worker::start(uid, |from, to| {
            // Everybody is forked and waits before anybody starts.
            let _ = from.read(&mut [0u8; 1]);
            let failed = (0..each).filter(|_| job.whole().is_err()).count();
            let _ = write!(to, "{failed}");
        })
        .map_err(|error| error.to_string())
    };
    let workers = jobs.iter().map(go).collect::<Result<Vec<_>, _>>()?;
    let before = now();
    for mut worker in workers.iter().map(|worker| &worker.input) {
        worker.write_all(b"g").map_err(|error| error.to_string())?;
    }
    let failed: u32 = workers.into_iter().map(|worker| worker.end().parse().unwrap_or(each)).sum();
    let seconds = Duration::from_nanos(now() - before).as_secs_f64();
    if failed > 0 {
        return Err(format!("{failed} launches failed"));
    }
    Ok(f64::from(each) * f64::from(u32::try_from(jobs.len()).unwrap_or(0)) / seconds)
}

/// KiB of memory, shared pages counted by share (PSS), of the launcher and of the init or keeper that it forked.
pub struct Memory {
    /// The launcher's.
    pub launcher: u64,
    /// Its init's or keeper's.
    pub init: u64,
    /// What both have for themselves.
    pub private: u64,
}

/// Memory of launcher and init, or keeper, while a cell waits; the agent's own is not counted.
pub fn memory(uid: Option<u32>, job: &Job) -> Result<Memory, String> {
    let mut worker = Worker::start(uid, |from, to| {
        let mut command = job.command(&["wait"]);
        command.stdout(Stdio::piped());
        let Ok(mut child) = command.spawn() else { return };
        let ready = read_clock(&mut child).is_ok();
        let _ = to.write_all(&if ready { child.id() } else { 0 }.to_ne_bytes());
        let _ = from.read(&mut [0u8; 1]);
        send(child.id(), libc::SIGTERM);
        let _ = child.wait();
    })
    .map_err(|error| error.to_string())?;
    let mut pid = [0u8; 4];
    worker.output.read_exact(&mut pid).map_err(|error| error.to_string())?;
    let pid = u32::from_ne_bytes(pid);
    let read = || -> io::Result<Memory> {
        if pid == 0 {
            return Err(io::Error::other("the agent did not start"));
        }
        let (launcher, mut private) = rollup(pid)?;
        let mut init = 0;
        // Either has the agent as its child.
        for child in children(pid)? {
            if !children(child)?.is_empty() {
                let (pss, own) = rollup(child)?;
                init += pss;
                private += own;
            }
        }
        Ok(Memory { launcher, init, private })
    };
    let result = read().map_err(|error| error.to_string());
    worker.end();
    result
}

fn children(pid: u32) -> io::Result<Vec<u32>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

fn rollup(pid: u32) -> io::Result<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let sum = |names: &[&str]| -> u64 {
        text.lines()
            .filter(|line| names.iter().any(|name| line.starts_with(name)))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum()
    };
    Ok((sum(&["Pss:"]), sum(&["Private_Clean:", "Private_Dirty:"])))
}
