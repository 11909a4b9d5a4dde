//! `run`: a short straight line of effects after the plan.
#![forbid(unsafe_code)]

mod attempt;
mod brokered;
mod conclude;
mod counted;
pub mod files;
pub mod job;
pub mod keeper;
pub mod login;
pub mod progress;
pub mod report;
pub mod servers;
mod streams;
pub mod supervise;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::stat::fstat;
use nix::unistd::{Gid, Uid};

use crate::cell::resume::Resume;
use crate::cell::state::State;
use crate::cell::workspace::{self, Outputs};
use crate::confine::failure::Failure;
use crate::confine::inherited::{self, OomOrder};
use crate::confine::limits;
use crate::plan::{Identity, Plan, Refusal};
use crate::policy::agents::way::{Hand, Way};
use crate::request::{Request, Workspace};
use crate::run::job::Job;
use crate::run::login::Told;
use crate::run::progress::{Progress, Stage};
use crate::run::report::Report;
use crate::run::supervise::terminal::Terminal;
use crate::run::supervise::{Ended, Outcome};
use crate::secret::{Secret, SecretSource};
use crate::sys;
use crate::sys::ids::Ids;
use crate::sys::signals::Signals;
use crate::types::class::Class;
use crate::types::error::{Error, Result};
use crate::types::exit::Exit;
use crate::types::layer::Layer;
use attempt::Run;
use brokered::Handed;
use conclude::{conclude, not_confined, write_report};

/// Runs an agent in a cell and wipes it. Every run writes its report, a refused one too.
///
/// # Errors
/// What was refused or failed before the agent ran. Nothing is left of it.
pub fn run(report_fd: Option<i32>, request: impl FnOnce() -> Result<Request>) -> Result<Exit> {
    let started = Instant::now();
    let mut report = report_fd.map(open_report).transpose()?;
    let mut known = Report::default();
    let result = request().and_then(|request| perform(request, started, &mut report, &mut known));
    // Still here: nobody has written it.
    if let (Err(error), Some(file)) = (&result, report) {
        known.outcome = Ended::Refused(error.to_string());
        known.status = error.status().status();
        known.error = Some(error.to_string());
        write_report(file, &known);
    }
    result
}

/// `known` is what a report can say when this fails.
/// Long because it is the whole order of a run, one step after the other.
fn perform(request: Request, started: Instant, report: &mut Option<File>, known: &mut Report) -> Result<Exit> {
    known.user = request.user.to_string();
    known.agent = request.agent.clone().unwrap_or_default();
    // Before anything is opened: a number that the caller named and did not open would be the launcher's own.
    let given = request.credential.as_ref().map(SecretSource::take).transpose()?.flatten();
    let oom_order = hide_launcher()?;
    need_host()?;
    check_standard_streams()?;
    let signals = take_signals()?;
    let mut job = Job::new(request)?;
    known.agent.clone_from(&job.agent.name);
    known.level.clone_from(&job.level.name);
    let plan = job.plan().map_err(|refusal| refused(known, *refusal))?;
    known.layers.clone_from(&plan.layers);
    known.classes.clone_from(&plan.classes);
    let (secret, told_by_login) = credential(&job, given)?;
    check_quotes(&job, secret.as_deref())?;
    let handed = Handed::read(&job, told_by_login.account)?;
    let terminal = Terminal::open();
    let progress = Progress::new(job.request.quiet, terminal.is_some());
    let state = State::open(job.request.state_dir.as_deref())?;
    let switch = plan.identity != Identity::Caller;
    let range = uid_range(&job, &plan);
    let kept = workspace::open(&job.request, &state, range, switch)?;
    let resume = match kept.as_ref().and_then(|kept| kept.name.as_deref()).filter(|_| job.request.resume) {
        Some(workspace) => Some(Resume::open(&state, workspace, &job.agent.name)?),
        None => None,
    };
    job.host.around = around(&state, kept.as_ref().map(|kept| kept.directory.path.as_path()));
    let plan =
        if job.host.around.is_empty() { plan } else { job.plan().map_err(|refusal| refused(known, *refusal))? };
    let copy_in = job.request.copy_in.as_deref().map(workspace::open_source).transpose()?;
    let outputs = Outputs::open(&job.request)?;
    sys::environ::forget();
    progress.stage(Stage::Planned, || {
        let enforced = plan.layers.iter().filter(|planned| planned.decision.enforced());
        let names: Vec<&str> = enforced.map(|planned| planned.layer.name()).collect();
        format!("{} at level {}, confined by {}", job.agent.value.title, job.level.name, names.join(", "))
    });

    if let Some(end) = told_by_login.expires {
        tell_end(&progress, end, plan.timeout);
    }
    let mut told = Vec::new();
    tell_degraded(&progress, &plan, &mut told);

    let mut host = job.host.clone();
    let (plan, finished) = {
        let launcher = Ids { uid: Uid::from_raw(host.uid), gid: Gid::from_raw(host.gid) };
        let run = Run {
            job: &job,
            launcher,
            state,
            secret,
            handed,
            oom_order,
            kept,
            resume,
            copy_in,
            signals,
            progress,
            started,
            rehearsal: false,
        };
        let mut outputs = Some(outputs);
        let mut plan = plan;
        let mut terminal = terminal;
        loop {
            let finished = run.attempt(&plan, &mut outputs, &mut terminal)?;
            match &finished.outcome {
                // The host lacks what it was taken to have: plan again with that known, or refuse. Leftovers end it.
                Outcome::Failed(Failure { step: Some(step), errno, .. })
                    if finished.wiped.left.is_empty() && host.learn(*step, *errno) =>
                {
                    plan = run.replan(&host).map_err(|refusal| refused(known, *refusal))?;
                    tell_degraded(&run.progress, &plan, &mut told);
                }
                _ => break (plan, finished),
            }
        }
    };
    job.host = host;
    conclude(&job, &plan, finished, report.take())
}

