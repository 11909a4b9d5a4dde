//! What goes out of a cell: nothing has a name before it is whole, nobody's file is written to or removed in its stead, and
//! root writes where a user owns the directory with no more than that user's rights.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::need;
use crate::place::{PATIENCE, Place, Who, text};

/// Owns the directory that an output goes to.
const OWNER: u32 = 45_001;

/// Somebody else.
const OTHER: u32 = 45_002;

fn directory(path: &Path, owner: u32) -> PathBuf {
    fs::create_dir(path).unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
    path.to_owned()
}

fn file(path: &Path, owner: u32, mode: u32) -> PathBuf {
    fs::write(path, "theirs").unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
    path.to_owned()
}

fn until(what: &str, there: impl Fn() -> bool) {
    let start = Instant::now();
    while !there() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The owner of the parent puts a link to another directory in its place while the run lasts, and the output fails.
#[test]
fn a_swapped_parent_costs_nobody_a_file() {
    if !need::as_root() {
        return;
    }
    for option in ["--patch", "--export"] {
        let place = Place::new(Who::Root);
        let name = if option == "--patch" { "x" } else { "x.tar" };
        let mine = directory(&place.path("mine"), OWNER);
        let theirs = directory(&place.path("theirs"), OTHER);
        let victim = file(&theirs.join(name), OTHER, 0o600);
        let out = mine.join(name);
        // A sparse file is more than the bound of a patch and of an archive.
        let script = "truncate -s 900G big; echo ready; read go; true";
        let policy = place.policy("");
        let text = fs::read_to_string(&policy).unwrap() + "[limits]\nfile-size = \"1024GiB\"\n";
        fs::write(&policy, text).unwrap();
        let mut command =
            place.run(&["-q", "--policy", policy.to_str().unwrap(), option, out.to_str().unwrap()], script);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        assert_eq!(fs::read_dir(&mine).unwrap().count(), 0, "nothing has a name before it is whole");
        fs::rename(&mine, place.path("moved")).unwrap();
        symlink(&theirs, &mine).unwrap();
        drop(child.stdin.take());
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(125), "{}", String::from_utf8_lossy(&ended.stderr));
        assert_eq!(fs::read(&victim).unwrap(), b"theirs", "{option}");
        assert_eq!(fs::read_dir(place.path("moved")).unwrap().count(), 0);
        place.assert_nothing_left(&[]);
    }
}

/// The owner of the parent puts another directory under the draft's name, and a full one under the target's.
#[test]
fn a_swapped_draft_is_neither_wiped_nor_handed_out() {
    if !need::as_root() {
        return;
    }
    let place = Place::new(Who::Root);
    let mine = directory(&place.path("mine"), OWNER);
    let theirs = directory(&place.path("theirs"), OTHER);
    file(&theirs.join("victim"), OTHER, 0o600);
    let out = mine.join("out");
    let script = "i=0; while [ $i -lt 4000 ]; do echo $i >$i; i=$((i+1)); done";
    let mut command = place.run(&["-q", "--export", out.to_str().unwrap()], script);
    let child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let draft = || {
        let names = fs::read_dir(&mine).unwrap().flatten().map(|entry| entry.path());
        names.into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with(".oubliette-"))
    };
    let start = Instant::now();
    let draft = loop {
        if let Some(draft) = draft() {
            break draft;
        }
        assert!(start.elapsed() < PATIENCE, "no draft");
    };
    fs::rename(&draft, mine.join("aside")).unwrap();
    fs::rename(&theirs, &draft).unwrap();
    directory(&out, OWNER);
    file(&out.join("full"), OWNER, 0o600);
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(125), "{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(fs::read(draft.join("victim")).unwrap(), b"theirs");
    assert_eq!(fs::read(out.join("full")).unwrap(), b"theirs");
    place.assert_nothing_left(&[]);
}

