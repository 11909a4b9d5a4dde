//! `doctor`: what this host offers, for every level. The same plan as a run's, after trying each step for real.
#![forbid(unsafe_code)]

pub mod attack;
pub mod diagnosis;
mod encounter;
pub mod expect;
pub mod judge;
pub mod posture;
mod upstream;

pub use diagnosis::{Diagnosis, LevelReport, word};
