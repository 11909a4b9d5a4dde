//! The broker: a process beside the launcher that holds the credential in a cell's stead.
//!
//! It gets the agent's requests from a listener that the child made inside the cell's network namespace and passed out,
//! so that no other process can connect to it, and it is the only way out of that namespace. Where there is none, the
//! launcher listens on the host's loopback, and the broker hears only the agent's UID. It puts the credential where the
//! agent sent its phantom, and sends the request on to the one upstream of the plan. As a proxy it leads to the hosts of
//! the plan's list, and puts nothing into what passes there.
//!
//! It reads what a hostile agent sends, so it is not the launcher: a fork of it, made when the first connection is there,
//! with a UID of its own where runs have one, no capability, a Landlock domain and a seccomp filter, and no descriptor
//! but the listener and a channel. When it ends by itself, however that comes, the run ends as a failure.
#![forbid(unsafe_code)]

mod address;
pub mod authority;
mod body;
pub mod frames;
pub mod gate;
mod inject;
mod names;
mod pass;
mod peer;
mod process;
pub mod proxy;
mod reach;
mod redact;
mod socket;
mod tally;
pub mod trust;
pub mod tunnel;
mod usage;
pub mod watched;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, Uid, getpid};

use authority::Authority;

use crate::error::Error;
use crate::plan;
use crate::policy::way::Way;
use crate::secret::Secret;
use crate::state::State;
use crate::sys::channel::Channel;
use crate::sys::process::{Fork, fork_into};
use crate::uids::Lease;
pub use inject::Injected;
pub use tally::{Counts, Host, Tally, Tokens, Traffic};

/// How long a broker may take to say what it did. It only has to be scheduled.
const PATIENCE: Duration = Duration::from_secs(10);

/// The launcher's word for: say what you did, and end.
const QUIT: &[u8] = b"q";

/// How a message of its answer begins; one with nothing behind it is the last.
const MORE: &[u8] = b"m";

/// The largest head of a request or an answer, in bytes and in headers.
const HEAD_SIZE: usize = 64 << 10;
const HEADERS: usize = 128;

/// How long a connection may take to send the head of a request, or be idle.
const HEAD: Duration = Duration::from_secs(15);

/// What a broker is made of.
#[derive(Debug, Clone)]
pub struct Setup<'a> {
    /// The plan's part.
    pub plan: &'a plan::broker::Broker,
    /// Where UIDs are leased.
    pub state: &'a State,
    /// The credential, where one is brokered.
    pub held: Option<Held<'a>>,
    /// What whoever uses the broker as a proxy has to show.
    pub pass: Arc<Secret>,
    /// What hosts of the list get.
    pub injected: Vec<Injected>,
    /// What stands for those hosts in the cell; it is there where any is.
    pub authority: Option<Arc<Authority>>,
    /// The agent's UID.
    pub agent: Uid,
}

/// A credential that the broker holds.
#[derive(Debug, Clone)]
pub struct Held<'a> {
    /// What the upstream gets.
    pub credential: Arc<Secret>,
    /// What the agent has instead.
    pub phantom: Arc<Secret>,
    /// How it sends that.
    pub way: &'a Way,
    /// The broker's own certificate and key for the upstream, in PEM.
    pub client_key: Option<Arc<Secret>>,
}

/// The launcher's side.
#[derive(Debug)]
pub struct Broker<'a> {
    setup: Setup<'a>,
    /// Open to the end: where the port is the host's, nobody else gets it while the agent lives.
    listener: Option<OwnedFd>,
    process: Option<Process>,
    /// Why it has ended before it was asked to.
    dead: Option<String>,
}

/// A broker's process.
#[derive(Debug)]
struct Process {
    /// Nothing once it is waited for.
    pid: Option<Pid>,
    channel: Channel,
    lease: Option<Lease>,
}

