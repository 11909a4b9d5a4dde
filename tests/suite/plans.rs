//! The plan as a table: facts, levels and agents on one side, decisions on the other. Facts are made by hand, so every
//! kind of host is here; the last tests ask the real program on this one.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches};
use oubliette::cli::{Cli, RunArgs};
use oubliette::host::{Cgroups, Fact, Host, Kind, Lack, Maker, Programs, Shown};
use oubliette::job::Job;
use oubliette::layer::{Decision, Layer, Want};
use oubliette::mcp::Servers;
use oubliette::plan::{Plan, Planned, explain};
use oubliette::policy::Policy;
use oubliette::policy::agent::AgentSpec;
use oubliette::policy::files::{Found, Library};
use oubliette::program::Program;
use oubliette::request::{Config, Request};
use serde_json::Value;

use crate::launch::{Lab, Who, everybody};
use crate::need;

fn lacks<T>(what: &str) -> Fact<T> {
    Fact::Lacks(Lack::new(format!("no {what} here"), format!("get {what}")))
}

/// Root on a new kernel: everything is there.
fn full() -> Host {
    let program =
        Program { path: "/usr/bin/tool".into(), executed: vec!["/usr/bin/tool".into()], ..Program::default() };
    Host {
        uid: 0,
        gid: 0,
        capabilities: u64::MAX,
        namespaces: Fact::Has(Maker::Privilege),
        mounts: Fact::Has(()),
        proc: Fact::Has(()),
        uts: Fact::Has(()),
        net: Fact::Has(()),
        landlock: Fact::Has(7),
        seccomp: Fact::Has(()),
        uids: Fact::Has(()),
        uid_map: vec![(0, u32::MAX)],
        cgroup: Fact::Has(Cgroups::V2("/sys/fs/cgroup".into())),
        private_descriptors: true,
        files: vec![
            Shown { path: "/usr".into(), kind: Kind::Directory },
            Shown { path: "/bin".into(), kind: Kind::Link("usr/bin".into()) },
        ],
        masked: vec![("kcore".into(), Kind::File)],
        programs: Programs { agent: program, ..Programs::default() },
        servers: Vec::new(),
        extra: Vec::new(),
        agent_programs: Vec::new(),
        inherited: vec![("LANG".into(), "C.UTF-8".into())],
        shell: "/bin/sh".into(),
    }
}

fn plain() -> Host {
    Host {
        uid: 1000,
        gid: 1000,
        capabilities: 0,
        namespaces: Fact::Has(Maker::UserNamespace),
        uids: lacks("UID"),
        cgroup: lacks("cgroup"),
        ..full()
    }
}

/// Kinds of hosts by name.
fn hosts() -> Vec<(String, Host)> {
    let none = || lacks("namespace");
    let mut all = vec![
        ("root".to_owned(), full()),
        ("plain user".into(), plain()),
        ("plain user, no user namespaces".into(), Host { namespaces: none(), ..plain() }),
        ("container root".into(), Host { namespaces: none(), cgroup: lacks("cgroup"), ..full() }),
        (
            "container root, user namespaces".into(),
            Host { namespaces: Fact::Has(Maker::UserNamespace), cgroup: lacks("cgroup"), ..full() },
        ),
        ("container root of 65536 UIDs".into(), Host { uid_map: vec![(0, 65536)], namespaces: none(), ..full() }),
        ("container user".into(), Host { namespaces: none(), mounts: lacks("mount"), ..plain() }),
        ("masked /proc".into(), Host { proc: lacks("fresh /proc"), ..full() }),
        ("masked /proc, plain user".into(), Host { proc: lacks("fresh /proc"), ..plain() }),
        ("no Landlock".into(), Host { landlock: lacks("Landlock"), ..full() }),
        (
            "gVisor, root".into(),
            Host {
                mounts: lacks("mount"),
                landlock: lacks("Landlock"),
                cgroup: lacks("cgroup"),
                private_descriptors: false,
                ..full()
            },
        ),
        (
            "gVisor, plain user".into(),
            Host { mounts: lacks("mount"), landlock: lacks("Landlock"), private_descriptors: false, ..plain() },
        ),
        (
            "nothing".into(),
            Host { namespaces: none(), landlock: lacks("Landlock"), seccomp: lacks("seccomp"), ..plain() },
        ),
    ];
    all.extend((1..=7).map(|abi| (format!("Landlock ABI {abi}"), Host { landlock: Fact::Has(abi), ..plain() })));
    all
}

fn request(words: &[&str]) -> Request {
    let line = ["oubliette", "run"].iter().chain(words).chain(&["--", "/usr/bin/tool", "-x"]);
    let matches = Cli::command().try_get_matches_from(line).unwrap();
    let sub = matches.subcommand().unwrap().1;
    Request::new(RunArgs::from_arg_matches(sub).unwrap(), sub, Config::default()).unwrap()
}

