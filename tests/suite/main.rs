//! All integration tests are one binary: one link, one place for what they share.

mod attack; // a victim and a hostile neighbour without any cell: the suite must find every hole there is
mod need; // what a test needs of the host, and what happens without it
mod posture; // what `__posture` says about a process whose posture is known
