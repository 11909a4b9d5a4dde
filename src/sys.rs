//! Every raw system call and every `unsafe` block of the crate, one kernel concept per file.

pub mod attack;
pub mod capabilities;
pub mod cgroup;
pub mod channel;
pub mod environ;
pub mod fds;
pub mod ids;
pub mod inherited;
pub mod inode;
pub mod ipc;
pub mod landlock;
pub mod mounts;
pub mod net;
pub mod notify;
pub mod proc;
pub mod process;
pub mod random;
pub mod seccomp;
pub mod signals;
pub mod tty;
pub mod vault;
