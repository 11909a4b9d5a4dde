//! A plan for people.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::path::Path;

use crate::host::facts::Kind;
use crate::host::groups;
use crate::plan::broker::{self, Broker, Injected, Model};
use crate::plan::egress::Listed;
use crate::plan::twins::Denied;
use crate::plan::{Apart, Credential, Identity, Limits, Plan, Refusal};
use crate::request::Setting;
use crate::run::job::Job;
use crate::types::layer::{Decision, Planned};
use crate::types::network::{Hold, NetworkMode};
use crate::types::paths::WorkName;

/// What would happen, layer by layer, and why.
pub fn text(job: &Job, plan: &Plan) -> String {
    let mut out = header(job);
    section(&mut out, "layers", &layers(&plan.layers));
    section(&mut out, "denied", &classes(&plan.classes));
    section(&mut out, "files", &files(plan));
    section(&mut out, "network", &network(job, plan));
    section(&mut out, "process", &process(plan));
    section(
        &mut out,
        "environment",
        &plan
            .environment
            .iter()
            .map(|(name, value)| format!("{}={}", name.to_string_lossy(), value.show()))
            .collect::<Vec<_>>(),
    );
    section(&mut out, "values", &settings(&job.request.sources));
    out
}

/// What a refused run lacks.
pub fn refusal(job: &Job, refusal: &Refusal) -> String {
    let mut out = header(job);
    section(&mut out, "layers", &layers(&refusal.layers));
    section(&mut out, "values", &settings(&job.request.sources));
    out
}

fn header(job: &Job) -> String {
    format!("{} at level {} ({})\n", job.agent.value.title, job.level.name, job.level.origin)
}

fn section(out: &mut String, title: &str, lines: &[String]) {
    let _ = write!(out, "\n{title}\n");
    for line in lines {
        let _ = writeln!(out, "  {}", line.trim_end());
    }
}

fn layers(layers: &[Planned]) -> Vec<String> {
    layers
        .iter()
        .map(|Planned { layer, decision }| match decision {
            Decision::Enforce { how } => format!("{layer:<15} enforce  {how}"),
            Decision::Degrade { why, remedy } => format!("{layer:<15} degrade  {why}; remedy: {remedy}"),
            Decision::Refuse { why, remedy } => format!("{layer:<15} refuse   {why}; remedy: {remedy}"),
            Decision::Off { why } => format!("{layer:<15} off      {why}"),
        })
        .collect()
}

/// For each denied class: settings, kernel, both or neither.
fn classes(classes: &[Denied]) -> Vec<String> {
    let line = |denied: &Denied| {
        let by = denied.by();
        let kernel = denied.kernel.unwrap_or_default();
        let inside =
            if denied.inside { "(not by the settings: the cell itself is there; see --state-dir)" } else { "" };
        format!("{:<15} {by:<8} {kernel} {inside}", denied.class).trim_end().to_owned()
    };
    classes.iter().map(line).collect()
}

impl Denied {
    /// `settings`, `kernel`, `both` or `neither`.
    pub fn by(&self) -> &'static str {
        match (self.settings, self.kernel.is_some()) {
            (true, true) => "both",
            (true, false) => "settings",
            (false, true) => "kernel",
            (false, false) => "neither",
        }
    }
}

fn files(plan: &Plan) -> Vec<String> {
    let hidden: Vec<&str> = plan.hidden.iter().map(WorkName::as_str).collect();
    let hidden = (!hidden.is_empty()).then(|| hidden.join(", "));
    let resume: Vec<String> = plan.resume.iter().map(|path| format!("~/{}", path.as_str())).collect();
    let resume = (!resume.is_empty())
        .then(|| format!("kept for the next run of this user and put back there: {}", resume.join(", ")));
    let Some(root) = &plan.root else {
        let own = "HOME, TMPDIR and a fresh workspace are directories of the cell, wiped afterwards".to_owned();
        let none = hidden.map(|names| format!("no run in or below a directory that has {names}: nothing hides them"));
        return [own].into_iter().chain(resume).chain(none).collect();
    };
    let mut lines =
        vec![format!("/home/agent, /tmp, /dev/shm and a fresh /work: one tmpfs of {}, gone with the run", root.disk)];
    let shown = root.shown.iter().map(|shown| match &shown.kind {
        Kind::Link(target) => format!("{} -> {}", shown.path.display(), target.display()),
        Kind::Directory | Kind::File => format!("{} read-only", shown.path.display()),
    });
    lines.extend(resume);
    lines.extend(shown);
    lines.extend(hidden.map(|names| format!("/work without {names}: they look empty and cannot be changed")));
    if !root.masked.is_empty() {
        let names: Vec<&str> = root.masked.iter().map(|(name, _)| name.as_str()).collect();
        lines.push(format!("/proc of the cell's own, read-only, without {}", names.join(", ")));
    }
    lines
}

