//! What holds for every plan: it claims no layer that the host lacks, and more facts never protect less. The facts that
//! decide are few enough to try all of their combinations.

use oubliette::host::Host;
use oubliette::host::facts::{Cgroups, Fact, Maker, capability};
use oubliette::host::groups::Group;
use oubliette::plan::rules::Modes;
use oubliette::plan::twins::Denied;
use oubliette::plan::{Apart, Credential, Identity, Plan};
use oubliette::policy::Policy;
use oubliette::policy::agents::spec::AgentSpec;
use oubliette::request::Request;
use oubliette::types::class::Class;
use oubliette::types::layer::{Layer, Want};
use oubliette::types::network::{Hold, NetworkMode};

use crate::plans::{agent, full, lacks, letter, level, planned, request};

/// The facts that decide, each as a rank: a higher one is more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facts([usize; 10]);

/// How many ranks each has: namespaces, mounts, proc, uts and net at once, Landlock, seccomp, UIDs, cgroup, private
/// descriptors, SETPCAP.
const RANKS: [usize; 10] = [3, 2, 2, 2, 5, 2, 2, 2, 2, 2];

/// The ABIs at which something is added that a plan asks for.
const ABIS: [u32; 5] = [0, 1, 4, 6, 7];

impl Facts {
    fn all() -> impl Iterator<Item = Facts> {
        (0..RANKS.iter().product()).map(|mut number: usize| {
            Facts(RANKS.map(|ranks| {
                let rank = number % ranks;
                number /= ranks;
                rank
            }))
        })
    }

    /// One fact more, each in turn.
    fn more(self) -> impl Iterator<Item = Facts> {
        (0..RANKS.len()).filter(move |&at| self.0[at] + 1 < RANKS[at]).map(move |at| {
            let mut more = self;
            more.0[at] += 1;
            more
        })
    }

    fn host(self) -> Host {
        let [namespaces, mounts, proc, rest, landlock, seccomp, uids, cgroup, descriptors, setpcap] = self.0;
        let fact = |rank: usize, what: &str| if rank == 1 { Fact::Has(()) } else { lacks(what) };
        Host {
            namespaces: match namespaces {
                0 => lacks("namespace"),
                1 => Fact::Has(Maker::UserNamespace),
                _ => Fact::Has(Maker::Privilege),
            },
            mounts: fact(mounts, "mount"),
            proc: fact(proc, "fresh /proc"),
            uts: fact(rest, "host name"),
            net: fact(rest, "network"),
            landlock: if landlock == 0 { lacks("Landlock") } else { Fact::Has(ABIS[landlock]) },
            seccomp: fact(seccomp, "seccomp"),
            uids: fact(uids, "UID"),
            cgroup: if cgroup == 1 { Fact::Has(Cgroups::V2("/sys/fs/cgroup".into())) } else { lacks("cgroup") },
            private_descriptors: descriptors == 1,
            capabilities: if setpcap == 1 { capability::SETPCAP } else { 0 }
                | if uids == 1 { capability::SETGID } else { 0 },
            groups: vec![Group { gid: 998, name: Some("docker".into()) }],
            ..full()
        }
    }
}

/// The layer needs this and the host lacks it.
fn missing(layer: Layer, plan: &Plan, host: &Host) -> Option<&'static str> {
    let abi = host.landlock.get().copied().unwrap_or(0);
    let need = |there: bool, what: &'static str| (!there).then_some(what);
    let namespaces = || need(host.namespaces.get().is_ok(), "namespaces");
    match layer {
        Layer::Root => namespaces()
            .or(need(host.mounts.get().is_ok(), "mounts"))
            .or(need(host.proc.get().is_ok(), "a fresh /proc")),
        Layer::Pid | Layer::Ipc => namespaces(),
        Layer::Uts => namespaces().or(need(host.uts.get().is_ok(), "a host name")),
        Layer::Net => namespaces().or(need(host.net.get().is_ok(), "a network")),
        Layer::Uid => need(host.uids.get().is_ok(), "UIDs"),
        Layer::LandlockFs => need(abi >= 1, "Landlock"),
        Layer::LandlockNet => need(abi >= 4, "Landlock ABI 4"),
        Layer::LandlockScope => need(abi >= 6, "Landlock ABI 6"),
        Layer::PathSockets => {
            let (root, by_abi) = (plan.enforces(Layer::Root), plan.enforces(Layer::LandlockFs) && abi >= 9);
            need(root || by_abi || plan.filter.is_some_and(|filter| !filter.unix), "what closes sockets with a path")
        }
        Layer::Seccomp => need(host.seccomp.get().is_ok(), "seccomp"),
        Layer::Cgroup => need(host.cgroup.get().is_ok(), "a cgroup"),
        Layer::Settings => {
            let fences = [Layer::Root, Layer::Uid, Layer::LandlockFs];
            need(fences.into_iter().any(|fence| plan.enforces(fence)), "a fence around the settings")
        }
        Layer::Capabilities | Layer::NoNewPrivs | Layer::Limits | Layer::Alone => None,
    }
}

