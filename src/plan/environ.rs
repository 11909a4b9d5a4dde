//! The agent's variables, by an allow-list, and its arguments.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::Serializer;

use super::broker::Broker;
use crate::host::Host;
use crate::plan::on::On;
use crate::plan::text::{Shim, Text};
use crate::policy::agents::rendered::Rendered;
use crate::policy::agents::spec::{AgentSpec, matches};
use crate::request::Request;
use crate::types::error::{Error, Result};
use crate::types::layer::Layer;

/// The search path of every cell, after the directories of the agent's own interpreters.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// By these the usual clients take a file of authorities instead of the host's: OpenSSL and what is built on it, Python's
/// requests and pip, curl, git, cargo, Deno, AWS.
pub const AUTHORITIES: [&str; 8] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "DENO_CERT",
    "AWS_CA_BUNDLE",
];

/// Names that `--setenv` refuses for every agent: they make the loader, the shell, an interpreter or git run code, or
/// are the cell's own.
const STEERING: [&str; 30] = [
    "BASH_ENV",
    "BASH_FUNC_*",
    "CDPATH",
    "ENV",
    "GCONV_PATH",
    "GIT_*",
    "GLIBC_TUNABLES",
    "HOME",
    "IFS",
    "JAVA_TOOL_OPTIONS",
    "LD_*",
    "LOCPATH",
    "LOGNAME",
    "MALLOC_*",
    "NLSPATH",
    "NODE_OPTIONS",
    "NODE_PATH",
    "OUBLIETTE_*",
    "PATH",
    "PERL5LIB",
    "PERL5OPT",
    "PS4",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "RUBYOPT",
    "SHELL",
    "SHELLOPTS",
    "TMPDIR",
    "USER",
];

/// Refuses variables that steer the loader, the agent's settings or its credential.
///
/// # Errors
/// The first such name.
pub fn check(setenv: &BTreeMap<OsString, OsString>, agent: &AgentSpec) -> Result<()> {
    for name in setenv.keys() {
        let text = name.to_string_lossy();
        let steers = STEERING.iter().any(|known| matches(known, &text)) || agent.steers(&text);
        if steers || text.chars().any(char::is_control) {
            return Err(Error::new(
                format!("use --setenv {}=…", text.escape_debug()),
                "it steers the loader, an interpreter, the agent's settings or its credential",
            )
            .hint("use a flag of oubliette for it, such as --upstream or --credential-file"));
        }
    }
    Ok(())
}

/// The agent's environment, by name.
pub fn variables(
    request: &Request,
    agent: &AgentSpec,
    host: &Host,
    on: &On,
    broker: Option<&Broker>,
) -> Vec<(OsString, Text)> {
    let mut all: BTreeMap<OsString, Text> = BTreeMap::new();
    for (name, value) in &host.inherited {
        all.insert(name.clone(), Text::plain(value));
    }
    let mut set = |name: &str, value: Text| all.insert(name.into(), value);
    set("PATH", search_path(host));
    set("HOME", Text::Template("{home}".into()));
    set("TMPDIR", Text::Template("{tmp}".into()));
    set("USER", Text::plain("agent"));
    set("LOGNAME", Text::plain("agent"));
    set("SHELL", Text::plain(&host.shell));
    if on.has(Layer::Root) {
        set("HOSTNAME", Text::plain("cell"));
    }
    for (name, value) in &agent.environment.set {
        set(name, Text::Template(value.clone()));
    }
    if let (Some(name), Some(url)) = (&agent.environment.base_url, told_url(request, broker)) {
        set(name, url);
    }
    broker.into_iter().for_each(|broker| proxy(broker, &mut set));
    if broker.is_some_and(|broker| !broker.injected.is_empty()) {
        AUTHORITIES.iter().for_each(|name| drop(set(name, Text::Template("{settings}/authorities.pem".into()))));
        // Beside those that Node.js has built in.
        set("NODE_EXTRA_CA_CERTS", Text::Template("{settings}/authority.pem".into()));
    }
    all.extend(request.setenv.iter().map(|(name, value)| (name.clone(), Text::Hidden(value.clone()))));
    all.into_iter().collect()
}

/// What leads clients to the broker for the listed hosts, and not for the cell's own loopback, where the base URL is.
/// HTTP_PROXY would send them there for hosts that it does not reach in plain HTTP.
fn proxy(broker: &Broker, set: &mut impl FnMut(&str, Text) -> Option<Text>) {
    let url = broker.url.replacen("://", "://cell:{pass}@", 1);
    let wanted = [
        (broker.egress.any_tunnel(), ["HTTPS_PROXY", "https_proxy"]),
        (broker.egress.any_plain(), ["HTTP_PROXY", "http_proxy"]),
    ];
    for (_, names) in wanted.into_iter().filter(|(wanted, _)| *wanted) {
        names.into_iter().for_each(|name| drop(set(name, Text::Pass(url.clone()))));
    }
    if !broker.egress.hosts.is_empty() {
        ["NO_PROXY", "no_proxy"].into_iter().for_each(|name| drop(set(name, Text::plain("127.0.0.1,localhost,::1"))));
    }
}

