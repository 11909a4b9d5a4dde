//! What the caller asked for, with every default filled in: flag over variable over /etc/oubliette/config.toml.
#![forbid(unsafe_code)]

pub mod args;
pub mod injection;
mod merge;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::ArgMatches;
use serde::Serialize;

use crate::request::args::RunArgs;
use crate::secret::SecretSource;
use crate::types::error::{Error, Result};
use crate::types::hosts::HostRule;
use crate::types::layer::Require;
use crate::types::layout::ETC;
use crate::types::network::NetworkMode;
use crate::types::units::Time;
use crate::types::user::UserId;
use injection::Injection;
use merge::{Merge, parsed};

pub use crate::types::values::{UidRange, Upstream};
pub use merge::{Config, From, Setting};

/// One run, as asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Whose run it is.
    pub user: UserId,
    /// Where the credential is.
    pub credential: Option<SecretSource>,
    /// The level, or a policy file.
    pub level: Level,
    /// The agent's name, where the caller says it.
    pub agent: Option<String>,
    /// The working directory.
    pub workspace: Workspace,
    /// Keep what the agent resumes from, and put it back.
    pub resume: bool,
    /// What fills it.
    pub copy_in: Option<PathBuf>,
    /// What of it cannot be read is passed over.
    pub copy_in_skip: bool,
    /// Where it goes afterwards.
    pub export: Option<Export>,
    /// Where a patch of the changes goes.
    pub patch: Option<PathBuf>,
    /// The network, where the caller says it.
    pub network: Option<NetworkMode>,
    /// Hosts beside those of the policy, and who named each.
    pub allow: Vec<(HostRule, From)>,
    /// Tokens for hosts.
    pub inject: Vec<Injection>,
    /// Layers without which the run is refused.
    pub require: Vec<Require>,
    /// The deadline, where the caller says it.
    pub timeout: Option<Time>,
    /// Between TERM and KILL, where the caller says it.
    pub grace: Option<Time>,
    /// How long to wait for another cell, where only one may live.
    pub wait: Option<Time>,
    /// Beside other cells all the same.
    pub beside: bool,
    /// The file of MCP servers.
    pub mcp_config: Option<PathBuf>,
    /// The agent's API, where it is not the agent's own.
    pub endpoint: Option<String>,
    /// The base URL of the model API.
    pub upstream: Option<Upstream>,
    /// The authorities that the broker trusts instead of the host's.
    pub ca: Option<PathBuf>,
    /// The broker's own certificate and key for the upstream.
    pub client_cert: Option<PathBuf>,
    /// More variables for the agent.
    pub setenv: BTreeMap<OsString, OsString>,
    /// Where the report goes.
    pub report_fd: Option<RawFd>,
    /// Nothing on standard error but errors.
    pub quiet: bool,
    /// Where cells live, where the caller says it.
    pub state_dir: Option<PathBuf>,
    /// UIDs for runs, where the caller says it.
    pub uid_range: Option<UidRange>,
    /// A directory of policies.
    pub policy_dir: Option<PathBuf>,
    /// The command.
    pub command: Vec<OsString>,
    /// Where each value came from.
    pub sources: Vec<Setting>,
}

/// A level by name, or a policy file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// One of the library.
    Named(String),
    /// A file of the caller's.
    File(PathBuf),
}

/// The agent's working directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workspace {
    /// Empty, wiped.
    Fresh,
    /// One per user, kept.
    User,
    /// A directory of the caller's, kept.
    Directory(PathBuf),
}

/// Where the workspace goes after the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Export {
    /// A new directory.
    Directory(PathBuf),
    /// A tar archive.
    Tar(PathBuf),
    /// A tar archive on standard output; the agent's standard output then goes to standard error.
    Stdout,
}

