//! A request with everything that it names found: policy, agent, programs, servers and host.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::broker::trust;
use crate::fs::trusted::Found;
use crate::host::Host;
use crate::host::program::Program;
use crate::plan::{self, Plan, Refusal, egress, environ, layers};
use crate::policy::Policy;
use crate::policy::agents::endpoint::Endpoint;
use crate::policy::agents::mcp::Servers;
use crate::policy::agents::spec::{AgentSpec, Settings};
use crate::policy::agents::way::Hand;
use crate::policy::library::Library;
use crate::request::{From, Level, Request, Setting};
use crate::secret::SecretSource;
use crate::types::error::{Error, Result};
use crate::types::hosts::HostRule;
use crate::types::network::NetworkMode;

/// All that a plan is made of.
#[derive(Debug)]
pub struct Job {
    /// What was asked for.
    pub request: Request,
    /// The policy.
    pub level: Found<Policy>,
    /// The agent.
    pub agent: Found<AgentSpec>,
    /// MCP servers.
    pub servers: Servers,
    /// The host.
    pub host: Host,
    /// How long it took to look at it.
    pub probed: Duration,
}

impl Job {
    /// Finds everything.
    ///
    /// # Errors
    /// Something that was named is not there, or must not be used.
    pub fn new(mut request: Request) -> Result<Job> {
        let library = Library::new(request.policy_dir.as_deref());
        let level = match &request.level {
            Level::Named(name) => library.level(name)?,
            Level::File(path) => crate::fs::trusted::load(path)?,
        };
        let mut agent = match &request.agent {
            Some(name) => library.agent(name)?,
            None => library.agent_for(&Program::name(&request.command[0]).to_string_lossy())?,
        };
        if let Some(name) = request.endpoint.clone()
            && let Some(there) = endpoint(&mut request, &name, &agent)?
        {
            agent.value = agent.value.at(there);
        }
        if let Some(SecretSource::Login(path)) = &request.credential {
            agent.value = log_in(path, agent.value)?;
        }
        check(&mut request, &agent)?;
        let before = Instant::now();
        let mut host = Host::probe(&layers::wanted(&request, &level.value));
        let probed = before.elapsed();
        check_files(&level.value, &host)?;
        let search_path = std::env::var_os("PATH").unwrap_or_else(|| environ::PATH.into());
        host.programs.agent = find_agent(&request.command[0], &search_path, &agent.value)?;
        if !agent.value.is(&Program::name(&request.command[0]).to_string_lossy()) {
            match agent.value.settings {
                Some(_) => wrap(&agent, &mut host, &search_path)?,
                None => host.programs.servers.extend(shown(&agent.value, &search_path)),
            }
        }
        let servers = request.mcp_config.as_deref().map(Servers::read).transpose()?.unwrap_or_default();
        servers.find(&mut host, &search_path)?;
        if level.value.kernel.execute.list().is_some() {
            host.agent_programs = executed(&agent.value, &level.value, &host, &search_path);
        }
        check_authorities(&mut request, &level.value, &agent.value)?;
        check_hosts(&mut request, &level.value)?;
        check_injected(&mut request, &level.value, &agent.value)?;
        check_variable(&request, &level.value, &agent.value, &host)?;
        settle(&mut request, &level.value, &agent.name, &host);
        Ok(Job { request, level, agent, servers, host, probed })
    }

    /// The plan on the host as it is known by now.
    ///
    /// # Errors
    /// A required layer that this host lacks.
    pub fn plan(&self) -> Result<Plan, Box<Refusal>> {
        Plan::new(&self.request, &self.level.value, &self.agent.value, &self.host)
    }
}

