//! Reaching for another process by its number.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

fn owned(number: libc::c_long) -> Result<OwnedFd, Errno> {
    let number = Errno::result(number)?;
    // SAFETY: a system call has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
}

/// Attaches to a process without stopping it; it is let go when this process ends.
///
/// # Errors
/// The errno of ptrace(2).
pub fn seize(pid: i32) -> Result<(), Errno> {
    // SAFETY: PTRACE_SEIZE takes no memory.
    Errno::result(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0_usize, 0_usize) }).map(drop)
}

/// A descriptor for a process.
///
/// # Errors
/// The errno of pidfd_open(2).
pub fn pidfd(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes no memory.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// A copy of a descriptor of another process.
///
/// # Errors
/// The errno of pidfd_open(2) or pidfd_getfd(2).
pub fn steal_fd(pid: i32, number: i32) -> Result<OwnedFd, Errno> {
    let pidfd = pidfd(pid)?;
    // SAFETY: takes no memory.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })
}

/// Sends a signal through a descriptor.
///
/// # Errors
/// The errno of pidfd_open(2) or pidfd_send_signal(2).
pub fn signal_by_fd(pid: i32, signal: i32) -> Result<(), Errno> {
    let pidfd = pidfd(pid)?;
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: no siginfo is handed in.
    Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) }).map(drop)
}

/// Reads another process' memory.
///
/// # Errors
/// The errno of process_vm_readv(2).
pub fn read_memory(pid: i32, address: usize, length: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0_u8; length];
    let here = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: length };
    let there = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: length };
    // SAFETY: writes into `bytes`, at most `length`; the remote address is never dereferenced here.
    let got = Errno::result(unsafe { libc::process_vm_readv(pid, &raw const here, 1, &raw const there, 1, 0) })?;
    bytes.truncate(got as usize);
    Ok(bytes)
}

/// Writes into another process' memory.
///
/// # Errors
/// The errno of process_vm_writev(2).
pub fn write_memory(pid: i32, address: usize, bytes: &[u8]) -> Result<(), Errno> {
    let here = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let there = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: reads from `bytes`; callers name another process than their own.
    Errno::result(unsafe { libc::process_vm_writev(pid, &raw const here, 1, &raw const there, 1, 0) }).map(drop)
}

/// Whether two processes share something, which is also an oracle for kernel addresses: kcmp(2).
///
/// # Errors
/// The errno of kcmp(2).
pub fn compare(pid: i32, other: i32) -> Result<(), Errno> {
    // SAFETY: KCMP_FILES (2) takes no memory.
    Errno::result(unsafe { libc::syscall(libc::SYS_kcmp, pid, other, 2, 0, 0) }).map(drop)
}

/// Sets soft and hard limit of another process for file locks: one that does nothing (setrlimit(2)) and that no
/// launcher lowers, so that only a barrier between the two stands in the way.
///
/// # Errors
/// The errno of prlimit(2).
pub fn limit_locks(pid: i32, locks: u64) -> Result<(), Errno> {
    let limit = libc::rlimit { rlim_cur: locks, rlim_max: locks };
    // SAFETY: reads one rlimit; the old one is not asked for.
    Errno::result(unsafe { libc::prlimit(pid, libc::RLIMIT_LOCKS, &raw const limit, std::ptr::null_mut()) }).map(drop)
}

/// Sets the niceness of a process (0: our own).
///
/// # Errors
/// The errno of setpriority(2).
pub fn renice(pid: i32, nice: i32) -> Result<(), Errno> {
    // SAFETY: takes no memory.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, pid as libc::id_t, nice) }).map(drop)
}

/// Sets the niceness of every process of our UID.
///
/// # Errors
/// The errno of setpriority(2).
pub fn renice_user(nice: i32) -> Result<(), Errno> {
    // SAFETY: takes no memory.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_USER, 0, nice) }).map(drop)
}

