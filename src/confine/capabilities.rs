//! Capabilities: none in any set. Other launchers leave CAP_SYS_ADMIN or CAP_PERFMON, and with either Landlock no
//! longer hides another process's environment.
#![forbid(unsafe_code)]

use caps::{CapSet, errors::CapsError};

/// Empties the bounding set, where this process may. Comes before the UID is given up, and with it CAP_SETPCAP.
///
/// # Errors
/// What the kernel said.
pub fn drop_bounding() -> Result<(), CapsError> {
    if caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP)? {
        caps::clear(None, CapSet::Bounding)?;
    }
    Ok(())
}

/// Empties every other set.
///
/// # Errors
/// What the kernel said.
pub fn drop_all() -> Result<(), CapsError> {
    // Ambient falls with inheritable (capabilities(7)); a kernel before 4.3 has no such set.
    caps::clear(None, CapSet::Inheritable)?;
    caps::clear(None, CapSet::Effective)?;
    caps::clear(None, CapSet::Permitted)
}
