//! The version query of Landlock.

use nix::errno::Errno;

/// `LANDLOCK_CREATE_RULESET_VERSION` (landlock_create_ruleset(2)).
const VERSION: libc::c_uint = 1;

/// The ABI of this kernel's Landlock.
///
/// # Errors
/// ENOSYS where it is not built in, EOPNOTSUPP where it is not enabled.
pub fn abi() -> Result<u32, Errno> {
    // SAFETY: with a null attribute, size 0 and the version flag the call reads no memory and makes no descriptor.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    Errno::result(answer).map(|abi| u32::try_from(abi).unwrap_or(0))
}
