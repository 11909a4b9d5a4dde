//! What a plan promises about each attack, before any is tried: which of its layers stop it, or why it is open.
//!
//! Pure: two plans and a few facts in, an expectation out. The verdicts of the kernel are held against it.
#![forbid(unsafe_code)]

use serde::Serialize;

use crate::host::Host;
use crate::plan::rules::Modes;
use crate::plan::{Identity, Plan};
use crate::types::layer::Layer;

mod rules;

use rules::Rule;
pub use rules::Stop;

/// What an attack must come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "expected", rename_all = "kebab-case")]
pub enum Expected {
    /// At least one of these stops it.
    Blocked {
        /// Layers of the plan, or what the launcher and the kernel do in every plan.
        by: Vec<&'static str>,
    },
    /// Nothing in the plan stops it; the host may.
    Open {
        /// Which layer would, and why it does not.
        why: String,
    },
    /// There is nothing to attack in such a cell.
    NotApplicable {
        /// Why.
        why: String,
    },
}

/// Facts about the host that no layer changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Around {
    /// The launcher's UID.
    pub uid: u32,
    /// The kernel guards less than Linux by UID and by capability, as gVisor's does: other UIDs open descriptors,
    /// environments and maps of a process.
    pub lenient: bool,
    /// The host's process 1 has the launcher's UID and no more rights than a plain user.
    pub init_is_ours: bool,
    /// The launcher's UID may write to the launcher's program.
    pub program_is_ours: bool,
}

impl Around {
    /// Looks at the host.
    pub fn probe(host: &Host) -> Around {
        use std::os::unix::fs::MetadataExt;
        let init = std::fs::metadata("/proc/1").map(|meta| meta.uid()).ok();
        let program = std::env::current_exe().unwrap_or_default();
        Around {
            uid: host.uid,
            lenient: !host.private_descriptors,
            init_is_ours: host.uid != 0 && init == Some(host.uid),
            program_is_ours: nix::unistd::access(&program, nix::unistd::AccessFlags::W_OK).is_ok(),
        }
    }
}

/// Victim and attacker, each by its plan.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The victim's.
    pub victim: &'a Plan,
    /// The attacker's.
    pub attacker: &'a Plan,
    /// The host.
    pub around: Around,
}

