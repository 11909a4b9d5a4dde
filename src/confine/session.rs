//! Session, terminal and descriptors of the agent.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::pty::openpty;
use nix::sys::termios::tcgetattr;
use nix::unistd::setsid;

use crate::confine::failure::Failure;
use crate::sys;

/// A pseudo-terminal: the launcher holds the master, the agent's session the slave.
#[derive(Debug)]
pub struct Terminal {
    /// The launcher's side.
    pub master: OwnedFd,
    /// The agent's side.
    pub slave: OwnedFd,
}

/// Where a standard stream of the agent leads.
#[derive(Debug)]
pub enum Stream {
    /// Where the launcher's own leads.
    Inherit,
    /// To this descriptor.
    To(OwnedFd),
    /// To the terminal of the cell.
    Terminal,
}

/// The agent's standard input, output and error.
#[derive(Debug)]
pub struct Stdio(pub [Stream; 3]);

/// Leads a new session, without a controlling terminal: what the agent types (TIOCSTI) never reaches the caller's
/// shell, and its job control is its own.
///
/// # Errors
/// EPERM for the leader of a process group, which a fresh child is not.
pub fn lead() -> Result<(), Failure> {
    setsid().map(drop).map_err(|errno| Failure::plain(errno, "lead a new session"))
}

/// A terminal on the /dev/pts that this process sees, with size and mode of the caller's, which is still standard
/// input here: set later by the launcher, they would come after the agent's own.
///
/// # Errors
/// The errno of openpty(3).
pub fn open_terminal() -> Result<Terminal, Failure> {
    let caller = std::io::stdin();
    let (size, mode) = (sys::tty::size(caller.as_fd()).ok(), tcgetattr(&caller).ok());
    let pair = openpty(&size, &mode).map_err(|errno| Failure::plain(errno, "open a terminal for the cell"))?;
    Ok(Terminal { master: pair.master, slave: pair.slave })
}

/// Puts the agent's descriptors into place and closes every other one: an inherited descriptor goes round Landlock,
/// namespaces and the UID alike.
///
/// # Errors
/// The errno of what failed.
pub fn attach(
    stdio: Stdio,
    terminal: Option<OwnedFd>,
    credential: Option<OwnedFd>,
    exec_failed: &OwnedFd,
) -> Result<(), Errno> {
    for (number, stream) in (0..).zip(stdio.0) {
        match stream {
            Stream::Inherit => {}
            Stream::To(fd) => sys::fds::place(fd, number)?,
            Stream::Terminal => sys::fds::place(
                terminal.as_ref().ok_or(Errno::ENOTTY)?.try_clone().map_err(|_| Errno::EMFILE)?,
                number,
            )?,
        }
    }
    // Before its number is closed below: closing it twice is an abort in a debug build.
    drop(terminal);
    let mut first = CREDENTIAL_FD as u32;
    if let Some(credential) = credential {
        sys::fds::place(credential, CREDENTIAL_FD)?;
        first += 1;
    }
    sys::fds::close_from(first, &[number(exec_failed.as_raw_fd())])?;
    sys::process::default_signals()
}

fn number(fd: RawFd) -> u32 {
    u32::try_from(fd).unwrap_or(u32::MAX)
}

/// The number under which an agent finds the pipe with its credential.
pub const CREDENTIAL_FD: i32 = 3;
