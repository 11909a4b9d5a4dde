//! Every raw system call and every `unsafe` block of the crate, one kernel concept per file.

pub mod attack;
pub mod environ;
pub mod fds;
pub mod vault;
