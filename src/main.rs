//! The `oubliette` program: everything is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use oubliette::cli::{Cli, Command};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Victim(probe) => oubliette::attack::victim(&probe.args),
        Command::Attack(probe) => oubliette::attack::attack(&probe.args),
        Command::Posture => oubliette::posture::print(),
        _ => ExitCode::SUCCESS,
    }
}
