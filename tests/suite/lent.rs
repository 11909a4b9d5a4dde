//! A UID is lent again and again: nothing of the last run is in the way of the next one, and whoever ends the processes
//! of a UID is not stopped by them. And two runs do not work in one directory and another below it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::need;
use crate::place::{Place, Started, Who};

/// Layers of a policy under which nothing but permissions is between an agent and the host's directories.
const PERMISSIONS_ONLY: &str = "pid = \"off\"\nroot = \"off\"\nipc = \"off\"\nuts = \"off\"\nlandlock-fs = \"off\"\nlandlock-net = \"off\"\n\
     landlock-scope = \"off\"\nseccomp = \"off\"\ncgroup = \"off\"";

/// A UID that no launcher of another test lends.
fn uid() -> u32 {
    1_700_000_000 + rand::random_range(0..1_000_000)
}

/// A process that stops, or kills, whatever it may signal, as fast as it can, is ended by `sweep` all the same.
#[test]
fn who_kills_is_not_stopped_by_what_he_kills() {
    if !need::as_root() {
        return;
    }
    let place = Place::new(Who::Root);
    for signal in ["STOP", "KILL"].repeat(10) {
        let uid = uid();
        let lease = format!("/run/oubliette/uids/{uid}");
        place.sweep();
        fs::write(&lease, "").unwrap();
        let script = format!("echo ready; while :; do kill -s {signal} -- -1; done 2>/dev/null");
        let mut hostile = Command::new("sh");
        let mut hostile = Started::new(hostile.args(["-c", &script]).current_dir("/").uid(uid).gid(uid));
        hostile.line("ready");
        // Its parent has to wait for it: a zombie counts as one of the UID's.
        let waited = std::thread::spawn(move || hostile.end());
        let start = Instant::now();
        let swept = Started::new(place.command("sweep").arg("--json")).end();
        assert!(start.elapsed() < Duration::from_secs(10), "{signal}: {:?}", start.elapsed());
        let said: Value = serde_json::from_str(&swept.out).unwrap();
        assert!(said["left"] == serde_json::json!([]), "{signal}: {said}");
        // A sweep of another test may be the one that has it just now.
        while Path::new(&lease).exists() {
            assert!(start.elapsed() < Duration::from_secs(10), "{signal}: {said}");
            place.sweep();
        }
        assert_eq!(waited.join().unwrap().status.code(), None, "it was ended");
    }
}

/// Whatever it made in places that all UIDs share is gone before its UID is given back.
#[test]
fn the_next_run_of_a_uid_finds_nothing_of_the_last_one() {
    if !need::as_root() {
        return;
    }
    let place = Place::new(Who::Root);
    let policy = place.policy(PERMISSIONS_ONLY);
    let open = place.directory("open");
    fs::set_permissions(&open, PermissionsExt::from_mode(0o1777)).unwrap();
    let (uid, mark) = (uid(), format!("left-{:016x}", rand::random::<u64>()));
    let range = format!("{uid}-{uid}");
    let places: Vec<String> = ["/tmp", "/var/tmp", "/dev/shm", "/run/lock", open.to_str().unwrap()]
        .into_iter()
        .filter(|place| fs::metadata(place).is_ok_and(|meta| meta.permissions().mode() & 0o002 != 0))
        .map(|place| format!("{place}/{mark}"))
        .collect();
    let victim = place.file("victim", "whole");
    let script = format!(
        "for at in {}; do
             mkdir -p $at/deep/er && echo x > $at/deep/er/file && ln -s {} $at/link && mkfifo $at/fifo
             chmod 0 $at/deep/er $at/deep || exit 9
             echo x > $at-file; chmod 0 $at-file; ln -s / $at-link; mkfifo $at-fifo
         done
         ipcmk -M 4096 -p 0600 && ipcmk -Q -p 0600 && ipcmk -S 1 -p 0600
         id -u; echo out > out",
        places.join(" "),
        victim.display()
    );
    let export = place.path("exported");
    let run = |script: &str, more: &[&str]| {
        let options = [&["--uid-range", &range, "--policy", policy.to_str().unwrap()], more].concat();
        place.run(&options, script).output().unwrap()
    };
    let more = ["--export", export.to_str().unwrap()];
    let ended = run(&script, &more);
    let said = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(0), "{said}");
    assert!(said.contains(&format!("{uid}\n")) && said.contains("Semaphore id"), "{said}");
    for path in &places {
        for end in ["", "-file", "-link", "-fifo"] {
            let path = format!("{path}{end}");
            assert!(fs::symlink_metadata(&path).is_err(), "{path} is still there");
        }
    }
    for kind in ["shm", "msg", "sem"] {
        let listed = fs::read_to_string(format!("/proc/sysvipc/{kind}")).unwrap();
        let has = |line: &str| line.split_ascii_whitespace().any(|word| word == uid.to_string());
        assert!(!listed.lines().any(has), "{kind}: {listed}");
    }
    assert_eq!(fs::read_to_string(victim).unwrap(), "whole");
    assert_eq!(fs::read_to_string(export.join("out")).unwrap(), "out\n");
    assert!(!said.contains("cannot remove"), "{said}");
    // The range has but this one.
    let next = run("id -u", &[]);
    assert_eq!(String::from_utf8_lossy(&next.stdout), format!("{uid}\n"), "{next:?}");
    place.assert_nothing_left(&[]);
}

