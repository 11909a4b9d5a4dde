//! Attacks by socket: the victim's own, the network's, and families that an agent does not need.
#![forbid(unsafe_code)]

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4, SocketAddrV6, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrIn, SockaddrIn6, SockaddrLike, connect, sendto};

use super::target::{LOOPBACK, Target, any, read_some};
use crate::attack::tried::{Miss, Tried, absent, blocked};
use crate::sys::attack::kernel;

const ANSWER: Duration = Duration::from_millis(500);

/// The victim answers whoever connects with its secret.
fn hear(t: &Target, mut stream: impl Read) -> Tried {
    let mut bytes = vec![0; 64];
    match stream.read(&mut bytes) {
        Ok(got) => t.shows(&bytes[..got], "answer").or(Ok("connected".into())),
        Err(_) => Ok("connected, no answer".into()),
    }
}

fn hear_unix(t: &Target, stream: UnixStream) -> Tried {
    stream.set_read_timeout(Some(ANSWER))?;
    hear(t, stream)
}

pub(super) fn abstract_name(t: &Target) -> Tried {
    let name = t.abstract_socket.as_ref().ok_or_else(|| t.lacks("abstract_socket"))?;
    hear_unix(t, UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?)
}

pub(super) fn path(t: &Target) -> Tried {
    t.each_dir(|dir| hear_unix(t, UnixStream::connect(dir.join("sock"))?))
}

pub(super) fn tmp_path(t: &Target) -> Tried {
    hear_unix(t, UnixStream::connect(t.tmp_socket.as_deref().ok_or_else(|| t.lacks("tmp_socket"))?)?)
}

pub(super) fn host_path(t: &Target) -> Tried {
    hear_unix(t, UnixStream::connect(t.host_socket.as_deref().ok_or_else(|| t.lacks("host_socket"))?)?)
}

/// A pair has no name, but its ends can be led elsewhere.
pub(super) fn host_datagram(t: &Target) -> Tried {
    let path = t.host_datagram.as_deref().ok_or_else(|| t.lacks("host_datagram"))?;
    let by_own = || -> Tried {
        UnixDatagram::unbound()?.send_to(b"x", path)?;
        Ok("sent".into())
    };
    let by_pair = || -> Tried {
        UnixDatagram::pair()?.0.send_to(b"x", path)?;
        Ok("sent".into())
    };
    any([("socket", by_own()), ("pair", by_pair())].into_iter(), || absent("none"))
}

fn tcp_port(t: &Target) -> Result<u16, Miss> {
    t.tcp.ok_or_else(|| t.lacks("tcp"))
}

fn at(port: u16) -> SockaddrIn {
    SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, port).into()
}

fn hear_tcp(t: &Target, socket: OwnedFd) -> Tried {
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(ANSWER))?;
    hear(t, stream)
}

fn connect_to(t: &Target, socket: OwnedFd, address: &dyn SockaddrLike) -> Tried {
    connect(socket.as_raw_fd(), address)?;
    hear_tcp(t, socket)
}

pub(super) fn tcp(t: &Target) -> Tried {
    tcp_to(t, tcp_port(t)?)
}

/// To a listener of somebody else's.
pub(super) fn tcp_to(t: &Target, port: u16) -> Tried {
    connect_to(t, kernel::socket(libc::AF_INET, libc::SOCK_STREAM, 0)?, &at(port))
}

pub(super) fn tcp_mapped(t: &Target) -> Tried {
    let port = tcp_port(t)?;
    let address: SockaddrIn6 = SocketAddrV6::new(std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped(), port, 0, 0).into();
    connect_to(t, kernel::socket(libc::AF_INET6, libc::SOCK_STREAM, 0).map_err(family)?, &address)
}

pub(super) fn mptcp(t: &Target) -> Tried {
    mptcp_to(t, tcp_port(t)?)
}

