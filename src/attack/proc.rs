//! Attacks on other processes by /proc and by the calls that take a process id.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;

use nix::sched::CloneFlags;

use super::target::{Target, any, read_some};
use crate::attack::target::{find, of, pids};
use crate::attack::tried::{Miss, Tried, absent, blocked};
use crate::sys::attack::process;

/// Finds the secret in a file of any process, else says what the victim's own answered.
fn scan(t: &Target, leaf: &str) -> Tried {
    match find(t, leaf).as_slice() {
        [] => t.each_victim(|pid| t.read(&of(pid, leaf))),
        found => Ok(format!("the secret in {leaf} of {found:?}")),
    }
}

pub(super) fn visible(t: &Target) -> Tried {
    let (all, victims) = (pids(), t.victims()?);
    match victims.iter().find(|pid| all.contains(pid)) {
        Some(pid) => Ok(format!("{pid} among {} listed", all.len())),
        None => Err(blocked(format!("not among {} listed", all.len()))),
    }
}

pub(super) fn cmdline(t: &Target) -> Tried {
    if t.argv { scan(t, "cmdline") } else { Err(t.lacks("argv")) }
}

pub(super) fn environ(t: &Target) -> Tried {
    if t.environ { scan(t, "environ") } else { Err(t.lacks("environ")) }
}

pub(super) fn status(t: &Target) -> Tried {
    t.each_victim(|pid| Ok(format!("{} bytes", read_some(&of(pid, "status"))?.len())))
}

pub(super) fn maps(t: &Target) -> Tried {
    t.each_victim(|pid| non_empty(&read_some(&of(pid, "maps"))?))
}

/// For another user's process some files open and are empty.
fn non_empty(bytes: &[u8]) -> Tried {
    if bytes.is_empty() { Err(blocked("empty")) } else { Ok(format!("{} bytes", bytes.len())) }
}

fn read_mem(pid: i32, address: usize) -> Result<Vec<u8>, Miss> {
    let mut file = fs::File::open(of(pid, "mem"))?;
    file.seek(SeekFrom::Start(address as u64))?;
    let mut bytes = vec![0; 64];
    let got = file.read(&mut bytes)?;
    bytes.truncate(got);
    Ok(bytes)
}

pub(super) fn mem(t: &Target) -> Tried {
    t.each_victim(|pid| t.shows(&read_mem(pid, t.memory)?, "memory"))
}

pub(super) fn fd_list(t: &Target) -> Tried {
    t.each_victim(|pid| Ok(format!("{} descriptors", fs::read_dir(of(pid, "fd"))?.count())))
}

pub(super) fn fd_open(t: &Target) -> Tried {
    let number = t.memfd.ok_or_else(|| t.lacks("memfd"))?;
    t.each_victim(|pid| t.read(&of(pid, &format!("fd/{number}"))))
}

pub(super) fn cwd(t: &Target) -> Tried {
    t.each_victim(|pid| Ok(format!("lists {} names", fs::read_dir(of(pid, "cwd/"))?.count())))
}

pub(super) fn root(t: &Target) -> Tried {
    t.each_victim(|pid| {
        t.each_dir(|dir| t.read(&of(pid, "root").join(dir.strip_prefix("/").unwrap_or(dir)).join("secret.txt")))
    })
}

pub(super) fn seize(t: &Target) -> Tried {
    t.each_victim(|pid| {
        process::seize(pid)?;
        // Long enough for the victim to see its tracer.
        std::thread::sleep(std::time::Duration::from_millis(80));
        Ok("attached".into())
    })
}

pub(super) fn vm_read(t: &Target) -> Tried {
    t.each_victim(|pid| t.shows(&process::read_memory(pid, t.memory, 64)?, "memory"))
}

/// Writes what is there already: the proof needs no damage.
pub(super) fn vm_write(t: &Target) -> Tried {
    let marker = t.marker();
    t.each_victim(|pid| Ok(process::write_memory(pid, t.memory, marker.as_bytes()).map(|()| "wrote memory".into())?))
}

pub(super) fn steal_fd(t: &Target) -> Tried {
    let number = t.memfd.ok_or_else(|| t.lacks("memfd"))?;
    t.each_victim(|pid| {
        let mut file = fs::File::from(process::steal_fd(pid, number)?);
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut bytes)?;
        t.shows(&bytes, "descriptor")
    })
}

pub(super) fn compare(t: &Target) -> Tried {
    t.each_victim(|pid| Ok(process::compare(pid, std::process::id() as i32).map(|()| "compared".into())?))
}

pub(super) fn enter(t: &Target) -> Tried {
    t.each_victim(enter_namespaces)
}

pub(super) fn enter_init(_: &Target) -> Tried {
    enter_namespaces(1)
}

