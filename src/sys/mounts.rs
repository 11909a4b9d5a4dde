//! mount_setattr(2), which turns a whole tree of mounts read-only in one call.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Makes the mount at `at` and every mount below it read-only, without set-id programs and devices.
///
/// # Errors
/// The errno of mount_setattr(2): ENOSYS before Linux 5.12.
pub fn restrict_tree(at: BorrowedFd<'_>, read_only: bool, devices: bool) -> Result<(), Errno> {
    let mut set = libc::MOUNT_ATTR_NOSUID;
    if read_only {
        set |= libc::MOUNT_ATTR_RDONLY;
    }
    if !devices {
        set |= libc::MOUNT_ATTR_NODEV;
    }
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is an empty C string (the descriptor is meant), the attribute struct lives across the call and
    // its true size is given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(done).map(drop)
}
