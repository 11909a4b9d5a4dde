//! The test suite: one binary, so that it links once. One module per subject.

// What the tests share.
mod need; // what a test needs from its host, and what happens when that is not there

// The repository itself.
mod generated; // man page and completions equal what the command line's definition says
mod readme; // what the pages promise is in the repository
mod shape; // function length, where unsafe is, words and file names
