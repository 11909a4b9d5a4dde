//! `doctor --attack`: the plan's promise about every attack, held against the matrix of tiers and against the kernel.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use oubliette::attack::{ATTACKS, Damage, Verdict};
use oubliette::doctor::attack::{Encounter, Siege};
use oubliette::doctor::expect::{Around, Expected, Scene};
use oubliette::doctor::judge::{Told, judge};
use oubliette::doctor::{Diagnosis, LevelReport};
use serde_json::Value;

use crate::need;
use crate::plans::{hosts, plain, plan};
use crate::stage::{Done, Running, Stage, Who, output, wait_for};
use crate::two_users::{MATRIX, Net, Tier, offers};

/// `doctor --attack` to its end, with nothing left of its cells.
fn doctor(stage: &Stage, who: Who, words: &[&str]) -> Done {
    let mut command = stage.command(who, &[]);
    command.args(["doctor", "--attack", "--state-dir"]).arg(stage.state(who)).args(words);
    let done = output(&mut command);
    assert_eq!(stage.cells(who), Vec::<std::path::PathBuf>::new(), "{done:?}");
    done
}

fn siege(stage: &Stage, who: Who, words: &[&str]) -> (Done, Value) {
    let done = doctor(stage, who, &[words, &["--json"]].concat());
    let said = serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    (done, said)
}

/// Where the promise is not that of the matrix.
fn differences(encounter: &Value, tier: Tier, net: Net) -> Vec<String> {
    let rows = encounter["attacks"].as_array().unwrap();
    assert_eq!(rows.len(), MATRIX.len());
    let differs = |row: &&(&str, &str, &str)| {
        let said = rows.iter().find(|said| said["attack"] == row.0).unwrap();
        let open = said["expected"] == "open";
        open != ['X', '?'].contains(&tier.expected(net, row))
    };
    MATRIX.iter().filter(differs).map(|row| format!("{} in {tier:?} {net:?}", row.0)).collect()
}

fn meet(who: Who, tier: Tier, net: Net) {
    if !offers(who, tier) {
        return;
    }
    let stage = Stage::new();
    let no_port = "[network]\nconnect = []\nbind = []\nudp = false";
    let policy = stage.policy(&tier.off(), (net == Net::Ports).then_some(no_port)).display().to_string();
    let network = if net == Net::None { "none" } else { "host" };
    let (done, said) = siege(&stage, who, &["--policy", &policy, "--network", network]);
    let encounter = &said["encounters"][0];
    assert_eq!(differences(encounter, tier, net), Vec::<String>::new());
    let rows = encounter["attacks"].as_array().unwrap();
    let broken: Vec<&Value> = rows.iter().filter(|row| row["broken"] != false).collect();
    assert!(broken.is_empty() && encounter["kept"] == true, "{who:?} {tier:?} {net:?}: {broken:?} {encounter}");
    assert!(matches!(done.status.code(), Some(0 | 1)) && done.err.is_empty(), "{done:?}");
    // What shows that the attacks do attack: without layers they get through, and the victim lives to tell.
    let open = rows.iter().filter(|row| row["verdict"] == "open").count();
    assert!(tier != Tier::Permissions || open > 60, "{open} open");
    assert!(encounter["damage"].is_array(), "{encounter}");
}

#[test]
fn root_finds_what_the_plan_says_in_each_tier() {
    for tier in [Tier::Full, Tier::Uid] {
        for net in [Net::Host, Net::Ports, Net::None] {
            meet(Who::Root, tier, net);
        }
    }
}

#[test]
fn a_plain_user_finds_what_the_plan_says_in_each_tier() {
    for tier in [Tier::Full, Tier::Landlock] {
        for net in [Net::Host, Net::Ports, Net::None] {
            meet(Who::User, tier, net);
        }
    }
    meet(Who::User, Tier::Permissions, Net::Host);
}

/// Layers that the tiers only have together, each missing by itself.
#[test]
fn the_plan_is_right_about_each_missing_layer() {
    const OFF: [&[&str]; 10] = [
        &["seccomp"],
        &["landlock-fs", "landlock-net", "landlock-scope"],
        &["landlock-scope"],
        &["root", "landlock-fs", "landlock-net", "landlock-scope"],
        &["pid"],
        &["root", "landlock-fs", "seccomp", "uid"],
        &["ipc", "uts"],
        &["uid"],
        &["pid", "root", "ipc", "uts", "net", "landlock-fs", "landlock-net", "landlock-scope"],
        &["pid", "root", "ipc", "uts", "net", "uid", "landlock-fs", "landlock-net", "landlock-scope"],
    ];
    let stage = Stage::new();
    for who in [Who::Root, Who::User] {
        if who == Who::Root && !need::as_root() {
            continue;
        }
        for off in OFF {
            let policy = stage.policy(off, None).display().to_string();
            let (done, said) = siege(&stage, who, &["--policy", &policy]);
            let encounter = &said["encounters"][0];
            let rows = encounter["attacks"].as_array().unwrap();
            let broken: Vec<&Value> = rows.iter().filter(|row| row["broken"] != false).collect();
            assert!(broken.is_empty(), "{who:?} without {off:?}: {broken:#?}");
            assert!(encounter["kept"] == true, "{who:?} without {off:?}: {}", encounter["damage"]);
            assert!(done.err.is_empty(), "{done:?}");
        }
    }
}