/// The API that the caller names, where this agent has it.
fn endpoint(request: &mut Request, name: &str, agent: &Found<AgentSpec>) -> Result<Option<Endpoint>> {
    if matches!(request.credential, Some(SecretSource::Login(_))) {
        return Err(Error::new(format!("use --endpoint {name}"), "a login's token is for the agent's own API")
            .hint("name a credential of that API, as with --credential-file"));
    }
    let known: Vec<&str> = agent.value.endpoint.keys().map(String::as_str).collect();
    match agent.value.endpoint.get(name) {
        Some(endpoint) => Ok(Some(endpoint.clone())),
        None if known.is_empty() && drop_default(request, "endpoint") => Ok(None),
        None => Err(Error::new(
            format!("use --endpoint {}", name.escape_debug()),
            format!("the file of {} names no such API", agent.value.title),
        )
        .hint(match known.is_empty() {
            true => "leave it out".to_owned(),
            false => format!("known: {}", known.join(", ")),
        })),
    }
}

/// The credential will be a token out of the file of the agent's own login.
fn log_in(path: &Path, agent: AgentSpec) -> Result<AgentSpec> {
    let title = agent.title.clone();
    agent.logged_in().ok_or_else(|| {
        Error::new(
            format!("use login file {}", path.display()),
            format!("the file of {title} does not say what one of its own login looks like"),
        )
        .hint("name a token with --credential-file, or the agent with --agent")
    })
}

/// The command is not the agent but starts it, perhaps several times: it finds a shim under the agent's name.
fn wrap(agent: &Found<AgentSpec>, host: &mut Host, search_path: &OsStr) -> Result<()> {
    // Without a name every command is the agent.
    let Some(name) = agent.value.commands.first() else { return Ok(()) };
    host.programs.wrapped = Some(find_agent(name.as_ref(), search_path, &agent.value)?);
    host.programs.servers.push(Program::find("sh".as_ref(), search_path)?);
    Ok(())
}

/// The same for an agent without settings: there is nothing to put before its arguments, so the command finds the program
/// itself, where there is one.
fn shown(agent: &AgentSpec, search_path: &OsStr) -> Option<Program> {
    let mut program = find_agent(agent.commands.first()?.as_ref(), search_path, agent).ok()?;
    let by_name = program.links.first().map_or(&program.path, |(link, _)| link);
    program.search.extend(by_name.parent().map(Path::to_owned));
    Some(program)
}

/// What nobody named, for `explain`.
fn settle(request: &mut Request, policy: &Policy, agent: &str, host: &Host) {
    let defaults = [
        ("agent", agent.to_owned()),
        ("network", policy.network.mode.name().to_owned()),
        ("timeout", policy.limits.time.to_string()),
        ("grace", policy.limits.grace.to_string()),
    ];
    for (name, value) in defaults {
        if !request.sources.iter().any(|setting| setting.name == name) {
            request.sources.push(Setting { name, value, from: From::Default });
        }
    }
    if let (None, true, Ok(()), Ok(ranges)) =
        (request.uid_range, layers::lends(request), host.uids.get(), host.ranges.get())
    {
        let from = if ranges.given.is_some() { From::Subuid } else { From::Default };
        let value = crate::plan::on::default_range(host).to_string();
        request.sources.push(Setting { name: "uid-range", value, from });
    }
}

/// A default of the operator's or the environment's that this agent has no use for is none of this run's.
fn drop_default(request: &mut Request, name: &str) -> bool {
    let named = request.sources.iter().any(|setting| setting.name == name && setting.from == From::Flag);
    if !named {
        request.sources.retain(|setting| setting.name != name);
    }
    !named
}

