//! What becomes of each layer on a host.
#![forbid(unsafe_code)]

use super::apart::{in_space, landlock_leaves};
use super::{broker, hold, rules};
use crate::host::facts::{Cgroups, Fact, Lack, Maker, capability};
use crate::host::groups::{self, Group};
use crate::host::ranges::OWNER;
use crate::host::wanted::Wanted;
use crate::host::{Counts, Host};
use crate::plan::on::{covers, default_range};
use crate::policy::Policy;
use crate::policy::agents::spec::{AgentSpec, Check, Settings};
use crate::request::{Request, Workspace};
use crate::types::layer::{Decision, Layer, Planned, Require, Want};
use crate::types::network::{Hold, NetworkMode};
use crate::types::paths::HostPath;
use crate::types::values::UidRange;

/// All that a plan is made of.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    /// What was asked for.
    pub request: &'a Request,
    /// The policy.
    pub policy: &'a Policy,
    /// The agent.
    pub agent: &'a AgentSpec,
    /// The host.
    pub host: &'a Host,
    /// The network that this comes to.
    pub network: NetworkMode,
}

/// What can be done about a layer, before the policy is asked.
enum Can {
    Enforce(String),
    Lack(Lack),
    /// It would do harm: no run, whatever the policy prefers.
    Refuse(Lack),
    /// It does not apply to this run.
    Off(String),
}

/// Decides every layer.
pub fn decide(given: Given<'_>) -> Vec<Planned> {
    let Given { request, policy, .. } = given;
    let all = Layer::ALL.into_iter().map(|layer| {
        let want = want(request, policy, layer);
        let can = can(layer, given);
        // Whatever the policy says of the namespace: where there can be no broker, the agent never has the credential in
        // its stead.
        let want = if layer == Layer::Net && matches!(can, Can::Refuse(_)) { Want::Required } else { want };
        // A network of its own leaves nothing that a rule for ports could close; and that there is none may only come out
        // when the child is made.
        let surpassed = layer == Layer::LandlockNet && in_force(Layer::Net, given);
        let named = request.require.contains(&Require::Layer(layer)) || policy.want(layer) == Want::Required;
        let insists = named && !surpassed;
        Planned { layer, decision: decision(layer, want, insists, can) }
    });
    all.collect()
}

/// What a run wants of its host.
pub fn wanted<'a>(request: &'a Request, policy: &'a Policy) -> Wanted<'a> {
    let wanted = |layer: &Layer| want(request, policy, *layer) != Want::Off;
    Wanted {
        layers: Layer::ALL.into_iter().filter(wanted).collect(),
        lends: lends(request),
        uid_range: request.uid_range,
        broker: broker::asked(request, policy) == NetworkMode::Broker,
        ca: request.ca.as_deref(),
        cpu_percent: policy.limits.cpu_percent,
        files: policy.files.programs.iter().chain(&policy.files.config).map(HostPath::as_path).collect(),
    }
}

/// How much this run insists on a layer.
pub fn want(request: &Request, policy: &Policy, layer: Layer) -> Want {
    let by_name = request.require.contains(&Require::Layer(layer));
    match policy.want(layer) {
        _ if by_name => Want::Required,
        Want::Preferred if request.require.contains(&Require::All) => Want::Required,
        want => want,
    }
}

const OFF: &str = "the policy switches it off";

/// `insists`: the layer itself is required by name, so that it does not apply to this run is no excuse.
fn decision(layer: Layer, want: Want, insists: bool, can: Can) -> Decision {
    match (want, can) {
        // What follows from it is told.
        (Want::Off, Can::Off(why)) if layer == Layer::Net => Decision::Off { why },
        (Want::Off, _) => Decision::Off { why: OFF.into() },
        (_, Can::Enforce(how)) => Decision::Enforce { how },
        (Want::Required, Can::Lack(Lack { why, remedy })) | (_, Can::Refuse(Lack { why, remedy })) => {
            Decision::Refuse { why, remedy }
        }
        (Want::Preferred, Can::Lack(Lack { why, remedy })) => Decision::Degrade { why, remedy },
        (_, Can::Off(why)) if insists => {
            Decision::Refuse { remedy: format!("do not require {layer}, or change what switches it off"), why }
        }
        (_, Can::Off(why)) => Decision::Off { why },
    }
}

