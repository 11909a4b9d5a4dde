//! Two real cells on this host: a victim in one, a hostile agent in the other, both started by `run` of this program.
//!
//! They end with whoever reads their output: when this process dies, however it dies, the victim's standard input and
//! the attacker's terminal and output are closed, and each launcher wipes its own cell.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::judge::Told;
use super::upstream::Upstream;
use crate::attack::{ATTACKS, Damage, Target};
use crate::cell::state::State;
use crate::cell::sweep;
use crate::doctor::expect::Scene;
use crate::sys;
use crate::sys::signals::Signals;
use crate::types::error::{Error, Result};

/// What came of it.
pub struct Met {
    /// The attacker's words.
    pub told: Vec<Told>,
    /// The victim's; nothing where it did not live to tell.
    pub damage: Option<Vec<Damage>>,
}

/// Why there is no result.
pub enum Stopped {
    /// A signal asked to end.
    Signal(Signal),
    /// A cell did not start.
    Failed(Error),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Stopped {
        Stopped::Failed(error)
    }
}

/// How both cells are started.
pub struct Stage<'a> {
    /// This program.
    pub program: &'a Path,
    /// Options of `run` that both have.
    pub options: &'a [OsString],
    /// Where cells live.
    pub state: &'a State,
    /// The signals of this process.
    pub signals: &'a Signals,
    /// What both cells' brokers lead to.
    pub upstream: &'a Upstream,
}

impl Stage<'_> {
    /// Starts both, lets the one attack the other, and waits until nothing of either is left.
    pub fn meet(&self, scene: &Scene<'_>) -> Result<Met, Stopped> {
        let canary = || sys::random::name().map_err(|errno| Error::new("make a canary", errno));
        let (victims, attackers) = (canary()?, canary()?);
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| self.upstream.serve(&victims, &attackers, &end));
            let met = self.meet_with(scene, &victims, &attackers);
            end.store(true, Ordering::Relaxed);
            met
        })
    }

    fn meet_with(&self, scene: &Scene<'_>, canary: &str, attackers: &str) -> Result<Met, Stopped> {
        let mut victim = self.victim(canary)?;
        let line = victim.line(self.signals)?;
        let mut target: Target = serde_json::from_str(&line).map_err(|_| {
            Error::new("start the victim", "its cell ended before it spoke").hint("see the message above")
        })?;
        // With a broker it has a phantom instead.
        if (target.marker() == canary) == scene.victim.broker.is_some() {
            return Err(Error::new("start the victim", "it did not get the credential that its plan says").into());
        }
        self.complete(&mut target, scene, victim.pid());
        let brokered = scene.attacker.broker.is_some();
        let told = self.attack(&target, brokered.then_some(attackers))?;
        let damage = victim.end(self.signals)?.and_then(|line| {
            let said: Value = serde_json::from_str(&line).ok()?;
            serde_json::from_value(said.get("damage")?.clone()).ok()
        });
        // Killed, it could not remove what no cell holds. Numbers of an IPC namespace mean nothing here.
        if damage.is_none() && !scene.victim.namespaces.ipc {
            target.remove();
        }
        Ok(Met { told, damage })
    }

    /// `run` of this program, as the shell of a caller would start it.
    fn run(&self, user: &str, more: &[OsString], role: &str) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg("run").args(self.options).args(["--quiet", "--user", user]).args(more);
        command.arg("--").arg(self.program).arg(role).stdout(Stdio::piped());
        sys::attack::session::lead(&mut command);
        command
    }

    fn victim(&self, canary: &str) -> Result<Cell> {
        let (_read, words) = hand_over(canary)?;
        let mut command = self.run("doctor-victim", &words, "__victim");
        Cell::start(command.stdin(Stdio::piped()))
    }

    /// What the attacker could know at best: its victim's numbers and places on the host's side.
    fn complete(&self, target: &mut Target, scene: &Scene<'_>, launcher: i32) {
        target.launcher_pid = Some(launcher);
        target.host_tcp = Some(self.upstream.tcp_port());
        target.host_udp = self.upstream.udp_port();
        [target.host_socket, target.host_datagram] = self.upstream.paths().map_or([None, None], |both| both.map(Some));
        target.host_pid = if scene.victim.namespaces.pid {
            target.victims().ok().and_then(|pids| pids.first().copied())
        } else {
            Some(target.pid)
        };
        let cells = sweep::list(self.state).unwrap_or_default();
        let own = cells.iter().find(|live| live.record.as_ref().is_some_and(|record| record.launcher == launcher));
        target.cell_dir = own.map(|live| self.state.cell_path(&live.cell));
        target.state_dir = Some(self.state.path.clone());
        target.own_init = scene.attacker.namespaces.pid;
        let untried = ATTACKS.iter().filter_map(|attack| Some((attack.name, scene.untried(attack.name)?)));
        target.untried = untried.map(|(name, why)| (name.to_owned(), why.to_owned())).collect();
        target.allow_kill_all = !target.untried.contains_key("kill-all");
    }

    /// The attacker's run to its end, on a terminal, and with a directory and a file left open by whoever starts it.
    fn attack(&self, target: &Target, canary: Option<&str>) -> Result<Vec<Told>, Stopped> {
        let failed = |error: std::io::Error| Error::new("start the attacker", error);
        let leaked = leak(target).map_err(failed)?;
        let terminal = nix::pty::openpty(None, None).ok();
        let (read, words) = canary.map(hand_over).transpose()?.unzip();
        let mut command = self.run("doctor-attacker", &words.unwrap_or_default(), "__attack");
        command.arg(serde_json::to_string(target).unwrap_or_default());
        match &terminal {
            Some(pty) => {
                fcntl(&pty.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|errno| failed(errno.into()))?;
                command.stdin(Stdio::from(pty.slave.try_clone().map_err(failed)?));
                fcntl(&pty.slave, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|errno| failed(errno.into()))?;
            }
            None => drop(command.stdin(Stdio::null())),
        }
        let mut attacker = Cell::start(&mut command)?;
        drop((leaked, read));
        let mut told = Vec::new();
        loop {
            let line = attacker.line(self.signals)?;
            match serde_json::from_str(&line) {
                Ok(row) => told.push(row),
                // The last line counts the others; no line at all is an end before it.
                Err(_) => break,
            }
        }
        attacker.end(self.signals)?;
        Ok(told)
    }
}

