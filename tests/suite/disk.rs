//! `limits.disk` and `limits.files` where no tmpfs bounds what an agent writes: a workspace that is kept, and all of a cell
//! without a private root.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use serde_json::Value;

use crate::need;
use crate::stage::{Done, Stage, Who, output};

/// One launcher, one policy and a workspace of the caller's.
struct Place {
    stage: Stage,
    who: Who,
    policy: PathBuf,
    work: PathBuf,
}

const SMALL: &str = "disk = \"8MiB\"\nfiles = 200";

impl Place {
    fn new(who: Who, off: &[&str]) -> Place {
        let stage = Stage::new();
        let policy = stage.policy(off, None);
        let text = fs::read_to_string(&policy).unwrap();
        let start = text.find("[limits]").unwrap();
        let end = text[start..].find("\n[").map_or(text.len(), |length| start + length);
        fs::write(&policy, [&text[..start], "[limits]\n", SMALL, "\n", &text[end..]].concat()).unwrap();
        let work = stage.own(who).join("work");
        fs::create_dir(&work).unwrap();
        // No agent runs as root: the workspace has an owner.
        let owner = if who == Who::Root { stage.uid(Who::User) } else { stage.uid(who) };
        if geteuid().is_root() {
            chown(&work, Some(owner), Some(owner)).unwrap();
        }
        fs::set_permissions(&work, fs::Permissions::from_mode(0o700)).unwrap();
        Place { stage, who, policy, work }
    }

    fn words(&self, workspace: &str) -> Vec<String> {
        let policy = self.policy.to_str().unwrap().to_owned();
        let mut words: Vec<String> =
            ["--network", "none", "--agent", "none", "--policy", &policy].map(Into::into).into();
        if workspace != "fresh" {
            words.extend(["--workspace".into(), workspace.into()]);
        }
        words.push("--".into());
        words
    }

    /// Its end, its report and how long it took.
    fn run(&self, workspace: &str, script: &str) -> (Done, Value, Duration) {
        let began = Instant::now();
        let wrap = ["sh", "-c", "exec 3>\"$HOME/report\"; exec \"$@\"", "sh"];
        let mut command = self.stage.run(self.who, &wrap);
        command.args(["--quiet", "--report-fd", "3"]).args(self.words(workspace)).args(["sh", "-c", script]);
        let done = output(&mut command);
        let report = fs::read_to_string(self.stage.own(self.who).join("report")).unwrap();
        (done, serde_json::from_str(&report).unwrap(), began.elapsed())
    }

    fn ends_over(&self, workspace: &str, script: &str, what: &str) {
        let (done, report, took) = self.run(workspace, script);
        let all = format!("{:?} {workspace} {script}: {done:?} {report}", self.who);
        assert_eq!(done.status.code(), Some(125), "{all}");
        assert!(report["outcome"]["over-limit"].as_str().unwrap_or_default().contains(what), "{all}");
        assert!(done.err.contains(what) && done.err.contains("hint: remove files"), "{all}");
        assert!(took < Duration::from_secs(30), "{all}");
        assert_eq!(self.stage.cells(self.who), Vec::<PathBuf>::new(), "{all}");
    }
}

fn everybody() -> Vec<Who> {
    if need::as_root() { vec![Who::Root, Who::User] } else { vec![Who::User] }
}

const BYTES: &str = "more bytes than limits.disk (8MiB)";
const FILES: &str = "more files than limits.files (200)";

const NAMESPACES: [&str; 5] = ["pid", "root", "ipc", "uts", "net"];

#[test]
fn a_run_ends_when_its_workspace_exceeds_a_limit() {
    for who in everybody() {
        for off in [&[][..], &NAMESPACES] {
            let place = Place::new(who, off);
            let work = place.work.to_str().unwrap();
            place.ends_over(work, "head -c 20M /dev/zero >big; exec sleep 60", BYTES);
            fs::remove_file(place.work.join("big")).unwrap();
            place.ends_over(
                work,
                "mkdir d; i=0; while [ $i -lt 250 ]; do : >d/$i; i=$((i + 1)); done; exec sleep 60",
                FILES,
            );
            fs::remove_dir_all(place.work.join("d")).unwrap();
            // Faster than any count, and with a status of its own.
            place.ends_over(work, "head -c 20M /dev/zero >big; exit 0", BYTES);
            place.ends_over_at_the_start(work);
        }
    }
}