fn check(request: &mut Request, agent: &Found<AgentSpec>) -> Result<()> {
    if let Some(argument) = request.command.iter().find(|argument| argument.as_bytes().contains(&0)) {
        return Err(
            Error::new(format!("pass {:?}", argument.to_string_lossy()), "it contains a NUL byte").hint("leave it out")
        );
    }
    environ::check(&request.setenv, &agent.value)?;
    if agent.value.is(&Program::name(&request.command[0]).to_string_lossy()) {
        environ::check_arguments(&request.command, &agent.value)?;
    }
    if agent.value.credential.required && request.credential.is_none() {
        return Err(Error::new(
            format!("run {} without a credential", agent.value.title),
            "it can do nothing without one",
        )
        .hint(
            "name it with --credential-file, --credential-fd, --credential-env, --credential-stdin or --login-file",
        ));
    }
    if !agent.value.takes_servers() && drop_default(request, "mcp-config") {
        request.mcp_config = None;
    }
    if !agent.value.takes_base_url() && drop_default(request, "upstream") {
        request.upstream = None;
    }
    if request.mcp_config.is_some() && !agent.value.takes_servers() {
        return Err(Error::new("use --mcp-config", format!("{} takes no file of MCP servers", agent.value.title))
            .hint("leave it out"));
    }
    if request.upstream.is_some() && !agent.value.takes_base_url() {
        return Err(Error::new("use --upstream", format!("{} has no variable for a base URL", agent.value.title))
            .hint("leave it out"));
    }
    if request.resume && agent.value.resume.is_empty() {
        return Err(Error::new(
            "use --resume",
            format!("the file of {} names nothing to resume from", agent.value.title),
        )
        .hint("leave it out, or name the files with `resume` in the agent's file"));
    }
    let knows = request.upstream.is_some() || agent.value.environment.upstream.is_some();
    if agent.value.settings.as_ref().is_some_and(Settings::hold_base_url) && !knows {
        return Err(Error::new(
            format!("write the settings of {}", agent.value.title),
            "nothing says where its requests go",
        )
        .hint("name it with --upstream"));
    }
    Ok(())
}

/// What the policy shows is a file, a directory or a link. What is not there is none of this host's; a socket or a device
/// would lead out of the cell, read-only or not.
fn check_files(policy: &Policy, host: &Host) -> Result<()> {
    let named = policy.files.programs.iter().chain(&policy.files.config).map(|path| path.as_path());
    let missing = named.filter(|path| !host.files.iter().any(|shown| shown.path == **path));
    match missing.filter(|_| !host.files.is_empty()).find(|path| std::fs::symlink_metadata(path).is_ok()) {
        None => Ok(()),
        Some(path) => {
            Err(Error::new(format!("show {} in a cell", path.display()), "it is a socket, a device or a fifo")
                .hint("leave it out of `files` in the policy"))
        }
    }
}

/// The caller's own authorities are there, and mean something.
fn check_authorities(request: &mut Request, policy: &Policy, agent: &AgentSpec) -> Result<()> {
    let brokered = plan::broker::asked(request, policy) == NetworkMode::Broker;
    let Some(path) = &request.ca else { return Ok(()) };
    if brokered && (plan::broker::has_model(request, agent) || !request.inject.is_empty()) {
        return trust::read(path).map(drop);
    }
    if drop_default(request, "ca") {
        return Ok(());
    }
    Err(Error::new("use --ca", "no credential is brokered, and the agent's connections are its own")
        .hint("leave it out, or use --network broker with a credential"))
}

/// A broker adds the tokens, to hosts that the policy has or lets the caller add, and shows its certificate to an upstream.
fn check_injected(request: &mut Request, policy: &Policy, agent: &AgentSpec) -> Result<()> {
    let brokered = plan::broker::asked(request, policy) == NetworkMode::Broker;
    if let (Some(one), false) = (request.inject.first(), brokered) {
        return Err(Error::new(
            format!("use --inject {}", one.shown()),
            "no broker is asked for, and only that adds it",
        )
        .hint("leave it out, or use --network broker"));
    }
    let listed = egress::of(request, policy);
    let unlisted = request.inject.iter().find(|one| listed.find(false, &one.rule.name, one.rule.port).is_none());
    if let Some(one) = unlisted {
        let why = egress::addable(policy, &one.rule).err().unwrap_or("the policy has this host at another port");
        return Err(Error::new(format!("use --inject {}", one.shown()), why)
            .hint("add the host to `network.allow` of the policy, or use another policy"));
    }
    let shows = brokered && plan::broker::has_model(request, agent);
    if request.client_cert.is_some() && !shows && !drop_default(request, "client-cert") {
        return Err(Error::new("use --client-cert", "no upstream is brokered")
            .hint("leave it out, or use --network broker with a credential"));
    }
    if !shows {
        request.client_cert = None;
    }
    Ok(())
}

