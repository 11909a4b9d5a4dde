//! Runs many mutually distrusting users' coding agents on one host and leaves nothing behind.

pub mod cli;
pub mod copy;
pub mod error;
pub mod exit;
pub mod export;
pub mod layer;
pub mod patch;
pub mod secret;
pub mod sys;
pub mod tree;
pub mod wipe;
