//! One attempt at a launch: cell, clone, supervision, the end of every process, and the wipe.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::stat::Mode;
use nix::unistd::pipe2;

use super::brokered::{Handed, Words, dismiss};
use super::conclude::usage;
use super::streams::{c_string, resolve};
use crate::broker::Traffic;
use crate::cell::alone::Alone;
use crate::cell::disk_use::DiskUse;
use crate::cell::resume::Resume;
use crate::cell::state::State;
use crate::cell::uids::Lease;
use crate::cell::workspace::{self, Filling, Kept, Outputs, bounds};
use crate::cell::{Cell, Record};
use crate::confine::cgroup::Cgroup;
use crate::confine::command::Command;
use crate::confine::failure::Failure;
use crate::confine::ids::{fork_mappable, map_child};
use crate::confine::inherited::{OomOrder, Raised};
use crate::confine::mounts::Tree;
use crate::confine::{Confinement, MAP, clone_flags, has_init, seccomp};
use crate::fs::passed::Skips;
use crate::fs::walk::{Bounds, Passed};
use crate::fs::wipe::Wiped;
use crate::host::Step;
use crate::plan::{Apart, Identity, Plan, rules};
use crate::run::files;
use crate::run::job::Job;
use crate::run::keeper::{self, Charge, Keeper, Ward, end_all, wipe};
use crate::run::progress::{Progress, Stage};
use crate::run::report::{Timings, Usage};
use crate::run::supervise::modes::Modes;
use crate::run::supervise::relay::Relay;
use crate::run::supervise::terminal::Terminal;
use crate::run::supervise::{Ended, Outcome, Watch};
use crate::secret::Secret;
use crate::sys::channel::Channel;
use crate::sys::ids::Ids;
use crate::sys::process::{Fork, fork_into};
use crate::sys::signals::Signals;
use crate::types::error::{Error, Result};
use crate::types::layout::{CellFile, Places};

/// Everything that is the same for every attempt at a launch.
pub(super) struct Run<'a> {
    pub job: &'a Job,
    pub launcher: Ids,
    pub state: State,
    pub secret: Option<Arc<Secret>>,
    pub handed: Handed,
    pub oom_order: OomOrder,
    pub kept: Option<Kept>,
    pub resume: Option<Resume>,
    pub copy_in: Option<OwnedFd>,
    pub signals: Signals,
    pub progress: Progress,
    pub started: Instant,
    pub rehearsal: bool,
}

/// What a finished attempt came to.
pub(super) struct Finished {
    pub cell: String,
    pub outcome: Outcome,
    pub error: Option<Error>,
    pub timings: Timings,
    pub usage: Usage,
    pub disk: Option<DiskUse>,
    pub traffic: Option<Traffic>,
    pub wiped: Wiped,
    pub skipped: Skips,
}

/// What an attempt has made before the clone.
struct Prepared {
    cell: Cell,
    places: Places,
    files: Vec<CellFile>,
    agent: Ids,
    lease: Option<Lease>,
    alone: Option<Alone>,
    words: Words,
    skipped: Passed,
}

impl Prepared {
    /// From here on something runs under the UID.
    fn use_lease(&self, plan: &Plan) {
        self.lease.iter().for_each(Lease::use_it);
        self.lease.iter().filter(|_| plan.shares_places()).for_each(Lease::share);
    }
}

/// The launcher's ends of what it shares with the child.
struct Ends {
    channel: Channel,
    /// Both ends of that to the keeper, where there is one.
    keeper: Option<(Channel, Channel)>,
    exec_failed: OwnedFd,
    relays: Vec<Relay>,
    modes: Option<Modes>,
}

/// A cloned child and what must be undone after it.
struct Launched<'a> {
    plan: &'a Plan,
    cell: Cell,
    lease: Option<Lease>,
    agent: Ids,
    /// Held to the end.
    alone: Option<Alone>,
    watch: Watch<'a>,
    /// Orphans come to the launcher, where nothing else has them.
    adopts: bool,
    cloned: Instant,
}

