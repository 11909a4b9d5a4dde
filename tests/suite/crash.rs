//! P7 after a crash: `kill -9` leaves no process, by the PID namespace or by the keeper, and of a running cell no byte
//! but an empty directory; `sweep` leaves nothing anywhere, touches no live cell, and does what it says on a state directory that somebody has filled with traps.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::need;
use crate::place::{PATIENCE, Place, Started, Who, below, children, lives, marked, marker, within};

/// The stages of a launch at which the launcher can be stopped.
const STAGES: [&str; 9] = ["planned", "leased", "created", "written", "cloned", "running", "ended", "killed", "wiped"];

/// What a PID namespace's end may take.
const A_SECOND: Duration = Duration::from_secs(1);

/// What a keeper may take on a busy machine. It takes some milliseconds on a quiet one.
const KEEPER: Duration = Duration::from_secs(5);

/// Layers of a policy, and whether they leave a PID namespace.
const TIERS: [(&str, &str); 4] = [
    ("everything", ""),
    ("no PID namespace", "pid = \"off\""),
    ("directories", "root = \"off\""),
    (
        "permissions only",
        "pid = \"off\"\nroot = \"off\"\nipc = \"off\"\nuts = \"off\"\nlandlock-fs = \"off\"\nlandlock-net = \"off\"\n\
         landlock-scope = \"off\"\nseccomp = \"off\"\ncgroup = \"off\"",
    ),
];

