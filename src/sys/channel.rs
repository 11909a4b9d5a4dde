//! A pair of sockets between launcher and init: short messages, each whole, some with a descriptor.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The longest message, in bytes.
pub const MAX: usize = 2048;

/// One end.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

/// A message, with the descriptor that came with it.
#[derive(Debug)]
pub struct Message {
    /// Its bytes; the first says what it is.
    pub bytes: Vec<u8>,
    /// A descriptor, close-on-exec.
    pub fd: Option<OwnedFd>,
}

impl Channel {
    /// Two ends.
    ///
    /// # Errors
    /// The errno of socketpair(2).
    pub fn pair() -> Result<(Channel, Channel), Errno> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Channel { socket: a }, Channel { socket: b }))
    }

    /// The end that somebody has handed over.
    pub fn of(socket: OwnedFd) -> Channel {
        Channel { socket }
    }

    /// Another descriptor for this end.
    ///
    /// # Errors
    /// The errno of fcntl(2).
    pub fn try_clone(&self) -> Result<Channel, Errno> {
        self.socket.try_clone().map(|socket| Channel { socket }).map_err(|_| Errno::EMFILE)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The errno of sendmsg(2): EPIPE when the other end is gone.
    pub fn send(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let numbers: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&numbers)];
        let control = if numbers.is_empty() { &[][..] } else { &control[..] };
        let vector = [IoSlice::new(&bytes[..bytes.len().min(MAX)])];
        sendmsg::<()>(self.socket.as_raw_fd(), &vector, control, MsgFlags::MSG_NOSIGNAL, None).map(drop)
    }

    /// Waits for a message; nothing when the other end is gone.
    ///
    /// # Errors
    /// The errno of recvmsg(2).
    pub fn receive(&self) -> Result<Option<Message>, Errno> {
        let mut bytes = [0; MAX];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let mut vector = [IoSliceMut::new(&mut bytes)];
        let mut reset = false;
        let received = loop {
            match recvmsg::<()>(self.socket.as_raw_fd(), &mut vector, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
                Err(Errno::EINTR) => {}
                // The other end is gone and has left a message of ours unread. What it sent before is still to be read,
                // and is the reason why it went. Linux says so once, gVisor for ever.
                Err(Errno::ECONNRESET) if reset => return Ok(None),
                Err(Errno::ECONNRESET) => reset = true,
                other => break other?,
            }
        };
        let mut fd = None;
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = message {
                for number in numbers {
                    // SAFETY: the kernel has just made this descriptor for us and nobody else knows its number.
                    fd = Some(unsafe { OwnedFd::from_raw_fd(number) });
                }
            }
        }
        let length = received.bytes;
        Ok((length > 0).then(|| Message { bytes: bytes[..length].to_vec(), fd }))
    }
}

impl Channel {
    /// This end, for a runtime that waits for messages on it.
    ///
    /// # Errors
    /// The errno of epoll_ctl(2).
    pub fn watch(&self) -> std::io::Result<AsyncFd<BorrowedFd<'_>>> {
        // SAFETY: the descriptor stays open while self is borrowed, and a borrowed one has one number.
        unsafe { AsyncFd::register_with_interest(self.as_fd(), Interest::READABLE) }.map_err(Into::into)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_an_end_that_did_not_listen_are_heard() {
        let (a, b) = Channel::pair().unwrap();
        a.send(b"g", None).unwrap();
        b.send(b"failed", None).unwrap();
        drop(b);
        assert_eq!(a.receive().unwrap().unwrap().bytes, b"failed");
        assert!(a.receive().unwrap().is_none());
    }
}
