//! `run`: a short straight line of effects after the plan.
#![forbid(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, pipe2};

use crate::cell::{Cell, Record};
use crate::confine::cgroup::Cgroup;
use crate::confine::ids::Ids;
use crate::confine::mounts::{CellFile, Tree};
use crate::confine::session::{Stdio, Stream};
use crate::confine::{CREDENTIAL_FD, Command, Confinement, Failure, Places, clone_flags, expand, limits, seccomp};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::files;
use crate::job::Job;
use crate::layer::Layer;
use crate::plan::{Credential, Identity, Plan, Text};
use crate::policy::agent::Way;
use crate::progress::{Progress, Stage, say};
use crate::report::{Leftover, Report, Timings, Usage, VERSION};
use crate::request::{Export, Request};
use crate::secret::{Secret, SecretSource};
use crate::state::State;
use crate::supervise::relay::{Check, Relay};
use crate::supervise::terminal::Terminal;
use crate::supervise::{Ended, Outcome, Signals, Watch, end_orphans};
use crate::sys;
use crate::sys::channel::Channel;
use crate::sys::process::{Fork, fork_into};
use crate::uids::{self, Lease};
use crate::wipe::Wiped;
use crate::workspace::{self, Filling, Kept, Outputs, bounds};

/// Everything that is the same for every attempt at a launch.
struct Run<'a> {
    job: &'a Job,
    launcher: Ids,
    state: State,
    secret: Option<Secret>,
    kept: Option<Kept>,
    copy_in: Option<OwnedFd>,
    signals: Signals,
    progress: Progress,
    started: Instant,
    rehearsal: bool,
}

/// What a finished attempt came to.
struct Finished {
    cell: String,
    outcome: Outcome,
    error: Option<Error>,
    timings: Timings,
    usage: Usage,
    wiped: Wiped,
}

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

fn write_report(mut file: File, report: &Report) {
    let mut text = serde_json::to_vec(report).unwrap_or_default();
    text.push(b'\n');
    if let Err(error) = file.write_all(&text) {
        say(&format!("cannot write the report: {error}"));
    }
}

/// `known` is what a report can say when this fails.
fn perform(request: Request, started: Instant, report: &mut Option<File>, known: &mut Report) -> Result<Exit> {
    known.user = request.user.to_string();
    known.agent = request.agent.clone().unwrap_or_default();
    let signals = Signals::block().map_err(|errno| Error::new("take signals", errno))?;
    check_standard_streams()?;
    let mut job = Job::new(request)?;
    known.agent.clone_from(&job.agent.name);
    known.level.clone_from(&job.level.name);
    let plan = job.plan().map_err(|refusal| refused(known, *refusal))?;
    known.layers.clone_from(&plan.layers);
    known.classes.clone_from(&plan.classes);
    let secret = job.request.credential.as_ref().map(Secret::read).transpose()?;
    hide_launcher()?;
    let terminal = Terminal::open();
    let progress = Progress::new(job.request.quiet, terminal.is_some());
    let state = State::open(job.request.state_dir.as_deref())?;
    let switch = plan.identity != Identity::Caller;
    let range = uid_range(&job, &plan);
    let kept = workspace::open(&job.request, &state, range, switch)?;
    let copy_in = job.request.copy_in.as_deref().map(workspace::open_source).transpose()?;
    let outputs = Outputs::open(&job.request)?;
    sys::environ::forget();
    progress.stage(Stage::Planned, || format!("{} at level {}", job.agent.value.title, job.level.name));

    tell_degraded(&progress, &plan);

    let mut host = job.host.clone();
    let (plan, finished) = {
        let launcher = Ids { uid: Uid::from_raw(host.uid), gid: Gid::from_raw(host.gid) };
        let run = Run { job: &job, launcher, state, secret, kept, copy_in, signals, progress, started, rehearsal: false };
        let mut outputs = Some(outputs);
        let mut plan = plan;
        let mut terminal = terminal;
        loop {
            let finished = run.attempt(&plan, &mut outputs, &mut terminal)?;
            match &finished.outcome {
                // The host lacks what it was taken to have: plan again with that known, or refuse.
                Outcome::Failed(Failure { step: Some(step), errno, .. }) if host.learn(*step, *errno) => {
                    plan = run.replan(&host).map_err(|refusal| refused(known, *refusal))?;
                    tell_degraded(&run.progress, &plan);
                }
                _ => break (plan, finished),
            }
        }
    };
    job.host = host;
    conclude(&job, &plan, finished, report.take())
}

