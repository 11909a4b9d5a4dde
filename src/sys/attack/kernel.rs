//! Doors into the kernel that an agent has no business with.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;

fn owned(number: libc::c_long) -> Result<OwnedFd, Errno> {
    let number = Errno::result(number)?;
    // SAFETY: a system call has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
}

/// A socket of any family, type and protocol.
///
/// # Errors
/// The errno of socket(2).
pub fn socket(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes no memory.
    owned(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) }.into())
}

/// A pair of sockets of any family, closed again.
///
/// # Errors
/// The errno of socketpair(2).
pub fn socket_pair(family: i32) -> Result<(), Errno> {
    let mut ends = [-1; 2];
    // SAFETY: the kernel writes two descriptors.
    Errno::result(unsafe { libc::socketpair(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr()) })?;
    // SAFETY: the kernel has just made both for us.
    drop(ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) }));
    Ok(())
}

/// A lease for writing on an open file, given up at once.
///
/// # Errors
/// The errno of fcntl(2) F_SETLEASE.
pub fn lease(file: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: takes no memory.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) })?;
    // SAFETY: takes no memory.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) }).map(drop)
}

/// A context for asynchronous I/O, given up at once.
///
/// # Errors
/// The errno of io_setup(2).
pub fn aio_context() -> Result<(), Errno> {
    let mut context: libc::c_ulong = 0;
    // SAFETY: the kernel writes one number.
    Errno::result(unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) })?;
    // SAFETY: takes no memory; the context was made above.
    Errno::result(unsafe { libc::syscall(libc::SYS_io_destroy, context) }).map(drop)
}

/// Watches a directory.
///
/// # Errors
/// The errno of inotify_init1(2) or inotify_add_watch(2).
pub fn watch(path: &CStr) -> Result<(), Errno> {
    // SAFETY: takes no memory.
    let watcher = owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) }.into())?;
    let events = libc::IN_ALL_EVENTS;
    // SAFETY: `path` ends with NUL.
    Errno::result(unsafe { libc::inotify_add_watch(watcher.as_raw_fd(), path.as_ptr(), events) }).map(drop)
}

/// getpid by the 32-bit entry; the answer is the process id, or minus an errno.
#[cfg(target_arch = "x86_64")]
pub fn getpid_by_int80() -> Option<i32> {
    let answer: i32;
    // SAFETY: i386 system call 20 has no arguments and touches no memory; the entry clobbers r8-r11 at most.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("eax") 20_i32 => answer,
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _, options(nostack));
    }
    Some(answer)
}

/// There is no second entry on this machine.
#[cfg(not(target_arch = "x86_64"))]
pub fn getpid_by_int80() -> Option<i32> {
    None
}

/// getpid by its x32 number.
///
/// # Errors
/// The errno of the call; ENOSYS where the machine has no such numbers.
pub fn getpid_by_x32() -> Result<i32, Errno> {
    if !cfg!(target_arch = "x86_64") {
        return Err(Errno::ENOSYS);
    }
    // SAFETY: takes no memory.
    Errno::result(unsafe { libc::syscall(0x4000_0000 | libc::SYS_getpid) }).map(|pid| pid as i32)
}

/// A descriptor for handling page faults of this process.
///
/// # Errors
/// The errno of userfaultfd(2).
pub fn userfaultfd() -> Result<OwnedFd, Errno> {
    // SAFETY: takes no memory; 1 is UFFD_USER_MODE_ONLY.
    owned(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1) })
}

/// An array map of one entry.
///
/// # Errors
/// The errno of bpf(2).
pub fn bpf_map() -> Result<OwnedFd, Errno> {
    let attr: [u32; 32] = std::array::from_fn(|index| [2, 4, 8, 1].get(index).copied().unwrap_or(0));
    // SAFETY: BPF_MAP_CREATE (0) reads at most the size given: type, key size, value size, entries.
    owned(unsafe { libc::syscall(libc::SYS_bpf, 0, attr.as_ptr(), size_of_val(&attr)) })
}

