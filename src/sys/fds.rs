//! Descriptors by number.

use std::fs::File;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

/// Takes over a descriptor that the caller of the program opened, and marks it close-on-exec.
///
/// # Errors
/// EBADF when nothing is open under this number, EINVAL for 0, 1 and 2.
pub fn take(number: RawFd) -> Result<File, Errno> {
    if number <= 2 {
        return Err(Errno::EINVAL);
    }
    set_cloexec(number)?;
    // SAFETY: it is open (fcntl succeeded), it was opened by whoever exec'ed us, and the command line names it once.
    Ok(unsafe { File::from_raw_fd(number) })
}

fn set_cloexec(number: RawFd) -> Result<(), Errno> {
    // SAFETY: only used for fcntl, which answers EBADF for a number that is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map(drop)
}

/// Whether a number is open, and its file status flags.
pub fn flags(number: RawFd) -> Option<OFlag> {
    // SAFETY: only used for fcntl, which answers EBADF for a number that is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(fd, FcntlArg::F_GETFL).ok().map(OFlag::from_bits_truncate)
}

/// Puts `fd` under exactly `number`, open across exec.
///
/// # Errors
/// The errno of dup3(2).
pub fn place(fd: OwnedFd, number: RawFd) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    if fd.as_raw_fd() == number {
        // SAFETY: only used for fcntl on a descriptor that we own.
        let same = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl(same, FcntlArg::F_SETFD(FdFlag::empty()))?;
        std::mem::forget(fd);
        return Ok(());
    }
    // SAFETY: dup3 touches no memory; whatever was open under `number` is closed by design of the caller.
    Errno::result(unsafe { libc::dup3(fd.as_raw_fd(), number, 0) }).map(drop)
}

/// Closes every descriptor from `first` on, except the ones listed (ascending).
///
/// # Errors
/// The errno of close_range(2); without it (before Linux 5.9) each possible number is closed in turn.
pub fn close_from(first: u32, keep: &[u32]) -> Result<(), Errno> {
    let mut start = first;
    for &kept in keep.iter().filter(|&&k| k >= first) {
        if kept > start {
            close_range(start, kept - 1)?;
        }
        start = kept + 1;
    }
    // A descriptor is an int; gVisor says EINVAL to what is not.
    close_range(start, i32::MAX as u32)
}

fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: closes descriptors only; the caller is about to exec, or ends by _exit(2), and uses none of them again.
    let done = Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) });
    match done {
        Err(Errno::ENOSYS) => {
            let top = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
                .map_or(1 << 16, |(_, hard)| hard.min(1 << 20)) as u32;
            for number in first..=last.min(top) {
                // SAFETY: as above.
                unsafe { libc::close(number as RawFd) };
            }
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Closes every descriptor but these, and points 0, 1 and 2 to nothing: for a process that lives on beside the one that
/// it was forked from, and ends by [`super::process::exit_now`], so that nothing is closed a second time.
///
/// # Errors
/// The errno of open(2), dup2(2) or close_range(2).
pub fn keep_only(kept: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    close_standard()?;
    let mut numbers: Vec<u32> = kept.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    numbers.sort_unstable();
    close_from(3, &numbers)
}

/// Puts these under 3, 4 and so on, open across exec, points 0, 1 and 2 to nothing, and closes every other descriptor but
/// a copy of `program`, which exec closes. For a fork that executes that one, or ends by [`super::process::exit_now`], so
/// that nothing is closed a second time.
///
/// # Errors
/// The errno of open(2), fcntl(2), dup3(2) or close_range(2).
pub fn hand_over(given: &[BorrowedFd<'_>], program: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd;
    let above = 3 + given.len() as RawFd;
    // None may lie where another one is to be.
    let aside = |fd: BorrowedFd<'_>| {
        let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(above))?;
        // SAFETY: the kernel has just made it for us.
        Ok::<_, Errno>(unsafe { OwnedFd::from_raw_fd(number) })
    };
    let given = given.iter().map(|fd| aside(*fd)).collect::<Result<Vec<_>, _>>()?;
    let program = aside(program)?;
    close_standard()?;
    (3..).zip(given).try_for_each(|(number, fd)| place(fd, number))?;
    close_from(above as u32, &[program.as_raw_fd() as u32])?;
    Ok(program)
}

/// Points 0, 1 and 2 of this process to nothing, so that a pipe of the caller's ends when the agent ends.
///
/// # Errors
/// The errno of open(2) or dup2(2).
pub fn close_standard() -> Result<(), Errno> {
    let null = nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?;
    for number in 0..=2 {
        place(null.try_clone().map_err(|_| Errno::EMFILE)?, number)?;
    }
    Ok(())
}
