//! Output of the agent's that is looked at on its way: an agent that goes on without its settings says so, and is
//! ended before it has done anything.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::PollFlags;

use crate::policy::agents::rendered::Rendered;
use crate::policy::agents::spec::InitEvent;

/// What a pipe takes without blocking once poll(2) says it is writable (PIPE_BUF, pipe(7)).
const CHUNK: usize = 4096;

/// The longest line that is held back to be looked at, in bytes.
const LINE: usize = 1 << 20;

/// A pipe from the agent to where the caller's stream leads.
#[derive(Debug)]
pub struct Relay {
    from: Option<File>,
    to: File,
    waiting: Vec<u8>,
    check: Check,
    broken: bool,
}

/// What is looked for.
#[derive(Debug)]
pub enum Check {
    /// Texts, any of which says that the level is not in force.
    Texts {
        /// The texts.
        texts: Vec<String>,
        /// The end of what has passed, where a text may have begun.
        tail: Vec<u8>,
    },
    /// The event in which the agent says what it is. Nothing passes before it.
    Event {
        /// How to know it.
        event: InitEvent,
        /// What it must say.
        expected: Box<Rendered>,
        /// It has come.
        seen: bool,
        /// A line that is not complete.
        line: Vec<u8>,
    },
    /// Nothing.
    None,
}

impl Relay {
    /// From a pipe to a stream.
    pub fn new(from: OwnedFd, to: OwnedFd, check: Check) -> Relay {
        Relay { from: Some(from.into()), to: to.into(), waiting: Vec::new(), check, broken: false }
    }

    /// What it waits for: more to read, or room to write. Never both, so that a slow reader slows the agent down and
    /// not the launcher.
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        if !self.waiting.is_empty() {
            return Some((self.to.as_fd(), PollFlags::POLLOUT));
        }
        self.from.as_ref().map(|from| (from.as_fd(), PollFlags::POLLIN))
    }

    /// Reads or writes once where that does not block. Gives a reason to end the run.
    pub fn pump(&mut self) -> Option<String> {
        if !self.waiting.is_empty() {
            if ready(self.to.as_fd(), PollFlags::POLLOUT) {
                self.write();
            }
            return None;
        }
        let from = self.from.as_ref()?;
        if !ready(from.as_fd(), PollFlags::POLLIN) {
            return None;
        }
        self.read()
    }

    /// Reads to the end and writes it all.
    pub fn drain(&mut self) -> Option<String> {
        let mut why = None;
        while self.from.is_some() || !self.waiting.is_empty() {
            if self.waiting.is_empty() {
                why = why.or(self.read());
            } else {
                self.write();
            }
        }
        why
    }

    fn read(&mut self) -> Option<String> {
        let mut chunk = [0; CHUNK];
        let from = self.from.as_mut()?;
        match from.read(&mut chunk) {
            Ok(0) => self.end(),
            Ok(length) => self.look(&chunk[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => None,
            Err(_) => self.end(),
        }
    }

    fn end(&mut self) -> Option<String> {
        self.from = None;
        if let Check::Event { line, .. } = &mut self.check {
            self.waiting.append(line);
        }
        None
    }

    fn write(&mut self) {
        let length = self.waiting.len().min(CHUNK);
        match self.to.write(&self.waiting[..length]) {
            Ok(written) => drop(self.waiting.drain(..written)),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock) => {}
            // The caller does not listen any more; the agent learns it from its next write, as it would from the
            // caller's own pipe.
            Err(_) => {
                self.waiting.clear();
                self.from = None;
                self.broken = true;
            }
        }
    }

    fn look(&mut self, chunk: &[u8]) -> Option<String> {
        match &mut self.check {
            Check::None => self.waiting.extend(chunk),
            Check::Texts { texts, tail } => {
                tail.extend(chunk);
                if let Some(found) = texts.iter().find(|text| contains(tail, text.as_bytes())) {
                    self.waiting.extend(chunk);
                    return Some(format!("the agent says «{found}»"));
                }
                let longest = texts.iter().map(String::len).max().unwrap_or(0);
                tail.drain(..tail.len().saturating_sub(longest));
                self.waiting.extend(chunk);
            }
            Check::Event { seen: true, .. } => self.waiting.extend(chunk),
            Check::Event { event, expected, seen, line } => {
                line.extend(chunk);
                while let Some(end) = line.iter().position(|&b| b == b'\n') {
                    let complete: Vec<u8> = line.drain(..=end).collect();
                    if let Some(verdict) = judge(&complete, event, expected) {
                        *seen = true;
                        if verdict.is_some() {
                            return verdict;
                        }
                    }
                    self.waiting.extend(complete);
                }
                if *seen {
                    self.waiting.append(line);
                }
                if line.len() > LINE {
                    return Some("the agent's first event is too long to be one".into());
                }
            }
        }
        None
    }
}