impl<'a> Broker<'a> {
    /// One that waits for its listener.
    pub fn new(setup: Setup<'a>) -> Broker<'a> {
        Broker { setup, listener: None, process: None, dead: None }
    }

    /// Takes the listener.
    pub fn listen(&mut self, listener: OwnedFd) {
        self.listener = Some(listener);
    }

    /// Readable when somebody connects and no process is there yet: [`Broker::start`] it then.
    pub fn door(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().filter(|_| self.process.is_none() && self.dead.is_none()).map(OwnedFd::as_fd)
    }

    /// Starts the process, at the first connection: an agent that asks nothing costs nothing.
    ///
    /// # Errors
    /// A sentence. The run must then end.
    pub fn start(&mut self) -> Result<(), String> {
        let Some(listener) = &self.listener else { return Ok(()) };
        let made = listener.try_clone().map_err(|error| Error::new("start the broker", error));
        let made = made.and_then(|listener| self.fork(listener)).map_err(|error| error.to_string());
        self.process = Some(made.inspect_err(|why| self.dead = Some(why.clone()))?);
        Ok(())
    }

    fn fork(&self, listener: OwnedFd) -> Result<Process, Error> {
        let failed = |errno| Error::new("start the broker", errno);
        let Setup { plan, state, held, pass, injected, .. } = &self.setup;
        let lease = plan.uids.map(|range| Lease::take(state, range)).transpose()?;
        let (ours, theirs) = Channel::pair().map_err(failed)?;
        let launcher = getpid();
        lease.iter().for_each(Lease::use_it);
        let held = held.iter().flat_map(|held| [&held.credential, &held.phantom].into_iter().chain(&held.client_key));
        let all = held.chain([pass]).chain(injected.iter().map(|one| &one.secret));
        let secrets: Vec<&Secret> = all.map(|secret| &**secret).collect();
        match Secret::fork_with(&secrets, || fork_into(CloneFlags::empty())).map_err(failed)? {
            Fork::Child => {
                let ids = lease.as_ref().map(Lease::ids);
                process::run(process::Charge { setup: self.setup.clone(), listener, channel: theirs, ids, launcher })
            }
            Fork::Parent(pid) => Ok(Process { pid: Some(pid), channel: ours, lease }),
        }
    }

    /// Takes note that a child of the launcher's has ended, and gives why where that was the broker.
    pub fn reaped(&mut self, status: WaitStatus) -> Option<String> {
        let process = self.process.as_mut().filter(|process| process.pid.is_some() && process.pid == status.pid())?;
        let how = match status {
            WaitStatus::Exited(_, code) => format!("the broker ended with status {code}"),
            WaitStatus::Signaled(_, signal, _) => format!("the broker was ended by {signal}"),
            _ => return None,
        };
        process.pid = None;
        let why = process.last_words().unwrap_or(how);
        self.dead = Some(why.clone());
        Some(why)
    }

    /// Ends it, and gives what it did.
    ///
    /// # Errors
    /// Why it had ended before.
    pub fn finish(mut self) -> Result<Traffic, String> {
        if let Some(why) = self.dead.take() {
            return Err(why);
        }
        let Some(process) = self.process.take() else { return Ok(Traffic::default()) };
        let _ = process.channel.send(QUIT, None);
        let said = process.hear_out(PATIENCE).and_then(|bytes| serde_json::from_slice(&bytes).ok());
        said.ok_or_else(|| "the broker did not say what it did: it was ended, or stopped".to_owned())
    }
}

impl Process {
    /// Its next message.
    fn hear(&self, patience: Duration) -> Option<Vec<u8>> {
        let until = Instant::now() + patience;
        loop {
            let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now())).ok()?;
            match poll(&mut [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)], left) {
                Err(Errno::EINTR) => {}
                Ok(0) | Err(_) => return None,
                Ok(_) => return self.channel.receive().ok()?.map(|message| message.bytes),
            }
        }
    }

    /// What it says in one message after the other.
    fn hear_out(&self, patience: Duration) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let message = self.hear(patience)?;
            match message.strip_prefix(MORE)? {
                [] => return Some(all),
                part => all.extend_from_slice(part),
            }
        }
    }

    /// Why it could not go on, where it has said so.
    fn last_words(&self) -> Option<String> {
        let bytes = self.hear(Duration::ZERO)?;
        String::from_utf8(bytes).ok()?.strip_prefix('F').map(str::to_owned)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            let _ = kill(pid, Signal::SIGKILL);
            while waitpid(pid, None) == Err(Errno::EINTR) {}
        }
        self.lease.take().into_iter().for_each(Lease::release);
    }
}
