//! Workspaces: fresh, one per user, or a directory of the caller's; what fills them, and what leaves them.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};
use sha2::Sha256;

use crate::cell::nested::Nested;
use crate::cell::state::State;
use crate::fs::copy::copy_tree;
use crate::fs::walk::{Bounds, CheckedDirectory, Passed, TreeError};
use crate::policy::Limits;
use crate::request::{Request, Workspace};
use crate::sys::ids::Ids;
use crate::types::error::{Error, Result};
use crate::types::paths::WorkName;
use crate::types::user::UserId;
use crate::types::values::UidRange;

pub use crate::cell::outputs::Outputs;

/// A workspace that is not a fresh one: checked, and held by this run alone.
#[derive(Debug)]
pub struct Kept {
    /// The directory.
    pub directory: CheckedDirectory,
    /// Its owner, whose UID the agent gets where it gets one.
    pub owner: Ids,
    /// The UID belongs to this workspace and to nobody else.
    pub bound: bool,
    /// Its name, where it is a user's.
    pub name: Option<String>,
    lock: Flock<OwnedFd>,
    nested: Option<Nested>,
}

impl Kept {
    /// What holds it, for a process that closes everything else.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.lock.as_fd()).chain(self.nested.iter().map(Nested::descriptor))
    }
}

/// Groups below this are the system's: disk, shadow, docker, …
const FIRST_GID: u32 = 1000;

pub(crate) const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Opens the workspace that the caller asks for; nothing for a fresh one.
///
/// # Errors
/// A link, no directory, somebody else's, writable by everybody, or held by another run.
pub fn open(request: &Request, state: &State, range: UidRange, switch: bool) -> Result<Option<Kept>> {
    match &request.workspace {
        Workspace::Fresh => Ok(None),
        Workspace::Directory(path) => open_directory(path, state, switch).map(Some),
        Workspace::User => open_user(&request.user, state, range, switch).map(Some),
    }
}

fn open_directory(path: &Path, state: &State, switch: bool) -> Result<Kept> {
    let object = format!("use workspace {}", path.display());
    let refuse = |cause: String, hint: &str| Err(Error::new(&*object, cause).hint(hint));
    let opened = File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path);
    let dir = match opened {
        Ok(dir) => dir,
        Err(error) if path.is_symlink() => {
            return refuse(format!("it is a link ({error})"), "name the directory itself");
        }
        Err(error) => {
            return Err(Error::new(&*object, error).hint("name a directory that exists and that this user may enter"));
        }
    };
    let meta = dir.metadata().map_err(|error| Error::new(&*object, error))?;
    let me = nix::unistd::geteuid().as_raw();
    if me != 0 && meta.uid() != me {
        return refuse(format!("it belongs to uid {}", meta.uid()), "name a directory of your own");
    }
    if switch && meta.uid() == 0 {
        return refuse("it belongs to root, and no agent runs as root".into(), "chown it to a UID of its own");
    }
    if meta.mode() & 0o002 != 0 {
        return refuse(format!("everybody can write it (mode {:04o})", meta.mode() & 0o7777), "chmod o-w it");
    }
    let real = path
        .canonicalize()
        .map_err(|error| Error::new(&*object, error).hint("name a directory that this user may enter"))?;
    let states = state;
    let state = state.path.canonicalize().unwrap_or_else(|_| state.path.clone());
    let home = crate::sys::environ::home().map(|home| home.canonicalize().unwrap_or(home));
    if state.starts_with(&real) || home.is_some_and(|home| home.starts_with(&real)) {
        return refuse("it holds a HOME or the state directory".into(), "name the directory of the project alone");
    }
    if real.starts_with(&state) {
        return refuse(
            "it is inside the state directory".into(),
            "name a directory of your own, or use --workspace user",
        );
    }
    // A group of the system's could open more than the workspace.
    let gid = if meta.gid() < FIRST_GID { meta.uid() } else { meta.gid() };
    let owner = Ids { uid: Uid::from_raw(meta.uid()), gid: Gid::from_raw(gid) };
    Ok(Kept {
        owner,
        bound: false,
        name: None,
        lock: lock(&dir, &object)?,
        nested: Some(not_nested(states, &dir, &object)?),
        directory: CheckedDirectory { path: real, fd: dir.into() },
    })
}