/// Leaves files everywhere and two processes that hold on: double-forked, each in a session of its own, deaf to every
/// signal that can be ignored. Modes in the background: without a private root a stopped launcher answers for them later.
const HOLD_ON: &str = "
for dir in \"$HOME\" \"$TMPDIR\" .; do mkdir -p \"$dir/deep/er\"; echo x > \"$dir/deep/er/left\"; chmod 0 \"$dir/deep\" >/dev/null 2>&1 & done
deaf='trap \"\" HUP INT QUIT TERM TSTP USR1 USR2; echo child; exec >/dev/null 2>&1 </dev/null; while :; do sleep 999; done'
(setsid sh -c \"$deaf\" & cd /; setsid sh -c \"$deaf\" &) &
wait $!
";

struct Tier {
    name: &'static str,
    policy: PathBuf,
    pid_namespace: bool,
}

fn tiers(place: &Place) -> Vec<Tier> {
    let tier = |(name, layers)| {
        let policy = place.policy(layers);
        let pid_namespace = place.enforces(&policy, &["pid"]);
        if layers.is_empty() {
            need::need("pid", pid_namespace);
        }
        Tier { name, policy, pid_namespace }
    };
    TIERS.into_iter().map(tier).collect()
}

/// A launch that stops itself at a stage.
fn launch(place: &Place, tier: &Tier, stage: &str, marker: &str, then: &str) -> Started {
    let mark = format!("MARK={marker}");
    let mut command =
        place.run(&["--setenv", &mark, "--policy", tier.policy.to_str().unwrap()], &format!("{HOLD_ON}{then}"));
    Started::new(command.env("OUBLIETTE_PAUSE_AT", stage))
}

/// Waits until the agent's two processes hold on.
fn hold_on(launcher: &mut Started) {
    launcher.line("child");
    launcher.line("child");
}

/// A cell whose agent waits for a line and then says what it still has.
struct Neighbour {
    launcher: Started,
    marker: String,
}

const NEIGHBOURS: usize = 3;

impl Neighbour {
    fn new(place: &Place, tier: &Tier) -> Neighbour {
        let marker = marker();
        let script =
            "echo mine > \"$HOME/mine\"; sleep 999 & echo ready; read line; kill -0 $! && cat \"$HOME/mine\"; exit 7";
        let mark = format!("MARK={marker}");
        let mut command = place.run(&["--setenv", &mark, "--policy", tier.policy.to_str().unwrap()], script);
        let mut launcher = Started::new(&mut command);
        launcher.line("ready");
        // Launcher, shell and sleep; for a moment one that is still to execute or to rename itself is another.
        within(PATIENCE, "a neighbour of three processes", || marked(&marker).len() == NEIGHBOURS);
        Neighbour { launcher, marker }
    }

    fn cell(&self, place: &Place) -> Option<OsString> {
        let launcher = self.launcher.pid().as_raw();
        place.cells().into_iter().find(|cell| record(place, cell).is_some_and(|record| record["launcher"] == launcher))
    }

    fn assert_untouched(self, place: &Place) {
        assert_eq!(marked(&self.marker).len(), NEIGHBOURS);
        assert!(self.cell(place).is_some());
        let ended = self.launcher.end();
        assert_eq!((ended.status.code(), ended.out.as_str()), (Some(7), "mine\n"), "{}", ended.err);
        assert_eq!(marked(&self.marker), []);
    }
}

fn record(place: &Place, cell: &OsStr) -> Option<Value> {
    serde_json::from_slice(&fs::read(place.path("state/cells").join(cell).join("cell.json")).ok()?).ok()
}

fn killed_at_each_stage(who: Who) {
    let place = Place::new(who);
    for tier in tiers(&place) {
        let neighbour = Neighbour::new(&place, &tier);
        let theirs = neighbour.cell(&place).unwrap();
        for stage in STAGES {
            let what = format!("{who:?}, {}, killed at {stage}", tier.name);
            let marker = marker();
            let then = if matches!(stage, "ended" | "killed" | "wiped") { "exit 0" } else { "sleep 999" };
            let mut launcher = launch(&place, &tier, stage, &marker, then);
            if stage == "running" {
                hold_on(&mut launcher);
            }
            assert!(launcher.stopped(), "{what}: it has ended");
            assert_ne!(marked(&marker), [], "{what}: the search finds nothing");
            let mut cells = place.cells();
            let family = below(launcher.pid());
            launcher.kill();
            let all_dead = || marked(&marker).is_empty() && !family.iter().any(|pid| lives(*pid));
            if tier.pid_namespace {
                within(A_SECOND, &format!("{what}: no process lives"), all_dead);
            } else if matches!(stage, "cloned" | "running" | "ended" | "killed" | "wiped") {
                within(KEEPER, &format!("{what}: no process lives"), all_dead);
                within(KEEPER, &format!("{what}: no cell is left"), || place.cells() == [theirs.as_os_str()]);
            }
            let swept = place.sweep();
            assert_eq!(swept["live"], 1, "{what}");
            // A process that was killed still counts for a moment.
            within(A_SECOND, &what, all_dead);
            assert_eq!(marked(&marker), [], "{what}");
            assert_eq!(place.cells(), [theirs.as_os_str()], "{what}");
            assert_eq!(place.leases().len(), usize::from(who == Who::Root), "{what}");
            cells.retain(|cell| *cell != theirs);
            assert_eq!(cells.len(), usize::from(!matches!(stage, "planned" | "leased" | "wiped")), "{what}");
        }
        neighbour.assert_untouched(&place);
        assert_eq!(place.sweep()["removed"], json!([]), "{}", tier.name);
        place.assert_nothing_left(&[theirs]);
    }
}

#[test]
fn killed_at_each_stage_as_root() {
    if need::as_root() {
        killed_at_each_stage(Who::Root);
    }
}

#[test]
fn killed_at_each_stage_as_a_plain_user() {
    killed_at_each_stage(Who::Plain);
}

#[test]
fn init_is_killed() {
    for who in Who::all() {
        let place = Place::new(who);
        for tier in tiers(&place) {
            let marker = marker();
            let mut launcher = launch(&place, &tier, "", &marker, "sleep 999");
            hold_on(&mut launcher);
            let cells = place.cells();
            kill(children(launcher.pid())[0], Signal::SIGKILL).unwrap();
            let ended = launcher.end();
            assert_eq!(ended.status.code(), Some(128 + 9), "{who:?}, {}: {}", tier.name, ended.err);
            // The launcher has ended all by itself.
            assert_eq!(marked(&marker), [], "{who:?}, {}", tier.name);
            place.assert_nothing_left(&cells);
        }
    }
}

/// The agent has not begun, so its end is not told as the agent's.
#[test]
fn init_is_killed_before_it_starts_the_agent() {
    for who in Who::all() {
        let place = Place::new(who);
        for tier in tiers(&place) {
            let marker = marker();
            let mut launcher = launch(&place, &tier, "cloned", &marker, "sleep 999");
            assert!(launcher.stopped());
            let (cells, family) = (place.cells(), below(launcher.pid()));
            kill(children(launcher.pid())[0], Signal::SIGKILL).unwrap();
            // A keeper's child dies with it, but not before it; until then the launcher could still let it go on.
            within(KEEPER, tier.name, || !family.iter().any(|pid| lives(*pid)));
            launcher.signal(Signal::SIGCONT);
            let ended = launcher.end();
            assert_eq!((ended.status.code(), ended.out.as_str()), (Some(125), ""), "{who:?}, {}: {ended:?}", tier.name);
            assert!(ended.err.contains("oubliette: cannot "), "{who:?}, {}: {ended:?}", tier.name);
            assert_eq!(marked(&marker), [], "{who:?}, {}", tier.name);
            place.assert_nothing_left(&cells);
        }
    }
}

#[test]
fn launcher_and_init_are_killed_together() {
    for who in Who::all() {
        let place = Place::new(who);
        for tier in tiers(&place) {
            let marker = marker();
            let mut launcher = launch(&place, &tier, "", &marker, "sleep 999");
            hold_on(&mut launcher);
            let cells = place.cells();
            let init = children(launcher.pid())[0];
            launcher.signal(Signal::SIGSTOP);
            assert!(launcher.stopped());
            kill(init, Signal::SIGKILL).unwrap();
            launcher.kill();
            if tier.pid_namespace {
                within(A_SECOND, tier.name, || marked(&marker).is_empty());
            }
            place.sweep();
            assert_eq!(marked(&marker), [], "{who:?}, {}", tier.name);
            place.assert_nothing_left(&cells);
        }
    }
}

/// A process that nothing but its parent ties to the cell: double-forked, with a session, a directory and an environment
/// of its own, and deaf. Its name is the only trace, for the test to find.
const UNTIED: &str = "
(setsid env -i sh -c 'cd /; trap \"\" HUP INT QUIT TERM USR1 USR2; (sleep 999 & echo child) ; while :; do sleep 999; done' \"$MARK\" &) &
wait
";

/// A launch of a hostile agent in a process group of its own, until its child lives.
fn untied(place: &Place, policy: &Path, marker: &str) -> (Started, Vec<Pid>) {
    let mark = format!("MARK={marker}");
    let options = ["--setenv", &mark, "--policy", policy.to_str().unwrap()];
    let mut launcher = Started::new(place.run(&options, &format!("{UNTIED} sleep 999")).process_group(0));
    launcher.line("child");
    let family = below(launcher.pid());
    assert!(family.len() >= 4, "keeper, agent and its children: {family:?}");
    (launcher, family)
}

/// Tiers in which a keeper does what a PID namespace does elsewhere.
fn kept_tiers(place: &Place) -> Vec<Tier> {
    tiers(place).into_iter().filter(|tier| !tier.pid_namespace).collect()
}

#[test]
fn nothing_hides_from_the_keeper() {
    for who in Who::all() {
        let place = Place::new(who);
        for tier in kept_tiers(&place) {
            let neighbour = Neighbour::new(&place, &tier);
            let theirs = neighbour.cell(&place).unwrap();
            let marker = marker();
            let (mut launcher, family) = untied(&place, &tier.policy, &marker);
            // The whole process group, as a service ends what it has started.
            nix::sys::signal::killpg(launcher.pid(), Signal::SIGKILL).unwrap();
            launcher.kill();
            let what = format!("{who:?}, {}", tier.name);
            within(KEEPER, &what, || marked(&marker).is_empty() && !family.iter().any(|pid| lives(*pid)));
            within(KEEPER, &what, || place.cells() == [theirs.as_os_str()]);
            assert_eq!(place.leases().len(), usize::from(who == Who::Root), "{what}");
            neighbour.assert_untouched(&place);
            place.assert_nothing_left(&[theirs]);
        }
    }
}

#[test]
fn nothing_hides_from_the_launcher_of_a_dead_keeper() {
    for who in Who::all() {
        let place = Place::new(who);
        for tier in kept_tiers(&place) {
            let marker = marker();
            let (launcher, family) = untied(&place, &tier.policy, &marker);
            kill(children(launcher.pid())[0], Signal::SIGKILL).unwrap();
            let ended = launcher.end();
            assert_eq!(ended.status.code(), Some(128 + 9), "{who:?}, {}: {}", tier.name, ended.err);
            assert!(marked(&marker).is_empty() && !family.iter().any(|pid| lives(*pid)), "{who:?}, {}", tier.name);
            place.assert_nothing_left(&[]);
        }
    }
}

/// A keeper that somebody has stopped answers nothing: the deadline counts all the same.
#[test]
fn a_stopped_keeper_holds_up_nothing() {
    let place = Place::new(Who::Plain);
    let tier = kept_tiers(&place).pop().unwrap();
    let marker = marker();
    let (launcher, _) = untied(&place, &tier.policy, &marker);
    kill(children(launcher.pid())[0], Signal::SIGSTOP).unwrap();
    launcher.signal(Signal::SIGTERM);
    launcher.signal(Signal::SIGINT);
    let ended = launcher.end();
    assert_ne!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(marked(&marker), []);
    place.assert_nothing_left(&[]);
}

/// It could not be traced, and has nothing that an agent or a caller would miss or find.
#[test]
fn a_keeper_holds_its_locks_and_no_more() {
    if !need::as_root() {
        return;
    }
    for who in Who::all() {
        let place = Place::new(who);
        let tier = kept_tiers(&place).pop().unwrap();
        let (launcher, _) = untied(&place, &tier.policy, &marker());
        let keeper = PathBuf::from(format!("/proc/{}", children(launcher.pid())[0]));
        assert_eq!(fs::metadata(keeper.join("fd")).unwrap().uid(), 0, "{who:?}: it is dumpable");
        assert!(fs::read(keeper.join("environ")).unwrap().iter().all(|byte| *byte == 0));
        let name = fs::read(keeper.join("cmdline")).unwrap();
        assert!(name.starts_with(b"oubliette-keeper\0"), "{:?}", String::from_utf8_lossy(&name));
        let mut sockets = 0;
        for fd in fs::read_dir(keeper.join("fd")).unwrap().flatten() {
            let target = fs::read_link(fd.path()).unwrap();
            let text = target.to_string_lossy();
            sockets += usize::from(text.starts_with("socket:"));
            let known = text == "/dev/null"
                || text == "anon_inode:[signalfd]"
                || text.starts_with("socket:")
                || target.starts_with(place.path("state/cells"))
                || target.starts_with("/run/oubliette/uids");
            assert!(known, "{who:?}: {} is {text}", fd.path().display());
        }
        assert_eq!(sockets, 1, "{who:?}: the channel");
    }
}

/// Runs that were killed while their agents ran, in every tier.
fn dead_runs(place: &Place, markers: &mut Vec<String>) -> Vec<OsString> {
    let mut launchers = Vec::new();
    for tier in tiers(place) {
        markers.push(marker());
        let mut launcher = launch(place, &tier, "", markers.last().unwrap(), "sleep 999");
        hold_on(&mut launcher);
        launchers.push(launcher);
    }
    let cells = place.cells();
    launchers.iter_mut().for_each(Started::kill);
    cells
}

#[test]
fn two_sweeps_at_once() {
    for who in Who::all() {
        let place = Place::new(who);
        let mut markers = Vec::new();
        let cells = dead_runs(&place, &mut markers);
        assert_eq!(cells.len(), TIERS.len());
        let sweep = || Started::new(place.command("sweep").arg("--json"));
        let sweeps = [sweep(), sweep()];
        for sweep in sweeps {
            let ended = sweep.end();
            assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        }
        for marker in &markers {
            assert_eq!(marked(marker), [], "{who:?}");
        }
        place.assert_nothing_left(&cells);
    }
}

#[test]
fn sweep_beside_ten_live_cells() {
    for who in Who::all() {
        let place = Place::new(who);
        let tiers = tiers(&place);
        let live: Vec<Neighbour> = (0..10).map(|number| Neighbour::new(&place, &tiers[number % tiers.len()])).collect();
        let mut markers = Vec::new();
        dead_runs(&place, &mut markers);
        assert_eq!(place.sweep()["live"], 10, "{who:?}");
        for marker in &markers {
            assert_eq!(marked(marker), [], "{who:?}");
        }
        let cells = place.cells();
        assert_eq!(cells.len(), 10);
        live.into_iter().for_each(|neighbour| neighbour.assert_untouched(&place));
        place.assert_nothing_left(&cells);
    }
}

/// Long enough for every stage of a run to be hit, each run of another tier.
#[test]
fn killed_at_random_moments() {
    const RUNS: usize = 60;
    for who in Who::all() {
        let place = Place::new(who);
        let tiers = tiers(&place);
        let marker = marker();
        let whole: Vec<Duration> = tiers
            .iter()
            .map(|tier| {
                let started = Instant::now();
                assert_eq!(launch(&place, tier, "", &marker, "exit 0").end().status.code(), Some(0));
                started.elapsed()
            })
            .collect();
        let (mut left, mut ended) = (0, 0);
        for number in 0..RUNS / Who::all().len() {
            let at = number % tiers.len();
            let mut launcher = launch(&place, &tiers[at], "", &marker, "exit 0");
            // No event to wait for: the moment itself is what is tried.
            std::thread::sleep(whole[at].mul_f64(rand::random_range(0.0..1.1)));
            ended += usize::from(launcher.child.try_wait().unwrap().is_some());
            launcher.kill();
            left = left.max(place.cells().len());
        }
        let cells = place.cells();
        let swept = place.sweep();
        assert_eq!(swept["live"], 0);
        assert_eq!(marked(&marker), [], "{who:?}");
        place.assert_nothing_left(&cells);
        println!(
            "{who:?}: {} runs killed, {ended} of them too late, {} cells left before the sweep, 0 after",
            RUNS / Who::all().len(),
            cells.len()
        );
        assert!(left > 0, "no run was killed while it had a cell");
    }
}

/// A process of another account, with a text in its environment.
fn bystander(uid: u32, environ: &str) -> Started {
    let mut command = Command::new("sh");
    command.args(["-c", "echo up; read line; echo alive"]).env_clear().env("PATH", "/usr/bin:/bin").env("WHO", environ);
    if nix::unistd::geteuid().is_root() {
        command.uid(uid).gid(uid);
    }
    let mut started = Started::new(&mut command);
    started.line("up");
    started
}

fn plant_record(dir: &Path, change: Value) {
    let mut record = json!({
        "user": "u", "agent": "none", "level": "balanced", "started": 1, "launcher": 1, "uid": null, "cgroups": [],
        "pid-namespace": false, "directories": true,
    });
    record.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    fs::create_dir(dir).unwrap();
    fs::write(dir.join("cell.json"), record.to_string()).unwrap();
}

fn dead_name() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Every trap that a state directory could hold, under names of cells and under others.
fn plant(place: &Place, cells: &Path, precious: &Path, bystander: u32) {
    symlink(precious, cells.join(dead_name())).unwrap();
    symlink(precious.join("file"), cells.join(dead_name())).unwrap();
    fs::write(cells.join(dead_name()), "a file").unwrap();
    for name in ["PATH", "a", "two\nlines", "\u{1b}[2J", "-rf", "*"] {
        fs::create_dir_all(cells.join(name).join("home/deep")).unwrap();
        symlink(precious, cells.join(name).join("home/out")).unwrap();
    }
    for _ in 0..100 {
        fs::create_dir(cells.join(dead_name())).unwrap();
    }
    let half = cells.join(dead_name());
    fs::create_dir(&half).unwrap();
    fs::write(half.join("cell.json"), "{\"user\":\"u\",\"agent\":").unwrap();
    for uid in [json!(0), json!(bystander), json!(4_294_967_295_u32), json!(-1), json!("0")] {
        plant_record(&cells.join(dead_name()), json!({ "uid": uid }));
    }
    let name = dead_name();
    let hostile = [
        "/".to_owned(),
        "/sys/fs/cgroup".into(),
        precious.to_str().unwrap().into(),
        format!("{}/oubliette-{name}", precious.display()),
        format!("/sys/fs/cgroup/../../{}/oubliette-{name}", precious.display()),
        format!("/sys/fs/cgroup/oubliette-{}", dead_name()),
    ];
    fs::create_dir(precious.join(format!("oubliette-{name}"))).unwrap();
    plant_record(&cells.join(name), json!({ "cgroups": hostile }));
    for odd in 0..3 {
        let dir = cells.join(dead_name());
        fs::create_dir(&dir).unwrap();
        match odd {
            0 => nix::unistd::mkfifo(&dir.join("cell.json"), nix::sys::stat::Mode::S_IRWXU).unwrap(),
            1 => symlink("/dev/zero", dir.join("cell.json")).unwrap(),
            _ => fs::create_dir(dir.join("cell.json")).unwrap(),
        }
    }
    if nix::unistd::geteuid().is_root() {
        let foreign = cells.join(dead_name());
        fs::create_dir(&foreign).unwrap();
        if place.who == Who::Root {
            chown(&foreign, Some(bystander), Some(bystander)).unwrap();
        }
    }
}

fn give_all(place: &Place, dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            give_all(place, &entry.path());
        }
        if !entry.path().is_symlink() {
            place.give(&entry.path());
        }
    }
}