fn can(layer: Layer, given: Given<'_>) -> Can {
    let Given { request, policy, agent, host, .. } = given;
    match layer {
        Layer::Pid => pid(given),
        Layer::Root => private_root(policy, host),
        Layer::Ipc => of(&host.namespaces, |maker| made(*maker)),
        Layer::Uts => match &host.uts {
            Fact::Has(()) => of(&host.namespaces, |maker| made(*maker)),
            Fact::Lacks(lack) => Can::Lack(lack.clone()),
        },
        Layer::Net => net(given),
        Layer::Uid => uid(request, host),
        Layer::LandlockFs if policy.kernel.nested_namespaces => {
            Can::Off("kernel.nested-namespaces: a Landlock domain for files forbids every mount".into())
        }
        Layer::LandlockFs => landlock(host, 1, "files"),
        Layer::LandlockNet => landlock_net(given),
        Layer::LandlockScope => landlock(host, 6, "signals and abstract sockets"),
        Layer::PathSockets => path_sockets(given),
        Layer::Seccomp => of(&host.seccomp, |()| "filter as a tree".into()),
        Layer::Capabilities => capabilities(given),
        Layer::NoNewPrivs => Can::Enforce("set before anything else is given up".into()),
        Layer::Limits => Can::Enforce(match host.oom_order.get() {
            Ok(()) => "setrlimit(2), hard".into(),
            Err(Lack { why, .. }) => format!("setrlimit(2), hard; the OOM killer goes by size alone, since {why}"),
        }),
        Layer::Cgroup => of(&host.cgroup, |cgroups| cgroup(cgroups, host.counts)),
        Layer::Settings if agent.settings.is_none() => Can::Off(format!("{} has no settings", agent.title)),
        Layer::Settings => settings(given),
        Layer::Alone if request.beside => Can::Off("this cell is wanted beside others (--beside)".into()),
        Layer::Alone => Can::Enforce(match in_space(request, host, |layer| in_force(layer, given)) {
            Some(by) => format!("in space: {by}"),
            None => {
                let crosses = landlock_leaves(request, host, |layer| in_force(layer, given));
                format!("in time: one cell at a time of the agent's UID in this network namespace{crosses}")
            }
        }),
    }
}

/// Landlock has a right for sockets with a path from ABI 9 on. Before, and without, an agent reaches by them whatever
/// serves its UID, or everybody: the user's service manager, ssh-agent, a container engine.
fn path_sockets(given: Given<'_>) -> Can {
    if in_force(Layer::Root, given) {
        return Can::Enforce("the private root shows none but the workspace's".into());
    }
    if in_force(Layer::LandlockFs, given) && rules::knows_path_sockets(given.host) {
        return Can::Enforce("Landlock, for those that others made".into());
    }
    if in_force(Layer::Seccomp, given) {
        return Can::Enforce("no Unix socket can be made but pairs (socketpair(2))".into());
    }
    Can::Lack(Lack::new(
        "neither a private root nor Landlock nor a filter keeps the agent from sockets with a path, and so from what services do for its UID",
        "use a host with mount namespaces or seccomp",
    ))
}

fn of<T>(fact: &Fact<T>, how: impl FnOnce(&T) -> String) -> Can {
    match fact {
        Fact::Has(value) => Can::Enforce(how(value)),
        Fact::Lacks(lack) => Can::Lack(lack.clone()),
    }
}

fn made(maker: Maker) -> String {
    match maker {
        Maker::Privilege => "without a user namespace".into(),
        Maker::UserNamespace => "through a user namespace".into(),
    }
}

