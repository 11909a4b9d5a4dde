//! What the attacker knows about its victim: the victim's own words, and what the host's side adds.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::attack::tried::{Miss, Tried, absent, blocked};
use crate::sys::attack::ipc;

/// Any free port of this host. An address, never its name: one look-up by name in the program would link the C
/// library's resolver, which loads the host's NSS modules.
pub(crate) const LOOPBACK: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

/// A directory or file and the inode that it is for its owner.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Place {
    /// What it is to its owner: `home`, `work`, `tmp`, `shm`.
    pub what: String,
    /// Its path as the owner sees it.
    pub path: PathBuf,
    /// The device.
    pub dev: u64,
    /// The inode.
    pub ino: u64,
}

impl Place {
    /// Whether `path` names the same object here: the same path may be another one in another mount namespace.
    pub(crate) fn is_here(&self) -> Result<(), Miss> {
        use std::os::unix::fs::MetadataExt;
        let found = std::fs::symlink_metadata(&self.path)?;
        if (found.dev(), found.ino()) == (self.dev, self.ino) { Ok(()) } else { Err(blocked("another object")) }
    }
}

/// The coordinates: one JSON object.
///
/// The secret that every object carries is not in it, only its mirror image: the attacker's own arguments must not
/// look like a find.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Target {
    /// The secret, backwards.
    pub nonce: String,
    /// The victim's process id as it sees it.
    pub pid: i32,
    /// The victim's user id as it sees it.
    pub uid: u32,
    /// Its own directories (0700), each with `secret.txt`, `victim.txt` and `sock`.
    pub dirs: Vec<Place>,
    /// HOME and the temporary directory.
    pub places: Vec<Place>,
    /// A 0600 file directly in the temporary directory.
    pub tmp_file: Option<PathBuf>,
    /// A 0600 file directly in /dev/shm.
    pub shm_file: Option<PathBuf>,
    /// A 0777 socket directly in the temporary directory.
    pub tmp_socket: Option<PathBuf>,
    /// Name of an abstract socket.
    pub abstract_socket: Option<String>,
    /// Port of a TCP listener on 127.0.0.1.
    pub tcp: Option<u16>,
    /// Port of a UDP socket on 127.0.0.1.
    pub udp: Option<u16>,
    /// Id of a System V shared memory segment.
    pub shm: Option<i32>,
    /// Id of a System V semaphore set.
    pub sem: Option<i32>,
    /// Id of a System V message queue.
    pub msg: Option<i32>,
    /// Name of a POSIX message queue, without the slash.
    pub mq: Option<String>,
    /// Number of a memfd in the victim.
    pub memfd: Option<i32>,
    /// Serial number of a key.
    pub key: Option<i32>,
    /// Name of that key.
    pub key_name: Option<String>,
    /// Address of the secret in the victim's memory.
    pub memory: usize,
    /// Whether the secret is in the victim's arguments.
    pub argv: bool,
    /// Whether the secret is in the victim's environment.
    pub environ: bool,
    /// Port of its broker on 127.0.0.1.
    pub broker: Option<u16>,
    /// What the victim could not make, and the errno.
    pub absent: BTreeMap<String, String>,

    /// Added from outside: the victim's process id on the host.
    pub host_pid: Option<i32>,
    /// Added from outside: the process id of the victim's launcher.
    pub launcher_pid: Option<i32>,
    /// Added from outside: the directory of the victim's cell.
    pub cell_dir: Option<PathBuf>,
    /// Added from outside: the launcher's state directory.
    pub state_dir: Option<PathBuf>,
    /// Added from outside: the attacker's own settings file, which it must not be able to change.
    pub settings: Option<PathBuf>,
    /// Added from outside: the port of a listener on 127.0.0.1 of the host.
    pub host_tcp: Option<u16>,
    /// Added from outside: the port of a datagram socket there.
    pub host_udp: Option<u16>,
    /// Added from outside: a socket with a path on the host that everybody may connect to.
    pub host_socket: Option<PathBuf>,
    /// Added from outside: one for datagrams.
    pub host_datagram: Option<PathBuf>,
    /// Added from outside: attacks that must not be tried, and why.
    pub untried: BTreeMap<String, String>,
    /// Added from outside: nothing else than victim and attacker can be reached by kill(-1).
    pub allow_kill_all: bool,
    /// Added from outside: process 1 is the attacker's own cell's.
    pub own_init: bool,
    /// Added from outside: the victim shall live to report.
    pub spare_victim: bool,

    /// The attacker's own phantom.
    #[serde(skip)]
    pub phantom: Option<String>,
    /// Descriptors above 2 that were open at the start.
    #[serde(skip)]
    pub leaked: Vec<i32>,
}

impl Target {
    /// The secret.
    pub fn marker(&self) -> String {
        self.nonce.chars().rev().collect()
    }