/// A pipe with a credential, and the options that name it.
fn hand_over(canary: &str) -> Result<(OwnedFd, Vec<OsString>)> {
    let failed = |error: std::io::Error| Error::new("hand the canary over", error);
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
    File::from(write).write_all(canary.as_bytes()).map_err(failed)?;
    inherit(&read).map_err(failed)?;
    let number = read.as_raw_fd().to_string();
    Ok((read, vec!["--credential-fd".into(), number.into()]))
}

fn inherit(fd: &OwnedFd) -> std::io::Result<()> {
    Ok(fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map(drop)?)
}

/// A directory of the victim's where it can be reached from here, else the root; and a file with the secret.
fn leak(target: &Target) -> std::io::Result<[OwnedFd; 2]> {
    let inside = target.dirs.first().zip(target.host_pid).map(|(place, pid)| {
        PathBuf::from(format!("/proc/{pid}/root")).join(place.path.strip_prefix("/").unwrap_or(&place.path))
    });
    let dir = match inside.and_then(|path| File::open(path).ok()) {
        Some(dir) => dir,
        None => File::open("/")?,
    };
    let mut file = File::from(memfd_create(c"oubliette-leak", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(target.marker().as_bytes())?;
    file.seek(SeekFrom::Start(0))?;
    let leaked = [OwnedFd::from(dir), OwnedFd::from(file)];
    leaked.iter().try_for_each(inherit)?;
    Ok(leaked)
}

/// A launcher that was started here. Dropped, it is asked to end, and waited for: it wipes its cell first.
struct Cell {
    child: Child,
    out: ChildStdout,
    read: Vec<u8>,
}

impl Cell {
    fn start(command: &mut Command) -> Result<Cell> {
        let mut child = command.spawn().map_err(|error| {
            Error::new("start this program again", error).hint("mount /proc, and leave the program where it is")
        })?;
        let out = child.stdout.take().ok_or_else(|| Error::new("start this program again", "it has no output"))?;
        Ok(Cell { child, out, read: Vec::new() })
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The next line of its output; empty at its end.
    fn line(&mut self, signals: &Signals) -> Result<String, Stopped> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.drain(..=end).collect::<Vec<u8>>();
                return Ok(String::from_utf8_lossy(&line).trim().to_owned());
            }
            if let Some(signal) = signals.asked_to_end() {
                return Err(Stopped::Signal(signal));
            }
            // Signals are looked for often enough for a person.
            let ready = poll(&mut [PollFd::new(self.out.as_fd(), PollFlags::POLLIN)], PollTimeout::from(50_u8));
            if !matches!(ready, Ok(1..)) {
                continue;
            }
            let mut part = [0; 4096];
            match self.out.read(&mut part) {
                Ok(0) => return Ok(String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned()),
                Ok(length) => self.read.extend_from_slice(&part[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::new("read from a cell", error).into()),
            }
        }
    }

    /// Ends its input and gives its last line, where it ended well.
    fn end(mut self, signals: &Signals) -> Result<Option<String>, Stopped> {
        drop(self.child.stdin.take());
        let mut last = String::new();
        loop {
            let line = self.line(signals)?;
            if line.is_empty() {
                break;
            }
            last = line;
        }
        let status = self.child.wait().map_err(|error| Error::new("wait for a cell", error))?;
        Ok(status.success().then_some(last))
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // Not yet waited for: the number cannot be anybody else's.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}
