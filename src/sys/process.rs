//! Making processes, and what a process says of itself.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::Pid;

/// Which side of a fork one is on.
#[derive(Debug)]
pub enum Fork {
    /// The new process.
    Child,
    /// The old one, with the pid of the new one as it sees it.
    Parent(Pid),
}

/// fork(2) into new namespaces, in one call: unshare(2) and two forks cost a fifth of a whole launch more.
///
/// # Errors
/// The errno of clone(2): EPERM, ENOSPC or EINVAL where the host grants no such namespace.
pub fn fork_into(namespaces: CloneFlags) -> Result<Fork, Errno> {
    let flags = namespaces.bits() as libc::c_ulong | libc::SIGCHLD as libc::c_ulong;
    // SAFETY: without CLONE_VM and with a null stack this is fork(2): the child runs on a copy. The launcher is
    // single-threaded, so no lock of the C library is held by a thread that does not exist in the child.
    // clone, not clone3: gVisor and container profiles answer ENOSYS to the latter.
    let pid = Errno::result(unsafe { raw_clone(flags) })?;
    Ok(if pid == 0 { Fork::Child } else { Fork::Parent(Pid::from_raw(pid as libc::pid_t)) })
}

/// The order of clone's arguments differs between machines; with all pointers null only the flags matter.
unsafe fn raw_clone(flags: libc::c_ulong) -> libc::c_long {
    // SAFETY: as the caller says.
    unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) }
}

/// The effective capabilities as bits, none where the kernel does not say.
pub fn effective_capabilities() -> u64 {
    super::capabilities::effective().unwrap_or_default()
}

/// Whether pidfd_open(2) exists. It does from Linux 5.3 on and not under gVisor up to now, where a process may open the
/// descriptors of any other. That it exists proves nothing: the child tries what this one leaves open.
pub fn has_pidfd() -> bool {
    pidfd(Pid::this()).is_ok()
}

/// A descriptor that stands for a process whatever becomes of its number.
///
/// # Errors
/// ESRCH, or ENOSYS where the kernel has none.
pub fn pidfd(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open takes two numbers and gives a new descriptor, close-on-exec by itself, owned by nobody yet.
    unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// The hard limit of another process (prlimit(2)).
///
/// # Errors
/// ESRCH, or EPERM for another user's.
pub fn hard_limit(pid: Pid, resource: nix::sys::resource::Resource) -> Result<u64, Errno> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a null new limit sets nothing; the old one is written to a struct that lives across the call.
    let done = unsafe { libc::prlimit(pid.as_raw(), resource as _, std::ptr::null(), &raw mut limit) };
    Errno::result(done).map(|_| limit.rlim_max)
}

/// Sends a signal to the process behind a descriptor.
///
/// # Errors
/// ESRCH when it is gone.
pub fn pidfd_kill(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: a null siginfo is allowed and means that of kill(2) (pidfd_send_signal(2)).
    let done = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    Errno::result(done).map(drop)
}

/// execve(2). Returns only the errno of a failure.
pub fn exec(path: &CString, arguments: &[CString], environment: &[CString]) -> Errno {
    match nix::unistd::execve(path, arguments, environment) {
        Err(errno) => errno,
        Ok(never) => match never {},
    }
}

/// Executes the program behind a descriptor, under a name and without an environment. Returns only the errno of a failure.
pub fn exec_file(program: BorrowedFd<'_>, name: &CStr) -> Errno {
    let arguments = [name.as_ptr(), std::ptr::null()];
    let none = [std::ptr::null::<libc::c_char>()];
    // SAFETY: both arrays end in a null pointer and live across the call, as does the descriptor; the path is empty.
    let failed = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            none.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    });
    match failed {
        // Older sandboxes know the same by its name in /proc.
        Err(Errno::ENOSYS) => CString::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .map_or(Errno::EINVAL, |path| exec(&path, &[name.to_owned()], &[])),
        Err(errno) => errno,
        Ok(_) => Errno::EIO,
    }
}

/// Ends a forked process without running what the launcher left to be run at its own end: destructors would wipe the
/// cell and end the terminal mode twice.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) ends the process and touches no memory.
    unsafe { libc::_exit(status) }
}

/// A write beyond RLIMIT_FSIZE gives EFBIG instead of ending the launcher, which would leave its cell behind.
///
/// # Errors
/// The errno of sigaction(2).
pub fn survive_file_limit() -> Result<(), Errno> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: an ignored signal runs no code of ours.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.map(drop)
}

/// Makes children wait for their parent. Where the caller ignores SIGCHLD, which exec(2) hands on, the kernel reaps them
/// itself, and whoever waits for a child then waits for ever, or takes its end for an error (wait(2)).
///
/// # Errors
/// The errno of sigaction(2).
pub fn keep_zombies() -> Result<(), Errno> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of ours.
    unsafe { sigaction(Signal::SIGCHLD, &default) }.map(drop)
}

/// Undoes what the launcher, its caller and Rust's runtime did to signals: an ignored SIGPIPE and a blocked SIGTERM
/// survive execve(2), and programs rely on both.
///
/// # Errors
/// The errno of sigaction(2) or sigprocmask(2).
pub fn default_signals() -> Result<(), Errno> {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    super::inherited::default_actions()?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}
