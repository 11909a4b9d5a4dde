//! What goes into a cell with `--copy-in` and `--workspace DIR`, and what comes out by `--export` and `--patch`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::mkfifo;
use serde_json::json;

use super::{Layout, Reported, a_place, layouts};
use crate::launch::{Lab, everybody};
use crate::need::{self, need_program};
use crate::place::{Place, Who, text};

/// Changes a project in every way that a patch can tell, adds what must not leave the cell, and says something.
const CHANGE: &str = "
echo changed >>file; echo new >'new file'; rm gone; chmod +x tool; printf 'a\\0b\\377' >binary; mkdir -p sub/deeper
echo deep >sub/deeper/file; rm link; ln -s /etc/passwd link; ln -s .. up
mkfifo fifo; cp file setid; chmod 4755 setid 2>/dev/null; chmod 6755 planted 2>/dev/null
mkdir -p .git/hooks; printf '#!/bin/sh\\necho ran >&2\\n' >.git/hooks/post-checkout; chmod +x .git/hooks/post-checkout
echo said";

/// Runs git on nothing but this repository's own configuration.
fn git(at: &Path, words: &[&str]) -> String {
    let mut git = Command::new("git");
    let mut known = tempfile::NamedTempFile::new().unwrap();
    known.write_all(b"[user]\n\tname = a\n\temail = a@b\n[safe]\n\tdirectory = *\n").unwrap();
    git.arg("-C").arg(at).args(words).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    let output = git.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", known.path()).output().unwrap();
    assert!(output.status.success(), "git {words:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A repository of the launcher's user, or of another owner.
fn project(place: &Place, name: &str, owner: u32) -> PathBuf {
    let project = place.directory(name);
    for (file, content) in [("file", "one\ntwo\n"), ("gone", "gone\n"), ("tool", "#!/bin/sh\n"), ("planted", "")] {
        place.file(&format!("{name}/{file}"), content);
    }
    symlink("file", project.join("link")).unwrap();
    git(&project, &["init", "-q"]);
    git(&project, &["add", "."]);
    git(&project, &["commit", "-q", "-m", "start"]);
    give(&project, owner);
    project
}

fn give(dir: &Path, owner: u32) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    std::os::unix::fs::lchown(dir, Some(owner), Some(owner)).unwrap();
    if dir.is_dir() && !dir.is_symlink() {
        fs::read_dir(dir).unwrap().for_each(|entry| give(&entry.unwrap().path(), owner));
    }
}

/// Applies the patch in a clone of the project as it was, where git must accept it as a whole.
fn assert_applies(place: &Place, project: &Path, patch: &Path, what: &str) {
    let clone = place.path(&format!("clone-{:08x}", rand::random::<u32>()));
    git(place.dir.path(), &["clone", "-q", project.to_str().unwrap(), clone.to_str().unwrap()]);
    git(&clone, &["checkout", "-q", "HEAD"]);
    git(&clone, &["apply", "--binary", "--index", patch.to_str().unwrap()]);
    assert_changed(&clone, what);
    let changed = git(&clone, &["status", "--porcelain"]);
    assert!(!changed.contains("fifo") && !changed.contains("hooks"), "{what}: {changed}");
    fs::remove_dir_all(clone).unwrap();
}

/// What [`CHANGE`] makes of a project, where it is content.
fn assert_changed(at: &Path, what: &str) {
    let read = |name: &str| fs::read(at.join(name)).unwrap_or_else(|error| panic!("{what}: {name}: {error}"));
    assert_eq!(read("file"), b"one\ntwo\nchanged\n", "{what}");
    assert_eq!((read("new file"), read("sub/deeper/file")), (b"new\n".to_vec(), b"deep\n".to_vec()), "{what}");
    assert_eq!(read("binary"), b"a\0b\xff", "{what}");
    assert!(!at.join("gone").exists(), "{what}");
    assert_ne!(fs::metadata(at.join("tool")).unwrap().mode() & 0o100, 0, "{what}");
    assert_eq!(fs::read_link(at.join("link")).unwrap(), Path::new("/etc/passwd"), "{what}");
    assert_eq!(fs::read_link(at.join("up")).unwrap(), Path::new(".."), "{what}");
}

/// An export has the content and nothing that acts.
fn assert_exported(at: &Path, owner: u32, what: &str) {
    assert_changed(at, what);
    for name in ["setid", "planted"] {
        assert_eq!(fs::metadata(at.join(name)).unwrap().mode() & 0o7000, 0, "{what}: {name}");
    }
    for entry in fs::read_dir(at).unwrap().flatten() {
        let meta = entry.path().symlink_metadata().unwrap();
        let kind = meta.file_type();
        let odd = kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device();
        assert!(!odd, "{what}: {}", entry.path().display());
        assert_eq!(meta.uid(), owner, "{what}: {}", entry.path().display());
    }
}

/// Unpacks an archive with the system's tar, which must find nothing strange in it.
fn unpacked(place: &Place, archive: &Path) -> PathBuf {
    let to = place.path(&format!("unpacked-{:08x}", rand::random::<u32>()));
    fs::create_dir(&to).unwrap();
    let tar = Command::new("tar").args(["-x", "-p", "-f"]).arg(archive).arg("-C").arg(&to).output().unwrap();
    assert!(tar.status.success() && tar.stderr.is_empty(), "{}", text(&tar));
    to
}

fn options<'a>(layout: &'a Layout, more: &[&'a str]) -> Vec<&'a str> {
    ["-q", "--policy", &layout.policy].into_iter().chain(more.iter().copied()).collect()
}

fn run(place: &Place, layout: &Layout, more: &[&str], script: &str) -> Output {
    place.run(&options(layout, more), script).output().unwrap()
}

fn copies(who: Who) {
    let place = a_place(who);
    let project = project(&place, "project", who.uid());
    let before = git(&project, &["status", "--porcelain"]);
    for (number, layout) in layouts(&place, "").iter().enumerate() {
        let what = &layout.what;
        let name = |kind: &str| format!("{kind}-{number}");
        let (out, patch, tar) = (name("out"), name("patch"), format!("{}.tar", name("archive")));
        let done = run(&place, layout, &["--copy-in", "project", "--export", &out, "--patch", &patch], CHANGE);
        assert_eq!((done.status.code(), &done.stdout[..]), (Some(0), &b"said\n"[..]), "{what}: {}", text(&done));
        assert_exported(&place.path(&out), who.uid(), what);
        assert_applies(&place, &project, &place.path(&patch), what);

        let done = run(&place, layout, &["--copy-in", "project", "--export", &tar], &format!("{CHANGE}; exit 3"));
        assert_eq!(done.status.code(), Some(3), "{what}: {}", text(&done));
        let me = nix::unistd::geteuid().as_raw();
        assert_exported(&unpacked(&place, &place.path(&tar)), me, what);

        let done = run(&place, layout, &["--copy-in", "project", "--export", "-"], CHANGE);
        assert_eq!((done.status.code(), &done.stderr[..]), (Some(0), &b"said\n"[..]), "{what}: {}", text(&done));
        fs::write(place.path("stdout.tar"), &done.stdout).unwrap();
        assert_exported(&unpacked(&place, &place.path("stdout.tar")), me, what);
        place.assert_nothing_left(&[]);
        assert_eq!(git(&project, &["status", "--porcelain"]), before, "{what}: the source has changed");
    }
}

#[test]
fn copied_in_and_out_as_root() {
    if need_program("git").is_some() && need_program("tar").is_some() && need::as_root() {
        copies(Who::Root);
    }
}

#[test]
fn copied_in_and_out_as_a_plain_user() {
    if need_program("git").is_some() && need_program("tar").is_some() {
        copies(Who::Plain);
    }
}

/// Puts into a workspace what the agent itself may not be able to make.
fn plant(workspace: &Path, owner: u32) {
    fs::set_permissions(workspace.join("planted"), PermissionsExt::from_mode(0o6755)).unwrap();
    mkfifo(&workspace.join("planted-fifo"), Mode::S_IRWXU).unwrap();
    symlink("/", workspace.join("planted-root")).unwrap();
    if nix::unistd::geteuid().is_root() {
        mknod(&workspace.join("planted-null"), SFlag::S_IFCHR, Mode::S_IRWXU, nix::sys::stat::makedev(1, 3)).unwrap();
        chown(workspace.join("planted-null"), Some(owner), Some(owner)).unwrap();
    }
}

#[test]
fn workspaces_of_the_callers_are_kept() {
    if need_program("git").is_none() || need_program("tar").is_none() {
        return;
    }
    for who in Who::all() {
        let place = a_place(who);
        // No agent runs as root, so root's workspaces belong to somebody.
        let owner = if who == Who::Root { 41_600 } else { who.uid() };
        for (number, layout) in layouts(&place, "").iter().enumerate() {
            let what = &layout.what;
            let name = |kind: &str| format!("{kind}-{number}");
            let workspace = project(&place, &name("workspace"), owner);
            plant(&workspace, owner);
            let (source, out, patch) = (name("source"), name("out"), name("patch"));
            git(place.dir.path(), &["clone", "-q", workspace.to_str().unwrap(), place.path(&source).to_str().unwrap()]);
            let words = ["--workspace", workspace.to_str().unwrap(), "--export", &out, "--patch", &patch];
            let done = run(&place, layout, &words, CHANGE);
            assert_eq!(done.status.code(), Some(0), "{what}: {}", text(&done));
            assert_changed(&workspace, what);
            for at in ["", "file", "new file", "sub/deeper/file"] {
                let meta = fs::metadata(workspace.join(at)).unwrap();
                assert_eq!((meta.uid(), meta.gid()), (owner, owner), "{what}: {at}");
            }
            assert_exported(&place.path(&out), who.uid(), what);
            assert_eq!(fs::read_link(place.path(&out).join("planted-root")).unwrap(), Path::new("/"), "{what}");
            assert_applies(&place, &place.path(&source), &place.path(&patch), what);
            place.assert_nothing_left(&[]);
        }
    }
}

/// Runs that are refused when their outputs are already open: what was there stays as it was, and nothing new is there.
#[test]
fn refused_runs_touch_no_output() {
    for who in Who::all() {
        let place = a_place(who);
        place.directory("many");
        let broken = place.file("broken", "\u{7f}ELF and nothing else");
        fs::set_permissions(&broken, PermissionsExt::from_mode(0o755)).unwrap();
        let broken = broken.to_str().unwrap();
        (0..200).for_each(|number| drop(place.file(&format!("many/{number}"), "")));
        for layout in layouts(&place, "[limits]\nfiles = 100") {
            for (filling, command, code) in [(&["--copy-in", "many"][..], "true", 125), (&[], broken, 126)] {
                let what = format!("{} {command}", layout.what);
                place.file("old.tar", "old");
                place.file("old.patch", "old");
                for (tar, patch, code) in
                    [("old.tar", "old.patch", code), ("new.tar", "new.patch", code), ("new.tar", "no/such/place", 125)]
                {
                    let mut run = place.command("run");
                    run.args(options(&layout, &["--export", tar, "--patch", patch])).args(filling);
                    let done = run.args(["--", command]).output().unwrap();
                    assert_eq!(done.status.code(), Some(code), "{what} {tar} {patch}: {}", text(&done));
                    assert!(text(&done).contains("hint: "), "{what}: {}", text(&done));
                }
                for old in ["old.tar", "old.patch"] {
                    assert_eq!(fs::read_to_string(place.path(old)).unwrap(), "old", "{what}");
                    fs::remove_file(place.path(old)).unwrap();
                }
                assert!(!place.path("new.tar").exists() && !place.path("new.patch").exists(), "{what}");
                place.assert_nothing_left(&[]);
            }
        }
    }
}

#[test]
fn directories_that_are_taken_are_refused_before_the_run() {
    for who in Who::all() {
        let place = a_place(who);
        place.directory("taken");
        place.file("taken/file", "theirs");
        place.file("plain", "theirs");
        place.directory("empty");
        symlink("empty", place.path("link")).unwrap();
        for layout in layouts(&place, "") {
            for target in ["taken", "plain", "link", "no/parent"] {
                let done = run(&place, &layout, &["--export", target], "echo ran");
                assert_eq!(done.status.code(), Some(125), "{} {target}: {}", layout.what, text(&done));
                assert!(done.stdout.is_empty() && text(&done).contains("hint: "), "{target}: {}", text(&done));
            }
            let done = run(&place, &layout, &["--export", "empty"], "echo >file");
            assert_eq!(done.status.code(), Some(0), "{}: {}", layout.what, text(&done));
            fs::remove_file(place.path("empty/file")).unwrap();
            place.assert_nothing_left(&[]);
        }
        assert_eq!(fs::read_to_string(place.path("taken/file")).unwrap(), "theirs");
    }
}

/// The name was free before the run, and taken during it.
#[test]
fn a_directory_that_is_taken_during_the_run() {
    for who in Who::all() {
        let place = a_place(who);
        for layout in layouts(&place, "") {
            let what = &layout.what;
            let options = ["--policy", &layout.policy, "--export", "out"];
            let mut run = Reported::start(&place, &options, &["sh", "-c", "echo x >file; echo ready; read l; exit 0"]);
            run.started.line("ready");
            let out = place.directory("out");
            place.file("out/theirs", "theirs");
            let (ended, report) = run.end();
            assert_eq!((ended.status.code(), &report["status"]), (Some(125), &json!(125)), "{what}: {ended:?}");
            assert!(ended.err.contains("cannot export to ") && ended.err.contains("hint: "), "{what}: {}", ended.err);
            assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "{what}");
            assert_eq!(report["left"], json!([]), "{what}");
            place.assert_nothing_left(&[]);
            fs::remove_dir_all(out).unwrap();
            let drafts = fs::read_dir(place.dir.path()).unwrap().flatten();
            let drafts: Vec<_> = drafts.filter(|entry| entry.file_name().to_string_lossy().starts_with('.')).collect();
            assert!(drafts.is_empty(), "{what}: {drafts:?}");
        }
    }
}

#[test]
fn outputs_on_a_full_disk() {
    if !need::as_root() {
        return;
    }
    let lab = Lab::new();
    lab.directory("full", 0o777);
    let text = "description = \"for a test\"\ndeny = []\ncommands = \"any\"\n[layers]\nroot = \"off\"\n";
    fs::write(lab.path("directories.toml"), text).unwrap();
    for (who, policy) in everybody().into_iter().flat_map(|who| [(who, None), (who, Some("directories.toml"))]) {
        for output in [["--export", "full/out"], ["--export", "full/out.tar"], ["--patch", "full/patch"]] {
            let mut words = vec!["run", "-q"];
            words.extend(policy.iter().flat_map(|policy| ["--policy", policy]));
            words.extend(output);
            // 400 kB that no compression makes small enough for a disk of 64.
            words.extend(["--", "sh", "-c", "head -c 400000 /dev/urandom >file; echo said"]);
            let ended = lab
                .launch(who, words)
                .mounts("mount -t tmpfs -o size=64k,mode=1777 full $L/full")
                .after("find $L/full -mindepth 1 >&2")
                .run();
            let what = format!("{who:?} {policy:?} {output:?}");
            assert_eq!(ended.wrong(125, &[output[1], "No space left"]), None, "{what}: {ended:?}");
            assert_eq!(ended.stdout, "said\n", "{what}");
            assert_eq!(lab.left(), Vec::<String>::new(), "{what}");
        }
    }
}

/// What the caller asked for twice is kept once, where the other place has no room.
#[test]
fn an_output_that_fails_takes_no_other_with_it() {
    if !need::as_root() {
        return;
    }
    let lab = Lab::new();
    lab.directory("full", 0o777);
    lab.directory("good", 0o777);
    for (who, export, patch) in
        everybody().into_iter().flat_map(|who| [(who, "full/a.tar", "good/a"), (who, "good/b.tar", "full/b")])
    {
        let words = ["run", "-q", "--export", export, "--patch", patch, "--", "sh", "-c"];
        let ended = lab
            .launch(who, words.into_iter().chain(["head -c 400000 /dev/urandom >file"]))
            .mounts("mount -t tmpfs -o size=64k,mode=1777 full $L/full")
            .run();
        assert_eq!(ended.wrong(125, &["full/", "No space left"]), None, "{who:?}: {ended:?}");
        let good = if export.starts_with("good") { export } else { patch };
        assert!(fs::metadata(lab.path(good)).unwrap().len() > 400_000, "{who:?} {good}");
        fs::remove_file(lab.path(good)).unwrap();
    }
}
