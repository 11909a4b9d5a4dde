//! Putting a plan into force. Only [`Confinement::enter`] makes a [`Confined`], and only [`Confined::exec`] starts the
//! agent:
//!
//! ```compile_fail,E0599
//! fn unconfined(confined: oubliette::confine::Confined) {
//!     let again = confined.clone();
//! }
//! ```
//!
//! ```compile_fail,E0451
//! use oubliette::confine::{Command, Confined};
//! fn with_another(confined: Confined, command: Command) -> Confined {
//!     Confined { command, ..confined }
//! }
//! ```
#![forbid(unsafe_code)]

pub mod capabilities;
pub mod cgroup;
pub mod command;
pub mod failure;
pub mod ids;
pub mod inherited;
pub mod init;
pub mod landlock;
pub mod limits;
pub mod mounts;
pub mod seccomp;
pub mod session;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use zeroize::Zeroizing;

use crate::cell::alone;
use crate::cell::workspace::Filling;
use crate::confine::command::{Command, announce, refuse};
use crate::confine::failure::Failure;
use crate::confine::mounts::Tree;
use crate::host::Step;
use crate::plan::rules::Modes;
use crate::plan::{Apart, Credential, Identity, Namespaces, Plan};
use crate::sys;
use crate::sys::channel::Channel;
use crate::sys::ids::Ids;
use crate::sys::seccomp::Instruction;
use crate::types::layout::Places;
use session::Terminal;

/// Everything that a child needs to put the plan into force; all that can fail without the kernel is done.
#[derive(Debug)]
pub struct Confinement<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Places of the cell.
    pub places: &'a Places,
    /// The launcher.
    pub launcher: Ids,
    /// Its process, as /proc numbers it.
    pub launcher_pid: u32,
    /// The agent.
    pub agent: Ids,
    /// The private root, where there is one.
    pub tree: Option<Tree<'a>>,
    /// The caller's workspace where there is no private root: the directory that was checked, whatever its name stands
    /// for by now.
    pub work: Option<BorrowedFd<'a>>,
    /// What fills the workspace, where it is on the cell's tmpfs.
    pub filling: Filling<'a>,
    /// The tmpfs is read after the run: hand its directory out.
    pub hand_out: bool,
    /// The compiled filter.
    pub filter: Vec<Instruction>,
    /// Put everything into force and start nothing: `explain` and `doctor` try the steps.
    pub rehearsal: bool,
    /// The terminal: the agent gets one of its own.
    pub terminal: bool,
    /// The child's end of the channel.
    pub channel: Channel,
    /// The keeper, of which this process is a child where there is no PID namespace.
    pub keeper: Option<Pid>,
    /// The command.
    pub command: Command,
}

/// A process in which the plan is in force. There is no other way to make one than [`Confinement::enter`].
#[derive(Debug)]
pub struct Confined {
    command: Command,
    terminal: Option<OwnedFd>,
    channel: Channel,
    has_init: bool,
}

/// The flags of clone(2) for a plan. Not the network's: the child makes that namespace by itself, which takes longer
/// than all the others, while the launcher makes the control group.
pub fn clone_flags(namespaces: &Namespaces) -> CloneFlags {
    let wanted = [
        (namespaces.user, CloneFlags::CLONE_NEWUSER),
        (namespaces.pid, CloneFlags::CLONE_NEWPID),
        (namespaces.mount, CloneFlags::CLONE_NEWNS),
        (namespaces.ipc, CloneFlags::CLONE_NEWIPC),
        (namespaces.uts, CloneFlags::CLONE_NEWUTS),
    ];
    wanted.into_iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| flag).collect()
}

/// Whether a process of ours stays beside the agent: as the first of a PID namespace, or only as leader of the session
/// on a terminal. An agent that leads the session itself could not be stopped with Ctrl-Z.
pub fn has_init(plan: &Plan, terminal: bool) -> bool {
    plan.namespaces.pid || terminal
}

