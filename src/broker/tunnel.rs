//! A tunnel to a listed host. The broker cannot look into it, but at how it begins: with TLS, and for the host that was
//! asked for. Many hosts share an address, and a tunnel to one of them would lead to all.
#![forbid(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::{Instant, sleep_until, timeout};

use super::reach::{Budget, Goal, pass};
use super::tally::Direction;
use crate::types::hosts::HostName;

/// How long a client may take to say which host it means.
const HELLO: Duration = Duration::from_secs(10);

/// How long that may be: post-quantum keys make it a few kilobytes.
const HELLO_SIZE: usize = 32 << 10;

/// What is read and written at once.
const PART: usize = 16 << 10;

/// What bounds a tunnel.
pub struct Bounds<'a> {
    /// How many bytes are left.
    pub budget: &'a Budget,
    /// How long it may carry nothing.
    pub idle: Duration,
    /// When it was asked for.
    pub asked: Instant,
}

/// Why a tunnel ended before its sides were done.
#[derive(Debug)]
pub enum Cut {
    /// It was not for the host that was asked for.
    Refused(String),
    /// It carried nothing, too much, or broke.
    Broken(String),
}

/// Carries bytes until one side is done.
///
/// # Errors
/// Why it was cut.
pub async fn carry(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut host: impl AsyncRead + AsyncWrite + Unpin,
    goal: &Goal,
    bounds: &Bounds<'_>,
) -> Result<(), Cut> {
    let hello = timeout(HELLO, hello(&mut client, &goal.name)).await;
    let hello =
        hello.unwrap_or_else(|_| Err("the tunnel did not begin with TLS in time".into())).map_err(Cut::Refused)?;
    goal.counters.sent();
    pass(bounds.budget, &goal.counters, Direction::Up, hello.len() as u64)
        .map_err(|spent| Cut::Broken(spent.into()))?;
    host.write_all(&hello).await.map_err(|error| Cut::Broken(error.to_string()))?;
    drop(hello);
    let last = Last::default();
    let (client_reads, client_writes) = split(client);
    let (host_reads, host_writes) = split(host);
    let count = |direction, bytes: &[u8]| {
        pass(bounds.budget, &goal.counters, direction, bytes.len() as u64).map_err(Stop::Spent).map(|()| None)
    };
    let up = pump(client_reads, host_writes, &last, |bytes| count(Direction::Up, bytes));
    let down = pump(host_reads, client_writes, &last, |bytes| {
        if last.hear() {
            goal.counters.answered(bounds.asked.elapsed());
        }
        count(Direction::Down, bytes)
    });
    tokio::select! {
        both = async { tokio::try_join!(up, down) } => match both {
            Err(Stop::Spent(why)) => Err(Cut::Broken(why.into())),
            // Many clients and hosts end so when they are done. Whether something is missing, their TLS says to them.
            _ if last.heard() => Ok(()),
            Err(Stop::Lost(error)) => Err(Cut::Broken(error.to_string())),
            Ok(_) => Err(Cut::Broken("the host did not answer".into())),
        },
        () = idle(&last, bounds.idle) => Err(Cut::Broken("nothing passed for too long".into())),
    }
}

/// The client's first message, where it is one of TLS for this host. Nothing goes to the host before. An encrypted one
/// (ECH) has the name of this host outside, or is for another.
///
/// # Errors
/// A sentence.
pub async fn hello(client: &mut (impl AsyncRead + Unpin), name: &HostName) -> Result<Vec<u8>, String> {
    let mut read = Vec::new();
    let mut acceptor = Acceptor::default();
    loop {
        let mut part = [0; 4096];
        let length = client.read(&mut part).await.map_err(|error| error.to_string())?;
        if length == 0 || read.len() + length > HELLO_SIZE {
            return Err("the tunnel did not begin with TLS".into());
        }
        read.extend_from_slice(&part[..length]);
        let mut rest = &part[..length];
        while !rest.is_empty() {
            acceptor.read_tls(&mut rest).map_err(|error| error.to_string())?;
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => return fits(accepted.client_hello().server_name(), name).map(|()| read),
                Err(_) => return Err("the tunnel did not begin with TLS".into()),
            }
        }
    }
}

fn fits(said: Option<&str>, name: &HostName) -> Result<(), String> {
    match said {
        Some(said) if said.eq_ignore_ascii_case(name.as_str()) => Ok(()),
        Some(said) => Err(format!("the tunnel's TLS is for another host, {}", said.escape_debug())),
        None => Err("the tunnel's TLS names no host".into()),
    }
}

/// Why one way ended before its side was done.
pub enum Stop {
    /// No more may pass.
    Spent(&'static str),
    /// The other side is gone.
    Lost(io::Error),
}

/// Carries bytes one way until that side is done. `look` sees them first, and may give others for them.
///
/// # Errors
/// Why it ended before.
pub async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    last: &Last,
    mut look: impl FnMut(&[u8]) -> Result<Option<Bytes>, Stop>,
) -> Result<(), Stop> {
    let mut part = vec![0; PART];
    loop {
        let length = from.read(&mut part).await.map_err(Stop::Lost)?;
        if length == 0 {
            // The other way may go on. Where it is over, too, there is nothing to shut.
            let _ = to.shutdown().await;
            return Ok(());
        }
        let other = look(&part[..length])?;
        to.write_all(other.as_deref().unwrap_or(&part[..length])).await.map_err(Stop::Lost)?;
        // TLS may keep what the socket did not take.
        to.flush().await.map_err(Stop::Lost)?;
        last.is_now();
    }
}

/// When something passed, and whether any of it came from the host.
pub struct Last {
    passed: Mutex<Instant>,
    heard: AtomicBool,
}

impl Default for Last {
    /// Now, and nothing yet.
    fn default() -> Last {
        Last { passed: Mutex::new(Instant::now()), heard: AtomicBool::new(false) }
    }
}

impl Last {
    /// The host said something; whether that is the first.
    pub fn hear(&self) -> bool {
        !self.heard.swap(true, Ordering::Relaxed)
    }

    /// Whether it ever did.
    pub fn heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    fn is_now(&self) {
        *self.passed.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn get(&self) -> Instant {
        *self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends when nothing has passed for this long.
pub async fn idle(last: &Last, time: Duration) {
    loop {
        let until = last.get() + time;
        if until <= Instant::now() {
            return;
        }
        sleep_until(until).await;
    }
}
