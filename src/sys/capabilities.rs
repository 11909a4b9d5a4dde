//! Capability sets as bits (capabilities(7)), one system call for a whole set.

use nix::errno::Errno;

/// `_LINUX_CAPABILITY_VERSION_3`: sets of 64 bits in two halves (capget(2)).
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

/// One half of the three sets.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The effective set of this thread.
///
/// # Errors
/// The errno of capget(2).
pub fn effective() -> Result<u64, Errno> {
    let mut header = Header { version: VERSION, pid: 0 };
    let mut halves = [Half::default(); 2];
    // SAFETY: a header and two halves are what version 3 reads and writes; both live across the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, halves.as_mut_ptr()) })?;
    Ok(u64::from(halves[0].effective) | u64::from(halves[1].effective) << 32)
}

/// Empties the effective, permitted and inheritable set; the ambient set falls with them.
///
/// # Errors
/// The errno of capset(2).
pub fn clear() -> Result<(), Errno> {
    let mut header = Header { version: VERSION, pid: 0 };
    let halves = [Half::default(); 2];
    // SAFETY: as above; the halves are only read.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, halves.as_ptr()) }).map(drop)
}

/// Empties the bounding set, capabilities that this program does not know by name included.
///
/// # Errors
/// The errno of prctl(2): EPERM without CAP_SETPCAP.
pub fn clear_bounding() -> Result<(), Errno> {
    for number in 0..64 {
        // SAFETY: PR_CAPBSET_DROP takes a number and no pointer.
        match Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number as libc::c_ulong, 0, 0, 0) }) {
            // The kernel has no capability of this number, and none of a higher one.
            Err(Errno::EINVAL) if number > 0 => break,
            other => other?,
        };
    }
    Ok(())
}
