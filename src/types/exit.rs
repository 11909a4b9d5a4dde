//! Exit statuses of the launcher, as `timeout(1)` and the shell have them.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Why the launcher ends, and with which status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The agent's own status, 0–255.
    Agent(u8),
    /// The agent was ended by this signal: 128 + its number.
    Signal(u8),
    /// `--timeout` passed: 124.
    Deadline,
    /// We refused, or failed before the agent ran: 125.
    Refused,
    /// The command exists and cannot be executed: 126.
    CannotExecute,
    /// The command was not found: 127.
    NotFound,
}

impl Exit {
    /// The number that the caller's `$?` will show.
    pub fn status(self) -> u8 {
        match self {
            Exit::Agent(code) => code,
            Exit::Signal(number) => 128u8.saturating_add(number),
            Exit::Deadline => 124,
            Exit::Refused => 125,
            Exit::CannotExecute => 126,
            Exit::NotFound => 127,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.status())
    }
}