#[test]
fn sweep_on_planted_state() {
    for who in Who::all() {
        let place = Place::new(who);
        place.sweep();
        let cells = place.path("state/cells");
        let precious = place.directory("precious");
        fs::write(precious.join("file"), "precious").unwrap();
        fs::set_permissions(precious.join("file"), PermissionsExt::from_mode(0o644)).unwrap();
        let uid = 41_500;
        // Its environment has every short name that is planted, and belongs to nobody's cell.
        let bystander = bystander(uid, "PATH a two\nlines *");
        plant(&place, &cells, &precious, uid);
        let dry = place.command("sweep").args(["--dry-run", "--json"]).output().unwrap();
        if who == Who::Plain {
            give_all(&place, &cells);
        }
        assert!(place.cells().len() > 110, "{dry:?}");
        let swept = place.sweep();
        assert!(swept["removed"].as_array().unwrap().len() > 110);
        place.assert_nothing_left(&[]);
        assert_eq!(fs::read_to_string(precious.join("file")).unwrap(), "precious");
        assert_eq!(fs::metadata(precious.join("file")).unwrap().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(&precious).unwrap().count(), 2);
        let ended = bystander.end();
        assert_eq!((ended.status.code(), ended.out.as_str()), (Some(0), "alive\n"));
    }
}

