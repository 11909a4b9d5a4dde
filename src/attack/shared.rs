//! Attacks on what no cell has for itself: what is counted, scheduled, locked and shown for a whole UID or a whole host.
#![forbid(unsafe_code)]

use std::fs::{self, File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::target::{Target, any, read_some};
use crate::attack::tried::{Miss, Tried, absent, blocked};
use crate::sys::attack::{kernel, process};

/// The mode that it has: the permission is the proof, and with another one every cell would stop.
pub(super) fn chmod_state_dir(t: &Target) -> Tried {
    let path = t.state_dir.as_ref().ok_or_else(|| absent("no state directory given"))?;
    let mode = fs::metadata(path)?.permissions().mode();
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(format!("the mode of {} can be set", path.display()))
}

/// A lease on a file holds up whoever opens it. One of our own is as good as any that the UID owns.
pub(super) fn lease(_: &Target) -> Tried {
    let own = format!("oubliette-attack-lease-{}", std::process::id());
    let leased = File::create_new(&own).map_err(Miss::from).and_then(|file| Ok(kernel::lease(file.as_fd())?));
    let _ = fs::remove_file(&own);
    leased.map(|()| "leased a file".into())
}

/// Without a name nobody waits for such a lock, and with one everybody who may read the file shares it.
pub(super) fn lock(_: &Target) -> Tried {
    let program = File::open("/proc/self/exe")?;
    let lock = Flock::lock(program, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    drop(lock);
    Ok("locked the program that both run".into())
}

/// Changes every process of the UID; whether the victim is among them its own value tells.
pub(super) fn renice_user(t: &Target) -> Tried {
    t.each_victim(|pid| {
        let before = process::nice_of(pid)?;
        // Its answer is an error already where one process of the UID has a higher one: the others are changed all the same.
        let tried = process::renice_user((before + 1).min(19));
        match process::nice_of(pid)? {
            after if after > before => Ok(format!("nice {after}")),
            _ => Err(tried.err().map_or_else(|| blocked("the victim's is as it was"), Into::into)),
        }
    })
}

pub(super) fn idle_user(t: &Target) -> Tried {
    t.each_victim(|pid| {
        let before = process::io_priority_of(pid)?;
        process::idle_io_user()?;
        match process::io_priority_of(pid)? {
            after if after != before => Ok("I/O class idle".into()),
            _ => Err(blocked("the victim's is as it was")),
        }
    })
}

/// The kernel signals the owner of a descriptor, whoever has been named. It asks for the right when it does so.
pub(super) fn owner(t: &Target) -> Tried {
    let (ours, theirs) = UnixStream::pair()?;
    t.each_victim(|pid| {
        process::set_owner(ours.as_fd(), pid, libc::SIGUSR1)?;
        kill(Pid::from_raw(pid), None)?;
        std::io::Write::write_all(&mut &theirs, b"x")?;
        Ok("the victim owns a descriptor of ours".into())
    })
}

pub(super) fn aio(_: &Target) -> Tried {
    Ok(kernel::aio_context().map(|()| "a context of the host's".into())?)
}

/// EOPNOTSUPP comes after two sockets of the family have been made.
pub(super) fn pairs(_: &Target) -> Tried {
    let families = [("inet", libc::AF_INET), ("inet6", libc::AF_INET6), ("tipc", libc::AF_TIPC)];
    let pair = |family| match kernel::socket_pair(family) {
        Ok(()) => Ok("pair made".into()),
        Err(Errno::EOPNOTSUPP) => Ok("two sockets made and given up".into()),
        Err(Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT) => Err(absent("no such family")),
        Err(errno) => Err(errno.into()),
    };
    any(families.into_iter().map(|(name, family)| (name, pair(family))), || absent("none"))
}

/// Of the whole host, and of what its users do: not the figures that `free` and `uptime` show.
pub(super) fn host_proc(_: &Target) -> Tried {
    let names = ["cmdline", "diskstats", "key-users", "locks", "swaps", "interrupts", "softirqs", "schedstat"];
    let read = |name: &str| -> Tried {
        match read_some(&Path::new("/proc").join(name))?.len() {
            0 => Err(blocked("empty")),
            length => Ok(format!("{length} bytes")),
        }
    };
    any(names.into_iter().map(|name| (name, read(name))), || absent("none"))
}

/// The path names the container, the service or the user that the launcher belongs to, and the cell.
pub(super) fn cgroup_path(_: &Target) -> Tried {
    let text = read_some(Path::new("/proc/self/cgroup"))?;
    let text = String::from_utf8_lossy(&text);
    let named = text.lines().find(|line| !line.ends_with(":/"));
    named.map(str::to_owned).ok_or_else(|| blocked("every hierarchy says /"))
}