impl Run<'_> {
    /// The plan on the host as it is known by now.
    pub fn replan(&self, host: &crate::host::Host) -> Result<Plan, Box<crate::plan::Refusal>> {
        Plan::new(&self.job.request, &self.job.level.value, &self.job.agent.value, host)
    }

    /// One launch, to the end of the run and the wipe; or to the step that this host does not offer.
    pub fn attempt(
        &self,
        plan: &Plan,
        outputs: &mut Option<Outputs>,
        terminal: &mut Option<Terminal>,
    ) -> Result<Finished> {
        let lease = match (plan.identity, &self.kept) {
            (Identity::PerRun(range), _) => Some(Lease::take(&self.state, range)?),
            (Identity::Owner, Some(kept)) if kept.bound => Some(Lease::bound(&self.state, kept.owner.uid)?),
            _ => None,
        };
        let agent = match (&lease, &self.kept, plan.identity) {
            (_, Some(kept), Identity::Owner) => kept.owner,
            (Some(lease), ..) => lease.ids(),
            _ => self.launcher,
        };
        let alone = match plan.apart {
            Apart::InTime if !self.rehearsal => {
                Some(Alone::take(&self.state, agent.uid, plan.wait, &self.signals, &|why| {
                    self.progress.note_once(why)
                })?)
            }
            _ => None,
        };
        self.progress.stage(Stage::Leased, || format!("uid {}", agent.uid));
        let mut cell = Cell::create(&self.state)?;
        self.progress.stage(Stage::Created, || cell.path.display().to_string());
        let mut places = match &plan.root {
            Some(_) => Places::private(),
            None => cell.lay_out(agent, self.launcher)?,
        };
        if let (None, Some(kept)) = (&plan.root, &self.kept) {
            places.work.clone_from(&kept.directory.path);
        }
        let listener = self.listener(plan, &mut places)?;
        cell.record(&self.record(plan, &cell, lease.as_ref()))?;
        let words = self.words(plan)?;
        let own = words.authority.as_deref();
        let files = files::of_cell(plan, self.job, &places, agent, terminal.is_some(), own);
        let mut skipped = Passed::default();
        if plan.root.is_none() {
            cell.write(&files, agent, self.launcher)?;
            skipped = workspace::fill(cell.dir(), &self.filling(outputs, agent))?;
            workspace::without(&plan.hidden, &places.work, self.kept.as_ref())?;
        }
        self.count(&cell, plan).map_err(|stopped| self.too_much(plan, stopped))?;
        self.progress.stage(Stage::Written, || format!("{} files", files.len()));
        let prepared = Prepared { cell, places, files, agent, lease, alone, words, skipped };
        match self.launch(plan, prepared, listener, outputs, terminal)? {
            Ok(launched) => self.follow(launched, outputs, terminal),
            Err(finished) => Ok(*finished),
        }
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
            credential: plan.credential.file().map(str::to_owned),
        }
    }

    fn filling(&self, outputs: &Option<Outputs>, agent: Ids) -> Filling<'_> {
        Filling {
            source: self.copy_in.as_ref().map(OwnedFd::as_fd),
            kept: self.kept.as_ref().map(|kept| kept.directory.fd.as_fd()),
            home: self.resume.as_ref().and_then(Resume::before),
            keep_base: outputs.as_ref().is_some_and(Outputs::needs_base),
            owner: (agent != self.launcher).then_some(agent),
            bounds: Bounds { lenient: self.job.request.copy_in_skip, ..bounds(&self.job.level.value.limits) },
        }
    }

    /// What answers for modes of files, where the filter asks. Without a private root HOME, TMPDIR and workspace are
    /// directories.
    fn modes(&self, plan: &Plan, prepared: &Prepared) -> Result<Option<Modes>> {
        if plan.filter.is_none_or(|filter| filter.modes == rules::Modes::Free) {
            return Ok(None);
        }
        let Prepared { places, cell, agent, .. } = prepared;
        let cannot = |error| Error::new("hold the cell's directories", error).hint("raise the limit on open files");
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let of_cell = [&places.home, &places.tmp, &places.work];
        let named = of_cell.iter().filter_map(|path| path.strip_prefix(&cell.path).ok());
        let own = named.map(|name| openat(cell.dir(), name, flags, Mode::empty()).map_err(cannot));
        let kept = self.kept.iter().map(|kept| openat(&kept.directory.fd, ".", flags, Mode::empty()).map_err(cannot));
        let own = own.chain(kept).collect::<Result<Vec<OwnedFd>>>()?;
        Ok(Some(Modes::new(own, (*agent != self.launcher).then_some(*agent))))
    }

    /// This process is the keeper.
    fn keep(&self, plan: &Plan, prepared: Prepared, ward: Ward) -> ! {
        let Prepared { cell, lease, agent, alone, .. } = prepared;
        let cgroups = plan.cgroup.as_ref().map(|cgroups| Cgroup::planned(cgroups, &cell.id));
        let held = self.kept.iter().flat_map(Kept::descriptors).chain(alone.iter().map(Alone::as_fd)).collect();
        let alone = alone.is_some().then_some(agent.uid);
        Charge { cell, lease, alone, cgroups: cgroups.unwrap_or_default(), held, ward }.keep()
    }

    /// Clones the child, which puts the plan into force and starts the agent. Gives the finished attempt where the
    /// host grants no such clone.
    fn launch<'a>(
        &'a self,
        plan: &'a Plan,
        prepared: Prepared,
        listener: Option<OwnedFd>,
        outputs: &Option<Outputs>,
        terminal: &mut Option<Terminal>,
    ) -> Result<Result<Launched<'a>, Box<Finished>>> {
        let (confinement, ends) = self.confinement(plan, &prepared, outputs, terminal.is_some())?;
        // What a dead keeper leaves comes to us (gVisor has no such thing: there the UID ends it).
        let adopts = !plan.namespaces.pid && prctl::set_child_subreaper(true).is_ok();
        let (keeper, theirs) = ends.keeper.unzip();
        let cloned = Instant::now();
        prepared.use_lease(plan);
        let child = match self.fork(plan, theirs.is_some()) {
            Ok((Fork::Child, raised)) => {
                // Init and keeper would keep them open: they must see the launcher's end of their channel close.
                drop((ends.channel, ends.exec_failed, ends.relays, ends.modes, keeper, listener));
                let Some(channel) = theirs else { confinement.start() };
                let ward = keeper::start(confinement, clone_flags(&plan.namespaces), channel);
                raised.iter().for_each(Raised::restore_in_keeper);
                self.keep(plan, prepared, ward)
            }
            Ok((Fork::Parent(child), _)) => child,
            Err(failure) => {
                drop(confinement);
                return Ok(Err(Box::new(self.not_cloned(prepared.cell, prepared.lease, failure))));
            }
        };
        drop((confinement, theirs));
        self.progress.stage(Stage::Cloned, || format!("pid {child}"));
        let watch = Watch {
            child,
            has_init: has_init(plan, terminal.is_some()),
            keeper: keeper.map(|channel| Keeper::new(child, channel)),
            channel: ends.channel,
            exec_failed: Some(File::from(ends.exec_failed)),
            signals: &self.signals,
            deadline: Instant::now().checked_add(plan.timeout),
            grace: plan.grace,
            relays: ends.relays,
            terminal: terminal.take(),
            modes: ends.modes,
            broker: self.broker(plan, prepared.words, prepared.agent, listener),
            counter: None,
            top: None,
            skipped: prepared.skipped,
            started: None,
        };
        Ok(Ok(Launched {
            plan,
            cell: prepared.cell,
            lease: prepared.lease,
            agent: prepared.agent,
            alone: prepared.alone,
            watch,
            adopts,
            cloned,
        }))
    }

    /// Clones the child, or the keeper that clones in its turn. While that lasts, both are what the OOM killer takes first.
    fn fork(&self, plan: &Plan, keeper: bool) -> Result<(Fork, Option<Raised<'_>>), Failure> {
        let raised = plan.limits.oom_score_adj.map(|_| self.oom_order.raise()).transpose()?;
        let fork = if plan.mapped_outside && !keeper { fork_mappable } else { fork_into };
        let forked = fork(if keeper { CloneFlags::empty() } else { clone_flags(&plan.namespaces) });
        let forked = forked.map_err(|errno| Failure::at(Step::Clone, errno, "clone into new namespaces"))?;
        Ok((forked, raised))
    }

    /// Everything that can fail without the kernel, done before the clone.
    fn confinement<'a>(
        &'a self,
        plan: &'a Plan,
        prepared: &'a Prepared,
        outputs: &Option<Outputs>,
        terminal: bool,
    ) -> Result<(Confinement<'a>, Ends)> {
        let Prepared { cell, places, files, agent, .. } = prepared;
        let cannot =
            |what: &'static str| move |errno: Errno| Error::new(what, errno).hint("raise the limit on open files");
        let (ours, theirs) = Channel::pair().map_err(cannot("open a channel to the cell"))?;
        let (exec_read, exec_write) = pipe2(OFlag::O_CLOEXEC).map_err(cannot("open a pipe to the cell"))?;
        let (stdio, relays) = self.streams(plan, terminal)?;
        let command = Command {
            program: c_string(plan.program.as_os_str()),
            arguments: plan.arguments.iter().map(|text| c_string(&resolve(text, places))).collect(),
            environment: self.environment(plan, places, &prepared.words),
            stdio,
            around_credential: self.around_credential(),
            credential: self.credential_pipe(plan, prepared.words.phantom.as_deref())?,
            exec_failed: exec_write,
        };
        let directory = self.kept.as_ref().map(|kept| &kept.directory);
        let tree = plan.root.as_ref().map(|root| {
            let (agent, launcher) = (*agent, self.launcher);
            // Where no PID namespace ends them, `sweep` knows the cell's processes by what they have mounted.
            let source = if plan.namespaces.pid { "tmpfs" } else { &cell.id };
            let hidden = &plan.hidden[..];
            Tree { root, at: &cell.path, source, files, workspace: directory, hidden, agent, launcher }
        });
        let confinement = Confinement {
            plan,
            places,
            launcher: self.launcher,
            launcher_pid: std::process::id(),
            agent: *agent,
            hand_out: tree.is_some() && (outputs.as_ref().is_some_and(Outputs::any) || self.resume.is_some()),
            tree,
            work: directory.map(|directory| directory.fd.as_fd()).filter(|_| plan.root.is_none()),
            filling: self.filling(outputs, *agent),
            keeper: None,
            filter: plan.filter.as_ref().map(seccomp::compile).unwrap_or_default(),
            rehearsal: self.rehearsal,
            terminal,
            channel: theirs,
            command,
        };
        let pair = || Channel::pair().map_err(cannot("open a channel to the keeper"));
        let keeper = (!plan.namespaces.pid).then(pair).transpose()?;
        let modes = self.modes(plan, prepared)?;
        Ok((confinement, Ends { channel: ours, keeper, exec_failed: exec_read, relays, modes }))
    }

    /// Stays with the child to its end, ends what it leaves, and wipes the cell.
    fn follow(
        &self,
        launched: Launched<'_>,
        outputs: &mut Option<Outputs>,
        terminal: &mut Option<Terminal>,
    ) -> Result<Finished> {
        let Launched { plan, cell, lease, agent, alone, mut watch, adopts, cloned } = launched;
        let (cgroup, refused) = match self.let_go(plan, &cell.id, agent, &watch) {
            Ok(cgroup) => (cgroup, None),
            Err(failure) => (None, Some(failure)),
        };
        let refused = refused.or(self.start_counter(plan, &cell, &mut watch));
        let watched = watch.run(|| self.progress.stage(Stage::Running, || plan.program.display().to_string()));
        let end_all = |keeper: &mut Option<Keeper>| {
            let by_us = || end_all(&cell, lease.as_ref(), alone.as_ref().map(|_| agent.uid), adopts);
            self.end_all(plan, keeper, by_us)
        };
        let outcome = watched.map_err(|errno| {
            // Nothing of the cell goes on unwatched.
            watch.abandon();
            end_all(&mut None);
            Error::new("watch the agent", errno)
        })?;
        let outcome = refused.map_or(outcome, Outcome::Failed);
        let (outcome, traffic) = dismiss(watch.broker.take(), outcome);
        let ended = Instant::now();
        self.progress.stage(Stage::Ended, || match &outcome {
            Outcome::Ran(ended) => ended.to_string(),
            Outcome::Failed(failure) => format!("cannot {}: {}", failure.action, failure.errno.desc()),
        });
        let peak = cgroup.as_ref().and_then(Cgroup::peak);
        drop(cgroup);
        let dead = end_all(&mut watch.keeper);
        self.progress.stage(Stage::Killed, || "every process is dead".into());
        let outcome = match (outcome, watch.drain()) {
            (Outcome::Ran(_), Some(not_in_force)) => Outcome::Ran(not_in_force),
            (outcome, _) => outcome,
        };
        let (outcome, disk) = self.charged(plan, &cell, outcome, &mut watch);
        let mut skipped = Skips::of("copy-in", std::mem::take(&mut watch.skipped));
        let error = self.write_outputs(plan, &outcome, outputs, &watch, &cell, &mut skipped);
        let started = watch.started;
        *terminal = watch.terminal.take();
        // It would take the end of its channel for our death.
        let keeper = watch.keeper.take();
        drop(watch);
        let id = cell.id.clone();
        let wiped = wipe(cell, lease, dead);
        self.progress.stage(Stage::Wiped, || format!("{} files removed", wiped.files));
        keeper.into_iter().for_each(Keeper::dismiss);
        drop(alone);
        let timings = Timings {
            probe: self.job.probed.as_micros() as u64,
            prepare: micros(self.started, cloned),
            enter: started.map_or(0, |started| micros(cloned, started)),
            run: started.map_or(0, |started| micros(started, ended)),
            wipe: micros(ended, Instant::now()),
        };
        Ok(Finished { cell: id, outcome, error, timings, usage: usage(peak), disk, traffic, wiped, skipped })
    }

    /// Every process of the cell is dead afterwards: by the end of the namespace, by the keeper, or where neither has
    /// done it by us. Gives whether none is left.
    fn end_all(&self, plan: &Plan, keeper: &mut Option<Keeper>, by_us: impl FnOnce() -> bool) -> bool {
        let ended = match (plan.namespaces.pid, self.job.host.orphans) {
            (true, true) => Some(true),
            // gVisor does not wait for a namespace to be empty.
            (true, false) => None,
            (false, _) => keeper.as_ref().and_then(Keeper::has_ended_all),
        };
        ended.unwrap_or_else(|| {
            keeper.take().into_iter().for_each(Keeper::dismiss);
            by_us()
        })
    }

    /// Makes the control group while the child makes its mounts, and lets the child go on in it.
    fn let_go(&self, plan: &Plan, cell: &str, agent: Ids, watch: &Watch<'_>) -> Result<Option<Cgroup>, Failure> {
        let make = || plan.cgroup.as_ref().map(|cgroups| Cgroup::create(cgroups, cell, &plan.limits)).transpose();
        let gone_in = self.map_ids(plan, agent, watch).and_then(|()| make()).and_then(|cgroup| {
            let doors = cgroup.as_ref().map(Cgroup::doors).transpose()?.unwrap_or_default();
            if let Some(signal) = self.signals.asked_to_end() {
                return Err(Failure::plain(Errno::EINTR, &format!("start the agent after {signal}")));
            }
            let mut sent = doors.iter().try_for_each(|door| watch.channel.send(b"c", Some(door.as_fd())));
            sent = sent.and_then(|()| watch.channel.send(b"g", None));
            match sent {
                // A child that is gone has said why.
                Ok(()) | Err(Errno::EPIPE) => Ok(cgroup),
                Err(errno) => Err(Failure::plain(errno, "let the cell go on")),
            }
        });
        if gone_in.is_err() {
            watch.kill_child();
        }
        gone_in
    }

    /// Maps the agent's UID into the cell's user namespace, where there is one and the child may not.
    fn map_ids(&self, plan: &Plan, agent: Ids, watch: &Watch<'_>) -> Result<(), Failure> {
        if !plan.mapped_outside {
            return Ok(());
        }
        let mapped = match &watch.keeper {
            // Its child's number is only sure to the keeper.
            Some(keeper) => keeper.has_mapped(),
            None => map_child(watch.child, self.launcher, agent),
        };
        mapped.map_err(|errno| Failure::at(Step::UserMap, errno, MAP))?;
        // A child that is gone has said why.
        let _ = watch.channel.send(b"m", None);
        Ok(())
    }

    fn write_outputs(
        &self,
        plan: &Plan,
        outcome: &Outcome,
        outputs: &mut Option<Outputs>,
        watch: &Watch<'_>,
        cell: &Cell,
        skipped: &mut Skips,
    ) -> Option<Error> {
        if !matches!(outcome, Outcome::Ran(Ended::Exited(_) | Ended::Signaled(_) | Ended::Deadline)) {
            return None;
        }
        let top = watch.top.as_ref().map_or(cell.dir(), OwnedFd::as_fd);
        let bounds = bounds(&self.job.level.value.limits);
        let keep =
            |resume: &Resume| resume.keep(top, &plan.resume, &bounds).map(|passed| skipped.take("resume", passed));
        let resumable = self.resume.as_ref().map_or(Ok(()), keep);
        let Some(outputs) = outputs.take().filter(Outputs::any) else { return resumable.err() };
        let kept: Option<BorrowedFd<'_>> = self.kept.as_ref().map(|kept| kept.directory.fd.as_fd());
        outputs.write(top, kept, &bounds, skipped).and(resumable).err()
    }

    fn not_cloned(&self, cell: Cell, lease: Option<Lease>, failure: Failure) -> Finished {
        let id = cell.id.clone();
        let wiped = cell.wipe();
        if let Some(lease) = lease {
            lease.release();
        }
        Finished {
            cell: id,
            outcome: Outcome::Failed(failure),
            error: None,
            timings: Timings::default(),
            usage: Usage::default(),
            disk: None,
            traffic: None,
            wiped,
            skipped: Skips::default(),
        }
    }
}

fn micros(from: Instant, to: Instant) -> u64 {
    to.saturating_duration_since(from).as_micros() as u64
}
