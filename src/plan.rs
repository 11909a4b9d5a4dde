//! The plan of a run: plain data, made by one pure function from request, policy, agent and host. `run`, `explain` and
//! `doctor` share it.
#![forbid(unsafe_code)]

pub mod apart;
pub mod broker;
pub mod counts;
pub mod egress;
pub mod environ;
pub mod hold;
pub mod layers;
pub mod on;
pub mod rules;
pub mod text;
pub mod twins;
pub mod view;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::host::Host;
use crate::host::facts::{Cgroups, capability};
use crate::host::groups::Group;
use crate::plan::twins::{Denied, classes, left_out};
use crate::plan::view::root;
use crate::policy::Policy;
use crate::policy::agents::rendered::Rendered;
use crate::policy::agents::spec::{AgentSpec, Check};
use crate::policy::agents::way::Hand;
use crate::request::{Request, Workspace};
use crate::secret::SecretSource;
use crate::types::error::{Error, Result};
use crate::types::layer::{Decision, Layer, Planned};
use crate::types::network::NetworkMode;
use crate::types::paths::{HomePath, WorkName};
use crate::types::units::Bytes;

pub use on::{Apart, Identity, Namespaces};
pub use text::{Shim, Text};
pub use view::Root;

/// What is about to happen. No descriptor, clock, random value or secret in it; paths of the cell are symbolic.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plan {
    /// Every layer and what becomes of it.
    pub layers: Vec<Planned>,
    /// Every denied class and what stops it.
    pub classes: Vec<Denied>,
    /// Namespaces of the cell.
    pub namespaces: Namespaces,
    /// The launcher maps the user namespace, since it may: two UIDs, and groups that the child can then give up. Who maps
    /// it by himself must give up setgroups(2) first (user_namespaces(7)).
    pub mapped_outside: bool,
    /// What the private root shows, where there is one.
    pub root: Option<Root>,
    /// Whose UID the agent has.
    pub identity: Identity,
    /// The launcher's supplementary groups, where it cannot give them up for the agent.
    pub groups: Vec<Group>,
    /// The Landlock domain.
    pub landlock: Option<rules::Landlock>,
    /// The seccomp filter.
    pub filter: Option<rules::Filter>,
    /// Limits of each process.
    pub limits: Limits,
    /// What bounds what it writes.
    pub disk: counts::Disk,
    /// What of the host the cell can take that nothing counts for it alone.
    pub uncounted: Vec<counts::Uncounted>,
    /// Limits of the cell, where there is a cgroup.
    pub cgroup: Option<crate::host::facts::Cgroups>,
    /// The network.
    pub network: NetworkMode,
    /// What holds the credential outside of the cell and leads to the listed hosts, where that is the network.
    pub broker: Option<broker::Broker>,
    /// How the credential, or with a broker its phantom, is handed over.
    pub credential: Credential,
    /// The file of the agent's login out of which it comes, where it does.
    pub login: Option<PathBuf>,
    /// Nobody but root reads environment, memory maps and descriptors of another user's process.
    pub private_descriptors: bool,
    /// The agent's settings.
    pub settings: Option<Rendered>,
    /// Files in HOME at the start; the text may name `{work}`.
    pub home: Vec<(String, String)>,
    /// More of them where the agent gets a terminal.
    pub home_terminal: Vec<(String, String)>,
    /// Variables of the agent, by name.
    #[serde(serialize_with = "environ::serialize")]
    pub environment: Vec<(OsString, Text)>,
    /// The program and its arguments.
    pub arguments: Vec<Text>,
    /// The program's file.
    pub program: PathBuf,
    /// Stands under the agent's name on PATH where the command is not the agent but starts it.
    pub shim: Option<Shim>,
    /// Names at the top of the workspace that the agent does not see; without a private root the workspace must not have
    /// them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<WorkName>,
    /// What of HOME is kept for the next run of this user, and put back there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resume: Vec<HomePath>,
    /// How to see that the agent took its settings.
    #[serde(skip)]
    pub check: Option<Check>,
    /// What is between this cell and others.
    pub apart: Apart,
    /// How long to wait for another cell where they are apart in time.
    pub wait: Option<Duration>,
    /// The deadline.
    pub timeout: Duration,
    /// Between TERM and KILL.
    pub grace: Duration,
}

/// Where memory runs out on the host, the kernel ends the agent before launcher, keeper and broker, which wipe
/// (proc_pid_oom_score_adj(5)): half of all memory is added to what it uses.
pub const OOM_SCORE_ADJ: i16 = 500;

