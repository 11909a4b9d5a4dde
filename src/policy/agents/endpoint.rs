//! Other APIs that serve an agent's model: what is different for an agent that speaks with one.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::Deserialize;

use super::way::Way;
use crate::policy::names;
use crate::types::values::Upstream;

/// One of them. What is left out is as it is for the agent's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Endpoint {
    /// How the credential is handed over.
    pub way: Option<Way>,
    /// Variables of the agent, in addition.
    #[serde(default, deserialize_with = "names::variables")]
    pub set: BTreeMap<String, String>,
    /// Variables that the caller may set, though they would steer the agent elsewhere: a region, a project.
    #[serde(default)]
    pub setenv: Vec<String>,
    /// The variable for the base URL.
    #[serde(default, deserialize_with = "names::optional_variable")]
    pub base_url: Option<String>,
    /// Where the requests go.
    pub upstream: Option<Upstream>,
}