/// To a listener of somebody else's.
pub(super) fn mptcp_to(t: &Target, port: u16) -> Tried {
    connect_to(t, kernel::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).map_err(family)?, &at(port))
}

pub(super) fn fast_open(t: &Target) -> Tried {
    fast_open_to(t, tcp_port(t)?)
}

/// To a listener of somebody else's.
pub(super) fn fast_open_to(t: &Target, port: u16) -> Tried {
    let socket = kernel::socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    sendto(socket.as_raw_fd(), b"x", &at(port), MsgFlags::from_bits_retain(libc::MSG_FASTOPEN))?;
    hear_tcp(t, socket)
}

pub(super) fn udp(t: &Target) -> Tried {
    let port = t.udp.ok_or_else(|| t.lacks("udp"))?;
    let socket = UdpSocket::bind(LOOPBACK)?;
    socket.connect((Ipv4Addr::LOCALHOST, port))?;
    socket.send(b"x")?;
    socket.set_read_timeout(Some(ANSWER))?;
    let mut bytes = [0; 64];
    match socket.recv(&mut bytes) {
        Ok(got) => t.shows(&bytes[..got], "answer"),
        // A datagram into a namespace where nobody listens comes back as ECONNREFUSED.
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Err(blocked("sent, no answer")),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn listed(t: &Target) -> Tried {
    let look = |table: &str, needle: String| -> Tried {
        let text = read_some(Path::new(table))?;
        if String::from_utf8_lossy(&text).contains(&needle) { Ok(needle) } else { Err(blocked("not listed")) }
    };
    let name = t.abstract_socket.clone().map(|name| look("/proc/net/unix", name));
    let port = |table, port: Option<u16>| port.map(|port| look(table, format!("0100007F:{port:04X} 00000000:0000")));
    let tables = [("unix", name), ("tcp", port("/proc/net/tcp", t.tcp)), ("udp", port("/proc/net/udp", t.udp))];
    any(tables.into_iter().filter_map(|(name, tried)| Some((name, tried?))), || absent("the victim has no socket"))
}

fn family(errno: Errno) -> Miss {
    match errno {
        Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT | Errno::ESOCKTNOSUPPORT => Miss::Absent(format!("{errno:?}")),
        other => other.into(),
    }
}

fn opens(domain: i32, kind: i32, protocol: i32) -> Tried {
    kernel::socket(domain, kind, protocol).map_err(family)?;
    Ok("socket made".into())
}

pub(super) fn vsock(_: &Target) -> Tried {
    opens(libc::AF_VSOCK, libc::SOCK_STREAM, 0)
}

pub(super) fn packet(_: &Target) -> Tried {
    opens(libc::AF_PACKET, libc::SOCK_RAW, 0)
}

pub(super) fn raw(_: &Target) -> Tried {
    opens(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)
}

pub(super) fn alg(_: &Target) -> Tried {
    opens(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)
}

pub(super) fn sock_diag(_: &Target) -> Tried {
    opens(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG)
}

pub(super) fn audit(_: &Target) -> Tried {
    opens(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT)
}

pub(super) fn netfilter(_: &Target) -> Tried {
    opens(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)
}

pub(super) fn other_families(_: &Target) -> Tried {
    let families = [
        ("key", libc::AF_KEY, libc::SOCK_RAW, 2),
        ("rds", libc::AF_RDS, libc::SOCK_SEQPACKET, 0),
        ("tipc", libc::AF_TIPC, libc::SOCK_STREAM, 0),
        ("can", libc::AF_CAN, libc::SOCK_RAW, 1),
        ("xdp", libc::AF_XDP, libc::SOCK_RAW, 0),
        ("smc", 43, libc::SOCK_STREAM, 0),
        ("bluetooth", libc::AF_BLUETOOTH, libc::SOCK_RAW, 1),
        ("sctp", libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
    ];
    any(families.into_iter().map(|(name, domain, kind, protocol)| (name, opens(domain, kind, protocol))), || {
        absent("none")
    })
}
