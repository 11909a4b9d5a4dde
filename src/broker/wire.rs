//! What the launcher says to the broker that it has executed, through one pipe: what is no secret as JSON, and then each
//! secret, which goes from the memory that the launcher keeps it in into such memory of the broker's, and no other.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Gid, Pid, Uid, write};
use serde::{Deserialize, Serialize};

use super::authority::{Authority, Terms};
use super::{Held, Injected, Setup};
use crate::plan;
use crate::secret::Secret;
use crate::sys::ids::Ids;
use crate::types::network::HeaderName;

/// The longest text, in bytes: more than any policy has.
const TEXT_MAX: usize = 16 << 20;

/// All that is no secret.
#[derive(Serialize, Deserialize)]
pub struct Words {
    /// The plan's part.
    pub plan: plan::broker::Broker,
    /// Its own UID, where it has one.
    ids: Option<(u32, u32)>,
    launcher: i32,
    agent: u32,
    /// Of the credential, where one is held.
    header: Option<(HeaderName, String)>,
    client_key: bool,
    authority: Option<Terms>,
}

impl Words {
    /// What a setup says.
    pub fn of(setup: &Setup<'_>, ids: Option<Ids>) -> Words {
        Words {
            plan: setup.plan.clone(),
            ids: ids.map(|ids| (ids.uid.as_raw(), ids.gid.as_raw())),
            launcher: Pid::this().as_raw(),
            agent: setup.agent.as_raw(),
            header: setup.held.as_ref().map(|held| (held.header.clone(), held.scheme.clone())),
            client_key: setup.held.as_ref().is_some_and(|held| held.client_key.is_some()),
            authority: setup.authority.as_ref().map(|authority| authority.terms().clone()),
        }
    }

    /// The broker's own UID, where it has one.
    pub fn ids(&self) -> Option<Ids> {
        self.ids.map(|(uid, gid)| Ids { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) })
    }

    /// The process to die with.
    pub fn launcher(&self) -> Pid {
        Pid::from_raw(self.launcher)
    }
}

/// Says all of it. The order of the secrets is that of [`take`].
///
/// # Errors
/// The errno of write(2): EPIPE when the broker is gone; ETIMEDOUT when it does not read.
pub fn give(pipe: &OwnedFd, setup: &Setup<'_>, ids: Option<Ids>, patience: Duration) -> Result<(), Errno> {
    let Setup { held, pass, injected, authority, .. } = setup;
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let until = Instant::now() + patience;
    let text = serde_json::to_vec(&Words::of(setup, ids)).map_err(|_| Errno::EINVAL)?;
    frame(pipe, &text, until)?;
    frame(pipe, pass.expose(), until)?;
    if let Some(held) = held {
        frame(pipe, held.credential.expose(), until)?;
        frame(pipe, held.phantom.expose(), until)?;
        held.client_key.iter().try_for_each(|key| frame(pipe, key.expose(), until))?;
    }
    injected.iter().try_for_each(|one| frame(pipe, one.secret.expose(), until))?;
    authority.iter().try_for_each(|authority| frame(pipe, &authority.key(), until))
}

/// Its length and the bytes themselves.
fn frame(pipe: &OwnedFd, bytes: &[u8], until: Instant) -> Result<(), Errno> {
    let length = u32::try_from(bytes.len()).map_err(|_| Errno::EMSGSIZE)?;
    push(pipe, &length.to_le_bytes(), until)?;
    push(pipe, bytes, until)
}

fn push(pipe: &OwnedFd, mut bytes: &[u8], until: Instant) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(pipe, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now()));
                match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)], left.unwrap_or(PollTimeout::MAX)) {
                    Ok(0) => return Err(Errno::ETIMEDOUT),
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// What a held credential is made of.
struct Secrets {
    credential: Arc<Secret>,
    phantom: Arc<Secret>,
    client_key: Option<Arc<Secret>>,
}

/// What the broker hears.
pub struct Taken {
    /// What is no secret.
    pub words: Words,
    pass: Arc<Secret>,
    held: Option<Secrets>,
    injected: Vec<Injected>,
    authority: Option<Arc<Authority>>,
}

/// Hears all of it.
///
/// # Errors
/// A sentence: the launcher is gone, or is of another build.
pub fn take(pipe: &File) -> Result<Taken, String> {
    let failed = |error: io::Error| format!("cannot hear what the launcher says: {error}");
    let secret = || length(pipe).and_then(|length| Secret::receive(pipe, length)).map(Arc::new).map_err(failed);
    let mut text = vec![0; length(pipe).map_err(failed)?];
    { pipe }.read_exact(&mut text).map_err(failed)?;
    let words: Words =
        serde_json::from_slice(&text).map_err(|error| format!("cannot understand the launcher: {error}"))?;
    let pass = secret()?;
    let held = match &words.header {
        Some(_) => Some(Secrets {
            credential: secret()?,
            phantom: secret()?,
            client_key: words.client_key.then(secret).transpose()?,
        }),
        None => None,
    };
    let injected =
        words.plan.injected.iter().map(|one| {
            Ok::<_, String>(Injected { rule: one.rule.clone(), header: one.header.clone(), secret: secret()? })
        });
    let injected = injected.collect::<Result<Vec<_>, _>>()?;
    let authority = match words.authority.clone() {
        Some(terms) => Some(Arc::new(Authority::again(terms, secret()?.expose())?)),
        None => None,
    };
    Ok(Taken { words, pass, held, injected, authority })
}

fn length(mut pipe: &File) -> io::Result<usize> {
    let mut bytes = [0; 4];
    pipe.read_exact(&mut bytes)?;
    let length = u32::from_le_bytes(bytes) as usize;
    if length > TEXT_MAX { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(length) }
}

impl Taken {
    /// What the broker is made of.
    pub fn setup(&self) -> Setup<'_> {
        let held = self.held.as_ref().zip(self.words.header.as_ref());
        let held = held.map(|(secrets, (header, scheme))| Held {
            credential: secrets.credential.clone(),
            phantom: secrets.phantom.clone(),
            header: header.clone(),
            scheme: scheme.clone(),
            client_key: secrets.client_key.clone(),
        });
        Setup {
            plan: &self.words.plan,
            held,
            pass: self.pass.clone(),
            injected: self.injected.clone(),
            authority: self.authority.clone(),
            agent: Uid::from_raw(self.words.agent),
        }
    }
}
