//! Hostile trees by descriptor: walk, copy, export, patch, wipe.
#![forbid(unsafe_code)]

pub mod copy;
pub mod export;
pub mod passed;
pub mod patch;
pub mod rights;
pub mod trusted;
pub mod walk;
pub mod wipe;