/// What fails where the agent's UID does not get to its workspace.
pub const ENTER: &str = "enter the workspace";

/// What fails where a host grants user namespaces and no map.
pub const MAP: &str = "map the user namespace";

impl Confinement<'_> {
    /// Puts the plan into force and starts the agent, in a process that was cloned for it. A failure goes to the
    /// launcher by the channel.
    pub fn start(self) -> ! {
        let failures = self.channel.try_clone();
        let rehearsal = self.rehearsal;
        match self.enter() {
            Ok(confined) if rehearsal => {
                announce(&confined.command.exec_failed);
                sys::process::exit_now(0)
            }
            Ok(confined) => confined.exec(),
            Err(failure) => {
                if let Ok(channel) = failures {
                    let _ = channel.send(&failure.to_bytes(), None);
                }
                sys::process::exit_now(i32::from(crate::types::exit::Exit::Refused.status()))
            }
        }
    }

    /// Puts every layer of the plan into force, in the one order that works: what needs a right comes before that
    /// right is given up.
    ///
    /// # Errors
    /// The layer that could not be put into force. The process must then end: it may be half confined.
    pub fn enter(mut self) -> Result<Confined, Failure> {
        self.bind_to_parent()?;
        inherited::leave()?;
        self.map_ids()?;
        session::lead()?;
        self.name_and_network()?;
        self.mount()?;
        prctl::set_no_new_privs().map_err(|errno| Failure::plain(errno, "set no_new_privs"))?;
        capabilities::drop_bounding().map_err(|errno| Failure::plain(errno, "empty the capability bounding set"))?;
        if self.plan.identity == Identity::Caller {
            let kept = ids::keep_groups(&self.plan.groups);
            kept.map_err(|errno| Failure::plain(errno, "give up the launcher's groups"))?;
        } else {
            crate::sys::ids::become_run(self.agent).map_err(|errno| Failure::plain(errno, "become the run's UID"))?;
            // Each change of the UID clears it (prctl(2)).
            self.bind_to_parent()?;
        }
        capabilities::drop_all().map_err(|errno| Failure::plain(errno, "give up capabilities"))?;
        self.try_descriptors()?;
        let terminal = self.open_terminal()?;
        self.move_credential()?;
        limits::set(&self.plan.limits).map_err(|errno| Failure::plain(errno, "set resource limits"))?;
        if self.plan.apart == Apart::InTime {
            alone::mark_self().map_err(|errno| Failure::plain(errno, "mark the cell's processes"))?;
        }
        let entered = match self.work {
            Some(work) => nix::unistd::fchdir(work),
            None => nix::unistd::chdir(&self.places.work),
        };
        entered.map_err(|errno| Failure::plain(errno, &format!("{ENTER} {}", self.places.work.display())))?;
        if let Some(domain) = &self.plan.landlock {
            let entered = landlock::enter(domain, self.places, self.work);
            entered.map_err(|(action, errno)| Failure::at(Step::Landlock, errno, &action))?;
        }
        self.load_filter()?;
        let has_init = has_init(self.plan, self.terminal);
        Ok(Confined { command: self.command, terminal, channel: self.channel, has_init })
    }

    /// Loads the filter. Where that asks the launcher, the launcher gets the place at which it is asked: this process
    /// keeps nothing of it.
    fn load_filter(&self) -> Result<(), Failure> {
        match &self.plan.filter {
            None => sys::inherited::own_session_keyring()
                .map_err(|errno| Failure::plain(errno, "leave the caller's session keyring")),
            Some(filter) if filter.modes == Modes::Asked => {
                let listener = sys::notify::load(&self.filter)
                    .map_err(|errno| Failure::at(Step::Modes, errno, "load the seccomp filter that asks"))?;
                let sent = self.channel.send(b"M", Some(listener.as_fd()));
                sent.map_err(|errno| Failure::plain(errno, "hand the filter's questions to the launcher"))
            }
            Some(_) => sys::seccomp::load(&self.filter)
                .map_err(|errno| Failure::at(Step::Seccomp, errno, "load the seccomp filter")),
        }
    }

    /// The kernel ends this process when its parent ends, however that ends: the launcher or the keeper.
    fn bind_to_parent(&self) -> Result<(), Failure> {
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(|errno| Failure::plain(errno, "die with the launcher"))?;
        // A parent that died before sends no signal. In a PID namespace it cannot be seen; there the channel tells.
        match self.keeper {
            Some(keeper) if keeper != getppid() => Err(Failure::plain(Errno::ESRCH, "die with the keeper")),
            _ => Ok(()),
        }
    }

    /// The launcher maps what this process may not.
    fn map_ids(&self) -> Result<(), Failure> {
        if !self.plan.namespaces.user {
            return Ok(());
        }
        if self.plan.mapped_outside {
            self.hear(b"m")?;
            return prctl::set_dumpable(false).map_err(|errno| Failure::plain(errno, "hide this process's memory"));
        }
        ids::map_self(self.launcher).map_err(|errno| Failure::at(Step::UserMap, errno, MAP))
    }

    fn mount(&self) -> Result<(), Failure> {
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        let Some(tree) = &self.tree else { return self.wait_for_launcher() };
        let top = tree.lay_out()?;
        // The cell pays for what fills it.
        self.wait_for_launcher()?;
        if self.plan.namespaces.cgroup {
            // Its root is the group that the cell is in by now.
            nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP)
                .map_err(|errno| Failure::at(Step::Mount, errno, "give the cell a view of its own control group"))?;
        }
        self.fill(&top)?;
        if self.hand_out {
            let sent = self.channel.send(b"D", Some(top.as_fd()));
            sent.map_err(|errno| Failure::plain(errno, "hand the cell's tmpfs to the launcher"))?;
        }
        tree.enter()
    }

    /// Fills a fresh workspace, and keeps a copy of what it holds at the start.
    fn fill(&self, top: &OwnedFd) -> Result<(), Failure> {
        let filled = crate::cell::workspace::fill(top.as_fd(), &self.filling);
        let skipped = filled.map_err(|error| {
            let (action, cause) = error.parts();
            Failure::plain(Errno::UnknownErrno, &[action, &cause, error.remedy()].join("\n"))
        })?;
        let mut sent = skipped.messages().map(|message| self.channel.send(&message, None));
        let sent = sent.try_for_each(|sent| sent);
        sent.map_err(|errno| Failure::plain(errno, "tell the launcher what was not copied in"))
    }

    fn name_and_network(&self) -> Result<(), Failure> {
        if self.plan.namespaces.uts {
            nix::unistd::sethostname("cell").map_err(|errno| Failure::at(Step::Uts, errno, "name the cell"))?;
        }
        if self.plan.namespaces.net {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Failure::at(Step::Net, errno, "make the cell's network"))?;
            sys::net::loopback_up().map_err(|errno| Failure::at(Step::Net, errno, "bring the cell's loopback up"))?;
            self.listen()?;
        }
        Ok(())
    }

    /// Hands out a listener for the broker, and keeps none: a socket stays in the namespace in which it was made.
    fn listen(&self) -> Result<(), Failure> {
        if self.plan.broker.is_none() {
            return Ok(());
        }
        let (listener, _) = sys::net::listener(crate::plan::broker::PORT)
            .map_err(|errno| Failure::at(Step::Listen, errno, "listen in the cell's network"))?;
        let sent = self.channel.send(b"L", Some(listener.as_fd()));
        sent.map_err(|errno| Failure::plain(errno, "hand the listener to the launcher"))
    }

    /// After the UID has changed: a terminal of the cell's own belongs to whoever opens it.
    fn open_terminal(&self) -> Result<Option<OwnedFd>, Failure> {
        if !self.terminal {
            return Ok(None);
        }
        let Terminal { master, slave } = session::open_terminal()?;
        let sent = self.channel.send(b"T", Some(master.as_fd()));
        sent.map_err(|errno| Failure::plain(errno, "hand the terminal to the launcher"))?;
        Ok(Some(slave))
    }

    /// As the agent, and against the launcher, which is not dumpable: where even its environment opens, pipes of every
    /// other cell do. A cell with a /proc of its own sees none of them.
    fn try_descriptors(&self) -> Result<(), Failure> {
        let sees = self.plan.private_descriptors && !(self.plan.namespaces.pid && self.tree.is_some());
        if sees && File::open(format!("/proc/{}/environ", self.launcher_pid)).is_ok() {
            return Err(Failure::at(Step::Descriptors, Errno::EPERM, "keep the agent out of other processes"));
        }
        Ok(())
    }

    /// Where a pipe could be opened by others, or would be empty for the second agent, or the agent looks for a file,
    /// the credential moves from the pipe to a file that only the agent reads. The agent itself gets that as a
    /// descriptor, unless it or a shim opens it by its name.
    fn move_credential(&mut self) -> Result<(), Failure> {
        let Some(path) = self.places.credential(self.plan.credential.file()) else { return Ok(()) };
        let Some(pipe) = self.command.credential.take() else { return Ok(()) };
        let file = fill_from(pipe.into(), &path, &self.command.around_credential).map_err(|error| {
            Failure::plain(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)), "write the credential file")
        })?;
        if self.plan.credential == Credential::File && self.plan.shim.is_none() {
            self.command.credential = Some(file.into());
        }
        Ok(())
    }

    /// Goes into the control group that the launcher makes meanwhile; before that nothing of the agent's may run.
    fn wait_for_launcher(&self) -> Result<(), Failure> {
        self.hear(b"g")
    }

    /// Waits for a word of the launcher's, and goes through the doors that come before it.
    fn hear(&self, word: &[u8]) -> Result<(), Failure> {
        loop {
            match self.channel.receive() {
                Ok(Some(message)) => match (message.bytes.as_slice(), message.fd) {
                    (b"c", Some(door)) => cgroup::go_in(door.into())?,
                    (bytes, None) if bytes == word => return Ok(()),
                    _ => return Err(Failure::plain(Errno::EPROTO, "understand the launcher")),
                },
                Ok(None) => return Err(Failure::plain(Errno::EPIPE, "go on: the launcher is gone")),
                Err(errno) => return Err(Failure::plain(errno, "hear from the launcher")),
            }
        }
    }
}