impl Request {
    /// Fills in the defaults and checks every value for itself.
    ///
    /// # Errors
    /// A value that cannot be used, whatever the host.
    pub fn new(args: RunArgs, matches: &ArgMatches, config: Config) -> Result<Request> {
        let mut merge = Merge { matches, sources: Vec::new() };
        let credential = credential(&args)?;
        let level = level(&mut merge, args.level, args.policy, &config)?;
        let user = merge.pick("user", args.user, None).unwrap_or_else(|| "anonymous".into());
        merge.default("user", "anonymous");
        let workspace = merge.pick("workspace", args.workspace, None);
        merge.default("workspace", "fresh");
        let timeout = merge.pick("timeout", args.timeout, config.timeout);
        let grace = merge.pick("grace", args.grace, config.grace);
        let wait = merge.pick("wait", args.wait, config.wait);
        let upstream = merge.pick("upstream", args.upstream, config.upstream);
        let uid_range = merge.pick("uid-range", args.uid_range, config.uid_range);
        let require = requirements(args.require, &config.require, &mut merge.sources)?;
        let inject = injected(&args.inject, &mut merge.sources)?;
        let allow = allowed(args.allow, config.allow, &mut merge.sources)?;
        let request = Request {
            user: UserId::new(&user)?,
            credential,
            level,
            agent: merge.pick("agent", args.agent, config.agent),
            workspace: workspace.map_or(Ok(Workspace::Fresh), as_workspace)?,
            resume: args.resume,
            copy_in: args.copy_in,
            copy_in_skip: args.copy_in_skip,
            export: args.export.map(as_export),
            patch: args.patch,
            network: merge.pick("network", args.network, config.network),
            allow,
            require,
            timeout: timeout.as_deref().map(|text| merge.parsed("timeout", text)).transpose()?,
            grace: grace.as_deref().map(|text| merge.parsed("grace", text)).transpose()?,
            beside: args.beside,
            wait: wait.as_deref().map(|text| merge.parsed("wait", text)).transpose()?,
            endpoint: merge.pick("endpoint", args.endpoint, config.endpoint),
            mcp_config: merge.pick("mcp-config", args.mcp_config, config.mcp_config),
            upstream: upstream.as_deref().map(|text| merge.parsed("upstream", text)).transpose()?,
            ca: merge.pick("ca", args.ca, config.ca),
            inject,
            client_cert: merge.pick("client-cert", args.client_cert, config.client_cert),
            setenv: variables(args.setenv)?,
            report_fd: args.report_fd,
            quiet: args.quiet,
            state_dir: merge.pick("state-dir", args.state_dir, config.state_dir),
            uid_range: uid_range.as_deref().map(|text| merge.parsed("uid-range", text)).transpose()?,
            policy_dir: merge.pick("policy-dir", args.policy_dir, config.policy_dir),
            command: args.command,
            sources: merge.sources,
        };
        request.agree().map(|()| request)
    }

    /// Values that only make sense together.
    fn agree(&self) -> Result<()> {
        if self.command.is_empty() {
            return Err(
                Error::new("run nothing", "no command was given").hint("put it after `--`, as in `-- claude -p hi`")
            );
        }
        if self.copy_in.is_some() && self.workspace != Workspace::Fresh {
            return Err(Error::new("use --copy-in", "the workspace is not a fresh one")
                .hint("leave --workspace out, or put the files into that directory yourself"));
        }
        if self.resume && self.workspace != Workspace::User {
            return Err(Error::new("use --resume", "the workspace is not one that its user keeps")
                .hint("add --workspace user: the conversation is kept as long as that"));
        }
        let takes_stdin = self.credential == Some(SecretSource::Stdin) || self.credential == Some(SecretSource::Fd(0));
        if self.report_fd == Some(0) || (takes_stdin && self.report_fd.is_some_and(|fd| fd <= 0)) {
            return Err(Error::new("use --report-fd 0", "0 is standard input").hint("name 2, or a higher descriptor"));
        }
        match (&self.credential, self.report_fd) {
            (Some(SecretSource::Fd(credential)), Some(report)) if *credential == report => {
                Err(Error::new(format!("use descriptor {report}"), "both --credential-fd and --report-fd name it")
                    .hint("open two descriptors"))
            }
            _ => Ok(()),
        }
    }
}

fn credential(args: &RunArgs) -> Result<Option<SecretSource>> {
    let variable = args.credential_env.as_ref().map(|name| {
        // Not repeated: whoever mistakes the option gives the credential itself.
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        name.to_str().filter(|name| !name.is_empty() && name.chars().all(plain)).map(|name| name.to_owned()).ok_or_else(
            || {
                Error::new("use --credential-env", "it names no variable")
                    .hint("give the name alone, as in --credential-env TOKEN")
            },
        )
    });
    let ways = [
        args.credential_file.clone().map(SecretSource::File),
        args.credential_fd.map(SecretSource::Fd),
        variable.transpose()?.map(SecretSource::Variable),
        args.credential_stdin.then_some(SecretSource::Stdin),
        args.login_file.clone().map(SecretSource::Login),
    ];
    Ok(ways.into_iter().flatten().next())
}

/// `--level` and `--policy` are two names for one thing: the one nearer to the caller counts.
fn level(merge: &mut Merge<'_>, level: Option<String>, policy: Option<PathBuf>, config: &Config) -> Result<Level> {
    let level = merge.pick("level", level, config.level.clone());
    let policy = merge.pick("policy", policy, config.policy.clone());
    let nearness = |from: Option<From>| from.map_or(3, |from| from as u8);
    match (level, policy) {
        (None, None) => {
            merge.sources.push(Setting { name: "level", value: "balanced".into(), from: From::Default });
            Ok(Level::Named("balanced".into()))
        }
        (Some(name), None) => Ok(Level::Named(name)),
        (None, Some(file)) => Ok(Level::File(file)),
        (Some(name), Some(file)) => {
            let (by_name, by_file) = (nearness(merge.from("level")), nearness(merge.from("policy")));
            match by_name.cmp(&by_file) {
                std::cmp::Ordering::Less => {
                    merge.sources.retain(|setting| setting.name != "policy");
                    Ok(Level::Named(name))
                }
                std::cmp::Ordering::Greater => {
                    merge.sources.retain(|setting| setting.name != "level");
                    Ok(Level::File(file))
                }
                std::cmp::Ordering::Equal => {
                    Err(Error::new("use both --level and --policy", "each names a policy")
                        .hint("leave one of them out"))
                }
            }
        }
    }
}