#[test]
fn every_level_is_attacked_and_told_to_people_and_machines() {
    for who in [Who::Root, Who::User] {
        if who == Who::Root && !need::as_root() {
            continue;
        }
        let stage = Stage::new();
        let plain = output(stage.command(who, &[]).args(["doctor", "--state-dir"]).arg(stage.state(who)));
        let (done, said) = siege(&stage, who, &[]);
        assert_eq!((done.status.code(), done.err.as_str()), (plain.status.code(), ""), "{said}");
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&said), ["host", "levels", "encounters"]);
        let levels: Vec<&str> =
            said["encounters"].as_array().unwrap().iter().map(|one| one["level"].as_str().unwrap()).collect();
        assert_eq!(levels, ["paranoid", "balanced", "developer"]);
        for encounter in said["encounters"].as_array().unwrap() {
            assert_eq!(keys(encounter), ["level", "network", "in-time", "attacks", "damage", "kept"]);
            assert_eq!(encounter["attacks"].as_array().unwrap().len(), ATTACKS.len());
        }
        let told = doctor(&stage, who, &["--level", "developer", "--network", "none"]);
        assert!(told.out.contains("level developer, network none\n"), "{told:?}");
        assert!(told.out.ends_with("Every attack came to what the plan says.\n"), "{told:?}");
        assert_eq!(told.out.lines().filter(|line| line.starts_with("ptrace-seize ")).count(), 1);
    }
}

#[test]
fn options_of_the_attack_need_the_attack() {
    let stage = Stage::new();
    for words in [["--level", "balanced"], ["--network", "none"], ["--policy", "file"]] {
        let done = output(stage.command(Who::User, &[]).arg("doctor").args(words));
        assert!(done.status.code() == Some(125) && done.err.contains("--attack"), "{done:?}");
    }
    let done = doctor(&stage, Who::User, &["--level", "nobody"]);
    assert!(done.status.code() == Some(125) && done.err.contains("nobody"), "{done:?}");
}

/// Every attack blocked, as an attacker reports it.
fn all_blocked() -> Vec<Told> {
    let told = |name: &str| Told { attack: name.into(), verdict: Verdict::Blocked, detail: "EPERM".into() };
    ATTACKS.iter().map(|attack| told(attack.name)).collect()
}

const AROUND: Around = Around { uid: 1000, lenient: false, init_is_ours: false, program_is_ours: false };

#[test]
fn what_contradicts_the_plan_is_a_failure() {
    let plan = plan(&plain(), "none", "balanced");
    let scene = Scene { victim: &plan, attacker: &plan, around: AROUND };
    assert!(matches!(scene.expect("read-file"), Expected::Blocked { .. }));
    assert!(matches!(scene.expect("udp-send"), Expected::Open { .. }));
    let hurt = |object: &str| vec![Damage { object: object.into(), what: "changed".into() }];
    let verdict = |name: &str, verdict| {
        let mut told = all_blocked();
        told.iter_mut().find(|told| told.attack == name).unwrap().verdict = verdict;
        told
    };
    let kept = |told: &[Told], damage| judge(&scene, told, damage).kept;

    assert!(kept(&all_blocked(), Some(Vec::new())), "less open than promised is fine");
    assert!(kept(&verdict("udp-send", Verdict::Open), Some(hurt("udp"))), "open as promised, and what it explains");
    assert!(kept(&verdict("kill-all", Verdict::NotTried), Some(Vec::new())));
    assert!(!kept(&verdict("read-file", Verdict::Open), Some(Vec::new())), "open against the plan");
    assert!(!kept(&verdict("stop-init", Verdict::Open), Some(Vec::new())), "open where it cannot be");
    assert!(!kept(&all_blocked(), Some(hurt("udp"))), "damage by attacks that say they were blocked");
    assert!(!kept(&verdict("udp-send", Verdict::Open), Some(hurt("home victim.txt"))), "damage by another way");
    assert!(!kept(&all_blocked(), Some(hurt("something new"))), "damage by no known way");
    assert!(!kept(&all_blocked(), None), "a victim that nobody says to have killed");
    assert!(!kept(&all_blocked()[1..], Some(Vec::new())), "an attack without a report");
    assert!(!kept(&[], Some(Vec::new())), "an attacker that says nothing");

    let siege = |told: &[Told]| {
        let judged = judge(&scene, told, Some(Vec::new()));
        let levels = vec![LevelReport { level: "balanced".into(), layers: Vec::new() }];
        let diagnosis = Diagnosis { host: plain(), levels };
        Siege {
            diagnosis,
            encounters: vec![Encounter { level: "balanced".into(), network: plan.network, in_time: false, judged }],
        }
    };
    assert_eq!(siege(&all_blocked()).status(), 0);
    let broken = siege(&verdict("read-file", Verdict::Open));
    assert_eq!(broken.status(), 2);
    let text = broken.text();
    assert!(text.contains("OPEN            though the plan names") && text.contains("NOT AS THE PLAN SAYS: balanced"));
}

