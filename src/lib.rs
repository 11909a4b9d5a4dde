//! Runs many mutually distrusting users' coding agents on one host and leaves nothing behind.
//!
//! The modules in the order of a run: what was asked for ([`cli`], [`request`], [`user`], [`secret`], [`login`]), what is allowed
//! ([`policy`], [`layer`]), what is there ([`host`], [`ranges`], [`program`], [`mcp`], together
//! a [`job`]), what will happen
//! ([`plan`]), where ([`state`], [`uids`], [`alone`], [`cell`], [`workspace`], [`files`]), how it is enforced ([`confine`]), how it
//! ends ([`supervise`], [`broker`], [`keeper`], [`wipe`], [`report`]), and [`run`] that does all of it in a line. [`sweep`] finishes what a crash
//! left.

//! # Reading it
//!
//! From the question to the proof, each part in the order in which it is worth reading. The first three are a run: what
//! decides and what confines is an afternoon of that, and the third ends it and hands out what came of it. The lines are
//! those of code, without tests, comments and blank ones; a test compares them, within a tenth.
//!
//! | part | modules | lines |
//! |---|---|---:|
//! | what is asked for, what is there, what will happen | [`cli`], [`request`], [`user`], [`secret`], [`login`], [`policy`], [`layer`], [`host`], [`ranges`], [`program`], [`mcp`], [`job`], [`plan`] | 4,600 |
//! | how it is put into force | [`state`], [`uids`], [`alone`], [`cell`], [`workspace`], [`files`], [`confine`], [`sys`] | 3,500 |
//! | how a run goes and what is left of it: nothing | [`run`], [`supervise`], [`keeper`], [`wipe`], [`tree`], [`sweep`], [`proc`], [`copy`], [`export`], [`patch`], [`rights`], [`resume`], [`report`], [`progress`], [`error`], [`exit`], [`commands`] | 4,200 |
//! | the credential outside of the cell, and the hosts inside of the list | [`broker`], [`plan::broker`], [`plan::egress`], [`plan::hold`], [`policy::hosts`] | 3,000 |
//! | what each agent is told | [`policy::agent`], [`policy::way`], [`policy::login`], [`policy::endpoint`], [`policy::rendered`], [`policy::claude`], [`policy::codex`], [`policy::denied`], [`policy::gemini`], [`policy::opencode`], [`policy::qwen`], [`policy::listing`] | 1,700 |
//! | the proof on a host | [`posture`], [`doctor`], [`attack`], [`sys::attack`] | 3,700 |

pub mod attack;
pub mod broker;
pub mod cell;
pub mod commands;
pub mod confine;
pub mod doctor;
pub mod fs;
pub mod host;
pub mod plan;
pub mod policy;
pub mod request;
pub mod run;
pub mod secret;
pub mod sys;
pub mod types;
