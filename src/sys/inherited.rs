//! What a process gets from whoever executed it and keeps through fork(2) and execve(2): read, and put back to what the
//! kernel gives to a process of nobody's. A call that this kernel does not know has nothing to put back.

use nix::errno::Errno;

/// Linux's own execution domain without a flag: ADDR_NO_RANDOMIZE would give every later exec fixed addresses,
/// READ_IMPLIES_EXEC executable data (personality(2)). The domain itself stays: a 32-bit machine's is one.
///
/// # Errors
/// The errno of personality(2).
pub fn plain_personality() -> Result<(), Errno> {
    const ASK: libc::c_ulong = 0xffff_ffff;
    const DOMAIN: libc::c_ulong = 0xff;
    // SAFETY: takes no memory; this number changes nothing.
    let now = unsafe { libc::personality(ASK) };
    // gVisor answers EINVAL, and has none of the flags.
    let Ok(now) = libc::c_ulong::try_from(now) else { return Ok(()) };
    if now & !DOMAIN == 0 {
        return Ok(());
    }
    // SAFETY: takes no memory; what it changes, it changes at the next exec(2) or mmap(2).
    Errno::result(unsafe { libc::personality(now & DOMAIN) }).map(drop)
}

/// Pages of equal content are not merged with those of other processes (KSM): who writes to one feels by the time that
/// takes whether a neighbour has the same. systemd's `MemoryKSM=` is inherited.
pub fn unmerged_memory() {
    const PR_SET_MEMORY_MERGE: libc::c_int = 67;
    // SAFETY: takes no memory; EINVAL where the kernel has no such thing.
    unsafe { libc::prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0) };
}

/// No real-time policy and no nice value below 0. What is lower than normal stays: it is the caller's word, and takes
/// nothing from anybody.
///
/// # Errors
/// The errno of sched_setscheduler(2) or setpriority(2).
pub fn at_most_normal_cpu() -> Result<(), Errno> {
    const RESET_ON_FORK: libc::c_int = 0x4000_0000;
    const DEADLINE: libc::c_int = 6;
    // SAFETY: takes no memory.
    let policy = unsafe { libc::sched_getscheduler(0) };
    if policy >= 0 && [libc::SCHED_FIFO, libc::SCHED_RR, DEADLINE].contains(&(policy & !RESET_ON_FORK)) {
        let param = libc::sched_param { sched_priority: 0 };
        // SAFETY: reads one sched_param that outlives the call.
        Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const param) })?;
    }
    // SAFETY: takes no memory. An error looks like a nice value of -1, and then setting 0 says what is wrong.
    if unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) } < 0 {
        // SAFETY: takes no memory.
        Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) })?;
    }
    Ok(())
}

/// No real-time I/O and none before that of others (ioprio_set(2)): the class "none" follows the nice value. Idle stays.
///
/// # Errors
/// The errno of ioprio_set(2).
pub fn at_most_normal_io() -> Result<(), Errno> {
    const WHO_PROCESS: libc::c_int = 1;
    const REAL_TIME: libc::c_long = 1;
    const BEST_EFFORT: libc::c_long = 2;
    const NORMAL: libc::c_long = 4;
    // SAFETY: takes no memory.
    let now = unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) };
    let (class, level) = (now >> 13, now & 0x1fff);
    if now < 0 || !(class == REAL_TIME || (class == BEST_EFFORT && level < NORMAL)) {
        return Ok(());
    }
    // SAFETY: takes no memory.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, 0) }).map(drop)
}

/// The lowest priority for CPU and I/O. A kernel that knows no classes of I/O has none to yield to.
pub fn lowest_priority() {
    const WHO_PROCESS: libc::c_int = 1;
    const IDLE: libc::c_int = 3 << 13;
    // SAFETY: takes no memory.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
    // SAFETY: takes no memory.
    unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, IDLE) };
}

/// Not one that the kernel lets go on where others wait for memory to be written out. Only CAP_SYS_RESOURCE reads or
/// changes it, so that without it there is nothing to be known.
///
/// # Errors
/// The errno of prctl(2).
pub fn no_io_flusher() -> Result<(), Errno> {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    const PR_GET_IO_FLUSHER: libc::c_int = 58;
    // SAFETY: takes no memory.
    if unsafe { libc::prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) } != 1 {
        return Ok(());
    }
    // SAFETY: takes no memory.
    Errno::result(unsafe { libc::prctl(PR_SET_IO_FLUSHER, 0, 0, 0, 0) }).map(drop)
}

/// A session keyring of this process's own. Whoever possesses the caller's reads its keys whatever his UID
/// (keyrings(7)).
///
/// # Errors
/// EDQUOT: the UID has no key left. Where keyctl(2) is missing or refused, it is so to the agent, too.
pub fn own_session_keyring() -> Result<(), Errno> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name makes a keyring without one.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    match Errno::result(joined) {
        Err(errno @ (Errno::EDQUOT | Errno::ENOMEM)) => Err(errno),
        _ => Ok(()),
    }
}

/// Every signal does what it does by default: an ignored one stays ignored through execve(2).
///
/// # Errors
/// The errno of rt_sigaction(2).
pub fn default_actions() -> Result<(), Errno> {
    // handler, flags, restorer and mask of the kernel's struct sigaction: SIG_DFL is 0.
    let default = [0_u64; 4];
    // By the number: libc refuses those that it keeps for its own threads, and a caller may have ignored them.
    for signal in (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
        // SAFETY: the kernel reads one struct sigaction, which is no larger than `default`; the default action runs no
        // code of ours.
        let done = unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), 8_usize)
        };
        Errno::result(done)?;
    }
    Ok(())
}
