//! The real Claude Code in a real cell, led by the scripted model: what it can do, what it cannot, and what a hostile
//! workspace changes of that, at each level, for a root launcher and for a plain user's.

pub mod cases; // the calls of the table, and what must come of each at each level
mod credential; // the model gets it, and nobody sees it on its way
pub mod formats; // what the agent prints in which format, and a level that is not in force
mod home; // an agent that lives in somebody's home is shown alone
mod hostile; // a repository that wants to loosen the level
pub mod run; // one run: launcher, agent, model
pub mod table; // use case × level × launcher, and the README's part of it
pub mod turns; // several turns in one cell

pub use run::claude;
