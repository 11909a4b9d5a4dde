//! What holds an agent to its broker where the broker cannot listen in a network of the cell's own, and what stays open.
#![forbid(unsafe_code)]

use crate::types::layer::Layer;
use crate::types::network::Hold;

/// What these layers come to.
pub fn of(on: impl Fn(Layer) -> bool) -> Hold {
    if on(Layer::Net) {
        Hold::Namespace
    } else if on(Layer::LandlockNet) && on(Layer::Seccomp) {
        // Landlock's rules know plain TCP alone: without the filter there would be ways round them.
        Hold::Port
    } else {
        Hold::Nothing
    }
}

impl Hold {
    /// What an agent still reaches, for people; nothing in a network of its own. `shared`: nothing keeps another process
    /// of the agent's UID from its files and its memory.
    pub fn open(self, shared: bool) -> Option<String> {
        let reach = match self {
            Hold::Namespace => return None,
            Hold::Port => "the agent reaches that port of every host, since a Landlock rule names no address",
            Hold::Nothing => "the agent reaches by TCP whatever the host reaches",
        };
        let shared = match shared {
            true => {
                "; other processes of its UID can read by what word the broker knows it, and use the broker while the run lasts"
            }
            false => "",
        };
        Some(format!("the broker listens on the host's loopback: {reach}{shared}"))
    }
}
