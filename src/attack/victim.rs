//! The victim: one of every object that an agent may have, and at the end what was done to it.
#![forbid(unsafe_code)]

mod damage;
mod objects;

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

pub use damage::Damage;
use damage::Watch;
use objects::Objects;

use crate::sys::attack::process;
use crate::types::error::{Error, Result};
use crate::types::exit::Exit;

const NONCE: &str = "--nonce=";
const HIDDEN: &str = "--hidden";

/// Makes the objects, prints their coordinates, waits for the end of standard input, prints the damage.
///
/// It first starts its own program once more, because only what was handed over at exec is in the arguments and the
/// environment that /proc shows. With `--hidden` it then makes itself non-dumpable, as a launcher does.
pub fn victim(args: &[OsString]) -> ExitCode {
    let hidden = args.iter().any(|word| word == HIDDEN);
    let given = args.iter().filter_map(|word| word.to_str()?.strip_prefix(NONCE)).next();
    let (nonce, again) = match given {
        Some(nonce) => (nonce.to_owned(), true),
        None => {
            let secret = credential().unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
            let nonce: String = secret.chars().rev().collect();
            start_again(&nonce, hidden);
            (nonce, false)
        }
    };
    match live(&nonce, again, hidden) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oubliette: {error}");
            Exit::Refused.into()
        }
    }
}

/// The canary, where the victim is given one as an agent is given its credential.
fn credential() -> Option<String> {
    given().filter(|secret| [32, 64].contains(&secret.len()))
}

/// The credential of this process's cell, or the phantom that stands for it.
pub(super) fn given() -> Option<String> {
    let number = std::env::var("OUBLIETTE_CREDENTIAL_FD").ok()?.parse().ok()?;
    let mut text = String::new();
    crate::sys::fds::take(number).ok()?.read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

/// Comes back only when the program cannot be started again; then arguments and environment stay without the secret.
fn start_again(nonce: &str, hidden: bool) {
    let secret: String = nonce.chars().rev().collect();
    let mut command = Command::new("/proc/self/exe");
    command.arg0("oubliette").arg("__victim").arg(format!("{NONCE}{nonce}")).arg(format!("--token={secret}"));
    if hidden {
        command.arg(HIDDEN);
    }
    let _ = command.env("VICTIM_TOKEN", OsStr::new(&secret)).exec();
}

fn live(nonce: &str, again: bool, hidden: bool) -> Result<()> {
    let mut watch = Watch::new();
    let mut objects = Objects::make(nonce);
    objects.target.argv = again;
    objects.target.environ = again;
    if !again {
        objects.target.absent.insert("argv".into(), "cannot start /proc/self/exe again".into());
        objects.target.absent.insert("environ".into(), "cannot start /proc/self/exe again".into());
    }
    if hidden {
        process::set_dumpable(false);
    }
    say(&serde_json::to_value(&objects.target).unwrap_or_default())?;
    watch.before(&objects);
    watch.wait(&objects);
    let damage = watch.after(&objects);
    objects.target.remove();
    say(&serde_json::json!({ "damage": damage }))
}

fn say(line: &serde_json::Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| Error::new("write to standard output", error))
}
