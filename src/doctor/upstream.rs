//! What the brokers of both cells lead to, and what a cell must not reach besides: a server and a datagram socket of the
//! doctor's own on the host's loopback.
#![forbid(unsafe_code)]

use std::fs::DirBuilder;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::attack::{HEADER, VICTIMS};
use crate::types::error::{Error, Result};

/// How long one connection may take to send its request.
const HEAD: Duration = Duration::from_secs(2);

/// The sockets.
pub struct Upstream {
    tcp: TcpListener,
    udp: UdpSocket,
    address: SocketAddr,
    paths: Option<Paths>,
}

/// Sockets with a path that are everybody's, as those of a host's services: in a directory of their own, removed with it.
struct Paths {
    directory: PathBuf,
    stream: UnixListener,
    _datagram: UnixDatagram,
}

impl Paths {
    /// Nothing where no directory for them can be made: then there is nothing to attack.
    fn open() -> Option<Paths> {
        let name = format!("oubliette-doctor-{}", crate::sys::random::name().ok()?);
        let places = ["/run", "/var/tmp", "/tmp"].map(|place| Path::new(place).join(&name));
        let directory = places.into_iter().find(|path| DirBuilder::new().mode(0o711).create(path).is_ok())?;
        let open = |name: &str| directory.join(name);
        let stream = UnixListener::bind(open("stream"));
        let datagram = UnixDatagram::bind(open("datagram"));
        let everybodys =
            |name: &str| std::fs::set_permissions(open(name), std::fs::Permissions::from_mode(0o777)).is_ok();
        let made = match (stream, datagram) {
            (Ok(stream), Ok(datagram)) if everybodys("stream") && everybodys("datagram") => Some((stream, datagram)),
            _ => None,
        };
        match made.filter(|(stream, _)| stream.set_nonblocking(true).is_ok()) {
            Some((stream, datagram)) => Some(Paths { directory, stream, _datagram: datagram }),
            None => {
                let _ = std::fs::remove_dir_all(&directory);
                None
            }
        }
    }
}

impl Drop for Paths {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
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
        Ok(Upstream { tcp, udp, address, paths: Paths::open() })
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

    /// The paths of a stream and of a datagram socket that everybody may connect to.
    pub fn paths(&self) -> Option<[PathBuf; 2]> {
        self.paths.as_ref().map(|paths| ["stream", "datagram"].map(|name| paths.directory.join(name)))
    }

    /// Answers until it shall end: who of the two a request came for, by its credential.
    pub fn serve(&self, victims: &str, attackers: &str, end: &AtomicBool) {
        while !end.load(Ordering::Relaxed) {
            let mut fds = [self.tcp.as_fd(), self.udp.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            let _ = poll(&mut fds, PollTimeout::from(50_u8));
            while let Ok((_, from)) = self.udp.recv_from(&mut [0; 64]) {
                let _ = self.udp.send_to(b"host", from);
            }
            while let Some(Ok((mut stream, _))) = self.paths.as_ref().map(|paths| paths.stream.accept()) {
                let _ = stream.write_all(b"host");
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