#[test]
fn a_file_that_is_there_must_be_the_callers_alone() {
    for who in Who::all() {
        let place = Place::new(who);
        place.give(place.dir.path());
        let own = who.uid();
        let run = |path: &Path| place.run(&["-q", "--patch", path.to_str().unwrap()], "echo x >new").output().unwrap();
        let good = place.file("good", "before");
        fs::set_permissions(&good, PermissionsExt::from_mode(0o644)).unwrap();
        let output = run(&good);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert!(fs::read_to_string(&good).unwrap().starts_with("diff --git a/new b/new"));
        assert_eq!(run(Path::new("/dev/null")).status.code(), Some(0));
        let open = place.file("open", "theirs");
        fs::set_permissions(&open, PermissionsExt::from_mode(0o660)).unwrap();
        let linked = place.file("linked", "theirs");
        fs::hard_link(&linked, place.path("second")).unwrap();
        let link = place.path("link");
        symlink(&good, &link).unwrap();
        let mut bad = vec![
            (open, "others may write to it"),
            (linked, "it has another name, too"),
            (link, "it is a symbolic link"),
            (place.directory("directory"), ""),
        ];
        if nix::unistd::geteuid().is_root() {
            let foreign = file(&place.path("foreign"), OTHER, if own == 0 { 0o600 } else { 0o666 });
            bad.push((foreign, "it belongs to somebody else"));
            let pipe = place.path("pipe");
            mkfifo(&pipe, Mode::from_bits_truncate(0o666)).unwrap();
            chown(&pipe, Some(OTHER), Some(OTHER)).unwrap();
            fs::set_permissions(&pipe, PermissionsExt::from_mode(0o622)).unwrap();
            bad.push((pipe, ""));
        }
        for (path, why) in bad {
            // Somebody reads the pipe.
            let reader =
                path.ends_with("pipe").then(|| fs::File::options().read(true).write(true).open(&path).unwrap());
            let output = run(&path);
            assert_eq!(
                (output.status.code(), output.stdout.len()),
                (Some(125), 0),
                "{} {}",
                path.display(),
                text(&output)
            );
            assert!(text(&output).contains(why) && text(&output).contains("hint: "), "{}", text(&output));
            if path.is_file() && !path.is_symlink() {
                assert_eq!(fs::read(&path).unwrap(), b"theirs", "{}", path.display());
            }
            drop(reader);
        }
        place.assert_nothing_left(&[]);
    }
}

#[test]
fn what_root_writes_is_the_parents_owners_and_no_link_of_his_leads_elsewhere() {
    if !need::as_root() {
        return;
    }
    let place = Place::new(Who::Root);
    let mine = directory(&place.path("mine"), OWNER);
    let (patch, out, tar) = (mine.join("patch"), mine.join("out"), mine.join("out.tar"));
    for (option, path) in [("--patch", &patch), ("--export", &out), ("--export", &tar)] {
        let script = "mkdir d; echo x >d/new; ln -s new d/link";
        let output = place.run(&["-q", option, path.to_str().unwrap()], script).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let meta = fs::symlink_metadata(path).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o077), (OWNER, OWNER, 0), "{option}");
    }
    for name in ["d", "d/new", "d/link"] {
        assert_eq!(fs::symlink_metadata(out.join(name)).unwrap().uid(), OWNER, "{name}");
    }
    // What he may not do himself is not done for him.
    fs::set_permissions(&mine, PermissionsExt::from_mode(0o555)).unwrap();
    let output = place.run(&["-q", "--patch", mine.join("more").to_str().unwrap()], "echo started").output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(125), 0), "{}", text(&output));
    assert!(text(&output).contains("Permission denied"), "{}", text(&output));
    fs::set_permissions(&mine, PermissionsExt::from_mode(0o755)).unwrap();
    // A link on the way that somebody else made, and one of root's.
    let theirs = directory(&place.path("theirs"), 0);
    for (owner, status) in [(OWNER, 125), (0, 0)] {
        let link = mine.join(format!("link-{owner}"));
        symlink(&theirs, &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(owner), Some(owner)).unwrap();
        let output =
            place.run(&["-q", "--patch", link.join("patch").to_str().unwrap()], "echo x >new").output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{}", text(&output));
        assert_eq!(theirs.join("patch").exists(), status == 0);
    }
    until("all of it is wiped", || place.cells().is_empty());
    place.assert_nothing_left(&[]);
}
