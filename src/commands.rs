//! The subcommands: from parsed arguments to a status.
#![forbid(unsafe_code)]

pub mod explain;
pub mod listing;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, CommandFactory, FromArgMatches};

use crate::cell::state::State;
use crate::cell::sweep;
use crate::commands::listing::Listing;
use crate::doctor::attack::{Case, Upstream};
use crate::doctor::{self, Diagnosis};
use crate::policy::Policy;
use crate::policy::agents::spec::AgentSpec;
use crate::policy::library::Library;
use crate::request::args::{Cli, Command, DoctorArgs, ExplainArgs, KillArgs, PolicyAction, PsArgs, RunArgs, SweepArgs};
use crate::request::{Config, Request};
use crate::run::job::Job;
use crate::run::progress::{one_line, say};
use crate::types::error::{Error, Result};
use crate::types::exit::Exit;
use crate::types::network::NetworkMode;

/// Does what the command line says; prints one message where that fails.
pub fn main() -> ExitCode {
    // Every subcommand waits for children: runs, sweeps and the doctor alike.
    if let Err(errno) = crate::sys::process::keep_zombies() {
        return fail(&Error::new("wait for children", errno).hint("let the container's filter allow rt_sigaction(2)"));
    }
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return usage(&error),
    };
    let done = Cli::from_arg_matches(&matches).map_err(|error| error.to_string());
    let result = match done {
        // Programs of the attack suite: they are the agent of a cell, and their status is their own.
        Ok(Cli { command: Command::Victim(args) }) => return crate::attack::victim(&args.args),
        Ok(Cli { command: Command::Attack(args) }) => return crate::attack::attack(&args.args),
        Ok(Cli { command: Command::Posture }) => return crate::doctor::posture::print(),
        Ok(cli) => dispatch(cli.command, &matches),
        Err(error) => Err(Error::new("read the command line", error)),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(error) => fail(&error),
    }
}

fn fail(error: &Error) -> ExitCode {
    say(&error.to_string());
    let _ = writeln!(std::io::stderr().lock(), "hint: {}", one_line(error.remedy()));
    error.status().into()
}

/// A wrong option is a refusal (125), as in timeout(1) and env(1): 2 could be the agent's own status.
fn usage(error: &clap::Error) -> ExitCode {
    let asked_for_help = !error.use_stderr();
    if asked_for_help || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return if asked_for_help { ExitCode::SUCCESS } else { Exit::Refused.into() };
    }
    fail(&wrong_words(error))
}

/// The first paragraph of clap's message in the form of ours. What may be a secret of the caller's is left out of it:
/// the value of a credential option, and what comes after `=` in a word that stands where none belongs.
fn wrong_words(error: &clap::Error) -> Error {
    let text = error.render().to_string();
    let mut paragraphs =
        text.split("\n\n").map(|paragraph| paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" "));
    let mut cause = paragraphs.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => word.as_str(),
        _ => "",
    };
    let (word, value) = (context(ContextKind::InvalidArg), context(ContextKind::InvalidValue));
    if let (ErrorKind::UnknownArgument, Some((name, rest))) = (error.kind(), word.split_once('=')) {
        cause = cause.replace(&format!("{name}={rest}"), &format!("{name}=…"));
    }
    if word.starts_with("--credential") && !value.is_empty() {
        cause = cause.replace(value, "…");
    }
    let tip = paragraphs
        .find_map(|paragraph| Some(paragraph.trim().strip_prefix("tip: ")?.split(" tip: ").next()?.to_owned()));
    Error::new("read the command line", cause).hint(
        tip.unwrap_or_else(|| "see `oubliette --help`, or `oubliette run --help` for the options of a run".into()),
    )
}

fn dispatch(command: Command, matches: &ArgMatches) -> Result<Exit> {
    let sub = matches.subcommand().map_or(matches, |(_, sub)| sub);
    match command {
        Command::Run(args) => {
            let report_fd = args.report_fd;
            crate::run::run(report_fd, || Request::new(*args, sub, Config::read()?))
        }
        Command::Explain(args) => explain(*args, sub),
        Command::Doctor(args) => doctor(args),
        Command::Sweep(args) => sweep(&args),
        Command::Ps(args) => ps(&args),
        Command::Kill(KillArgs { cell, state_dir }) => {
            crate::run::need_proc()?;
            sweep::end(&open_state(state_dir.as_deref())?, &cell).map(|()| Exit::Agent(0))
        }
        Command::Policy(args) => policy(args.action),
        Command::Victim(_) | Command::Attack(_) | Command::Posture => Ok(Exit::Agent(0)),
    }
}

