//! Behaviour of the whole crate, in one binary.

// Wipe, copy, export and patch on hostile trees.
mod tree;
