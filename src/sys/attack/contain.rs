//! A child that does one dangerous thing and reports through a pipe; the parent never waits longer than it said.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2};

/// How the contained child ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It said this and exited.
    Said(Vec<u8>),
    /// A signal ended it: a seccomp filter that kills, a fault.
    Signalled(i32),
    /// It was still busy at the deadline and was killed.
    Late,
}

/// Runs `act` in a forked child and gives back what it returned.
///
/// # Errors
/// The errno of pipe2(2) or fork(2).
pub fn contain(time: Duration, act: impl FnOnce() -> Vec<u8>) -> Result<Ended, Errno> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the suite's processes are single-threaded, so the child may allocate and lock; it leaves by _exit and
    // never returns into the parent's code, not even by unwinding.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(read);
            let said = catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| b"panicked".to_vec());
            let done = std::fs::File::from(write).write_all(&said).is_ok();
            // SAFETY: ends this process only; nothing of the parent's is flushed or unlocked.
            unsafe { libc::_exit(i32::from(!done)) }
        }
        ForkResult::Parent { child } => {
            drop(write);
            let said = read_until(read, Instant::now() + time);
            Ok(reap(child, said))
        }
    }
}

fn read_until(pipe: OwnedFd, deadline: Instant) -> Option<Vec<u8>> {
    let mut said = Vec::new();
    let mut pipe = std::fs::File::from(pipe);
    loop {
        let left = deadline.checked_duration_since(Instant::now())?;
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return None,
            Ok(_) => {
                let mut part = [0; 4096];
                match pipe.read(&mut part) {
                    Ok(0) => return Some(said),
                    Ok(length) => said.extend_from_slice(&part[..length]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(_) => return Some(said),
                }
            }
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

fn reap(child: Pid, said: Option<Vec<u8>>) -> Ended {
    let patience = Instant::now() + Duration::from_millis(500);
    if said.is_none() {
        // Our own child, not yet waited for: the number cannot have been given to anybody else.
        let _ = kill(child, Signal::SIGKILL);
    }
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Signaled(_, signal, _)) if said.is_some() => return Ended::Signalled(signal as i32),
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) if Instant::now() < patience => {
                std::thread::sleep(Duration::from_micros(200));
            }
            Ok(WaitStatus::StillAlive) => {
                let _ = kill(child, Signal::SIGKILL);
                return Ended::Late;
            }
            _ => return said.map_or(Ended::Late, Ended::Said),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_secs(5);

    #[test]
    fn a_child_speaks_dies_or_is_late() {
        assert_eq!(contain(SHORT, || b"yes".to_vec()), Ok(Ended::Said(b"yes".to_vec())));
        let killed = contain(SHORT, || {
            let _ = kill(Pid::this(), Signal::SIGKILL);
            Vec::new()
        });
        assert_eq!(killed, Ok(Ended::Signalled(libc::SIGKILL)));
        let late = contain(Duration::from_millis(50), || {
            std::thread::sleep(Duration::from_secs(60));
            Vec::new()
        });
        assert_eq!(late, Ok(Ended::Late));
    }
}