#[test]
fn every_attack_has_a_rule() {
    let plan = plan(&plain(), "none", "balanced");
    let scene = Scene { victim: &plan, attacker: &plan, around: AROUND };
    for attack in ATTACKS {
        let said = scene.expect(attack.name);
        assert!(!matches!(&said, Expected::Open { why } if why.contains("no layer")), "{}", attack.name);
    }
}

/// The matrix row by row, also those about settings, for hosts made by hand.
#[test]
fn the_promise_is_the_matrix() {
    let tiers = [
        ("root", Tier::Full),
        ("plain user", Tier::Full),
        ("container root", Tier::Uid),
        ("plain user, no user namespaces", Tier::Landlock),
        ("nothing", Tier::Permissions),
    ];
    for (name, tier) in tiers {
        let (_, host) = hosts().into_iter().find(|(known, _)| known == name).unwrap();
        let plan = plan(&host, "claude", "developer");
        let scene = Scene { victim: &plan, attacker: &plan, around: Around { uid: host.uid, ..AROUND } };
        for row in MATRIX {
            let expected = scene.expect(row.0);
            let open = matches!(expected, Expected::Open { .. });
            let wanted = tier.expected(Net::Host, row);
            assert_eq!(open, wanted != '.', "{} is {wanted} in {tier:?} ({name}), and not {expected:?}", row.0);
        }
    }
}

/// Measured under gVisor, whose kernel does not guard /proc by UID.
#[test]
fn what_is_open_under_gvisor_is_said_beforehand() {
    let (_, host) = hosts().into_iter().find(|(name, _)| name == "gVisor, root").unwrap();
    let plan = plan(&host, "none", "balanced");
    let around = Around { uid: 0, lenient: true, ..AROUND };
    let scene = Scene { victim: &plan, attacker: &plan, around };
    let open = |name: &str| matches!(scene.expect(name), Expected::Open { .. });
    let named = ["proc-environ", "proc-fd-open", "proc-cmdline", "inotify-dir", "see-pid", "lock-shared", "list-shm"];
    assert!(named.iter().all(|name| open(name)), "{named:?}");
    let closed = [
        "abstract-socket",
        "host-socket",
        "read-file",
        "read-tmp-file",
        "kill-usr1",
        "prlimit",
        "setpriority",
        "sysv-shm",
        "proc-mem",
        "kill-all",
    ];
    assert!(!closed.iter().any(|name| open(name)), "{closed:?}");
}

/// A siege that is stopped as soon as its victim lives.
fn stopped(stage: &Stage, who: Who) -> Running {
    let mut command = stage.command(who, &[]);
    command.args(["doctor", "--attack", "--state-dir"]).arg(stage.state(who)).stdin(Stdio::null());
    let running = Running::start(&mut command);
    wait_for("the victim's cell", || {
        let mut records =
            stage.cells(who).into_iter().filter_map(|cell| fs::read_to_string(cell.join("cell.json")).ok());
        records.find(|record| record.contains("doctor-victim"))
    });
    kill(Pid::from_raw(running.pid()), Signal::SIGSTOP).unwrap();
    running
}

/// Processes that were started with the state directory of this stage.
fn processes(stage: &Stage, who: Who) -> Vec<String> {
    let state = stage.state(who).display().to_string();
    let lines = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let bytes = fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
    });
    lines.filter(|line| line.contains(&state)).collect()
}

#[test]
fn nothing_is_left_of_an_interrupted_siege() {
    for who in [Who::Root, Who::User] {
        if who == Who::Root && !need::as_root() {
            continue;
        }
        let stage = Stage::new();
        let asked = stopped(&stage, who);
        let pid = Pid::from_raw(asked.pid());
        kill(pid, Signal::SIGTERM).unwrap();
        kill(pid, Signal::SIGCONT).unwrap();
        let done = asked.end();
        assert_eq!(done.status.code(), Some(128 + Signal::SIGTERM as i32), "{done:?}");
        assert_eq!((stage.cells(who).len(), processes(&stage, who)), (0, Vec::new()), "{who:?}");

        let killed = stopped(&stage, who);
        kill(Pid::from_raw(killed.pid()), Signal::SIGKILL).unwrap();
        killed.end();
        // Its launchers see their end and wipe; what they have not finished by then is sweep's.
        wait_for("the end of every process", || processes(&stage, who).is_empty().then_some(()));
        let swept = output(stage.command(who, &[]).args(["sweep", "--state-dir"]).arg(stage.state(who)));
        assert!(swept.status.success(), "{swept:?}");
        assert_eq!(stage.cells(who).len(), 0, "{who:?}");
    }
}
