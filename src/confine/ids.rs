//! UIDs, GIDs and the maps of a user namespace.
#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::io::Write;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::unistd::{Pid, getegid, geteuid, getgroups, setgroups};

use crate::host::groups::Group;
use crate::sys::ids::Ids;
use crate::sys::process::{Fork, fork_into};

/// Maps the caller's UID and GID to themselves in the user namespace that this process has just entered. To
/// themselves and not to 0: no capability then survives exec(2).
///
/// # Errors
/// The errno of writing the map.
pub fn map_self(ids: Ids) -> Result<(), Errno> {
    // A process that is not dumpable does not own its files in /proc and could not write its own map. There is no
    // secret in this process: the memory that holds it is not copied by fork.
    prctl::set_dumpable(true)?;
    // Missing under gVisor, which asks for no such word before a map of groups.
    let denied = match write("self", "setgroups", "deny") {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    };
    let written = denied
        .and_then(|()| write("self", "uid_map", &line(ids.uid.as_raw())))
        .and_then(|()| write("self", "gid_map", &line(ids.gid.as_raw())));
    prctl::set_dumpable(false)?;
    written
}

/// Clones a child whose maps this process can write: what /proc has of a process that is not dumpable is root's. A process
/// without our capabilities may trace neither of the two meanwhile (ptrace(2), access mode checks).
///
/// # Errors
/// The errno of prctl(2) or clone(2).
pub fn fork_mappable(namespaces: CloneFlags) -> Result<Fork, Errno> {
    if geteuid().is_root() {
        return fork_into(namespaces);
    }
    prctl::set_dumpable(true)?;
    let forked = fork_into(namespaces);
    if !matches!(forked, Ok(Fork::Child)) {
        prctl::set_dumpable(false)?;
    }
    forked
}

/// Maps the launcher's and the agent's UID and GID to themselves in the user namespace of a child. Only who has
/// CAP_SETUID and CAP_SETGID outside may map more than one (user_namespaces(7)); the child gives its groups up by itself.
///
/// # Errors
/// The errno of writing the map: EPERM where UID 0 is one of them and CAP_SETFCAP is missing.
pub fn map_child(child: Pid, launcher: Ids, agent: Ids) -> Result<(), Errno> {
    let process = child.to_string();
    write(&process, "uid_map", &lines(launcher.uid.as_raw(), agent.uid.as_raw()))
        .and_then(|()| write(&process, "gid_map", &lines(launcher.gid.as_raw(), agent.gid.as_raw())))
}

/// The kernel takes no id twice.
fn lines(one: u32, other: u32) -> String {
    if one == other { line(one) } else { line(one) + &line(other) }
}

fn line(id: u32) -> String {
    format!("{id} {id} 1\n")
}

/// In one write: the kernel takes no second one.
fn write(process: &str, name: &str, text: &str) -> Result<(), Errno> {
    // Without O_CREAT: where the file is missing the answer is to be ENOENT.
    let opened = OpenOptions::new().write(true).open(format!("/proc/{process}/{name}"));
    opened
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}

/// With the launcher's UID: no supplementary group but those that the plan names, since they cannot be given up.
///
/// # Errors
/// The errno of setgroups(2): the launcher has groups after all that the plan does not know of.
pub fn keep_groups(planned: &[Group]) -> Result<(), Errno> {
    // Not by number: whoever maps his own GID alone sees every other as the overflow one.
    let own = getegid();
    let keeps_none = || getgroups().map(|all| all.into_iter().all(|gid| gid == own));
    if !planned.is_empty() || keeps_none()? { Ok(()) } else { setgroups(&[]) }
}