fn refused(known: &mut Report, refusal: crate::plan::Refusal) -> Error {
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
    let signals = Signals::block().map_err(|errno| Error::new("take signals", errno))?;
    let mut host = job.host.clone();
    let launcher = Ids { uid: Uid::from_raw(host.uid), gid: Gid::from_raw(host.gid) };
    let state = State::open(job.request.state_dir.as_deref())?;
    let progress = Progress::new(true, false);
    let run = Run { job, launcher, state, secret: None, kept: None, copy_in: None, signals, progress, started: Instant::now(), rehearsal: true };
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

impl Run<'_> {
    fn replan(&self, host: &crate::host::Host) -> Result<Plan, Box<crate::plan::Refusal>> {
        Plan::new(&self.job.request, &self.job.level.value, &self.job.agent.value, host)
    }

    /// One launch, to the end of the run and the wipe; or to the step that this host does not offer.
    fn attempt(&self, plan: &Plan, outputs: &mut Option<Outputs>, terminal: &mut Option<Terminal>) -> Result<Finished> {
        let lease = match plan.identity {
            Identity::PerRun(range) => Some(Lease::take(&self.state, range)?),
            Identity::Owner => match &self.kept {
                Some(kept) if kept.bound => Some(Lease::bound(&self.state, kept.owner.uid)?),
                _ => None,
            },
            Identity::Caller => None,
        };
        let agent = match (&lease, &self.kept, plan.identity) {
            (_, Some(kept), Identity::Owner) => kept.owner,
            (Some(lease), ..) => lease.ids(),
            _ => self.launcher,
        };
        self.progress.stage(Stage::Leased, || format!("uid {}", agent.uid));
        let mut cell = Cell::create(&self.state)?;
        self.progress.stage(Stage::Created, || cell.path.display().to_string());
        let places = match &plan.root {
            Some(_) => Places::private(),
            None => cell.lay_out(agent, self.launcher)?,
        };
        cell.record(&self.record(plan, &cell, lease.as_ref()))?;
        let files = files::of_cell(plan, self.job, &places, agent, terminal.is_some());
        if plan.root.is_none() {
            cell.write(&files, agent, self.launcher)?;
            let filled = workspace::fill(cell.dir(), &self.filling(outputs, agent));
            filled.map_err(|why| Error::new("fill the workspace", why).hint("see limits.disk and limits.files of the policy"))?;
        }
        self.progress.stage(Stage::Written, || format!("{} files", files.len()));
        self.launch(plan, Prepared { cell, places, files, agent, lease }, outputs, terminal)
    }

    fn record(&self, plan: &Plan, cell: &Cell, lease: Option<&Lease>) -> Record {
        Record {
            user: self.job.request.user.to_string(),
            agent: self.job.agent.name.clone(),
            level: self.job.level.name.clone(),
            started: crate::cell::now(),
            launcher: std::process::id() as i32,
            uid: lease.map(|lease| lease.uid.as_raw()),
            cgroups: plan.cgroup.as_ref().map(|cgroups| Cgroup::planned(cgroups, &cell.id)).unwrap_or_default(),
            pid_namespace: plan.namespaces.pid,
            directories: plan.root.is_none(),
        }
    }

    fn way(&self) -> Option<&Way> {
        self.secret.as_ref().and_then(|secret| self.job.agent.value.way(secret.expose()))
    }

    fn filling(&self, outputs: &Option<Outputs>, agent: Ids) -> Filling<'_> {
        Filling {
            source: self.copy_in.as_ref().map(OwnedFd::as_fd),
            kept: self.kept.as_ref().map(|kept| kept.directory.fd.as_fd()),
            keep_base: outputs.as_ref().is_some_and(Outputs::needs_base),
            owner: (agent != self.launcher).then_some(agent),
            bounds: bounds(&self.job.level.value.limits),
        }
    }

    fn launch(&self, plan: &Plan, prepared: Prepared, outputs: &mut Option<Outputs>, terminal: &mut Option<Terminal>) -> Result<Finished> {
        let Prepared { cell, mut places, files, agent, lease } = prepared;
        if let (None, Some(kept)) = (&plan.root, &self.kept) {
            places.work.clone_from(&kept.directory.path);
        }
        let cannot = |what: &'static str| move |errno: Errno| Error::new(what, errno).hint("raise the limit on open files");
        let (ours, theirs) = Channel::pair().map_err(cannot("open a channel to the cell"))?;
        let (exec_read, exec_write) = pipe2(OFlag::O_CLOEXEC).map_err(cannot("open a pipe to the cell"))?;
        let (stdio, relays) = self.streams(plan, terminal.is_some())?;
        let credential = self.credential_pipe(plan)?;
        let command = Command {
            program: c_string(plan.program.as_os_str()),
            arguments: plan.arguments.iter().map(|text| c_string(&resolve(text, &places))).collect(),
            environment: self.environment(plan, &places),
            stdio,
            credential,
            exec_failed: exec_write,
        };
        let tree = plan.root.as_ref().map(|root| Tree {
            root,
            at: &cell.path,
            // Where no PID namespace ends them, `sweep` knows the cell's processes by what they have mounted.
            source: if plan.namespaces.pid { "tmpfs" } else { &cell.id },
            files: &files,
            workspace: self.kept.as_ref().map(|kept| &kept.directory),
            agent,
            launcher: self.launcher,
        });
        let confinement = Confinement {
            plan,
            places: &places,
            launcher: self.launcher,
            agent,
            hand_out: tree.is_some() && outputs.as_ref().is_some_and(Outputs::any),
            tree,
            filling: self.filling(outputs, agent),
            filter: plan.filter.as_ref().map(seccomp::compile).unwrap_or_default(),
            rehearsal: self.rehearsal,
            terminal: terminal.is_some(),
            channel: theirs,
            command,
        };
        if !plan.namespaces.pid {
            // Orphans of the agent come to us (gVisor has no such thing: there the UID ends them).
            let _ = prctl::set_child_subreaper(true);
        }
        let cloned = Instant::now();
        let child = match fork_into(clone_flags(&plan.namespaces)) {
            Ok(Fork::Child) => {
                // Init would keep them open: it must see the launcher's end of the channel close.
                drop((ours, exec_read, relays));
                confinement.start()
            }
            Ok(Fork::Parent(child)) => child,
            Err(errno) => return Ok(self.not_cloned(cell, lease, errno)),
        };
        drop(confinement);
        self.progress.stage(Stage::Cloned, || format!("pid {child}"));
        let mut watch = Watch {
            child,
            has_init: plan.namespaces.pid,
            channel: ours,
            exec_failed: Some(File::from(exec_read)),
            signals: &self.signals,
            deadline: Instant::now().checked_add(plan.timeout),
            grace: plan.grace,
            relays,
            terminal: terminal.take(),
            top: None,
            started: None,
        };
        let (cgroup, refused) = self.let_go(plan, &cell, &watch);
        let outcome = watch.run(|| self.progress.stage(Stage::Running, || plan.program.display().to_string()));
        let outcome = outcome.map_err(|errno| Error::new("watch the agent", errno))?;
        let outcome = refused.map_or(outcome, Outcome::Failed);
        let ended = Instant::now();
        self.progress.stage(Stage::Ended, || format!("{outcome:?}"));
        let peak = cgroup.as_ref().and_then(Cgroup::peak);
        drop(cgroup);
        let dead = self.end_all(plan, lease.as_ref());
        self.progress.stage(Stage::Killed, || "every process is dead".into());
        let outcome = match (outcome, watch.drain()) {
            (Outcome::Ran(_), Some(not_in_force)) => Outcome::Ran(not_in_force),
            (outcome, _) => outcome,
        };
        let error = self.write_outputs(&outcome, outputs, &watch, &cell);
        let timings = Timings {
            prepare: micros(self.started, cloned),
            enter: watch.started.map_or(0, |started| micros(cloned, started)),
            run: watch.started.map_or(0, |started| micros(started, ended)),
            wipe: 0,
        };
        *terminal = watch.terminal.take();
        drop(watch);
        let id = cell.id.clone();
        let mut wiped = cell.wipe();
        if !dead {
            wiped.left.push(crate::wipe::Left { name: "processes".into(), why: "they do not end; run `oubliette sweep`".into() });
        }
        if let Some(lease) = lease.filter(|_| dead && wiped.left.is_empty()) {
            lease.release();
        }
        self.progress.stage(Stage::Wiped, || format!("{} files removed", wiped.files));
        let usage = usage(peak);
        Ok(Finished { cell: id, outcome, error, timings: Timings { wipe: micros(ended, Instant::now()), ..timings }, usage, wiped })
    }

    /// Puts the child into its cgroup while it makes its mounts, then lets it go on.
    fn let_go(&self, plan: &Plan, cell: &Cell, watch: &Watch<'_>) -> (Option<Cgroup>, Option<Failure>) {
        let mut refused = None;
        let cgroup = plan.cgroup.as_ref().and_then(|cgroups| {
            let made = Cgroup::create(cgroups, &cell.id, &plan.limits);
            match made.and_then(|cgroup| cgroup.attach(watch.child).map(|()| cgroup)) {
                Ok(cgroup) => Some(cgroup),
                Err(failure) => {
                    refused = Some(failure);
                    None
                }
            }
        });
        let asked = self.signals.asked_to_end();
        if refused.is_some() || asked.is_some() {
            let _ = nix::sys::signal::kill(watch.child, nix::sys::signal::Signal::SIGKILL);
            refused = refused.or(asked.map(|signal| Failure::plain(Errno::EINTR, &format!("start the agent after {signal}"))));
        } else {
            let _ = watch.channel.send(b"g", None);
        }
        (cgroup, refused)
    }

    /// Every process of the cell is dead afterwards: by the end of the namespace, else one after the other.
    fn end_all(&self, plan: &Plan, lease: Option<&Lease>) -> bool {
        if plan.namespaces.pid {
            return true;
        }
        let by_uid = lease.is_none_or(|lease| uids::kill_all(lease.uid.as_raw()));
        end_orphans() && by_uid
    }

    fn write_outputs(&self, outcome: &Outcome, outputs: &mut Option<Outputs>, watch: &Watch<'_>, cell: &Cell) -> Option<Error> {
        if !matches!(outcome, Outcome::Ran(Ended::Exited(_) | Ended::Signaled(_) | Ended::Deadline)) {
            return None;
        }
        let outputs = outputs.take().filter(Outputs::any)?;
        let top = watch.top.as_ref().map_or(cell.dir(), OwnedFd::as_fd);
        let kept: Option<BorrowedFd<'_>> = self.kept.as_ref().map(|kept| kept.directory.fd.as_fd());
        outputs.write(top, kept, &bounds(&self.job.level.value.limits)).err()
    }

    fn not_cloned(&self, cell: Cell, lease: Option<Lease>, errno: Errno) -> Finished {
        let id = cell.id.clone();
        let wiped = cell.wipe();
        if let Some(lease) = lease {
            lease.release();
        }
        let failure = Failure::at(crate::host::Step::Clone, errno, "clone into new namespaces");
        Finished { cell: id, outcome: Outcome::Failed(failure), error: None, timings: Timings::default(), usage: Usage::default(), wiped }
    }

    /// The agent's standard streams, and the pipes that are looked at on their way.
    fn streams(&self, plan: &Plan, terminal: bool) -> Result<(Stdio, Vec<Relay>)> {
        let request = &self.job.request;
        let mut relays = Vec::new();
        if self.rehearsal {
            return Ok((Stdio([Stream::Inherit, Stream::Inherit, Stream::Inherit]), relays));
        }
        let check = plan.check.clone().unwrap_or_default();
        let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(|error| Error::new("copy a standard stream", error));
        let mut piped = |to: OwnedFd, check: Check| -> Result<Stream> {
            let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::new("open a pipe to the agent", errno))?;
            relays.push(Relay::new(read, to, check));
            Ok(Stream::To(write))
        };
        let stdin = match request.credential {
            Some(SecretSource::Stdin) => Stream::To(null()?),
            _ if terminal => Stream::Terminal,
            _ => Stream::Inherit,
        };
        let event = check.init_event.filter(|event| streams_events(&request.command, &event.argument));
        let to_stderr = request.export == Some(Export::Stdout);
        let stdout = match (event, &plan.settings) {
            (Some(event), Some(rendered)) => {
                let to = if to_stderr { own(std::io::stderr().as_fd())? } else { own(std::io::stdout().as_fd())? };
                piped(to, Check::Event { event, expected: Box::new(rendered.clone()), seen: false, line: Vec::new() })?
            }
            _ if to_stderr => Stream::To(own(std::io::stderr().as_fd())?),
            _ if terminal => Stream::Terminal,
            _ => Stream::Inherit,
        };
        let stderr = match check.stderr {
            texts if !texts.is_empty() => piped(own(std::io::stderr().as_fd())?, Check::Texts { texts, tail: Vec::new() })?,
            _ if terminal && std::io::IsTerminal::is_terminal(&std::io::stderr()) => Stream::Terminal,
            _ => Stream::Inherit,
        };
        Ok((Stdio([stdin, stdout, stderr]), relays))
    }

    /// A pipe that holds the credential and whose other end is closed: read once, it is gone.
    fn credential_pipe(&self, plan: &Plan) -> Result<Option<OwnedFd>> {
        let Some(secret) = self.secret.as_ref().filter(|_| plan.credential != Credential::None) else { return Ok(None) };
        let failed = |error: std::io::Error| Error::new("hand the credential over", error);
        let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
        File::from(write).write_all(secret.expose()).map_err(failed)?;
        Ok(Some(read))
    }

    fn environment(&self, plan: &Plan, places: &Places) -> Vec<CString> {
        let mut all: Vec<(OsString, OsString)> =
            plan.environment.iter().map(|(name, text)| (name.clone(), resolve(text, places))).collect();
        if let Some(way) = self.way() {
            all.push((way.descriptor.clone().into(), CREDENTIAL_FD.to_string().into()));
        }
        all.into_iter()
            .map(|(mut name, value)| {
                name.push("=");
                name.push(value);
                c_string(&name)
            })
            .collect()
    }
}

