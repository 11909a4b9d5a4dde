//! The broker's program, which `oubliette run` executes: nobody else has anything to give to it.
#![forbid(unsafe_code)]

fn main() {
    oubliette::broker::serve()
}