/// What is in the plan beside its layers agrees with them.
fn contradictions(plan: &Plan, host: &Host) -> Vec<String> {
    let mut wrong: Vec<String> = plan
        .layers
        .iter()
        .filter(|planned| planned.decision.enforced())
        .filter_map(|planned| Some(format!("claims {} without {}", planned.layer, missing(planned.layer, plan, host)?)))
        .collect();
    let mut agree = |layer: Layer, there: bool| {
        if plan.enforces(layer) != there {
            wrong.push(format!("{layer} is claimed: {}, is there: {there}", plan.enforces(layer)));
        }
    };
    agree(Layer::Root, plan.root.is_some() && plan.namespaces.mount);
    agree(Layer::Pid, plan.namespaces.pid);
    agree(Layer::Ipc, plan.namespaces.ipc);
    agree(Layer::Uts, plan.namespaces.uts);
    agree(Layer::Net, plan.namespaces.net);
    agree(Layer::Uid, plan.identity != Identity::Caller);
    agree(Layer::LandlockFs, plan.landlock.as_ref().is_some_and(|domain| domain.files.is_some()));
    agree(Layer::LandlockScope, plan.landlock.as_ref().is_some_and(|domain| domain.scope));
    agree(Layer::Seccomp, plan.filter.is_some());
    agree(Layer::Cgroup, plan.cgroup.is_some());
    if (plan.apart == Apart::InSpace) != in_space(plan) || plan.apart == Apart::Neither {
        wrong.push(format!("cells are {:?}", plan.apart));
    }
    if plan.groups.is_empty() != host.has(capability::SETGID) {
        wrong.push(format!("groups {:?}", plan.groups));
    }
    if plan.mapped_outside != (plan.namespaces.user && host.has(capability::SETGID)) {
        wrong.push("the wrong process maps the user namespace".into());
    }
    wrong.extend(plan.classes.iter().filter(|denied| !holds(denied, plan, host)).map(|denied| format!("{denied:?}")));
    if plan.credential == Credential::Pipe && !host.private_descriptors {
        wrong.push("a pipe that others may open".into());
    }
    wrong
}

/// What is said to stop a class is in force.
fn holds(denied: &Denied, plan: &Plan, host: &Host) -> bool {
    let across_uids = denied.class == Class::ForeignProc;
    match denied.kernel.map(|text| text.split(':').next().unwrap()) {
        None => true,
        Some("landlock") => plan.enforces(Layer::LandlockFs),
        Some("net") => match plan.network {
            NetworkMode::Host => false,
            NetworkMode::None => plan.enforces(Layer::Net) || plan.enforces(Layer::Seccomp),
            NetworkMode::Broker => plan.enforces(Layer::Net),
        },
        // gVisor shows environments across UIDs.
        Some("uid") if across_uids => plan.enforces(Layer::Uid) && host.private_descriptors,
        Some(name) => plan.enforces(name.parse().unwrap()),
    }
}

fn plan(facts: Facts, request: &Request, policy: &Policy, agent: &AgentSpec) -> (Host, Plan) {
    let host = facts.host();
    let plan = Plan::new(request, policy, agent, &host);
    (host, plan.unwrap_or_else(|refusal| panic!("{facts:?}: nothing is required: {refusal:?}")))
}

/// Requests, levels and agents that every combination of facts is tried with.
fn situations() -> Vec<(String, Request, Policy, AgentSpec)> {
    let mut all = Vec::new();
    for network in ["none", "host"] {
        for name in ["paranoid", "balanced", "developer"] {
            for who in ["claude", "none"] {
                let words = ["--network", network, "--credential-file", "/nowhere"];
                let title = format!("{name}, {who}, network {network}");
                // That `paranoid` insists on one is for another test.
                let policy = Policy { layers: Default::default(), ..level(name).value };
                all.push((title, request(&words), policy, agent(who).value));
            }
        }
    }
    // What the other levels say of a broker is the same, or a refusal (`network.least`).
    let words = ["--network", "broker", "--credential-file", "/nowhere"];
    all.push(("with a broker".into(), request(&words), level("balanced").value, agent("claude").value));
    all
}

