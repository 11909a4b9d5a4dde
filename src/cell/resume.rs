//! What an agent needs to go on with a conversation: kept outside of every cell between the runs of one user, and put
//! back into the next HOME. Who holds the user's workspace holds this, too.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, renameat};
use nix::sys::stat::{Mode, fstatat, mkdirat};

use crate::cell::state::State;
use crate::fs::copy::copy_named;
use crate::fs::walk::{Bounds, Passed, TreeError, entries, open_dir};
use crate::fs::wipe::{Leftover, wipe_name};
use crate::types::error::{Error, Result};
use crate::types::paths::HomePath;

/// What a run keeps for the next one: a part of a HOME, in a directory that only the launcher's user enters. No agent ever
/// has it, each gets a copy.
#[derive(Debug)]
pub struct Resume {
    place: OwnedFd,
    name: String,
    before: Option<OwnedFd>,
}

/// Before the name of what was kept until now, while it is being replaced.
const OLD: &str = ".old-";
/// Before the name of what will be kept, while it is being written.
const DRAFT: &str = ".draft-";

impl Resume {
    /// Opens what the last run of a user with this agent has left, if one has. `workspace` is the name of the user's
    /// workspace, which this run must hold.
    ///
    /// # Errors
    /// The persistent state directory cannot be used.
    pub fn open(state: &State, workspace: &str, agent: &str) -> Result<Resume> {
        let place = state.kept("resume")?.1;
        let name = format!("{workspace}.{agent}");
        let failed = |why: String| {
            Error::new("open what the user's last run kept", why).hint("make the persistent state directory writable")
        };
        finish(place.as_fd(), &name).map_err(failed)?;
        let before = match open_dir(place.as_fd(), OsStr::new(&name)) {
            Err(Errno::ENOENT) => None,
            opened => Some(opened.map_err(|errno| failed(errno.desc().into()))?),
        };
        Ok(Resume { place, name, before })
    }

    /// The part of a HOME that was kept until now.
    pub fn before(&self) -> Option<BorrowedFd<'_>> {
        self.before.as_ref().map(OwnedFd::as_fd)
    }

    /// Keeps these paths of HOME instead of what was kept until now; one that is not there is left out. `top` is the directory
    /// that HOME is in. Gives what cannot be kept. Comes after the cell's last process is dead: the content is hostile, and leaves as an export does.
    ///
    /// # Errors
    /// A bound is exceeded, or the disk is full: what was kept until now stays.
    pub fn keep(&self, top: BorrowedFd<'_>, paths: &[HomePath], bounds: &Bounds) -> Result<Passed> {
        let written = self.write(top, paths, bounds).map_err(|error| error.to_string());
        // Clears up in either case.
        let finished = finish(self.place.as_fd(), &self.name);
        finished.and(written).map_err(|why| {
            Error::new("keep what the agent resumes from", why)
                .hint("free the disk; see limits.disk and limits.files of the policy")
        })
    }

    fn write(&self, top: BorrowedFd<'_>, paths: &[HomePath], bounds: &Bounds) -> Result<Passed, TreeError> {
        let (place, name) = (self.place.as_fd(), self.name.as_str());
        let (old, draft) = (format!("{OLD}{name}"), format!("{DRAFT}{name}"));
        let failed = |errno| TreeError::Path { verb: "make", path: draft.clone(), errno };
        mkdirat(place, draft.as_str(), Mode::S_IRWXU).map_err(failed)?;
        let to = open_dir(place, OsStr::new(&draft)).map_err(failed)?;
        let home = open_dir(top, OsStr::new("home")).map_err(failed)?;
        let skipped = copy_named(home.as_fd(), to.as_fd(), paths, bounds)?.skipped;
        // Exchanging the two in one step is what not every kernel has (renameat2(2), gVisor).
        match renameat(place, name, place, old.as_str()) {
            Ok(()) | Err(Errno::ENOENT) => {
                renameat(place, draft.as_str(), place, name).map_err(failed).map(|()| skipped)
            }
            Err(errno) => Err(failed(errno)),
        }
    }
}

/// Finishes what a run began that was killed: without the name, the old files are all that there is.
fn finish(place: BorrowedFd<'_>, name: &str) -> Result<(), String> {
    let (old, draft) = (format!("{OLD}{name}"), format!("{DRAFT}{name}"));
    if fstatat(place, name, AtFlags::AT_SYMLINK_NOFOLLOW) == Err(Errno::ENOENT) {
        match renameat(place, old.as_str(), place, name) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(format!("{old}: {}", errno.desc())),
        }
    }
    remove(place, [old, draft])
}

fn remove(place: BorrowedFd<'_>, names: impl IntoIterator<Item = String>) -> Result<(), String> {
    let left = names.into_iter().flat_map(|name| wipe_name(place, OsStr::new(&name)).left);
    let left: Vec<String> = left.map(|left| format!("{}: {}", left.name, left.why)).collect();
    if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
}

/// Finishes what dead runs began, for `sweep`, and removes what was kept for a workspace that is gone. Gives what could not
/// be. Waits until then for a workspace that is held: by the keeper of a killed launcher for a moment more, or by a live run
/// that is just at it.
///
/// # Errors
/// The persistent state directory cannot be read.
pub fn sweep(state: &State, until: Instant) -> Result<Vec<Leftover>> {
    let Some(place) = state.kept_before("resume")? else { return Ok(Vec::new()) };
    let workspaces = state.kept_before("workspaces")?;
    let mut list = entries(place.as_fd()).map_err(|errno| Error::new("read what users' runs kept", errno))?;
    let names = list.iter().flatten().filter_map(|entry| {
        let name = entry.file_name().to_str().ok()?;
        let begun = name.strip_prefix(OLD).or(name.strip_prefix(DRAFT));
        Some((begun.unwrap_or(name).to_owned(), begun.is_some())).filter(|(name, _)| !name.starts_with('.'))
    });
    // Of two with one name the later counts, and `true` is the later.
    let names: BTreeMap<String, bool> = names.collect::<BTreeSet<_>>().into_iter().collect();
    let mut left = Vec::new();
    for (name, begun) in names {
        let workspace = OsStr::new(name.split('.').next().unwrap_or_default());
        let done = match workspaces.as_ref().map_or(Err(Errno::ENOENT), |all| open_dir(all.as_fd(), workspace)) {
            Err(Errno::ENOENT) => {
                remove(place.as_fd(), [format!("{OLD}{name}"), format!("{DRAFT}{name}"), name.clone()])
            }
            // Too few descriptors, say: it may be held.
            Err(errno) => Err(errno.desc().to_owned()),
            Ok(workspace) if begun => hold(workspace, until).map_or(Ok(()), |_held| finish(place.as_fd(), &name)),
            Ok(_) => Ok(()),
        };
        left.extend(done.err().map(|why| Leftover { name, why }));
    }
    Ok(left)
}

fn hold(mut workspace: OwnedFd, until: Instant) -> Option<Flock<OwnedFd>> {
    loop {
        match Flock::lock(workspace, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err(_) if Instant::now() >= until => return None,
            Err((again, _)) => workspace = again,
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
