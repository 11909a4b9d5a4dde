//! Who is at the other end of a connection on the host's loopback, where anybody may connect. The kernel knows the UID
//! that made each socket, and lists it in /proc/net (proc_pid_net(5)); gVisor does, too.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use nix::unistd::Uid;

/// The tables of sockets. One of IPv6 reaches 127.0.0.1 by its mapped form.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];

/// The kernel lists sockets part by part, and one may change its place meanwhile.
const TRIES: u32 = 3;

/// Tells the agent's connections from those of others.
#[derive(Debug)]
pub struct Peers {
    tables: Vec<File>,
    agent: Uid,
}

impl Peers {
    /// Opens the tables, which a Landlock domain would not let us do later.
    ///
    /// # Errors
    /// There is none.
    pub fn open(agent: Uid) -> std::io::Result<Peers> {
        let opened = TABLES.map(File::open);
        // A kernel without IPv6 has the first one alone.
        let [tables, more] = opened;
        Ok(Peers { tables: std::iter::once(tables?).chain(more).collect(), agent })
    }

    /// Whether the agent's UID made the socket at the other end. One that is not listed, or closed by now, is nobody's.
    pub fn is_agents(&mut self, here: SocketAddr, there: SocketAddr) -> bool {
        let (SocketAddr::V4(here), SocketAddr::V4(there)) = (here, there) else { return false };
        let mut look = || self.tables.iter_mut().find_map(|table| owner(table, there, here));
        (0..TRIES).find_map(|_| look()) == Some(self.agent.as_raw())
    }
}

/// Who made the socket with these ends.
fn owner(table: &mut File, local: SocketAddrV4, remote: SocketAddrV4) -> Option<u32> {
    table.seek(SeekFrom::Start(0)).ok()?;
    let ends = format!("{} {}", shown(local), shown(remote));
    BufReader::new(table).lines().map_while(Result::ok).find_map(|line| listed(&line, &ends))
}

/// An address as the tables show it: the bytes of the network as a number of this machine's.
fn shown(address: SocketAddrV4) -> String {
    let number = |address: &Ipv4Addr| u32::from_ne_bytes(address.octets());
    format!("{:08X}:{:04X}", number(address.ip()), address.port())
}

/// `sl local remote st queues timer retransmits uid timeout inode …`: the UID, where these are the ends.
fn listed(line: &str, ends: &str) -> Option<u32> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, local, remote, _, _, _, _, uid, _, inode, ..] = fields[..] else { return None };
    // Of a mapped address, the last four bytes.
    let last = |end: &str| end.len().checked_sub("7F000001:0000".len()).and_then(|at| end.get(at..).map(str::to_owned));
    let mapped = |end: &str| end.len() == 13 || end.starts_with("0000000000000000FFFF0000");
    // Closed, it has no inode, and the UID is that of root.
    if inode == "0" || !mapped(local) || format!("{} {}", last(local)?, last(remote)?) != ends {
        return None;
    }
    uid.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddrV6, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_line_gives_the_uid_of_these_ends_alone() {
        let four =
            "   3: 0100007F:E808 0100007F:A5AF 01 00000000:00000000 00:00000000 00000000 50007        0 808333 2 0";
        let six = "   0: 0000000000000000FFFF00000100007F:E818 0000000000000000FFFF00000100007F:A5AF 01 00000000:00000000 \
                   00:00000000 00000000  7 0 9 2 0";
        let end = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let ends = |local, remote| format!("{} {}", shown(end(local)), shown(end(remote)));
        assert_eq!(listed(four, &ends(0xe808, 0xa5af)), Some(50007));
        assert_eq!(listed(six, &ends(0xe818, 0xa5af)), Some(7));
        assert_eq!(listed(four, &ends(0xa5af, 0xe808)), None, "our own end is not the other one");
        assert_eq!(listed(&four.replace("808333", "0"), &ends(0xe808, 0xa5af)), None);
        assert_eq!(listed(&six.replace("FFFF0000", "00000000"), &ends(0xe818, 0xa5af)), None);
        assert_eq!(listed("  sl  local_address rem_address   st", &ends(1, 2)), None);
    }

    #[test]
    fn the_kernel_knows_who_connects() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let here = listener.local_addr().unwrap();
        let mapped = SocketAddrV6::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped(), here.port(), 0, 0);
        let own = nix::unistd::geteuid();
        let mut peers = Peers::open(own).unwrap();
        let mut others = Peers::open(Uid::from_raw(own.as_raw() + 1)).unwrap();
        let six = std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
        for address in [here, SocketAddr::V6(mapped)].into_iter().take(1 + usize::from(six)) {
            let client = TcpStream::connect(address).unwrap();
            let (_accepted, there) = listener.accept().unwrap();
            assert!(peers.is_agents(here, there), "{address}");
            assert!(!others.is_agents(here, there));
            drop(client);
            // A fork of another test's may have it for a moment more.
            let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
            while peers.is_agents(here, there) {
                assert!(std::time::Instant::now() < until, "closed");
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
    }
}