#[test]
fn no_plan_claims_what_the_host_lacks() {
    let mut tried = 0;
    for (title, request, policy, agent) in situations() {
        for facts in Facts::all() {
            let (host, plan) = plan(facts, &request, &policy, &agent);
            for denied in &plan.classes {
                // In a private root there is no shared /tmp to deny.
                let left_out = denied.class == Class::SharedTmp && plan.enforces(Layer::Root);
                assert_eq!(denied.settings, agent.maps(denied.class) && !left_out, "{title}: {denied:?}");
            }
            assert_eq!(contradictions(&plan, &host), Vec::<String>::new(), "{title}: {facts:?}");
            tried += 1;
        }
    }
    println!("{tried} plans");
}

/// A run with a broker has it on every host, and its plan says no more of what holds the agent to it than is there.
#[test]
fn a_broker_is_planned_on_every_host_with_what_holds_the_agent_to_it() {
    let request = request(&["--network", "broker", "--credential-file", "/nowhere"]);
    let (policy, agent) = (level("balanced").value, agent("claude").value);
    for facts in Facts::all() {
        let host = Host { authorities: Fact::Has("/etc/ssl/cert.pem".into()), ..facts.host() };
        let plan = Plan::new(&request, &policy, &agent, &host)
            .unwrap_or_else(|refusal| panic!("{facts:?}: {}", refusal.error()));
        let broker = plan.broker.as_ref().unwrap();
        let there = host.namespaces.get().is_ok() && host.net.get().is_ok();
        let ports = plan.enforces(Layer::LandlockNet) && plan.enforces(Layer::Seccomp);
        let hold = match (there, ports) {
            (true, _) => Hold::Namespace,
            (false, true) => Hold::Port,
            (false, false) => Hold::Nothing,
        };
        assert_eq!((broker.hold, plan.namespaces.net, plan.enforces(Layer::Net)), (hold, there, there), "{facts:?}");
        let domain = plan.landlock.as_ref().filter(|domain| domain.broker);
        assert_eq!(domain.is_some(), plan.enforces(Layer::LandlockNet) && !there, "{facts:?}");
        assert!(domain.is_none_or(|domain| domain.connect.as_deref() == Some(&[])), "{facts:?}");
        assert!(plan.filter.is_none_or(|filter| there || !filter.udp), "{facts:?}");
        assert_eq!(broker.uids.is_some(), plan.enforces(Layer::Uid));
        assert_eq!(broker.landlock.is_some(), plan.enforces(Layer::LandlockFs));
        assert_eq!(broker.filter.is_some(), plan.enforces(Layer::Seccomp));
        assert_eq!(contradictions(&plan, &host), Vec::<String>::new(), "{facts:?}");
    }
}

fn covered(denied: &Denied) -> (bool, bool) {
    (denied.settings, denied.kernel.is_some())
}

/// Which cells of different users share nothing: by UID, by Landlock, or by a private root with its own processes.
fn in_space(plan: &Plan) -> bool {
    // What Landlock has no right for crosses it: signals before ABI 6, and modes and times unless the launcher is asked.
    plan.enforces(Layer::Uid) || landlock_alone(plan) || (plan.enforces(Layer::Root) && plan.enforces(Layer::Pid))
}

fn landlock_alone(plan: &Plan) -> bool {
    let asked = plan.filter.is_some_and(|filter| filter.modes == Modes::Asked);
    asked && plan.enforces(Layer::LandlockScope)
}

#[test]
fn more_facts_never_protect_less() {
    let mut compared = 0;
    for (title, request, policy, agent) in situations() {
        for facts in Facts::all() {
            let (_, less) = plan(facts, &request, &policy, &agent);
            for more in facts.more() {
                let (_, richer) = plan(more, &request, &policy, &agent);
                compared += 1;
                let lost: Vec<Layer> = Layer::ALL
                    .into_iter()
                    .filter(|layer| less.enforces(*layer) && !richer.enforces(*layer))
                    .filter(|layer| match layer {
                        // In a network of its own there is nothing to connect to.
                        Layer::LandlockNet => !richer.enforces(Layer::Net),
                        // With the host's /proc a domain for files closes more than a PID namespace.
                        Layer::Pid => !richer.enforces(Layer::LandlockFs),
                        _ => true,
                    })
                    .collect();
                assert_eq!(lost, [], "{title}: {facts:?} → {more:?}");
                assert!(!in_space(&less) || in_space(&richer), "{title}: {facts:?} → {more:?} lose the wall");
                let traded = less.enforces(Layer::Pid) && !richer.enforces(Layer::Pid);
                for (before, after) in less.classes.iter().zip(&richer.classes) {
                    let (settings, kernel) = covered(before);
                    let (settings_after, kernel_after) = covered(after);
                    if traded && before.class == Class::Background {
                        continue;
                    }
                    assert!(
                        (!kernel || kernel_after) && (!settings || settings_after || kernel_after),
                        "{title}: {facts:?} → {more:?}: {before:?} becomes {after:?}"
                    );
                }
            }
        }
    }
    println!("{compared} pairs of plans");
}