/// P3: while one run holds a workspace no other does.
fn lock(dir: &File, object: &str) -> Result<Flock<OwnedFd>> {
    let until = Instant::now() + ENDING;
    loop {
        let copy = dir.try_clone().map_err(|error| Error::new(object, error))?;
        match Flock::lock(OwnedFd::from(copy), FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(Error::new(object, "another run holds it")
                    .hint("wait for that run to end, or name another directory"));
            }
            Err((_, errno)) => return Err(Error::new(object, errno)),
        }
    }
}

/// Holds it against runs in a directory above or below, too.
fn not_nested(state: &State, dir: &File, object: &str) -> Result<Nested> {
    let until = Instant::now() + ENDING;
    loop {
        match Nested::take(state, dir.as_fd()) {
            Ok(Some(nested)) => return Ok(nested),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                return Err(Error::new(object, "another run works in a directory above or below it")
                    .hint("wait for that run to end, or name another directory"));
            }
            Err(errno) => {
                return Err(Error::new(format!("{object} apart from those above and below"), errno)
                    .hint("use a kernel with locks of open files (F_OFD_SETLK) and a file system that has them"));
            }
        }
    }
}

/// A UID that outlives runs may become an account's meanwhile: the agent would be that account.
fn nobodys(uid: Uid, place: &Path) -> Result<()> {
    let number = UidRange { first: uid.as_raw(), last: uid.as_raw() };
    let object = format!("use the user's workspace {} of UID {uid}", place.display());
    match crate::host::ranges::Ranges::read(&[number]) {
        crate::host::facts::Fact::Lacks(lack) => Err(Error::new(object, lack.why).hint(lack.remedy)),
        crate::host::facts::Fact::Has(ranges) => match ranges.taken(number) {
            Some(other) => Err(Error::new(object, format!("that number is by now {}", other.whose))
                .hint("chown -R the workspace to a free UID of --uid-range, or change the number of the account")),
            None => Ok(()),
        },
    }
}

/// How long the keeper of a run whose launcher was killed may still hold it.
const ENDING: Duration = Duration::from_secs(1);

/// The kept workspace of a user. Its name is a keyed hash of the user id: nobody guesses it, and no id is a path.
fn open_user(user: &UserId, state: &State, range: UidRange, switch: bool) -> Result<Kept> {
    let (place, kept) = state.kept("workspaces")?;
    let failed = |errno: Errno| match errno {
        Errno::EUSERS => {
            let (_, UidRange { first, last }) = crate::cell::uids::split(range);
            let cause = format!("every UID of {first}-{last} is bound to the workspace of another user");
            Error::new("open the user's workspace", cause)
                .hint(format!("name a larger range with --uid-range, or remove workspaces from {}", place.display()))
        }
        errno => Error::new("open the user's workspace", errno).hint("make the persistent state directory writable"),
    };
    let name = hashed(user, &key(kept.as_fd()).map_err(failed)?);
    let path = place.join(&name);
    let dir = match openat(&kept, name.as_str(), DIRECTORY, Mode::empty()) {
        Err(Errno::ENOENT) => make_user(&kept, &name, range, switch).map_err(failed)?,
        other => other.map_err(failed)?,
    };
    let stat = fstat(&dir).map_err(failed)?;
    let owner = Ids { uid: Uid::from_raw(stat.st_uid), gid: Gid::from_raw(stat.st_gid) };
    if switch {
        nobodys(owner.uid, &path)?;
    }
    let dir = File::from(dir);
    Ok(Kept {
        owner,
        bound: switch,
        name: Some(name),
        lock: lock(&dir, "use the user's workspace")?,
        nested: None,
        directory: CheckedDirectory { path, fd: dir.into() },
    })
}

