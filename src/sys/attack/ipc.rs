//! System V and POSIX message objects, and the key rings.

use std::ffi::CStr;
use std::ptr;

use nix::errno::Errno;

/// The key ring of the user: `KEY_SPEC_USER_KEYRING`.
pub const USER_KEYRING: i32 = -4;
/// The key ring of the process: `KEY_SPEC_PROCESS_KEYRING`.
pub const PROCESS_KEYRING: i32 = -2;
const SIZE: usize = 4096;

#[repr(C)]
struct Message {
    kind: libc::c_long,
    text: [u8; 64],
}

/// A shared memory segment, mode 0600, that begins with `content`.
///
/// # Errors
/// The errno of shmget(2) or shmat(2).
pub fn shm_make(content: &[u8]) -> Result<i32, Errno> {
    // SAFETY: takes no memory.
    let id = Errno::result(unsafe { libc::shmget(libc::IPC_PRIVATE, SIZE, libc::IPC_CREAT | 0o600) })?;
    with_shm(id, 0, |bytes| {
        // SAFETY: `bytes` is a writable mapping of SIZE bytes of which nobody else holds a reference.
        unsafe { ptr::copy_nonoverlapping(content.as_ptr(), bytes, content.len().min(SIZE)) };
    })?;
    Ok(id)
}

/// The first bytes of somebody's segment.
///
/// # Errors
/// The errno of shmat(2).
pub fn shm_read(id: i32) -> Result<Vec<u8>, Errno> {
    let mut copy = vec![0; 64];
    with_shm(id, libc::SHM_RDONLY, |bytes| {
        // SAFETY: a segment is at least one page; `copy` has 64 bytes.
        unsafe { ptr::copy_nonoverlapping(bytes, copy.as_mut_ptr(), 64) };
    })?;
    Ok(copy)
}

fn with_shm(id: i32, flags: i32, act: impl FnOnce(*mut u8)) -> Result<(), Errno> {
    // SAFETY: the kernel chooses a free address.
    let at = unsafe { libc::shmat(id, ptr::null(), flags) };
    if at as isize == -1 {
        return Err(Errno::last());
    }
    act(at.cast());
    // SAFETY: `at` is the mapping made above and nothing refers to it any more.
    Errno::result(unsafe { libc::shmdt(at) }).map(drop)
}

/// Removes a segment.
pub fn shm_remove(id: i32) {
    // SAFETY: IPC_RMID takes no memory.
    unsafe { libc::shmctl(id, libc::IPC_RMID, ptr::null_mut()) };
}

/// A set of one semaphore, mode 0600, value 0.
///
/// # Errors
/// The errno of semget(2).
pub fn sem_make() -> Result<i32, Errno> {
    // SAFETY: takes no memory.
    Errno::result(unsafe { libc::semget(libc::IPC_PRIVATE, 1, libc::IPC_CREAT | 0o600) })
}

/// Sets a semaphore.
///
/// # Errors
/// The errno of semctl(2).
pub fn sem_set(id: i32, value: i32) -> Result<(), Errno> {
    // SAFETY: SETVAL takes the value itself.
    Errno::result(unsafe { libc::semctl(id, 0, libc::SETVAL, value) }).map(drop)
}

/// The value of a semaphore.
///
/// # Errors
/// The errno of semctl(2).
pub fn sem_get(id: i32) -> Result<i32, Errno> {
    // SAFETY: GETVAL takes no memory.
    Errno::result(unsafe { libc::semctl(id, 0, libc::GETVAL) })
}

/// Removes a semaphore set.
pub fn sem_remove(id: i32) {
    // SAFETY: IPC_RMID takes no memory.
    unsafe { libc::semctl(id, 0, libc::IPC_RMID) };
}

/// A message queue, mode 0600, with one message in it.
///
/// # Errors
/// The errno of msgget(2) or msgsnd(2).
pub fn msg_make(content: &[u8]) -> Result<i32, Errno> {
    let mut message = Message { kind: 1, text: [0; 64] };
    let length = content.len().min(64);
    message.text[..length].copy_from_slice(&content[..length]);
    // SAFETY: takes no memory.
    let id = Errno::result(unsafe { libc::msgget(libc::IPC_PRIVATE, libc::IPC_CREAT | 0o600) })?;
    // SAFETY: `message` begins with the long that the call asks for and holds 64 bytes after it.
    Errno::result(unsafe { libc::msgsnd(id, (&raw const message).cast(), length, libc::IPC_NOWAIT) })?;
    Ok(id)
}