/// A private root needs mounts, and a fresh /proc of the cell's PID namespace: agents do not start without /proc/self,
/// and the host's /proc would list everybody.
fn private_root(policy: &Policy, host: &Host) -> Can {
    let lack = [(true, &host.mounts), (policy.want(Layer::Pid) != Want::Off, &host.proc)]
        .into_iter()
        .filter(|(needed, _)| *needed)
        .find_map(|(_, fact)| fact.get().err());
    match (&host.namespaces, lack) {
        (Fact::Lacks(lack), _) | (_, Some(lack)) => Can::Lack(lack.clone()),
        (Fact::Has(maker), None) => Can::Enforce(made(*maker)),
    }
}

/// Without a private root /proc stays the host's. /proc/self is still there, nobody outside can be signalled or traced,
/// and all of it dies with its first process. A Landlock domain shows /proc of the process that enters it, though, which
/// is then the namespace's first and not the agent: where one of the two must go, Landlock closes more.
fn pid(given: Given<'_>) -> Can {
    let Given { policy, host, .. } = given;
    let root = private_root(policy, host);
    let rooted = policy.want(Layer::Root) != Want::Off && matches!(root, Can::Enforce(_));
    match (&host.namespaces, root) {
        (Fact::Lacks(lack), _) => Can::Lack(lack.clone()),
        (Fact::Has(maker), _) if rooted => Can::Enforce(made(*maker)),
        (Fact::Has(maker), _) if !in_force(Layer::LandlockFs, given) => {
            Can::Enforce(made(*maker) + "; /proc is the host's and lists other processes")
        }
        (_, Can::Lack(lack)) => Can::Lack(lack),
        _ => Can::Lack(Lack::new(
            "without a private root /proc is the host's, and Landlock would close /proc/self to the agent",
            "do not switch layer root off",
        )),
    }
}

/// Settings that the agent's own UID owns are read-only in name alone: it takes a fence, since agents take up what is
/// changed while they run. A caller's argument may loosen settings that no managed file backs.
fn settings(given: Given<'_>) -> Can {
    let Given { request, agent, host, .. } = given;
    let fence = |layer| in_force(layer, given);
    let managed = fence(Layer::Root);
    if !managed && !fence(Layer::Uid) && !fence(Layer::LandlockFs) {
        return Can::Lack(Lack::new(
            "the agent has the UID that owns them and can replace them while it runs",
            "run as root, or on a host with namespaces or Landlock",
        ));
    }
    let in_home = agent.settings.as_ref().is_some_and(Settings::rest_on_home);
    if !managed && in_home {
        return Can::Lack(Lack::new(
            "the agent reads them from its HOME, where it can put others in their place, and without a private root nothing is above them",
            "use a host with mount namespaces",
        ));
    }
    if !managed && !agent.hide.is_empty() {
        return Can::Lack(Lack::new(
            "the agent reads those of the workspace whatever it is told, and without a private root nothing hides them",
            "use a host with mount namespaces",
        ));
    }
    let words = request.command.iter().take_while(|word| *word != "--").map(|word| word.to_string_lossy().into_owned());
    let loosens =
        |word: &String| agent.arguments.refuse_unmanaged.iter().any(|name| word.split('=').next() == Some(name));
    if host.programs.wrapped.is_some() && !managed {
        return Can::Lack(Lack::new(
            "a command that starts the agent may give it other settings, and without a private root no managed settings rule that out",
            "name the agent itself as the command",
        ));
    }
    match words.filter(loosens).find(|_| !managed) {
        None if in_home => Can::Enforce("read-only to the agent, above what it may write in its HOME".into()),
        None if agent.check == Check::default() => Can::Enforce("read-only to the agent".into()),
        None => Can::Enforce("read-only to the agent, checked at its start".into()),
        Some(word) => Can::Lack(Lack::new(
            format!(
                "{word} lets its input loosen the settings, and without a private root no managed settings rule that out"
            ),
            "leave the argument out",
        )),
    }
}