fn network(job: &Job, plan: &Plan) -> Vec<String> {
    let mut lines = vec![match plan.network {
        NetworkMode::Host => "the host's".to_owned(),
        NetworkMode::Broker => match plan.broker.as_ref().map(|broker| broker.hold) {
            None | Some(Hold::Namespace) => "none but a loopback of the cell's own, and on it the broker".into(),
            Some(Hold::Port) => "the host's, and of that the broker's port alone".into(),
            Some(Hold::Nothing) => "the host's, and on its loopback the broker".into(),
        },
        NetworkMode::None if plan.namespaces.net => "none but a loopback of the cell's own".into(),
        NetworkMode::None if plan.filter.is_some_and(|filter| !filter.inet) => {
            "none: no internet socket can be made".into()
        }
        NetworkMode::None => "the host's, though none was asked for: neither net nor seccomp is in force".into(),
    }];
    let asked = broker::asked(&job.request, &job.level.value);
    if (asked, plan.network) == (NetworkMode::Broker, NetworkMode::None) {
        lines.push("no broker: there is no credential for it to hold, and no host on the list".into());
    }
    lines.extend(plan.broker.iter().flat_map(brokered));
    if let Some(landlock) = &plan.landlock {
        let ports = |ports: &[u16]| {
            if ports.is_empty() {
                "none".to_owned()
            } else {
                ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
            }
        };
        let connect = |list: &Vec<u16>| if landlock.broker { "the broker's".to_owned() } else { ports(list) };
        lines.extend(landlock.connect.as_ref().map(|list| format!("TCP ports to connect to: {}", connect(list))));
        lines.extend(landlock.bind.as_ref().map(|list| format!("TCP ports to bind: {}", ports(list))));
    }
    let udp = plan.filter.is_none_or(|filter| filter.udp);
    if !plan.namespaces.net && udp {
        lines.push("UDP is open: name resolution needs it".into());
    }
    lines
}

/// Where requests go, what becomes of the phantom on the way, and what else is reached.
fn brokered(broker: &Broker) -> Vec<String> {
    let holds = if broker.model.is_some() { " that holds the credential" } else { "" };
    let mut lines = vec![format!("broker    {}, a process of its own{holds}", broker.url)];
    lines.extend(broker.model.iter().flat_map(|one| model(one, broker.authorities.as_deref())));
    lines.extend(broker.egress.hosts.iter().map(listed));
    let token =
        |one: &Injected| format!("token     {}: the broker ends its TLS and adds {}", one.rule, one.header.get());
    lines.extend(broker.injected.iter().map(token));
    lines.push(if broker.egress.hosts.is_empty() {
        "hosts     no other one".to_owned()
    } else {
        let idle = crate::types::units::Time(broker.egress.idle_timeout);
        format!(
            "bounds    {} connections at once, {} in all, {idle} without a byte",
            broker.connections, broker.egress.bytes
        )
    });
    lines
}

fn model(model: &Model, authorities: Option<&Path>) -> Vec<String> {
    let vouched = match authorities.filter(|_| model.upstream.is_tls()) {
        Some(file) => format!("vouched for by {}", file.display()),
        None => "in the clear, on this machine's loopback".to_owned(),
    };
    let shown = model.client_cert.as_ref().map(|file| format!("shows     {} to it", file.display()));
    let headers = model.ways.iter().filter_map(|way| {
        let shown = way.shown()?;
        Some(if way.prefix.is_empty() { shown } else { format!("{shown} (where it begins with {})", way.prefix) })
    });
    let headers: Vec<String> = headers.collect();
    let upstream = format!("upstream  {}, {vouched}", model.upstream.url);
    let header = format!("header    {}: the phantom in it becomes the credential", headers.join(", else "));
    let sockets =
        model.websocket.then(|| "sockets   WebSockets to it, too; what the agent says in them passes unread".into());
    [upstream].into_iter().chain(shown).chain([header]).chain(sockets).collect()
}

/// A host of the list and who named it.
fn listed(listed: &Listed) -> String {
    let how = if listed.rule.plain { "" } else { ", by TLS" };
    let at = listed.address.map(|address| format!(" at {address}")).unwrap_or_default();
    format!("host      {}{at}{how} ({})", listed.rule, listed.from.name())
}

