//! The program: parses the command line, does what it says, and turns an error into one message and one status.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    oubliette::commands::main()
}
