//! What the brokers of both cells lead to, and what a cell must not reach besides: a server and a datagram socket of the
//! doctor's own on the host's loopback.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::attack::{HEADER, VICTIMS};
use crate::error::{Error, Result};

/// How long one connection may take to send its request.
const HEAD: Duration = Duration::from_secs(2);

/// The sockets.
pub struct Upstream {
    tcp: TcpListener,
    udp: UdpSocket,
    address: SocketAddr,
}

impl Upstream {
    /// On ports of the kernel's choice.
    ///
    /// # Errors
    /// No socket can be made.
    pub fn open() -> Result<Upstream> {
        let failed = |error: std::io::Error| Error::new("listen on 127.0.0.1 for the attacks", error);
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        tcp.set_nonblocking(true).and_then(|()| udp.set_nonblocking(true)).map_err(failed)?;
        let address = tcp.local_addr().map_err(failed)?;
        Ok(Upstream { tcp, udp, address })
    }

    /// For `--upstream`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The port of the server.
    pub fn tcp_port(&self) -> u16 {
        self.address.port()
    }

    /// The port of the datagram socket.
    pub fn udp_port(&self) -> Option<u16> {
        self.udp.local_addr().ok().map(|address| address.port())
    }

    /// Answers until it shall end: who of the two a request came for, by its credential.
    pub fn serve(&self, victims: &str, attackers: &str, end: &AtomicBool) {
        while !end.load(Ordering::Relaxed) {
            let mut fds = [self.tcp.as_fd(), self.udp.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            let _ = poll(&mut fds, PollTimeout::from(50_u8));
            while let Ok((_, from)) = self.udp.recv_from(&mut [0; 64]) {
                let _ = self.udp.send_to(b"host", from);
            }
            while let Ok((stream, _)) = self.tcp.accept() {
                // One that says nothing is the proof of its attack by having come.
                let _ = answer(stream, victims, attackers);
            }
        }
    }
}

fn answer(mut stream: TcpStream, victims: &str, attackers: &str) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(HEAD))?;
    let (mut head, mut part) = (Vec::new(), [0; 4096]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < 64 << 10 {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            length => head.extend_from_slice(&part[..length]),
        }
    }
    let text = String::from_utf8_lossy(&head);
    let sent =
        text.lines().filter_map(|line| line.split_once(": ")).find(|(name, _)| name.eq_ignore_ascii_case(HEADER));
    let who = match sent.map(|(_, value)| value.trim()) {
        Some(value) if value == victims => VICTIMS,
        Some(value) if value == attackers => "attacker",
        _ => "nobody",
    };
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{who}", who.len())
}
