//! What an attempt tells of a host: a step that failed takes the fact back that it rested on.
#![forbid(unsafe_code)]

use nix::errno::Errno;

use crate::host::facts::{Fact, Maker, USERNS_REMEDY, user_namespaces};
use crate::host::found::Host;

impl Host {
    /// Takes back a fact that an attempt has shown to be wrong. Gives whether anything changed: an attempt that fails
    /// for another reason than a missing feature is a failure, never a reason to run with less.
    pub fn learn(&mut self, step: Step, errno: Errno) -> bool {
        use Errno::{
            EACCES, EAFNOSUPPORT, EBUSY, EINVAL, ENODEV, ENOENT, ENOSPC, ENOSYS, ENOTTY, EOPNOTSUPP, EPERM, EROFS,
            EUSERS,
        };
        if step == Step::Descriptors {
            return std::mem::replace(&mut self.private_descriptors, false);
        }
        // gVisor with the host's network grants a namespace without any family in it.
        let of_the_host = matches!(
            errno,
            EACCES | EAFNOSUPPORT | EBUSY | EINVAL | ENODEV | ENOSPC | ENOSYS | ENOTTY | EOPNOTSUPP | EPERM | EUSERS
        );
        // /proc may be read-only or hide it.
        if !of_the_host && (step != Step::OomOrder || !matches!(errno, ENOENT | EROFS)) {
            return false;
        }
        let said = format!("{} answers {} ({})", step.call(), errno.desc().to_lowercase(), errno_name(errno));
        match step {
            Step::Clone => learn_namespaces(self, said, USERNS_REMEDY),
            Step::UserMap if self.uid == 0 => learn_namespaces(self, said, SETFCAP_REMEDY),
            Step::UserMap => learn_namespaces(self, said, USERNS_REMEDY),
            Step::Uts => lose(&mut self.uts, said, "allow sethostname(2) in the container's seccomp profile"),
            Step::Net => lose(&mut self.net, said, "grant CAP_SYS_ADMIN or user namespaces to the launcher"),
            Step::Listen => lose(&mut self.net, said, "allow a TCP listener on 127.0.0.1 in a new network namespace"),
            Step::Mount => lose(
                &mut self.mounts,
                said,
                "run outside this container's seccomp or AppArmor profile (Docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined)",
            ),
            Step::Pivot => lose(
                &mut self.mounts,
                said,
                "have a file system of its own at /, as switch_root(8) makes it: the initial ramfs cannot be left",
            ),
            Step::Proc => lose(
                &mut self.proc,
                said,
                "unmask /proc of the container (Docker: --security-opt systempaths=unconfined; Kubernetes: procMount: Unmasked)",
            ),
            Step::Landlock => {
                lose(&mut self.landlock, said, "use a kernel from 5.13 on with landlock in its lsm= list")
            }
            Step::Seccomp => lose(&mut self.seccomp, said, "use a kernel with CONFIG_SECCOMP_FILTER"),
            // EBUSY: whoever started us answers for its own filter already, and there is one such place.
            Step::Modes => {
                lose(&mut self.modes, said, "allow a seccomp filter that asks (SECCOMP_FILTER_FLAG_NEW_LISTENER)")
            }
            Step::Descriptors => false,
            Step::OomOrder => {
                lose(&mut self.oom_order, said, "mount /proc writable, and let the launcher's user read its program")
            }
            Step::Cgroup => lose(
                &mut self.cgroup,
                said,
                "run as root, or delegate a cgroup whose cgroup.subtree_control has memory and pids",
            ),
        }
    }
}

/// A step that a host may not offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// clone(2) with namespaces.
    Clone = 1,
    /// Writing the maps of a user namespace.
    UserMap,
    /// Naming the UTS namespace.
    Uts,
    /// The network namespace.
    Net,
    /// A mount.
    Mount,
    /// Mounting /proc.
    Proc,
    /// Entering a Landlock domain.
    Landlock,
    /// Loading the seccomp filter.
    Seccomp,
    /// Making or entering a cgroup.
    Cgroup,
    /// Being kept out of the launcher's environment and descriptors.
    Descriptors,
    /// Changing the root.
    Pivot,
    /// The broker's listener in the network namespace.
    Listen,
    /// Writing oom_score_adj.
    OomOrder,
    /// A filter that asks the launcher.
    Modes,
}

impl Step {
    const ALL: [Step; 14] = [
        Step::Clone,
        Step::UserMap,
        Step::Uts,
        Step::Net,
        Step::Mount,
        Step::Proc,
        Step::Landlock,
        Step::Seccomp,
        Step::Cgroup,
        Step::Descriptors,
        Step::Pivot,
        Step::Listen,
        Step::OomOrder,
        Step::Modes,
    ];

    /// From its number in a message of the child's.
    pub fn from_number(number: u8) -> Option<Step> {
        Step::ALL.into_iter().find(|step| *step as u8 == number)
    }

    fn call(self) -> &'static str {
        match self {
            Step::Clone => "clone(2) with namespaces",
            Step::UserMap => "the map of a user namespace",
            Step::Uts => "sethostname(2)",
            Step::Net => "the loopback of a network namespace",
            Step::Mount => "mount(2)",
            Step::Proc => "mounting /proc",
            Step::Landlock => "Landlock",
            Step::Seccomp => "seccomp(2)",
            Step::Cgroup => "the cgroup file system",
            Step::Descriptors => "/proc",
            Step::Pivot => "pivot_root(2)",
            Step::Listen => "a listener in a network namespace",
            Step::OomOrder => "/proc/self/oom_score_adj",
            Step::Modes => "a seccomp filter that asks",
        }
    }
}

fn lose<T>(fact: &mut Fact<T>, why: String, remedy: &str) -> bool {
    let had = matches!(fact, Fact::Has(_));
    *fact = Fact::lacks(why, remedy);
    had
}

/// Without the privilege a user namespace may still do; without that, nothing does.
fn learn_namespaces(host: &mut Host, said: String, remedy: &str) -> bool {
    let next = match host.namespaces {
        Fact::Has(Maker::Privilege) => user_namespaces(),
        Fact::Has(Maker::UserNamespace) => Fact::lacks(said, remedy),
        Fact::Lacks(_) => return false,
    };
    host.namespaces = next;
    true
}

/// From Linux 5.12 on a map that has UID 0 needs the capability, since a file with capabilities written inside would hold
/// outside (user_namespaces(7)).
const SETFCAP_REMEDY: &str = "grant CAP_SETFCAP or CAP_SYS_ADMIN to the launcher";

/// `EPERM` for people who know it by that name.
fn errno_name(errno: Errno) -> String {
    format!("{errno:?}")
}
