//! With whose rights something is made outside of a cell. Root could make it anywhere: where a user owns the directory, he
//! can swap names and links in it between two looks, and would have root's hand to write and to remove with.
#![forbid(unsafe_code)]

use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::unistd::{Gid, Uid, getegid, geteuid, setegid, seteuid};
use std::os::fd::BorrowedFd;

/// Those of the owner of a directory, or the launcher's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights(Option<(Uid, Gid)>);

impl Rights {
    /// The launcher's.
    pub const OWN: Rights = Rights(None);

    /// Of whoever owns this directory, where the launcher is root and its owner is not.
    ///
    /// # Errors
    /// The errno of fstat(2).
    pub fn of(dir: BorrowedFd<'_>) -> Result<Rights, Errno> {
        let stat = fstat(dir)?;
        let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        Ok(Rights((geteuid().is_root() && !owner.0.is_root()).then_some(owner)))
    }

    /// Whether a file of this UID is as good as the launcher's own.
    pub fn owns(self, uid: Uid) -> bool {
        uid == geteuid() || self.0.is_some_and(|(owner, _)| owner == uid)
    }

    /// Does this with these rights. Reading a cell takes the launcher's: it must not be in here.
    ///
    /// By effective IDs and not by setfsuid(2), which gVisor lacks: real and saved UID stay root's, and so nobody but
    /// root may signal or trace the launcher meanwhile. The group's rights are the file's, not the owner's other groups'.
    ///
    /// # Errors
    /// The errno of setresuid(2), or what `act` fails with. The launcher has its own rights again in either case.
    pub fn with<T, E: From<Errno>>(self, act: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let Some((uid, gid)) = self.0 else { return act() };
        let (own_uid, own_gid) = (geteuid(), getegid());
        setegid(gid).map_err(E::from)?;
        let done = seteuid(uid).map_err(E::from).and_then(|()| act());
        // Root by its saved UID: this cannot fail, and a launcher that goes on as somebody else must not.
        if seteuid(own_uid).and_then(|()| setegid(own_gid)).is_err() {
            std::process::abort();
        }
        done
    }
}