fn process(plan: &Plan) -> Vec<String> {
    let arguments: Vec<String> = plan.arguments.iter().map(crate::plan::Text::show).collect();
    let identity = match plan.identity {
        Identity::Caller if plan.groups.is_empty() => "the launcher's, without supplementary groups".to_owned(),
        Identity::Caller => format!("the launcher's, with its groups {}", groups::list(&plan.groups)),
        Identity::PerRun(range) => format!("one of {}-{} for this run alone", range.first, range.last),
        Identity::Owner => "the owner's of the workspace".into(),
    };
    let credential = match &plan.credential {
        Credential::None => "none".to_owned(),
        Credential::Pipe => "a pipe on descriptor 3, empty once read; in no file, argument or variable".into(),
        Credential::File if plan.shim.is_some() => {
            "a file of mode 0600 in HOME, for every agent that the command starts".into()
        }
        Credential::File => {
            "a file of mode 0600 in HOME, as descriptor 3: pipes of other processes can be opened here".into()
        }
        Credential::Own(path) => format!("~/{}, mode 0600: the agent looks for it there", path.as_str()),
        Credential::Variable => "a variable of its environment: the agent looks nowhere else".into(),
    };
    let phantom = if plan.broker.as_ref().is_some_and(|broker| broker.model.is_some()) {
        "with the broker; the agent holds a phantom: "
    } else {
        ""
    };
    let mut lines = vec![
        format!("program     {}", plan.program.display()),
        format!("arguments   {}", arguments.join(" ").escape_debug()),
        format!("UID         {identity}"),
        format!("credential  {phantom}{credential}"),
        format!("other cells {}", apart(plan)),
        format!("kill -9     {}", after_kill(plan)),
        format!(
            "deadline    {}, then {} of grace",
            crate::types::units::Time(plan.timeout),
            crate::types::units::Time(plan.grace)
        ),
        format!("limits      {}", limits(plan)),
        format!("disk        {} and {} files: {}", plan.limits.disk, plan.limits.files, plan.disk.text()),
        format!("priority    {}", priority(plan)),
    ];
    lines.extend(plan.uncounted.iter().map(|one| format!("uncounted   {}: {}", one.what, one.why)));
    if let Some(file) = &plan.login {
        let line =
            format!("login       of {} the token for requests alone; what renews it goes nowhere", file.display());
        lines.insert(4, line);
    }
    let own_proc = plan.namespaces.pid && plan.root.is_some();
    if !(plan.private_descriptors || own_proc) {
        lines.push(OPEN.into());
    }
    lines
}

/// What is between this cell and those beside it.
fn apart(plan: &Plan) -> String {
    match (plan.apart, plan.wait) {
        (Apart::InSpace, _) => "apart in space: any number at once".into(),
        (Apart::InTime, None) => "apart in time: one at a time, a second is refused (see --wait)".into(),
        (Apart::InTime, Some(wait)) => {
            format!("apart in time: one at a time, a second waits {}", crate::types::units::Time(wait))
        }
        (Apart::Neither, _) => "neither in space nor in time: each can do anything to another".into(),
    }
}

/// What ends the cell when the launcher is killed.
fn after_kill(plan: &Plan) -> &'static str {
    match (plan.namespaces.pid, &plan.root) {
        (true, Some(_)) => "of the launcher: the PID namespace ends every process, and the tmpfs goes with them",
        (true, None) => "of the launcher: the PID namespace ends every process; `oubliette sweep` wipes",
        (false, _) => "of the launcher: the keeper ends every process and wipes; of both: `oubliette sweep`",
    }
}

/// What no layer closes where /proc asks nobody who he is.
const OPEN: &str = "open here   environment, memory maps and descriptors of every process, whatever its UID";

/// What bounds the cell, and what only each process of it.
fn limits(plan: &Plan) -> String {
    let Limits { memory, cell_processes, processes, swap, socket_buffers, .. } = plan.limits;
    if plan.cgroup.is_some() {
        let swap = if swap { " without swap" } else { "" };
        let buffers = socket_buffers.map(|bytes| format!(", {bytes} of socket buffers")).unwrap_or_default();
        return format!("memory {memory}{swap}{buffers} and {cell_processes} processes for the cell");
    }
    let processes = processes
        .map_or_else(|| "any number of processes".to_owned(), |number| format!("{number} processes of its UID"));
    format!("memory {memory} for each process, {processes}")
}

/// Whatever the launcher was started with.
fn priority(plan: &Plan) -> String {
    let order = match plan.limits.oom_score_adj {
        Some(least) => format!("the first to be killed where the host's memory ends (oom_score_adj {least})"),
        None => "killed by its size alone where the host's memory ends".into(),
    };
    format!("at most normal for CPU and I/O; {order}")
}

fn settings(settings: &[Setting]) -> Vec<String> {
    settings
        .iter()
        .map(|setting| format!("{:<15} {} ({})", setting.name, setting.value.escape_debug(), setting.from.name()))
        .collect()
}