fn level(name: &str) -> Found<Policy> {
    Library::new(None).level(name).unwrap()
}

fn agent(name: &str) -> Found<AgentSpec> {
    Library::new(None).agent(name).unwrap()
}

fn planned(request: &Request, policy: &Policy, agent: &AgentSpec, host: &Host) -> Vec<Planned> {
    match Plan::new(request, policy, agent, host) {
        Ok(plan) => plan.layers,
        Err(refusal) => refusal.layers,
    }
}

fn letter(decision: &Decision) -> char {
    match decision {
        Decision::Enforce { .. } => 'E',
        Decision::Degrade { .. } => 'd',
        Decision::Refuse { .. } => 'R',
        Decision::Off { .. } => '.',
    }
}

/// Compares with a file beside this one; `OUBLIETTE_BLESS=1` writes it.
fn golden(name: &str, text: &str) {
    let path = need::root().join("tests/suite/golden").join(name);
    if std::env::var_os("OUBLIETTE_BLESS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let known = fs::read_to_string(&path).unwrap_or_default();
    let first = text.lines().zip(known.lines()).find(|(new, old)| new != old);
    assert!(text == known, "{name} has changed, first in {first:?}; OUBLIETTE_BLESS=1 writes it anew");
}

#[test]
fn decisions_of_every_host_level_agent_and_network() {
    let names: Vec<&str> = Layer::ALL.iter().map(|layer| layer.name()).collect();
    let mut text = format!("E enforce, d degrade, R refuse, . off: {}\n", names.join(" "));
    for (name, host) in hosts() {
        let _ = writeln!(text, "\n{name}");
        for (level_name, agent_name, network) in ["paranoid", "balanced", "developer"]
            .iter()
            .flat_map(|l| ["none", "claude"].map(|a| (l, a)))
            .flat_map(|(l, a)| ["host", "none"].map(|n| (*l, a, n)))
        {
            let request = request(&["--network", network]);
            let layers = planned(&request, &level(level_name).value, &agent(agent_name).value, &host);
            let letters: String = layers.iter().map(|planned| letter(&planned.decision)).collect();
            let _ = writeln!(text, "  {letters}  {level_name} {agent_name} network {network}");
        }
    }
    golden("decisions.txt", &text);
}

#[test]
fn explanations() {
    for (file, host, level_name, agent_name, words) in [
        ("explain-root.txt", full(), "paranoid", "claude", &[][..]),
        ("explain-plain.txt", plain(), "balanced", "none", &["--network", "none"]),
        ("explain-gvisor.txt", hosts().swap_remove(10).1, "developer", "claude", &["--user", "a\u{301}@b"]),
        (
            "explain-nothing.txt",
            hosts().swap_remove(12).1,
            "balanced",
            "none",
            &["--network", "none", "--setenv", "A=secret"],
        ),
    ] {
        let (request, level, agent) = (request(words), level(level_name), agent(agent_name));
        let plan = Plan::new(&request, &level.value, &agent.value, &host).unwrap();
        let job = Job { request, level, agent, servers: Servers::default(), host };
        let text = explain::text(&job, &plan);
        assert!(!text.contains("secret"), "{text}");
        golden(file, &text);
    }
}

/// Every combination of facts.
fn combinations() -> Vec<Host> {
    let yes = |bit: usize, what: &str| if bit == 1 { Fact::Has(()) } else { lacks(what) };
    let mut all = Vec::new();
    for bits in 0..256_usize {
        let bit = |n: usize| bits >> n & 1;
        for maker in [None, Some(Maker::UserNamespace), Some(Maker::Privilege)] {
            for abi in [0, 1, 4, 6, 7] {
                all.push(Host {
                    namespaces: maker.map_or_else(|| lacks("namespace"), Fact::Has),
                    mounts: yes(bit(0), "mount"),
                    proc: yes(bit(1), "proc"),
                    uts: yes(bit(2), "uts"),
                    net: yes(bit(3), "net"),
                    landlock: if abi == 0 { lacks("Landlock") } else { Fact::Has(abi) },
                    seccomp: yes(bit(4), "seccomp"),
                    uids: yes(bit(5), "uids"),
                    cgroup: if bit(6) == 1 { full().cgroup } else { lacks("cgroup") },
                    private_descriptors: bit(7) == 1,
                    ..full()
                });
            }
        }
    }
    all
}

/// Whether a host has what a layer cannot do without.
fn offers(layer: Layer, host: &Host) -> bool {
    let abi = host.landlock.get().copied().unwrap_or(0);
    let namespaces = host.namespaces.get().is_ok();
    match layer {
        Layer::Pid | Layer::Root => namespaces && host.mounts.get().is_ok() && host.proc.get().is_ok(),
        Layer::Ipc => namespaces,
        Layer::Uts => namespaces && host.uts.get().is_ok(),
        Layer::Net => namespaces && host.net.get().is_ok(),
        Layer::Uid => host.uids.get().is_ok(),
        Layer::LandlockFs => abi >= 1,
        Layer::LandlockNet => abi >= 4,
        Layer::LandlockScope => abi >= 6,
        Layer::Seccomp => host.seccomp.get().is_ok(),
        Layer::Cgroup => host.cgroup.get().is_ok(),
        Layer::Settings | Layer::Capabilities | Layer::NoNewPrivs | Layer::Limits => true,
    }
}

fn enforced(layers: &[Planned]) -> Vec<Layer> {
    layers.iter().filter(|planned| planned.decision.enforced()).map(|planned| planned.layer).collect()
}

#[test]
fn a_plan_holds_nothing_that_the_host_lacks() {
    let claude = agent("claude").value;
    for level_name in ["paranoid", "balanced", "developer"] {
        let policy = level(level_name).value;
        for network in ["host", "none"] {
            let request = request(&["--network", network]);
            for host in combinations() {
                let plan = Plan::new(&request, &policy, &claude, &host).expect("shipped levels prefer");
                let on = enforced(&plan.layers);
                assert!(on.iter().all(|layer| offers(*layer, &host)), "{on:?} on {host:?}");
                let user = host.namespaces.get() == Ok(&Maker::UserNamespace);
                assert!(
                    !(user && plan.namespaces.user && on.contains(&Layer::Uid)),
                    "one UID in a user namespace: {host:?}"
                );
                for denied in &plan.classes {
                    assert_eq!(
                        denied.settings,
                        claude.maps(denied.class)
                            && !(denied.class.name() == "shared-tmp" && on.contains(&Layer::Root))
                    );
                    let by = denied.kernel.map(|text| text.split(':').next().unwrap());
                    let holds = match by {
                        None => true,
                        Some("landlock") => on.contains(&Layer::LandlockFs),
                        Some("net") => network == "none" && (on.contains(&Layer::Net) || on.contains(&Layer::Seccomp)),
                        Some(name) => on.contains(&name.parse().unwrap()),
                    };
                    assert!(holds, "{denied:?} with {on:?}");
                    let across_uids = denied.class.name() == "foreign-proc" && by == Some("uid");
                    assert!(!across_uids || host.private_descriptors, "gVisor shows environ across UIDs: {denied:?}");
                }
            }
        }
    }
}

/// The same host with one more fact.
fn better(host: &Host) -> Vec<Host> {
    let mut all = vec![
        Host { mounts: Fact::Has(()), ..host.clone() },
        Host { proc: Fact::Has(()), ..host.clone() },
        Host { uts: Fact::Has(()), ..host.clone() },
        Host { net: Fact::Has(()), ..host.clone() },
        Host { seccomp: Fact::Has(()), ..host.clone() },
        Host { uids: Fact::Has(()), ..host.clone() },
        Host { cgroup: full().cgroup, ..host.clone() },
        Host { landlock: Fact::Has(7), ..host.clone() },
        Host { namespaces: Fact::Has(Maker::Privilege), ..host.clone() },
    ];
    if host.namespaces.get().is_err() {
        all.push(Host { namespaces: Fact::Has(Maker::UserNamespace), ..host.clone() });
    }
    all
}

#[test]
fn more_facts_never_protect_less() {
    let (policy, none) = (level("balanced").value, agent("none").value);
    for network in ["host", "none"] {
        let request = request(&["--network", network]);
        for host in combinations() {
            let before = enforced(&planned(&request, &policy, &none, &host));
            for more in better(&host) {
                let after = enforced(&planned(&request, &policy, &none, &more));
                let lost = before.iter().filter(|layer| !after.contains(layer));
                let unexplained: Vec<_> = lost
                    .filter(|layer| match layer {
                        // A user namespace has one UID: a private root in it is worth more than a second UID ...
                        Layer::Uid => !after.contains(&Layer::Root),
                        // ... and a UID more than namespaces without a private root.
                        Layer::Ipc | Layer::Uts | Layer::Net => {
                            !(after.contains(&Layer::Uid) && !after.contains(&Layer::Root))
                        }
                        // There is nothing to connect to.
                        Layer::LandlockNet => !after.contains(&Layer::Net),
                        _ => true,
                    })
                    .collect();
                assert!(unexplained.is_empty(), "{unexplained:?} of {before:?} lost: {host:?} to {more:?}");
            }
        }
    }
}

#[test]
fn required_refuses_where_preferred_degrades_and_off_is_off() {
    let (policy, none) = (level("balanced").value, agent("none").value);
    let usual = request(&[]);
    for host in combinations().into_iter().step_by(7) {
        let preferred = planned(&usual, &policy, &none, &host);
        for (index, layer) in Layer::ALL.into_iter().enumerate() {
            let by_flag = planned(&request(&["--require", layer.name()]), &policy, &none, &host);
            let mut insisting = policy.clone();
            insisting.layers.insert(layer, Want::Required);
            let by_policy = planned(&usual, &insisting, &none, &host);
            let letters = [&preferred, &by_flag, &by_policy].map(|layers| letter(&layers[index].decision));
            let sound = matches!(letters, ['E', 'E', 'E'] | ['d', 'R', 'R'] | ['.', 'R', '.']);
            assert!(sound, "{layer}: {letters:?} on {host:?}");
            let mut without = policy.clone();
            without.layers.insert(layer, Want::Off);
            let off = planned(&usual, &without, &none, &host);
            assert_eq!(letter(&off[index].decision), '.', "{layer} on {host:?}");
            let forced = planned(&request(&["--require", "all"]), &without, &none, &host);
            assert_eq!(letter(&forced[index].decision), '.', "{layer} is off with --require all, too");
        }
    }
}

/// Layers of `explain --json` and of the report of a run with the same words.
fn both(lab: &Lab, who: Who, through: &str, words: &[&str]) -> (Value, Value) {
    let line = |first: &[&str]| {
        first.iter().chain(words).chain(&["--", "/usr/bin/true"]).map(|word| (*word).to_owned()).collect::<Vec<_>>()
    };
    let explained = lab.launch(who, line(&["explain", "--json"])).through(through).run();
    let ran = lab.launch(who, line(&["run", "-q", "--report-fd", "3"])).through(through).setup("exec 3>&1").run();
    assert_eq!((explained.code(), ran.code()), (0, 0), "{explained:?} {ran:?}");
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    (json(&explained.stdout)["plan"].clone(), json(&ran.stdout))
}

/// No namespace can be made: the sysctl is set in a user namespace of its own, and the right to do without is given up.
const NO_NAMESPACES: &str = "unshare --user --map-root-user --mount sh -c 'echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all \"$@\"' sh";

#[test]
fn a_run_and_its_explanation_agree() {
    let lab = Lab::new();
    let mut cases: Vec<(Who, &str)> = everybody().into_iter().map(|who| (who, "")).collect();
    if need::as_root() {
        cases.push((Who::Root, NO_NAMESPACES));
    }
    for (who, through) in cases {
        for words in
            [&["--level", "paranoid"][..], &["--level", "balanced"], &["--level", "developer"], &["--network", "none"]]
        {
            let (plan, report) = both(&lab, who, through, words);
            assert!(plan["layers"].as_array().is_some_and(|layers| layers.len() == Layer::ALL.len()));
            assert_eq!(plan["layers"], report["layers"], "{who:?} {through} {words:?}");
            assert_eq!(plan["classes"], report["classes"], "{who:?} {through} {words:?}");
            if !through.is_empty() {
                assert_eq!(plan["layers"][0]["decision"], "degrade", "{plan}");
            }
        }
    }
}

#[test]
fn doctor_says_0_1_or_2() {
    if !need::as_root() {
        return;
    }
    let lab = Lab::new();
    let own: PathBuf = lab.directory("own", 0o755);
    lab.file(
        "own/strict.toml",
        include_str!("../../policies/balanced.toml").to_owned() + "\n[layers]\nuid = \"required\"\n",
        0o644,
    );
    std::os::unix::fs::chown(own.join("strict.toml"), Some(0), Some(0)).unwrap();
    let doctor = |who, through: &str| lab.launch(who, ["doctor"]).through(through).run();
    let plain = doctor(Who::Plain, "");
    assert!(plain.code() == 1 && plain.stdout.contains("uid             degrade"), "{plain:?}");
    let missing = doctor(Who::Root, NO_NAMESPACES);
    assert!(missing.code() == 1 && missing.stdout.contains("pid             degrade"), "{missing:?}");
    let root = doctor(Who::Root, "");
    assert_eq!(root.code(), i32::from(root.stdout.contains("degrade")), "{root:?}");
    let strict = lab.launch(Who::Plain, ["doctor"]).env("OUBLIETTE_POLICY_DIR", &own).run();
    assert!(strict.code() == 2 && strict.stdout.contains("refuse"), "{strict:?}");
    assert_eq!(lab.left(), Vec::<String>::new());
}
