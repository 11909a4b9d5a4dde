//! Wipe, copy, export and patch on trees that a hostile program made.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, mkfifo};
use oubliette::fs::copy::copy_tree;
use oubliette::fs::export::{to_directory, to_tar};
use oubliette::fs::rights::Rights;
use oubliette::fs::walk::{Bounds, FileId, TreeError};
use oubliette::fs::wipe::{Wiped, overwrite, wipe_name};
use oubliette::fs::{patch, walk};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use crate::need;

const OTHER: u32 = 50001;

/// Runs `work` in a thread with the ids of another user: the raw calls change the calling thread alone.
#[allow(unsafe_code, reason = "the safe calls change every thread of the process")]
fn as_user<T: Send>(uid: u32, work: impl FnOnce() -> T + Send) -> T {
    in_thread(move || {
        // SAFETY: plain calls on integers; the thread ends with `work`, so nothing needs the old ids back.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()), 0);
            assert_eq!(libc::syscall(libc::SYS_setresgid, uid, uid, uid), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
        }
        work()
    })
}

/// Runs `work` in a thread with a mount namespace of its own, which no mount leaves and which dies with the thread.
/// The scratch directory is made outside, so that it is removed when no mount is in it any more.
fn in_private_mounts<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    in_thread(move || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("private");
        work()
    })
}

fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn dir(path: &Path) -> OwnedFd {
    open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).expect("open the directory")
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::write(path, content).expect("write");
}

/// A scratch directory with `cell` to be made and wiped, and `outside/` that must not change.
struct Scratch {
    dir: TempDir,
}

impl Scratch {
    fn new() -> Scratch {
        let scratch = Scratch { dir: tempfile::Builder::new().prefix("oubliette-tree-").tempdir().expect("scratch") };
        fs::create_dir(scratch.outside()).unwrap();
        fs::create_dir(scratch.outside().join("sub")).unwrap();
        write(&scratch.outside().join("keep"), "keep");
        write(&scratch.outside().join("sub/deeper"), "keep");
        scratch
    }

    fn owned_by(uid: u32) -> Scratch {
        let scratch = Scratch::new();
        for path in [scratch.path().to_owned(), scratch.outside(), scratch.outside().join("keep")] {
            std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
        }
        scratch
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn cell(&self) -> PathBuf {
        self.path().join("cell")
    }

    fn outside(&self) -> PathBuf {
        self.path().join("outside")
    }

    fn wipe(&self) -> Wiped {
        wipe_name(dir(self.path()).as_fd(), OsStr::new("cell"))
    }

    fn assert_intact(&self) {
        assert_eq!(fs::read(self.outside().join("keep")).unwrap(), b"keep");
        assert_eq!(fs::read(self.outside().join("sub/deeper")).unwrap(), b"keep");
        assert_eq!(fs::metadata(self.outside()).unwrap().mode() & 0o777, 0o755);
    }

    fn assert_gone(&self, wiped: &Wiped) {
        assert_eq!(wiped.left, [], "nothing is left");
        assert!(fs::symlink_metadata(self.cell()).is_err(), "the cell is gone");
        self.assert_intact();
    }
}

// ---- hostile leftovers ----------------------------------------------------------------------------------------------

type Case = fn(&Path);

fn closed_directories(cell: &Path) {
    for i in 0..20 {
        let a = cell.join(format!("a{i}"));
        fs::create_dir_all(a.join("b/c")).unwrap();
        write(&a.join("b/c/f"), "");
        for below in ["b/c", "b", ""] {
            chmod(&a.join(below), 0);
        }
    }
}

fn closed_top(cell: &Path) {
    fs::create_dir(cell.join("x")).unwrap();
    write(&cell.join("x/f"), "");
    chmod(&cell.join("x"), 0o500);
    chmod(cell, 0);
}

fn odd_names(cell: &Path) {
    mkfifo(&cell.join("fifo"), Mode::S_IRWXU).unwrap();
    drop(UnixListener::bind(cell.join("sock")).unwrap());
    for name in [&b"new\nline"[..], b"-rf", b" ", b"\xff\xfe", b"*", &[b'x'; 255], b"...", b"\x1b[2J", b".wipe-0"] {
        write(&cell.join(OsStr::from_bytes(name)), "");
        let sub = cell.join(OsStr::from_bytes(&[&name[..name.len().min(200)], b".d"].concat()));
        fs::create_dir(&sub).unwrap();
        write(&sub.join(OsStr::from_bytes(name)), "");
    }
    let full = cell.join(OsStr::from_bytes(&[b'y'; 255]));
    fs::create_dir(&full).unwrap();
    write(&full.join("f"), "");
    fs::create_dir(cell.join("sticky")).unwrap();
    write(&cell.join("sticky/f"), "");
    chmod(&cell.join("sticky"), 0o1000);
}

fn links(cell: &Path) {
    let outside = cell.parent().unwrap().join("outside");
    symlink(&outside, cell.join("out")).unwrap();
    symlink("../outside", cell.join("relative")).unwrap();
    symlink(outside.join("keep"), cell.join("file")).unwrap();
    symlink("..", cell.join("up")).unwrap();
    symlink("loop", cell.join("loop")).unwrap();
    symlink("/etc/passwd", cell.join("passwd")).unwrap();
    fs::create_dir(cell.join("d")).unwrap();
    symlink(&outside, cell.join("d/out")).unwrap();
    fs::hard_link(outside.join("keep"), cell.join("d/hard")).unwrap();
    chmod(&cell.join("d"), 0);
}

fn deep(cell: &Path) {
    let mut fd = dir(cell);
    for _ in 0..10_000 {
        nix::sys::stat::mkdirat(&fd, "d", Mode::S_IRWXU).unwrap();
        fd = walk::open_dir(fd.as_fd(), OsStr::new("d")).unwrap();
    }
    drop(openat(&fd, "leaf", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRUSR).unwrap());
}

fn many(cell: &Path) {
    for i in 0..100 {
        let sub = cell.join(format!("m{i}"));
        fs::create_dir(&sub).unwrap();
        let fd = dir(&sub);
        for k in 0..1000 {
            drop(openat(&fd, format!("f{k}").as_str(), OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRUSR).unwrap());
        }
    }
}

fn bushy(cell: &Path) {
    for i in 0..2000 {
        fs::create_dir_all(cell.join(format!("a{}/b{}/c{i}/d", i % 7, i % 31))).unwrap();
    }
}

/// As root and as another user. The soft limit of descriptors is the usual one, whatever the runner has.
fn wipes(case: Case) {
    let hard = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap().1;
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 1024.min(hard), hard);
    let run = |scratch: &Scratch| {
        fs::create_dir(scratch.cell()).unwrap();
        case(&scratch.cell());
        let start = Instant::now();
        let wiped = scratch.wipe();
        println!("{} names in {:?}", wiped.files, start.elapsed());
        scratch.assert_gone(&wiped);
        assert!(wiped.files > 0);
    };
    run(&Scratch::new());
    if !need::as_root() {
        return;
    }
    let scratch = Scratch::owned_by(OTHER);
    as_user(OTHER, || run(&scratch));
}