/// Nothing for another event; else whether the event is as the level wants it, or why not.
fn judge(line: &[u8], event: &InitEvent, expected: &Rendered) -> Option<Option<String>> {
    let said: serde_json::Value = serde_json::from_slice(line).ok()?;
    let text = |key: &str| said.get(key).and_then(serde_json::Value::as_str);
    if text("type") != Some(&event.kind) || text("subtype") != Some(&event.subtype) {
        return None;
    }
    let mode = text("permissionMode").unwrap_or_default();
    if mode != expected.mode {
        return Some(Some(format!("the agent runs in mode {mode} instead of {}", expected.mode)));
    }
    let tools = said.get("tools").and_then(serde_json::Value::as_array).into_iter().flatten();
    let names: Vec<&str> = tools.filter_map(serde_json::Value::as_str).collect();
    let unwanted = |name: &&&str| {
        let listed = expected
            .tools
            .as_ref()
            .is_some_and(|tools| !name.starts_with("mcp__") && !tools.iter().any(|t| t == **name));
        listed || expected.absent.iter().any(|absent| absent == **name)
    };
    Some(names.iter().find(unwanted).map(|name| format!("the agent has the tool {name}, which the level denies")))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Whether a descriptor can be read or written now, or has ended.
pub fn ready(fd: BorrowedFd<'_>, flags: PollFlags) -> bool {
    let mut fds = [nix::poll::PollFd::new(fd, flags)];
    nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(tools: Option<&[&str]>) -> Rendered {
        Rendered {
            mode: "dontAsk",
            tools: tools.map(|tools| tools.iter().map(|tool| (*tool).to_owned()).collect()),
            absent: vec!["WebFetch".into()],
            ..Rendered::default()
        }
    }

    #[test]
    fn an_event_that_says_too_much_ends_the_run() {
        let event = InitEvent { argument: String::new(), kind: "system".into(), subtype: "init".into() };
        let judge = |line: &str, tools| judge(line.as_bytes(), &event, &expected(tools));
        let init = |mode: &str, tool: &str| {
            format!(r#"{{"type":"system","subtype":"init","permissionMode":"{mode}","tools":["Read","{tool}"]}}"#)
        };
        assert_eq!(judge(&init("dontAsk", "mcp__x__y"), Some(&["Read"])), Some(None));
        assert!(judge(&init("dontAsk", "Bash"), Some(&["Read"])).unwrap().is_some());
        assert!(judge(&init("dontAsk", "WebFetch"), None).unwrap().is_some());
        assert!(judge(&init("bypassPermissions", "Read"), None).unwrap().is_some());
        assert_eq!(judge(r#"{"type":"assistant"}"#, None), None);
        assert_eq!(judge("no json", None), None);
    }

    #[test]
    fn a_text_is_found_across_two_reads() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let texts = vec!["did not load".to_owned()];
        let mut relay = Relay::new(read, write, Check::Texts { texts, tail: Vec::new() });
        assert_eq!(relay.look(b"These settings did n"), None);
        assert!(relay.look(b"ot load").is_some());
    }
}