/// User namespace first, where there is another one: it gives the right to enter the rest.
fn enter_namespaces(pid: i32) -> Tried {
    let own = |leaf: &str| fs::metadata(format!("/proc/self/ns/{leaf}")).map(|m| m.ino()).ok();
    let (mut entered, mut stopped) = (Vec::new(), Vec::new());
    for (leaf, kind) in [
        ("user", CloneFlags::CLONE_NEWUSER),
        ("mnt", CloneFlags::CLONE_NEWNS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("ipc", CloneFlags::CLONE_NEWIPC),
    ] {
        let outcome = fs::File::open(of(pid, &format!("ns/{leaf}"))).map_err(Miss::from).and_then(|file| {
            // Entering one's own user namespace is EINVAL by rule and no proof of anything.
            let same = leaf == "user" && file.metadata().map(|m| m.ino()).ok() == own(leaf);
            if same { Err(absent("our own")) } else { Ok(nix::sched::setns(file, kind)?) }
        });
        match outcome {
            Ok(()) => entered.push(leaf),
            Err(Miss::Blocked(why)) => stopped.push(format!("{leaf} {why}")),
            Err(Miss::Absent(_)) => {}
        }
    }
    if entered.is_empty() { Err(blocked(stopped.join(" "))) } else { Ok(format!("entered {}", entered.join(" "))) }
}

pub(super) fn launcher(t: &Target) -> Result<i32, Miss> {
    let pid = t.launcher_pid.ok_or_else(|| absent("no launcher_pid given"))?;
    if t.is_ours(pid) { Err(blocked("the number is ours here")) } else { Ok(pid) }
}

pub(super) fn launcher_environ(t: &Target) -> Tried {
    non_empty(&read_some(&of(launcher(t)?, "environ"))?)
}

pub(super) fn launcher_mem(t: &Target) -> Tried {
    let pid = launcher(t)?;
    let address = read_some(&of(pid, "maps")).ok().and_then(|maps| {
        let text = String::from_utf8_lossy(&maps).into_owned();
        usize::from_str_radix(text.split('-').next()?, 16).ok()
    });
    // Without the map: where the linker puts a program that is not relocatable, as this one is.
    non_empty(&read_mem(pid, address.unwrap_or(0x40_0000))?)
}

pub(super) fn launcher_fd(t: &Target) -> Tried {
    let pid = launcher(t)?;
    let names: Vec<_> = fs::read_dir(of(pid, "fd"))?.flatten().collect();
    let opened = names.iter().filter(|entry| fs::File::open(entry.path()).is_ok()).count();
    Ok(format!("{} descriptors listed, {opened} opened", names.len()))
}

pub(super) fn launcher_seize(t: &Target) -> Tried {
    Ok(process::seize(launcher(t)?).map(|()| "attached".into())?)
}

pub(super) fn init_environ(_: &Target) -> Tried {
    non_empty(&read_some(&of(1, "environ"))?)
}

pub(super) fn init_root(_: &Target) -> Tried {
    Ok(format!("lists {} names", fs::read_dir(of(1, "root/"))?.count()))
}

pub(super) fn init_fd(_: &Target) -> Tried {
    Ok(format!("lists {} descriptors", fs::read_dir(of(1, "fd"))?.count()))
}

pub(super) fn init_mem(_: &Target) -> Tried {
    fs::OpenOptions::new().read(true).write(true).open(of(1, "mem"))?;
    Ok("opened for writing".into())
}

pub(super) fn init_seize(_: &Target) -> Tried {
    Ok(process::seize(1).map(|()| "attached".into())?)
}

/// Processes of other users: what a shared list gives away even when nothing in it is secret.
pub(super) fn strangers(_: &Target) -> Tried {
    let own = nix::unistd::geteuid().as_raw();
    let foreign = |pid: &i32| *pid != 1 && fs::metadata(format!("/proc/{pid}")).is_ok_and(|m| m.uid() != own);
    match pids().into_iter().filter(foreign).count() {
        0 => Err(blocked("none but our own and init")),
        count => Ok(format!("{count} processes of other users")),
    }
}

/// The program of the running launcher, rewritten while it runs.
pub(super) fn program(_: &Target) -> Tried {
    let write = |path: &str| -> Tried {
        match fs::OpenOptions::new().append(true).open(path) {
            Ok(_) => Ok("opens for writing".into()),
            // Busy is what comes after "allowed": the attacker would wait for its end.
            Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => Ok("would open once it ends".into()),
            Err(error) => Err(error.into()),
        }
    };
    any(["/proc/1/exe", "/proc/self/exe"].into_iter().map(|path| (path, write(path))), || absent("no program"))
}