#[test]
fn wipe_repairs_closed_directories() {
    wipes(closed_directories);
}

#[test]
fn wipe_repairs_the_closed_cell_itself() {
    wipes(closed_top);
}

#[test]
fn wipe_takes_any_name_and_kind() {
    wipes(odd_names);
}

#[test]
fn wipe_follows_no_link_and_spares_the_other_name_of_a_file() {
    wipes(links);
}

#[test]
fn wipe_ten_thousand_levels() {
    wipes(deep);
}

#[test]
fn wipe_a_hundred_thousand_files() {
    wipes(many);
}

#[test]
fn wipe_many_directories() {
    wipes(bushy);
}

#[test]
fn wipe_of_what_is_no_directory() {
    let scratch = Scratch::new();
    scratch.assert_gone(&scratch.wipe());
    symlink("outside", scratch.cell()).unwrap();
    let wiped = scratch.wipe();
    scratch.assert_gone(&wiped);
    assert_eq!(wiped.files, 1);
    fs::hard_link(scratch.outside().join("keep"), scratch.cell()).unwrap();
    scratch.assert_gone(&scratch.wipe());
}

fn set_flag(path: &Path, flag: &str) {
    let done = Command::new("chattr").arg(flag).arg(path).output().expect("chattr");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn wipe_clears_immutable_and_append_only() {
    if !need::as_root() {
        return;
    }
    let scratch = Scratch::new();
    let i = scratch.cell().join("i");
    fs::create_dir_all(i.join("sub/deeper")).unwrap();
    for file in ["f", "sub/a", "sub/deeper/g"] {
        write(&i.join(file), "");
    }
    for (flag, at) in [("+a", "sub/a"), ("+i", "f"), ("+i", "sub/deeper"), ("+i", "sub"), ("+a", "")] {
        set_flag(&i.join(at), flag);
    }
    set_flag(&scratch.cell(), "+i");
    scratch.assert_gone(&scratch.wipe());
}

#[test]
fn wipe_leaves_the_flags_of_a_file_that_has_another_name() {
    if !need::as_root() {
        return;
    }
    let scratch = Scratch::new();
    fs::create_dir(scratch.cell()).unwrap();
    let keep = scratch.outside().join("keep");
    fs::hard_link(&keep, scratch.cell().join("theirs\n")).unwrap();
    set_flag(&keep, "+i");
    let wiped = scratch.wipe();
    let still = Command::new("lsattr").arg(&keep).output().unwrap().stdout;
    set_flag(&keep, "-i");
    assert_eq!(wiped.left.len(), 1);
    assert_eq!(wiped.left[0].name, "theirs\\n");
    assert_eq!(wiped.left[0].why, Errno::EPERM.desc());
    assert!(String::from_utf8_lossy(&still).split(' ').next().unwrap().contains('i'), "the flag is still set");
    scratch.assert_intact();
    scratch.assert_gone(&scratch.wipe());
}

#[test]
fn wipe_names_what_it_cannot_remove_and_removes_the_rest() {
    if !need::as_root() {
        return;
    }
    let scratch = Scratch::owned_by(OTHER);
    fs::create_dir_all(scratch.cell().join("a/b/theirs")).unwrap();
    write(&scratch.cell().join("a/b/theirs/f"), "");
    write(&scratch.cell().join("a/b/mine"), "");
    for at in ["", "a", "a/b", "a/b/mine"] {
        std::os::unix::fs::chown(scratch.cell().join(at), Some(OTHER), Some(OTHER)).unwrap();
    }
    let wiped = as_user(OTHER, || scratch.wipe());
    assert_eq!(wiped.left.len(), 1, "{:?}", wiped.left);
    assert_eq!(wiped.left[0].name, "a/b/theirs");
    assert!(wiped.left[0].why.starts_with("Permission denied; now at .wipe-"), "{:?}", wiped.left);
    assert_eq!(wiped.files, 2, "mine and a");
    scratch.assert_gone(&scratch.wipe());
}

fn bind(from: &Path, to: &Path) {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind");
}

fn tmpfs(to: &Path) {
    mount(Some("none"), to, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
}

#[test]
fn wipe_detaches_mounts_and_never_enters_them() {
    if !need::as_root() {
        return;
    }
    let scratch = Scratch::new();
    in_private_mounts(|| {
        let cell = scratch.cell();
        for sub in ["bound", "t", "x/y/bound", "x/y/t"] {
            fs::create_dir_all(cell.join(sub)).unwrap();
        }
        write(&cell.join("file"), "");
        write(&cell.join("x/y/file"), "");
        for at in ["bound", "x/y/bound"] {
            bind(&scratch.outside(), &cell.join(at));
        }
        for at in ["file", "x/y/file"] {
            bind(&scratch.outside().join("keep"), &cell.join(at));
        }
        for at in ["t", "t", "x/y/t"] {
            tmpfs(&cell.join(at));
            fs::create_dir(cell.join(at).join("in")).unwrap();
            write(&cell.join(at).join("in/f"), "");
        }
        chmod(&cell.join("x/y"), 0);
        scratch.assert_gone(&scratch.wipe());
    });
}

#[test]
fn wipe_of_a_cell_that_is_itself_a_mount() {
    if !need::as_root() {
        return;
    }
    let scratch = Scratch::new();
    in_private_mounts(|| {
        fs::create_dir(scratch.cell()).unwrap();
        write(&scratch.cell().join("under"), "");
        tmpfs(&scratch.cell());
        write(&scratch.cell().join("in"), "");
        bind(&scratch.outside(), &scratch.cell());
        scratch.assert_gone(&scratch.wipe());
    });
}

#[test]
fn wipe_that_may_not_unmount_says_so() {
    if !need::as_root() {
        return;
    }
    let scratch = Scratch::owned_by(OTHER);
    in_private_mounts(|| {
        fs::create_dir_all(scratch.cell().join("d/bound")).unwrap();
        write(&scratch.cell().join("d/mine"), "");
        for at in ["", "d", "d/bound", "d/mine"] {
            std::os::unix::fs::chown(scratch.cell().join(at), Some(OTHER), Some(OTHER)).unwrap();
        }
        bind(&scratch.outside(), &scratch.cell().join("d/bound"));
        let wiped = as_user(OTHER, || scratch.wipe());
        scratch.assert_intact();
        assert_eq!(wiped.left.len(), 1, "{:?}", wiped.left);
        assert_eq!(wiped.left[0].name, "d/bound");
        assert!(wiped.left[0].why.contains("mounted"), "{:?}", wiped.left);
        assert_eq!(wiped.files, 1);
        scratch.assert_gone(&scratch.wipe());
    });
}

// ---- overwrite ------------------------------------------------------------------------------------------------------

const SECRET: &[u8] = b"oubliette-test-secret-0123456789";

fn id(path: &Path) -> FileId {
    walk::status(dir(path.parent().unwrap()).as_fd(), path.file_name().unwrap()).unwrap().id
}

fn reopened(file: &mut File) -> Vec<u8> {
    let mut content = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut content).unwrap();
    content
}

#[test]
fn overwrite_zeroes_in_place_and_unlinks() {
    let work = |scratch: &Scratch| {
        for mode in [0o600, 0o400, 0] {
            for known in [true, false] {
                let path = scratch.path().join("credential");
                write(&path, SECRET);
                let mut held = File::open(&path).unwrap();
                chmod(&path, mode);
                let written = known.then(|| id(&path));
                overwrite(dir(scratch.path()).as_fd(), OsStr::new("credential"), written).unwrap();
                assert_eq!(reopened(&mut held), vec![0; SECRET.len()], "the same blocks hold zeros");
                assert!(!path.exists());
            }
        }
    };
    work(&Scratch::new());
    if !need::as_root() {
        return;
    }
    let scratch = Scratch::owned_by(OTHER);
    as_user(OTHER, || work(&scratch));
}

#[test]
fn overwrite_is_no_weapon_against_other_files() {
    let scratch = Scratch::new();
    let (at, name) = (dir(scratch.path()), OsStr::new("credential"));
    let path = scratch.path().join(name);
    let keep = scratch.outside().join("keep");
    write(&path, SECRET);
    let written = Some(id(&path));
    fs::rename(&path, scratch.path().join("moved")).unwrap();

    symlink(&keep, &path).unwrap();
    assert_eq!(overwrite(at.as_fd(), name, written), Err(Errno::ESTALE));
    fs::hard_link(&keep, &path).unwrap();
    assert_eq!(overwrite(at.as_fd(), name, written), Err(Errno::ESTALE), "another inode");
    fs::hard_link(&keep, &path).unwrap();
    assert_eq!(overwrite(at.as_fd(), name, None), Err(Errno::EMLINK), "unknown, and it has another name");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    assert_eq!(overwrite(at.as_fd(), name, None), Err(Errno::ESTALE));
    assert!(fs::symlink_metadata(&path).is_err(), "each time the name is removed");
    scratch.assert_intact();
    assert_eq!(overwrite(at.as_fd(), name, written), Err(Errno::ENOENT));
}

#[test]
fn overwrite_zeroes_the_launchers_inode_under_all_its_names() {
    let scratch = Scratch::new();
    let path = scratch.path().join("credential");
    write(&path, SECRET);
    let written = Some(id(&path));
    fs::hard_link(&path, scratch.path().join("copy")).unwrap();
    overwrite(dir(scratch.path()).as_fd(), OsStr::new("credential"), written).unwrap();
    assert_eq!(fs::read(scratch.path().join("copy")).unwrap(), vec![0; SECRET.len()]);
}

// ---- copy -----------------------------------------------------------------------------------------------------------

fn hostile_tree(root: &Path) {
    fs::create_dir(root).unwrap();
    odd_names(root);
    chmod(&root.join("sticky"), 0o1755);
    fs::create_dir(root.join("links")).unwrap();
    symlink("/etc/passwd", root.join("links/absolute")).unwrap();
    symlink("../../../..//x/./y", root.join("links/up")).unwrap();
    symlink("loop", root.join("links/loop")).unwrap();
    symlink(OsStr::from_bytes(&[b'z'; 300]), root.join("links/long")).unwrap();
    symlink(OsStr::from_bytes(b"\xff\n\x1b"), root.join("links/odd")).unwrap();
    write(&root.join("setuid"), "#!/bin/sh\n");
    chmod(&root.join("setuid"), 0o6755);
    let deep = root.join("d".repeat(90)).join("e".repeat(90)).join("f".repeat(90));
    fs::create_dir_all(&deep).unwrap();
    write(&deep.join("far"), "far");
    fs::hard_link(deep.join("far"), root.join("hard")).unwrap();
    let mut sparse = File::create(root.join("sparse")).unwrap();
    sparse.seek(SeekFrom::Start(8 << 20)).unwrap();
    sparse.write_all(b"data").unwrap();
    sparse.set_len(32 << 20).unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_000_000);
    File::options().write(true).open(root.join("setuid")).unwrap().set_modified(old).unwrap();
    File::open(root.join("links")).unwrap().set_modified(old).unwrap();
}