fn net(given: Given<'_>) -> Can {
    let Given { request, policy, host, network, .. } = given;
    let off = want(request, policy, Layer::Net) == Want::Off;
    match network {
        NetworkMode::Broker => net_of_broker(given),
        NetworkMode::Host | NetworkMode::None if off => Can::Off(OFF.into()),
        NetworkMode::Host => Can::Off("the network is the host's (--network none gives the cell its own)".into()),
        NetworkMode::None => match &host.namespaces {
            Fact::Lacks(lack) => Can::Lack(lack.clone()),
            Fact::Has(_) => of(&host.net, |()| match broker::asked(request, policy) {
                NetworkMode::Broker => "nothing but its own loopback: there is nothing to broker".into(),
                NetworkMode::Host | NetworkMode::None => "nothing but its own loopback".into(),
            }),
        },
    }
}

/// Without the namespace the broker listens on the host's loopback, and other layers do what they can. The credential
/// stays outside of the cell in any case; what differs is what else the agent reaches, and who reaches its broker.
fn net_of_broker(given: Given<'_>) -> Can {
    let Given { request, policy, agent, host, .. } = given;
    if let Some(lack) = broker::lack(request, agent, host) {
        return Can::Refuse(lack);
    }
    let off = want(request, policy, Layer::Net) == Want::Off;
    let missing = host.namespaces.get().err().or(host.net.get().err());
    let (why, remedy) = match missing {
        _ if off => (OFF, "do not switch layer net off"),
        Some(lack) => (lack.why.as_str(), lack.remedy.as_str()),
        None => return Can::Enforce("its own loopback, and on it the broker".into()),
    };
    let on = |layer| layer != Layer::Net && in_force(layer, given);
    let (held, least) = (hold::of(on), policy.network.least);
    if held < least {
        let others = if least == Hold::Port { "; or have Landlock from ABI 4 on and a seccomp filter" } else { "" };
        return Can::Refuse(Lack::new(
            format!(
                "{why}, and the policy lets no broker listen where less than a {} holds the agent to it",
                least.name()
            ),
            format!("{remedy}{others}; or change `network.least` of the policy"),
        ));
    }
    // Under Landlock for files modes and signals may cross, and nothing is read.
    let read = in_space(request, host, on).is_none() && !on(Layer::LandlockFs);
    let why = match held.open(read) {
        Some(open) => format!("{why}; without it {open}"),
        None => why.to_owned(),
    };
    if off { Can::Off(why) } else { Can::Lack(Lack::new(why, remedy)) }
}

/// Whether a layer that another depends on will be in force.
fn in_force(layer: Layer, given: Given<'_>) -> bool {
    want(given.request, given.policy, layer) != Want::Off && matches!(can(layer, given), Can::Enforce(_))
}

/// Layers that are a namespace.
const NAMESPACES: [Layer; 5] = [Layer::Pid, Layer::Root, Layer::Ipc, Layer::Uts, Layer::Net];

fn in_user_namespace(given: Given<'_>) -> bool {
    given.host.namespaces.get() == Ok(&Maker::UserNamespace)
        && NAMESPACES.into_iter().any(|layer| in_force(layer, given))
}

/// The bounding set bounds what an exec may gain. Without the right to empty it no_new_privs does the same.
fn capabilities(given: Given<'_>) -> Can {
    let may_empty = given.host.has(capability::SETPCAP) || in_user_namespace(given);
    Can::Enforce(if may_empty {
        "every set is empty".into()
    } else {
        "none to use; the bounding set, which a plain user cannot empty, gives nothing under no_new_privs".into()
    })
}

/// In a user namespace, too: whoever may change UIDs outside may map the run's into it.
fn uid(request: &Request, host: &Host) -> Can {
    let kept = kept_groups(host);
    let lack = |lack: Lack| if kept.is_empty() { Can::Lack(lack) } else { Can::Lack(with_groups(lack, kept)) };
    if let Fact::Lacks(without) = &host.uids {
        return lack(without.clone());
    }
    let range = request.uid_range.unwrap_or_else(|| default_range(host));
    if lends(request)
        && let Some(lack) = somebody_elses(host, range)
    {
        return Can::Refuse(lack);
    }
    if !covers(host, range) {
        return lack(Lack::new(
            format!("this user namespace has no UIDs {}-{}", range.first, range.last),
            "name a range that it has with --uid-range",
        ));
    }
    match request.workspace {
        Workspace::Fresh => Can::Enforce(format!("one of {}-{} for this run alone", range.first, range.last)),
        Workspace::User => Can::Enforce("one for this user alone, the owner's of the workspace".into()),
        Workspace::Directory(_) => Can::Enforce("the owner's of the workspace".into()),
    }
}

