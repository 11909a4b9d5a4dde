//! Resource limits of each process (setrlimit(2)), soft and hard.
#![forbid(unsafe_code)]

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::plan::Limits;

/// Sets them. A limit that the caller already holds lower stays.
///
/// # Errors
/// The errno of setrlimit(2).
pub fn set(limits: &Limits) -> Result<(), Errno> {
    no_core()?;
    at_most(Resource::RLIMIT_NOFILE, limits.open_files.into())?;
    at_most(Resource::RLIMIT_FSIZE, limits.file_size.0)?;
    if let Some(processes) = limits.processes {
        at_most(Resource::RLIMIT_NPROC, processes.into())?;
    }
    if let Some(data) = limits.data {
        at_most(Resource::RLIMIT_DATA, data.0)?;
    }
    usual_stack()?;
    at_most(Resource::RLIMIT_MEMLOCK, 64 << 20)?;
    at_most(Resource::RLIMIT_MSGQUEUE, 1 << 20)?;
    at_most(Resource::RLIMIT_SIGPENDING, 4096)?;
    at_most(Resource::RLIMIT_NICE, 0)?;
    at_most(Resource::RLIMIT_RTPRIO, 0)
}

/// No core file of this process or its children, in a file or to a program.
///
/// # Errors
/// The errno of setrlimit(2).
pub fn no_core() -> Result<(), Errno> {
    // 1 and not 0: 0 stops core files, and 1 also a core_pattern that pipes to a program (core(5), the kernel's guard
    // against recursion), which would get the credential in the agent's memory.
    at_most(Resource::RLIMIT_CORE, 1)
}

/// The soft limit alone: without one the kernel maps everything upwards from one place (mmap_is_legacy), and every thread
/// reserves as much as there is. A program that needs more raises it for itself.
fn usual_stack() -> Result<(), Errno> {
    const USUAL: u64 = 8 << 20;
    let (soft, hard) = getrlimit(Resource::RLIMIT_STACK)?;
    if soft <= USUAL { Ok(()) } else { setrlimit(Resource::RLIMIT_STACK, USUAL, hard) }
}

fn at_most(resource: Resource, value: u64) -> Result<(), Errno> {
    let (soft, hard) = getrlimit(resource)?;
    let value = value.min(hard);
    // gVisor lets some limits not be set at all, not even to what they are.
    if (soft, hard) == (value, value) { Ok(()) } else { setrlimit(resource, value, value) }
}