#[derive(Debug, PartialEq, Eq, Clone)]
enum Thing {
    Dir(u32),
    File(u32, Vec<u8>),
    Link(Vec<u8>),
    Other,
}

/// Everything below `root` by path.
fn snapshot(root: &Path) -> BTreeMap<Vec<u8>, Thing> {
    fn walk(at: &Path, prefix: &[u8], all: &mut BTreeMap<Vec<u8>, Thing>) {
        for entry in fs::read_dir(at).unwrap() {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            let path = [prefix, entry.file_name().as_bytes()].concat();
            let mode = meta.mode() & 0o7777;
            if meta.is_dir() {
                walk(&entry.path(), &[&path[..], b"/"].concat(), all);
                all.insert(path, Thing::Dir(mode));
            } else if meta.is_file() {
                all.insert(path, Thing::File(mode, fs::read(entry.path()).unwrap()));
            } else if meta.is_symlink() {
                all.insert(path, Thing::Link(fs::read_link(entry.path()).unwrap().into_os_string().into_vec()));
            } else {
                all.insert(path, Thing::Other);
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(root, b"", &mut all);
    all
}

/// What may leave a cell: no fifo, no socket, no set-id or sticky bit.
fn harmless(all: BTreeMap<Vec<u8>, Thing>) -> BTreeMap<Vec<u8>, Thing> {
    let clean = |thing| match thing {
        Thing::Dir(mode) => Some(Thing::Dir(mode & 0o777 | 0o700)),
        Thing::File(mode, content) => Some(Thing::File(mode & 0o777, content)),
        Thing::Link(text) => Some(Thing::Link(text)),
        Thing::Other => None,
    };
    all.into_iter().filter_map(|(path, thing)| Some((path, clean(thing)?))).collect()
}

#[test]
fn copy_takes_content_and_nothing_that_acts() {
    let scratch = Scratch::new();
    let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
    hostile_tree(&from);
    fs::create_dir(&to).unwrap();
    let copied = copy_tree(dir(&from).as_fd(), dir(&to).as_fd(), None, &Bounds::default()).unwrap();
    assert_eq!(snapshot(&to), harmless(snapshot(&from)));
    assert_eq!((copied.skipped.total, copied.links), (2, 5));
    let listed: Vec<&str> = copied.skipped.listed.iter().map(|one| one.why.as_str()).collect();
    assert_eq!((listed.len(), listed.contains(&"a fifo")), (2, true), "{listed:?}");
    for at in ["setuid", "links"] {
        assert_eq!(fs::metadata(to.join(at)).unwrap().mtime(), 1_000_000_000, "{at}");
        assert_eq!(fs::metadata(to.join(at)).unwrap().mtime_nsec(), 123_000_000, "{at}");
    }
    let sparse = fs::metadata(to.join("sparse")).unwrap();
    assert!(sparse.len() == 32 << 20 && sparse.blocks() < 1024, "{} blocks", sparse.blocks());
    assert_eq!(fs::metadata(to.join("hard")).unwrap().nlink(), 1);
}

#[test]
fn copy_gives_everything_to_the_owner() {
    if !need::as_root() {
        return;
    }
    let scratch = Scratch::new();
    let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
    hostile_tree(&from);
    fs::create_dir(&to).unwrap();
    let owner = Some((Uid::from_raw(OTHER), Gid::from_raw(OTHER + 1)));
    copy_tree(dir(&from).as_fd(), dir(&to).as_fd(), owner, &Bounds::default()).unwrap();
    for path in snapshot(&to).keys() {
        let meta = fs::symlink_metadata(to.join(OsStr::from_bytes(path))).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o6000), (OTHER, OTHER + 1, 0), "{path:?}");
    }
    assert_eq!(fs::metadata(&to).unwrap().uid(), 0, "the root is the caller's to give");
}

#[test]
fn copy_does_not_enter_mounts() {
    if !need::as_root() {
        return;
    }
    let scratch = Scratch::new();
    in_private_mounts(|| {
        let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
        for sub in ["bound", "t"] {
            fs::create_dir_all(from.join(sub)).unwrap();
        }
        write(&from.join("file"), "");
        fs::create_dir(&to).unwrap();
        bind(&scratch.outside(), &from.join("bound"));
        bind(&scratch.outside().join("keep"), &from.join("file"));
        tmpfs(&from.join("t"));
        let refused = copy_tree(dir(&from).as_fd(), dir(&to).as_fd(), None, &Bounds::default()).unwrap_err();
        assert_eq!(refused.to_string(), "another file system is mounted at `bound`");
        let lenient = Bounds { lenient: true, ..Bounds::default() };
        let copied = copy_tree(dir(&from).as_fd(), dir(&to).as_fd(), None, &lenient).unwrap();
        assert_eq!((copied.skipped.total, snapshot(&to).len()), (3, 0));
        let listed: Vec<&str> = copied.skipped.listed.iter().map(|one| one.path.as_str()).collect();
        assert_eq!(listed, ["bound", "file", "t"]);
    });
}

fn bound(result: Result<impl std::fmt::Debug, TreeError>) -> (String, &'static str, u64) {
    match result.expect_err("a bound is exceeded") {
        TreeError::Bound { path, bound, limit } => (path, bound, limit),
        other => panic!("{other}"),
    }
}

#[test]
fn bounds_name_the_path() {
    let scratch = Scratch::new();
    let from = scratch.path().join("from");
    fs::create_dir_all(from.join("a/b/c")).unwrap();
    write(&from.join("a/b/big\n"), vec![1; 5000]);
    let to = |n: u32| {
        let path = scratch.path().join(format!("to{n}"));
        fs::create_dir(&path).unwrap();
        dir(&path)
    };
    let (all, from_fd) = (Bounds::default(), dir(&from));
    let copy = |to: OwnedFd, bounds| bound(copy_tree(from_fd.as_fd(), to.as_fd(), None, &bounds));
    assert_eq!(copy(to(1), Bounds { bytes: 4999, ..all }), ("a/b/big\\n".into(), "bytes", 4999));
    assert_eq!(copy(to(2), Bounds { files: 3, ..all }), ("a/b".into(), "files", 3));
    assert_eq!(copy(to(3), Bounds { depth: 2, ..all }), ("a/b/c".into(), "levels", 2));
    let exact = Bounds { bytes: 5000, files: 4, depth: 3, lenient: false };
    copy_tree(from_fd.as_fd(), to(4).as_fd(), None, &exact).unwrap();
    let error = copy_tree(from_fd.as_fd(), to(5).as_fd(), None, &Bounds { bytes: 1, ..all }).unwrap_err();
    assert_eq!(error.to_string(), "`a/b/big\\n` exceeds the bound of 1 bytes");
}

#[test]
fn copy_of_twenty_thousand_small_files_is_quick() {
    let scratch = Scratch::new();
    let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
    for i in 0..100 {
        let sub = from.join(format!("d{i}"));
        fs::create_dir_all(&sub).unwrap();
        for k in 0..200 {
            write(&sub.join(format!("f{k}")), [7; 700]);
        }
    }
    fs::create_dir(&to).unwrap();
    let start = Instant::now();
    let copied = copy_tree(dir(&from).as_fd(), dir(&to).as_fd(), None, &Bounds::default()).unwrap();
    let took = start.elapsed();
    println!("20000 files copied in {took:?}");
    assert_eq!((copied.files, copied.bytes), (20_000, 14_000_000));
    assert!(took < Duration::from_secs(20), "{took:?}");
    let start = Instant::now();
    wipe_name(dir(scratch.path()).as_fd(), OsStr::new("to"));
    println!("20000 files wiped in {:?}", start.elapsed());
}

// ---- export ---------------------------------------------------------------------------------------------------------

fn export(scratch: &Scratch, from: &Path, bounds: &Bounds) -> Result<walk::Bounds, TreeError> {
    to_directory(dir(from).as_fd(), dir(scratch.path()).as_fd(), Rights::OWN, OsStr::new("target"), bounds)
        .map(|_| *bounds)
}

fn names(scratch: &Scratch) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn export_to_a_directory_appears_complete_or_not_at_all() {
    let scratch = Scratch::new();
    let (from, target) = (scratch.path().join("from"), scratch.path().join("target"));
    hostile_tree(&from);
    let small = Bounds { bytes: 100, ..Bounds::default() };
    assert_eq!(bound(export(&scratch, &from, &small)).1, "bytes");
    assert_eq!(names(&scratch), ["from", "outside"], "a failure leaves nothing");

    export(&scratch, &from, &Bounds::default()).unwrap();
    assert_eq!(snapshot(&target), harmless(snapshot(&from)));
    assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(names(&scratch), ["from", "outside", "target"]);

    let before = snapshot(&target);
    assert!(export(&scratch, &from, &Bounds::default()).is_err(), "not empty");
    assert_eq!(snapshot(&target), before);
    fs::remove_dir_all(&target).unwrap();

    fs::create_dir(&target).unwrap();
    chmod(&target, 0o750);
    export(&scratch, &from, &Bounds::default()).unwrap();
    assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o750, "an empty directory gives its mode");
    fs::remove_dir_all(&target).unwrap();

    fs::create_dir(scratch.path().join("empty")).unwrap();
    symlink("empty", &target).unwrap();
    assert!(export(&scratch, &from, &Bounds::default()).is_err(), "a link, even to an empty directory");
    fs::remove_file(&target).unwrap();
    write(&target, "file");
    assert!(export(&scratch, &from, &Bounds::default()).is_err(), "a file");
    assert_eq!(fs::read(&target).unwrap(), b"file");
    assert_eq!(names(&scratch), ["empty", "from", "outside", "target"]);
}