/// The credential, and what the file says beside it where it is one of the agent's login.
fn credential(job: &Job, given: Option<File>) -> Result<(Option<Arc<Secret>>, Told)> {
    let (secret, told) = match (&job.request.credential, &job.agent.value.login) {
        (None, _) => return Ok((None, Told::default())),
        (Some(SecretSource::Login(path)), Some(login)) => login::read(path, login, SystemTime::now())?,
        (Some(source), _) => (Secret::read(source, given)?, Told::default()),
    };
    Ok((Some(Arc::new(secret)), told))
}

/// A token that ends before the deadline may end the agent's work before that.
fn tell_end(progress: &Progress, end: SystemTime, deadline: Duration) {
    let left = end.duration_since(SystemTime::now()).unwrap_or_default();
    if left < deadline {
        let left = crate::types::units::Time(Duration::from_secs(left.as_secs()));
        progress.note(&format!(
            "the login's token ends in {left}, before the deadline; start the agent once outside of a cell to renew it"
        ));
    }
}

fn refused(known: &mut Report, refusal: Refusal) -> Error {
    let error = refusal.error();
    known.layers = refusal.layers;
    error
}

/// Corrects the facts of a job's host by trying every step of its plan without an agent, until a plan can be put into
/// force or is refused: what `explain` and `doctor` say is then what a run does.
///
/// # Errors
/// Something failed that says nothing of the host: a full disk, no UID left.
pub fn rehearse(job: &mut Job) -> Result<()> {
    // As in a run: what a child can open of the launcher is part of what is tried.
    let oom_order = hide_launcher()?;
    need_host()?;
    let signals = take_signals()?;
    let mut host = job.host.clone();
    let launcher = Ids { uid: Uid::from_raw(host.uid), gid: Gid::from_raw(host.gid) };
    let state = State::open(job.request.state_dir.as_deref())?;
    let directory = match &job.request.workspace {
        Workspace::Directory(path) => path.canonicalize().ok(),
        _ => None,
    };
    host.around = around(&state, directory.as_deref());
    let progress = Progress::new(true, false);
    let run = Run {
        job,
        launcher,
        state,
        secret: None,
        handed: Handed::default(),
        oom_order,
        kept: None,
        resume: None,
        copy_in: None,
        signals,
        progress,
        started: Instant::now(),
        rehearsal: true,
    };
    while let Ok(plan) = run.replan(&host) {
        match run.attempt(&plan, &mut None, &mut None)?.outcome {
            Outcome::Ran(_) => break,
            Outcome::Failed(Failure { step: Some(step), errno, .. }) if host.learn(step, errno) => {}
            Outcome::Failed(failure) => return Err(not_confined(failure)),
        }
    }
    job.host = host;
    Ok(())
}

fn around(state: &State, workspace: Option<&Path>) -> Vec<Class> {
    Class::around(&[Some(state.path.as_path()), workspace].into_iter().flatten().collect::<Vec<_>>())
}

fn take_signals() -> Result<Signals> {
    Signals::block().map_err(|errno| Error::new("take signals", errno).hint("raise the limit on open files"))
}