fn as_workspace(value: PathBuf) -> Result<Workspace> {
    match value.as_os_str().as_bytes() {
        b"fresh" => Ok(Workspace::Fresh),
        b"user" => Ok(Workspace::User),
        b"" => Err(Error::new("use --workspace", "it is empty").hint("say fresh, user, or name a directory")),
        _ => std::path::absolute(&value)
            .map(Workspace::Directory)
            .map_err(|error| Error::new(format!("use workspace {}", value.display()), error)),
    }
}

fn as_export(value: PathBuf) -> Export {
    match value.as_os_str().as_bytes() {
        b"-" => Export::Stdout,
        name if name.ends_with(b".tar") => Export::Tar(value),
        _ => Export::Directory(value),
    }
}

/// Layers to insist on, separated by commas: for images and units that start no command line of their own.
const REQUIRE: &str = "OUBLIETTE_REQUIRE";

/// What the flags, the variable and the file insist on adds up: none of them takes back what another asks for.
fn requirements(flags: Vec<Require>, file: &[String], sources: &mut Vec<Setting>) -> Result<Vec<Require>> {
    let named = |from: From, names: Vec<String>, object: String| {
        let parse = move |name: String| {
            let require = crate::types::layer::parse_require(&name);
            require.map(|require| (require, from)).map_err(|error| Error::new(object.clone(), error).hint("correct it"))
        };
        names.into_iter().map(parse).collect::<Result<Vec<_>>>()
    };
    let mut all: Vec<(Require, From)> = flags.into_iter().map(|require| (require, From::Flag)).collect();
    all.extend(named(From::Variable, words_of(REQUIRE), format!("use {REQUIRE}"))?);
    all.extend(named(From::File, file.to_vec(), format!("use `require` of {ETC}/config.toml"))?);
    let setting =
        |(require, from): &(Require, From)| Setting { name: "require", value: require.name().to_owned(), from: *from };
    sources.extend(all.iter().map(setting));
    Ok(all.into_iter().map(|(require, _)| require).collect())
}

/// Tokens for hosts; the file of each is read when the run begins.
fn injected(texts: &[OsString], sources: &mut Vec<Setting>) -> Result<Vec<Injection>> {
    let all = Injection::all(texts).map_err(|why| {
        Error::new("use --inject", why).hint("as in --inject git.example=header:private-token:/run/secrets/git")
    })?;
    sources.extend(all.iter().map(|one| Setting { name: "inject", value: one.shown(), from: From::Flag }));
    Ok(all)
}

/// The words of a variable, between commas.
fn words_of(variable: &str) -> Vec<String> {
    let text = std::env::var_os(variable).unwrap_or_default().to_string_lossy().into_owned();
    text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Hosts from the flags, the variable and the file add up.
fn allowed(flags: Vec<String>, file: Vec<String>, sources: &mut Vec<Setting>) -> Result<Vec<(HostRule, From)>> {
    let named = [(From::Flag, flags), (From::Variable, words_of("OUBLIETTE_ALLOW")), (From::File, file)];
    let mut all: Vec<(HostRule, From)> = Vec::new();
    for (from, texts) in named {
        for text in texts {
            let rule: HostRule = parsed("allow", &text, from)?;
            if all.iter().all(|(known, _)| *known != rule) {
                sources.push(Setting { name: "allow", value: rule.to_string(), from });
                all.push((rule, from));
            }
        }
    }
    Ok(all)
}

fn variables(pairs: Vec<OsString>) -> Result<BTreeMap<OsString, OsString>> {
    let split = |pair: OsString| -> Option<(OsString, OsString)> {
        let bytes = pair.as_bytes();
        let at = bytes.iter().position(|&b| b == b'=').filter(|&at| at > 0)?;
        Some((OsStr::from_bytes(&bytes[..at]).to_owned(), OsStr::from_bytes(&bytes[at + 1..]).to_owned()))
    };
    pairs
        .into_iter()
        .map(|pair| {
            // The value may be a secret of the caller's: only what comes before `=` could be named, and there is none.
            split(pair)
                .ok_or_else(|| Error::new("use --setenv", "it is not NAME=VALUE").hint("write --setenv NAME=VALUE"))
        })
        .collect()
}
