//! What the kernel says about this very process: the agent's side of "the plan never says more than the kernel did".
#![forbid(unsafe_code)]

mod kernel;
mod places;

use std::process::ExitCode;

use serde_json::{Value, json};

/// Prints one JSON object about this process.
pub fn print() -> ExitCode {
    println!("{}", collect());
    ExitCode::SUCCESS
}

/// Everything that the kernel tells; what it refuses to tell is there as its errno.
pub fn collect() -> Value {
    // First of all: nothing of our own is open yet.
    let fds = places::descriptors();
    json!({
        "ids": kernel::ids(),
        "caps": kernel::capabilities(),
        "no_new_privs": kernel::no_new_privs(),
        "seccomp": kernel::seccomp(),
        "landlock": kernel::landlock(),
        "namespaces": kernel::namespaces(),
        "process": kernel::process(),
        "limits": kernel::limits(),
        "descriptors": fds,
        "environ": places::environ(),
        "argv": std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>(),
        "cwd": places::cwd(),
        "root": places::list("/"),
        "outside": places::outside(),
        "mounts": places::mounts(),
        "cgroup": places::lines("/proc/self/cgroup"),
        "terminal": places::terminal(),
        "hostname": nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).ok(),
        "interfaces": places::interfaces(),
    })
}
