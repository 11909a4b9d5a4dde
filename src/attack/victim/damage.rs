//! Watching what is done to the victim while it waits, and comparing at the end.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::{Deserialize, Serialize};

use super::objects::{Listener, Objects};
use crate::attack::target::read_some;
use crate::sys::attack::{ipc, process};

/// One thing that was done to the victim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// To what.
    pub object: String,
    /// What is not as it was.
    pub what: String,
}

/// What is compared: name of the object, and its state in words.
type State = Vec<(String, String)>;

/// Looks on while the attacker works.
pub(super) struct Watch {
    signals: Option<SignalFd>,
    before: State,
    damage: Vec<Damage>,
}

impl Watch {
    /// SIGUSR1 is blocked and read from a descriptor.
    pub(super) fn new() -> Watch {
        let mut wanted = SigSet::empty();
        wanted.add(Signal::SIGUSR1);
        let _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&wanted), None);
        let signals = SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).ok();
        Watch { signals, before: Vec::new(), damage: Vec::new() }
    }

    /// Remembers how everything is now.
    pub(super) fn before(&mut self, objects: &Objects) {
        self.before = state(objects);
    }

    fn hurt(&mut self, object: impl Into<String>, what: impl Into<String>) {
        let damage = Damage { object: object.into(), what: what.into() };
        if !self.damage.contains(&damage) {
            self.damage.push(damage);
        }
    }

    /// Serves its sockets until standard input ends.
    pub(super) fn wait(&mut self, objects: &Objects) {
        let stdin = std::io::stdin();
        loop {
            let mut fds = vec![PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
            fds.extend(objects.listeners.iter().map(|(_, listener)| PollFd::new(listener.as_fd(), PollFlags::POLLIN)));
            let ready = poll(&mut fds, PollTimeout::from(25_u8));
            let over = ready.is_ok() && fds[0].any().unwrap_or(true) && ended();
            for (name, listener) in &objects.listeners {
                if let Some(what) = listener.serve(objects.secret()) {
                    self.hurt(name, what);
                }
            }
            self.look();
            if over {
                return;
            }
        }
    }

    fn look(&mut self) {
        while let Some(Ok(Some(info))) = self.signals.as_mut().map(|fd| fd.read_signal()) {
            let Ok(signal) = Signal::try_from(info.ssi_signo as i32) else { continue };
            // The sender's id is 0 when it lives in another pid namespace.
            self.hurt("signal", format!("{signal} from uid {}", info.ssi_uid));
        }
        if let Some(tracer) = status_line("TracerPid:").filter(|tracer| tracer != "0") {
            self.hurt("process", format!("traced by {tracer}"));
        }
    }

    /// Everything that is not as it was.
    pub(super) fn after(mut self, objects: &Objects) -> Vec<Damage> {
        let (before, after) = (std::mem::take(&mut self.before), state(objects));
        for ((object, was), (_, is)) in before.into_iter().zip(after).filter(|(was, is)| was != is) {
            self.hurt(object, format!("was {was}, is {is}"));
        }
        self.damage
    }
}

/// Standard input was readable: an end, or words that nobody asked for.
fn ended() -> bool {
    let mut bytes = [0; 64];
    !matches!(nix::unistd::read(std::io::stdin(), &mut bytes), Ok(1..))
}

impl Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Listener::Unix(listener) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Udp(socket) => socket.as_fd(),
        }
    }

    /// Answers one caller with the secret, as a service of an agent would.
    fn serve(&self, secret: &[u8]) -> Option<&'static str> {
        match self {
            Listener::Unix(listener) => drop(listener.accept().ok()?.0.write(secret)),
            Listener::Tcp(listener) => drop(listener.accept().ok()?.0.write(secret)),
            Listener::Udp(socket) => {
                let (_, from) = socket.recv_from(&mut [0; 64]).ok()?;
                drop(socket.send_to(secret, from));
                return Some("got a datagram");
            }
        }
        Some("got a connection")
    }
}

fn status_line(name: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
}

/// Files, kernel objects and the process itself, in words.
fn state(objects: &Objects) -> State {
    let target = &objects.target;
    let mut state = State::new();
    for place in &target.dirs {
        let names = fs::read_dir(&place.path).map(|entries| {
            let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
            names.sort();
            names
        });
        state.push((format!("{} directory", place.what), format!("{names:?}")));
        for name in ["secret.txt", "victim.txt"] {
            state.push((format!("{} {name}", place.what), file_state(&place.path.join(name))));
        }
    }
    for (name, path) in [("tmp_file", &target.tmp_file), ("shm_file", &target.shm_file)] {
        state.extend(path.as_ref().map(|path| (name.into(), file_state(path))));
    }
    let word = |made: Result<String, nix::errno::Errno>| made.unwrap_or_else(|errno| format!("{errno:?}"));
    let begins = |bytes: Vec<u8>| format!("begins with {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(8)]));
    state.extend(target.shm.map(|id| ("shm".into(), word(ipc::shm_read(id).map(begins)))));
    state.extend(target.sem.map(|id| ("sem".into(), word(ipc::sem_get(id).map(|value| value.to_string())))));
    state.extend(target.msg.map(|id| ("msg".into(), word(ipc::msg_count(id).map(|n| format!("{n} messages"))))));
    state.extend(target.key.map(|key| ("key".into(), word(ipc::key_read(key).map(begins)))));
    let limit = getrlimit(Resource::RLIMIT_LOCKS);
    state.push(("memory".into(), (objects.secret() == target.marker().as_bytes()).to_string()));
    state.push(("nice".into(), process::nice().to_string()));
    state.push(("policy".into(), process::policy().to_string()));
    state.push(("io priority".into(), process::io_priority().to_string()));
    state.push(("affinity".into(), status_line("Cpus_allowed:").unwrap_or_default()));
    state.push(("lock limit".into(), format!("{limit:?}")));
    state
}

fn file_state(path: &std::path::Path) -> String {
    match fs::symlink_metadata(path) {
        Ok(meta) => {
            let length = read_some(path).map(|bytes| bytes.len());
            format!("{length:?} bytes mode {:o} mtime {}.{}", meta.mode(), meta.mtime(), meta.mtime_nsec())
        }
        Err(error) => format!("{:?}", error.kind()),
    }
}
