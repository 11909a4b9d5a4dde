//! Capabilities: none in any set. Other launchers leave CAP_SYS_ADMIN or CAP_PERFMON, and with either Landlock no
//! longer hides another process's environment.
#![forbid(unsafe_code)]

use nix::errno::Errno;

use crate::host::facts::capability;
use crate::sys::capabilities;

/// Empties the bounding set, where this process may. Comes before the UID is given up, and with it CAP_SETPCAP.
///
/// # Errors
/// What the kernel said.
pub fn drop_bounding() -> Result<(), Errno> {
    if capabilities::effective()? & capability::SETPCAP == 0 {
        return Ok(());
    }
    capabilities::clear_bounding()
}

/// Empties every other set.
///
/// # Errors
/// What the kernel said.
pub fn drop_all() -> Result<(), Errno> {
    capabilities::clear()
}
