//! Whatever is passed over on the way into a cell or out of it is named and counted; a regular file that would be lost
//! ends the run, on the way in before the agent starts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use crate::need;
use crate::place::{Place, Who, text};

/// With a private root, and without.
const LAYERS: [&str; 2] = ["", "root = \"off\"\npid = \"off\"\n"];

/// A run with its report in a file, and what that says.
fn reported(place: &Place, layers: &str, options: &[&str], script: &str) -> (Output, Value) {
    let policy = place.policy(layers);
    let mut command =
        place.run(&[&["--policy", policy.to_str().unwrap(), "--report-fd", "2"], options].concat(), script);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = said.lines().find(|line| line.starts_with("{\"version\"")).unwrap_or_else(|| panic!("{said}"));
    let report = serde_json::from_str(report).unwrap();
    (output, report)
}

fn skipped(report: &Value) -> Vec<(String, String, String)> {
    let word = |one: &Value, name: &str| one[name].as_str().unwrap().to_owned();
    let all = report["skipped"].as_array().unwrap().iter();
    all.map(|one| (word(one, "at"), word(one, "path"), word(one, "why"))).collect()
}

fn entry(at: &str, path: &str, why: &str) -> (String, String, String) {
    (at.into(), path.into(), why.into())
}

#[test]
fn what_is_no_file_is_named_on_both_ways() {
    for who in Who::all() {
        for layers in LAYERS {
            let place = Place::new(who);
            let source = place.directory("source");
            place.give(&place.file("source/file", "x"));
            mkfifo(&source.join("pipe"), Mode::S_IRWXU).unwrap();
            place.give(&source.join("pipe"));
            let _listener = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
            let patch = place.path("patch");
            let out = place.path("out.tar");
            let options =
                ["--copy-in", "source", "--patch", patch.to_str().unwrap(), "--export", out.to_str().unwrap()];
            place.give(place.dir.path());
            let (output, report) =
                reported(&place, layers, &options, "ls; mkfifo new; mkdir -p '.git ' ; : >'.git /x'");
            assert_eq!(output.status.code(), Some(0), "{}", text(&output));
            assert_eq!(String::from_utf8_lossy(&output.stdout), "file\n");
            let expected = [
                entry("copy-in", "pipe", "a fifo"),
                entry("copy-in", "socket", "a socket"),
                entry("patch", ".git ", "git takes no such name"),
                entry("patch", "new", "a fifo"),
                entry("export", "new", "a fifo"),
            ];
            assert_eq!(skipped(&report), expected, "{who:?} {layers}");
            assert_eq!(report["skipped-total"], 5);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("not copied: pipe (at copy-in: a fifo), socket (at copy-in: a socket)"), "{said}");
            assert!(said.contains("and 2 more"), "{said}");
        }
    }
}

#[test]
fn the_list_is_bounded_and_the_count_is_not() {
    let place = Place::new(Who::Plain);
    place.give(place.dir.path());
    let script = "i=0; while [ $i -lt 300 ]; do mkfifo $(printf '%0200d' $i); i=$((i+1)); done";
    let out = place.path("out");
    let (output, report) = reported(&place, "", &["--export", out.to_str().unwrap()], script);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!((skipped(&report).len(), &report["skipped-total"]), (100, &Value::from(300)));
}

#[test]
fn a_file_that_cannot_be_read_ends_the_run_before_the_agent() {
    if !need::as_root() {
        return;
    }
    for layers in LAYERS {
        let place = Place::new(Who::Plain);
        place.directory("source");
        place.file("source/open", "x");
        // Root's own.
        fs::write(place.path("source/closed"), "y").unwrap();
        fs::set_permissions(place.path("source/closed"), PermissionsExt::from_mode(0o600)).unwrap();
        fs::create_dir(place.path("source/shut")).unwrap();
        fs::set_permissions(place.path("source/shut"), PermissionsExt::from_mode(0o700)).unwrap();
        let (output, report) = reported(&place, layers, &["--copy-in", "source"], "echo started");
        let said = text(&output);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(125), 0), "{said}");
        assert!(said.contains("cannot fill the workspace: cannot open `closed`: Permission denied"), "{said}");
        assert!(
            said.contains("hint: make it readable to the launcher's user, or pass it over with --copy-in-skip"),
            "{said}"
        );
        assert_eq!(report["status"], 125);
        place.assert_nothing_left(&[]);
        let (output, report) = reported(&place, layers, &["--copy-in", "source", "--copy-in-skip"], "ls");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "open\n", "{}", text(&output));
        let why = "cannot open it: Permission denied";
        assert_eq!(skipped(&report), [entry("copy-in", "closed", why), entry("copy-in", "shut", why)]);
    }
}

/// In a mount namespace of its own, a run whose tree has something mounted in it.
fn with_a_mount(place: &Place, options: &str) -> Output {
    let script = format!(
        "mount -t tmpfs t {0}/tree/below && echo x >{0}/tree/below/file && exec \"$0\" run {options}",
        place.dir.path().display()
    );
    let command = place.command("run");
    let mut outer = std::process::Command::new("unshare");
    outer.args(["--mount", "sh", "-c", &script]).arg(command.get_program()).env_clear().current_dir(place.dir.path());
    outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    outer.output().unwrap()
}

#[test]
fn files_of_another_file_system_are_not_lost_in_silence() {
    if !need::as_root() {
        return;
    }
    let place = Place::new(Who::Root);
    fs::create_dir_all(place.path("tree/below")).unwrap();
    fs::write(place.path("tree/file"), "x").unwrap();
    let output = with_a_mount(&place, "--copy-in tree -- echo started");
    let said = text(&output);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(125), 0), "{said}");
    assert!(said.contains("cannot fill the workspace: another file system is mounted at `below`"), "{said}");
    let output = with_a_mount(&place, "--copy-in tree --copy-in-skip -- ls");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "file\n", "{}", text(&output));
    assert!(text(&output).contains("not copied: below (at copy-in: another file system is mounted there)"));
    // On the way out of a directory of the caller's.
    std::os::unix::fs::chown(place.path("tree"), Some(45_678), Some(45_678)).unwrap();
    let output = with_a_mount(&place, "--workspace tree --export out -- true");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(
        said.contains("another file system is mounted at `below`") && !Path::new(&place.path("out")).exists(),
        "{said}"
    );
    place.assert_nothing_left(&[]);
}
