//! `--workspace user`: kept between the runs of one user, and nobody else's.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use super::{Layout, layouts};
use crate::need;
use crate::place::{Place, Started, Who, text};

/// No file system takes these as a name without a trace.
const USERS: [&str; 4] = ["käthe@example.org", "../../bob", "0b8a5b1e-0000-4000-8000-00000000000b", "new\u{2028}line"];

fn run(place: &Place, layout: &Layout, user: &str, script: &str) -> Output {
    let words = ["-q", "--policy", &layout.policy, "--workspace", "user", "--user", user];
    place.run(&words, script).output().unwrap()
}

fn said(place: &Place, layout: &Layout, user: &str, script: &str) -> String {
    let output = run(place, layout, user, script);
    assert_eq!(output.status.code(), Some(0), "{} {user}: {}", layout.what, text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Everything below a directory.
fn below(top: &Path) -> Vec<PathBuf> {
    let mut all = vec![top.to_owned()];
    let mut at = 0;
    while at < all.len() {
        let dir = !all[at].is_symlink() && all[at].is_dir();
        let entries = dir.then(|| fs::read_dir(&all[at]).unwrap().map(|entry| entry.unwrap().path()));
        all.extend(entries.into_iter().flatten().collect::<Vec<_>>());
        at += 1;
    }
    all
}

fn contains(bytes: &[u8], part: &str) -> bool {
    bytes.windows(part.len()).any(|window| window == part.as_bytes())
}

/// Where a user's id is read in names, and in contents of files.
fn named(place: &Place, user: &str) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let mut all = below(&place.path("state"));
    if place.who == Who::Root {
        all.extend(below(Path::new("/run/oubliette")));
    }
    let names = all.iter().filter(|path| contains(path.as_os_str().as_encoded_bytes(), user)).cloned().collect();
    let holds =
        |path: &&PathBuf| !path.is_symlink() && path.is_file() && contains(&fs::read(path).unwrap_or_default(), user);
    (names, all.iter().filter(holds).cloned().collect())
}

#[test]
fn kept_for_its_user_and_for_nobody_else() {
    for who in Who::all() {
        for layout in 0..layouts(&Place::new(who), "").len() {
            let place = Place::new(who);
            let layout = layouts(&place, "").remove(layout);
            let what = &layout.what;
            for user in USERS {
                assert_eq!(
                    said(&place, &layout, user, "ls -A; echo mine >mine; echo home >\"$HOME/left\"; pwd >&2"),
                    "",
                    "{what}"
                );
            }
            for user in USERS {
                assert_eq!(
                    said(&place, &layout, user, "ls -A; cat mine; ls \"$HOME\""),
                    "mine\nmine\n",
                    "{what} {user}"
                );
                assert_eq!(named(&place, user), (vec![], vec![]), "{what}");
            }
            assert_eq!(fs::read_dir(place.path("state/kept/workspaces")).unwrap().count(), USERS.len() + 1, "{what}");
            place.assert_nothing_left(&[]);
        }
    }
}

#[test]
fn not_within_reach_of_another_user() {
    for who in Who::all() {
        let place = Place::new(who);
        for layout in layouts(&place, "") {
            let what = &layout.what;
            // A plain user's cells share one UID: it takes a private root or Landlock to keep them apart.
            if who == Who::Plain && what.ends_with("permissions only") {
                continue;
            }
            said(&place, &layout, "alice", "echo mine >mine");
            let kept = place.path("state/kept/workspaces");
            let theirs = below(&kept).into_iter().find(|path| path.ends_with("mine")).unwrap();
            let script =
                format!("cat {0}; ls {1}; echo x >{0}; echo x >{0}2; echo end", theirs.display(), kept.display());
            let output = run(&place, &layout, "bob", &script);
            assert_eq!(output.stdout, b"end\n", "{what}: {}", text(&output));
            assert_eq!(fs::read_to_string(&theirs).unwrap(), "mine\n", "{what}");
            fs::remove_file(theirs).unwrap();
        }
    }
}

#[test]
fn one_uid_for_each_user() {
    if !need::as_root() {
        return;
    }
    let place = Place::new(Who::Root);
    for layout in layouts(&place, "") {
        let id = |user: &str| said(&place, &layout, user, "echo >file; id -u").trim().parse::<u32>().unwrap();
        let (alice, bob) = (id("alice"), id("bob"));
        assert_ne!(alice, bob, "{}", layout.what);
        assert_eq!((id("alice"), id("bob")), (alice, bob), "{}", layout.what);
        let owners = below(&place.path("state/kept/workspaces"));
        let owners: Vec<u32> =
            owners.iter().filter(|path| path.ends_with("file")).map(|path| path.metadata().unwrap().uid()).collect();
        assert!(owners.contains(&alice) && owners.contains(&bob) && owners.len() == 2, "{owners:?} {alice} {bob}");
        for _ in 0..8 {
            let run = place.run(&["-q", "--policy", &layout.policy, "--user", "alice"], "id -u").output().unwrap();
            let per_run: u32 = String::from_utf8(run.stdout).unwrap().trim().parse().unwrap();
            // The bound UIDs are the last quarter of the range of 64.
            let first = alice - alice % 64;
            assert!(per_run < first + 48 && alice >= first + 48 && bob >= first + 48, "{per_run} {alice} {bob}");
        }
    }
    place.assert_nothing_left(&[]);
}

#[test]
fn one_run_of_a_user_at_a_time() {
    for who in Who::all() {
        let place = Place::new(who);
        for layout in layouts(&place, "") {
            let what = &layout.what;
            let words = ["-q", "--policy", &layout.policy, "--workspace", "user", "--user", USERS[0]];
            let mut first = Started::new(&mut place.run(&words, "echo ready; read l; exit 3"));
            first.line("ready");
            let second = run(&place, &layout, USERS[0], "echo ran");
            assert_eq!(second.status.code(), Some(125), "{what}: {}", text(&second));
            let why = text(&second);
            assert!(why.contains("another run holds it") && why.contains("hint: ") && !why.contains("ran\n"), "{why}");
            assert_eq!(said(&place, &layout, USERS[1], "echo other"), "other\n", "{what}");
            // `ps` says whose run it is: the record of a live cell tells its user, to the launcher's user alone.
            let (names, contents) = named(&place, USERS[0]);
            assert_eq!(names, Vec::<PathBuf>::new(), "{what}");
            assert!(contents.iter().all(|path| path.ends_with("cell.json")), "{what}: {contents:?}");
            assert_eq!(first.end().status.code(), Some(3), "{what}");
            assert_eq!(said(&place, &layout, USERS[0], "echo again"), "again\n", "{what}");
        }
        place.assert_nothing_left(&[]);
    }
}
