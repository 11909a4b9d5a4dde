//! The private root: an allow-list of read-only mounts, and HOME, /tmp, /dev/shm and the workspace on one tmpfs of a
//! limited size that dies with the mount namespace.
#![forbid(unsafe_code)]

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, mknod};
use nix::unistd::{chdir, chown, mkdir, pivot_root, symlinkat};

use crate::confine::failure::Failure;
use crate::fs::walk::CheckedDirectory;
use crate::host::Step;
use crate::host::facts::{Kind, Shown};
use crate::plan::Root;
use crate::sys;
use crate::sys::ids::Ids;
use crate::types::layout::{CellFile, DEVICES, HOME, SETTINGS, WORK};
use crate::types::paths::WorkName;

/// Places on the tmpfs that the agent may write to, and the directory of the tmpfs behind each.
const WRITABLE: [(&str, &str); 4] = [(HOME, "home"), ("/tmp", "tmp"), (WORK, "work"), ("/dev/shm", "shm")];

/// The kernel takes no larger number (NR_UNIX98_PTY_MAX).
const MOST_TERMINALS: u32 = 1 << 20;

/// An empty file of the new root.
const NOTHING: &str = "etc/oubliette/nothing";

/// What fails where a name of the workspace cannot be hidden.
pub const HIDE: &str = "hide";

/// What the root is made of.
#[derive(Debug)]
pub struct Tree<'a> {
    /// From the plan.
    pub root: &'a Root,
    /// An empty directory of the launcher's, over which the tmpfs is mounted.
    pub at: &'a Path,
    /// What the tmpfs is called among the mounts.
    pub source: &'a str,
    /// Files of the launcher's.
    pub files: &'a [CellFile],
    /// The caller's workspace; else it is a fresh one on the tmpfs.
    pub workspace: Option<&'a CheckedDirectory>,
    /// Names at the top of the workspace that the agent does not see.
    pub hidden: &'a [WorkName],
    /// The agent.
    pub agent: Ids,
    /// The launcher.
    pub launcher: Ids,
}

type Done<T = ()> = Result<T, Failure>;

