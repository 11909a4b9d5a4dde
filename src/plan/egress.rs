//! The hosts that a broker leads to beside the model's API, and who named each.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::policy::Policy;
use crate::request::{From, Request};
use crate::types::hosts::{HostName, HostRule};
use crate::types::units::Bytes;

/// The list and its bounds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Egress {
    /// The hosts.
    pub hosts: Vec<Listed>,
    /// Bytes to and from all of them together.
    pub bytes: Bytes,
    /// How long a connection may carry nothing.
    pub idle_timeout: Duration,
}

/// One rule of the list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Listed {
    /// What it lets through.
    pub rule: HostRule,
    /// The host's address, where the policy says it; else the name is looked up, and no private address is taken.
    pub address: Option<IpAddr>,
    /// Who named it.
    pub from: From,
}

/// The list of a run.
pub fn of(request: &Request, policy: &Policy) -> Egress {
    let network = &policy.network;
    let listed = |rule: &HostRule, address, from| Listed { rule: rule.clone(), address, from };
    let mut hosts: Vec<Listed> = network.allow.iter().map(|rule| listed(rule, None, From::Policy)).collect();
    hosts.extend(network.allow_private.iter().map(|(rule, address)| listed(rule, Some(*address), From::Policy)));
    let more = request.allow.iter().filter(|(rule, _)| addable(policy, rule).is_ok());
    hosts.extend(more.map(|(rule, from)| listed(rule, None, *from)));
    for rule in request.inject.iter().map(|injection| &injection.rule) {
        let known = hosts.iter().any(|known| known.rule.covers(false, &rule.name, rule.port));
        if !known && addable(policy, rule).is_ok() {
            hosts.push(listed(rule, None, From::Flag));
        }
    }
    Egress { hosts, bytes: network.bytes, idle_timeout: network.idle_timeout.0 }
}

/// Whether the policy lets the caller add a host.
///
/// # Errors
/// Why not.
pub fn addable(policy: &Policy, rule: &HostRule) -> Result<(), &'static str> {
    if !policy.network.allow_more {
        return Err("the policy has the whole list (`network.allow-more` is not true)");
    }
    if rule.plain {
        // Whoever is on the way reads and changes it, so that the operator decides.
        return Err("plain HTTP is for the policy to allow (`network.allow`)");
    }
    if policy.network.allow_private.keys().any(|pinned| pinned.name == rule.name) {
        return Err("the policy says where this host is, and at which ports it is reached (`network.allow-private`)");
    }
    Ok(())
}

impl Egress {
    /// What lets a tunnel, or a request in plain HTTP, through to there. A host whose address the policy says is reached
    /// by that rule alone: no wildcard and no caller opens another port of it.
    pub fn find(&self, plain: bool, name: &HostName, port: u16) -> Option<&Listed> {
        let pinned = self.hosts.iter().any(|listed| listed.address.is_some() && listed.rule.name == *name);
        let fits = |listed: &&Listed| listed.rule.covers(plain, name, port) && (listed.address.is_some() || !pinned);
        self.hosts.iter().find(fits)
    }

    /// Whether any of them is reached in plain HTTP.
    pub fn any_plain(&self) -> bool {
        self.hosts.iter().any(|listed| listed.rule.plain)
    }

    /// Whether any of them is reached by a tunnel.
    pub fn any_tunnel(&self) -> bool {
        self.hosts.iter().any(|listed| !listed.rule.plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_on_a_private_network_is_reached_by_its_own_rule_alone() {
        let listed = |rule: &str, address: Option<&str>| Listed {
            rule: rule.parse().unwrap(),
            address: address.map(|text| text.parse().unwrap()),
            from: From::Policy,
        };
        let hosts = vec![
            listed("*.example", None),
            listed("*.example:8443", None),
            listed("mirror.example:8080", Some("10.0.0.1")),
        ];
        let egress = Egress { hosts, bytes: Bytes(1), idle_timeout: Duration::from_secs(1) };
        let found = |name: &str, port| egress.find(false, &name.parse().unwrap(), port).map(|listed| listed.address);
        assert_eq!(found("a.example", 443), Some(None));
        assert_eq!(found("mirror.example", 8080), Some(Some("10.0.0.1".parse().unwrap())));
        assert_eq!(found("mirror.example", 443), None);
        assert_eq!(found("mirror.example", 8443), None);
        assert_eq!(found("a.example", 8080), None);
    }
}