#[test]
fn export_does_not_take_over_a_directory_of_somebody_else() {
    if !need::as_root() {
        return;
    }
    let scratch = Scratch::new();
    let (from, target) = (scratch.path().join("from"), scratch.path().join("target"));
    hostile_tree(&from);
    fs::create_dir(&target).unwrap();
    std::os::unix::fs::chown(&target, Some(OTHER), Some(OTHER)).unwrap();
    assert!(export(&scratch, &from, &Bounds::default()).is_err());
    assert_eq!(snapshot(&target).len(), 0);
}

#[test]
fn export_to_tar_is_what_tar_reads() {
    let scratch = Scratch::new();
    let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
    hostile_tree(&from);
    fs::create_dir(&to).unwrap();
    let archive = scratch.path().join("out.tar");
    let done = to_tar(dir(&from).as_fd(), &mut File::create(&archive).unwrap(), &Bounds::default()).unwrap();
    assert_eq!((done.skipped.total, done.links), (2, 5));
    let unpacked = Command::new("tar").arg("-xpf").arg(&archive).arg("-C").arg(&to).output().unwrap();
    assert!(unpacked.status.success(), "{}", String::from_utf8_lossy(&unpacked.stderr));
    assert_eq!(snapshot(&to), harmless(snapshot(&from)));
    let listed = Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(&archive).output().unwrap().stdout;
    let listed = String::from_utf8_lossy(&listed).into_owned();
    assert!(listed.lines().all(|line| line.contains(" 0/0 ")), "{listed}");
    let mut second = Vec::new();
    to_tar(dir(&from).as_fd(), &mut second, &Bounds::default()).unwrap();
    assert_eq!(second, fs::read(&archive).unwrap(), "the same tree gives the same archive");
}

