//! What a run wants of its host, as plain values: the host knows neither request nor policy.
#![forbid(unsafe_code)]

use std::path::Path;

use crate::types::layer::Layer;
use crate::types::values::UidRange;

/// What to look for. What nobody wants is not looked for.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// Layers that somebody wants.
    pub layers: Vec<Layer>,
    /// Runs may get a UID of their own.
    pub lends: bool,
    /// The range that the caller names for them.
    pub uid_range: Option<UidRange>,
    /// A broker is asked for.
    pub broker: bool,
    /// The caller's own file of trusted authorities.
    pub ca: Option<&'a Path>,
    /// Share of the CPUs, in percent of one.
    pub cpu_percent: u32,
    /// Files and directories of the host that a cell shows.
    pub files: Vec<&'a Path>,
}

impl Wanted<'_> {
    /// Whether somebody wants this layer.
    pub fn has(&self, layer: Layer) -> bool {
        self.layers.contains(&layer)
    }
}
