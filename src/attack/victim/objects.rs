//! Making the objects, and removing them.
#![forbid(unsafe_code)]

use std::ffi::CString;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::attack::target::{LOOPBACK, Place, Target};
use crate::sys::attack::ipc;

/// What the victim holds open while it lives.
pub(super) struct Objects {
    /// The coordinates.
    pub(super) target: Target,
    /// What listeners there are, each with its name in the damage list.
    pub(super) listeners: Vec<(String, Listener)>,
    memory: &'static [u8],
    _memfd: Option<OwnedFd>,
}

/// A socket that somebody may talk to.
pub(super) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Objects {
    /// Makes everything that this cell allows; what it does not is named in `absent`.
    pub(super) fn make(nonce: &str) -> Objects {
        let target = Target { nonce: nonce.to_owned(), pid: std::process::id() as i32, ..Target::default() };
        let memory: &'static [u8] = Box::leak(target.marker().into_bytes().into_boxed_slice());
        let mut objects = Objects { target, listeners: Vec::new(), memory, _memfd: None };
        objects.target.memory = objects.memory.as_ptr() as usize;
        objects.target.uid = nix::unistd::getuid().as_raw();
        objects.target.broker = crate::attack::broker::own_port();
        objects.files();
        objects.sockets();
        objects.kernel_objects();
        objects
    }

    /// The secret, which its memory must still hold.
    pub(super) fn secret(&self) -> &[u8] {
        self.memory
    }

    /// Keeps what was made, or notes why not.
    fn note<T>(&mut self, what: &str, made: Result<T, impl Into<std::io::Error>>) -> Option<T> {
        match made {
            Ok(made) => Some(made),
            Err(error) => {
                let error: std::io::Error = error.into();
                let why = error.raw_os_error().map_or(error.to_string(), |n| format!("{:?}", Errno::from_raw(n)));
                self.target.absent.insert(what.to_owned(), why);
                None
            }
        }
    }

    fn files(&mut self) {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let tmp = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
        let cwd = std::env::current_dir().ok();
        let shm = PathBuf::from("/dev/shm");
        let bases = [("home", home.clone()), ("work", cwd), ("tmp", Some(tmp.clone())), ("shm", Some(shm.clone()))];
        for (what, base) in bases.iter().filter_map(|(what, base)| Some((*what, base.as_deref()?))) {
            if self.target.dirs.iter().any(|place| place.path.parent() == Some(base)) {
                continue;
            }
            let made = private_dir(what, base, &self.target);
            let made = self.note(&format!("dir {what}"), made);
            self.target.dirs.extend(made);
        }
        for (what, path) in [("home", home), ("tmp", Some(tmp.clone()))] {
            self.target.places.extend(path.and_then(|path| place(what, path).ok()));
        }
        let secret = self.target.marker();
        let file = |dir: &Path| -> std::io::Result<PathBuf> {
            let path = dir.join(format!("oubliette-victim-file-{}", self.target.nonce));
            private_file(&path, &secret)?;
            Ok(path)
        };
        let (in_tmp, in_shm) = (file(&tmp), file(&shm));
        self.target.tmp_file = self.note("tmp_file", in_tmp);
        self.target.shm_file = self.note("shm_file", in_shm);
    }

    fn sockets(&mut self) {
        for place in self.target.dirs.clone() {
            let made = UnixListener::bind(place.path.join("sock"));
            self.listen(&format!("path socket in {}", place.what), made.map(Listener::Unix));
        }
        let nonce = self.target.nonce.clone();
        let name = format!("oubliette-victim-{nonce}");
        let made = SocketAddr::from_abstract_name(&name).and_then(|address| UnixListener::bind_addr(&address));
        if self.listen("abstract_socket", made.map(Listener::Unix)) {
            self.target.abstract_socket = Some(name);
        }
        let tmp = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
        let path = tmp.join(format!("ov-{}.sock", &nonce[..nonce.len().min(16)]));
        let made = UnixListener::bind(&path);
        let made = made.and_then(|l| fs::set_permissions(&path, Permissions::from_mode(0o777)).map(|()| l));
        if self.listen("tmp_socket", made.map(Listener::Unix)) {
            self.target.tmp_socket = Some(path);
        }
        let made = TcpListener::bind(LOOPBACK);
        self.target.tcp = made.as_ref().ok().and_then(|l| l.local_addr().ok()).map(|address| address.port());
        self.listen("tcp", made.map(Listener::Tcp));
        let made = UdpSocket::bind(LOOPBACK);
        self.target.udp = made.as_ref().ok().and_then(|l| l.local_addr().ok()).map(|address| address.port());
        self.listen("udp", made.map(Listener::Udp));
    }

    fn listen(&mut self, what: &str, made: std::io::Result<Listener>) -> bool {
        let made = made.and_then(|listener| {
            match &listener {
                Listener::Unix(l) => l.set_nonblocking(true)?,
                Listener::Tcp(l) => l.set_nonblocking(true)?,
                Listener::Udp(l) => l.set_nonblocking(true)?,
            }
            Ok(listener)
        });
        let made = self.note(what, made);
        let there = made.is_some();
        self.listeners.extend(made.map(|listener| (what.to_owned(), listener)));
        there
    }

    fn kernel_objects(&mut self) {
        let secret = self.target.marker();
        let name = format!("oubliette-victim-{}", self.target.nonce);
        self.target.shm = self.note("shm", ipc::shm_make(secret.as_bytes()));
        self.target.sem = self.note("sem", ipc::sem_make());
        self.target.msg = self.note("msg", ipc::msg_make(secret.as_bytes()));
        let c_name = CString::new(name.clone()).unwrap_or_default();
        self.target.mq = self.note("mq", ipc::mq_make(&c_name, secret.as_bytes())).map(|_| name.clone());
        self.target.key = self.note("key", ipc::key_add(&c_name, secret.as_bytes(), ipc::USER_KEYRING));
        self.target.key_name = Some(name);
        let memfd = nix::sys::memfd::memfd_create(c"victim", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
        let memfd = self.note("memfd", memfd);
        self.target.memfd = memfd.as_ref().map(AsRawFd::as_raw_fd);
        self._memfd = memfd.filter(|fd| nix::unistd::write(fd, secret.as_bytes()).is_ok());
    }
}

fn place(what: &str, path: PathBuf) -> std::io::Result<Place> {
    let found = fs::symlink_metadata(&path)?;
    Ok(Place { what: what.to_owned(), path, dev: found.dev(), ino: found.ino() })
}

fn private_dir(what: &str, base: &Path, target: &Target) -> std::io::Result<Place> {
    // Short: a socket's path has 107 bytes.
    let path = base.join(format!("ov-{}", &target.nonce[..target.nonce.len().min(16)]));
    DirBuilder::new().mode(0o700).create(&path)?;
    private_file(&path.join("secret.txt"), &target.marker())?;
    private_file(&path.join("victim.txt"), "untouched")?;
    place(what, path)
}

fn private_file(path: &Path, content: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content.as_bytes())
}