/// A task clock counter of this process, user mode only.
///
/// # Errors
/// The errno of perf_event_open(2).
pub fn perf_event() -> Result<OwnedFd, Errno> {
    let mut attr = [0_u64; 8];
    // PERF_TYPE_SOFTWARE in the low word, PERF_ATTR_SIZE_VER0 in the high one; PERF_COUNT_SW_TASK_CLOCK.
    attr[0] = 1 | 64 << 32;
    attr[1] = 1;
    attr[5] = 1 << 5 | 1 << 6; // exclude_kernel, exclude_hv
    // SAFETY: reads the 64 bytes that the structure says it has.
    owned(unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), 0, -1, -1, 0) })
}

/// A configuration context for a tmpfs.
///
/// # Errors
/// The errno of fsopen(2).
pub fn fsopen() -> Result<OwnedFd, Errno> {
    // SAFETY: the name ends with NUL.
    owned(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 1) })
}

/// A detached copy of the mount at `/`.
///
/// # Errors
/// The errno of open_tree(2).
pub fn open_tree() -> Result<OwnedFd, Errno> {
    // SAFETY: the name ends with NUL; 1 is OPEN_TREE_CLONE.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), libc::O_CLOEXEC | 1) })
}

/// Opens the current directory by its file handle: what works for it works for any inode of the file system.
///
/// # Errors
/// The errno of name_to_handle_at(2) or open_by_handle_at(2).
pub fn open_by_handle(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        space: [u8; 128],
    }
    let mut handle = Handle { bytes: 128, kind: 0, space: [0; 128] };
    let mut mount = 0_i32;
    let fd = directory.as_raw_fd();
    let (place, empty) = (&raw mut handle, libc::AT_EMPTY_PATH);
    // SAFETY: `handle` has the 128 bytes that it announces; the name ends with NUL.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_name_to_handle_at, fd, c"".as_ptr(), place, &raw mut mount, empty)
    })?;
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_DIRECTORY;
    // SAFETY: the kernel has filled `handle`.
    owned(unsafe { libc::syscall(libc::SYS_open_by_handle_at, fd, place, flags) })
}

/// The kernel's log.
///
/// # Errors
/// The errno of syslog(2).
pub fn kernel_log() -> Result<usize, Errno> {
    let mut text = vec![0_u8; 4096];
    // SAFETY: SYSLOG_ACTION_READ_ALL (3) writes at most the length given and changes nothing.
    Errno::result(unsafe { libc::syscall(libc::SYS_syslog, 3, text.as_mut_ptr(), text.len()) }).map(|n| n as usize)
}

/// A child in new namespaces by clone(2), ended at once.
///
/// # Errors
/// The errno of clone(2).
pub fn clone_into(flags: i32) -> Result<(), Errno> {
    let none = ptr::null::<u8>();
    // SAFETY: without CLONE_VM and a stack this is fork(2): the child has a copy of everything and leaves at once.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, none, none, none, none) };
    finish(child)
}

/// The same by clone3(2), whose flags no seccomp filter can see.
///
/// # Errors
/// The errno of clone3(2).
pub fn clone3_into(flags: i32) -> Result<(), Errno> {
    let mut args = [0_u64; 8];
    args[0] = flags as u64;
    args[4] = libc::SIGCHLD as u64;
    // SAFETY: reads 64 bytes (CLONE_ARGS_SIZE_VER0); without CLONE_VM this is fork(2).
    let child = unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) };
    finish(child)
}

