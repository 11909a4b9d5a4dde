//! What the agent gets: its streams, its credential, its environment.
#![forbid(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::attempt::Run;
use super::brokered::Words;
use crate::confine::session::{CREDENTIAL_FD, Stdio, Stream};
use crate::plan::{Credential, Plan, Text};
use crate::policy::agents::login::ACCOUNT;
use crate::policy::agents::way::{Hand, Way};
use crate::request::Export;
use crate::run::supervise::relay::{Check, Relay};
use crate::secret::{Secret, SecretSource};
use crate::types::error::{Error, Result};
use crate::types::layout::{Places, expand};

impl Run<'_> {
    /// The agent's standard streams, and the pipes that are looked at on their way.
    pub(super) fn streams(&self, plan: &Plan, terminal: bool) -> Result<(Stdio, Vec<Relay>)> {
        let request = &self.job.request;
        let mut relays = Vec::new();
        if self.rehearsal {
            return Ok((Stdio([Stream::Inherit, Stream::Inherit, Stream::Inherit]), relays));
        }
        let check = plan.check.clone().unwrap_or_default();
        let own =
            |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(|error| Error::new("copy a standard stream", error));
        let mut piped = |to: OwnedFd, check: Check| -> Result<Stream> {
            let (read, write) =
                pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::new("open a pipe to the agent", errno))?;
            relays.push(Relay::new(read, to, check));
            Ok(Stream::To(write))
        };
        let stdin = match request.credential {
            Some(SecretSource::Stdin) => Stream::To(null()?),
            _ if terminal => Stream::Terminal,
            _ => Stream::Inherit,
        };
        let event = check.init_event.filter(|event| streams_events(&request.command, &event.argument));
        let to_stderr = request.export == Some(Export::Stdout);
        let stdout = match (event, &plan.settings) {
            (Some(event), Some(rendered)) => {
                let to = if to_stderr { own(std::io::stderr().as_fd())? } else { own(std::io::stdout().as_fd())? };
                piped(to, Check::Event { event, expected: Box::new(rendered.clone()), seen: false, line: Vec::new() })?
            }
            _ if to_stderr => Stream::To(own(std::io::stderr().as_fd())?),
            _ if terminal => Stream::Terminal,
            _ => Stream::Inherit,
        };
        let stderr = match check.stderr {
            texts if !texts.is_empty() => {
                piped(own(std::io::stderr().as_fd())?, Check::Texts { texts, tail: Vec::new() })?
            }
            _ if terminal && std::io::IsTerminal::is_terminal(&std::io::stderr()) => Stream::Terminal,
            _ => Stream::Inherit,
        };
        Ok((Stdio([stdin, stdout, stderr]), relays))
    }

    /// A pipe that holds the credential, or what stands for it, and whose other end is closed: read once, it is gone.
    pub(super) fn credential_pipe(&self, plan: &Plan, phantom: Option<&Secret>) -> Result<Option<OwnedFd>> {
        let piped = !matches!(plan.credential, Credential::None | Credential::Variable);
        let Some(secret) = self.handed_over(plan, phantom).filter(|_| piped) else {
            return Ok(None);
        };
        let failed = |error: std::io::Error| Error::new("hand the credential over", error);
        let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
        File::from(write).write_all(secret.expose()).map_err(failed)?;
        Ok(Some(read))
    }

    /// What stands before and after the credential in the file where the agent looks for it.
    pub(super) fn around_credential(&self) -> [String; 2] {
        match self.way().map(|way| &way.hand) {
            Some(Hand::File(file)) => {
                let account = self.handed.account.as_deref().unwrap_or_default();
                file.text.clone().map(|text| text.replace(ACCOUNT, account))
            }
            _ => [String::new(), String::new()],
        }
    }

    /// What the agent gets: the phantom, or the credential itself where no broker has it.
    fn handed_over<'a>(&'a self, plan: &Plan, phantom: Option<&'a Secret>) -> Option<&'a Secret> {
        let brokered = plan.broker.as_ref().is_some_and(|broker| broker.model.is_some());
        phantom.or(self.secret.as_deref().filter(|_| !brokered))
    }

    pub(super) fn environment(&self, plan: &Plan, places: &Places, words: &Words) -> Vec<CString> {
        let value = |text: &Text| match (text, &words.pass) {
            (Text::Pass(text), Some(pass)) => {
                expand(text, places).replace("{pass}", &String::from_utf8_lossy(pass.expose())).into()
            }
            _ => resolve(text, places),
        };
        let mut all: Vec<(OsString, OsString)> =
            plan.environment.iter().map(|(name, text)| (name.clone(), value(text))).collect();
        match (self.way().map(|way| &way.hand), self.handed_over(plan, words.phantom.as_deref())) {
            (Some(Hand::Descriptor(name)), _) => all.push((name.into(), CREDENTIAL_FD.to_string().into())),
            (Some(Hand::Variable(name)), Some(secret)) => {
                all.push((name.into(), OsString::from_vec(secret.expose().to_vec())));
            }
            _ => {}
        }
        all.into_iter()
            .map(|(mut name, value)| {
                name.push("=");
                name.push(value);
                c_string(&name)
            })
            .collect()
    }

    /// How the agent gets its credential.
    pub(super) fn way(&self) -> Option<&Way> {
        self.secret.as_ref().and_then(|secret| self.job.agent.value.way(secret.expose()))
    }
}

/// Whether the command asks for the event stream, before `--`.
fn streams_events(command: &[OsString], argument: &str) -> bool {
    let own = command.iter().take_while(|word| word.as_bytes() != b"--");
    own.map(|word| word.to_string_lossy()).any(|word| word == argument || word.ends_with(&format!("={argument}")))
}

fn null() -> Result<OwnedFd> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map(OwnedFd::from)
        .map_err(|error| Error::new("open /dev/null", error))
}

/// What a text of the plan is in this cell.
pub(super) fn resolve(text: &Text, places: &Places) -> OsString {
    match text {
        Text::Plain(text) | Text::Hidden(text) => text.clone(),
        Text::Template(text) => expand(text, places).into(),
        // Nobody answers to it.
        Text::Pass(text) => text.into(),
    }
}

/// The request was checked for NUL bytes, and the kernel gives none.
pub(super) fn c_string(text: &OsStr) -> CString {
    let bytes = OsString::from(text).into_vec();
    CString::new(bytes).unwrap_or_default()
}
