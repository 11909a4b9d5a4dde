//! The first process of a PID namespace, or of a session on a terminal. It starts the agent, reaps what the agent
//! leaves, passes the launcher's signals on, and ends with either of them; with it the kernel ends everything in the
//! namespace, and where there is none the agent.
//!
//! It runs under every layer that the agent runs under, so that becoming it gains nothing. In a namespace SIGKILL and
//! SIGSTOP from inside do not reach it (pid_namespaces(7)); elsewhere whoever ends it ends the agent, and the keeper
//! then ends what is left.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SigSet, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid, setpgid, tcsetpgrp};

use super::Confined;
use crate::confine::command::refuse;
use crate::sys::channel::Channel;
use crate::sys::process::{Fork, exit_now, fork_into};

/// Starts the agent and stays until it ends.
pub fn run(confined: Confined) -> ! {
    if let Some(Err(errno)) = confined.terminal.as_ref().map(|terminal| crate::sys::tty::take_control(terminal.as_fd()))
    {
        refuse(&confined.command.exec_failed, errno);
        exit_now(125);
    }
    let init = getpid();
    let agent = match fork_into(CloneFlags::empty()) {
        Ok(Fork::Child) => start(confined, init),
        Ok(Fork::Parent(agent)) => agent,
        Err(errno) => {
            refuse(&confined.command.exec_failed, errno);
            exit_now(125);
        }
    };
    // The agent's copies are the agent's; ours would keep its pipes open.
    let Confined { command, terminal, channel, .. } = confined;
    drop((command, terminal));
    crate::sys::environ::rename(b"oubliette-init");
    let _ = crate::sys::fds::close_standard();
    let Some(status) = watch(agent, &channel) else { exit_now(125) };
    let _ = channel.send(&[b'X', status.0, status.1], None);
    exit_now(0)
}

/// In a process group of its own, in front of the terminal and in init's session: a group without a parent in its
/// session is orphaned, and the kernel drops its Ctrl-Z (setpgid(2)).
fn start(confined: Confined, init: Pid) -> ! {
    // Each of the two processes after the launcher dies with the one before it, whatever namespaces there are.
    if prctl::set_pdeathsig(Signal::SIGKILL).is_err() || getppid() != init {
        exit_now(125);
    }
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    if let Some(terminal) = &confined.terminal {
        // Whoever goes to the front from behind gets SIGTTOU; every signal is unblocked again before the exec.
        let mut set = SigSet::empty();
        set.add(Signal::SIGTTOU);
        let _ = set.thread_block();
        let _ = tcsetpgrp(terminal, getpid());
    }
    confined.become_agent()
}

/// How a process ended: exited with a status (0), or by a signal (1).
pub type Ended = (u8, u8);

/// Stays until a child ends, and passes on meanwhile what the launcher sends. Nothing when the launcher is gone.
pub fn watch(child: Pid, channel: &Channel) -> Option<Ended> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    let Ok(children) = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK) else {
        return Some((0, 125));
    };
    loop {
        if let Some(ended) = reap(child, channel) {
            return Some(ended);
        }
        let mut fds =
            [PollFd::new(children.as_fd(), PollFlags::POLLIN), PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return Some((0, 125)),
        }
        let heard = fds[1].revents().is_some_and(|events| !events.is_empty());
        while matches!(children.read_signal(), Ok(Some(_))) {}
        if heard && !listen(child, channel) {
            return None;
        }
    }
}

/// One message of the launcher's: a signal to pass on. False when the launcher is gone.
fn listen(child: Pid, channel: &Channel) -> bool {
    match channel.receive() {
        Ok(Some(message)) => {
            if let [b'k', number] = message.bytes[..]
                && let Ok(signal) = Signal::try_from(i32::from(number))
            {
                // Its whole group: a shell's children get a Ctrl-C, too.
                let _ = killpg(child, signal).or_else(|_| kill(child, signal));
            }
            true
        }
        _ => false,
    }
}

fn reap(child: Pid, channel: &Channel) -> Option<Ended> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return Some((0, code as u8)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return Some((1, signal as u8)),
            Ok(WaitStatus::Stopped(pid, signal)) if pid == child => {
                let _ = channel.send(&[b'S', signal as u8], None);
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return Some((0, 125)),
        }
    }
}