/// The directory of the flag or variable, else of the operator's file, else the usual one.
fn open_state(named: Option<&Path>) -> Result<State> {
    let config = Config::read()?.state_dir();
    State::open(named.or(config.as_deref()))
}

fn explain(args: ExplainArgs, matches: &ArgMatches) -> Result<Exit> {
    let mut job = Job::new(Request::new(args.run, matches, Config::read()?)?)?;
    crate::run::rehearse(&mut job)?;
    let planned = job.plan();
    if args.json {
        let (plan, refused) = match &planned {
            Ok(plan) => (Some(plan), None),
            Err(refusal) => (None, Some(&refusal.layers)),
        };
        print_json(&serde_json::json!({
            "agent": job.agent.name, "level": job.level.name, "policy": job.level.origin, "plan": plan, "refused": refused,
            "values": job.request.sources,
        }))?;
    } else {
        let text = match &planned {
            Ok(plan) => explain::text(&job, plan),
            Err(refusal) => explain::refusal(&job, refusal),
        };
        print(&text)?;
    }
    match planned {
        Ok(_) => Ok(Exit::Agent(0)),
        Err(refusal) => Err(refusal.error()),
    }
}

fn doctor(args: DoctorArgs) -> Result<Exit> {
    crate::run::need_proc()?;
    if args.attack {
        return besiege(&args);
    }
    let library = library()?;
    let requests = library.levels().into_iter().map(|level| {
        let network = library.level(&level)?.value.network.mode;
        // Nothing is sent anywhere; an upstream in the clear needs no authorities of the host's.
        let options =
            options("--level".as_ref(), level.as_ref(), network, "http://127.0.0.1:9", args.state_dir.as_deref());
        harmless(&options, network)
    });
    let requests = requests.collect::<Result<Vec<_>>>()?;
    let diagnosis = Diagnosis::new(requests)?;
    if args.json {
        print_json(&diagnosis)?;
    } else {
        print(&diagnosis.text())?;
    }
    Ok(Exit::Agent(diagnosis.status()))
}

/// `doctor --attack`: two cells for every level that is asked for.
fn besiege(args: &DoctorArgs) -> Result<Exit> {
    let cells: Vec<(&str, OsString)> = match (&args.policy, &args.level) {
        (Some(file), _) => vec![("--policy", file.into())],
        (None, Some(level)) => vec![("--level", level.into())],
        (None, None) => library()?.levels().into_iter().map(|level| ("--level", level.into())).collect(),
    };
    let library = library()?;
    let upstream = Upstream::open()?;
    let cases = cells.into_iter().map(|(name, value)| {
        let policy = match name {
            "--policy" => crate::fs::trusted::load::<Policy>(value.as_ref())?.value,
            _ => library.level(&value.to_string_lossy())?.value,
        };
        let network = args.network.unwrap_or(policy.network.mode);
        let options = options(name.as_ref(), &value, network, &upstream.url(), args.state_dir.as_deref());
        Ok(Case { request: harmless(&options, network)?, options: bounded(options) })
    });
    match doctor::attack::siege(&upstream, cases.collect::<Result<Vec<_>>>()?)? {
        Err(exit) => Ok(exit),
        Ok(siege) => {
            if args.json {
                print_json(&siege)?;
            } else {
                print(&siege.text())?;
            }
            Ok(Exit::Agent(siege.status()))
        }
    }
}

/// Whatever an attack does, its cell ends.
fn bounded(mut options: Vec<OsString>) -> Vec<OsString> {
    options.extend(["--timeout", "5m", "--grace", "1s"].map(Into::into));
    options
}

/// Options of `run` for a cell with any program and a workspace of its own. A broker gets this upstream.
fn options(
    name: &OsStr,
    value: &OsStr,
    network: NetworkMode,
    upstream: &str,
    state_dir: Option<&Path>,
) -> Vec<OsString> {
    let mut words: Vec<OsString> = ["--workspace", "fresh", "--network", network.name()].map(Into::into).into();
    words.extend([name.into(), value.into()]);
    words.extend(["--agent", "doctor"].map(Into::into));
    if network == NetworkMode::Broker {
        words.extend(["--upstream", upstream].map(Into::into));
    }
    if let Some(path) = state_dir {
        words.extend(["--state-dir".into(), path.into()]);
    }
    words
}

