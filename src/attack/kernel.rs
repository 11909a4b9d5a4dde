//! Attacks on the kernel's own doors: other entries, namespaces, mounts, ids, global files.
#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, Gid, Uid, access};

use super::target::{Target, any, read_some};
use crate::attack::tried::{Miss, Tried, absent, blocked};
use crate::sys::attack::kernel;

pub(super) fn int80(_: &Target) -> Tried {
    match kernel::getpid_by_int80() {
        None => Err(absent("not on this machine")),
        Some(pid) if pid == std::process::id() as i32 => Ok("getpid answered".into()),
        Some(answer) => Err(nix::errno::Errno::from_raw(-answer).into()),
    }
}

pub(super) fn x32(_: &Target) -> Tried {
    Ok(kernel::getpid_by_x32().map(|pid| format!("getpid answered {pid}"))?)
}

pub(super) fn userfaultfd(_: &Target) -> Tried {
    Ok(kernel::userfaultfd().map(|_| "opened".into())?)
}

pub(super) fn bpf(_: &Target) -> Tried {
    Ok(kernel::bpf_map().map(|_| "map made".into())?)
}

pub(super) fn perf(_: &Target) -> Tried {
    Ok(kernel::perf_event().map(|_| "counter opened".into())?)
}

pub(super) fn log(_: &Target) -> Tried {
    Ok(kernel::kernel_log().map(|bytes| format!("{bytes} bytes"))?)
}

pub(super) fn handle(_: &Target) -> Tried {
    let here = fs::File::open(".")?;
    Ok(kernel::open_by_handle(here.as_fd()).map(|_| "opened an inode by number".into())?)
}

pub(super) fn unshare_user(_: &Target) -> Tried {
    Ok(unshare(CloneFlags::CLONE_NEWUSER).map(|()| "a user namespace".into())?)
}

pub(super) fn clone_user(_: &Target) -> Tried {
    Ok(kernel::clone_into(libc::CLONE_NEWUSER).map(|()| "a user namespace".into())?)
}

pub(super) fn clone3_user(_: &Target) -> Tried {
    Ok(kernel::clone3_into(libc::CLONE_NEWUSER).map(|()| "a user namespace".into())?)
}

pub(super) fn unshare_others(_: &Target) -> Tried {
    let kinds = [
        ("mnt", CloneFlags::CLONE_NEWNS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ];
    let enter = |kind: CloneFlags| -> Tried { Ok(unshare(kind).map(|()| "entered".into())?) };
    any(kinds.into_iter().map(|(name, kind)| (name, enter(kind))), || absent("none"))
}

fn mount_here() -> Tried {
    let at = PathBuf::from(format!("oubliette-attack-mount-{}", std::process::id()));
    fs::create_dir(&at)?;
    let mounted = mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), None::<&str>);
    if mounted.is_ok() {
        let _ = umount(&at);
    }
    let _ = fs::remove_dir(&at);
    Ok(mounted.map(|()| "mounted a tmpfs".into())?)
}

pub(super) fn mount_plain(_: &Target) -> Tried {
    mount_here()
}

pub(super) fn mount_nested(_: &Target) -> Tried {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    mount_here()
}

pub(super) fn fsopen(_: &Target) -> Tried {
    Ok(kernel::fsopen().map(|_| "a file system context".into())?)
}

pub(super) fn open_tree(_: &Target) -> Tried {
    Ok(kernel::open_tree().map(|_| "a copy of the root mount".into())?)
}

pub(super) fn chroot(_: &Target) -> Tried {
    Ok(nix::unistd::chroot(".").map(|()| "changed root".into())?)
}

pub(super) fn make_node(_: &Target) -> Tried {
    let at = PathBuf::from(format!("oubliette-attack-node-{}", std::process::id()));
    mknod(&at, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 1))?;
    fs::remove_file(&at)?;
    Ok("made a device node for /dev/mem".into())
}

pub(super) fn become_root(_: &Target) -> Tried {
    if nix::unistd::getuid().is_root() {
        return Ok("is root already".into());
    }
    Ok(nix::unistd::setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).map(|()| "uid 0".into())?)
}

pub(super) fn become_victim(t: &Target) -> Tried {
    let uid = Uid::from_raw(t.uid);
    if uid == nix::unistd::getuid() {
        return Err(absent("the same user id"));
    }
    Ok(nix::unistd::setresuid(uid, uid, uid).map(|()| format!("uid {uid}"))?)
}

