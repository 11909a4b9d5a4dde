//! What a broker does for a cell, or why there can be none: it holds the credential outside of the cell, where the agent
//! has a phantom, and leads to the hosts of a list.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::egress::{self, Egress};
use super::hold;
use super::rules::{self, Filter, Landlock};
use crate::host::Host;
use crate::host::facts::Lack;
use crate::host::image::Image;
use crate::plan::on::On;
use crate::policy::Policy;
use crate::policy::agents::spec::AgentSpec;
use crate::policy::agents::way::Way;
use crate::request::Request;
use crate::request::injection::Injection;
use crate::types::hosts::HostRule;
use crate::types::layer::Layer;
use crate::types::network::{HeaderName, Hold, NetworkMode};
use crate::types::values::{UidRange, Upstream};

/// Where the broker listens, on 127.0.0.1 of a cell that has a network of its own. There the port is free; it is below
/// those that the kernel gives out, and none that a server of the agent's would have.
pub const PORT: u16 = 20_080;

/// What the broker does.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Broker {
    /// The program that is executed as the broker. That one has no use for another.
    #[serde(skip_deserializing)]
    pub image: Option<Image>,
    /// Where it listens: the base URL and the proxy that the agent gets. Of a broker on the host's loopback the port is known
    /// when it listens.
    pub url: String,
    /// The model's API, where the agent's requests to that are brokered.
    pub model: Option<Model>,
    /// What else it leads to.
    pub egress: Egress,
    /// Hosts of that which get a token, and the header of each.
    pub injected: Vec<Injected>,
    /// The file of the authorities that vouch for the upstream and for hosts that get a token; nothing where nobody has to.
    pub authorities: Option<PathBuf>,
    /// What holds the agent to it.
    pub hold: Hold,
    /// Connections of the cell at once; more wait.
    pub connections: u32,
    /// How long a connection to a host may take.
    pub connect_timeout: Duration,
    /// The broker's own UID, where runs have one.
    pub uids: Option<UidRange>,
    /// The broker's own Landlock domain.
    pub landlock: Option<Landlock>,
    /// The broker's own seccomp filter.
    pub filter: Option<Filter>,
}

/// The model's API.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Model {
    /// Where the agent's requests go.
    pub upstream: Upstream,
    /// Whether a request may change to a WebSocket there.
    pub websocket: bool,
    /// How the agent may send its credential; the one that fits is known when the credential is read, and the broker gets
    /// that one alone.
    #[serde(skip_deserializing)]
    pub ways: Vec<Way>,
    /// The file with the broker's own certificate for the upstream.
    pub client_cert: Option<PathBuf>,
    /// How long it waits for an answer to begin, and for each further part of it.
    pub timeout: Duration,
}

/// A host that gets a token.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Injected {
    /// The host.
    pub rule: HostRule,
    /// The header that the broker adds.
    pub header: HeaderName,
}

/// The parts of an upstream's URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `http` or `https`.
    pub scheme: http::uri::Scheme,
    /// Host and port.
    pub authority: http::uri::Authority,
    /// What comes before the path of each request: empty, or it begins with a slash and ends without one.
    pub prefix: String,
}

/// The network that a run asks for.
pub fn asked(request: &Request, policy: &Policy) -> NetworkMode {
    request.network.unwrap_or(policy.network.mode)
}

/// The network that it gets. A broker that has no credential to hold and no host to lead to is none.
pub fn network(request: &Request, policy: &Policy, agent: &AgentSpec) -> NetworkMode {
    match asked(request, policy) {
        NetworkMode::Broker if !has_model(request, agent) && egress::of(request, policy).hosts.is_empty() => {
            NetworkMode::None
        }
        mode => mode,
    }
}

/// Whether requests to a model's API are to be brokered. A credential never goes into a cell with a broker, so that one
/// which cannot be brokered is a refusal (see [`lack`]), and a program without one has the list alone.
pub fn has_model(request: &Request, agent: &AgentSpec) -> bool {
    request.credential.is_some() || request.upstream.is_some() || agent.credential.required
}

/// The broker of a plan, where the network is one.
pub fn of(
    request: &Request,
    policy: &Policy,
    agent: &AgentSpec,
    host: &Host,
    on: &On,
    network: NetworkMode,
) -> Option<Broker> {
    if network != NetworkMode::Broker {
        return None;
    }
    let hold = hold::of(|layer| on.has(layer));
    let model = has_model(request, agent).then(|| model(request, policy, agent)).flatten();
    let egress = egress::of(request, policy);
    let own_uid = on.has(Layer::Uid).then(|| request.uid_range.unwrap_or(on.uid_range));
    let ports = model.iter().map(|model| model.upstream.port).chain(egress.hosts.iter().map(|listed| listed.rule.port));
    let injected: Vec<Injected> = request.inject.iter().map(Injected::from).collect();
    let verifies = !injected.is_empty() || model.as_ref().is_some_and(|model| model.upstream.is_tls());
    Some(Broker {
        image: host.broker.get().ok().cloned(),
        authorities: host.authorities.get().ok().filter(|_| verifies).cloned(),
        injected,
        url: match hold {
            Hold::Namespace => format!("http://127.0.0.1:{PORT}"),
            Hold::Port | Hold::Nothing => format!("http://127.0.0.1:{}", crate::types::layout::PORT),
        },
        hold,
        connections: policy.network.connections.get(),
        connect_timeout: policy.network.connect_timeout.0,
        uids: own_uid,
        landlock: rules::brokers_landlock(host, on, ports),
        filter: on.has(Layer::Seccomp).then_some(rules::BROKERS_FILTER),
        model,
        egress,
    })
}

