//! What is between cells that the same launcher starts: in space, in time or nothing.
#![forbid(unsafe_code)]

use crate::host::Host;
use crate::plan::on::Apart;
use crate::request::{Request, Workspace};
use crate::types::layer::Layer;

/// What keeps this run's cell from those beside it, whether the policy asks for that or not.
pub fn apart(request: &Request, host: &Host, on: &crate::plan::on::On) -> Apart {
    match in_space(request, host, |layer| on.has(layer)) {
        Some(_) => Apart::InSpace,
        None if on.has(Layer::Alone) => Apart::InTime,
        None => Apart::Neither,
    }
}

/// What keeps cells under one launcher apart in space: neither reads, changes, signals or traces what is another's.
/// Namespaces without a private root and a PID namespace do not: files and /proc stay those of the UID. Landlock does
/// where it knows signals (ABI 6), and where the launcher answers for what it has no right for: modes, owners and times.
pub(super) fn in_space(request: &Request, host: &Host, on: impl Fn(Layer) -> bool + Copy) -> Option<&'static str> {
    if on(Layer::Uid) && !own_directory(request) {
        Some("a UID of its own")
    } else if on(Layer::Root) && on(Layer::Pid) {
        Some("a private root and a PID namespace")
    } else if asks_for_modes(request, host, on) && on(Layer::LandlockScope) {
        Some("Landlock for files and signals, and the launcher for modes, owners and times of files")
    } else {
        None
    }
}

/// Why Landlock alone does not keep cells apart, where it is all that could.
pub(super) fn landlock_leaves(request: &Request, host: &Host, on: impl Fn(Layer) -> bool + Copy) -> String {
    if !on(Layer::LandlockFs) || on(Layer::Root) {
        return String::new();
    }
    let lack = match host.modes.get() {
        _ if !on(Layer::LandlockScope) => "signals cross Landlock for files",
        Err(lack) => &lack.why,
        Ok(()) if !asks_for_modes(request, host, on) => "modes and times of files cross Landlock without a filter",
        Ok(()) => return String::new(),
    };
    format!("; {lack}")
}

/// The agent has the UID of whoever owns the directory, and so has every other run in one of his.
fn own_directory(request: &Request) -> bool {
    matches!(request.workspace, Workspace::Directory(_))
}

/// Whether the agent asks the launcher for modes, owners and times of files: others have its UID, and nothing but
/// Landlock keeps it from their files.
pub fn asks_for_modes(request: &Request, host: &Host, on: impl Fn(Layer) -> bool) -> bool {
    let own_uid = on(Layer::Uid) && !own_directory(request);
    !own_uid && !on(Layer::Root) && on(Layer::LandlockFs) && on(Layer::Seccomp) && host.modes.get().is_ok()
}
