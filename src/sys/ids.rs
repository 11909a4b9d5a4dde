//! The IDs of a run, and becoming them.
#![forbid(unsafe_code)]

use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::sys;

/// A UID and the GID of the same rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// The UID.
    pub uid: Uid,
    /// The GID.
    pub gid: Gid,
}

/// Becomes the run's UID for good, without a supplementary group and without a capability.
///
/// # Errors
/// The errno of the call that failed; afterwards the process must not go on.
pub fn become_run(ids: Ids) -> Result<(), Errno> {
    // Groups first: afterwards the right to change them is gone (setresuid(2)).
    setgroups(&[])?;
    setresgid(ids.gid, ids.gid, ids.gid)?;
    setresuid(ids.uid, ids.uid, ids.uid)?;
    // Under SECBIT_NO_SETUID_FIXUP, which the launcher's caller may hand on, they outlive the change of UID: kill(-1) of
    // a process with CAP_KILL ends the host.
    sys::capabilities::clear()?;
    // The change made it what fs.suid_dumpable says, and init keeps this UID beside the agent: an init that the agent
    // may trace would be the agent's (ptrace(2), access mode checks).
    prctl::set_dumpable(false)
}

/// Gets the run's UID as its effective one alone: it may signal the run's processes, and they may not signal it.
///
/// # Errors
/// As for [`become_run`]; EINVAL where the user namespace does not map the spare UID.
pub fn become_killer(ids: Ids, spare: Uid) -> Result<(), Errno> {
    setgroups(&[])?;
    setresgid(ids.gid, ids.gid, ids.gid)?;
    setresuid(spare, ids.uid, spare)?;
    sys::capabilities::clear()?;
    prctl::set_dumpable(false)
}

/// The GID of the same number as a UID.
pub fn gid_of(uid: u32) -> Gid {
    Gid::from_raw(uid)
}