impl From<&Injection> for Injected {
    fn from(injection: &Injection) -> Injected {
        Injected { rule: injection.rule.clone(), header: injection.header.clone() }
    }
}

fn model(request: &Request, policy: &Policy, agent: &AgentSpec) -> Option<Model> {
    let upstream = upstream(request, agent)?.clone();
    Some(Model {
        ways: agent.credential.way.clone(),
        client_cert: request.client_cert.clone(),
        timeout: policy.network.upstream_timeout.0,
        // Of another one nothing says that it speaks them.
        websocket: agent.environment.websocket && request.upstream.is_none(),
        upstream,
    })
}

/// Why this agent cannot have a broker, whatever the host.
pub fn lack(request: &Request, agent: &AgentSpec, host: &Host) -> Option<Lack> {
    let title = &agent.title;
    if let Err(lack) = host.broker.get() {
        return Some(lack.clone());
    }
    if let (false, Err(lack)) = (request.inject.is_empty(), host.authorities.get()) {
        return Some(lack.clone());
    }
    if !has_model(request, agent) {
        return None;
    }
    if !agent.takes_base_url() {
        return Some(Lack::new(
            format!(
                "{title} has no variable for a base URL, so that nothing leads it to the broker with its credential"
            ),
            "name the agent with --agent, leave the credential out, or use --network host or none",
        ));
    }
    if agent.credential.way.is_empty() || agent.credential.way.iter().any(|way| way.header.is_none()) {
        return Some(Lack::new(
            format!("the file of {title} does not say in which header it sends its credential"),
            "add `header` to each `credential.way` of the agent's file",
        ));
    }
    if request.credential.is_none() {
        return Some(Lack::new("there is no credential to broker", "name one, as with --credential-file"));
    }
    let Some(upstream) = upstream(request, agent) else {
        return Some(Lack::new(format!("nothing says where the requests of {title} go"), "name it with --upstream"));
    };
    match upstream.target() {
        Err(why) => Some(Lack::new(why, "name another upstream with --upstream")),
        Ok(_) if upstream.is_tls() => host.authorities.get().err().cloned(),
        Ok(_) => None,
    }
}

fn upstream<'a>(request: &'a Request, agent: &'a AgentSpec) -> Option<&'a Upstream> {
    request.upstream.as_ref().or(agent.environment.upstream.as_ref())
}

impl Upstream {
    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.url.starts_with("https://")
    }

    /// Its parts, as a broker needs them.
    ///
    /// # Errors
    /// A sentence: it is no URL, has more than a path, or would send the credential in the clear.
    pub fn target(&self) -> Result<Target, String> {
        let url = &self.url;
        let parts = url.parse::<http::Uri>().map(http::Uri::into_parts).map_err(|error| format!("{url}: {error}"))?;
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(format!("{url} has no host"));
        };
        let path = parts.path_and_query.as_ref();
        // The library drops a fragment.
        if url.contains('#') || path.is_some_and(|path| path.query().is_some()) {
            return Err(format!("{url} has more than a path, and the agent's own query has no place after it"));
        }
        let host = authority.host().trim_matches(['[', ']']);
        let loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if !self.is_tls() && !loopback {
            return Err(format!("{url} would send the credential in the clear: http is for 127.0.0.1 and [::1] only"));
        }
        let prefix = path.map(|path| path.path().trim_end_matches('/').to_owned()).unwrap_or_default();
        Ok(Target { scheme, authority, prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_a_host_and_a_path_and_in_the_clear_on_the_loopback_only() {
        let prefix = |text: &str| text.parse::<Upstream>().unwrap().target().map(|target| target.prefix);
        assert_eq!(prefix("https://api.example").as_deref(), Ok(""));
        assert_eq!(prefix("https://api.example/").as_deref(), Ok(""));
        assert_eq!(prefix("https://gateway.example:8443/models/v1/").as_deref(), Ok("/models/v1"));
        assert_eq!(prefix("http://127.0.0.1:80/v1").as_deref(), Ok("/v1"));
        assert_eq!(prefix("http://[::1]:8080").as_deref(), Ok(""));
        for bad in [
            "http://api.example",
            "http://localhost",
            "http://127.0.0.1.example",
            "http://[::ffff:127.0.0.1]",
            "http://2130706433",
            "http://10.0.0.1",
            "https://api.example/?a=b",
            "https://api.example/#a",
            "https://api.example/<",
        ] {
            assert!(prefix(bad).is_err(), "{bad}");
        }
    }
}