#[test]
fn export_to_tar_bounds_a_sparse_file() {
    let scratch = Scratch::new();
    let from = scratch.path().join("from");
    fs::create_dir(&from).unwrap();
    File::create(from.join("hole")).unwrap().set_len(1 << 42).unwrap();
    let mut out = Vec::new();
    let error = bound(to_tar(dir(&from).as_fd(), &mut out, &Bounds::default()));
    assert_eq!((error.0.as_str(), error.1), ("hole", "bytes"));
    assert!(out.len() <= 1024);
}

// ---- patch ----------------------------------------------------------------------------------------------------------

fn make_patch(base: &Path, work: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    patch::write(dir(base).as_fd(), dir(work).as_fd(), &mut out, &Bounds::default()).unwrap();
    out
}

fn git_apply(at: &Path, patch: &Path, reverse: bool) {
    let mut git = Command::new("git");
    git.arg("-C").arg(at).args(["apply", "--binary", "--whitespace=nowarn"]).args(reverse.then_some("-R")).arg(patch);
    git.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", "/nonexistent");
    git.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CEILING_DIRECTORIES", "/");
    let done = git.output().expect("git");
    let (errors, text) = (String::from_utf8_lossy(&done.stderr), fs::read(patch).unwrap());
    assert!(done.status.success(), "{errors}\n{}", String::from_utf8_lossy(&text[..text.len().min(4000)]));
}