impl Confined {
    /// Starts the agent: here, or as the child of this process where that stays (see [`has_init`]).
    pub fn exec(self) -> ! {
        if self.has_init { init::run(self) } else { self.become_agent() }
    }

    fn become_agent(self) -> ! {
        // Init leads the session where there is one, and has taken control.
        let control = match &self.terminal {
            Some(terminal) if !self.has_init => sys::tty::take_control(terminal.as_fd()),
            _ => Ok(()),
        };
        let Command { program, arguments, environment, stdio, credential, exec_failed, .. } = self.command;
        let errno = match control.and_then(|()| session::attach(stdio, self.terminal, credential, &exec_failed)) {
            Ok(()) => {
                announce(&exec_failed);
                sys::process::exec(&program, &arguments, &environment)
            }
            Err(errno) => errno,
        };
        refuse(&exec_failed, errno);
        sys::process::exit_now(i32::from(crate::types::exit::Exit::CannotExecute.status()))
    }
}

/// Writes what a pipe holds to an existing file, between two texts, and opens that to be read. The buffer is wiped.
fn fill_from(mut pipe: File, path: &Path, [before, after]: &[String; 2]) -> std::io::Result<File> {
    let mut buffer = Zeroizing::new([0; crate::sys::vault::MAX]);
    let mut length = 0;
    loop {
        match pipe.read(&mut buffer[length..])? {
            0 => break,
            more => length += more,
        }
    }
    let mut file = File::options().write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    for part in [before.as_bytes(), &buffer[..length], after.as_bytes()] {
        file.write_all(part)?;
    }
    File::open(path)
}
