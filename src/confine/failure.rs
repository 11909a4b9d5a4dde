//! What could not be done between the clone and the agent.
#![forbid(unsafe_code)]

use nix::errno::Errno;

use crate::host::Step;

/// What could not be done, on the way from the clone to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The step that a host may not offer; nothing where the failure says nothing of the host.
    pub step: Option<Step>,
    /// What the kernel said.
    pub errno: Errno,
    /// Verb and object.
    pub action: String,
}

impl Failure {
    /// A step that a host may not offer.
    pub fn at(step: Step, errno: Errno, action: &str) -> Failure {
        Failure { step: Some(step), errno, action: action.to_owned() }
    }

    /// Anything else.
    pub fn plain(errno: Errno, action: &str) -> Failure {
        Failure { step: None, errno, action: action.to_owned() }
    }

    /// As bytes for the channel to the launcher.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![b'F', self.step.map_or(0, |step| step as u8)];
        bytes.extend((self.errno as i32).to_le_bytes());
        bytes.extend(self.action.as_bytes());
        bytes
    }

    /// Back from bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Failure> {
        let (&[b'F', step, a, b, c, d], action) = bytes.split_first_chunk::<6>()? else { return None };
        Some(Failure {
            step: Step::from_number(step),
            errno: Errno::from_raw(i32::from_le_bytes([a, b, c, d])),
            action: String::from_utf8_lossy(action).into_owned(),
        })
    }
}