/// The one that was lent last is lent again last.
#[test]
fn the_least_recently_lent_uid_is_next() {
    if !need::as_root() {
        return;
    }
    let place = Place::new(Who::Root);
    let first = uid();
    // A quarter of eight is for workspaces.
    let range = format!("{first}-{}", first + 7);
    let lent = |_| {
        let ended = place.run(&["--uid-range", &range], "id -u").output().unwrap();
        String::from_utf8_lossy(&ended.stdout).trim().parse::<u32>().unwrap_or_else(|_| panic!("{ended:?}"))
    };
    let lent: Vec<u32> = (0..8).map(lent).collect();
    let expected: Vec<u32> = (0..8).map(|nth| first + nth % 6).collect();
    assert_eq!(lent, expected);
}

/// Two runs that would write each other's files.
#[test]
fn a_workspace_and_one_in_it_are_not_in_use_at_once() {
    for who in Who::all() {
        let place = Place::new(who);
        let owner = if who == Who::Root { 41_018 } else { who.uid() };
        for name in ["w", "w/sub", "w/sub/deep", "other"] {
            let path = place.directory(name);
            if nix::unistd::geteuid().is_root() {
                chown(&path, Some(owner), Some(owner)).unwrap();
            }
        }
        let run = |name: &str, script: &str| {
            let path = place.path(name);
            let mut command = place.run(&["--workspace", path.to_str().unwrap()], script);
            command.stdin(Stdio::null());
            command
        };
        let held = |name: &str, others: &[(&str, bool)]| {
            let mut live = Started::new(&mut run(name, "echo ready; read line; sleep 999"));
            live.line("ready");
            for (other, free) in others {
                let ended = run(other, "true").output().unwrap();
                let said = String::from_utf8_lossy(&ended.stderr).into_owned();
                let status = if *free { 0 } else { 125 };
                assert_eq!(ended.status.code(), Some(status), "{who:?}: {name} and {other}: {said}");
                assert!(*free || said.contains("another run works in a directory above or below it"), "{said}");
            }
            live.kill();
        };
        held("w/sub", &[("w", false), ("w/sub/deep", false), ("other", true)]);
        place.sweep();
        held("w", &[("w/sub", false), ("w/sub/deep", false), ("other", true)]);
        place.sweep();
        assert_eq!(run("w/sub", "true").output().unwrap().status.code(), Some(0), "{who:?}: it is free again");
    }
}

/// The workspace of a user whose UID somebody else has got meanwhile, under another range.
#[test]
fn a_kept_workspace_whose_uid_is_an_accounts_by_now() {
    if !need::as_root() {
        return;
    }
    let place = Place::new(Who::Root);
    let (first, other) = (uid(), uid() - 1_000_000);
    let bound = first + 3;
    let run = |range: String, mounts: &str| {
        let run = place.run(&["--uid-range", &range, "--workspace", "user"], "id -u");
        let script = format!("{mounts}\nexec \"$@\"");
        place.through(&run, "unshare", &["-m", "sh", "-ec", &script, "sh"]).output().unwrap()
    };
    let kept = run(format!("{first}-{bound}"), "");
    assert_eq!(String::from_utf8_lossy(&kept.stdout), format!("{bound}\n"), "{kept:?}");
    let passwd =
        place.file("passwd", &(fs::read_to_string("/etc/passwd").unwrap() + &format!("bob:x:{bound}:{bound}::/:\n")));
    let mounts = format!("mount --bind {} /etc/passwd", passwd.display());
    let refused = run(format!("{other}-{}", other + 63), &mounts);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    assert!(said.contains("that number is by now the UID of account bob") && said.contains("hint: "), "{said}");
    place.assert_nothing_left(&[]);
}
