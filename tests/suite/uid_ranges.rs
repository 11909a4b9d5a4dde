//! Which UIDs runs of root's get: from where the range comes, and when it is somebody else's.

use std::fs;

use crate::launch::{Lab, Launch, Who};
use crate::need;

/// A launch that sees an /etc with these files, each `name, text, mode`.
fn with_etc<'a>(lab: &'a Lab, launch: Launch<'a>, files: &[(&str, &str, u32)]) -> Launch<'a> {
    let _ = fs::remove_dir_all(lab.path("etc"));
    fs::create_dir(lab.path("etc")).unwrap();
    let mut launch = launch.mounts("mount -t tmpfs -o mode=755 none /etc && mkdir /etc/oubliette");
    for (name, text, mode) in files {
        fs::write(lab.path("etc").join(name.replace('/', "-")), text).unwrap();
        let source = name.replace('/', "-");
        launch = launch.mounts(&format!("cp $L/etc/{source} /etc/{name} && chmod {mode:o} /etc/{name}"));
    }
    launch
}

/// Both files with this text.
fn both(text: &str) -> [(&'static str, &str, u32); 2] {
    [("subuid", text, 0o644), ("subgid", text, 0o644)]
}

/// `uid-range` of `explain`: value and where it comes from.
fn said(text: &str) -> Option<(String, String)> {
    let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let words = lines.find(|words| words.first() == Some(&"uid-range"))?;
    Some((words[1].to_owned(), words[2..].join(" ")))
}

const OURS: &str = "alice:100000:65536\noubliette:40200:100\n";

#[test]
fn the_nearest_range_counts_and_says_where_it_comes_from() {
    if !need::as_root() {
        return;
    }
    let lab = Lab::new();
    let config = ("oubliette/config.toml", "uid-range = \"40400-40499\"\n", 0o644);
    let [subuid, subgid] = both(OURS);
    let all = [subuid, subgid, config];
    let by_variable = ("OUBLIETTE_UID_RANGE", "40500-40599");
    let by_flag = ["--uid-range", "40600-40699"];
    for (files, variable, flag, range, from) in [
        (&all[..], true, true, "40600-40699", "(flag)"),
        (&all, true, false, "40500-40599", "(variable)"),
        (&all, false, false, "40400-40499", "(config.toml)"),
        (&all[..2], false, false, "40200-40299", "(/etc/subuid)"),
        (&[], false, false, "1900000000-1900065535", "(default)"),
    ] {
        let flag = if flag { &by_flag[..] } else { &[] };
        let launch = |words: &[&str]| {
            let launch = with_etc(&lab, lab.launch(Who::Root, words.iter().copied().map(str::to_owned)), files);
            if variable { launch.env(by_variable.0, by_variable.1) } else { launch }
        };
        let explained = launch(&[&["explain"], flag, &["--", "/bin/true"]].concat()).run();
        assert_eq!(explained.code(), 0, "{explained:?}");
        assert_eq!(said(&explained.stdout), Some((range.to_owned(), from.to_owned())), "{}", explained.stdout);
        let planned = format!("enforce  one of {range} for this run alone");
        assert!(explained.stdout.contains(&planned), "{}", explained.stdout);
        let ran = launch(&[&["run", "-q"], flag, &["--", "/bin/sh", "-c", "id -u; id -g"]].concat()).run();
        assert_eq!(ran.code(), 0, "{ran:?}");
        let (first, last) = range.split_once('-').unwrap();
        let lent = first.parse::<u32>().unwrap()..=last.parse().unwrap();
        let ids: Vec<u32> = ran.stdout.lines().map(|line| line.parse().unwrap()).collect();
        assert!(ids.len() == 2 && ids[0] == ids[1] && lent.contains(&ids[0]), "{from}: {ids:?}");
    }
    assert_eq!(lab.left(), Vec::<String>::new());
}

#[test]
fn a_range_that_is_somebody_elses_is_refused() {
    if !need::as_root() {
        return;
    }
    let lab = Lab::new();
    let passwd = |text| [("passwd", text, 0o644), ("group", "team:x:40900:\n", 0o644)];
    let default = "bob:1900065535:1\n";
    let shared = "oubliette:40200:100\nbob:40299:1\n";
    let people = "carol:x:40800:40850::/:/bin/sh\n";
    let flag = |range| vec!["--uid-range", range];
    for (files, words, names) in [
        (both("bob:40700:100\n"), flag("40600-40700"), &["40600-40700", "40700-40799", "bob (/etc/subuid line 1)"][..]),
        (both(default), vec![], &["bob", "1900000000-1900065535", "/etc/subuid"]),
        (both(shared), vec![], &["bob (/etc/subuid line 2)", "40200-40299"]),
        (passwd(people), flag("40799-40801"), &["account carol (/etc/passwd line 1)", "--uid-range"]),
        (passwd(people), flag("40850-40850"), &["the GID of account carol"]),
        (passwd(people), flag("40899-40901"), &["group team (/etc/group line 1)"]),
    ] {
        for workspace in ["fresh", "user"] {
            let line = [&["run", "--workspace", workspace], &words[..], &["--", "/bin/true"]].concat();
            let launch = lab.launch(Who::Root, line.into_iter().map(str::to_owned));
            let launch = launch.mounts("mkdir -p $L/lib && mount --bind $L/lib /var/lib");
            let ended = with_etc(&lab, launch, &files).run();
            assert_eq!(ended.wrong(125, &[names, &["layer uid", "belongs to somebody else"]].concat()), None);
        }
    }
    // A policy that prefers the layer does not run without it, one that switches it off does. So does a run that has its
    // UID from the owner of a directory.
    let owned = lab.directory("work", 0o700).display().to_string();
    fs::write(lab.path("off.toml"), OFF).unwrap();
    let off = lab.path("off.toml").display().to_string();
    for words in [["--policy", &off], ["--workspace", &owned]] {
        let line = [&["run", "-q"], &words[..], &["--", "/bin/true"]].concat();
        let ended = with_etc(&lab, lab.launch(Who::Root, line.into_iter().map(str::to_owned)), &both(default)).run();
        assert_eq!(ended.code(), 0, "{words:?}: {ended:?}");
    }
    assert_eq!(lab.left(), Vec::<String>::new());
}

const OFF: &str = "description = \"no UID\"\ndeny = []\ncommands = \"any\"\n[layers]\nuid = \"off\"\n";

#[test]
fn a_mistake_in_the_line_of_oubliette_is_named() {
    if !need::as_root() {
        return;
    }
    let lab = Lab::new();
    let line = "oubliette:40200:100\n";
    for (files, names) in [
        (both("x\n\noubliette:40200\n"), &["/etc/subuid line 3", "oubliette:FIRST:COUNT"][..]),
        ([("subuid", line, 0o644), ("subgid", "", 0o644)], &["/etc/subgid nothing", "/etc/subgid"]),
        ([("subuid", line, 0o666), ("subgid", line, 0o644)], &["/etc/subuid", "others can write it", "chmod go-w"]),
    ] {
        let launch = |who, command: &str| lab.launch(who, [command, "--", "/bin/true"].map(str::to_owned));
        for command in ["run", "explain"] {
            let ended = with_etc(&lab, launch(Who::Root, command), &files).run();
            assert_eq!(ended.wrong(125, &[names, &["layer uid"]].concat()), None);
        }
        // A plain user lends no UIDs.
        let ended = with_etc(&lab, launch(Who::Plain, "run"), &files).run();
        assert_eq!(ended.code(), 0, "{ended:?}");
    }
    // A mistake in somebody else's line is somebody else's.
    let files = both("alice:x:y\n:::\nbob\n");
    let words = ["run", "-q", "--", "/bin/true"].map(str::to_owned);
    let ended = with_etc(&lab, lab.launch(Who::Root, words), &files).run();
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert_eq!(lab.left(), Vec::<String>::new());
}