/// A group may open what the UID may not: the socket of a container engine, a disk, another user's files.
fn with_groups(Lack { why, remedy }: Lack, kept: &[Group]) -> Lack {
    let why = format!("{why}, and the agent keeps the launcher's groups {}", groups::list(kept));
    Lack { why, remedy: format!("{remedy}, or start it without groups (setpriv --clear-groups)") }
}

/// The launcher's groups that an agent with its UID keeps.
pub fn kept_groups(host: &Host) -> &[Group] {
    if host.has(capability::SETGID) { &[] } else { &host.groups }
}

/// Whether the run gets its UID from the range, and not from the owner of a directory.
pub fn lends(request: &Request) -> bool {
    !matches!(request.workspace, Workspace::Directory(_))
}

/// Whoever may become one of the range's UIDs owns the agents that run under them: an account, or one whose rootless
/// containers have it.
fn somebody_elses(host: &Host, range: UidRange) -> Option<Lack> {
    let ranges = match &host.ranges {
        Fact::Lacks(lack) => return Some(lack.clone()),
        Fact::Has(ranges) => ranges,
    };
    ranges.taken(range).map(|other| {
        Lack::new(
            format!("of {range} for runs, {} belongs to somebody else: {}", other.range, other.whose),
            format!("name a free range with --uid-range, or as `{OWNER}:FIRST:COUNT` in /etc/subuid and /etc/subgid"),
        )
    })
}

fn landlock(host: &Host, needed: u32, what: &str) -> Can {
    match &host.landlock {
        Fact::Has(abi) if *abi >= needed => Can::Enforce(format!("{what}, ABI {abi}")),
        Fact::Has(abi) => Can::Lack(Lack::new(
            format!("Landlock ABI {abi} has no rules for {what}, which came with ABI {needed}"),
            if needed == 4 { "use a kernel from 6.7 on" } else { "use a kernel from 6.12 on" },
        )),
        Fact::Lacks(lack) => Can::Lack(lack.clone()),
    }
}

fn landlock_net(given: Given<'_>) -> Can {
    let Given { request, policy, host, network, .. } = given;
    let own = host.namespaces.get().is_ok() && host.net.get().is_ok() && want(request, policy, Layer::Net) != Want::Off;
    if network != NetworkMode::Host && own {
        return Can::Off("the network namespace has nothing to reach".into());
    }
    // On the host's loopback: whatever ports the policy lets an agent connect to that holds its credential itself.
    if network == NetworkMode::Broker {
        return landlock(host, 4, "TCP ports");
    }
    if policy.network.connect.list().is_none() && policy.network.bind.list().is_none() {
        return Can::Off("the policy allows every port".into());
    }
    landlock(host, 4, "TCP ports")
}

fn cgroup(cgroups: &Cgroups, counts: Counts) -> String {
    let (version, named) = match cgroups {
        Cgroups::V2(_) => ("v2", [(true, "memory"), (true, "processes"), (true, "CPU")]),
        Cgroups::V1 { memory, pids, cpu } => {
            ("v1", [(memory.is_some(), "memory"), (pids.is_some(), "processes"), (cpu.is_some(), "CPU")])
        }
    };
    let named = named.into_iter().chain([(counts.swap, "swap"), (counts.sockets, "socket buffers")]);
    let names: Vec<&str> = named.filter(|(counted, _)| *counted).map(|(_, name)| name).collect();
    format!("{version}: {}", names.join(", "))
}
