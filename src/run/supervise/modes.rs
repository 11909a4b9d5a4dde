//! Changes of modes, owners and times, made for the agent where they are of the cell's own files.
//!
//! Landlock has no right for them (landlock(7)): under it a process changes the mode of whatever its UID owns, so with
//! `chmod 0` on the state directory every other cell stops. Where others have the agent's UID and no private root hides
//! their files, the filter stops these calls and asks the launcher. It reads what the agent means, opens it, looks where
//! that lies, and makes the change on what it has opened. What the agent rewrites meanwhile, a path in its memory or a
//! link on the way, makes the launcher open something else, and that is looked at.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat, readlink};
use nix::poll::PollFlags;
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, setfsgid, setfsuid};

use crate::sys::ids::Ids;
use crate::sys::notify::{self, Call};

/// Answers the calls of one cell.
#[derive(Debug)]
pub struct Modes {
    listener: Option<OwnedFd>,
    /// Directories whose files are the cell's: by descriptor, since what a name stands for may change.
    own: Vec<OwnedFd>,
    /// Whose rights count, where they are not the launcher's.
    agent: Option<Ids>,
}

/// What the agent asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Request {
    object: Object,
    change: Change,
}

/// Of what: numbers and addresses of the asking process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Object {
    Descriptor(i32),
    Path { directory: i32, address: u64, flags: i32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Mode(u32),
    Owner(u32, u32),
    /// The address of two times, or 0.
    Times(u64, Unit),
}

/// What the C library's structures count in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// `struct timespec`.
    Nanoseconds,
    /// `struct timeval`.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only x86-64 has such a call"))]
    Microseconds,
    /// `struct utimbuf`: two numbers in all.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only x86-64 has such a call"))]
    Seconds,
}

/// The longest path (PATH_MAX), with its end.
const LONGEST: usize = 4096;

const LOOK: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// fchmodat2(2), which the C library's list does not have on every machine.
const FCHMODAT2: i64 = 452;

impl Modes {
    /// For a cell with these directories. `agent` is given where the launcher's own rights are not the agent's.
    pub fn new(own: Vec<OwnedFd>, agent: Option<Ids>) -> Modes {
        Modes { listener: None, own, agent }
    }

    /// The filter is in force.
    pub fn listen(&mut self, listener: OwnedFd) {
        self.listener = Some(listener);
    }

