//! `--resume`: what an agent goes on from is kept between the runs of one user, and nothing else of a HOME is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use super::{Layout, a_place, layouts};
use crate::place::{Place, Started, Who, text, within};

/// An agent that resumes from a directory and from a file.
const TALKER: &str = "title = \"Talker\"\ncommands = [\"sh\"]\nresume = [\".talk/all\", \".talk.json\"]\n";

/// Puts the agents where [`words`] finds them.
fn agents(place: &Place) {
    place.directory("policies");
    place.directory("policies/agents");
    place.file("policies/agents/talker.toml", TALKER);
    place.file("policies/agents/other.toml", &TALKER.replace("Talker", "Other"));
}

fn words<'a>(place: &Place, layout: &'a Layout, user: &'a str, agent: &'a str) -> Vec<String> {
    let policies = place.path("policies").to_str().unwrap().to_owned();
    [
        "-q",
        "--policy",
        &layout.policy,
        "--workspace",
        "user",
        "--user",
        user,
        "--agent",
        agent,
        "--policy-dir",
        &policies,
    ]
    .map(str::to_owned)
    .into()
}

fn run(place: &Place, layout: &Layout, user: &str, agent: &str, more: &[&str], script: &str) -> Output {
    let words = words(place, layout, user, agent);
    let words: Vec<&str> = words.iter().map(String::as_str).chain(more.iter().copied()).collect();
    place.run(&words, script).output().unwrap()
}

