//! Random bytes of the kernel's.

use nix::errno::Errno;

/// `N` random bytes by getrandom(2). It opens no file, as a generator of a statically linked program may do.
///
/// # Errors
/// ENOSYS before Linux 3.17.
pub fn bytes<const N: usize>() -> Result<[u8; N], Errno> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let rest = &mut bytes[filled..];
        // SAFETY: the pointer and the length are those of a slice that lives through the call.
        let got = Errno::result(unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) });
        match got {
            Ok(count) => filled += count.cast_unsigned(),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(bytes)
}

/// A name of 128 random bits.
///
/// # Errors
/// As for [`bytes()`].
pub fn name() -> Result<String, Errno> {
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes()?)))
}
