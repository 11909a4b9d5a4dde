//! Runs many mutually distrusting users' coding agents on one host and leaves nothing behind.
//!
//! The modules in the order of a run: what was asked for ([`cli`], [`request`], [`user`], [`secret`], [`login`]), what is allowed
//! ([`policy`], [`layer`]), what is there ([`host`], [`ranges`], [`program`], [`mcp`], together
//! a [`job`]), what will happen
//! ([`plan`]), where ([`state`], [`uids`], [`alone`], [`cell`], [`workspace`], [`files`]), how it is enforced ([`confine`]), how it
//! ends ([`supervise`], [`broker`], [`keeper`], [`wipe`], [`report`]), and [`run`] that does all of it in a line. [`sweep`] finishes what a crash
//! left.

pub mod alone;
pub mod attack;
pub mod broker;
pub mod cell;
pub mod cli;
pub mod commands;
pub mod confine;
pub mod copy;
pub mod doctor;
pub mod error;
pub mod exit;
pub mod export;
pub mod files;
pub mod host;
pub mod job;
pub mod keeper;
pub mod layer;
pub mod login;
pub mod mcp;
pub mod patch;
pub mod plan;
pub mod policy;
pub mod posture;
pub mod proc;
pub mod program;
pub mod progress;
pub mod ranges;
pub mod report;
pub mod request;
pub mod run;
pub mod secret;
pub mod state;
pub mod supervise;
pub mod sweep;
pub mod sys;
pub mod tree;
pub mod uids;
pub mod user;
pub mod wipe;
pub mod workspace;
