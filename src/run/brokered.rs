//! What a run has to do with its broker: what the caller hands to it, what the cell shows to it, and how it ends.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::attempt::Run;
use crate::broker::authority::Authority;
use crate::broker::{Broker, Held, Injected, Setup, Traffic, trust};
use crate::plan::Plan;
use crate::request::injection::Injection;
use crate::run::job::Job;
use crate::run::supervise::{Ended, Outcome};
use crate::secret::{Secret, SecretSource};
use crate::sys;
use crate::sys::ids::Ids;
use crate::types::error::{Error, Result};
use crate::types::hosts::HostName;
use crate::types::layout::Places;
use crate::types::network::Hold;

/// What the caller hands to the broker beside the credential.
#[derive(Default)]
pub(super) struct Handed {
    injected: Vec<Injected>,
    client_key: Option<Arc<Secret>>,
    /// The account's name, for the agent.
    pub(super) account: Option<String>,
}

impl Handed {
    /// Reads it, but for the account's name.
    ///
    /// # Errors
    /// A file that cannot be read, or holds something else.
    pub fn read(job: &Job, account: Option<String>) -> Result<Handed> {
        let one = |injection: &Injection| {
            let secret = Arc::new(Secret::read(&SecretSource::File(injection.file.clone()), None)?);
            Ok(Injected { rule: injection.rule.clone(), header: injection.header.clone(), secret })
        };
        let injected = job.request.inject.iter().map(one).collect::<Result<_>>()?;
        let client_key = job.request.client_cert.as_deref().map(|path| {
            let key = Secret::read_lines(path, "client certificate")?;
            trust::has_identity(key.expose()).map_err(|why| {
                Error::new(format!("use the client certificate of {}", path.display()), why)
                    .hint("name a file with a certificate and its key in PEM")
            })?;
            Ok(Arc::new(key))
        });
        Ok(Handed { injected, client_key: client_key.transpose()?, account })
    }
}

/// What the cell has to show to its broker. Their memory is not copied by the clone: a child must not drop them, which
/// would wipe that.
pub(super) struct Words {
    /// In the credential's stead.
    pub phantom: Option<Arc<Secret>>,
    /// For the broker as a proxy: worth the list's hosts and not the credential, since it stands in variables.
    pub pass: Option<Arc<Secret>>,
    /// What the cell trusts beside the host's authorities.
    pub authority: Option<Arc<Authority>>,
}

impl Run<'_> {
    /// What the agent gets where there is a broker. A rehearsal has none.
    pub(super) fn words(&self, plan: &Plan) -> Result<Words> {
        let mut words = Words { phantom: None, pass: None, authority: None };
        let Some(broker) = plan.broker.as_ref().filter(|_| !self.rehearsal) else { return Ok(words) };
        words.pass = Some(Arc::new(Secret::phantom("")?));
        if !broker.injected.is_empty() {
            let names: Vec<HostName> = broker.injected.iter().map(|one| one.rule.name.clone()).collect();
            words.authority = Some(Arc::new(Authority::new(&names, plan.timeout)?));
        }
        if broker.model.is_some() {
            // Without a phantom the agent would get the credential itself.
            let way = self.way().ok_or_else(|| {
                Error::new(
                    "broker the credential",
                    "it begins like none that the agent's file has a `credential.way` for",
                )
                .hint("add the way to the agent's file, or use --network host, where the agent holds it itself")
            })?;
            words.phantom = Some(Arc::new(Secret::phantom(&way.phantom)?));
        }
        Ok(words)
    }

    /// What answers to these words.
    pub(super) fn broker<'a>(
        &'a self,
        plan: &'a Plan,
        words: Words,
        agent: Ids,
        listener: Option<OwnedFd>,
    ) -> Option<Broker<'a>> {
        let (plan, pass) = (plan.broker.as_ref()?, words.pass?);
        let way = self.way().and_then(|way| Some((way.header.clone()?, way.scheme.clone())));
        let held = match (words.phantom, self.secret.clone(), way) {
            (Some(phantom), Some(credential), Some((header, scheme))) => {
                Some(Held { credential, phantom, header, scheme, client_key: self.handed.client_key.clone() })
            }
            _ => None,
        };
        let (injected, authority) = (self.handed.injected.clone(), words.authority);
        let setup = Setup { plan, held, pass, injected, authority, agent: agent.uid };
        let mut broker = Broker::new(setup, &self.state);
        listener.into_iter().for_each(|listener| broker.listen(listener));
        Some(broker)
    }

    /// A listener for the broker where the cell has no network of its own to make one in. Its port is the kernel's choice:
    /// no other run has it, and a rule for it opens none that a service would have.
    pub(super) fn listener(&self, plan: &Plan, places: &mut Places) -> Result<Option<OwnedFd>> {
        if plan.broker.as_ref().is_none_or(|broker| broker.hold == Hold::Namespace) {
            return Ok(None);
        }
        let (listener, port) = sys::net::listener(0).map_err(|errno| {
            Error::new("listen on 127.0.0.1 for the broker", errno)
                .hint("let the launcher make TCP sockets, or use --network host")
        })?;
        places.broker = Some(port);
        Ok(Some(listener))
    }
}

/// Ends the broker. One that had ended before makes the run a failure, whatever the agent made of that.
pub(super) fn dismiss(broker: Option<Broker<'_>>, outcome: Outcome) -> (Outcome, Option<Traffic>) {
    match (broker.map(Broker::finish), outcome) {
        (None, outcome) => (outcome, None),
        (Some(Ok(traffic)), outcome) => (outcome, Some(traffic)),
        (Some(Err(why)), Outcome::Ran(_)) => (Outcome::Ran(Ended::BrokerEnded(why)), None),
        (Some(Err(_)), failed) => (failed, None),
    }
}