impl Tree<'_> {
    /// Mounts the tmpfs and lays out what will be the root; gives the directory of the tmpfs.
    ///
    /// # Errors
    /// The mount or file that could not be made.
    pub fn lay_out(&self) -> Done<OwnedFd> {
        let private = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>);
        private.map_err(|errno| failure(errno, "stop mounts from spreading to the host"))?;
        let options = format!("mode=0700,size={},nr_inodes={}", self.root.disk.0, self.root.files);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some(self.source), self.at, Some("tmpfs"), flags, Some(options.as_str()))
            .map_err(|errno| failure(errno, "mount the cell's tmpfs"))?;
        chdir(self.at).map_err(|errno| failure(errno, "enter the cell's tmpfs"))?;
        for name in ["root", "home", "tmp", "work", "shm", "base"] {
            let mode = if name == "root" { 0o755 } else { 0o700 };
            DirBuilder::new().mode(mode).create(name).map_err(|error| failed(&error, &format!("make {name}")))?;
        }
        self.make_mount_points()?;
        if !self.hidden.is_empty() {
            file(&Path::new("root").join(NOTHING))?;
        }
        self.write_files()?;
        if self.agent != self.launcher {
            for (_, name) in WRITABLE {
                let owned = chown(name, Some(self.agent.uid), Some(self.agent.gid));
                owned.map_err(|errno| failure(errno, &format!("give {name} to the agent")))?;
            }
        }
        let top = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(".");
        top.map(OwnedFd::from).map_err(|error| failed(&error, "open the cell's tmpfs"))
    }

    /// Mounts everything over the laid-out root and makes it the root.
    ///
    /// # Errors
    /// The mount that could not be made.
    pub fn enter(&self) -> Done {
        bind("root", "root")?;
        read_only("root")?;
        chdir("root").map_err(|errno| failure(errno, "enter the new root"))?;
        for (place, name) in WRITABLE {
            match self.workspace.filter(|_| place == WORK) {
                None => bind(format!("../{name}"), inside(Path::new(place)))?,
                Some(directory) => bind_checked(directory, inside(Path::new(place)))?,
            }
        }
        self.hide()?;
        for Shown { path, kind } in &self.root.shown {
            match kind {
                Kind::Link(_) => continue,
                Kind::File => bind_file(path, inside(path))?,
                // Nothing but a directory is mounted over one (ENOTDIR).
                Kind::Directory => bind(path, inside(path))?,
            }
            read_only(inside(path))?;
        }
        self.devices()?;
        self.proc()?;
        pivot_root(".", ".").map_err(|errno| Failure::at(Step::Pivot, errno, "make it the root"))?;
        umount2(".", MntFlags::MNT_DETACH).map_err(|errno| failure(errno, "leave the old root"))?;
        chdir("/").map_err(|errno| failure(errno, "enter the new root"))
    }

    /// Covers what the agent must not see of the workspace: a mount point can be neither changed, renamed nor removed in
    /// the cell, and outside of it the workspace stays as it is. Names that are not there are nothing to cover.
    fn hide(&self) -> Done {
        if self.hidden.is_empty() {
            return Ok(());
        }
        let work = openat(
            AT_FDCWD,
            inside(Path::new(WORK)),
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| failure(errno, "look into the workspace"))?;
        for name in self.hidden {
            let object = || format!("{HIDE} {} of the workspace", name.as_str());
            // The name itself: what a link leads to is read all the same, and nothing can be mounted over a link.
            let here =
                match openat(&work, name.as_str(), OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
                {
                    Err(Errno::ENOENT) => continue,
                    opened => opened.map_err(|errno| plain(errno, &object()))?,
                };
            let stat = fstat(&here).map_err(|errno| plain(errno, &object()))?;
            let cover = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
                // /sys of the new root is an empty directory. Both are read-only as the root is.
                SFlag::S_IFDIR => "sys",
                SFlag::S_IFLNK => return Err(plain(Errno::ELOOP, &object())),
                _ => NOTHING,
            };
            bind(cover, format!("/proc/self/fd/{}", here.as_raw_fd()))?;
        }
        Ok(())
    }

    fn make_mount_points(&self) -> Done {
        for place in ["/dev/pts", "/dev/shm", "/proc", "/sys", "/run", "/var", "/root", HOME, "/tmp", WORK, SETTINGS] {
            directory(&behind(Path::new(place)))?;
        }
        for (link, target) in [
            ("dev/fd", "/proc/self/fd"),
            ("dev/stdin", "/proc/self/fd/0"),
            ("dev/stdout", "/proc/self/fd/1"),
            ("dev/stderr", "/proc/self/fd/2"),
            ("dev/ptmx", "pts/ptmx"),
            ("var/tmp", "../tmp"),
        ] {
            self::link(Path::new(target), &Path::new("root").join(link))?;
        }
        for device in DEVICES {
            file(&Path::new("root/dev").join(device))?;
        }
        for Shown { path, kind } in &self.root.shown {
            let point = behind(path);
            match kind {
                Kind::Directory => directory(&point)?,
                Kind::File => file(&point)?,
                Kind::Link(target) => link(target, &point)?,
            }
        }
        Ok(())
    }

    fn write_files(&self) -> Done {
        for CellFile { path, bytes, mode, to_agent } in self.files {
            let place = behind(path);
            let object = || format!("write {}", path.display());
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(*mode).custom_flags(libc::O_NOFOLLOW);
            let opened = match (options.open(&place), place.parent()) {
                (Err(error), Some(parent)) if error.kind() == std::io::ErrorKind::NotFound => {
                    directory(parent)?;
                    options.open(&place)
                }
                (opened, _) => opened,
            };
            let mut file = opened.map_err(|error| failed(&error, &object()))?;
            file.write_all(bytes).map_err(|error| failed(&error, &object()))?;
            if self.agent != self.launcher && (*to_agent || path.starts_with(HOME)) {
                self.give_up_to_home(&place, *to_agent)?;
            }
        }
        Ok(())
    }

    /// The directories down to a file in HOME are the agent's, and mostly the file.
    fn give_up_to_home(&self, place: &Path, file: bool) -> Done {
        let ours = place.ancestors().skip(usize::from(!file)).take_while(|path| path.components().count() > 1);
        for path in ours {
            let owned = chown(path, Some(self.agent.uid), Some(self.agent.gid));
            owned.map_err(|errno| failure(errno, &format!("give {} to the agent", path.display())))?;
        }
        Ok(())
    }

    /// Nodes of the host's, one by one: a bind of /dev would show every disk.
    fn devices(&self) -> Done {
        for device in DEVICES {
            bind(Path::new("/dev").join(device), Path::new("dev").join(device))?;
        }
        // Terminals of the cell's own: those of the host's /dev/pts are other people's.
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        // Without `max` an instance takes all that the host has (kernel.pty.max) but a reserve for the first one.
        let max = self.root.terminals.min(MOST_TERMINALS);
        let options = format!("newinstance,ptmxmode=0666,mode=0620,max={max}");
        mount(Some("devpts"), "dev/pts", Some("devpts"), flags, Some(options.as_str()))
            .map_err(|errno| failure(errno, "mount /dev/pts"))
    }

    fn proc(&self) -> Done {
        if !self.root.fresh_proc {
            bind("/proc", "proc")?;
            return read_only("proc");
        }
        let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        // Read-only covers what OCI runtimes cover one by one: /proc/sys, irq, bus, fs, sysrq-trigger.
        flags.set(MsFlags::MS_RDONLY, !self.root.writable_proc);
        mount(Some("proc"), "proc", Some("proc"), flags, None::<&str>)
            .map_err(|errno| Failure::at(Step::Proc, errno, "mount /proc"))?;
        for (name, kind) in &self.root.masked {
            // /sys of the new root is an empty read-only directory.
            let cover = if *kind == Kind::Directory { "sys" } else { "dev/null" };
            bind(cover, Path::new("proc").join(name))?;
        }
        Ok(())
    }
}

