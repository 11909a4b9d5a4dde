//! What a private root shows.
#![forbid(unsafe_code)]

use serde::Serialize;

use crate::host::Host;
use crate::host::facts::{Kind, Shown};
use crate::policy::Policy;
use crate::types::layer::Layer;
use crate::types::units::Bytes;

/// The private root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Root {
    /// Shown read-only.
    pub shown: Vec<Shown>,
    /// Paths in /proc that are covered.
    pub masked: Vec<(String, Kind)>,
    /// /proc is a fresh one of the cell's PID namespace.
    pub fresh_proc: bool,
    /// /proc may be written to: an agent with a sandbox of its own writes its maps there.
    pub writable_proc: bool,
    /// The size of the tmpfs.
    pub disk: Bytes,
    /// Its inodes.
    pub files: u32,
    /// Its pseudo-terminals.
    pub terminals: u32,
}

pub(crate) fn root(policy: &Policy, host: &Host, on: &crate::plan::on::On) -> Root {
    Root {
        shown: shown(host),
        masked: if on.has(Layer::Pid) { host.masked.clone() } else { Vec::new() },
        fresh_proc: on.has(Layer::Pid),
        writable_proc: policy.kernel.nested_namespaces,
        disk: policy.limits.disk,
        files: policy.limits.files,
        terminals: policy.limits.terminals,
    }
}

/// The policy's files, and of the programs what these do not show already.
pub(crate) fn shown(host: &Host) -> Vec<Shown> {
    let mut all = host.files.clone();
    let programs = host.programs.all().flat_map(|program| {
        let files = program.shown.iter().map(|path| (path.clone(), program.kind(path)));
        let links = program.links.iter().map(|(link, target)| (link.clone(), Kind::Link(target.clone())));
        files.chain(links)
    });
    for (path, kind) in programs.chain(host.extra.iter().cloned()) {
        // Below a link, too: /bin/sh is there where /bin leads to /usr/bin.
        let below = |shown: &Shown| match shown.kind {
            Kind::Directory | Kind::Link(_) => path.starts_with(&shown.path),
            Kind::File => path == shown.path,
        };
        if !all.iter().any(below) {
            all.push(Shown { path, kind });
        }
    }
    all
}
