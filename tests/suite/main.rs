//! The integration tests: one binary, so the crate is linked once.
#![forbid(unsafe_code)]

// What the tests stand on.
mod model; // a model that plays a fixed list of tool calls to a real agent, without a network

// What they show.
mod model_itself; // the scripted model says what the Messages API says