/// A layer that is missing is named before the agent starts.
fn tell_degraded(progress: &Progress, plan: &Plan, told: &mut Vec<Layer>) {
    // A second plan may do without what the first one gave a layer up for.
    let (regained, kept) = told.iter().partition::<Vec<Layer>, _>(|layer| plan.enforces(**layer));
    *told = kept;
    if !regained.is_empty() {
        let names: Vec<&str> = regained.iter().map(|layer| layer.name()).collect();
        progress.note(&format!("enforced after all: {}", names.join(", ")));
    }
    let mut missing: Vec<(&str, Vec<&str>)> = Vec::new();
    for (layer, why, _) in plan.degraded() {
        if told.contains(&layer) {
            continue;
        }
        told.push(layer);
        match missing.iter_mut().find(|(known, _)| *known == why) {
            Some((_, layers)) => layers.push(layer.name()),
            None => missing.push((why, vec![layer.name()])),
        }
    }
    let missing: Vec<String> = missing.iter().map(|(why, layers)| format!("{} ({why})", layers.join(", "))).collect();
    if !missing.is_empty() {
        progress.note(&format!("not enforced here: {}; `oubliette explain` says more", missing.join("; ")));
    }
}

fn uid_range(job: &Job, plan: &Plan) -> crate::types::values::UidRange {
    match plan.identity {
        Identity::PerRun(range) => range,
        _ => job.request.uid_range.unwrap_or_else(|| crate::plan::on::default_range(&job.host)),
    }
}

/// Before the launcher has the credential: nobody of the same UID attaches to it or reads its memory, and no
/// core file of it is written. Gives what must be opened before that.
fn hide_launcher() -> Result<OomOrder> {
    inherited::leave_in_launcher().map_err(|errno| Error::new("clear the launcher's personality", errno))?;
    let oom_order = OomOrder::open();
    prctl::set_dumpable(false).map_err(|errno| Error::new("hide the launcher's memory", errno))?;
    limits::no_core().map_err(|errno| Error::new("switch core files off", errno))?;
    Ok(oom_order)
}

/// Between two quotes of a file that the agent parses, such a character would end the text or begin another.
fn check_quotes(job: &Job, secret: Option<&Secret>) -> Result<()> {
    let way = secret.and_then(|secret| Some((secret, job.agent.value.way(secret.expose())?)));
    match way {
        Some((secret, Way { hand: Hand::File(file), .. })) if secret.expose().iter().any(|b| b"\"'\\".contains(b)) => {
            Err(Error::new(
                format!("write the credential to ~/{}", file.path.as_str()),
                "it holds a quote or a backslash",
            )
            .hint("a token of this agent's holds neither: name the file that holds the token alone"))
        }
        _ => Ok(()),
    }
}

/// A directory that the caller left open as a standard stream would lead out of every namespace.
fn check_standard_streams() -> Result<()> {
    let streams = [fstat(std::io::stdin()), fstat(std::io::stdout()), fstat(std::io::stderr())];
    for (number, stream) in streams.into_iter().enumerate() {
        if stream.is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR) {
            return Err(Error::new(format!("hand descriptor {number} to the agent"), "it is a directory")
                .hint("redirect it to a file or a pipe"));
        }
    }
    Ok(())
}

/// A link is not followed by changing its mode without /proc (fchmodat(3)), processes of dead cells are found there, and
/// hardly an agent starts without.
///
/// # Errors
/// It is not mounted.
pub fn need_proc() -> Result<()> {
    match std::fs::symlink_metadata("/proc/self") {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::new("use this host", "it shows no /proc")
            .hint("mount it in the container: mount -t proc proc /proc")),
    }
}

/// What every run stands on, with or without a private root: /proc, and the device to which closed streams lead.
fn need_host() -> Result<()> {
    need_proc()?;
    match std::fs::metadata("/dev/null") {
        Ok(meta) if meta.file_type().is_char_device() => Ok(()),
        _ => Err(Error::new("use this host", "it has no device /dev/null")
            .hint("let the container's runtime make /dev, or bind the host's /dev/null into the root")),
    }
}

fn open_report(number: i32) -> Result<File> {
    let failed = |error: std::io::Error| {
        Error::new(format!("write the report to descriptor {number}"), error)
            .hint("open it in the caller, as in `--report-fd 3 3>report.json`")
    };
    let file: File = match number {
        0 => {
            return Err(Error::new("use --report-fd 0", "0 is standard input").hint("name 2, or a higher descriptor"));
        }
        1 => std::io::stdout().as_fd().try_clone_to_owned().map_err(failed)?.into(),
        2 => std::io::stderr().as_fd().try_clone_to_owned().map_err(failed)?.into(),
        _ => sys::fds::take(number).map_err(|_| failed(std::io::Error::other("it is not open")))?,
    };
    // Known now, so that a run whose report could not be written does not start.
    let flags = sys::fds::flags(file.as_raw_fd()).unwrap_or(OFlag::O_RDONLY);
    if flags & OFlag::O_ACCMODE == OFlag::O_RDONLY {
        return Err(Error::new(format!("write the report to descriptor {number}"), "it is open for reading only")
            .hint("open it for writing, as in `--report-fd 3 3>report.json`"));
    }
    Ok(file)
}
