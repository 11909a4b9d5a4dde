//! The plan as a table: facts, levels and agents on one side, decisions on the other. Facts are made by hand, so every
//! kind of host is here; the last tests ask the real program on this one.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches};
use oubliette::commands::explain;
use oubliette::fs::trusted::Found;
use oubliette::host::facts::{Cgroups, Fact, Kind, Lack, Maker, Shown};
use oubliette::host::image::Image;
use oubliette::host::program::Program;
use oubliette::host::ranges::Ranges;
use oubliette::host::{Counts, Host, Programs};
use oubliette::plan::Plan;
use oubliette::policy::Policy;
use oubliette::policy::agents::mcp::Servers;
use oubliette::policy::agents::rendered::FilePlace;
use oubliette::policy::agents::spec::AgentSpec;
use oubliette::policy::library::Library;
use oubliette::request::args::{Cli, RunArgs};
use oubliette::request::{Config, Request};
use oubliette::run::job::Job;
use oubliette::types::class::Class;
use oubliette::types::layer::Planned;
use oubliette::types::layer::{Decision, Layer};
use serde_json::Value;

use crate::launch::{Lab, Who, everybody};
use crate::need;

pub fn lacks<T>(what: &str) -> Fact<T> {
    Fact::Lacks(Lack::new(format!("no {what} here"), format!("get {what}")))
}

/// Root on a new kernel: everything is there.
pub fn full() -> Host {
    let program =
        Program { path: "/usr/bin/tool".into(), executed: vec!["/usr/bin/tool".into()], ..Program::default() };
    Host {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        capabilities: u64::MAX,
        namespaces: Fact::Has(Maker::Privilege),
        mounts: Fact::Has(()),
        proc: Fact::Has(()),
        uts: Fact::Has(()),
        net: Fact::Has(()),
        landlock: Fact::Has(7),
        seccomp: Fact::Has(()),
        modes: Fact::Has(()),
        authorities: Fact::Has("/etc/ssl/cert.pem".into()),
        broker: Fact::Has(Image::of("/usr/bin/oubliette-broker".into(), fs::File::open("/dev/null").unwrap())),
        uids: Fact::Has(()),
        uid_map: vec![(0, u32::MAX)],
        ranges: Fact::Has(Ranges::default()),
        cgroup: Fact::Has(Cgroups::V2("/sys/fs/cgroup".into())),
        counts: Counts { swap: true, file_max: u64::MAX, ..Counts::default() },
        private_descriptors: true,
        oom_order: Fact::Has(()),
        orphans: true,
        files: vec![
            Shown { path: "/usr".into(), kind: Kind::Directory },
            Shown { path: "/bin".into(), kind: Kind::Link("usr/bin".into()) },
        ],
        masked: vec![("kcore".into(), Kind::File)],
        programs: Programs { agent: program, ..Programs::default() },
        servers: Vec::new(),
        extra: Vec::new(),
        agent_programs: Vec::new(),
        around: Vec::new(),
        inherited: vec![("LANG".into(), "C.UTF-8".into())],
        shell: "/bin/sh".into(),
    }
}

/// A plain user who may make user namespaces.
pub fn plain() -> Host {
    Host {
        uid: 1000,
        gid: 1000,
        groups: Vec::new(),
        capabilities: 0,
        namespaces: Fact::Has(Maker::UserNamespace),
        uids: lacks("UID"),
        cgroup: lacks("cgroup"),
        ..full()
    }
}

/// The plan of a run of this agent at this level, with the host's network.
pub fn plan(host: &Host, agent_name: &str, level_name: &str) -> Plan {
    Plan::new(&request(&["--network", "host"]), &level(level_name).value, &agent(agent_name).value, host).unwrap()
}

