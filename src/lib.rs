//! Runs many mutually distrusting users' coding agents on one host and leaves nothing behind.

pub mod cli;
pub mod error;
pub mod exit;
pub mod layer;
pub mod secret;
pub mod sys;
