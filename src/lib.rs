//! Runs many mutually distrusting users' coding agents on one host and leaves nothing behind.

pub mod attack;
pub mod cli;
pub mod error;
pub mod exit;
pub mod layer;
pub mod posture;
pub mod secret;
pub mod sys;
