//! An agent's own login: the file that it writes, and how a cell's agent works with the token out of it.
//!
//! Such a file holds two tokens: one for the requests of some hours, and one that renews it. Where the second is used it
//! is most often changed by that, so that a cell which renews and is wiped would end the caller's login. None gets it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::way::{Hand, Way};
use crate::policy::names;
use crate::types::values::Upstream;

/// What the file of an agent's login looks like, and what is different for an agent with one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Login {
    /// Where the file is, for people.
    pub file: String,
    /// The token for requests.
    pub token: Keys,
    /// When that ends; nothing where the file does not say it.
    pub expires: Option<Expiry>,
    /// A name of the account, which is `{account}` in the text around the token.
    pub account: Option<Keys>,
    /// How the token is handed over; nothing where it is as the agent's credential.
    pub way: Option<Way>,
    /// Variables of the agent, in addition.
    #[serde(default, deserialize_with = "names::variables")]
    pub set: BTreeMap<String, String>,
    /// The variable for the base URL, where it is another.
    #[serde(default, deserialize_with = "names::optional_variable")]
    pub base_url: Option<String>,
    /// Where the requests go, where that is another host.
    pub upstream: Option<Upstream>,
}

/// The keys that lead through the objects of a JSON text to a value.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Keys(Vec<String>);

impl TryFrom<Vec<String>> for Keys {
    type Error = &'static str;

    fn try_from(keys: Vec<String>) -> Result<Keys, &'static str> {
        if keys.is_empty() { Err("a value is found by one key or more") } else { Ok(Keys(keys)) }
    }
}

impl From<Keys> for Vec<String> {
    fn from(keys: Keys) -> Vec<String> {
        keys.0
    }
}

impl Keys {
    /// One after the other.
    pub fn get(&self) -> &[String] {
        &self.0
    }

    /// For people.
    pub fn show(&self) -> String {
        self.0.join(".")
    }
}

/// Where the end of a token is written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expiry {
    /// In the file, in milliseconds since 1970.
    Milliseconds(Keys),
    /// In the token, which is a JSON Web Token with the claim `exp` (RFC 7519).
    Token,
}

/// Stands in the text around a token for the account's name.
pub const ACCOUNT: &str = "{account}";

impl Login {
    /// Whether the text around the token has a place for the account.
    pub fn wants_account(&self) -> bool {
        match self.way.as_ref().map(|way| &way.hand) {
            Some(Hand::File(file)) => file.text.iter().any(|text| text.contains(ACCOUNT)),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::library::Library;

    #[test]
    fn websockets_are_for_the_upstream_of_which_the_file_says_so() {
        let codex = Library::new(None).agent("codex").unwrap().value;
        assert!(codex.environment.websocket);
        assert!(!codex.clone().logged_in().unwrap().environment.websocket);
        let mut same = codex;
        same.login.as_mut().unwrap().upstream = None;
        assert!(same.logged_in().unwrap().environment.websocket);
    }
}