/// The niceness of a process.
///
/// # Errors
/// The errno of getpriority(2).
pub fn nice_of(pid: i32) -> Result<i32, Errno> {
    // SAFETY: takes no memory. The system call itself gives 20 minus the niceness, so that -1 is an error alone.
    let answer = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, pid) };
    Errno::result(answer).map(|answer| 20 - answer as i32)
}

/// Our own niceness.
pub fn nice() -> i32 {
    // SAFETY: takes no memory.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// Sets the I/O class "idle" for a process.
///
/// # Errors
/// The errno of ioprio_set(2).
pub fn idle_io(pid: i32) -> Result<(), Errno> {
    // SAFETY: takes no memory; 1 is IOPRIO_WHO_PROCESS, 3 IOPRIO_CLASS_IDLE.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_set, 1, pid, 3 << 13) }).map(drop)
}

/// Sets the I/O class "idle" for every process of our UID.
///
/// # Errors
/// The errno of ioprio_set(2).
pub fn idle_io_user() -> Result<(), Errno> {
    // By number: a 0 is the UID 0 to this call, and not the caller's.
    let uid = nix::unistd::getuid().as_raw();
    // SAFETY: takes no memory; the first 3 is IOPRIO_WHO_USER, the other IOPRIO_CLASS_IDLE.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_set, 3, uid, 3 << 13) }).map(drop)
}

/// The I/O class and level of a process, as ioprio_get(2) has it.
///
/// # Errors
/// The errno of ioprio_get(2).
pub fn io_priority_of(pid: i32) -> Result<i64, Errno> {
    // SAFETY: takes no memory.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_get, 1, pid) })
}

/// Makes a process the owner of a descriptor, which the kernel signals when there is something to read.
///
/// # Errors
/// The errno of fcntl(2).
pub fn set_owner(fd: std::os::fd::BorrowedFd<'_>, pid: i32, signal: i32) -> Result<(), Errno> {
    /// F_SETSIG of fcntl(2).
    const F_SETSIG: i32 = 10;
    for (command, value) in [(libc::F_SETOWN, pid), (F_SETSIG, signal), (libc::F_SETFL, libc::O_ASYNC)] {
        // SAFETY: takes no memory.
        Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), command, value) })?;
    }
    Ok(())
}

/// Our own I/O class and level, as ioprio_get(2) has it.
pub fn io_priority() -> i64 {
    // SAFETY: takes no memory.
    unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) }
}

/// Sets a scheduling policy with priority `priority` (0: our own process).
///
/// # Errors
/// The errno of sched_setscheduler(2).
pub fn schedule(pid: i32, policy: i32, priority: i32) -> Result<(), Errno> {
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: reads one sched_param.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setscheduler, pid, policy, &raw const param) }).map(drop)
}

/// Our own scheduling policy.
pub fn policy() -> i64 {
    // SAFETY: takes no memory.
    unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) }
}

/// Our own execution domain and its flags, -1 where the kernel does not say.
pub fn personality() -> i32 {
    // SAFETY: takes no memory; this number changes nothing.
    unsafe { libc::personality(0xffff_ffff) }
}

/// Whether pages of this process may be merged with equal ones of others (PR_GET_MEMORY_MERGE), -1 where the kernel has
/// no such thing.
pub fn memory_merge() -> i32 {
    // SAFETY: takes no memory.
    unsafe { libc::prctl(68, 0, 0, 0, 0) }
}

/// Makes this process dumpable or not.
pub fn set_dumpable(dumpable: bool) {
    // SAFETY: takes no memory.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(dumpable), 0, 0, 0) };
}

/// The seccomp mode of this process: 0 none, 2 filter; nothing when the kernel does not say.
pub fn seccomp_mode() -> Option<i32> {
    // SAFETY: takes no memory; a process in mode 1 would not get here.
    let mode = unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) };
    (mode >= 0).then_some(mode)
}