fn finish(child: libc::c_long) -> Result<(), Errno> {
    let child = Errno::result(child)?;
    if child == 0 {
        // SAFETY: ends the new child only.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: the status is not asked for.
    unsafe { libc::waitpid(child as i32, ptr::null_mut(), 0) };
    Ok(())
}

/// What Landlock there is: its ABI.
///
/// # Errors
/// ENOSYS or EOPNOTSUPP without Landlock, EPERM where a filter forbids it.
pub fn landlock_abi() -> Result<i32, Errno> {
    // SAFETY: LANDLOCK_CREATE_RULESET_VERSION (1) reads nothing.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0, 1) };
    Errno::result(abi).map(|number| number as i32)
}

/// Takes every capability that there is.
///
/// # Errors
/// The errno of capset(2).
pub fn take_capabilities() -> Result<(), Errno> {
    let header = [0x2008_0522_u32, 0];
    // CAP_SYS_ADMIN (21) effective and permitted; the high words stay empty.
    let data = [1_u32 << 21, 1 << 21, 0, 0, 0, 0];
    // SAFETY: version 3 reads a header of two words and six words of data.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}

/// Pushes one blank into a terminal's input, then throws its pending input away.
///
/// # Errors
/// The errno of ioctl(2) TIOCSTI.
pub fn push_input(terminal: RawFd) -> Result<(), Errno> {
    // SAFETY: TIOCSTI reads one byte.
    Errno::result(unsafe { libc::ioctl(terminal, libc::TIOCSTI, c" ".as_ptr()) })?;
    // SAFETY: takes no memory. The blank would otherwise be read by whoever owns the terminal.
    unsafe { libc::tcflush(terminal, libc::TCIFLUSH) };
    Ok(())
}

/// Asks a console for its shift state: TIOCLINUX, whose other requests paste and select.
///
/// # Errors
/// The errno of ioctl(2) TIOCLINUX.
pub fn console_request(terminal: RawFd) -> Result<(), Errno> {
    let mut request = [6_u8; 16];
    // SAFETY: TIOCL_GETSHIFTSTATE (6) reads and writes the first byte.
    Errno::result(unsafe { libc::ioctl(terminal, libc::TIOCLINUX, request.as_mut_ptr()) }).map(drop)
}

/// Whether a number is a terminal.
pub fn is_terminal(number: RawFd) -> bool {
    // SAFETY: takes no memory; answers 0 for a number that is not open.
    unsafe { libc::isatty(number) == 1 }
}

/// A second handle on a descriptor that the caller of the program left open.
///
/// # Errors
/// EBADF when nothing is open under this number.
pub fn duplicate(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: takes no memory; the copy is a new descriptor.
    owned(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) }.into())
}

/// Opens a file for reading by io_uring, whose operations no seccomp filter sees.
///
/// # Errors
/// The errno of the set-up, of the mapping or of the operation.
pub fn open_by_uring(path: &CStr) -> Result<OwnedFd, Errno> {
    let mut params = [0_u32; 30];
    // SAFETY: io_uring_setup writes one io_uring_params, 120 bytes.
    let ring = owned(unsafe { libc::syscall(libc::SYS_io_uring_setup, 2, params.as_mut_ptr()) })?;
    // Offsets in words: sq_entries 0, cq_entries 1, sq_off at 10 (tail +1, array +6), cq_off at 20 (cqes +5).
    let (tail, array, cqes) = (params[11] as usize, params[16] as usize, params[25] as usize);
    let submissions = map(&ring, array + params[0] as usize * 4, 0)?;
    let completions = map(&ring, cqes + params[1] as usize * 16, 0x800_0000)?;
    let entries = map(&ring, params[0] as usize * 64, 0x1000_0000)?;
    // SAFETY: the three mappings are as long as the kernel's own offsets say, live until this process ends, and
    // nobody else submits. The entry is: opcode 18 (OPENAT) in byte 0, fd at 4, address at 16, open flags at 28.
    unsafe {
        entries.write(18);
        entries.add(4).cast::<i32>().write(libc::AT_FDCWD);
        entries.add(16).cast::<u64>().write(path.as_ptr() as u64);
        entries.add(28).cast::<u32>().write(libc::O_CLOEXEC as u32);
        submissions.add(array).cast::<u32>().write(0);
        let tail = &*submissions.add(tail).cast::<std::sync::atomic::AtomicU32>();
        tail.store(1, std::sync::atomic::Ordering::Release);
        let none = ptr::null::<u8>();
        Errno::result(libc::syscall(libc::SYS_io_uring_enter, ring.as_raw_fd(), 1, 1, 1, none, 0))?;
        let answer = completions.add(cqes + 8).cast::<i32>().read_volatile();
        if answer < 0 { Err(Errno::from_raw(-answer)) } else { owned(answer.into()) }
    }
}

fn map(ring: &OwnedFd, length: usize, offset: i64) -> Result<*mut u8, Errno> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the kernel chooses the address; the mapping is never removed while this short-lived process lives.
    let at = unsafe { libc::mmap(ptr::null_mut(), length, access, libc::MAP_SHARED, ring.as_raw_fd(), offset) };
    if at == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(at.cast()) }
}