/// Off does not take the wall away, and two directories of one owner have no wall by UID between them.
#[test]
fn cells_are_apart_in_space_or_in_time_unless_that_is_off() {
    let none = agent("none").value;
    let preferring = level("developer").value;
    let mut off = preferring.clone();
    off.layers.insert(Layer::Alone, Want::Off);
    for (words, own_uid) in [(&[][..], true), (&["--workspace", "user"], true), (&["--workspace", "/work"], false)] {
        let request = request(words);
        for facts in Facts::all() {
            let (_, preferring) = plan(facts, &request, &preferring, &none);
            let walls = (own_uid && preferring.enforces(Layer::Uid))
                || landlock_alone(&preferring)
                || (preferring.enforces(Layer::Root) && preferring.enforces(Layer::Pid));
            assert_eq!(preferring.apart, if walls { Apart::InSpace } else { Apart::InTime }, "{words:?}: {facts:?}");
            let (_, off) = plan(facts, &request, &off, &none);
            assert_eq!(off.apart, if walls { Apart::InSpace } else { Apart::Neither }, "{words:?}: {facts:?}");
        }
    }
}

/// A socket with a path leads to whatever serves the agent's UID. What closes them is one of three, and the last of them
/// takes every Unix socket away; `paranoid` refuses where there is none, and a policy gives them back.
#[test]
fn sockets_with_a_path_are_closed_by_one_layer_or_another() {
    let (usual, none) = (request(&[]), agent("none").value);
    let (paranoid, balanced) = (level("paranoid").value, level("balanced").value);
    let mut open = balanced.clone();
    open.layers.insert(Layer::PathSockets, Want::Off);
    let new = |host: Host| match host.landlock {
        Fact::Has(abi) if abi >= 7 => Host { landlock: Fact::Has(9), ..host },
        _ => host,
    };
    for host in Facts::all().map(Facts::host).flat_map(|host| [host.clone(), new(host)]) {
        let plan = Plan::new(&usual, &balanced, &none, &host).unwrap();
        let root = plan.enforces(Layer::Root);
        let domain = plan.landlock.as_ref();
        let by_abi = plan.enforces(Layer::LandlockFs) && host.landlock == Fact::Has(9);
        assert_eq!(domain.is_some_and(|domain| domain.path_sockets), by_abi, "{host:?}");
        assert_eq!(plan.enforces(Layer::PathSockets), root || by_abi || plan.filter.is_some(), "{host:?}");
        assert!(plan.filter.is_none_or(|filter| filter.unix == (root || by_abi)), "{host:?}");
        assert_eq!(Plan::new(&usual, &paranoid, &none, &host).is_ok(), plan.enforces(Layer::PathSockets), "{host:?}");
        let open = Plan::new(&usual, &open, &none, &host).unwrap();
        let domain = open.landlock.as_ref();
        assert!(open.filter.is_none_or(|filter| filter.unix) && domain.is_none_or(|domain| !domain.path_sockets));
    }
}

#[test]
fn required_refuses_where_preferred_degrades_and_off_is_off() {
    let (policy, none) = (level("balanced").value, agent("none").value);
    let usual = request(&[]);
    for host in Facts::all().step_by(11).map(Facts::host) {
        let preferred = planned(&usual, &policy, &none, &host);
        for (index, layer) in Layer::ALL.into_iter().enumerate() {
            let by_flag = planned(&request(&["--require", layer.name()]), &policy, &none, &host);
            let mut insisting = policy.clone();
            insisting.layers.insert(layer, Want::Required);
            let by_policy = planned(&usual, &insisting, &none, &host);
            let letters = [&preferred, &by_flag, &by_policy].map(|layers| letter(&layers[index].decision));
            // Where the network is the cell's own, rules for its ports are no loss.
            let own = layer == Layer::LandlockNet && letters == ['.', '.', '.'];
            let own = own && preferred.iter().any(|row| row.layer == Layer::Net && row.decision.enforced());
            let sound = own || matches!(letters, ['E', 'E', 'E'] | ['d', 'R', 'R'] | ['.', 'R', 'R']);
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
