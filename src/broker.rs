//! The broker: a process beside the launcher that holds the credential in a cell's stead.
//!
//! It gets the agent's requests from a listener that the child made inside the cell's network namespace and passed out,
//! so that no other process can connect to it, and it is the only way out of that namespace. Where there is none, the
//! launcher listens on the host's loopback, and the broker hears only the agent's UID. It puts the credential where the
//! agent sent its phantom, and sends the request on to the one upstream of the plan. As a proxy it leads to the hosts of
//! the plan's list, and puts nothing into what passes there.
//!
//! It reads what a hostile agent sends, so it is not the launcher, nor a fork of it, which would have its memory and its
//! addresses: it is a program of its own, position-independent, executed when the first connection is there. It gets the
//! listener, a channel, and a pipe out of which the secrets come once nobody can read its memory. It has a UID of its own
//! where runs have one, no capability, a Landlock domain and a seccomp filter. When it ends by itself, however that comes,
//! the run ends as a failure.
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
mod wire;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, Uid, pipe2, setsid};

use crate::cell::state::State;
use crate::cell::uids::Lease;
use crate::host::image::{self, Image};
use crate::plan;
use crate::secret::Secret;
use crate::sys::channel::Channel;
use crate::sys::process::{Fork, exec_file, exit_now, fork_into};
use crate::sys::{fds, inherited};
use crate::types::error::Error;
use crate::types::network::HeaderName;
use authority::Authority;

pub use inject::Injected;
pub use process::main as serve;
pub use tally::{Counts, Host, Tally, Tokens, Traffic};

/// How long a broker may take to say what it did. It only has to be scheduled.
const PATIENCE: Duration = Duration::from_secs(10);

/// Under which numbers the broker finds the listener, the channel and the pipe.
const HANDED: [RawFd; 3] = [3, 4, 5];

/// The broker's first word: nobody reads its memory, and it is of this build.
const READY: &[u8] = concat!("r", env!("CARGO_PKG_VERSION"), " ", env!("OUBLIETTE_BUILD")).as_bytes();

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
    /// The credential, where one is brokered.
    pub held: Option<Held>,
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
pub struct Held {
    /// What the upstream gets.
    pub credential: Arc<Secret>,
    /// What the agent has instead.
    pub phantom: Arc<Secret>,
    /// The header in which it sends that.
    pub header: HeaderName,
    /// What comes before it there.
    pub scheme: String,
    /// The broker's own certificate and key for the upstream, in PEM.
    pub client_key: Option<Arc<Secret>>,
}

/// The launcher's side.
#[derive(Debug)]
pub struct Broker<'a> {
    setup: Setup<'a>,
    /// Where UIDs are leased.
    state: &'a State,
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
    /// Where its first word has not been heard: the pipe for what it is then told.
    silent: Option<OwnedFd>,
    lease: Option<Lease>,
}