/// What an attempt has made before the clone.
struct Prepared {
    cell: Cell,
    places: Places,
    files: Vec<CellFile>,
    agent: Ids,
    lease: Option<Lease>,
}

/// A layer that is missing is named before the agent starts.
fn tell_degraded(progress: &Progress, plan: &Plan) {
    let missing: Vec<String> = plan.degraded().map(|(layer, why, _)| format!("{layer} ({why})")).collect();
    if !missing.is_empty() {
        progress.note(&format!("not enforced here: {}; `oubliette explain` says more", missing.join(", ")));
    }
}

fn uid_range(job: &Job, plan: &Plan) -> crate::request::UidRange {
    match plan.identity {
        Identity::PerRun(range) => range,
        _ => job.request.uid_range.unwrap_or_else(|| crate::plan::layers::default_range(&job.host)),
    }
}

/// The launcher holds the credential from here on: nobody of the same UID attaches to it or reads its memory, and no
/// core file of it is written.
fn hide_launcher() -> Result<()> {
    prctl::set_dumpable(false).map_err(|errno| Error::new("hide the launcher's memory", errno))?;
    limits::no_core().map_err(|errno| Error::new("switch core files off", errno))
}

/// A directory that the caller left open as a standard stream would lead out of every namespace.
fn check_standard_streams() -> Result<()> {
    let streams = [std::io::stdin().as_fd().try_clone_to_owned(), std::io::stdout().as_fd().try_clone_to_owned(), std::io::stderr().as_fd().try_clone_to_owned()];
    for (number, stream) in streams.into_iter().enumerate() {
        let is_directory = stream.is_ok_and(|fd| File::from(fd).metadata().is_ok_and(|meta| meta.is_dir()));
        if is_directory {
            return Err(Error::new(format!("hand descriptor {number} to the agent"), "it is a directory").hint("redirect it to a file or a pipe"));
        }
    }
    Ok(())
}