/// Limits of each process. Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Limits {
    /// RLIMIT_NPROC: counts the UID, so it is only set where the UID is the run's own.
    pub processes: Option<u32>,
    /// RLIMIT_NOFILE.
    pub open_files: u32,
    /// RLIMIT_FSIZE.
    pub file_size: Bytes,
    /// RLIMIT_DATA, where no cgroup bounds the memory of the whole cell.
    pub data: Option<Bytes>,
    /// Memory of the cell, for the cgroup.
    pub memory: Bytes,
    /// Processes of the cell, for the cgroup.
    pub cell_processes: u32,
    /// CPU in percent of one, for the cgroup.
    pub cpu_percent: u32,
    /// What it writes to disk, by its tmpfs or by counts.
    pub disk: Bytes,
    /// How many files.
    pub files: u32,
    /// Nothing of the cell is swapped out beyond its memory, for the cgroup.
    pub swap: bool,
    /// Buffers of its sockets, where the cgroup does not count them as memory.
    pub socket_buffers: Option<Bytes>,
    /// The least oom_score_adj of the agent, where the launcher can set one.
    pub oom_score_adj: Option<i16>,
}

/// How the credential is handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Credential {
    /// There is none.
    None,
    /// A pipe that is empty once read.
    Pipe,
    /// A file of mode 0600 in HOME, where others could open a pipe.
    File,
    /// A file of mode 0600 in HOME, by the name under which the agent looks for it.
    Own(HomePath),
    /// A variable of its environment.
    Variable,
}

impl Credential {
    /// The name in HOME of the file that holds it, where it is in one.
    pub fn file(&self) -> Option<&str> {
        match self {
            Credential::File => Some(".credential"),
            Credential::Own(path) => Some(path.as_str()),
            Credential::None | Credential::Pipe | Credential::Variable => None,
        }
    }
}

/// A run that this host cannot give the layers which the caller insists on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Every layer and what would become of it.
    pub layers: Vec<Planned>,
}

impl Refusal {
    /// The first layer that is refused, as an error for people.
    pub fn error(&self) -> Error {
        let refused = self.layers.iter().filter_map(|planned| match &planned.decision {
            Decision::Refuse { why, remedy } => Some((planned.layer, why, remedy)),
            _ => None,
        });
        let all: Vec<_> = refused.collect();
        let Some((layer, why, remedy)) = all.first() else {
            return Error::new("run", "a layer is missing");
        };
        let names: Vec<&str> = all.iter().map(|(layer, ..)| layer.name()).collect();
        let more = if names.len() > 1 { format!(" (missing in all: {})", names.join(", ")) } else { String::new() };
        Error::new(format!("enforce layer {layer}"), format!("{why}{more}")).hint((*remedy).clone())
    }
}

impl Plan {
    /// What a run would do.
    ///
    /// # Errors
    /// A required layer that this host lacks.
    pub fn new(request: &Request, policy: &Policy, agent: &AgentSpec, host: &Host) -> Result<Plan, Box<Refusal>> {
        let network = broker::network(request, policy, agent);
        let decided = layers::decide(layers::Given { request, policy, agent, host, network });
        if decided.iter().any(|planned| matches!(planned.decision, Decision::Refuse { .. })) {
            return Err(Box::new(Refusal { layers: decided }));
        }
        let on = crate::plan::on::On::new(&decided, host);
        let left_out = left_out(host, &on);
        let identity = identity(request, &on);
        let landlock = rules::landlock(policy, request, host, &on, network);
        let broker = broker::of(request, policy, agent, host, &on, network);
        let settings = agent.settings.as_ref().map(|settings| {
            let url = environ::base_url(request, agent, broker.as_ref()).unwrap_or_default();
            let model = broker.as_ref().and_then(|broker| broker.model.as_ref());
            let websocket = model.is_some_and(|model| model.websocket);
            settings.render(policy, &host.servers, &left_out, websocket).with_base_url(url)
        });
        let limits = limits(policy, host, &on, identity);
        let disk = counts::Disk::new(&on, &request.workspace);
        Ok(Plan {
            disk,
            uncounted: counts::uncounted(policy, disk, host, &on, network, identity, &limits),
            classes: classes(policy, agent, host, &on, network, landlock.as_ref(), identity),
            namespaces: on.namespaces(),
            mapped_outside: on.namespaces().user && (identity != Identity::Caller || host.has(capability::SETGID)),
            root: on.has(Layer::Root).then(|| root(policy, host, &on)),
            identity,
            groups: match identity {
                Identity::Caller => layers::kept_groups(host).to_vec(),
                Identity::PerRun(_) | Identity::Owner => Vec::new(),
            },
            landlock,
            filter: rules::filter(policy, request, host, &on, network),
            limits,
            cgroup: if on.has(Layer::Cgroup) { host.cgroup.get().ok().cloned() } else { None },
            network,
            credential: credential(request, agent, host),
            login: match &request.credential {
                Some(SecretSource::Login(path)) => Some(path.clone()),
                _ => None,
            },
            private_descriptors: host.private_descriptors,
            home: pairs(&agent.home),
            home_terminal: pairs(&agent.home_terminal),
            environment: environ::variables(request, agent, host, &on, broker.as_ref()),
            broker,
            arguments: environ::arguments(request, agent, host, settings.as_ref()),
            shim: environ::shim(agent, host, settings.as_ref()),
            hidden: agent.hide.clone(),
            resume: if request.resume { agent.resume.clone() } else { Vec::new() },
            program: host.programs.agent.path.clone(),
            check: settings.is_some().then(|| agent.check.clone()),
            settings,
            apart: apart::apart(request, host, &on),
            wait: request.wait.map(|wait| wait.0),
            timeout: request.timeout.unwrap_or(policy.limits.time).0,
            grace: request.grace.unwrap_or(policy.limits.grace).0,
            layers: decided,
        })
    }