/// A dead run's UID that a live run has by now: the sweep of the one must not end the other.
#[test]
fn a_uid_that_has_a_new_owner() {
    if !need::as_root() {
        return;
    }
    let place = Place::new(Who::Root);
    let tiers = tiers(&place);
    let neighbour = Neighbour::new(&place, &tiers[1]);
    let cell = neighbour.cell(&place).unwrap();
    let uid = record(&place, &cell).unwrap()["uid"].as_u64().unwrap();
    plant_record(&place.path("state/cells").join(dead_name()), json!({ "uid": uid }));
    assert_eq!(place.sweep()["live"], 1);
    neighbour.assert_untouched(&place);
    place.assert_nothing_left(&[cell]);
}

/// A UID that owns what a dead run left is nobody else's, whichever state directory that lies in, and whoever sweeps.
#[test]
fn a_uid_that_owns_what_is_left() {
    if !need::as_root() {
        return;
    }
    let (place, other) = (Place::new(Who::Root), Place::new(Who::Root));
    let launched = &mut launch(&place, &tiers(&place)[0], "", &marker(), "sleep 999");
    hold_on(launched);
    let uid = record(&place, &place.cells()[0]).unwrap()["uid"].as_u64().unwrap();
    launched.kill();
    let range = format!("{uid}-{uid}");
    let mark = PathBuf::from(format!("/run/oubliette/uids/{uid}"));
    let freed = other.sweep()["freed-uids"].clone();
    assert!(!freed.as_array().unwrap().contains(&json!(uid)) && mark.exists(), "{freed}");
    let refused = other.run(&["--uid-range", &range], "true").output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(125), "{said}");
    let state = place.path("state");
    assert!(said.contains("0 by live cells, 1 by what dead ones left in ") && said.contains(state.to_str().unwrap()));
    // The place that has it wipes it first.
    let done = place.run(&["--uid-range", &range], "id -u").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&done.stdout), format!("{uid}\n"), "{done:?}");
    place.assert_nothing_left(&[]);
    assert!(!mark.exists());
}