fn open_report(number: i32) -> Result<File> {
    let failed = |error: std::io::Error| {
        Error::new(format!("write the report to descriptor {number}"), error).hint("open it in the caller, as in `--report-fd 3 3>report.json`")
    };
    match number {
        1 => Ok(std::io::stdout().as_fd().try_clone_to_owned().map_err(failed)?.into()),
        2 => Ok(std::io::stderr().as_fd().try_clone_to_owned().map_err(failed)?.into()),
        _ => sys::fds::take(number).map_err(|errno| failed(errno.into())),
    }
}

/// Whether the command asks for the event stream, before `--`.
fn streams_events(command: &[OsString], argument: &str) -> bool {
    let own = command.iter().take_while(|word| word.as_bytes() != b"--");
    own.map(|word| word.to_string_lossy()).any(|word| word == argument || word.ends_with(&format!("={argument}")))
}

fn null() -> Result<OwnedFd> {
    File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from).map_err(|error| Error::new("open /dev/null", error))
}

/// What a text of the plan is in this cell.
fn resolve(text: &Text, places: &Places) -> OsString {
    match text {
        Text::Plain(text) => text.clone(),
        Text::Template(text) => expand(text, places).into(),
    }
}

/// The request was checked for NUL bytes, and the kernel gives none.
fn c_string(text: &OsStr) -> CString {
    let bytes = OsString::from(text).into_vec();
    CString::new(bytes).unwrap_or_default()
}