/// The URL that somebody has named: an agent with a variable for it knows its own. The broker's may name its port, which is
/// known late.
fn told_url(request: &Request, broker: Option<&Broker>) -> Option<Text> {
    let brokered = broker.filter(|broker| broker.model.is_some()).map(|broker| Text::Template(broker.url.clone()));
    brokered.or(request.upstream.as_ref().map(|upstream| Text::plain(&upstream.url)))
}

/// Where the agent sends its requests, for settings that must say it, which are a template.
pub fn base_url<'a>(request: &'a Request, agent: &'a AgentSpec, broker: Option<&'a Broker>) -> Option<&'a str> {
    let brokered = broker.filter(|broker| broker.model.is_some()).map(|broker| broker.url.as_str());
    let named = request.upstream.as_ref().or(agent.environment.upstream.as_ref());
    brokered.or(named.map(|upstream| upstream.url.as_str()))
}

fn search_path(host: &Host) -> Text {
    let mut directories: Vec<&Path> = Vec::new();
    for directory in host.programs.all().flat_map(|program| &program.search) {
        let standard = PATH.split(':').any(|known| Path::new(known) == directory);
        if !standard && !directories.contains(&directory.as_path()) && !directory.as_os_str().as_bytes().contains(&b':')
        {
            directories.push(directory);
        }
    }
    let mut path = OsString::new();
    for directory in directories {
        path.push(directory);
        path.push(":");
    }
    path.push(PATH);
    match (&host.programs.wrapped, path.to_str()) {
        (Some(_), Some(path)) => Text::Template(format!("{{settings}}/bin:{path}")),
        _ => Text::Plain(path),
    }
}

/// The command: the caller's own, with what makes the agent take its settings put first.
pub fn arguments(request: &Request, agent: &AgentSpec, host: &Host, settings: Option<&Rendered>) -> Vec<Text> {
    let mut command = request.command.iter().map(Text::plain);
    let mut all: Vec<Text> = command.next().into_iter().collect();
    if host.programs.wrapped.is_none() {
        all.extend(inserted(agent, host, settings));
    }
    all.extend(command);
    all
}

/// The same for an agent that the command starts.
pub fn shim(agent: &AgentSpec, host: &Host, settings: Option<&Rendered>) -> Option<Shim> {
    let program = host.programs.wrapped.as_ref()?;
    let name = agent.commands.first()?.clone();
    let (arguments, hidden) = (inserted(agent, host, settings), agent.hide.clone());
    Some(Shim { name, program: program.path.clone(), arguments, hidden })
}

fn inserted(agent: &AgentSpec, host: &Host, settings: Option<&Rendered>) -> Vec<Text> {
    let Some(settings) = settings else { return Vec::new() };
    let tools = settings.tools.as_deref().unwrap_or_default().join(",");
    let template = |text: &String| Text::Template(text.replace("{mode}", settings.mode).replace("{tools}", &tools));
    let wanted = [
        (settings.tools.is_some(), &agent.arguments.tools),
        (!host.servers.is_empty(), &agent.arguments.mcp),
        (true, &agent.arguments.insert),
    ];
    wanted.into_iter().filter(|(wanted, _)| *wanted).flat_map(|(_, texts)| texts).map(template).collect()
}

/// Refuses arguments of the caller's that could loosen the level.
///
/// # Errors
/// The first such argument before `--`.
pub fn check_arguments(command: &[OsString], agent: &AgentSpec) -> Result<()> {
    let first = command.get(1).map(|word| word.to_string_lossy()).unwrap_or_default();
    if !agent.arguments.first.is_empty()
        && !first.is_empty()
        && !agent.arguments.first.iter().any(|word| *word == first)
    {
        return Err(Error::new(
            format!("pass `{}` to {} first", first.escape_debug(), agent.title),
            "its level holds for some of its commands, and in the directory of the run",
        )
        .hint(format!("begin with one of: {}", agent.arguments.first.join(", "))));
    }
    for argument in command.iter().skip(1).take_while(|argument| argument.as_bytes() != b"--") {
        let text = argument.to_string_lossy();
        let name = text.split('=').next().unwrap_or_default();
        // The value of a short option may follow it in the same word.
        let short = |refused: &str| refused.len() == 2 && !refused.starts_with("--") && text.starts_with(refused);
        if agent.arguments.refuse.iter().any(|refused| refused == name || short(refused)) {
            return Err(Error::new(
                format!("pass {} to {}", name.escape_debug(), agent.title),
                "it could loosen the level",
            )
            .hint("leave it out: oubliette sets it from the level; --mcp-config is an option of oubliette"));
        }
    }
    Ok(())
}

/// For JSON: a map from name to value.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(variables: &[(OsString, Text)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(variables.iter().map(|(name, value)| (name.to_string_lossy(), value.show())))
}