impl Scene<'_> {
    /// What this attack must come to. An attack without a rule must be blocked by nothing that is known, so it is open.
    pub fn expect(&self, attack: &str) -> Expected {
        if let Some(why) = self.inapplicable(attack) {
            return Expected::NotApplicable { why: why.to_owned() };
        }
        if self.lists_descriptors(attack) {
            return Expected::Open { why: "UID 0 owns and lists /proc/PID/fd of what is not dumpable".into() };
        }
        let Some(rule) = rules::of(attack) else {
            return Expected::Open { why: "no layer is said to stop it".into() };
        };
        let mut by: Vec<&'static str> = rule.stops.iter().filter_map(|stop| self.holds(*stop)).collect();
        by.dedup();
        if by.is_empty() { Expected::Open { why: self.why(rule).to_owned() } } else { Expected::Blocked { by } }
    }

    /// Why nothing holds against an attack: what the rule says, unless another reason comes first on this host.
    fn why(&self, rule: &Rule) -> &'static str {
        let by_uid = rule.stops.contains(&Stop::UidInProc) && self.holds(Stop::Uid).is_some();
        let by_init = rule.stops.contains(&Stop::ForeignInit) && !self.around.init_is_ours;
        match rule.why {
            _ if self.around.lenient && (by_uid || by_init) => rules::NOT_BY_UID,
            rules::HOST_NET if self.attacker.broker.is_some() => rules::BROKER_NET,
            rules::NO_RIGHT if self.attacker.landlock.is_none() => rules::ONE_UID,
            why => why,
        }
    }

    /// Why an attack must not even be tried here: it could reach what the command did not make itself.
    pub fn untried(&self, attack: &str) -> Option<&'static str> {
        let open = || matches!(self.expect(attack), Expected::Open { .. });
        let alone = self.holds(Stop::Pid).is_some() || self.holds(Stop::Uid).is_some();
        match attack {
            "kill-all" if !alone => Some("it would signal every process of this user"),
            "stop-init" | "kill-init" if open() => Some("it would end the attacker's own cell and nobody else's"),
            "kill-victim" if open() => Some("the victim must live to remove what it made; kill-usr1 shows the right"),
            "setpriority-user" | "ioprio-set-user" if open() => Some("it would slow every process of this user down"),
            "init-ptrace" | "init-mem" if open() => Some("process 1 is not one of ours"),
            "foreign-terminals" | "block-devices" | "kernel-devices" if open() => {
                Some("the devices belong to somebody else")
            }
            "write-outside" if open() && self.is_root() => Some("root would write into the directories of the host"),
            _ => None,
        }
    }

    /// Whether the attacker has UID 0.
    fn is_root(&self) -> bool {
        self.around.uid == 0 && self.attacker.identity == Identity::Caller
    }

    /// A process that is not dumpable has its /proc owned by root, and an owner lists what it cannot open.
    fn lists_descriptors(&self, attack: &str) -> bool {
        let shown = self.holds(Stop::ProcRules).is_none();
        let launchers = shown && self.holds(Stop::OwnProc).is_none();
        self.is_root() && (attack == "init-fd" && shown || attack == "launcher-fd" && launchers)
    }

    fn inapplicable(&self, attack: &str) -> Option<&'static str> {
        match attack {
            "stop-init" | "kill-init" if self.holds(Stop::Pid).is_none() => {
                Some("the cell has no process 1 of its own")
            }
            "set-uid-victim" if self.holds(Stop::Uid).is_none() => Some("both have the same UID"),
            name if name.starts_with("broker-") && self.victim.broker.is_none() => Some("the victim has no broker"),
            "egress-victims-list" if self.victim.broker.is_none() => Some("the victim has no broker"),
            name if name.starts_with("egress-") && self.attacker.broker.is_none() => Some("the attacker has no broker"),
            name if name.starts_with("settings-") && self.attacker.settings.is_none() => {
                Some("the agent that attacks has no settings")
            }
            _ => None,
        }
    }

    /// The layer by whose name a stop is in force.
    fn holds(&self, stop: Stop) -> Option<&'static str> {
        let plan = self.attacker;
        let has = |layer: Layer| plan.enforces(layer).then(|| layer.name());
        let when = |holds: bool, name: &'static str| holds.then_some(name);
        let filter = plan.filter.as_ref();
        let files = plan.landlock.as_ref().is_some_and(|landlock| landlock.files.is_some());
        let own_proc = plan.root.as_ref().is_some_and(|root| root.fresh_proc);
        let powerless = plan.enforces(Layer::Capabilities) || !self.is_root();
        match stop {
            Stop::Root | Stop::Pid | Stop::Ipc | Stop::Net => has(stop.layer()?),
            Stop::OwnInit => has(Layer::Pid).filter(|_| !self.around.lenient),
            Stop::NetInProc => has(Layer::Net).filter(|_| !self.around.lenient),
            Stop::OwnProc => when(own_proc && plan.enforces(Layer::Pid), "pid"),
            // A UID protects its owner: both must have one of their own.
            Stop::Uid => when(plan.identity != Identity::Caller && self.victim.identity != Identity::Caller, "uid"),
            Stop::UidInProc => self.holds(Stop::Uid).filter(|_| !self.around.lenient),
            Stop::Files => when(files, "landlock-fs"),
            // The rule for a private root shows all of its /proc; without one only files of no process are shown.
            Stop::ProcRules => when(files && plan.root.is_none(), "landlock-fs"),
            Stop::Domain => plan.landlock.as_ref().map(|landlock| match landlock {
                domain if domain.files.is_some() => "landlock-fs",
                domain if domain.scope => "landlock-scope",
                _ => "landlock-net",
            }),
            Stop::Scope => when(plan.landlock.as_ref().is_some_and(|landlock| landlock.scope), "landlock-scope"),
            Stop::Ports => {
                when(plan.landlock.as_ref().is_some_and(|landlock| landlock.connect.is_some()), "landlock-net")
            }
            Stop::PathSockets => has(Layer::PathSockets),
            Stop::UnixSockets => when(filter.is_some_and(|filter| !filter.unix), "seccomp"),
            Stop::Modes => when(filter.is_some_and(|filter| filter.modes == Modes::Asked), "launcher (modes of files)"),
            Stop::OwnCgroup => when(plan.namespaces.cgroup, "root"),
            Stop::Filter => filter.map(|_| "seccomp"),
            Stop::Tracing => when(filter.is_some_and(|filter| !filter.ptrace), "seccomp"),
            Stop::OtherProcesses => when(filter.is_some_and(|filter| !filter.others), "seccomp"),
            Stop::IpcCalls => when(filter.is_some_and(|filter| !filter.ipc), "seccomp"),
            Stop::NewNamespaces => when(filter.is_some_and(|filter| !filter.namespaces), "seccomp"),
            Stop::Internet => when(filter.is_some_and(|filter| !filter.inet), "seccomp"),
            Stop::Udp => when(filter.is_some_and(|filter| !filter.udp), "seccomp"),
            Stop::Powerless => when(powerless, "capabilities"),
            Stop::PowerlessOnLinux => when(powerless && !self.around.lenient, "capabilities"),
            Stop::Plain => when(powerless && !self.is_root(), "uid of a plain user"),
            Stop::NoNewPrivs => has(Layer::NoNewPrivs),
            Stop::MaskedProc => when(own_proc, "root"),
            Stop::ReadOnlyProc => when(plan.root.as_ref().is_some_and(|root| !root.writable_proc), "root"),
            Stop::ForeignInit => when(!self.around.init_is_ours && !self.around.lenient, "uid of process 1"),
            Stop::ForeignProgram => when(!self.around.program_is_ours, "mode of the program"),
            Stop::Hidden => when(!self.around.lenient, "launcher (not dumpable)"),
            Stop::Phantom | Stop::List => plan.broker.as_ref().map(|_| "broker"),
            Stop::Launcher => Some("launcher"),
        }
    }
}
