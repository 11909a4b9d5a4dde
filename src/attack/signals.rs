//! Attacks by signal and on how the kernel schedules the victim.
#![forbid(unsafe_code)]

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::target::{Target, any, read_some};
use crate::attack::tried::{Tried, absent, blocked};
use crate::sys::attack::process;

fn send(t: &Target, signal: Signal) -> Tried {
    t.each_victim(|pid| {
        kill(Pid::from_raw(pid), signal)?;
        sleep(Duration::from_millis(40));
        Ok(format!("sent {signal}"))
    })
}

pub(super) fn usr1(t: &Target) -> Tried {
    send(t, Signal::SIGUSR1)
}

pub(super) fn kill_victim(t: &Target) -> Tried {
    if t.spare_victim { Err(absent("the victim is to be spared")) } else { send(t, Signal::SIGKILL) }
}

pub(super) fn by_pidfd(t: &Target) -> Tried {
    t.each_victim(|pid| {
        process::signal_by_fd(pid, Signal::SIGUSR1 as i32)?;
        sleep(Duration::from_millis(40));
        Ok("sent by descriptor".into())
    })
}

/// Whether it reaches the victim only the victim can tell; in a namespace of its own it finds nobody (ESRCH).
pub(super) fn everybody(t: &Target) -> Tried {
    if !t.allow_kill_all {
        return Err(absent("not allowed by the coordinates"));
    }
    kill(Pid::from_raw(-1), Signal::SIGUSR1)?;
    // kill(2) gives no list: a victim that cannot be named here has not been signalled either, in any namespace.
    match t.victims() {
        Ok(pids) if pids.iter().any(|&pid| kill(Pid::from_raw(pid), None).is_ok()) => Ok(format!("reaches {pids:?}")),
        _ => Err(blocked("reached only our own")),
    }
}

fn init(t: &Target, signal: Signal) -> Tried {
    if !t.own_init {
        return Err(absent("process 1 is not said to be the cell's own"));
    }
    kill(Pid::from_raw(1), signal)?;
    sleep(Duration::from_millis(40));
    // The kernel takes such a signal from inside and drops it: only its effect counts.
    let stat = read_some(std::path::Path::new("/proc/1/stat"))?;
    let state = String::from_utf8_lossy(&stat).rsplit(") ").next().and_then(|rest| rest.chars().next());
    match state {
        Some(state @ ('T' | 'Z' | 'X')) => Ok(format!("init is in state {state}")),
        _ => Err(blocked("dropped by the kernel")),
    }
}

pub(super) fn stop_init(t: &Target) -> Tried {
    init(t, Signal::SIGSTOP)
}

/// If it works there is no verdict, but an output that ends without its last line.
pub(super) fn kill_init(t: &Target) -> Tried {
    init(t, Signal::SIGKILL)
}

pub(super) fn may_signal_launcher(t: &Target) -> Tried {
    let pid = super::proc::launcher(t)?;
    // Signal 0 asks for the permission and does nothing.
    kill(Pid::from_raw(pid), None)?;
    Ok("may signal it".into())
}

pub(super) fn limit(t: &Target) -> Tried {
    t.each_victim(|pid| Ok(process::limit_locks(pid, 3).map(|()| "limit set".into())?))
}

pub(super) fn renice(t: &Target) -> Tried {
    // Higher than the victim's, which started as we did: taking niceness back is another right.
    let nicer = (process::nice() + 1).min(19);
    t.each_victim(|pid| Ok(process::renice(pid, nicer).map(|()| "nice set".into())?))
}

pub(super) fn affinity(t: &Target) -> Tried {
    let mut one = CpuSet::new();
    one.set(0)?;
    t.each_victim(|pid| Ok(sched_setaffinity(Pid::from_raw(pid), &one).map(|()| "pinned".into())?))
}

pub(super) fn io_class(t: &Target) -> Tried {
    t.each_victim(|pid| Ok(process::idle_io(pid).map(|()| "I/O class idle".into())?))
}

pub(super) fn policy(t: &Target) -> Tried {
    t.each_victim(|pid| Ok(process::schedule(pid, libc::SCHED_BATCH, 0).map(|()| "batch policy".into())?))
}

pub(super) fn own_realtime(_: &Target) -> Tried {
    process::schedule(0, libc::SCHED_FIFO, 1)?;
    Ok("real-time priority".into())
}

pub(super) fn own_nice(_: &Target) -> Tried {
    process::renice(0, -5)?;
    Ok("nice -5".into())
}

pub(super) fn own_oom(_: &Target) -> Tried {
    fs::write("/proc/self/oom_score_adj", "-500")?;
    Ok("oom_score_adj -500".into())
}

/// A hard limit that can be raised is none.
pub(super) fn own_limits(_: &Target) -> Tried {
    let raise = |limit: Resource| -> Tried {
        let (_, hard) = getrlimit(limit)?;
        if hard == libc::RLIM_INFINITY {
            return Err(absent("unlimited"));
        }
        setrlimit(limit, hard + 1, hard + 1)?;
        Ok("raised".into())
    };
    use Resource::*;
    let all = [RLIMIT_NOFILE, RLIMIT_NPROC, RLIMIT_CORE, RLIMIT_FSIZE, RLIMIT_AS, RLIMIT_MEMLOCK, RLIMIT_CPU];
    any(all.into_iter().map(|limit| (format!("{limit:?}"), raise(limit))), || absent("none"))
}
