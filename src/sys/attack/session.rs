//! A session of its own for a child: keys and hangups of the caller's terminal are then nobody's but ours.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// The child leads a session, whose terminal is its standard input where that is one.
pub fn lead(command: &mut Command) {
    // SAFETY: both calls are async-signal-safe, take no pointer that the parent could free, and allocate nothing.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            // No terminal at all is the usual case.
            libc::ioctl(0, libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
}
