//! `sweep` finishes what dead runs left, `ps` lists live cells, `kill` ends one. Alive means locked: no pid file and no
//! age decides.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use crate::cell::state::State;
use crate::cell::{Found, Record, alone, look, read_record, resume, uids, zero_dead};
use crate::fs::walk::printable;
use crate::fs::wipe::{Leftover, wipe, wipe_name};
use crate::sys::{self, proc};
use crate::types::error::{Error, Result};

/// What a sweep came to.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Swept {
    /// Cells of dead runs that are gone, or would be.
    pub removed: Vec<String>,
    /// Live cells, untouched.
    pub live: usize,
    /// UIDs that are free again.
    pub freed_uids: Vec<u32>,
    /// What could not be removed.
    pub left: Vec<Leftover>,
}

/// A live cell.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Live {
    /// Its name.
    pub cell: String,
    /// What it says of itself; nothing while it is being made.
    #[serde(flatten)]
    pub record: Option<Record>,
}

/// Kills and wipes what dead runs left. Live cells are locked and not touched; any number of sweeps may run at once.
///
/// # Errors
/// The state directory cannot be read.
pub fn sweep(state: &State, dry_run: bool) -> Result<Swept> {
    let mut swept = Swept::default();
    if !dry_run {
        // Before the cells: what names none may start again and again what names one.
        alone::sweep_marked(nix::unistd::geteuid());
    }
    // UIDs of cells that are not gone: another run under such a UID would own what is left of them.
    let mut owners = BTreeSet::new();
    let until = Instant::now() + PATIENCE;
    for name in names(state)? {
        let text = printable(name.as_bytes());
        let left = match look_twice(state, &name, until) {
            Ok(Found::Live(_)) => {
                swept.live += 1;
                continue;
            }
            Err(Errno::ENOENT) => continue,
            Ok(Found::Dead(_)) | Err(Errno::ELOOP | Errno::ENOTDIR) if dry_run => Vec::new(),
            Ok(Found::Dead(lock)) => {
                let record = read_record(lock.as_fd());
                let left = finish(state, &name, lock.as_fd(), record.as_ref());
                owners.extend(record.and_then(|record| record.uid).filter(|_| !left.is_empty()));
                left
            }
            // A link or a file under the name of a cell is nobody's cell: the name goes, what it leads to stays.
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                wipe_name(state.cells.as_fd(), &name).left.into_iter().map(Leftover::from).collect()
            }
            Err(errno) => vec![Leftover { name: text.clone(), why: errno.desc().into() }],
        };
        if left.is_empty() {
            swept.removed.push(text);
        }
        swept.left.extend(left);
    }
    if !dry_run {
        swept.left.extend(resume::sweep(state, until)?);
    }
    if nix::unistd::geteuid().is_root() && !dry_run {
        let (freed, left) = uids::sweep(state, &owners)?;
        swept.freed_uids = freed;
        swept.left.extend(left.into_iter().map(Leftover::from));
    }
    Ok(swept)
}

/// How long one sweep waits in all for processes that the kernel is ending.
const PATIENCE: Duration = Duration::from_secs(1);

