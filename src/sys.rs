//! Every raw system call and every `unsafe` block of the crate, one kernel concept per file.

pub mod environ;
pub mod fds;
pub mod inode;
pub mod vault;
