//! System calls that only the attack suite makes: each wrapper keeps memory safe whatever the kernel answers.

pub mod contain;
pub mod ipc;
pub mod kernel;
pub mod process;
pub mod session;
