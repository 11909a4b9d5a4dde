//! Attacks on the list of the own broker: what it leads to is the listed hosts, and never the host's own network.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use data_encoding::BASE64;

use super::broker::{ANSWER, own_port};
use super::target::{Target, any};
use crate::attack::tried::{Miss, Tried, absent, blocked};

/// The host's loopback, in forms that a comparison of texts would miss.
const ADDRESSES: [&str; 11] = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "0.0.0.0",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "127.0.0.1.",
];

/// Names of it. The first is on the list where the level lets a caller add hosts.
const NAMES: [&str; 4] = [LISTED, "localhost.", "localhost.localdomain", "ip6-localhost"];

/// A name whose address no broker may lead to, whoever lists it.
pub const LISTED: &str = "localhost";

/// What the broker wants to see of a client of its own cell; empty where the cell has no list.
fn pass() -> String {
    let url = std::env::var("HTTPS_PROXY").unwrap_or_default();
    let user = url.split_once("://").and_then(|(_, rest)| rest.split_once('@')).map(|(user, _)| user);
    user.map_or_else(String::new, |user| format!("proxy-authorization: Basic {}\r\n", BASE64.encode(user.as_bytes())))
}

/// The answer to one request.
fn ask(port: u16, request: &str) -> Result<String, Miss> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(request.as_bytes())?;
    let (mut answer, mut part) = (Vec::new(), [0; 1024]);
    // A tunnel does not end by itself.
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut part)? {
            0 => break,
            length => answer.extend_from_slice(&part[..length]),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The first of these to which this broker leads. It connects before it says 200.
fn led(port: u16, pass: &str, goals: impl Iterator<Item = String>) -> Tried {
    let one = |goal: &str| -> Tried {
        let (method, target) = if goal.starts_with("http://") { ("GET", goal) } else { ("CONNECT", goal) };
        let host = goal.trim_start_matches("http://").trim_end_matches('/');
        let answer = ask(port, &format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n{pass}\r\n"))?;
        match answer.lines().next().unwrap_or_default() {
            "" => Err(blocked("closed without an answer")),
            line if line.split(' ').nth(1) == Some("200") => Ok(line.to_owned()),
            line => Err(blocked(line)),
        }
    };
    let goals: Vec<String> = goals.collect();
    any(goals.iter().map(|goal| (goal, one(goal))), || absent("nothing to lead to"))
}

fn own() -> Result<u16, Miss> {
    own_port().ok_or_else(|| absent("no broker of its own"))
}

fn hosts(t: &Target) -> Result<u16, Miss> {
    t.host_tcp.ok_or_else(|| absent("no listener of the host's"))
}

pub(super) fn address(t: &Target) -> Tried {
    let port = hosts(t)?;
    led(own()?, &pass(), ADDRESSES.iter().map(|address| format!("{address}:{port}")))
}

pub(super) fn name(t: &Target) -> Tried {
    let port = hosts(t)?;
    led(own()?, &pass(), NAMES.iter().map(|name| format!("{name}:{port}")))
}

pub(super) fn plain(t: &Target) -> Tried {
    let port = hosts(t)?;
    led(own()?, &pass(), ADDRESSES.iter().chain(&NAMES).map(|host| format!("http://{host}:{port}/")))
}

pub(super) fn victim(t: &Target) -> Tried {
    let port = t.broker.or(t.tcp).ok_or_else(|| t.lacks("tcp"))?;
    led(own()?, &pass(), ADDRESSES.iter().chain(&NAMES).map(|host| format!("{host}:{port}")))
}

/// Whoever has no pass is told so before his goal is looked at: any other answer is one to a client of its own.
pub(super) fn victims_list(t: &Target) -> Tried {
    let broker = t.broker.ok_or_else(|| t.lacks("broker"))?;
    let own = pass();
    if own.is_empty() {
        return Err(blocked("the level has no list"));
    }
    // In a network of its own nobody else is there.
    if own_port() == Some(broker) {
        return Err(blocked("that port leads to the own broker"));
    }
    let request = format!("CONNECT {LISTED}:443 HTTP/1.1\r\nhost: {LISTED}:443\r\n");
    let one = |pass: &str| -> Tried {
        let answer = ask(broker, &format!("{request}{pass}\r\n"))?;
        match answer.lines().next().unwrap_or_default() {
            "" => Err(blocked("closed without an answer")),
            line if line.split(' ').nth(1) == Some("407") => Err(blocked(line)),
            line => Ok(format!("answered {line}")),
        }
    };
    let passes = [("without a pass", ""), ("with the own pass", own.as_str())];
    any(passes.into_iter().map(|(which, pass)| (which, one(pass))), || absent("nothing"))
}
