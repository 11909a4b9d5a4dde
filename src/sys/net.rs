//! A new network namespace: its loopback, which starts down (network_namespaces(7)), and a listener on that. A socket
//! stays in the namespace in which it was made, whoever has its descriptor.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, socket};

/// Brings `lo` up.
///
/// # Errors
/// The errno of socket(2) or ioctl(2).
pub fn loopback_up() -> Result<(), Errno> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all-zero bytes are a valid ifreq; the name is shorter than the field, so it stays NUL-terminated.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    // SAFETY: SIOCGIFFLAGS reads the name in the ifreq and writes its flags; it lives across the call (netdevice(7)).
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) })?;
    // SAFETY: the call above has filled the flags.
    if unsafe { request.ifr_ifru.ifru_flags } & libc::IFF_UP as libc::c_short != 0 {
        // Under gVisor, which has no call to bring it up.
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives across the call (netdevice(7)).
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) }).map(drop)
}

/// A listener on 127.0.0.1 in this process's network namespace, non-blocking, and its port: 0 asks for one of the
/// kernel's choice.
///
/// # Errors
/// The errno of socket(2), bind(2) or listen(2).
pub fn listener(port: u16) -> Result<(OwnedFd, u16), Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port))?;
    listen(&socket, Backlog::MAXCONN)?;
    let port = getsockname::<SockaddrIn>(socket.as_raw_fd())?.port();
    Ok((socket, port))
}