/// Made under another name, given to its UID, then renamed: a workspace is never there without its owner.
fn make_user(kept: &OwnedFd, name: &str, range: UidRange, switch: bool) -> Result<OwnedFd, Errno> {
    let guard = openat(kept, ".", DIRECTORY, Mode::empty())?;
    let _one_at_a_time = Flock::lock(guard, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    if let Ok(dir) = openat(kept, name, DIRECTORY, Mode::empty()) {
        return Ok(dir);
    }
    let draft = format!(".draft-{}", crate::sys::random::name()?);
    mkdirat(kept, draft.as_str(), Mode::S_IRWXU)?;
    let made = (|| {
        if switch {
            let uid = free_uid(kept, range)?;
            fchownat(
                kept,
                draft.as_str(),
                Some(Uid::from_raw(uid)),
                Some(Gid::from_raw(uid)),
                nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
            )?;
        }
        nix::fcntl::renameat(kept, draft.as_str(), kept, name)?;
        openat(kept, name, DIRECTORY, Mode::empty())
    })();
    if made.is_err() {
        let _ = unlinkat(kept, draft.as_str(), UnlinkatFlags::RemoveDir);
    }
    made
}

/// A UID of the part of the range that is bound to workspaces, which no other workspace has. Any of them, and not the first:
/// under another state directory there are others, and two with one UID could not be in use at once.
fn free_uid(kept: &OwnedFd, range: UidRange) -> Result<u32, Errno> {
    let (_, bound) = crate::cell::uids::split(range);
    let mut taken = std::collections::HashSet::new();
    // One that cannot be seen might have any of them.
    for entry in crate::fs::walk::entries(kept.as_fd())?.iter() {
        let flags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
        match nix::sys::stat::fstatat(kept, entry?.file_name(), flags) {
            Ok(stat) => drop(taken.insert(stat.st_uid)),
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    let count = bound.last - bound.first + 1;
    let start = crate::sys::random::bytes().map(u32::from_ne_bytes)? % count;
    let mut all = (start..count).chain(0..start).map(|nth| bound.first + nth);
    all.find(|uid| !taken.contains(uid)).ok_or(Errno::EUSERS)
}

/// 32 random bytes that only this user reads, made at the first need.
fn key(directory: BorrowedFd<'_>) -> Result<[u8; 32], Errno> {
    use std::io::Read;
    let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut bytes = [0; 32];
    match openat(directory, ".key", flags | OFlag::O_RDONLY, Mode::empty()) {
        Ok(file) => File::from(file).read_exact(&mut bytes).map_err(|_| Errno::EINVAL).map(|()| bytes),
        Err(Errno::ENOENT) => {
            let draft = format!(".key-{}", crate::sys::random::name()?);
            let create = flags | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            let mut file = File::from(openat(directory, draft.as_str(), create, Mode::S_IRUSR | Mode::S_IWUSR)?);
            file.write_all(&crate::sys::random::bytes::<32>()?).map_err(|error| crate::fs::walk::errno(&error))?;
            // Two first runs at once: the first link wins, and both read that one.
            let linked =
                nix::unistd::linkat(directory, draft.as_str(), directory, ".key", nix::fcntl::AtFlags::empty());
            unlinkat(directory, draft.as_str(), UnlinkatFlags::NoRemoveDir)?;
            match linked {
                Ok(()) | Err(Errno::EEXIST) => key(directory),
                Err(errno) => Err(errno),
            }
        }
        Err(errno) => Err(errno),
    }
}

/// The name of a user's workspace.
pub fn hashed(user: &UserId, key: &[u8; 32]) -> String {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes a key of any length"));
    mac.update(user.as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a copy may hold at most under a policy.
pub fn bounds(limits: &Limits) -> Bounds {
    Bounds { bytes: limits.disk.0, files: limits.files.into(), ..Bounds::default() }
}

/// Opens the directory of `--copy-in`.
///
/// # Errors
/// It is no directory, or cannot be read.
pub fn open_source(path: &Path) -> Result<OwnedFd> {
    let opened = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(path);
    opened.map(OwnedFd::from).map_err(|error| {
        Error::new(format!("copy in {}", path.display()), error).hint("name a directory that this user may read")
    })
}

/// What fills workspace and HOME at the start of a run.
#[derive(Debug, Clone, Copy)]
pub struct Filling<'a> {
    /// Copied into a fresh workspace.
    pub source: Option<BorrowedFd<'a>>,
    /// The caller's workspace.
    pub kept: Option<BorrowedFd<'a>>,
    /// What the agent resumes from, for its HOME.
    pub home: Option<BorrowedFd<'a>>,
    /// Keep a copy of the workspace as it is at the start.
    pub keep_base: bool,
    /// The owner of what is copied, where it is not the launcher.
    pub owner: Option<Ids>,
    /// How much.
    pub bounds: Bounds,
}

/// Fills `work`, `home` and, where a patch is wanted, `base` in the directory of the cell, and gives what was passed over
/// of the source.
///
/// # Errors
/// What could not be copied.
pub fn fill(top: BorrowedFd<'_>, filling: &Filling<'_>) -> Result<Passed> {
    let dir = |name: &str| {
        openat(top, name, DIRECTORY, Mode::empty())
            .map_err(|errno| Error::new(format!("open {name} of the cell"), errno).hint("start it again"))
    };
    let owner = filling.owner.map(|ids| (ids.uid, ids.gid));
    let strict = Bounds { lenient: false, ..filling.bounds };
    if let Some(home) = filling.home {
        copy_tree(home, dir("home")?.as_fd(), owner, &strict)
            .map_err(|error| not_filled("put back what the agent resumes from", error))?;
    }
    let mut skipped = Passed::default();
    if let Some(source) = filling.source {
        let copied = copy_tree(source, dir("work")?.as_fd(), owner, &filling.bounds);
        skipped = copied.map_err(|error| not_filled("fill the workspace", error))?.skipped;
    }
    if filling.keep_base
        && let Some(from) = filling.kept.or(filling.source)
    {
        // What a source is allowed to lack, its copy lacks as well.
        let bounds = if filling.kept.is_some() { &strict } else { &filling.bounds };
        copy_tree(from, dir("base")?.as_fd(), None, bounds)
            .map_err(|error| not_filled("keep the workspace as it is, for the patch", error))?;
    }
    Ok(skipped)
}

fn not_filled(action: &str, error: TreeError) -> Error {
    let remedy = match &error {
        TreeError::Bound { .. } => "raise limits.disk and limits.files of the policy, or name a smaller directory",
        TreeError::Mount { .. } => {
            "unmount it, or pass it over with --copy-in-skip; --workspace DIR takes a directory as it is"
        }
        TreeError::Path { errno: Errno::EACCES | Errno::EPERM, .. } => {
            "make it readable to the launcher's user, or pass it over with --copy-in-skip"
        }
        TreeError::Path { errno: Errno::ENOSPC | Errno::EDQUOT, .. } => {
            "raise limits.disk of the policy, or free the disk that the cell is on"
        }
        TreeError::Path { .. } | TreeError::Output(_) => "see that nobody changes it meanwhile, and start it again",
    };
    Error::new(action, error.to_string()).hint(remedy)
}

/// Sees that a workspace which nothing can hide a part of has no such part, nor a directory above it.
///
/// # Errors
/// One of the names is there, or it cannot be seen whether it is.
pub fn without(names: &[WorkName], work: &Path, kept: Option<&Kept>) -> Result<()> {
    let place = kept.map_or(work, |kept| &kept.directory.path);
    for directory in place.ancestors() {
        for name in names {
            let path = directory.join(name.as_str());
            if !crate::fs::trusted::absent(&path) {
                let cause = "the agent would read it for its settings, and without mount namespaces nothing hides it";
                return Err(Error::new(format!("run in a workspace with {}", path.display()), cause)
                    .hint("remove it from the workspace, or use a host with mount namespaces"));
            }
        }
    }
    Ok(())
}
