//! The test suite: one binary, so that it links once. One module per subject.
#![deny(unsafe_code)]

// What the tests stand on.
mod model; // a model that plays a fixed list of tool calls to a real agent, without a network
mod launch; // a place with a state directory, and the launcher started in it as root or as a plain user
mod need; // what a test needs from its host, and what happens when that is not there

// The repository itself.
mod generated; // man page and completions equal what the command line's definition says
mod readme; // what the pages promise is in the repository
mod shape; // function length, where unsafe is, words and file names

// The tests' own instruments.
mod attack; // a victim and a hostile neighbour without any cell: the suite must find every hole there is
mod model_itself; // the scripted model says what the Messages API says
mod posture; // what `__posture` says about a process whose posture is known

// Parts of a run.
mod tree; // wipe, copy, export and patch on hostile trees
mod crash; // `kill -9` at every stage, of launcher, init and both; sweep on what that leaves and on planted state