pub(super) fn take_groups(_: &Target) -> Tried {
    Ok(nix::unistd::setgroups(&[Gid::from_raw(0)]).map(|()| "group 0".into())?)
}

pub(super) fn take_capabilities(_: &Target) -> Tried {
    Ok(kernel::take_capabilities().map(|()| "CAP_SYS_ADMIN".into())?)
}

/// Programs that give another identity: they do so only without no_new_privs and on a mount without nosuid.
pub(super) fn set_id(_: &Target) -> Tried {
    let mut programs = Vec::new();
    for dir in ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/libexec", "/usr/lib/openssh", "/usr/local/bin"] {
        let nosuid = statvfs(dir).is_ok_and(|state| state.flags().contains(FsFlags::ST_NOSUID));
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let set_id = entries.map(|entry| entry.path()).filter(|path| {
            let mode = fs::symlink_metadata(path).map_or(0, |meta| meta.permissions().mode());
            mode & 0o170_000 == 0o100_000 && mode & 0o6000 != 0 && access(path, AccessFlags::X_OK).is_ok()
        });
        programs.extend(set_id.filter(|_| !nosuid));
    }
    if programs.is_empty() {
        return Err(absent("no such program on a mount that honours it"));
    }
    if nix::sys::prctl::get_no_new_privs()? {
        return Err(blocked(format!("no_new_privs, {} programs", programs.len())));
    }
    Ok(format!("{} programs, among them {}", programs.len(), programs[0].display()))
}

/// Opened for writing and closed again: the permission is the proof.
fn writable(path: &Path) -> Tried {
    OpenOptions::new().write(true).open(path)?;
    Ok("opens for writing".into())
}

fn any_writable(paths: &[&str]) -> Tried {
    any(paths.iter().map(|path| (*path, writable(Path::new(path)))), || absent("none"))
}

pub(super) fn sysctl(_: &Target) -> Tried {
    any_writable(&[
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/randomize_va_space",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/fs/protected_hardlinks",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/user/max_user_namespaces",
    ])
}

pub(super) fn core_pattern(_: &Target) -> Tried {
    writable(Path::new("/proc/sys/kernel/core_pattern"))
}

pub(super) fn sysrq(_: &Target) -> Tried {
    writable(Path::new("/proc/sysrq-trigger"))
}

fn readable(path: &str) -> Tried {
    use std::io::Read;
    let mut bytes = [0; 64];
    match fs::File::open(path)?.read(&mut bytes)? {
        0 => Err(blocked("empty")),
        got => Ok(format!("{got} bytes")),
    }
}

pub(super) fn kcore(_: &Target) -> Tried {
    readable("/proc/kcore")
}

pub(super) fn keys(_: &Target) -> Tried {
    readable("/proc/keys")
}

pub(super) fn timers(_: &Target) -> Tried {
    readable("/proc/timer_list")
}

pub(super) fn firmware(_: &Target) -> Tried {
    any(
        ["/sys/firmware", "/sys/kernel/security", "/sys/kernel/debug", "/proc/scsi"].into_iter().map(|dir| {
            let list = || -> Tried { Ok(format!("lists {} names", fs::read_dir(dir)?.count())) };
            (dir, list())
        }),
        || absent("none"),
    )
}

/// Control files of the own cgroup, of its parents, and the one that runs a program on the host.
pub(super) fn cgroup(_: &Target) -> Tried {
    let text = String::from_utf8_lossy(&read_some(Path::new("/proc/self/cgroup"))?).into_owned();
    let mut files: Vec<PathBuf> = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let mounts = [controllers.trim_start_matches("name="), "unified", ""];
        for root in mounts.map(|name| Path::new("/sys/fs/cgroup").join(name)) {
            let own = root.join(path.trim_start_matches('/'));
            let up = own.ancestors().take_while(|dir| dir.starts_with(&root)).map(Path::to_path_buf);
            files.extend(up.flat_map(|dir| ["cgroup.procs", "release_agent", "memory.max"].map(|leaf| dir.join(leaf))));
        }
    }
    files.sort();
    files.dedup();
    let tried = files.iter().filter(|file| file.exists()).map(|file| (file.display().to_string(), writable(file)));
    any(tried, || Miss::Absent("no control files here".into()))
}
