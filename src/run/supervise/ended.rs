//! How a run ended, for its status, its report and people.
#![forbid(unsafe_code)]

use nix::errno::Errno;
use serde::Serialize;

use crate::types::exit::Exit;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// The agent exited with this status.
    Exited(u8),
    /// The agent was ended by this signal.
    Signaled(u8),
    /// The deadline passed.
    Deadline,
    /// The agent said, or did not say, that its level is in force.
    LevelNotInForce(String),
    /// The broker ended before the agent did.
    BrokerEnded(String),
    /// Its files exceeded a limit: the sentence says which.
    OverLimit(String),
    /// The program could not be executed.
    NotExecuted(String),
    /// A layer could not be put into force; the agent never ran.
    NotConfined(String),
    /// The run was refused before anything was cloned.
    Refused(String),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Exited(code) => write!(f, "the agent exited with status {code}"),
            Ended::Signaled(number) => write!(f, "the agent was ended by signal {number}"),
            Ended::Deadline => f.write_str("the deadline passed"),
            Ended::LevelNotInForce(why) => write!(f, "its level is not in force: {why}"),
            Ended::BrokerEnded(why) => write!(f, "its requests were no longer brokered: {why}"),
            Ended::OverLimit(what) => write!(f, "its files exceed a limit: {what}"),
            Ended::NotExecuted(why) => write!(f, "the program could not be executed: {why}"),
            Ended::NotConfined(why) | Ended::Refused(why) => f.write_str(why),
        }
    }
}

impl Ended {
    /// The status of the launcher.
    pub fn exit(&self) -> Exit {
        match self {
            Ended::Exited(code) => Exit::Agent(*code),
            Ended::Signaled(number) => Exit::Signal(*number),
            Ended::Deadline => Exit::Deadline,
            Ended::NotExecuted(why) if why == Errno::ENOENT.desc() => Exit::NotFound,
            Ended::NotExecuted(_) => Exit::CannotExecute,
            Ended::LevelNotInForce(_)
            | Ended::BrokerEnded(_)
            | Ended::OverLimit(_)
            | Ended::NotConfined(_)
            | Ended::Refused(_) => Exit::Refused,
        }
    }
}
