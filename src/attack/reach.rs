//! Attacks by what was left open: descriptors and terminals.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::target::{Target, any};
use crate::attack::tried::{Miss, Tried, absent, blocked};
use crate::sys::attack::kernel;

/// Tries each leaked descriptor that is a directory, or that is none.
fn each(t: &Target, directories: bool, act: impl Fn(fs::File) -> Tried) -> Tried {
    let tries = t.leaked.iter().filter_map(|&number| {
        let file = fs::File::from(kernel::duplicate(number).ok()?);
        let kind = SFlag::from_bits_truncate(fstat(&file).ok()?.st_mode & libc::S_IFMT);
        let name = fs::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
        (directories == (kind == SFlag::S_IFDIR)).then(|| (format!("{number}={}", name.display()), act(file)))
    });
    any(tries, || absent("none open"))
}

/// An open directory is a way round the root, the mounts and every check on the path to it.
pub(super) fn dir_open(t: &Target) -> Tried {
    each(t, true, |file| {
        let read = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let mut found = fs::File::from(openat(file.as_fd(), "secret.txt", read, Mode::empty())?);
        let mut bytes = Vec::new();
        found.read_to_end(&mut bytes)?;
        t.shows(&bytes, "secret.txt")
    })
}

pub(super) fn dir_list(t: &Target) -> Tried {
    each(t, true, |file| {
        let mut dir = nix::dir::Dir::from_fd(file.into())?;
        Ok(format!("lists {} names", dir.iter().count()))
    })
}

pub(super) fn file_read(t: &Target) -> Tried {
    each(t, false, |mut file| {
        // A pipe or socket may wait for ever; that it is open is enough.
        if file.seek(SeekFrom::Start(0)).is_err() {
            return Ok("is open".into());
        }
        let mut bytes = Vec::new();
        match file.take(1 << 16).read_to_end(&mut bytes) {
            Ok(_) => t.shows(&bytes, "file").or(Ok("is open".into())),
            Err(_) => Ok("is open, not readable".into()),
        }
    })
}

/// Terminals under 0, 1, 2 and the leaked numbers, and the controlling one.
fn each_terminal(t: &Target, act: impl Fn(i32) -> Result<(), Errno>) -> Tried {
    let controlling = fs::OpenOptions::new().read(true).write(true).open("/dev/tty").ok();
    let numbers = (0..3).chain(t.leaked.iter().copied()).filter(|&number| kernel::is_terminal(number));
    let numbers: Vec<i32> = numbers.chain(controlling.as_ref().map(AsRawFd::as_raw_fd)).collect();
    let tried = |number: i32| -> Tried {
        match act(number) {
            Ok(()) => Ok("obeyed".into()),
            Err(Errno::ENOTTY) => Err(absent("ENOTTY")),
            Err(errno) => Err(errno.into()),
        }
    };
    any(numbers.into_iter().map(|number| (number, tried(number))), || absent("no terminal"))
}

pub(super) fn push_input(t: &Target) -> Tried {
    each_terminal(t, kernel::push_input)
}

pub(super) fn console(t: &Target) -> Tried {
    each_terminal(t, kernel::console_request)
}

fn devices(dir: &str, wanted: impl Fn(&str, &fs::FileType) -> bool) -> Tried {
    let nodes = fs::read_dir(dir)?.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        wanted(&name, &entry.file_type().ok()?).then(|| entry.path())
    });
    let open = |path: &Path| -> Tried {
        // O_PATH would prove nothing; O_NONBLOCK and O_NOCTTY keep the open itself without effect.
        fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
        Ok("opened".into())
    };
    any(nodes.map(|path| (path.display().to_string(), open(&path))), || absent("none there"))
}

/// Terminals of others: all but our own.
pub(super) fn terminals(_: &Target) -> Tried {
    let own: Vec<_> = (0..3).filter_map(|number| fs::read_link(format!("/proc/self/fd/{number}")).ok()).collect();
    let foreign = |name: &str, _: &fs::FileType| {
        name != "ptmx" && !own.iter().any(|path| path == Path::new(&format!("/dev/pts/{name}")))
    };
    devices("/dev/pts", foreign)
}

/// A share that a cell may have is a fraction of this.
const MANY: usize = 1024;

/// Takes every pseudo-terminal that there is, so that nobody else gets one.
pub(super) fn take_terminals(_: &Target) -> Tried {
    let open = || fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/ptmx");
    let mut taken = Vec::new();
    loop {
        match open() {
            Ok(_) if taken.len() == MANY => return Ok(format!("took {MANY}")),
            Ok(one) => taken.push(one),
            Err(error) if taken.is_empty() => return Err(error.into()),
            Err(error) => return Err(blocked(format!("{} and no more: {error}", taken.len()))),
        }
    }
}

pub(super) fn block_devices(_: &Target) -> Tried {
    devices("/dev", |_, kind| kind.is_block_device())
}

/// By name: merely opening some others (a watchdog) has effects.
pub(super) fn kernel_devices(_: &Target) -> Tried {
    const DOORS: [&str; 10] =
        ["mem", "kmem", "port", "kmsg", "kvm", "fuse", "uinput", "vhost-net", "vhost-vsock", "userfaultfd"];
    devices("/dev", |name, _| DOORS.contains(&name))
}

/// Own cwd kept open beyond the root: climbs from each leaked directory.
pub(super) fn dir_climb(t: &Target) -> Tried {
    use std::os::unix::fs::MetadataExt;
    let root = fs::metadata("/").map(|m| (m.dev(), m.ino()))?;
    each(t, true, |file| {
        let up = "../".repeat(64);
        let top = openat(file.as_fd(), up.as_str(), OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())?;
        let found = fstat(&top)?;
        if (found.st_dev, found.st_ino) == root {
            return Err::<_, Miss>(blocked("ends at the root"));
        }
        Ok("leads outside the root".into())
    })
}
