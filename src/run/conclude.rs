//! The end of a run: messages, report and status.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;

use nix::errno::Errno;

use super::attempt::Finished;
use crate::broker::Traffic;
use crate::confine::ENTER;
use crate::confine::failure::Failure;
use crate::confine::mounts::HIDE;
use crate::fs::wipe::Leftover;
use crate::plan::Plan;
use crate::run::job::Job;
use crate::run::progress::say;
use crate::run::report::{Report, Usage, VERSION};
use crate::run::supervise::{Ended, KILLED, Outcome};
use crate::types::error::{Error, Result};
use crate::types::exit::Exit;
use crate::types::hosts::HostRule;
use crate::types::layer::Layer;

/// What the children of this process used.
pub(super) fn usage(peak_cell: Option<u64>) -> Usage {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return Usage { peak_cell, ..Usage::default() } };
    let micros = |time: nix::sys::time::TimeVal| u64::try_from(time.num_microseconds()).unwrap_or(0);
    Usage {
        user: micros(usage.user_time()),
        system: micros(usage.system_time()),
        peak_process: u64::try_from(usage.max_rss()).unwrap_or(0) * 1024,
        peak_cell,
    }
}

/// Messages, report and status.
pub(super) fn conclude(job: &Job, plan: &Plan, finished: Finished, report: Option<File>) -> Result<Exit> {
    let Finished { cell, outcome, error, timings, usage, disk, traffic, wiped, skipped } = finished;
    let (ended, failure) = match outcome {
        Outcome::Ran(ended) => (ended, None),
        Outcome::Failed(failure) => {
            let error = not_confined(failure);
            (Ended::NotConfined(error.to_string()), Some(error))
        }
    };
    let left: Vec<Leftover> = wiped.left.into_iter().map(Leftover::from).collect();
    for Leftover { name, why } in &left {
        say(&format!("cannot remove {name}: {why}"));
    }
    if let Some(line) = skipped.line().filter(|_| !job.request.quiet) {
        say(&line);
    }
    if let Some(note) = traffic.as_ref().filter(|_| !job.request.quiet).and_then(denied) {
        say(&note);
    }
    let error = error.or(failure).or(explain_end(&ended, plan));
    let status =
        if error.as_ref().is_some_and(|_| matches!(ended, Ended::Exited(0))) { Exit::Refused } else { ended.exit() };
    if let Some(file) = report {
        let report = Report {
            version: VERSION,
            cell,
            user: job.request.user.to_string(),
            agent: job.agent.name.clone(),
            level: job.level.name.clone(),
            layers: plan.layers.clone(),
            classes: plan.classes.clone(),
            uncounted: plan.uncounted.clone(),
            outcome: ended,
            status: status.status(),
            error: error.as_ref().map(ToString::to_string),
            timings,
            usage,
            disk,
            broker: traffic,
            left,
            skipped: skipped.listed,
            skipped_total: skipped.total,
        };
        write_report(file, &report);
    }
    match error {
        Some(error) => Err(error.exit(status)),
        None => Ok(status),
    }
}

/// Hosts that the agent asked for and did not reach: a list that is too short looks like a network that is down.
fn denied(traffic: &Traffic) -> Option<String> {
    const SHOWN: usize = 5;
    let asked: Vec<&str> = traffic.denied.iter().map(|host| host.host.as_str()).collect();
    let hosts: Vec<&str> = asked.into_iter().filter(|host| host.parse::<HostRule>().is_ok()).collect();
    let more = if hosts.len() > SHOWN { format!(" and {} more", hosts.len() - SHOWN) } else { String::new() };
    let shown = hosts.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    (!hosts.is_empty()).then(|| format!("the agent asked for hosts that are not on its list: {shown}{more}"))
}

/// One line of JSON.
pub(super) fn write_report(mut file: File, report: &Report) {
    let mut text = serde_json::to_vec(report).unwrap_or_default();
    text.push(b'\n');
    if let Err(error) = file.write_all(&text) {
        say(&Error::new("write the report", error).to_string());
    }
}

/// A step before the agent failed.
pub(super) fn not_confined(failure: Failure) -> Error {
    if failure.errno == Errno::EINTR {
        return Error::new(failure.action, "the launcher was told to end")
            .hint("nothing of it is left; start it again");
    }
    if failure.errno == KILLED {
        return Error::new(failure.action, "a process was killed before it had confined itself")
            .hint("raise limits.memory of the policy if the kernel's log says that memory ran out");
    }
    if failure.errno == Errno::UnknownErrno {
        let mut parts = failure.action.split('\n').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        let (action, cause, remedy) = (part(), part(), part());
        return Error::new(action, cause).hint(remedy);
    }
    if failure.errno == Errno::EACCES && failure.action.starts_with(ENTER) {
        return Error::new(failure.action, failure.errno).hint(
            "let the agent's UID through every directory above it (chmod o+x), or name another --state-dir or --workspace",
        );
    }
    if failure.errno == Errno::ELOOP && failure.action.starts_with(HIDE) {
        return Error::new(failure.action, "it is a link, and the agent would read what it leads to")
            .hint("put a file or a directory in the place of the link, or remove it");
    }
    Error::new(failure.action, failure.errno).hint("`oubliette doctor` says what this host offers")
}

/// Ends that people need a sentence for.
fn explain_end(ended: &Ended, plan: &Plan) -> Option<Error> {
    let program = plan.program.display();
    match ended {
        Ended::Exited(_) | Ended::Signaled(_) | Ended::NotConfined(_) | Ended::Refused(_) => None,
        Ended::Deadline => Some(
            Error::new(
                format!("let {program} go on"),
                format!("its {} are over", crate::types::units::Time(plan.timeout)),
            )
            .hint("give it more with --timeout"),
        ),
        Ended::NotExecuted(why) => {
            let hint = if why == Errno::EAGAIN.desc() {
                "raise the limit on processes (ulimit -u), or wait for some to end"
            } else if plan.enforces(Layer::Root) || plan.enforces(Layer::LandlockFs) {
                "`oubliette explain` says what the cell shows of the host"
            } else {
                "check that the agent's UID may execute it"
            };
            Some(Error::new(format!("execute {program}"), why.as_str()).hint(hint))
        }
        Ended::BrokerEnded(why) => Some(
            Error::new("broker the agent's requests", why.as_str())
                .hint("start it again; nothing of the cell is left, and the agent never held the credential"),
        ),
        Ended::OverLimit(what) => Some(
            Error::new(format!("let {program} go on"), format!("its files came to {what}"))
                .hint("remove files from the workspace, or raise limits.disk and limits.files of the policy"),
        ),
        Ended::LevelNotInForce(why) => Some(
            Error::new("trust the agent", format!("its level is not in force: {why}"))
                .hint("use a version of the agent that this version of oubliette was tested with"),
        ),
    }
}
