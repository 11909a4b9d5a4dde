//! Policies: what a level denies, how much it insists on each layer, and its limits. Data only; the levels that ship
//! are compiled in.
#![forbid(unsafe_code)]

pub mod agents;
pub mod level;
pub mod library;
mod names;

use crate::types::units::{Bytes, Time};

pub use level::{AllCommands, AnyWord, Commands, Execute, Files, Handing, Kernel, Limits, Network, Policy, Ports};

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> String {
        bytes.to_string()
    }
}

impl From<Time> for String {
    fn from(time: Time) -> String {
        time.to_string()
    }
}