/// Kinds of hosts by name.
pub fn hosts() -> Vec<(String, Host)> {
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
                orphans: false,
                ..full()
            },
        ),
        (
            "gVisor, plain user".into(),
            Host {
                mounts: lacks("mount"),
                landlock: lacks("Landlock"),
                private_descriptors: false,
                orphans: false,
                ..plain()
            },
        ),
        (
            "nothing".into(),
            Host { namespaces: none(), landlock: lacks("Landlock"), seccomp: lacks("seccomp"), ..plain() },
        ),
    ];
    all.extend((1..=7).map(|abi| (format!("Landlock ABI {abi}"), Host { landlock: Fact::Has(abi), ..plain() })));
    all
}

pub fn request(words: &[&str]) -> Request {
    let line = ["oubliette", "run"].iter().chain(words).chain(&["--", "/usr/bin/tool", "-x"]);
    let matches = Cli::command().try_get_matches_from(line).unwrap();
    let sub = matches.subcommand().unwrap().1;
    Request::new(RunArgs::from_arg_matches(sub).unwrap(), sub, Config::default()).unwrap()
}

pub fn level(name: &str) -> Found<Policy> {
    Library::new(None).level(name).unwrap()
}

pub fn agent(name: &str) -> Found<AgentSpec> {
    Library::new(None).agent(name).unwrap()
}

pub fn planned(request: &Request, policy: &Policy, agent: &AgentSpec, host: &Host) -> Vec<Planned> {
    match Plan::new(request, policy, agent, host) {
        Ok(plan) => plan.layers,
        Err(refusal) => refusal.layers,
    }
}

pub fn letter(decision: &Decision) -> char {
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
            .flat_map(|l| ["none", "claude", "codex"].map(|a| (l, a)))
            .flat_map(|(l, a)| ["broker", "host", "none"].map(|n| (*l, a, n)))
        {
            let credential = ["--credential-file", "/nowhere"];
            let words = [&["--network", network][..], if agent_name == "none" { &[] } else { &credential }].concat();
            let request = request(&words);
            let layers = planned(&request, &level(level_name).value, &agent(agent_name).value, &host);
            let letters: String = layers.iter().map(|planned| letter(&planned.decision)).collect();
            let _ = writeln!(text, "  {letters}  {level_name} {agent_name} network {network}");
        }
    }
    golden("decisions.txt", &text);
}

#[test]
fn a_cell_inside_tmp_is_not_denied_its_own_files() {
    let inside = Class::around(&["/tmp/oubliette-1".as_ref(), "/root/work".as_ref()]);
    assert_eq!(inside, [Class::OtherHomes, Class::SharedTmp]);
    assert_eq!(Class::around(&["/tmpfs/x".as_ref(), "/var/tmp/oubliette-1".as_ref()]), []);
    let shut = Host { namespaces: lacks("namespace"), ..full() };
    for (host, root) in [(shut, false), (full(), true)] {
        for level in ["paranoid", "balanced", "developer"] {
            let settings = |host: &Host| plan(host, "claude", level).settings.unwrap();
            let [plain, within] = [&host, &Host { around: inside.clone(), ..host.clone() }].map(settings);
            let plain = plain.text(&FilePlace::Settings("settings.json")).unwrap();
            assert!(plain.contains("Read(//root/**)") && plain.contains("Read(//tmp/**)") != root);
            assert_eq!(within.files.len(), 2, "the agent's own and the managed ones");
            for text in within.files.iter().map(|file| &file.text) {
                assert!(!text.contains("(//tmp/") && text.contains("Read(//root/**)") == root, "{text}");
                assert!(text.contains("sudo"), "{text}");
            }
            let plan = plan(&Host { around: inside.clone(), ..host.clone() }, "claude", level);
            let row = |class| plan.classes.iter().find(|denied| denied.class == class).unwrap();
            assert_eq!([row(Class::SharedTmp).inside, row(Class::OtherHomes).inside], [!root; 2]);
            assert_eq!([row(Class::SharedTmp).settings, row(Class::OtherHomes).settings], [false, root]);
        }
    }
}