impl<'a> Broker<'a> {
    /// One that waits for its listener.
    pub fn new(setup: Setup<'a>, state: &'a State) -> Broker<'a> {
        Broker { setup, state, listener: None, process: None, dead: None }
    }

    /// Takes the listener.
    pub fn listen(&mut self, listener: OwnedFd) {
        self.listener = Some(listener);
    }

    /// Readable when somebody connects and no process is there yet, or when that says its first word: [`Broker::start`] it
    /// then.
    pub fn door(&self) -> Option<BorrowedFd<'_>> {
        match &self.process {
            _ if self.dead.is_some() => None,
            None => self.listener.as_ref().map(OwnedFd::as_fd),
            Some(process) => process.silent.is_some().then(|| process.channel.as_fd()),
        }
    }

    /// Starts the process, at the first connection: an agent that asks nothing costs nothing. When that is ready, it tells
    /// it what it is for.
    ///
    /// # Errors
    /// A sentence. The run must then end.
    pub fn start(&mut self) -> Result<(), String> {
        self.step(Duration::ZERO).inspect_err(|why| self.dead = Some(why.clone()))
    }

    fn step(&mut self, patience: Duration) -> Result<(), String> {
        match (&mut self.process, &self.listener) {
            (Some(process), _) => process.greet(&self.setup, patience),
            (None, Some(listener)) => {
                self.process = Some(self.execute(listener.as_fd()).map_err(|error| error.to_string())?);
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }

    fn execute(&self, listener: BorrowedFd<'_>) -> Result<Process, Error> {
        let failed = |errno| Error::new("start the broker", errno);
        let plan = self.setup.plan;
        // A run without one is refused in the plan.
        let image = plan.image.as_ref().ok_or_else(|| failed(Errno::ENOENT))?;
        let lease = plan.uids.map(|range| Lease::take(self.state, range)).transpose()?;
        let (ours, theirs) = Channel::pair().map_err(failed)?;
        let (pipe, silent) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
        lease.iter().for_each(Lease::use_it);
        match fork_into(CloneFlags::empty()).map_err(failed)? {
            Fork::Child => become_program(image, [listener, theirs.as_fd(), pipe.as_fd()]),
            Fork::Parent(pid) => Ok(Process { pid: Some(pid), channel: ours, silent: Some(silent), lease }),
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
        if self.dead.is_some() {
            return None;
        }
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
        while self.process.as_ref().is_some_and(|process| process.silent.is_some()) {
            self.step(PATIENCE)?;
        }
        let Some(process) = self.process.take() else { return Ok(Traffic::default()) };
        let _ = process.channel.send(QUIT, None);
        let said = process.hear_out(PATIENCE).and_then(|bytes| serde_json::from_slice(&bytes).ok());
        said.ok_or_else(|| "the broker did not say what it did: it was ended, or stopped".to_owned())
    }
}

/// Makes this process, a fork of the launcher, the broker's program.
fn become_program(image: &Image, given: [BorrowedFd<'_>; 3]) -> ! {
    let [_, channel, _] = given;
    let last = channel.try_clone_to_owned().map(Channel::of);
    let failed = |what: &'static str| move |errno: Errno| (what, errno);
    // What the launcher reads of signals stays blocked across exec: a service manager sends its TERM to every process of a
    // unit, and this one ends when the launcher says so.
    let done = setsid().map(drop).map_err(failed("leave the launcher's session"));
    let done = done.and_then(|()| inherited::plain_personality().map_err(failed("clear the personality")));
    let done = done.and_then(|()| fds::hand_over(&given, image.as_fd()).map_err(failed("hand descriptors over")));
    let (what, errno, last) = match done {
        Ok(program) => {
            let errno = exec_file(program.as_fd(), c"oubliette-broker");
            ("execute it", errno, fds::take(HANDED[1]).map(|file| Channel::of(file.into())).ok())
        }
        Err((what, errno)) => (what, errno, last.ok()),
    };
    if let Some(channel) = last {
        let why = format!("Fcannot {what} ({}): {}", image.path.display(), errno.desc());
        let _ = channel.send(why.as_bytes(), None);
    }
    exit_now(125)
}

impl Process {
    /// Hears its first word, where it has not, and tells it what it is for. One that ends without a word is reaped.
    fn greet(&mut self, setup: &Setup<'_>, patience: Duration) -> Result<(), String> {
        let Some(pipe) = self.silent.take() else { return Ok(()) };
        let Some(said) = self.hear(patience) else { return Ok(()) };
        if said == READY {
            let ids = self.lease.as_ref().map(Lease::ids);
            return wire::give(&pipe, setup, ids, PATIENCE)
                .map_err(|errno| format!("cannot tell the broker what it is for: {}", errno.desc()));
        }
        Err(match (said.strip_prefix(b"F"), said.first()) {
            (Some(why), _) => String::from_utf8_lossy(why).into_owned(),
            (None, Some(b'r')) => format!("{} beside the launcher is of another build", image::NAME),
            _ => "the broker speaks another language".to_owned(),
        })
    }

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
