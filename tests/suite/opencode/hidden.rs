//! Names of the workspace that an agent must not read: hidden from it, kept as they are for everybody else, and a reason
//! not to start where they cannot be hidden. The agent is a shell.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use crate::launch::{Ended, Lab, Who, everybody};

const AGENT: &str =
    "title = \"a reader\"\ncommands = [\"reader\"]\nhide = [\".hidden\", \"hidden.json\", \"none.json\"]\n";

/// What a hostile agent tries on them.
const TRIES: &str = "ls -A .hidden; cat hidden.json; stat -c %F .hidden hidden.json
    for try in 'echo x >hidden.json' 'echo x >.hidden/y' 'mkdir .hidden/z' 'rm hidden.json' 'rm -r .hidden' 'mv .hidden a' \
      'mv hidden.json b' 'mv -T x .hidden' 'ln -sf x hidden.json' 'chmod 777 hidden.json' 'umount .hidden'; do
      (eval \"$try\") 2>/dev/null && echo \"could $try\"
    done
    test -e none.json || echo absent; cat kept; echo new >made";

fn workspace(lab: &Lab) -> PathBuf {
    let path = lab.directory("source", 0o755);
    fs::create_dir(path.join(".hidden")).unwrap();
    for (name, text) in [(".hidden/plugin.js", "evil\n"), ("hidden.json", "evil\n"), ("kept", "kept\n")] {
        fs::write(path.join(name), text).unwrap();
    }
    fs::create_dir(path.join("x")).unwrap();
    [".hidden/plugin.js", ".hidden", "hidden.json", "kept", "x"].iter().for_each(|name| {
        let file = path.join(name);
        let mode = if file.is_dir() { 0o755 } else { 0o644 };
        lab.give(&file, mode);
    });
    path
}

fn run(lab: &Lab, who: Who, options: &[&str], script: &str) -> Ended {
    fs::create_dir_all(lab.path("policies/agents")).unwrap();
    lab.file("policies/agents/reader.toml", AGENT, 0o644);
    if who == Who::Root {
        for name in ["policies/agents/reader.toml", "policies/agents", "policies"] {
            std::os::unix::fs::chown(lab.path(name), Some(0), Some(0)).unwrap();
        }
    }
    let mut words = vec!["run", "--policy-dir", "policies", "--agent", "reader", "--network", "none"];
    words.extend(options);
    words.extend(["--", "sh", "-c", script]);
    lab.launch(who, words).run()
}

#[track_caller]
fn hidden(ended: &Ended) {
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert_eq!(ended.stdout, "directory\nregular empty file\nabsent\nkept\n", "{ended:?}");
}

#[test]
fn hidden_names_are_neither_seen_nor_changed() {
    for who in everybody() {
        let lab = Lab::new();
        let source = workspace(&lab);
        let out = lab.directory("results", 0o777);
        let options = ["--copy-in", "source", "--export", "results/out", "--patch", "results/patch"];
        hidden(&run(&lab, who, &options, TRIES));
        for name in [".hidden/plugin.js", "hidden.json"] {
            assert_eq!(fs::read_to_string(out.join("out").join(name)).unwrap(), "evil\n", "{who:?} {name}");
        }
        let patch = fs::read_to_string(out.join("patch")).unwrap();
        assert!(patch.contains("b/made") && !patch.contains("hidden"), "{who:?}: {patch}");

        // A workspace of the caller's own, twice: what the first run makes the second does not see.
        hidden(&run(&lab, who, &["--workspace", "source"], TRIES));
        let made = run(&lab, who, &["--workspace", "source"], "echo evil >none.json; cat none.json made");
        assert_eq!((made.code(), made.stdout.as_str()), (0, "evil\nnew\n"), "{who:?}: {made:?}");
        let again = run(&lab, who, &["--workspace", "source"], "cat none.json made");
        assert_eq!((again.code(), again.stdout.as_str()), (0, "new\n"), "{who:?}: {again:?}");
        for name in [".hidden/plugin.js", "hidden.json", "none.json"] {
            assert_eq!(fs::read_to_string(source.join(name)).unwrap(), "evil\n", "{who:?} {name}");
        }
        assert_eq!(lab.left(), Vec::<String>::new());
    }
}

#[test]
fn a_link_of_a_hidden_name_is_no_run() {
    for who in everybody() {
        let lab = Lab::new();
        let source = workspace(&lab);
        symlink("kept", source.join("none.json")).unwrap();
        for place in ["--copy-in", "--workspace"] {
            let ended = run(&lab, who, &[place, "source"], "echo ran");
            assert_eq!(ended.wrong(125, &["hide none.json of the workspace", "it is a link", "hint:"]), None);
            assert_eq!(ended.stdout, "");
        }
        assert_eq!(lab.left(), Vec::<String>::new());
    }
}

#[test]
fn without_a_private_root_a_hidden_name_is_no_run() {
    for who in everybody() {
        let lab = Lab::new();
        let level = include_str!("../../../policies/developer.toml");
        lab.file("bare.toml", format!("{level}\n[layers]\nroot = \"off\"\n"), 0o644);
        if who == Who::Root {
            std::os::unix::fs::chown(lab.path("bare.toml"), Some(0), Some(0)).unwrap();
        }
        workspace(&lab);
        lab.directory("source/x/below", 0o755);
        lab.directory("clean", 0o755);
        for (place, names) in [
            (["--copy-in", "source"], &["work/.hidden", "without mount namespaces", "hint:"][..]),
            (["--workspace", "source"], &["source/.hidden", "without mount namespaces", "hint:"]),
            (["--workspace", "source/x/below"], &["source/.hidden", "without mount namespaces", "hint:"]),
        ] {
            let ended = run(&lab, who, &[&["--policy", "bare.toml"], &place[..]].concat(), "echo ran");
            assert_eq!(ended.wrong(125, names), None, "{who:?} {place:?}");
            assert_eq!(ended.stdout, "");
        }
        let clean = run(&lab, who, &["--policy", "bare.toml", "--workspace", "clean"], "echo ran");
        assert_eq!((clean.code(), clean.stdout.as_str()), (0, "ran\n"), "{who:?}: {clean:?}");
        assert_eq!(lab.left(), Vec::<String>::new());
    }
}