    /// Whether a layer is in force.
    pub fn enforces(&self, layer: Layer) -> bool {
        self.layers.iter().any(|planned| planned.layer == layer && planned.decision.enforced())
    }

    /// The agent has a UID that is lent again, and reaches directories that every UID may write to: what it leaves there is
    /// the next one's.
    pub fn shares_places(&self) -> bool {
        matches!(self.identity, Identity::PerRun(_)) && self.root.is_none() && !self.enforces(Layer::LandlockFs)
    }

    /// Layers that are missing though the policy prefers them, with reason and remedy.
    pub fn degraded(&self) -> impl Iterator<Item = (Layer, &str, &str)> {
        self.layers.iter().filter_map(|planned| match &planned.decision {
            Decision::Degrade { why, remedy } => Some((planned.layer, why.as_str(), remedy.as_str())),
            _ => None,
        })
    }
}

fn pairs(map: &std::collections::BTreeMap<HomePath, String>) -> Vec<(String, String)> {
    map.iter().map(|(name, text)| (name.as_str().to_owned(), text.clone())).collect()
}

fn identity(request: &Request, on: &crate::plan::on::On) -> Identity {
    if !on.has(Layer::Uid) {
        return Identity::Caller;
    }
    match request.workspace {
        Workspace::Fresh => Identity::PerRun(request.uid_range.unwrap_or(on.uid_range)),
        Workspace::User | Workspace::Directory(_) => Identity::Owner,
    }
}

fn limits(policy: &Policy, host: &Host, on: &crate::plan::on::On, identity: Identity) -> Limits {
    let limits = &policy.limits;
    let own = matches!(identity, Identity::PerRun(_)) || on.via_user_namespace;
    let group = if on.has(Layer::Cgroup) { host.cgroup.get().ok() } else { None };
    let buffers = Bytes((limits.memory.0 / 16).max(16 << 20));
    Limits {
        processes: own.then_some(limits.processes),
        open_files: limits.open_files,
        file_size: limits.file_size,
        data: (!counts::counts_memory(group)).then_some(limits.memory),
        memory: limits.memory,
        cell_processes: limits.processes,
        cpu_percent: limits.cpu_percent,
        disk: limits.disk,
        files: limits.files,
        swap: group.is_some() && host.counts.swap,
        socket_buffers: matches!(group, Some(Cgroups::V1 { .. })).then_some(buffers).filter(|_| host.counts.sockets),
        oom_score_adj: host.oom_order.get().is_ok().then_some(OOM_SCORE_ADJ),
    }
}

fn credential(request: &Request, agent: &AgentSpec, host: &Host) -> Credential {
    match (&request.credential, agent.credential.way.first().map(|way| &way.hand)) {
        (None, _) => Credential::None,
        (Some(_), Some(Hand::File(file))) => Credential::Own(file.path.clone()),
        (Some(_), Some(Hand::Variable(_))) => Credential::Variable,
        // A pipe is empty after the first agent; a file serves every one that the command starts.
        (Some(_), _) if host.private_descriptors && host.programs.wrapped.is_none() => Credential::Pipe,
        (Some(_), _) => Credential::File,
    }
}
