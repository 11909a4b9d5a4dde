//! From the agent's exec to its end: signals passed on, the deadline, the terminal, the check that the level took
//! effect, and the end of every process.
#![forbid(unsafe_code)]

mod counter;
mod ended;
pub mod modes;
pub mod relay;
pub mod terminal;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::broker::Broker;
use crate::confine::failure::Failure;
use crate::fs::walk::Passed;
use crate::run::keeper::Keeper;
use crate::sys::channel::Channel;
use crate::sys::proc::Stat;
use crate::sys::signals::ENDING;
use modes::Modes;
use relay::Relay;
use terminal::Terminal;

pub use crate::sys::signals::Signals;
pub use counter::Counter;
pub use ended::Ended;

/// A live agent.
#[derive(Debug)]
pub struct Watch<'a> {
    /// Init, or the keeper.
    pub child: Pid,
    /// Init is the agent's parent: the child, or the keeper's.
    pub has_init: bool,
    /// The child as keeper, while it lives.
    pub keeper: Option<Keeper>,
    /// The launcher's end of the channel.
    pub channel: Channel,
    /// Closes when the agent is executed, after a byte that says so.
    pub exec_failed: Option<File>,
    /// The launcher's signals.
    pub signals: &'a Signals,
    /// When it must end.
    pub deadline: Option<Instant>,
    /// Between TERM and KILL.
    pub grace: Duration,
    /// The agent's output, where it is looked at.
    pub relays: Vec<Relay>,
    /// The caller's terminal, where the agent gets one of its own.
    pub terminal: Option<Terminal>,
    /// Answers for modes, owners and times of files, where the filter asks.
    pub modes: Option<Modes>,
    /// What holds the credential outside of the cell, where that is the network.
    pub broker: Option<Broker<'a>>,
    /// What counts the files of the cell, where nothing bounds them.
    pub counter: Option<Counter>,
    /// The directory of the cell's tmpfs, once it is handed out.
    pub top: Option<OwnedFd>,
    /// What was not copied in.
    pub skipped: Passed,
    /// Called when the agent is executed.
    pub started: Option<Instant>,
}

/// What became of the child.
#[derive(Debug, Default)]
struct Seen {
    ended: Option<Ended>,
    child_gone: bool,
    failure: Option<Failure>,
    asked: Option<Signal>,
    kill_at: Option<Instant>,
    killed: bool,
    channel_closed: bool,
    /// What has come by the pipe that closes with the agent's execution.
    exec: Vec<u8>,
    /// It has closed, and nothing has come.
    not_reached: bool,
}

/// The end of a launch that did not get as far as the agent, or of the agent.
#[derive(Debug)]
pub enum Outcome {
    /// The agent ran.
    Ran(Ended),
    /// A step failed before the agent ran.
    Failed(Failure),
}

