//! The agent's command, and what its start tells the launcher.
#![forbid(unsafe_code)]

use std::ffi::CString;
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use crate::confine::session::Stdio;

/// The agent's command.
#[derive(Debug)]
pub struct Command {
    /// The file to execute.
    pub program: CString,
    /// Its arguments, the name first.
    pub arguments: Vec<CString>,
    /// Its environment.
    pub environment: Vec<CString>,
    /// Its standard streams.
    pub stdio: Stdio,
    /// The pipe with its credential, for descriptor [`CREDENTIAL_FD`](crate::confine::session::CREDENTIAL_FD).
    pub credential: Option<OwnedFd>,
    /// What stands before and after the credential in a file.
    pub around_credential: [String; 2],
    /// Gets a byte before the agent is executed and the errno when it cannot be, and closes when it can.
    pub exec_failed: OwnedFd,
}

/// Everything is in force, and the agent is next. Where the pipe closes without it, somebody has killed a process of the
/// set-up: the kernel when memory ran out, or a person.
pub(crate) fn announce(exec_failed: &OwnedFd) {
    let _ = nix::unistd::write(exec_failed, b"x");
}

/// The agent is not executed.
pub(crate) fn refuse(exec_failed: &OwnedFd, errno: Errno) {
    let _ = nix::unistd::write(exec_failed, &(errno as i32).to_le_bytes());
}
