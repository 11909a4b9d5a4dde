//! Listens on the loopback of a cell's own network: what its agent and its broker say to each other, byte by byte.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt};

use crate::stage::descendants;

/// The ports of one direction of a connection.
type Flow = (u16, u16);

/// A listener, which stops when it is asked for what it heard.
pub struct Tap {
    end: Arc<AtomicBool>,
    heard: JoinHandle<Vec<Vec<u8>>>,
}

impl Tap {
    /// Listens as soon as a launcher, which this finds, has a process in a network of its own.
    pub fn start(launcher: impl Fn() -> Option<u32> + Send + 'static) -> Tap {
        let end = Arc::<AtomicBool>::default();
        let ended = end.clone();
        let heard = std::thread::spawn(move || {
            let mut flows = BTreeMap::new();
            while !ended.load(Ordering::Relaxed) {
                match launcher().and_then(network) {
                    Some(network) => {
                        listen(&network, &ended, &mut flows);
                        break;
                    }
                    None => std::thread::sleep(Duration::from_millis(1)),
                }
            }
            flows.into_values().map(|parts| parts.into_values().flatten().collect()).collect()
        });
        Tap { end, heard }
    }

    /// What each side of each connection said.
    pub fn stop(self) -> Vec<Vec<u8>> {
        self.end.store(true, Ordering::Relaxed);
        self.heard.join().expect("it listens to its end")
    }
}

/// The network of a process below this one, where that is another one.
fn network(launcher: u32) -> Option<File> {
    let name = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let own = name(std::process::id() as i32);
    let other =
        descendants(launcher as i32).into_iter().find(|pid| name(*pid).is_some_and(|name| Some(name) != own))?;
    File::open(format!("/proc/{other}/ns/net")).ok()
}

/// This thread stays in that network, and is of no other use.
fn listen(network: &File, end: &AtomicBool, flows: &mut BTreeMap<Flow, BTreeMap<u32, Vec<u8>>>) {
    setns(network, CloneFlags::CLONE_NEWNET).expect("root enters a network");
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd =
        socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).expect("root hears what passes");
    setsockopt(&socket, sockopt::RcvBuf, &(32 << 20)).expect("room for a burst");
    let mut packet = vec![0; 128 << 10];
    let mut quiet = Instant::now();
    // What is on the way when it is told to end is still heard.
    while !end.load(Ordering::Relaxed) || quiet.elapsed() < Duration::from_millis(50) {
        match recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(length) => {
                quiet = Instant::now();
                if let Some((flow, sequence, payload)) = tcp(&packet[..length]) {
                    // Each passes twice: on its way out and on its way in.
                    flows.entry(flow).or_default().insert(sequence, payload.to_vec());
                }
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// The ports, the sequence number and the bytes of a packet of TCP over IPv4 on a loopback.
fn tcp(packet: &[u8]) -> Option<(Flow, u32, &[u8])> {
    let number = |bytes: &[u8], at: usize| bytes.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
    let ip = packet.get(14..).filter(|_| number(packet, 12) == Some(0x0800))?;
    let tcp = ip.get(usize::from(ip.first()? & 15) * 4..number(ip, 2)?.into()).filter(|_| ip[9] == 6)?;
    let payload = tcp.get(usize::from(tcp.get(12)? >> 4) * 4..).filter(|payload| !payload.is_empty())?;
    let sequence = u32::from_be_bytes(tcp[4..8].try_into().ok()?);
    Some(((number(tcp, 0)?, number(tcp, 2)?), sequence, payload))
}

/// The agent's requests and their answers were heard, and nothing in them is the credential.
pub fn check(heard: &[Vec<u8>], token: &str) {
    let has = |word: &str| heard.iter().any(|flow| memchr::memmem::find(flow, word.as_bytes()).is_some());
    assert!(has("POST /") && has("HTTP/1.1 200"), "the agent and its broker were heard: {} flows", heard.len());
    assert!(!has(token), "the credential is on the cell's loopback");
}
