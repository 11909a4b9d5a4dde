//! Attacks by way of a broker: on the victim's, and past the own one to the host. The upstream is the doctor's, and says
//! whose credential it got; that is the proof.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::time::Duration;

use super::sockets;
use super::target::{LOOPBACK, Target, any};
use crate::attack::tried::{Tried, absent, blocked};

/// What the upstream says where it got the victim's credential.
pub const VICTIMS: &str = "victim";

/// The header in which the suite sends its phantom.
pub const HEADER: &str = "x-api-key";

/// The variable with the broker's URL.
pub const URL: &str = "OUBLIETTE_BROKER_URL";

/// Longer than the upstream takes on a busy host, and shorter than the patience with one attack.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// The port of the broker of this process's cell.
pub(crate) fn own_port() -> Option<u16> {
    std::env::var(URL).ok()?.rsplit(':').next()?.parse().ok()
}

/// A request to the victim's broker.
fn ask(t: &Target, phantom: Option<&str>) -> Tried {
    let port = t.broker.ok_or_else(|| t.lacks("broker"))?;
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(ANSWER))?;
    let header = phantom.map_or_else(String::new, |word| format!("{HEADER}: {word}\r\n"));
    write!(stream, "GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n{header}connection: close\r\n\r\n")?;
    let mut answer = String::new();
    let ended = stream.read_to_string(&mut answer);
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) if body.contains(VICTIMS) => Ok("the upstream got the victim's credential".into()),
        Some((head, _)) => Err(blocked(head.lines().next().unwrap_or_default())),
        None => Err(ended.map_or_else(Into::into, |_| blocked("closed without an answer"))),
    }
}

pub(super) fn own_phantom(t: &Target) -> Tried {
    let own = t.phantom.as_deref().ok_or_else(|| absent("no phantom of its own"))?;
    ask(t, Some(own))
}

pub(super) fn no_phantom(t: &Target) -> Tried {
    ask(t, None)
}

/// What a program would try that knows the form.
pub(super) fn guessed(t: &Target) -> Tried {
    let own = t.phantom.clone().unwrap_or_default();
    let guesses =
        ["0".repeat(own.len()), "f".repeat(own.len()), own.chars().rev().collect(), t.marker()[1..].to_owned()];
    any(guesses.iter().enumerate().map(|(number, guess)| (number, ask(t, Some(guess)))), || absent("no guess"))
}

/// With the very word: what is left when everything that hides it has failed.
pub(super) fn known(t: &Target) -> Tried {
    ask(t, Some(&t.marker()))
}

pub(super) fn host_tcp(t: &Target) -> Tried {
    sockets::tcp_to(t, t.host_tcp.ok_or_else(|| absent("no listener of the host's"))?)
}

pub(super) fn host_mptcp(t: &Target) -> Tried {
    sockets::mptcp_to(t, t.host_tcp.ok_or_else(|| absent("no listener of the host's"))?)
}

pub(super) fn host_fast_open(t: &Target) -> Tried {
    sockets::fast_open_to(t, t.host_tcp.ok_or_else(|| absent("no listener of the host's"))?)
}

pub(super) fn host_udp(t: &Target) -> Tried {
    let port = t.host_udp.ok_or_else(|| absent("no socket of the host's"))?;
    let socket = UdpSocket::bind(LOOPBACK)?;
    socket.connect((Ipv4Addr::LOCALHOST, port))?;
    socket.send(b"x")?;
    socket.set_read_timeout(Some(ANSWER))?;
    match socket.recv(&mut [0; 64]) {
        Ok(_) => Ok("answered".into()),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Err(blocked("sent, no answer")),
        Err(error) => Err(error.into()),
    }
}
