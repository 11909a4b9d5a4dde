//! Ending and removing a control group by its directory.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Kills what is in a group and removes it. Gives whether it is gone.
pub fn remove(directory: &Path) -> bool {
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => return true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return true,
            Err(_) if Instant::now() > until => return false,
            Err(_) => kill_all(directory),
        }
        // A process that has just died still counts for a moment.
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn kill_all(directory: &Path) {
    if fs::write(directory.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let members = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for process in members.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid > 1) {
        let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
    }
}