const CODEX: &[&str] = &["--network", "broker", "--credential-fd", "5", "--upstream", "http://127.0.0.1:9/v1"];
const BROKERED: &[&str] = &["--network", "broker", "--credential-fd", "5", "--upstream", "http://127.0.0.1:9"];

#[test]
fn explanations() {
    for (file, host, level_name, agent_name, words) in [
        ("explain-root.txt", full(), "paranoid", "claude", &["--credential-file", "/nowhere"][..]),
        ("explain-container.txt", hosts().swap_remove(3).1, "balanced", "claude", &["--credential-file", "/nowhere"]),
        ("explain-codex.txt", full(), "paranoid", "codex", CODEX),
        ("explain-gemini.txt", full(), "balanced", "gemini", BROKERED),
        ("explain-opencode.txt", full(), "paranoid", "opencode", CODEX),
        ("explain-qwen.txt", full(), "balanced", "qwen", CODEX),
        ("explain-plain.txt", plain(), "balanced", "none", &["--network", "none"]),
        (
            "explain-gvisor.txt",
            hosts().swap_remove(10).1,
            "developer",
            "claude",
            &["--user", "a\u{301}@b", "--network", "host"],
        ),
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
        let job = Job { request, level, agent, servers: Servers::default(), host, probed: Duration::ZERO };
        let text = explain::text(&job, &plan);
        assert!(!text.contains("secret"), "{text}");
        golden(file, &text);
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

/// Root without CAP_SYS_ADMIN, as in a container that lets user namespaces be made: the cell has both, namespaces and a
/// UID of its own, since whoever may change UIDs outside maps the run's into it.
#[test]
fn a_user_namespace_does_not_cost_the_uid() {
    if !need::as_root() {
        return;
    }
    let lab = Lab::new();
    let through = "setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin";
    let (plan, report) = both(&lab, Who::Root, through, &["--network", "none"]);
    assert_eq!(plan["layers"], report["layers"]);
    assert_eq!((&plan["namespaces"]["user"], &plan["namespaces"]["net"]), (&true.into(), &true.into()));
    let uid = plan["layers"].as_array().unwrap().iter().find(|layer| layer["layer"] == "uid").unwrap();
    assert_eq!(uid["decision"], "enforce", "{uid}");
    let script =
        "id -u; id -G; cat /proc/self/uid_map; mkdir -m 0 closed; stat -c '%u %n' /work /tmp ~; ls -d /proc/[0-9]*";
    let line = ["run", "-q", "--network", "none", "--", "sh", "-c", script];
    let ran = lab.launch(Who::Root, line).through(through).run();
    assert_eq!((ran.code(), ran.stderr.as_str()), (0, ""), "{ran:?}");
    let words: Vec<&str> = ran.stdout.split_whitespace().collect();
    let uid = words[0];
    assert!(uid.parse::<u32>().unwrap() >= 1_900_000_000, "{ran:?}");
    let places = [uid, "/work", uid, "/tmp", uid, "/home/agent"];
    assert_eq!(words[1..], [&[uid, "0", "0", "1", uid, uid, "1"], &places[..], &["/proc/1", "/proc/2"]].concat());
    assert_eq!(lab.left(), Vec::<String>::new());
    // UID 0 in a map needs one more capability. Without it the namespaces are given up, and openly.
    let both = "setpriv --bounding-set=-sys_admin,-setfcap --inh-caps=-sys_admin,-setfcap";
    let less = lab.launch(Who::Root, ["run", "--", "id", "-u"]).through(both).run();
    assert!(less.code() == 0 && less.stderr.contains("not enforced here: pid, root"), "{less:?}");
    let said = lab.launch(Who::Root, ["explain", "--", "true"]).through(both).run();
    assert!(said.stdout.contains("grant CAP_SETFCAP or CAP_SYS_ADMIN to the launcher"), "{said:?}");
    assert_eq!(lab.left(), Vec::<String>::new());
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