fn micros(from: Instant, to: Instant) -> u64 {
    to.saturating_duration_since(from).as_micros() as u64
}

fn usage(peak_cell: Option<u64>) -> Usage {
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
fn conclude(job: &Job, plan: &Plan, finished: Finished, report: Option<File>) -> Result<Exit> {
    let Finished { cell, outcome, error, timings, usage, wiped } = finished;
    let (ended, failure) = match outcome {
        Outcome::Ran(ended) => (ended, None),
        Outcome::Failed(failure) => (Ended::NotConfined(format!("cannot {}: {}", failure.action, failure.errno.desc())), Some(failure)),
    };
    let left: Vec<Leftover> = wiped.left.into_iter().map(Leftover::from).collect();
    for Leftover { name, why } in &left {
        say(&format!("cannot remove {name}: {why}"));
    }
    let error = error.or(failure.map(not_confined)).or(explain_end(&ended, plan));
    let status = if error.as_ref().is_some_and(|_| matches!(ended, Ended::Exited(0))) { Exit::Refused } else { ended.exit() };
    if let Some(file) = report {
        let report = Report {
            version: VERSION,
            cell,
            user: job.request.user.to_string(),
            agent: job.agent.name.clone(),
            level: job.level.name.clone(),
            layers: plan.layers.clone(),
            classes: plan.classes.clone(),
            outcome: ended,
            status: status.status(),
            error: error.as_ref().map(ToString::to_string),
            timings,
            usage,
            left,
        };
        write_report(file, &report);
    }
    match error {
        Some(error) => Err(error.exit(status)),
        None => Ok(status),
    }
}

fn not_confined(failure: Failure) -> Error {
    let cause = if failure.errno == Errno::UnknownErrno { String::new() } else { failure.errno.desc().to_owned() };
    if cause.is_empty() {
        return Error::new("fill the workspace", failure.action).hint("see limits.disk and limits.files of the policy");
    }
    Error::new(failure.action, cause).hint("`oubliette doctor` says what this host offers")
}

/// Ends that people need a sentence for.
fn explain_end(ended: &Ended, plan: &Plan) -> Option<Error> {
    let program = plan.program.display();
    match ended {
        Ended::Exited(_) | Ended::Signaled(_) | Ended::NotConfined(_) | Ended::Refused(_) => None,
        Ended::Deadline => Some(
            Error::new(format!("let {program} go on"), format!("its {} are over", crate::policy::Time(plan.timeout)))
                .hint("give it more with --timeout"),
        ),
        Ended::NotExecuted(why) => {
            let hint = if plan.enforces(Layer::Root) || plan.enforces(Layer::LandlockFs) {
                "`oubliette explain` says what the cell shows of the host"
            } else {
                "check that the agent's UID may execute it"
            };
            Some(Error::new(format!("execute {program}"), why.as_str()).hint(hint))
        }
        Ended::LevelNotInForce(why) => Some(
            Error::new("trust the agent", format!("its level is not in force: {why}"))
                .hint("use a version of the agent that this version of oubliette was tested with"),
        ),
    }
}
