//! What people see on standard error: one line per stage where it is a terminal, notes, and nothing where they ask
//! for quiet.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};

use nix::sys::signal::{Signal, raise};

/// A stage of a run. `OUBLIETTE_PAUSE_AT` stops the launcher at its beginning, for tests of what a crash leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Everything is checked, nothing is made.
    Planned,
    /// The UID is leased.
    Leased,
    /// The cell's directory is there.
    Created,
    /// The launcher's files are in it.
    Written,
    /// The child is cloned.
    Cloned,
    /// The agent runs.
    Running,
    /// The agent has ended.
    Ended,
    /// Every process is dead.
    Killed,
    /// The cell is wiped.
    Wiped,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Stage; 9] = [
        Stage::Planned,
        Stage::Leased,
        Stage::Created,
        Stage::Written,
        Stage::Cloned,
        Stage::Running,
        Stage::Ended,
        Stage::Killed,
        Stage::Wiped,
    ];

    /// Its name for `OUBLIETTE_PAUSE_AT`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Planned => "planned",
            Stage::Leased => "leased",
            Stage::Created => "created",
            Stage::Written => "written",
            Stage::Cloned => "cloned",
            Stage::Running => "running",
            Stage::Ended => "ended",
            Stage::Killed => "killed",
            Stage::Wiped => "wiped",
        }
    }
}

/// Where messages go.
#[derive(Debug)]
pub struct Progress {
    quiet: bool,
    stages: bool,
    pause: Option<String>,
    noted: std::cell::Cell<bool>,
}

impl Progress {
    /// `full_screen`: the agent gets the terminal, and no line of ours may disturb it.
    pub fn new(quiet: bool, full_screen: bool) -> Progress {
        let pause = std::env::var("OUBLIETTE_PAUSE_AT").ok();
        Progress {
            quiet,
            stages: !quiet && !full_screen && std::io::stderr().is_terminal(),
            pause,
            noted: std::cell::Cell::new(false),
        }
    }

    /// A stage begins.
    pub fn stage(&self, stage: Stage, detail: impl FnOnce() -> String) {
        if self.stages {
            say(&format!("{:<8} {}", stage.name(), detail()));
        }
        if self.pause.as_deref() == Some(stage.name()) {
            let _ = raise(Signal::SIGSTOP);
        }
    }

    /// Something that people should know though the run goes on.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }

    /// The same, the first time only.
    pub fn note_once(&self, text: &'static str) {
        if !self.noted.replace(true) {
            self.note(text);
        }
    }
}

/// One line on standard error. A closed one is no reason to end a run.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "oubliette: {}", one_line(text));
}

/// Without a control character: a path with a line end in it would forge a second message, one with an escape sequence
/// would steer the reader's terminal.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_debug());
        } else {
            line.push(c);
        }
    }
    line
}
