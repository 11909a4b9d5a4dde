//! Every raw system call and every `unsafe` block of the crate, one kernel concept per file.