/// A run of alice's that keeps and resumes.
fn said(place: &Place, layout: &Layout, script: &str) -> String {
    let output = run(place, layout, "alice", "talker", &["--resume"], script);
    assert_eq!(output.status.code(), Some(0), "{}: {}", layout.what, text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What lies in the directory of what is kept.
fn kept(place: &Place) -> Vec<PathBuf> {
    let entries = fs::read_dir(place.path("state/kept/resume")).into_iter().flatten();
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

const TALK: &str = "mkdir -p ~/.talk/all/deep; echo one >~/.talk/all/deep/one; echo index >~/.talk.json; \
                    echo not >~/.talk/not; echo not >~/.not; chmod 640 ~/.talk.json; touch -d @1000000000 ~/.talk.json";
const LOOK: &str = "cd; find . -type f | sort; cat .talk.json .talk/all/deep/one 2>/dev/null; true";

#[test]
fn kept_for_the_next_run_of_this_user_with_this_agent() {
    for who in Who::all() {
        for layout in 0..layouts(&a_place(who), "").len() {
            let place = a_place(who);
            agents(&place);
            let layout = layouts(&place, "").remove(layout);
            let what = &layout.what;
            said(&place, &layout, TALK);
            let state = kept(&place);
            assert_eq!(state.len(), 1, "{what}: {state:?}");
            let meta = fs::metadata(&state[0]).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o700, who.uid()), "{what}: the launcher's alone");
            let all = "./.talk.json\n./.talk/all/deep/one\nindex\none\n";
            assert_eq!(said(&place, &layout, LOOK), all, "{what}");
            // The agent's own to write, with mode and time as they were.
            let own =
                "stat -c '%a %Y' ~/.talk.json; test -O ~/.talk.json && test -O ~/.talk/all && echo more >>~/.talk.json";
            assert_eq!(said(&place, &layout, own), "640 1000000000\n", "{what}");
            assert_eq!(said(&place, &layout, "cat ~/.talk.json; rm -r ~/.talk"), "index\nmore\n", "{what}");
            assert_eq!(said(&place, &layout, LOOK), "./.talk.json\nindex\nmore\n", "{what}: what is gone stays gone");
            for (user, agent, more) in
                [("bob", "talker", &["--resume"][..]), ("alice", "other", &["--resume"]), ("alice", "talker", &[])]
            {
                let output = run(&place, &layout, user, agent, more, LOOK);
                assert_eq!(output.stdout, b"", "{what} {user} {agent}: {}", text(&output));
            }
            // A run that does not resume takes nothing away either.
            assert_eq!(said(&place, &layout, LOOK), "./.talk.json\nindex\nmore\n", "{what}");
            place.assert_nothing_left(&[]);
        }
    }
}

#[test]
fn no_run_reads_or_writes_what_another_one_kept() {
    for who in Who::all() {
        let place = a_place(who);
        agents(&place);
        for layout in layouts(&place, "") {
            let what = &layout.what;
            // A plain user's cells share one UID: it takes a private root or Landlock to keep them apart.
            if who == Who::Plain && what.ends_with("permissions only") {
                continue;
            }
            said(&place, &layout, TALK);
            let theirs = kept(&place)[0].join(".talk.json");
            let script = format!(
                "cat {0}; ls {1}; echo x >{0}; rm -rf {2}; echo end",
                theirs.display(),
                place.path("state/kept/resume").display(),
                kept(&place)[0].display()
            );
            for user in ["bob", "alice"] {
                let output = run(&place, &layout, user, "talker", &[], &script);
                assert_eq!(output.stdout, b"end\n", "{what} {user}: {}", text(&output));
                assert_eq!(fs::read_to_string(&theirs).unwrap(), "index\n", "{what} {user}");
            }
        }
    }
}

/// Names that lead out, that can do something on their own, or that a copy would wait at.
const HOSTILE: &str = "rm -rf ~/.talk ~/.talk.json; mkdir -p ~/.talk/all; cd ~/.talk/all; \
    ln -s /etc/passwd link; ln -s /etc/oubliette dir; mkfifo fifo; echo suid >suid; chmod 6755 suid; echo x >\"$(printf 'a\\nb')\"; \
    ln -s /etc/shadow ~/.talk.json";

#[test]
fn hostile_files_lead_nowhere() {
    for who in Who::all() {
        let place = a_place(who);
        agents(&place);
        for layout in layouts(&place, "") {
            let what = &layout.what;
            said(&place, &layout, HOSTILE);
            let all = kept(&place)[0].join(".talk/all");
            let kind = |name: &str| fs::symlink_metadata(all.join(name)).map(|meta| meta.mode()).unwrap_or(0);
            assert_eq!(kind("fifo"), 0, "{what}");
            assert_eq!((kind("suid") & 0o7777, kind("link") & 0o170_000), (0o755, 0o120_000), "{what}");
            let back = said(&place, &layout, "cd ~/.talk/all; ls | wc -l; readlink link ~/.talk.json; stat -c %a suid");
            // A name with a line end counts twice.
            assert_eq!(back, "5\n/etc/passwd\n/etc/shadow\n755\n", "{what}");
        }
        place.assert_nothing_left(&[]);
    }
}

#[test]
fn too_much_is_an_error_and_what_was_kept_before_stays() {
    for who in Who::all() {
        let place = a_place(who);
        agents(&place);
        for layout in layouts(&place, "") {
            let what = &layout.what;
            said(&place, &layout, TALK);
            // Holes cost the cell nothing, and whoever copies them next may not keep them: they count in full.
            let holes = "cd ~/.talk/all && truncate -s 3G a && truncate -s 3G b && echo two >deep/one";
            let output = run(&place, &layout, "alice", "talker", &["--resume"], holes);
            let why = text(&output);
            assert_eq!(output.status.code(), Some(125), "{what}: {why}");
            assert!(why.contains("cannot keep what the agent resumes from") && why.contains("hint: "), "{what}: {why}");
            assert_eq!(said(&place, &layout, "cat ~/.talk/all/deep/one; ls ~/.talk/all"), "one\ndeep\n", "{what}");
            assert_eq!(kept(&place).len(), 1, "{what}: {:?}", kept(&place));
        }
        place.assert_nothing_left(&[]);
    }
}

#[test]
fn a_launcher_that_is_killed_while_it_keeps_leaves_what_was_kept_before() {
    for who in Who::all() {
        let place = a_place(who);
        agents(&place);
        for layout in layouts(&place, "") {
            let what = &layout.what;
            said(&place, &layout, TALK);
            let words = words(&place, &layout, "alice", "talker");
            let words: Vec<&str> = words.iter().map(String::as_str).chain(["--resume"]).collect();
            let many = "cd ~/.talk/all && seq -f 'file%05g' 1 20000 | while read -r name; do : >$name; done; echo two >deep/one; echo ready";
            let mut started = Started::new(&mut place.run(&words, many));
            started.line("ready");
            let draft = || kept(&place).into_iter().find(|path| path.to_str().unwrap().contains("/.draft-"));
            within(Duration::from_secs(20), "a draft", || draft().is_some());
            started.kill();
            assert!(draft().is_some(), "{what}: it was killed in the middle");
            // The keeper holds the workspace until it has ended and wiped the cell.
            within(Duration::from_secs(20), "a sweep that finishes it", || {
                place.sweep();
                draft().is_none()
            });
            assert_eq!(kept(&place).len(), 1, "{what}");
            assert_eq!(said(&place, &layout, "cat ~/.talk/all/deep/one; ls ~/.talk/all"), "one\ndeep\n", "{what}");
            // Between the two renames, the old files are all that there is.
            let name = kept(&place).remove(0);
            let old = name.with_file_name(format!(".old-{}", name.file_name().unwrap().to_str().unwrap()));
            fs::rename(&name, &old).unwrap();
            place.sweep();
            assert_eq!(kept(&place), [name.as_path()], "{what}");
            fs::rename(&name, &old).unwrap();
            assert_eq!(
                said(&place, &layout, "cat ~/.talk/all/deep/one"),
                "one\n",
                "{what}: the next run finishes it, too"
            );
        }
        place.assert_nothing_left(&[]);
    }
}

#[test]
fn a_sweep_leaves_a_live_run_alone() {
    let who = Who::all()[0];
    let place = a_place(who);
    agents(&place);
    let layout = layouts(&place, "").remove(0);
    said(&place, &layout, TALK);
    let words = words(&place, &layout, "alice", "talker");
    let words: Vec<&str> = words.iter().map(String::as_str).chain(["--resume"]).collect();
    let mut started = Started::new(&mut place.run(&words, "echo ready; read l; exit 0"));
    started.line("ready");
    let draft = {
        let name = kept(&place).remove(0);
        name.with_file_name(format!(".draft-{}", name.file_name().unwrap().to_str().unwrap()))
    };
    fs::create_dir(&draft).unwrap();
    place.give(&draft);
    place.sweep();
    assert!(draft.exists(), "whoever holds the workspace may be at it");
    fs::remove_dir(&draft).unwrap();
    assert_eq!(started.end().status.code(), Some(0));
}

/// Whoever removes a user's workspace has not to know where the conversations are.
#[test]
fn what_was_kept_for_a_workspace_that_is_gone_goes_with_it() {
    for who in Who::all() {
        let place = a_place(who);
        agents(&place);
        let layout = layouts(&place, "").remove(0);
        said(&place, &layout, TALK);
        let before = kept(&place);
        let others = run(&place, &layout, "bob", "talker", &["--resume"], TALK);
        assert_eq!(others.status.code(), Some(0), "{}", text(&others));
        let all = kept(&place);
        assert_eq!((before.len(), all.len()), (1, 2));
        let name = before[0].file_name().unwrap().to_str().unwrap();
        let workspace = place.path("state/kept/workspaces").join(name.split('.').next().unwrap());
        for unfinished in [".old-", ".draft-"] {
            let path = before[0].with_file_name(format!("{unfinished}{name}"));
            fs::create_dir(&path).unwrap();
            place.give(&path);
        }
        fs::remove_dir_all(&workspace).unwrap();
        let swept = place.sweep();
        let rest: Vec<PathBuf> = all.into_iter().filter(|path| *path != before[0]).collect();
        assert_eq!(kept(&place), rest, "{swept}");
        assert_eq!(said(&place, &layout, LOOK), "");
    }
}

#[test]
fn nothing_to_resume_is_refused() {
    let place = a_place(Who::all()[0]);
    agents(&place);
    let layout = layouts(&place, "").remove(0);
    let refused = |more: &[&str], part: &str| {
        let output = place.run(more, "echo ran").output().unwrap();
        let why = text(&output);
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(125), &b""[..]), "{why}");
        assert!(why.contains(part) && why.contains("hint: "), "{why}");
    };
    let policies = place.path("policies").to_str().unwrap().to_owned();
    let talker = ["--agent", "talker", "--policy-dir", &policies, "--policy", &layout.policy, "--resume"];
    refused(&talker, "cannot use --resume: the workspace is not one that its user keeps");
    refused(&["--resume", "--workspace", "user", "--agent", "none"], "cannot use --resume: the file of");
    assert!(!place.path("state/kept").exists());
}
