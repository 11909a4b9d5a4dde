//! The version query of Landlock, and the right that the crate for it does not know yet.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

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

/// `struct landlock_ruleset_attr`, as far as ABI 1 has it.
#[repr(C)]
struct Ruleset {
    files: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    parent: i32,
}

/// LANDLOCK_ACCESS_FS_REFER and LANDLOCK_ACCESS_FS_RESOLVE_UNIX (ABI 9).
const REFER: u64 = 1 << 13;
const RESOLVE_UNIX: u64 = 1 << 16;
/// LANDLOCK_RULE_PATH_BENEATH.
const PATH_BENEATH: libc::c_int = 1;

/// Enters one more domain, in which no socket with a path can be connected or sent to that was made outside of it. From
/// ABI 9 on.
///
/// # Errors
/// EINVAL where the kernel does not know the right; EPERM without `no_new_privs`.
pub fn close_path_sockets() -> Result<(), Errno> {
    let opened = File::options().read(true).custom_flags(libc::O_PATH).open("/");
    let root = opened.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    let ruleset = Ruleset { files: RESOLVE_UNIX | REFER };
    // SAFETY: the kernel reads one structure of the size given.
    let made = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const ruleset, size_of::<Ruleset>(), 0) };
    let made = Errno::result(made)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let made = unsafe { OwnedFd::from_raw_fd(made as RawFd) };
    // Every domain forbids to move files between directories unless a rule allows it, whether it handles that or not: the
    // domain before this one decides where.
    let everywhere = Beneath { allowed: REFER, parent: root.as_raw_fd() };
    // SAFETY: the kernel reads one structure, which lives across the call.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, made.as_raw_fd(), PATH_BENEATH, &raw const everywhere, 0)
    })?;
    // SAFETY: takes no memory.
    Errno::result(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, made.as_raw_fd(), 0) }).map(drop)
}