/// A path of the cell, relative to its root.
fn inside(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Where on the tmpfs a path of the cell is.
fn behind(path: &Path) -> PathBuf {
    // In a cell /var/tmp is a link to /tmp, so what is shown there is on the tmpfs behind /tmp.
    for (place, name) in WRITABLE.into_iter().chain([("/var/tmp", "tmp")]) {
        if let Ok(rest) = path.strip_prefix(place)
            && !rest.as_os_str().is_empty()
        {
            return Path::new(name).join(rest);
        }
    }
    Path::new("root").join(inside(path))
}

fn directory(path: &Path) -> Done {
    made("make", path, || mkdir(path, Mode::from_bits_truncate(0o755)))
}

fn file(path: &Path) -> Done {
    made("make", path, || mknod(path, SFlag::S_IFREG, Mode::from_bits_truncate(0o444), 0))
}

fn link(target: &Path, path: &Path) -> Done {
    made("link", path, || symlinkat(target, AT_FDCWD, path))
}

/// Makes a name where it is missing. The directories above it are mostly there: they are made when the kernel says
/// that they are not.
fn made(verb: &str, path: &Path, make: impl Fn() -> Result<(), Errno>) -> Done {
    let mut done = make();
    if let (Err(Errno::ENOENT), Some(parent)) = (done, path.parent()) {
        directory(parent)?;
        done = make();
    }
    match done {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(plain(errno, &format!("{verb} {}", path.display()))),
    }
}

/// Recursive, because a user namespace may not tear a mount off what is mounted below it (mount_namespaces(7)).
fn bind(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Done {
    let (from, to) = (from.as_ref(), to.as_ref());
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(from), to, None::<&str>, flags, None::<&str>)
        .map_err(|errno| failure(errno, &format!("show {}", from.display())))
}

fn read_only(path: impl AsRef<Path>) -> Done {
    restrict(path.as_ref(), true)
}

fn restrict(path: &Path, read_only: bool) -> Done {
    let object = || format!("restrict {}", path.display());
    sys::mounts::restrict_tree(path, read_only, false).map_err(|errno| failure(errno, &object()))
}

/// Binds a regular file, or nothing: since it was looked at, whoever owns its directory may have put a socket, a device
/// or a link into its place.
fn bind_file(from: &Path, to: &Path) -> Done {
    let object = || format!("show {}", from.display());
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let here = openat(AT_FDCWD, from, flags, Mode::empty()).map_err(|errno| failure(errno, &object()))?;
    let stat = fstat(&here).map_err(|errno| plain(errno, &object()))?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(plain(Errno::ESTALE, &object()));
    }
    bind(format!("/proc/self/fd/{}", here.as_raw_fd()), to)
}

/// Binds the directory that was checked, or nothing: whoever owns a parent of it could put another into its place.
fn bind_checked(directory: &CheckedDirectory, to: &Path) -> Done {
    let object = || format!("show workspace {}", directory.path.display());
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(&directory.path);
    let here = opened.map_err(|error| failed(&error, &object()))?;
    let meta = here.metadata().map_err(|error| failed(&error, &object()))?;
    let checked = nix::sys::stat::fstat(&directory.fd).map_err(|errno| failure(errno, &object()))?;
    if (meta.dev(), meta.ino()) != (checked.st_dev, checked.st_ino) {
        return Err(failure(Errno::ESTALE, &object()));
    }
    bind(format!("/proc/self/fd/{}", here.as_raw_fd()), to)?;
    restrict(to, false)
}

fn failure(errno: Errno, action: &str) -> Failure {
    Failure::at(Step::Mount, errno, action)
}

fn failed(error: &std::io::Error, action: &str) -> Failure {
    plain(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)), action)
}

/// A full tmpfs or a missing file says nothing of the host.
fn plain(errno: Errno, action: &str) -> Failure {
    Failure::plain(errno, action)
}