/// The policy lets the caller add the hosts that he names. What is not named for this run is left out, which reaches less.
fn check_hosts(request: &mut Request, policy: &Policy) -> Result<()> {
    let brokered = plan::broker::asked(request, policy) == NetworkMode::Broker;
    let refused = |rule: &HostRule| match egress::addable(policy, rule) {
        _ if !brokered => Some("no broker is asked for, and only that has a list of hosts"),
        refused => refused.err(),
    };
    let flag = request.allow.iter().filter(|(_, from)| *from == From::Flag);
    if let Some((rule, why)) = flag.filter_map(|(rule, _)| Some((rule, refused(rule)?))).next() {
        let hint =
            if brokered { "leave it out, or use another policy" } else { "leave it out, or use --network broker" };
        return Err(Error::new(format!("use --allow {rule}"), why).hint(hint));
    }
    let dropped: Vec<String> =
        request.allow.iter().filter(|(rule, _)| refused(rule).is_some()).map(|(rule, _)| rule.to_string()).collect();
    request.allow.retain(|(rule, _)| !dropped.contains(&rule.to_string()));
    request.sources.retain(|setting| setting.name != "allow" || !dropped.contains(&setting.value));
    Ok(())
}

/// An environment is handed on to every program that the agent starts, and where /proc asks nobody who he is it is
/// everybody's. A broker's phantom may be there: it is good in this cell only.
fn check_variable(request: &Request, policy: &Policy, agent: &AgentSpec, host: &Host) -> Result<()> {
    let brokered = plan::broker::asked(request, policy) == NetworkMode::Broker;
    let Some(way) = agent.credential.way.first() else { return Ok(()) };
    let Hand::Variable(name) = &way.hand else { return Ok(()) };
    if brokered || request.credential.is_none() {
        return Ok(());
    }
    let brokerable = way.header.is_some() && agent.takes_base_url();
    let refused = |why: &str, hint: &str| {
        Err(Error::new(format!("hand {} its credential in variable {name}", agent.title), why).hint(hint))
    };
    if !policy.credential.environment {
        return refused(
            "every program that it starts would have it, and the policy does not allow that",
            match brokerable {
                true => {
                    "use --network broker, where it holds a phantom, or a policy with `environment = true` in [credential]"
                }
                false => "use a policy with `environment = true` in [credential]",
            },
        );
    }
    if !host.private_descriptors {
        return refused(
            "on this host every process can read the environment of any other",
            match brokerable {
                true => "use --network broker, where it holds a phantom",
                false => "use a host whose /proc asks who reads it",
            },
        );
    }
    Ok(())
}

/// The command; where it is the script of the agent's npm package, the program that the script would start.
fn find_agent(command: &OsStr, search_path: &OsStr, agent: &AgentSpec) -> Result<Program> {
    let found = Program::find(command, search_path)?;
    if !agent.is(&Program::name(command).to_string_lossy()) {
        return Ok(found);
    }
    let package = found.package().unwrap_or_default();
    let native = agent.native.iter().map(|name| package.join(name.as_str())).find(|path| path.is_file());
    native.map_or(Ok(found), |path| Program::find(path.as_os_str(), search_path))
}

/// What the agent itself and the policy execute, with their loaders; what is not there is left out.
fn executed(agent: &AgentSpec, policy: &Policy, host: &Host, search_path: &OsStr) -> Vec<PathBuf> {
    let listed = policy.kernel.execute.list().unwrap_or_default().iter().chain(&agent.execute).map(PathBuf::from);
    let own = host.programs.wrapped.as_ref().unwrap_or(&host.programs.agent);
    let beside = agent.beside.iter().map(|name| own.path.with_file_name(name));
    let found = listed.chain(beside).filter_map(|name| Program::find(name.as_os_str(), search_path).ok());
    found.flat_map(|program| program.executed).collect()
}