/// Looks at a cell, and again while its launcher is dead and its lock is not free yet: the kernel or the keeper ends the
/// rest of the run, which shares the lock, a moment after the launcher. Without a record it is being made or wiped.
fn look_twice(state: &State, name: &OsStr, until: Instant) -> Result<Found, Errno> {
    loop {
        let found = look(state.cells.as_fd(), name)?;
        let Found::Live(dir) = &found else { return Ok(found) };
        let ending =
            read_record(dir.as_fd()).is_none_or(|record| Launcher::open(record.launcher, record.started).is_none());
        if !ending || Instant::now() >= until {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Processes first: a live one would go on writing.
fn finish(state: &State, name: &OsStr, cell: BorrowedFd<'_>, record: Option<&Record>) -> Vec<Leftover> {
    let mut left = Vec::new();
    let mut leave = |name: String, why: &str| left.push(Leftover { name, why: why.to_owned() });
    if let Some(record) = record {
        for directory in record.cgroups.iter().filter(|path| ours(path, name)) {
            if directory.exists() && !crate::sys::cgroup::remove(directory) {
                leave(directory.display().to_string(), "its processes do not end");
            }
        }
        if let Some(uid) = record.uid.filter(|_| nix::unistd::geteuid().is_root())
            && !uids::end(state, uid)
        {
            leave(format!("processes of uid {uid}"), "they do not end");
        }
    }
    // With a PID namespace they died with the launcher.
    if record.is_none_or(|record| !record.pid_namespace) && !end_inside(&state.path.join("cells").join(name)) {
        leave(format!("processes of cell {}", printable(name.as_bytes())), "they do not end");
    }
    if !left.is_empty() {
        return left;
    }
    if let Some(record) = record.filter(|record| record.directories) {
        zero_dead(cell, record.credential.as_deref());
    }
    wiped(state, name, cell)
}

fn wiped(state: &State, name: &OsStr, cell: BorrowedFd<'_>) -> Vec<Leftover> {
    wipe(state.cells.as_fd(), name, cell).left.into_iter().map(Leftover::from).collect()
}

/// A record could be half-written or an agent's: only a group that carries the cell's own name is removed.
pub fn ours(path: &Path, cell: &OsStr) -> bool {
    let expected = format!("oubliette-{}", cell.to_string_lossy());
    path.starts_with("/sys/fs/cgroup")
        && path.file_name() == Some(OsStr::new(&expected))
        && !path.components().any(|c| c == std::path::Component::ParentDir)
}

/// Where there was neither a PID namespace nor a UID of its own: processes whose working directory, program,
/// environment or mounts still name the cell. Its name is 128 random bits, so nothing else does; a directory of any
/// other name is no cell, and may be called like what every process has in its environment. Gives whether none is
/// left.
pub fn end_inside(cell: &Path) -> bool {
    let Some(name) = cell.file_name().filter(|name| crate::cell::is_id(name)) else { return true };
    end_until_none(|| inside(cell, name))
}

/// Kills what a look finds until a whole look finds none: one may have forked while its parent was looked at. Gives
/// whether none is left.
pub fn end_until_none(look: impl Fn() -> Vec<Pid>) -> bool {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let found = look();
        for pid in &found {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        match found.is_empty() {
            true => return true,
            false if Instant::now() > until => return false,
            false => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn inside(path: &Path, name: &OsStr) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse::<i32>().ok()?, entry.path())));
    let inside = |proc: &Path| {
        let link = |file: &str| std::fs::read_link(proc.join(file)).is_ok_and(|target| target.starts_with(path));
        let named = |file: &str| {
            let text = std::fs::read(proc.join(file)).unwrap_or_default();
            text.windows(name.len()).any(|window| window == name.as_bytes())
        };
        link("cwd") || link("exe") || link("root") || named("environ") || named("mountinfo")
    };
    let others = pids.filter(|(pid, proc)| *pid != Pid::this().as_raw() && *pid > 1 && inside(proc));
    others.map(|(pid, _)| Pid::from_raw(pid)).collect()
}

/// Live cells, the oldest first.
///
/// # Errors
/// The state directory cannot be read.
pub fn list(state: &State) -> Result<Vec<Live>> {
    let mut live = Vec::new();
    for name in names(state)? {
        if let Ok(Found::Live(dir)) = look(state.cells.as_fd(), &name) {
            live.push(Live { cell: name.to_string_lossy().into_owned(), record: read_record(dir.as_fd()) });
        }
    }
    live.sort_by_key(|cell| cell.record.as_ref().map_or(u64::MAX, |record| record.started));
    Ok(live)
}

fn names(state: &State) -> Result<Vec<OsString>> {
    let failed = |errno: Errno| Error::new(format!("list cells in {}", state.path.display()), errno);
    let mut dir = crate::fs::walk::entries(state.cells.as_fd()).map_err(failed)?;
    let names = dir.iter().flatten().map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
    // Names with a dot are the state directory's own.
    Ok(names.filter(|name| !name.as_bytes().starts_with(b".")).collect())
}

/// Ends a live cell: TERM to its launcher, which gives the agent its grace period, then KILL, then a sweep.
///
/// # Errors
/// No such cell, more than one, or it does not end.
pub fn end(state: &State, cell: &str) -> Result<()> {
    let object = format!("end cell {}", cell.escape_debug());
    if cell.is_empty() {
        return Err(
            Error::new(object, "an empty name is that of every cell").hint("`oubliette ps` lists the live cells")
        );
    }
    let mut matching = list(state)?.into_iter().filter(|live| live.cell.starts_with(cell)).collect::<Vec<_>>();
    let (Some(live), true) = (matching.pop(), matching.is_empty()) else {
        let why = if matching.is_empty() { "there is no such live cell" } else { "more than one begins like this" };
        return Err(Error::new(object, why).hint("`oubliette ps` lists the live cells"));
    };
    let Some(record) = live.record else {
        return Err(Error::new(object, "it is being made or being wiped").hint("try again in a second"));
    };
    let launcher = Launcher::open(record.launcher, record.started)
        .ok_or_else(|| Error::new(&*object, "its launcher is gone").hint("run `oubliette sweep`"))?;
    launcher
        .signal(Signal::SIGTERM)
        .map_err(|errno| Error::new(&*object, errno).hint("run it as the cell's user or as root"))?;
    // The policy's grace period is at most what the launcher takes; twice asked it ends at once.
    for (signal, patience) in [(Signal::SIGTERM, 30), (Signal::SIGKILL, 10), (Signal::SIGKILL, 10)] {
        if gone(state, &live.cell, Duration::from_secs(patience)) {
            // A launcher that was killed has not wiped it.
            return sweep(state, false).map(drop);
        }
        let _ = launcher.signal(signal);
    }
    Err(Error::new(object, "it does not end").hint("`oubliette sweep` says what is left of it"))
}

fn gone(state: &State, cell: &str, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    while Instant::now() < until {
        if !matches!(look(state.cells.as_fd(), OsStr::new(cell)), Ok(Found::Live(_))) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// The launcher of a live cell, and not whoever may have its number by now.
struct Launcher {
    pid: Pid,
    pidfd: Option<std::os::fd::OwnedFd>,
}

impl Launcher {
    fn open(pid: i32, cell_started: u64) -> Option<Launcher> {
        let pid = Pid::from_raw(pid);
        let pidfd = sys::process::pidfd(pid).ok();
        // Opened first, compared then: a process that started after its cell is somebody else.
        (started(pid)? <= cell_started.saturating_add(1)).then_some(Launcher { pid, pidfd })
    }

    fn signal(&self, signal: Signal) -> Result<(), Errno> {
        match &self.pidfd {
            Some(pidfd) => sys::process::pidfd_kill(pidfd.as_fd(), signal as i32),
            None => kill(self.pid, signal),
        }
    }
}

/// When a live process started, in seconds since 1970. Nothing for one that is dead and not yet waited for.
fn started(pid: Pid) -> Option<u64> {
    let stat = proc::Stat::of(pid).filter(|stat| stat.alive)?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    Some(proc::boot()? + stat.started? / u64::try_from(per_second).ok()?)
}
