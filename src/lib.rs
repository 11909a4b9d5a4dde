//! Runs many mutually distrusting users' coding agents on one host and leaves nothing behind.
//!
//! # The house
//!
//! Each room is a module, and each room is on a floor. A file uses rooms of lower floors and its own room, and nothing
//! else. A test reads the table below and every `use` of the source. Inside a room, the file that gives the room its name
//! uses the other files, and not the other way round; what still goes round is listed in that test, and the list only
//! gets shorter.
//!
//! | floor | room | what is there |
//! |---|---|---|
//! | 9 | [`commands`] | the subcommands: from parsed arguments to a status |
//! | 8 | [`doctor`] | the proof on a host: each level, an encounter of two cells, what was expected |
//! | 7 | [`run`] | a run: prepare, launch, follow, end every process, hand out, wipe, report |
//! | 6 | [`broker`] | the process that holds the credential; it confines itself as a cell does |
//! | 5 | [`confine`] | a plan put into force, one file a layer, in one order |
//! | 4 | [`plan`], [`cell`] | the pure function from request, policy, agent and host to a plan; one run's place on disk |
//! | 3 | [`host`], [`request`], [`policy`] | what is there; what was asked for; what is allowed, for each agent |
//! | 2 | [`fs`], [`attack`], [`secret`] | hostile trees by descriptor; what a hostile agent tries; the credential in memory |
//! | 1 | [`sys`], [`types`] | every raw call and every `unsafe`; the words of the field as values |
//!
//! # Reading it
//!
//! A run from its question to its end: [`request`] and [`policy`] (what is wanted), [`host`] (what is there), [`plan`]
//! (what will happen), [`cell`] (where), [`confine`] (how it is enforced), [`run`] (the straight line that does it all).
//! Then [`broker`], and [`doctor`] with [`attack`] for the proof. `sweep` in [`cell`] finishes what a crash left.

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