#[test]
fn a_users_workspace_is_bounded_over_all_of_his_runs() {
    for who in everybody() {
        let place = Place::new(who, &[]);
        let (done, report, _) = place.run("user", "head -c 5M /dev/zero >one");
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        let bytes = report["disk"]["bytes"].as_u64().unwrap();
        assert!((5 << 20..6 << 20).contains(&bytes) && report["disk"]["files"] == 1, "{report}");
        place.ends_over("user", "head -c 5M /dev/zero >two; exec sleep 60", BYTES);
        place.ends_over_at_the_start("user");
    }
}

impl Place {
    /// No agent, and nothing left.
    fn ends_over_at_the_start(&self, workspace: &str) {
        let (done, report, _) = self.run(workspace, "echo ran");
        assert_eq!((done.status.code(), done.out.as_str()), (Some(125), ""), "{done:?}");
        assert!(report["outcome"]["refused"].as_str().unwrap().contains("it holds more bytes"), "{report}");
        assert!(done.err.contains("cannot run in /") && done.err.contains("hint: remove files"), "{done:?}");
        assert_eq!(self.stage.cells(self.who), Vec::<PathBuf>::new());
    }
}

/// Without a tmpfs HOME and a fresh workspace are directories of the host's disk.
#[test]
fn a_cell_of_directories_is_bounded_too() {
    for who in everybody() {
        for place_of in ["$HOME", "$TMPDIR", "."] {
            let place = Place::new(who, &NAMESPACES);
            place.ends_over("fresh", &format!("head -c 20M /dev/zero >{place_of}/big; exec sleep 60"), BYTES);
        }
        let place = Place::new(who, &NAMESPACES);
        let (done, report, _) = place.run("fresh", "head -c 1M /dev/zero >small");
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        assert!(report["disk"]["bytes"].as_u64().unwrap() >= 1 << 20, "{report}");
    }
}

/// Whoever may end the process that counts has ended his run.
#[test]
fn without_its_counter_a_run_ends() {
    let place = Place::new(Who::User, &[]);
    let mut command = place.stage.run(Who::User, &[]);
    command.arg("--quiet").args(place.words(place.work.to_str().unwrap())).args(["sh", "-c", "echo up; exec sleep 60"]);
    let mut running = crate::stage::Running::start(&mut command);
    running.line();
    let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let counters =
        || crate::stage::descendants(running.pid()).into_iter().find(|pid| name(*pid).starts_with("oubliette-counter"));
    let counter = crate::stage::wait_for("the counter", counters);
    assert!(!Path::new(&format!("/proc/{counter}/fd/5")).exists() || need::as_root(), "it holds little");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(counter), nix::sys::signal::Signal::SIGKILL).unwrap();
    let done = running.end();
    assert_eq!(done.status.code(), Some(125), "{done:?}");
    assert!(done.err.contains("the process that counts it has ended"), "{done:?}");
}

#[test]
fn the_plan_says_what_bounds_the_disk() {
    for (workspace, off, said) in [
        ("fresh", &[][..], "8MiB and 200 files: the cell's tmpfs\n"),
        ("user", &[], "as much again the workspace, counted before, during and after the run\n"),
        ("fresh", &NAMESPACES, "the cell's directory, counted before, during and after the run\n"),
        ("user", &NAMESPACES, "the cell's directory and the workspace together, counted before"),
    ] {
        let place = Place::new(Who::User, off);
        let text = output(
            place
                .stage
                .command(Who::User, &[])
                .arg("explain")
                .arg("--state-dir")
                .arg(place.stage.state(Who::User))
                .args(place.words(workspace))
                .arg("true"),
        )
        .out;
        let line = text.lines().find(|line| line.starts_with("  disk ")).unwrap_or_else(|| panic!("{text}"));
        assert!(format!("{line}\n").contains(said), "{line}");
        assert_eq!(text.contains("uncounted   disk: what is written between two counts"), !said.ends_with("tmpfs\n"));
    }
}
