//! A victim and a hostile neighbour: what one agent can do to another on this host, tried instead of believed.
//!
//! [`victim`] makes one of every object that an agent may have and prints where they are; [`attack`] tries everything
//! against them and prints one verdict a line. Both are meant to run as the agents of two cells, and neither knows
//! about cells: run without any, they show what a cell has to stop.
#![forbid(unsafe_code)]

mod broker;
mod egress;
mod files;
mod ipc;
mod kernel;
mod proc;
mod reach;
mod shared;
mod signals;
mod sockets;
mod table;
mod target;
pub mod tried;
mod victim;

use std::ffi::OsString;
use std::fmt;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use serde::{Deserialize, Serialize};

use crate::attack::tried::Miss;
use crate::sys::attack::contain::{Ended, contain};
use crate::types::error::{Error, Result};
use crate::types::exit::Exit;

pub use broker::{HEADER, VICTIMS};
pub use egress::LISTED;
pub use table::{ATTACKS, Attack, Class};
pub use target::Target;
pub use victim::{Damage, victim};

/// Longest time for one attack; no attack waits on purpose for more than a thirtieth of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of an attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It worked.
    Open,
    /// Something stopped it.
    Blocked,
    /// There is nothing to attack: no such object, system call or right to try.
    Absent,
    /// It could have hit somebody else than the victim.
    NotTried,
}

/// One line of the attacker's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The attack's name.
    pub attack: &'static str,
    /// What it is about.
    pub class: Class,
    /// What came of it.
    pub verdict: Verdict,
    /// The proof, or the errno.
    pub detail: String,
}

/// Tries every attack of the table against the coordinates in `args` and prints one JSON object a line.
///
/// The coordinates are the first argument, `@FILE` or `-` for standard input.
pub fn attack(args: &[OsString]) -> ExitCode {
    let phantom = victim::given();
    // Before anything is opened here: what is open now was left open by whoever started us.
    let leaked: Vec<i32> = (3..1024).filter(|&number| crate::sys::fds::flags(number).is_some()).collect();
    let done = coordinates(args).and_then(|text| {
        let mut target: Target =
            serde_json::from_str(&text).map_err(|error| Error::new("read the coordinates", error.to_string()))?;
        target.leaked = leaked;
        target.settings = target.settings.or_else(|| std::env::var_os(files::SETTINGS).map(Into::into));
        target.phantom = phantom;
        report(&target)
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oubliette: {error}");
            Exit::Refused.into()
        }
    }
}

fn coordinates(args: &[OsString]) -> Result<String> {
    let first = args.first().map_or("-".into(), |word| word.to_string_lossy());
    if let Some(path) = first.strip_prefix('@') {
        return std::fs::read_to_string(path).map_err(|error| Error::new(format!("read {path}"), error));
    }
    if first != "-" {
        return Ok(first.into_owned());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|error| Error::new("read standard input", error))?;
    Ok(text)
}

fn report(target: &Target) -> Result<()> {
    let mut quiet = SigSet::empty();
    // kill(-1) hits its own sender's parent too, and a terminal stops whoever writes to it from the background.
    quiet.extend([Signal::SIGUSR1, Signal::SIGTTOU, Signal::SIGPIPE]);
    let _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&quiet), None);
    let mut out = std::io::stdout().lock();
    let mut done = 0;
    for attack in ATTACKS {
        let line = serde_json::to_string(&attempt(attack, target)).unwrap_or_default();
        writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| Error::new("write a verdict", error))?;
        done += 1;
    }
    writeln!(out, "{{\"done\":{done}}}").map_err(|error| Error::new("write the last line", error))
}

/// One attack in a child of its own, which is killed when it takes too long.
pub fn attempt(attack: &Attack, target: &Target) -> Finding {
    if let Some(why) = target.untried.get(attack.name) {
        let (verdict, detail) = (Verdict::NotTried, why.clone());
        return Finding { attack: attack.name, class: attack.class, verdict, detail };
    }
    let ended = contain(PATIENCE, || match (attack.run)(target) {
        Ok(proof) => format!("o{proof}").into_bytes(),
        Err(Miss::Blocked(why)) => format!("b{why}").into_bytes(),
        Err(Miss::Absent(why)) => format!("a{why}").into_bytes(),
    });
    let (verdict, detail) = match ended {
        Ok(Ended::Said(said)) => judge(&String::from_utf8_lossy(&said)),
        Ok(Ended::Signalled(number)) if stops(attack, number) => {
            (Verdict::Blocked, format!("killed by signal {number}"))
        }
        Ok(Ended::Signalled(number)) => failed(format_args!("killed by signal {number}")),
        Ok(Ended::Late) => failed(format_args!("no answer in time")),
        Err(errno) => failed(format_args!("no process for it: {errno:?}")),
    };
    Finding { attack: attack.name, class: attack.class, verdict, detail }
}

/// A filter kills by SIGSYS; a kernel without 32-bit entries answers one with a fault.
fn stops(attack: &Attack, number: i32) -> bool {
    number == Signal::SIGSYS as i32 || attack.name == "int80" && number == Signal::SIGSEGV as i32
}

/// A mistake of the suite: never let it look like protection.
fn failed(why: fmt::Arguments<'_>) -> (Verdict, String) {
    (Verdict::Open, format!("the attack itself failed: {why}"))
}

fn judge(said: &str) -> (Verdict, String) {
    let detail = |from: &str| from.to_owned();
    match said.split_at_checked(1) {
        Some(("o", rest)) => (Verdict::Open, detail(rest)),
        Some(("b", rest)) => (Verdict::Blocked, detail(rest)),
        Some(("a", rest)) => (Verdict::Absent, detail(rest)),
        // A panic or a short answer.
        _ => failed(format_args!("{said:?}")),
    }
}
