//! Calls of another process that a seccomp filter stops until this one has answered (seccomp_unotify(2)).

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::seccomp::Instruction;

/// `struct seccomp_data` of linux/seccomp.h.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Data {
    number: i32,
    arch: u32,
    instruction: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    data: Data,
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// `struct seccomp_notif_sizes`.
#[repr(C)]
#[derive(Default)]
struct Sizes {
    notification: u16,
    response: u16,
    data: u16,
}

mod ioctl {
    nix::ioctl_readwrite!(receive, b'!', 0, super::Notification);
    nix::ioctl_readwrite!(send, b'!', 1, super::Response);
    nix::ioctl_write_ptr!(id_valid, b'!', 2, u64);
}

/// SECCOMP_GET_NOTIF_SIZES.
const GET_SIZES: libc::c_uint = 3;

/// A call that waits for its answer.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// What the answer is for.
    pub id: u64,
    /// The thread that makes it.
    pub thread: u32,
    /// The number of the system call.
    pub number: i64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// Whether filters can ask here, by structures of the sizes that are known.
pub fn available() -> bool {
    let mut sizes = Sizes::default();
    // SAFETY: the kernel writes one struct seccomp_notif_sizes, or nothing where it does not know the operation.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, GET_SIZES, 0, &raw mut sizes) };
    // A larger structure than ours would be written past its end.
    let fits = |size: u16, known: usize| usize::from(size) == known;
    answer == 0
        && fits(sizes.notification, size_of::<Notification>())
        && fits(sizes.response, size_of::<Response>())
        && fits(sizes.data, size_of::<Data>())
}

/// Loads `program` and gives the descriptor by which its questions are heard.
///
/// # Errors
/// The errno of seccomp(2): EBUSY where a filter of this process asks somebody else already.
pub fn load(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    let length = libc::c_ushort::try_from(program.len()).map_err(|_| Errno::E2BIG)?;
    let description = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the description names `length` instructions that live across the call; the kernel copies and only reads.
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const description) };
    let listener = Errno::result(listener)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(listener as RawFd) })
}

/// The next call. Waits for one where none is there: poll(2) tells.
///
/// # Errors
/// The errno of ioctl(2): ENOENT where its thread has been killed meanwhile, EINTR.
pub fn receive(listener: BorrowedFd<'_>) -> Result<Call, Errno> {
    // The kernel insists on zeros.
    let mut raw = MaybeUninit::<Notification>::zeroed();
    // SAFETY: the kernel writes one struct seccomp_notif, whose size `available` has compared, and zeros are valid.
    let raw = unsafe {
        ioctl::receive(listener.as_raw_fd(), raw.as_mut_ptr())?;
        raw.assume_init()
    };
    Ok(Call { id: raw.id, thread: raw.pid, number: raw.data.number.into(), arguments: raw.data.arguments })
}

/// Whether the thread still waits: its number may be another one's by now.
pub fn waits(listener: BorrowedFd<'_>, call: &Call) -> bool {
    // SAFETY: reads one number, which lives across the call.
    unsafe { ioctl::id_valid(listener.as_raw_fd(), &raw const call.id) }.is_ok()
}

/// Answers a call: it succeeds with 0, or fails with an errno.
///
/// # Errors
/// The errno of ioctl(2): ENOENT where its thread has been killed meanwhile.
pub fn answer(listener: BorrowedFd<'_>, call: &Call, answer: Result<(), Errno>) -> Result<(), Errno> {
    let error = answer.err().map_or(0, |errno| -(errno as i32));
    let mut response = Response { id: call.id, value: 0, error, flags: 0 };
    // SAFETY: reads one struct seccomp_notif_resp, which lives across the call.
    unsafe { ioctl::send(listener.as_raw_fd(), &raw mut response) }.map(drop)
}