    /// Where calls come in.
    pub fn door(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Answers a call. Where poll(2) tells of none, the last process of the cell is gone.
    pub fn answer(&mut self, events: PollFlags) {
        let Some(listener) = &self.listener else { return };
        if !events.contains(PollFlags::POLLIN) {
            self.listener = None;
            return;
        }
        // Killed meanwhile, it is no longer there to be heard or answered.
        let Ok(call) = notify::receive(listener.as_fd()) else { return };
        let answer = match self.agent {
            None => self.make(listener.as_fd(), &call),
            Some(agent) => with_rights_of(agent, || self.make(listener.as_fd(), &call)),
        };
        let _ = notify::answer(listener.as_fd(), &call, answer);
    }

    fn make(&self, listener: BorrowedFd<'_>, call: &Call) -> Result<(), Errno> {
        let request = Request::of(call).ok_or(Errno::ENOSYS)?;
        let process = Asking { thread: call.thread };
        let object = process.open(request.object)?;
        let times = match request.change {
            Change::Times(address, unit) => Some(process.times(address, unit)?),
            Change::Mode(_) | Change::Owner(..) => None,
        };
        // Before anything is changed: the number was the asking thread's all the time.
        if !notify::waits(listener, call) {
            return Err(Errno::ESRCH);
        }
        if !self.is_own(&object) {
            return Err(Errno::EPERM);
        }
        // A descriptor that only names a file takes no fchmod(2): its link in /proc does, and leads to that very file.
        let link = link_of(&object);
        match (request.change, times) {
            (Change::Mode(mode), _) => {
                fchmodat(AT_FDCWD, &link, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)
            }
            (Change::Owner(uid, gid), _) => {
                let [uid, gid] = [uid, gid].map(|id| (id != u32::MAX).then_some(id));
                fchownat(AT_FDCWD, &link, uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::empty())
            }
            (Change::Times(..), Some([accessed, modified])) => {
                utimensat(AT_FDCWD, &link, &accessed, &modified, UtimensatFlags::FollowSymlink)
            }
            (Change::Times(..), None) => Err(Errno::EINVAL),
        }
    }

    /// Whether a file lies in one of the cell's directories, by the kernel's own word for where it is now.
    fn is_own(&self, object: &OwnedFd) -> bool {
        let place = |fd: &OwnedFd| readlink(&link_of(fd)).ok().map(PathBuf::from);
        let Some(object) = place(object) else { return false };
        self.own.iter().filter_map(place).any(|directory| object.starts_with(directory))
    }
}

fn link_of(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// The kernel asks for the rights of this process, and root has more than the agent.
fn with_rights_of<T>(agent: Ids, act: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let (uid, gid) = (setfsuid(agent.uid), setfsgid(agent.gid));
    // They give the one before and no error; asked again, they tell.
    let done = match (setfsuid(agent.uid), setfsgid(agent.gid)) {
        now if now == (agent.uid, agent.gid) => act(),
        _ => Err(Errno::EPERM),
    };
    setfsgid(gid);
    setfsuid(uid);
    done
}

impl Request {
    /// What a call means; nothing for one that the filter does not ask about. All numbers in it are 32 bits wide.
    fn of(call: &Call) -> Option<Request> {
        let a = call.arguments;
        let path = |directory, address, flags| Object::Path { directory, address, flags };
        let int = |index: usize| a[index] as i32;
        let word = |index: usize| a[index] as u32;
        let (object, change) = match call.number {
            libc::SYS_fchmod => (Object::Descriptor(int(0)), Change::Mode(word(1))),
            libc::SYS_fchmodat => (path(int(0), a[1], 0), Change::Mode(word(2))),
            FCHMODAT2 => (path(int(0), a[1], int(3)), Change::Mode(word(2))),
            libc::SYS_fchown => (Object::Descriptor(int(0)), Change::Owner(word(1), word(2))),
            libc::SYS_fchownat => (path(int(0), a[1], int(4)), Change::Owner(word(2), word(3))),
            // futimens(3).
            libc::SYS_utimensat if a[1] == 0 => (Object::Descriptor(int(0)), Change::Times(a[2], Unit::Nanoseconds)),
            libc::SYS_utimensat => (path(int(0), a[1], int(3)), Change::Times(a[2], Unit::Nanoseconds)),
            _ => Request::of_old(call)?,
        };
        Some(Request { object, change })
    }

    /// Calls that newer machines do not have.
    #[cfg(target_arch = "x86_64")]
    fn of_old(call: &Call) -> Option<(Object, Change)> {
        let a = call.arguments;
        let word = |index: usize| a[index] as u32;
        let flags = if call.number == libc::SYS_lchown { libc::AT_SYMLINK_NOFOLLOW } else { 0 };
        let change = match call.number {
            libc::SYS_chmod => Change::Mode(word(1)),
            libc::SYS_chown | libc::SYS_lchown => Change::Owner(word(1), word(2)),
            libc::SYS_utime => Change::Times(a[1], Unit::Seconds),
            libc::SYS_utimes => Change::Times(a[1], Unit::Microseconds),
            _ => return None,
        };
        Some((Object::Path { directory: libc::AT_FDCWD, address: a[0], flags }, change))
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn of_old(_: &Call) -> Option<(Object, Change)> {
        None
    }
}

/// The process that asks. It waits, but its other threads do not: nothing in it is read twice.
struct Asking {
    thread: u32,
}

impl Asking {
    fn at(&self, what: &str) -> PathBuf {
        format!("/proc/{}/{what}", self.thread).into()
    }

    /// Opens what it means, as a name alone: neither a fifo nor a device is touched by that.
    fn open(&self, object: Object) -> Result<OwnedFd, Errno> {
        let (directory, address, flags) = match object {
            Object::Descriptor(number) => return self.descriptor(number),
            Object::Path { directory, address, flags } => (directory, address, flags),
        };
        if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
            return Err(Errno::EINVAL);
        }
        let path = self.path(address)?;
        let follow = if flags & libc::AT_SYMLINK_NOFOLLOW != 0 { OFlag::O_NOFOLLOW } else { OFlag::empty() };
        if path.is_empty() && flags & libc::AT_EMPTY_PATH == 0 {
            return Err(Errno::ENOENT);
        }
        if path.as_bytes().starts_with(b"/") {
            return open(self.as_its_own(path).as_os_str(), LOOK | follow, Mode::empty());
        }
        let base = match directory {
            libc::AT_FDCWD => open(&self.at("cwd"), LOOK, Mode::empty())?,
            number => self.descriptor(number)?,
        };
        if path.is_empty() { Ok(base) } else { openat(&base, path.as_os_str(), LOOK | follow, Mode::empty()) }
    }

    fn descriptor(&self, number: i32) -> Result<OwnedFd, Errno> {
        match open(&self.at(&format!("fd/{number}")), LOOK, Mode::empty()) {
            Err(Errno::ENOENT) => Err(Errno::EBADF),
            opened => opened,
        }
    }

    /// `/proc/self` is the asking process and not this one: the C library goes by it to a descriptor.
    fn as_its_own(&self, path: OsString) -> OsString {
        let own = ["/proc/self/", "/proc/thread-self/"];
        let rest = own.iter().find_map(|start| Path::new(&path).strip_prefix(start).ok());
        match (rest, Path::new(&path).strip_prefix("/dev/fd/")) {
            (Some(rest), _) => self.at("").join(rest).into(),
            (None, Ok(number)) => self.at("fd").join(number).into(),
            (None, Err(_)) => path,
        }
    }

    fn memory(&self) -> Result<File, Errno> {
        open(&self.at("mem"), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map(File::from)
    }

    fn path(&self, address: u64) -> Result<OsString, Errno> {
        let mut bytes = vec![0; LONGEST];
        // Memory may end behind the path.
        let length = self.memory()?.read_at(&mut bytes, address).map_err(|_| Errno::EFAULT)?;
        match bytes[..length].iter().position(|byte| *byte == 0) {
            Some(end) => {
                bytes.truncate(end);
                Ok(OsString::from_vec(bytes))
            }
            None if length == LONGEST => Err(Errno::ENAMETOOLONG),
            None => Err(Errno::EFAULT),
        }
    }

    /// When the file was read and written; now, where the agent gives no time.
    fn times(&self, address: u64, unit: Unit) -> Result<[TimeSpec; 2], Errno> {
        if address == 0 {
            return Ok([TimeSpec::UTIME_NOW; 2]);
        }
        let mut bytes = [0; 32];
        let bytes = if unit == Unit::Seconds { &mut bytes[..16] } else { &mut bytes[..] };
        self.memory()?.read_exact_at(bytes, address).map_err(|_| Errno::EFAULT)?;
        let mut numbers = bytes.chunks_exact(8).map(|bytes| i64::from_ne_bytes(bytes.try_into().unwrap_or_default()));
        let mut next = || numbers.next().unwrap_or_default();
        let mut time = || match unit {
            Unit::Seconds => Ok(TimeSpec::new(next(), 0)),
            Unit::Nanoseconds => Ok(TimeSpec::new(next(), next())),
            Unit::Microseconds => match (next(), next()) {
                (seconds, parts @ 0..1_000_000) => Ok(TimeSpec::new(seconds, parts * 1000)),
                _ => Err(Errno::EINVAL),
            },
        };
        Ok([time()?, time()?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: i64, arguments: [u64; 6]) -> Call {
        Call { id: 1, thread: std::process::id(), number, arguments }
    }

    #[test]
    fn every_call_that_the_filter_asks_about_is_understood() {
        let of = |number, arguments| Request::of(&call(number, arguments));
        let path = |directory, address, flags| Object::Path { directory, address, flags };
        let here = u64::from(libc::AT_FDCWD.cast_unsigned());
        let expected = Request { object: path(libc::AT_FDCWD, 9, 0), change: Change::Mode(0o755) };
        assert_eq!(of(libc::SYS_fchmodat, [here, 9, 0o755, 7, 7, 7]), Some(expected));
        let nofollow = libc::AT_SYMLINK_NOFOLLOW;
        let expected = Request { object: path(5, 9, nofollow), change: Change::Owner(1, u32::MAX) };
        assert_eq!(of(libc::SYS_fchownat, [5, 9, 1, u64::MAX, nofollow as u64, 0]), Some(expected));
        let expected = Request { object: Object::Descriptor(5), change: Change::Times(0, Unit::Nanoseconds) };
        assert_eq!(of(libc::SYS_utimensat, [5, 0, 0, 0, 0, 0]), Some(expected));
        assert_eq!(of(libc::SYS_read, [0; 6]), None);
        let asked = crate::confine::seccomp::ASKED.iter().flat_map(|calls| calls.iter());
        asked.for_each(|&number| assert!(of(number, [0; 6]).is_some(), "{number}"));
    }

    #[test]
    fn a_path_and_times_are_read_as_the_kernel_would() {
        let process = Asking { thread: std::process::id() };
        let path = c"/proc/self/fd/7";
        assert_eq!(process.path(path.as_ptr() as u64), Ok("/proc/self/fd/7".into()));
        let own = process.as_its_own("/proc/self/fd/7".into());
        assert_eq!(own, OsString::from(format!("/proc/{}/fd/7", std::process::id())));
        assert_eq!(process.as_its_own("/proc/selfish".into()), OsString::from("/proc/selfish"));
        assert_eq!(process.path(8), Err(Errno::EFAULT));
        let numbers = [1_i64, 2, 3, 4];
        let at = numbers.as_ptr() as u64;
        assert_eq!(process.times(at, Unit::Nanoseconds), Ok([TimeSpec::new(1, 2), TimeSpec::new(3, 4)]));
        assert_eq!(process.times(at, Unit::Microseconds), Ok([TimeSpec::new(1, 2000), TimeSpec::new(3, 4000)]));
        assert_eq!(process.times(at, Unit::Seconds), Ok([TimeSpec::new(1, 0), TimeSpec::new(2, 0)]));
    }

    #[test]
    fn a_file_is_the_cells_by_where_it_is() {
        let cell = tempfile::tempdir().unwrap();
        let [own, beside] = ["home", "home-of-another"].map(|name| cell.path().join(name));
        [&own, &beside].into_iter().for_each(|path| std::fs::create_dir(path).unwrap());
        let look = |path: &Path| open(path, LOOK, Mode::empty()).unwrap();
        let modes = Modes::new(vec![look(&own)], None);
        std::fs::write(own.join("file"), "").unwrap();
        std::os::unix::fs::symlink(&beside, own.join("link")).unwrap();
        assert!(modes.is_own(&look(&own)) && modes.is_own(&look(&own.join("file"))));
        assert!(!modes.is_own(&look(&beside)) && !modes.is_own(&look(cell.path())));
        assert!(!modes.is_own(&look(&own.join("link"))));
        // Where its directory is by now.
        let moved = cell.path().join("moved");
        std::fs::rename(&own, &moved).unwrap();
        assert!(modes.is_own(&look(&moved.join("file"))));
    }
}