impl Watch<'_> {
    /// Stays until the agent has ended.
    ///
    /// # Errors
    /// The errno of poll(2).
    pub fn run(&mut self, mut running: impl FnMut()) -> Result<Outcome, Errno> {
        let mut seen = Seen::default();
        let mut told = false;
        loop {
            let ready = self.wait(&seen)?;
            self.take_messages(&mut seen, ready.channel);
            self.take_signals(&mut seen);
            if ready.keeper {
                self.hear_keeper(&mut seen);
            }
            self.reap(&mut seen);
            if ready.exec {
                self.take_exec(&mut seen);
            }
            if ready.door
                && let Some(Err(why)) = self.broker.as_mut().map(Broker::start)
            {
                self.end_now(&mut seen, Ended::BrokerEnded(why));
            }
            if ready.counter
                && let Some(counter) = self.counter.take()
            {
                self.end_now(&mut seen, Ended::OverLimit(counter.hear()));
            }
            if self.started.is_some() && !std::mem::replace(&mut told, true) {
                running();
            }
            if let (Some(modes), false) = (&mut self.modes, ready.modes.is_empty()) {
                modes.answer(ready.modes);
            }
            if let Some(terminal) = &mut self.terminal {
                terminal.pump();
            }
            let why = self.relays.iter_mut().filter_map(Relay::pump).next();
            if let Some(why) = why {
                self.end_now(&mut seen, Ended::LevelNotInForce(why));
            }
            self.mind_the_time(&mut seen);
            if seen.child_gone {
                return Ok(self.outcome(seen));
            }
        }
    }

    fn outcome(&self, seen: Seen) -> Outcome {
        // Nobody asked for its end and it said nothing.
        let killed = seen.not_reached && seen.asked.is_none();
        match (seen.failure, seen.ended) {
            (Some(failure), _) => Outcome::Failed(failure),
            (None, None | Some(Ended::Exited(_) | Ended::Signaled(_))) if killed => {
                Outcome::Failed(Failure::plain(KILLED, "start the agent"))
            }
            (None, Some(ended)) => Outcome::Ran(ended),
            (None, None) => Outcome::Ran(Ended::Signaled(Signal::SIGKILL as u8)),
        }
    }

    fn wait(&self, seen: &Seen) -> Result<Ready, Errno> {
        let mut fds: Vec<(BorrowedFd<'_>, PollFlags)> = vec![(self.signals.as_fd(), PollFlags::POLLIN)];
        let channel = (!seen.channel_closed).then(|| push(&mut fds, self.channel.as_fd()));
        let keeper = self.keeper.as_ref().map(|keeper| push(&mut fds, keeper.as_fd()));
        let exec = self.exec_failed.as_ref().map(|file| push(&mut fds, file.as_fd()));
        let door = self.broker.as_ref().and_then(Broker::door).map(|door| push(&mut fds, door));
        let modes = self.modes.as_ref().and_then(Modes::door).map(|door| push(&mut fds, door));
        let counter = self.counter.as_ref().map(|counter| push(&mut fds, counter.as_fd()));
        self.relays.iter().flat_map(Relay::interest).for_each(|wanted| fds.push(wanted));
        self.terminal.iter().flat_map(Terminal::interest).for_each(|wanted| fds.push(wanted));
        let mut polled: Vec<PollFd<'_>> = fds.iter().map(|(fd, flags)| PollFd::new(*fd, *flags)).collect();
        match poll(&mut polled, self.time_left(seen)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let events = |index: Option<usize>| index.and_then(|i| polled[i].revents()).unwrap_or(PollFlags::empty());
        let is_ready = |index: Option<usize>| !events(index).is_empty();
        Ok(Ready {
            channel: is_ready(channel),
            keeper: is_ready(keeper),
            exec: is_ready(exec),
            door: is_ready(door),
            modes: events(modes),
            counter: is_ready(counter),
        })
    }

    fn time_left(&self, seen: &Seen) -> PollTimeout {
        let next = [self.deadline.filter(|_| seen.ended.is_none()), seen.kill_at].into_iter().flatten().min();
        let Some(next) = next else { return PollTimeout::NONE };
        // One more, since a timeout rounds down and an early return would spin.
        let left = next.saturating_duration_since(Instant::now()).as_millis().saturating_add(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    fn take_messages(&mut self, seen: &mut Seen, ready: bool) {
        if !ready || seen.channel_closed {
            return;
        }
        match self.channel.receive() {
            Ok(Some(message)) => match (message.bytes.as_slice(), message.fd) {
                (b"D", Some(fd)) => self.top = Some(fd),
                (b"L", Some(fd)) => {
                    if let Some(broker) = &mut self.broker {
                        broker.listen(fd);
                    }
                }
                (b"M", Some(fd)) => {
                    if let Some(modes) = &mut self.modes {
                        modes.listen(fd);
                    }
                }
                (b"T", Some(fd)) => {
                    if let Some(terminal) = &mut self.terminal {
                        terminal.connect(fd);
                    }
                }
                (&[b'S', signal], None) => self.stopped(signal),
                (&[b'X', 0, code], None) => seen.ended = seen.ended.take().or(Some(Ended::Exited(code))),
                (&[b'X', 1, signal], None) => seen.ended = seen.ended.take().or(Some(Ended::Signaled(signal))),
                (bytes, None) if self.skipped.hear(bytes) => {}
                (bytes, _) => seen.failure = Failure::from_bytes(bytes),
            },
            Ok(None) | Err(_) => seen.channel_closed = true,
        }
    }

    fn take_signals(&mut self, seen: &mut Seen) {
        while let Some(signal) = self.signals.next() {
            match signal {
                Signal::SIGCHLD => {}
                Signal::SIGWINCH => self.terminal.iter_mut().for_each(Terminal::resize),
                Signal::SIGTSTP => {
                    // The kernel drops TSTP for a session without a process of ours.
                    self.pass_on(if self.has_init { Signal::SIGTSTP } else { Signal::SIGSTOP });
                    self.stop_ourselves();
                }
                signal if ENDING.contains(&signal) => {
                    // Asked twice, it ends at once.
                    let now = Instant::now();
                    seen.kill_at = Some(if seen.asked.is_some() { now } else { now + self.grace });
                    seen.asked = Some(signal);
                    self.pass_on(signal);
                }
                signal => {
                    // `kill %1` wakes us behind the shell, and for our end we need no terminal. Signals come by number,
                    // so that TERM is heard before CONT.
                    if signal == Signal::SIGCONT
                        && (seen.asked.is_none() || !self.terminal.iter_mut().any(Terminal::give_up_in_background))
                    {
                        self.terminal.iter_mut().for_each(Terminal::enter);
                    }
                    self.pass_on(signal);
                }
            }
        }
    }

    fn pass_on(&self, signal: Signal) {
        match &self.keeper {
            Some(keeper) if !self.has_init => keeper.pass_on(signal),
            _ => drop(self.channel.send(&[b'k', signal as u8], None)),
        }
    }

    /// Kills init or the agent. Not the keeper, which is still to end what they leave if the launcher dies now.
    pub fn kill_child(&self) {
        match &self.keeper {
            Some(keeper) => keeper.pass_on(Signal::SIGKILL),
            None => drop(kill(self.child, Signal::SIGKILL)),
        }
    }

    /// Kills the child, whatever it is, and waits for its end.
    pub fn abandon(&mut self) {
        self.keeper = None;
        let _ = kill(self.child, Signal::SIGKILL);
        let _ = waitpid(self.child, None);
    }

    /// The agent was stopped (Ctrl-Z in its terminal): so are we, for the caller's shell to see.
    fn stopped(&mut self, signal: u8) {
        if self.terminal.is_some() && i32::from(signal) != libc::SIGSTOP {
            self.stop_ourselves();
        }
    }

    /// Until SIGCONT, which is then passed on as every other signal.
    fn stop_ourselves(&mut self) {
        self.terminal.iter_mut().for_each(Terminal::leave);
        let _ = raise(Signal::SIGSTOP);
    }

    fn take_exec(&mut self, seen: &mut Seen) {
        let Some(file) = &mut self.exec_failed else { return };
        let mut bytes = [0; 8];
        match file.read(&mut bytes) {
            Ok(length @ 1..) => return seen.exec.extend(&bytes[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return,
            _ => self.exec_failed = None,
        }
        match seen.exec[..] {
            [] => seen.not_reached = true,
            [.., a, b, c, d] => {
                let errno = Errno::from_raw(i32::from_le_bytes([a, b, c, d]));
                seen.ended = Some(Ended::NotExecuted(errno.desc().to_owned()));
            }
            _ if seen.failure.is_some() => {}
            _ => self.started = Some(Instant::now()),
        }
    }

    /// The keeper's child has ended. It may have been init, which has said of the agent what there is to say.
    fn hear_keeper(&mut self, seen: &mut Seen) {
        let ended = match self.keeper.as_ref().and_then(Keeper::hear) {
            Some((0, code)) => Ended::Exited(code),
            Some((_, signal)) => Ended::Signaled(signal),
            None => return,
        };
        self.child_ended(seen, ended);
    }

    /// Waits for the child and, where the keeper is dead, for what it left to us.
    fn reap(&mut self, seen: &mut Seen) {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(status) if status.pid() == Some(self.child) => status,
                Ok(status) => {
                    if let Some(why) = self.broker.as_mut().and_then(|broker| broker.reaped(status)) {
                        self.end_now(seen, Ended::BrokerEnded(why));
                    }
                    continue;
                }
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            self.keeper = None;
            match status {
                WaitStatus::Exited(_, code) => self.child_ended(seen, Ended::Exited(code as u8)),
                WaitStatus::Signaled(_, signal, _) => self.child_ended(seen, Ended::Signaled(signal as u8)),
                _ => {}
            }
        }
    }

    fn child_ended(&mut self, seen: &mut Seen, ended: Ended) {
        seen.child_gone = true;
        // What init said of the agent comes before what the kernel says of init.
        while !seen.channel_closed {
            self.take_messages(seen, true);
        }
        if seen.ended.is_none() && !self.has_init {
            seen.ended = Some(ended);
        }
        while self.exec_failed.is_some() {
            self.take_exec(seen);
        }
    }

    fn end_now(&mut self, seen: &mut Seen, ended: Ended) {
        seen.ended = Some(ended);
        seen.kill_at = Some(Instant::now());
    }

    fn mind_the_time(&mut self, seen: &mut Seen) {
        let now = Instant::now();
        if seen.ended.is_none() && self.deadline.is_some_and(|deadline| now >= deadline) {
            seen.ended = Some(Ended::Deadline);
            seen.kill_at = Some(now + self.grace);
            self.pass_on(Signal::SIGTERM);
        }
        if seen.kill_at.is_some_and(|at| now >= at) {
            // Somebody may have stopped the keeper: it has a moment, too.
            let stuck = std::mem::replace(&mut seen.killed, true);
            seen.kill_at = self.keeper.as_ref().filter(|_| !stuck).map(|_| now + STUCK);
            if let (None, Some(signal)) = (&seen.ended, seen.asked) {
                seen.ended = Some(Ended::Signaled(signal as u8));
            }
            if stuck {
                let _ = kill(self.child, Signal::SIGKILL);
            } else {
                self.kill_child();
            }
        }
    }

    /// Passes on what is left in the pipes. Comes after every process that could write to them is dead.
    pub fn drain(&mut self) -> Option<Ended> {
        if let Some(terminal) = &mut self.terminal {
            terminal.drain();
        }
        let mut why = None;
        for relay in &mut self.relays {
            why = why.or(relay.drain());
        }
        why.map(Ended::LevelNotInForce)
    }
}

/// Stands for the death of a process before it has executed the agent, of which the kernel gives no errno.
pub const KILLED: Errno = Errno::EOWNERDEAD;

/// How long the keeper may take to kill its child.
const STUCK: Duration = Duration::from_secs(2);

struct Ready {
    channel: bool,
    keeper: bool,
    exec: bool,
    door: bool,
    modes: PollFlags,
    counter: bool,
}

fn push<'fd>(fds: &mut Vec<(BorrowedFd<'fd>, PollFlags)>, fd: BorrowedFd<'fd>) -> usize {
    fds.push((fd, PollFlags::POLLIN));
    fds.len() - 1
}

/// Ends every process that the agent left behind where no namespace did: orphans come to this process (a subreaper), and
/// theirs when they are dead. Gives whether none is left.
pub fn end_orphans() -> bool {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return true,
            Ok(WaitStatus::StillAlive) => {
                for child in children() {
                    let _ = kill(child, Signal::SIGKILL);
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            _ => {}
        }
        if Instant::now() > until {
            return false;
        }
    }
}

/// The children of this process: from its own list where the kernel keeps one, else from every process's parent.
fn children() -> Vec<Pid> {
    let me = Pid::this().as_raw();
    let numbers =
        |text: String| text.split_ascii_whitespace().filter_map(|n| n.parse().ok()).map(Pid::from_raw).collect();
    if let Ok(list) = std::fs::read_to_string(format!("/proc/self/task/{me}/children")) {
        return numbers(list);
    }
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.map(Pid::from_raw).filter(|pid| Stat::of(*pid).is_some_and(|stat| stat.parent == me)).collect()
}