/// What a git tree can say: files as 644 or 755, links, no empty directory.
fn as_git_sees(root: &Path) -> BTreeMap<Vec<u8>, Thing> {
    let see = |thing| match thing {
        Thing::File(mode, content) => Some(Thing::File(if mode & 0o100 == 0 { 0o644 } else { 0o755 }, content)),
        Thing::Link(text) => Some(Thing::Link(text)),
        _ => None,
    };
    snapshot(root).into_iter().filter_map(|(path, thing)| Some((path, see(thing)?))).collect()
}

fn assert_same(got: &BTreeMap<Vec<u8>, Thing>, wanted: &BTreeMap<Vec<u8>, Thing>) {
    for path in got.keys().chain(wanted.keys()) {
        assert_eq!(got.get(path), wanted.get(path), "{}", walk::printable(path));
    }
}

/// `git apply -R` (2.47) forgets the mode of what the patch removed, with a patch of `git diff` as well: content only.
fn contents(all: BTreeMap<Vec<u8>, Thing>) -> BTreeMap<Vec<u8>, Thing> {
    let bare = |thing| match thing {
        Thing::File(_, content) | Thing::Link(content) => Thing::Link(content),
        other => other,
    };
    all.into_iter().map(|(path, thing)| (path, bare(thing))).collect()
}

