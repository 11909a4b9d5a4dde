//! Loading a seccomp filter.

use nix::errno::Errno;

/// One instruction of classic BPF.
pub type Instruction = libc::sock_filter;

/// Whether this kernel has seccomp at all.
pub fn available() -> bool {
    // SAFETY: PR_GET_SECCOMP takes no pointer; it answers EINVAL without CONFIG_SECCOMP (prctl(2)).
    unsafe { libc::prctl(libc::PR_GET_SECCOMP) >= 0 }
}

/// Loads `program` for this process and all that it will start.
///
/// # Errors
/// The errno of seccomp(2): EACCES without `no_new_privs`, EINVAL for a program that the kernel rejects.
pub fn load(program: &[Instruction]) -> Result<(), Errno> {
    let length = libc::c_ushort::try_from(program.len()).map_err(|_| Errno::E2BIG)?;
    let description = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the description names `length` instructions that live across the call; the kernel copies and only reads.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const description) };
    Errno::result(done).map(drop)
}
