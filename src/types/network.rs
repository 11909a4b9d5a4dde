//! The agent's network, and what holds it there.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// The network that the agent sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// The host's network
    Host,
    /// A namespace with nothing but its own loopback
    None,
    /// The same, and on that loopback a broker: it holds the credential, and leads to the model's API and the listed hosts
    Broker,
}

impl NetworkMode {
    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            NetworkMode::Host => "host",
            NetworkMode::None => "none",
            NetworkMode::Broker => "broker",
        }
    }
}

/// What holds an agent to its broker: the less, the more it reaches besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    /// Nothing but what it was told: the base URL.
    Nothing,
    /// A Landlock rule for the broker's port, and a filter for what goes round such a rule.
    Port,
    /// A network of the cell's own.
    Namespace,
}

impl Hold {
    /// The word in a policy.
    pub fn name(self) -> &'static str {
        match self {
            Hold::Nothing => "nothing",
            Hold::Port => "port",
            Hold::Namespace => "namespace",
        }
    }
}

/// The name of a header, in small letters.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct HeaderName(pub(crate) http::HeaderName);

impl TryFrom<String> for HeaderName {
    type Error = String;

    fn try_from(text: String) -> Result<HeaderName, String> {
        text.parse().map(HeaderName).map_err(|_| format!("`{}` is no name of a header", text.escape_debug()))
    }
}

impl HeaderName {
    /// As the HTTP library has it.
    pub fn get(&self) -> &http::HeaderName {
        &self.0
    }
}