    /// Removes every object, so that a run without a cell leaves nothing either, and one whose victim was killed.
    pub fn remove(&self) {
        for place in &self.dirs {
            let _ = std::fs::remove_dir_all(&place.path);
        }
        for path in [&self.tmp_file, &self.shm_file, &self.tmp_socket].into_iter().flatten() {
            let _ = std::fs::remove_file(path);
        }
        self.shm.into_iter().for_each(ipc::shm_remove);
        self.sem.into_iter().for_each(ipc::sem_remove);
        self.msg.into_iter().for_each(ipc::msg_remove);
        self.key.into_iter().for_each(ipc::key_drop);
        if let Some(name) = self.mq.clone().and_then(|name| CString::new(name).ok()) {
            ipc::mq_remove(&name);
        }
    }

    /// Proof that `bytes` hold the secret.
    pub(crate) fn shows(&self, bytes: &[u8], what: &str) -> Tried {
        let marker = self.marker();
        if !marker.is_empty() && bytes.windows(marker.len()).any(|part| part == marker.as_bytes()) {
            Ok(format!("{what}: the secret"))
        } else {
            Err(blocked(format!("{what}: no secret in {} bytes", bytes.len())))
        }
    }

    /// Reads a file for the secret.
    pub(crate) fn read(&self, path: &Path) -> Tried {
        self.shows(&read_some(path)?, &path.display().to_string())
    }

    /// Why the victim has no such object.
    pub(crate) fn lacks(&self, what: &str) -> Miss {
        let why = self.absent.get(what).map_or("not in the coordinates", String::as_str);
        absent(format!("the victim has no {what}: {why}"))
    }

    /// Tries something on each of the victim's directories: one that works is enough.
    pub(crate) fn each_dir(&self, act: impl Fn(&Path) -> Tried) -> Tried {
        any(self.dirs.iter().map(|place| (place.what.as_str(), act(&place.path))), || self.lacks("directory"))
    }

    /// The process ids under which the victim may be reached from here: never the attacker's own or its parent's.
    pub(crate) fn victims(&self) -> Result<Vec<i32>, Miss> {
        let mut found = crate::attack::target::find(self, "cmdline");
        if let Some(pid) = self.host_pid
            && !found.contains(&pid)
            && !self.is_somebody_else(pid)
        {
            found.push(pid);
        }
        found.retain(|&pid| !self.is_ours(pid));
        if found.is_empty() { Err(blocked("no process of the victim in sight")) } else { Ok(found) }
    }

    /// Numbers that in this process' namespace cannot be anybody else's.
    pub(crate) fn is_ours(&self, pid: i32) -> bool {
        let own = [std::process::id() as i32, std::os::unix::process::parent_id() as i32];
        own.contains(&pid) || self.own_init && pid == 1
    }

    /// A number may belong to another process in this namespace; only a readable command line can tell.
    fn is_somebody_else(&self, pid: i32) -> bool {
        let line = read_some(Path::new(&format!("/proc/{pid}/cmdline"))).unwrap_or_default();
        self.argv && !line.is_empty() && self.shows(&line, "").is_err()
    }

    /// Tries something on each process of the victim.
    pub(crate) fn each_victim(&self, act: impl Fn(i32) -> Tried) -> Tried {
        let victims = self.victims()?;
        any(victims.iter().map(|&pid| (pid, act(pid))), || absent("no process"))
    }
}

/// The first megabyte of a file.
pub(crate) fn read_some(path: &Path) -> Result<Vec<u8>, Miss> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(1 << 20).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// One success is a success; without one, every failure is named once.
pub(crate) fn any<N: std::fmt::Display>(tries: impl Iterator<Item = (N, Tried)>, none: impl FnOnce() -> Miss) -> Tried {
    let (mut proofs, mut stopped, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    for (name, tried) in tries {
        match tried {
            Ok(proof) => proofs.push(format!("{name} {proof}")),
            Err(Miss::Blocked(why)) => stopped.push(format!("{name} {why}")),
            Err(Miss::Absent(why)) => missing.push(format!("{name} {why}")),
        }
    }
    if !proofs.is_empty() {
        Ok(proofs.join(", "))
    } else if !stopped.is_empty() {
        Err(Miss::Blocked(stopped.join(", ")))
    } else if !missing.is_empty() {
        Err(Miss::Absent(missing.join(", ")))
    } else {
        Err(none())
    }
}

/// Every process id that /proc lists.
pub(crate) fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The processes whose file `leaf` shows the secret.
pub(crate) fn find(t: &Target, leaf: &str) -> Vec<i32> {
    let shows = |pid: &i32| read_some(&of(*pid, leaf)).is_ok_and(|bytes| t.shows(&bytes, leaf).is_ok());
    pids().into_iter().filter(shows).collect()
}

pub(crate) fn of(pid: i32, leaf: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{leaf}"))
}