/// Takes a message out of a queue.
///
/// # Errors
/// The errno of msgrcv(2).
pub fn msg_take(id: i32) -> Result<Vec<u8>, Errno> {
    let mut message = Message { kind: 0, text: [0; 64] };
    // SAFETY: `message` has room for the long and for 64 bytes.
    let got = Errno::result(unsafe { libc::msgrcv(id, (&raw mut message).cast(), 64, 0, libc::IPC_NOWAIT) })?;
    Ok(message.text[..got as usize].to_vec())
}

/// Messages in a queue.
///
/// # Errors
/// The errno of msgctl(2).
pub fn msg_count(id: i32) -> Result<u64, Errno> {
    let mut state = std::mem::MaybeUninit::<libc::msqid_ds>::zeroed();
    // SAFETY: IPC_STAT writes one msqid_ds.
    Errno::result(unsafe { libc::msgctl(id, libc::IPC_STAT, state.as_mut_ptr()) })?;
    // SAFETY: all zeroes is a valid msqid_ds, and the kernel has filled it.
    Ok(unsafe { state.assume_init() }.msg_qnum)
}

/// Removes a queue.
pub fn msg_remove(id: i32) {
    // SAFETY: IPC_RMID takes no memory.
    unsafe { libc::msgctl(id, libc::IPC_RMID, ptr::null_mut()) };
}

/// A POSIX queue, mode 0600, with one message in it (`name` without the slash, as the system call wants it).
///
/// # Errors
/// The errno of mq_open(2) or mq_timedsend(2).
pub fn mq_make(name: &CStr, content: &[u8]) -> Result<i32, Errno> {
    // SAFETY: all zeroes is a valid mq_attr.
    let mut attr: libc::mq_attr = unsafe { std::mem::zeroed() };
    attr.mq_maxmsg = 2;
    attr.mq_msgsize = 64;
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_CLOEXEC;
    // SAFETY: `name` ends with NUL and `attr` lives through the call.
    let queue =
        Errno::result(unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, 0o600, &raw const attr) })?;
    let length = content.len().min(64);
    let none = ptr::null::<libc::timespec>();
    // SAFETY: reads `length` bytes of `content`; no time limit, and the queue has room.
    Errno::result(unsafe { libc::syscall(libc::SYS_mq_timedsend, queue, content.as_ptr(), length, 0, none) })?;
    Ok(queue as i32)
}

/// Takes a message out of a POSIX queue.
///
/// # Errors
/// The errno of mq_open(2) or mq_timedreceive(2).
pub fn mq_take(name: &CStr) -> Result<Vec<u8>, Errno> {
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let none = ptr::null::<u8>();
    // SAFETY: `name` ends with NUL.
    let queue = Errno::result(unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, 0, none) })?;
    let mut text = vec![0_u8; 64];
    // SAFETY: `text` has the 64 bytes announced; priority and time limit are left out.
    let got =
        Errno::result(unsafe { libc::syscall(libc::SYS_mq_timedreceive, queue, text.as_mut_ptr(), 64, none, none) })?;
    text.truncate(got as usize);
    Ok(text)
}

/// Removes a POSIX queue's name.
pub fn mq_remove(name: &CStr) {
    // SAFETY: `name` ends with NUL.
    unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) };
}

/// Adds a `user` key to a ring.
///
/// # Errors
/// The errno of add_key(2).
pub fn key_add(name: &CStr, content: &[u8], ring: i32) -> Result<i32, Errno> {
    // SAFETY: both strings end with NUL and `content` has the length given.
    let key = unsafe {
        libc::syscall(libc::SYS_add_key, c"user".as_ptr(), name.as_ptr(), content.as_ptr(), content.len(), ring)
    };
    Errno::result(key).map(|serial| serial as i32)
}

/// The content of a key.
///
/// # Errors
/// The errno of keyctl(2).
pub fn key_read(serial: i32) -> Result<Vec<u8>, Errno> {
    let mut text = vec![0_u8; 64];
    // SAFETY: KEYCTL_READ (11) writes at most the 64 bytes announced.
    let got = Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, 11, serial, text.as_mut_ptr(), 64) })?;
    text.truncate(got as usize);
    Ok(text)
}

/// Looks a `user` key up by name in a ring.
///
/// # Errors
/// The errno of keyctl(2).
pub fn key_search(ring: i32, name: &CStr) -> Result<i32, Errno> {
    // SAFETY: KEYCTL_SEARCH (10) reads two strings that end with NUL.
    let key = unsafe { libc::syscall(libc::SYS_keyctl, 10, ring, c"user".as_ptr(), name.as_ptr(), 0) };
    Errno::result(key).map(|serial| serial as i32)
}

/// Invalidates a key of our own.
pub fn key_drop(serial: i32) {
    // SAFETY: KEYCTL_INVALIDATE (21) takes no memory.
    unsafe { libc::syscall(libc::SYS_keyctl, 21, serial) };
}