/// Applies the patch to a copy of `base` and back, and compares.
fn assert_applies(scratch: &Path, base: &Path, work: &Path) {
    let (copy, file) = (scratch.join("copy"), scratch.join("patch"));
    fs::create_dir(&copy).unwrap();
    copy_tree(dir(base).as_fd(), dir(&copy).as_fd(), None, &Bounds::default()).unwrap();
    write(&file, make_patch(base, work));
    if fs::metadata(&file).unwrap().len() == 0 {
        assert_same(&as_git_sees(base), &as_git_sees(work));
    } else {
        git_apply(&copy, &file, false);
        assert_same(&as_git_sees(&copy), &as_git_sees(work));
        git_apply(&copy, &file, true);
        assert_same(&contents(as_git_sees(&copy)), &contents(as_git_sees(base)));
    }
    fs::remove_dir_all(&copy).unwrap();
}

const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"a.b",
    b"a b",
    b"a-",
    b"A",
    b"src",
    b"main.rs",
    b"x b",
    b"tab\t",
    b"nl\nnl",
    b"\"q\"",
    b"back\\slash",
    b"\xc3\xbc",
    b"\xff",
    b"-",
    b" ",
    b"\x1b[31m",
    b"trailing ",
    b".gitignore",
    b"b ",
    b"c.bin",
];

fn content(random: &mut StdRng) -> Vec<u8> {
    let lines = random.random_range(0..40);
    let end = *[&b"\n"[..], b"\n", b"\r\n"].choose(random).unwrap();
    let mut text = Vec::new();
    for _ in 0..lines {
        let words: &[&[u8]] = &[b"", b"}", b"return;", b"--- a/x", b"+++ b/x", b"@@ -1 +1 @@", b"\xff\xfe", b"\ttab "];
        text.extend_from_slice(words.choose(random).unwrap());
        text.extend_from_slice(end);
    }
    match random.random_range(0..8) {
        0 => text.extend_from_slice(b"no newline at the end"),
        1 => text.extend((0..random.random_range(0..300)).map(|_| random.random::<u8>())),
        2 => text.push(0),
        _ => {}
    }
    text
}

fn thing(random: &mut StdRng, at: &Path, depth: u32) {
    match random.random_range(0..10) {
        // No loops: git itself refuses a patch that puts a directory in place of a link to itself (ELOOP).
        0 => {
            let name: &[u8] = NAMES.choose(random).unwrap();
            symlink(OsStr::from_bytes(&[b"nowhere/", name].concat()), at).unwrap();
        }
        1..=3 if depth > 0 => {
            fs::create_dir(at).unwrap();
            grow(random, at, depth - 1);
        }
        n => {
            write(at, content(random));
            chmod(at, if n == 9 { 0o755 } else { 0o644 });
        }
    }
}

fn grow(random: &mut StdRng, at: &Path, depth: u32) {
    for _ in 0..random.random_range(1..7) {
        let path = at.join(OsStr::from_bytes(NAMES.choose(random).unwrap()));
        if fs::symlink_metadata(&path).is_err() {
            thing(random, &path, depth);
        }
    }
}

/// Changes about a third of what is there: content, mode, kind, name; removes; adds.
fn change(random: &mut StdRng, at: &Path, depth: u32) {
    let mut entries: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let meta = fs::symlink_metadata(&path).unwrap();
        match random.random_range(0..9) {
            0 | 1 => {
                if meta.is_dir() {
                    fs::remove_dir_all(&path).unwrap()
                } else {
                    fs::remove_file(&path).unwrap()
                }
                if random.random() {
                    thing(random, &path, depth.saturating_sub(1));
                }
            }
            2..=5 if meta.is_file() => {
                let mut text = fs::read(&path).unwrap();
                let cut = random.random_range(0..=text.len());
                let rest = text.split_off(cut);
                text.extend_from_slice(&content(random));
                text.extend_from_slice(&rest[random.random_range(0..=rest.len().min(5))..]);
                write(&path, text);
            }
            6 if meta.is_file() => chmod(&path, 0o755),
            _ if meta.is_dir() => change(random, &path, depth.saturating_sub(1)),
            _ => {}
        }
    }
    if random.random() {
        grow(random, at, depth);
    }
}

#[test]
fn patches_of_many_trees_apply_with_git_and_back() {
    for seed in 0..150 {
        let scratch = Scratch::new();
        let (base, work) = (scratch.path().join("base"), scratch.path().join("work"));
        let mut random = StdRng::seed_from_u64(seed);
        for path in [&base, &work] {
            fs::create_dir(path).unwrap();
        }
        grow(&mut random, &base, 3);
        copy_tree(dir(&base).as_fd(), dir(&work).as_fd(), None, &Bounds::default()).unwrap();
        change(&mut random, &work, 3);
        println!("seed {seed}");
        assert_applies(scratch.path(), &base, &work);
    }
}

fn pair(fill: impl FnOnce(&Path, &Path)) -> (Scratch, PathBuf, PathBuf) {
    let scratch = Scratch::new();
    let (base, work) = (scratch.path().join("base"), scratch.path().join("work"));
    fs::create_dir(&base).unwrap();
    fs::create_dir(&work).unwrap();
    fill(&base, &work);
    (scratch, base, work)
}