/// What a sweep would have wiped is gone with its state directory, and the UIDs of that are free.
#[test]
fn a_uid_of_a_state_directory_that_is_gone() {
    if !need::as_root() {
        return;
    }
    let (place, other) = (Place::new(Who::Root), Place::new(Who::Root));
    let launched = &mut launch(&place, &tiers(&place)[0], "", &marker(), "sleep 999");
    hold_on(launched);
    let uid = record(&place, &place.cells()[0]).unwrap()["uid"].as_u64().unwrap();
    launched.kill();
    fs::rename(place.path("state"), place.path("elsewhere")).unwrap();
    let freed = other.sweep()["freed-uids"].clone();
    assert!(freed.as_array().unwrap().contains(&json!(uid)), "{freed}");
    let removed = std::process::Command::new("rm").arg("-rf").arg(place.path("elsewhere")).status().unwrap();
    assert!(removed.success());
}

/// The same with the UID that is bound to a user's workspace, which the user's next run has again.
#[test]
fn the_next_run_of_a_user_whose_last_run_was_killed() {
    for who in Who::all() {
        let place = Place::new(who);
        let policy = place.policy("pid = \"off\"");
        let policy = policy.to_str().unwrap();
        let dead = marker();
        let options = |mark: &str| {
            [
                "--setenv".to_owned(),
                format!("MARK={mark}"),
                "--workspace".into(),
                "user".into(),
                "--policy".into(),
                policy.into(),
            ]
        };
        let mut launcher = Started::new(&mut with(&place, &options(&dead), &format!("{HOLD_ON} sleep 999")));
        hold_on(&mut launcher);
        launcher.kill();
        let live = marker();
        let mut next =
            Started::new(&mut with(&place, &options(&live), "sleep 999 & echo ready; read line; kill -0 $! && exit 7"));
        next.line("ready");
        if who == Who::Root {
            assert_eq!(marked(&dead), [], "the next run began beside what the last one had left");
        }
        assert_eq!(place.sweep()["live"], 1);
        assert_eq!(marked(&dead), [], "{who:?}");
        assert_eq!(next.end().status.code(), Some(7), "{who:?}");
        place.assert_nothing_left(&[]);
    }
}

fn with(place: &Place, options: &[String], script: &str) -> Command {
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    place.run(&options, script)
}

/// What a dead run's launcher never told: a launcher that is stopped is alive, and its cell is nobody's to remove.
#[test]
fn a_stopped_launcher_is_alive() {
    for who in Who::all() {
        let place = Place::new(who);
        let tier = tiers(&place).remove(0);
        let marker = marker();
        let mut launcher = launch(&place, &tier, "running", &marker, "read line; exit 3");
        hold_on(&mut launcher);
        assert!(launcher.stopped());
        assert_eq!(place.sweep()["live"], 1);
        launcher.signal(Signal::SIGCONT);
        let ended = launcher.end();
        assert_eq!(ended.status.code(), Some(3), "{ended:?}");
        place.assert_nothing_left(&[]);
    }
}
