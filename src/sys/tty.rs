//! Terminals.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::pty::Winsize;

/// Makes `tty` the controlling terminal of this process, which must lead a session without one.
///
/// # Errors
/// EPERM when it leads no session or the terminal is another session's (ioctl_tty(2)).
pub fn take_control(tty: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: TIOCSCTTY takes a number: 0 does not steal.
    Errno::result(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSCTTY as _, 0) }).map(drop)
}

/// The size of a terminal's window.
///
/// # Errors
/// ENOTTY.
pub fn size(tty: BorrowedFd<'_>) -> Result<Winsize, Errno> {
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which lives across the call.
    Errno::result(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCGWINSZ as _, &raw mut size) }).map(|_| size)
}

/// Sets the size; the kernel tells the processes in front with SIGWINCH.
///
/// # Errors
/// ENOTTY.
pub fn set_size(tty: BorrowedFd<'_>, size: &Winsize) -> Result<(), Errno> {
    // SAFETY: TIOCSWINSZ reads one winsize, which lives across the call.
    Errno::result(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSWINSZ as _, std::ptr::from_ref(size)) }).map(drop)
}