#[test]
fn patch_reads_as_git_writes_it() {
    let (_scratch, base, work) = pair(|base, work| {
        write(&base.join("mod"), "one\ntwo\nthree\n");
        write(&work.join("mod"), "one\n2\nthree");
        write(&base.join("gone"), "bye\n");
        write(&work.join("new file"), "");
        write(&base.join("run"), "x\n");
        write(&work.join("run"), "x\n");
        chmod(&work.join("run"), 0o755);
        symlink("mod", work.join("sl")).unwrap();
    });
    let expected = "\
diff --git a/gone b/gone
deleted file mode 100644
index b023018cabc396e7692c70bbf5784a93d3f738ab..0000000000000000000000000000000000000000
--- a/gone
+++ /dev/null
@@ -1 +0,0 @@
-bye
diff --git a/mod b/mod
index 4cb29ea38f70d7c61b2a3a25b02e3bdf44905402..df6ecf7f8f1e8e5e5c4a0ae37a1d0be2b36c4d5d 100644
--- a/mod
+++ b/mod
@@ -1,3 +1,3 @@
 one
-two
-three
+2
+three
\\ No newline at end of file
diff --git a/new file b/new file
new file mode 100644
index 0000000000000000000000000000000000000000..e69de29bb2d1d6434b8b29ae775ad8c2e48c5391
diff --git a/run b/run
old mode 100644
new mode 100755
diff --git a/sl b/sl
new file mode 120000
index 0000000000000000000000000000000000000000..MODLINK
--- /dev/null
+++ b/sl
@@ -0,0 +1 @@
+mod
\\ No newline at end of file
";
    // Object names are compared in a unit test and by `git apply`; here it is the shape.
    let shape = |text: &str| text.lines().filter(|line| !line.starts_with("index ")).collect::<Vec<_>>().join("\n");
    assert_eq!(shape(&String::from_utf8(make_patch(&base, &work)).unwrap()), shape(expected));
}

#[test]
fn patch_compares_content_not_size_and_time() {
    let (scratch, base, work) = pair(|base, work| {
        for (root, text) in [(base, "aaaa"), (work, "aaab")] {
            write(&root.join("f"), text);
            File::options().write(true).open(root.join("f")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
    });
    assert!(!make_patch(&base, &work).is_empty());
    assert_applies(scratch.path(), &base, &work);
}

#[test]
fn patch_leaves_out_git_directories_and_what_git_refuses() {
    let (scratch, base, work) = pair(|_, work| {
        for at in [".git", "sub/.git", "sub/.GIT"] {
            fs::create_dir_all(work.join(at)).unwrap();
            write(&work.join(at).join("config"), "[core]\n\tfsmonitor = touch /tmp/owned\n");
        }
        write(&work.join("git~1"), "x");
        symlink("elsewhere", work.join(".gitmodules")).unwrap();
        mkfifo(&work.join("fifo"), Mode::S_IRWXU).unwrap();
        write(&work.join("sub/code"), "fn main() {}\n");
    });
    let mut out = Vec::new();
    let summary = patch::write(dir(&base).as_fd(), dir(&work).as_fd(), &mut out, &Bounds::default()).unwrap();
    assert_eq!(summary.added, 1);
    // `.git` itself is no content.
    assert!(summary.skipped.listed.iter().all(|one| !one.path.ends_with(".git")), "{summary:?}");
    assert_eq!(summary.skipped.total, summary.skipped.listed.len() as u64);
    assert!(summary.skipped.listed.iter().any(|one| one.why == "git takes no such name"), "{summary:?}");
    let (copy, file) = (scratch.path().join("copy"), scratch.path().join("patch"));
    fs::create_dir(&copy).unwrap();
    write(&file, out);
    git_apply(&copy, &file, false);
    assert_eq!(as_git_sees(&copy).keys().collect::<Vec<_>>(), [b"sub/code"]);
}

#[test]
fn patch_streams_large_files() {
    let mut random = StdRng::seed_from_u64(7);
    let mut noise = vec![0; 6 << 20];
    random.fill(&mut noise[..]);
    let (scratch, base, work) = pair(|base, work| {
        write(&base.join("big"), &noise);
        noise[5 << 20] ^= 1;
        write(&work.join("big"), &noise);
        write(&base.join("same"), &noise);
        write(&work.join("same"), &noise);
        write(&work.join("lines"), "\n".repeat(300_000));
        File::create(work.join("hole")).unwrap().set_len(64 << 20).unwrap();
        write(&base.join("shrinks"), &noise);
        write(&work.join("shrinks"), "small now\n");
    });
    let patch = make_patch(&base, &work);
    assert!(!String::from_utf8_lossy(&patch).contains("a/same"));
    assert_applies(scratch.path(), &base, &work);
}

#[test]
fn patch_of_a_file_made_against_the_algorithm_ends_in_time() {
    let mut random = StdRng::seed_from_u64(3);
    let mut lines =
        |n| (0..n).flat_map(|_| format!("{}\n", random.random_range(0..50)).into_bytes()).collect::<Vec<_>>();
    let (scratch, base, work) = pair(|base, work| {
        for name in ["one", "two"] {
            write(&base.join(name), lines(190_000));
            write(&work.join(name), lines(190_000));
        }
    });
    let start = Instant::now();
    make_patch(&base, &work);
    println!("adversarial diff in {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(30));
    assert_applies(scratch.path(), &base, &work);
}

#[test]
fn patch_keeps_to_its_bounds() {
    let (_scratch, base, work) = pair(|_, work| {
        File::create(work.join("hole")).unwrap().set_len(1 << 42).unwrap();
    });
    let mut out = Vec::new();
    let error = bound(patch::write(dir(&base).as_fd(), dir(&work).as_fd(), &mut out, &Bounds::default()));
    assert_eq!((error.0.as_str(), error.1, out.len()), ("hole", "bytes", 0));
}
