//! The caller's terminal, handed over to a cell that has one of its own: what is typed goes in, what is shown comes
//! out, and the cell's line discipline makes Ctrl-C and Ctrl-Z of it.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::ErrorKind::{Interrupted, WouldBlock};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcgetsid, tcsetattr};
use nix::unistd::{getpgrp, getsid, tcgetpgrp};

use super::relay::ready;
use crate::sys;

/// The caller's terminal and the master of the cell's. The mode is put back when dropped.
#[derive(Debug)]
pub struct Terminal {
    input: File,
    output: File,
    before: Termios,
    master: Option<File>,
    to_agent: Vec<u8>,
    to_caller: Vec<u8>,
    raw: bool,
    closed: bool,
    input_ended: bool,
}

impl Terminal {
    /// The caller's terminal, where standard input and output are one.
    pub fn open() -> Option<Terminal> {
        use std::io::IsTerminal;
        let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
        if !stdin.is_terminal() || !stdout.is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().ok().map(File::from);
        Some(Terminal {
            input: copy(stdin.as_fd())?,
            output: unblocked(stdout.as_fd()).or_else(|| copy(stdout.as_fd()))?,
            before,
            master: None,
            to_agent: Vec::new(),
            to_caller: Vec::new(),
            raw: false,
            closed: false,
            input_ended: false,
        })
    }

    /// The cell's terminal is there: what is typed goes to it from now on.
    pub fn connect(&mut self, master: OwnedFd) {
        // An agent that reads nothing of a long paste must not hold up the launcher.
        let _ = fcntl(&master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK));
        self.master = Some(master.into());
        // An attempt before this one may have ended.
        self.closed = false;
        self.resize();
        self.enter();
    }

    /// The window has another size.
    pub fn resize(&mut self) {
        if let (Some(master), Ok(size)) = (&self.master, sys::tty::size(self.input.as_fd())) {
            let _ = sys::tty::set_size(master.as_fd(), &size);
        }
    }

    /// Every key goes to the cell as it is.
    pub fn enter(&mut self) {
        if self.master.is_none() {
            return;
        }
        let mut raw = self.before.clone();
        cfmakeraw(&mut raw);
        self.raw = tcsetattr(&self.input, SetArg::TCSADRAIN, &raw).is_ok();
        self.resize();
    }

    /// The caller's shell gets it back as it was.
    pub fn leave(&mut self) {
        if self.raw {
            let _ = tcsetattr(&self.input, SetArg::TCSADRAIN, &self.before);
            self.raw = false;
        }
    }

    /// Neither mode nor keys are ours where another job is in front: both would stop us.
    pub fn give_up_in_background(&mut self) -> bool {
        let behind = tcgetpgrp(&self.input) != Ok(getpgrp());
        self.input_ended |= behind;
        behind
    }

    /// What it waits for.
    pub fn interest(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let Some(master) = self.master.as_ref().filter(|_| !self.closed) else { return Vec::new() };
        let mut wanted = PollFlags::empty();
        let mut fds = Vec::new();
        if !self.to_agent.is_empty() {
            wanted |= PollFlags::POLLOUT;
        } else if !self.input_ended {
            fds.push((self.input.as_fd(), PollFlags::POLLIN));
        }
        if self.to_caller.is_empty() {
            wanted |= PollFlags::POLLIN;
        } else {
            fds.push((self.output.as_fd(), PollFlags::POLLOUT));
        }
        fds.push((master.as_fd(), wanted));
        fds
    }

    /// Moves what can be moved without blocking.
    pub fn pump(&mut self) {
        let Some(master) = &mut self.master else { return };
        if self.closed {
            return;
        }
        // The caller's terminal may end before the cell's: the agent learns that from SIGHUP.
        self.input_ended |= !move_bytes(&mut self.input, &mut self.to_agent, master);
        self.closed = !move_bytes(master, &mut self.to_caller, &mut self.output);
    }

    /// Shows what the cell has still written, unless the caller's terminal takes nothing any more.
    pub fn drain(&mut self) {
        let Some(master) = &mut self.master else { return };
        let mut until = Instant::now() + STALLED;
        while (!self.closed && ready(master.as_fd(), PollFlags::POLLIN)) || !self.to_caller.is_empty() {
            let before = self.to_caller.len();
            self.closed |= !move_bytes(master, &mut self.to_caller, &mut self.output);
            if self.to_caller.is_empty() || self.to_caller.len() != before {
                until = Instant::now() + STALLED;
            } else if Instant::now() > until {
                break;
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.to_caller.clear();
        self.leave();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.leave();
    }
}

/// How long the caller's terminal may take nothing of what a dead agent has left.
const STALLED: Duration = Duration::from_secs(1);

/// The terminal once more, for writes that do not block: one that nobody reads must not keep the launcher from its
/// deadline and signals. A descriptor of our own, since the flag would else be the caller's shell's, too.
fn unblocked(fd: BorrowedFd<'_>) -> Option<File> {
    if tcgetsid(fd).ok()? != getsid(None).ok()? {
        return None;
    }
    File::options().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open("/dev/tty").ok()
}

/// Reads into an empty buffer, writes from a full one. False at the end of `from`.
fn move_bytes(from: &mut File, buffer: &mut Vec<u8>, to: &mut File) -> bool {
    if buffer.is_empty() && ready(from.as_fd(), PollFlags::POLLIN) {
        let mut chunk = [0; 4096];
        match from.read(&mut chunk) {
            Err(error) if matches!(error.kind(), Interrupted | WouldBlock) => {}
            // EIO: no process has the slave open any more (ioctl_tty(2)).
            Ok(0) | Err(_) => return false,
            Ok(length) => buffer.extend(&chunk[..length]),
        }
    }
    if !buffer.is_empty() && ready(to.as_fd(), PollFlags::POLLOUT) {
        match to.write(buffer) {
            Ok(written) => drop(buffer.drain(..written)),
            Err(error) if matches!(error.kind(), Interrupted | WouldBlock) => {}
            // It is gone. Nobody misses the rest, and to try again would only spin.
            Err(_) => buffer.clear(),
        }
    }
    true
}