/// The request of a run that starts nothing, with the defaults that every run on this host has. With a broker there is a
/// credential; that of a run which starts nothing is never read.
fn harmless(options: &[OsString], network: NetworkMode) -> Result<Request> {
    let mut words: Vec<OsString> = ["oubliette", "run"].map(Into::into).into();
    words.extend_from_slice(options);
    if network == NetworkMode::Broker {
        words.push("--credential-stdin".into());
    }
    words.extend(["--".into(), "/proc/self/exe".into()]);
    let wrong = |error: &clap::Error| wrong_words(error);
    let matches = Cli::command().try_get_matches_from(words).map_err(|error| wrong(&error))?;
    let sub = matches.subcommand().map_or(&matches, |(_, sub)| sub);
    let args = RunArgs::from_arg_matches(sub).map_err(|error| wrong(&error))?;
    Request::new(args, sub, Config::read()?)
}

/// Levels and agents as a run finds them.
fn library() -> Result<Library> {
    let named = std::env::var_os("OUBLIETTE_POLICY_DIR").map(std::path::PathBuf::from);
    Ok(Library::new(named.or(Config::read()?.policy_dir()).as_deref()))
}

fn sweep(args: &SweepArgs) -> Result<Exit> {
    // Processes that dead runs left are found there: without it their files alone would go.
    crate::run::need_proc()?;
    let swept = sweep::sweep(&open_state(args.state_dir.as_deref())?, args.dry_run)?;
    if args.json {
        print_json(&swept)?;
    } else {
        for cell in &swept.removed {
            print(&format!("{} {cell}\n", if args.dry_run { "would remove" } else { "removed" }))?;
        }
        for left in &swept.left {
            say(&format!("cannot remove {}: {}", left.name, left.why));
        }
    }
    Ok(Exit::Agent(u8::from(!swept.left.is_empty())))
}

fn ps(args: &PsArgs) -> Result<Exit> {
    let live = sweep::list(&open_state(args.state_dir.as_deref())?)?;
    if args.json {
        return print_json(&live).map(|()| Exit::Agent(0));
    }
    let mut text = format!("{:<34}{:<10}{:<12}{:<12}{}\n", "CELL", "SECONDS", "AGENT", "LEVEL", "USER");
    for cell in live {
        let Some(record) = cell.record else {
            text += &format!("{:<34}-\n", cell.cell);
            continue;
        };
        let age = crate::cell::now().saturating_sub(record.started);
        text += &format!("{:<34}{age:<10}{:<12}{:<12}{}\n", cell.cell, record.agent, record.level, record.user);
    }
    print(&text).map(|()| Exit::Agent(0))
}

fn policy(action: PolicyAction) -> Result<Exit> {
    let library = library()?;
    match action {
        PolicyAction::List { json } => {
            let listing = Listing::new(&library)?;
            if json { print_json(&listing)? } else { print(&listing.text())? }
        }
        PolicyAction::Show { name } => {
            let text = match library.level(&name) {
                Ok(found) => found.text,
                Err(error) => library.agent(&name).map(|found| found.text).map_err(|_| error)?,
            };
            print(&text)?;
        }
        PolicyAction::Check { file } => check(&file)?,
    }
    Ok(Exit::Agent(0))
}

/// A file is a policy or an agent's; the error of a file that is neither is that of a policy, unless it names an agent.
fn check(file: &Path) -> Result<()> {
    let text = crate::fs::trusted::read_trusted(file)?;
    let name = file.display().to_string();
    if text.lines().any(|line| line.trim_start().starts_with("title")) {
        return crate::fs::trusted::parse::<AgentSpec>(&text, &name)
            .and_then(|_| print(&format!("{name}: a sound agent file\n")));
    }
    crate::fs::trusted::parse::<Policy>(&text, &name).and_then(|_| print(&format!("{name}: a sound policy\n")))
}

fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::new("write to standard output", error))
        }
        _ => Ok(()),
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::new("write JSON", error.to_string()))?;
    print(&(text + "\n"))
}
