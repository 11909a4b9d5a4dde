//! The report of a run: one JSON object for `--report-fd`.
#![forbid(unsafe_code)]

use crate::fs::passed::Skip;
use serde::Serialize;

use crate::broker::Traffic;
use crate::cell::disk_use::DiskUse;
use crate::fs::wipe::Leftover;
use crate::plan::counts::Uncounted;
use crate::plan::twins::Denied;
use crate::run::supervise::Ended;
use crate::types::layer::Planned;

/// The version of the format.
pub const VERSION: u32 = 1;

/// What a run came to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// The version of this format.
    pub version: u32,
    /// The cell; empty where the run was refused.
    pub cell: String,
    /// Whose run it was.
    pub user: String,
    /// Which agent.
    pub agent: String,
    /// Which level.
    pub level: String,
    /// Every layer and what became of it.
    pub layers: Vec<Planned>,
    /// Every denied class and what stopped it.
    pub classes: Vec<Denied>,
    /// What of the host it could take that nothing counted for it alone.
    pub uncounted: Vec<Uncounted>,
    /// How the agent ended.
    pub outcome: Ended,
    /// The status of the launcher.
    pub status: u8,
    /// What went wrong, in one sentence.
    pub error: Option<String>,
    /// How long each part took.
    pub timings: Timings,
    /// What it used.
    pub usage: Usage,
    /// What the files took at the end that no tmpfs bounded: a kept workspace's, and without a private root all of the
    /// cell's. Nothing where there are none, or more than could be counted.
    pub disk: Option<DiskUse>,
    /// What the broker did, where there was one.
    pub broker: Option<Traffic>,
    /// What could not be removed; empty when nothing is left.
    pub left: Vec<Leftover>,
    /// What was not copied into the workspace, or out of it.
    pub skipped: Vec<Skip>,
    /// How many that are: `skipped` lists no more than [`crate::fs::walk::LISTED`] for each place.
    pub skipped_total: u64,
}

/// Of a run of which nothing is known.
impl Default for Report {
    fn default() -> Report {
        Report {
            version: VERSION,
            cell: String::new(),
            user: String::new(),
            agent: String::new(),
            level: String::new(),
            layers: Vec::new(),
            classes: Vec::new(),
            uncounted: Vec::new(),
            outcome: Ended::Refused(String::new()),
            status: 0,
            error: None,
            timings: Timings::default(),
            usage: Usage::default(),
            disk: None,
            broker: None,
            left: Vec::new(),
            skipped: Vec::new(),
            skipped_total: 0,
        }
    }
}

/// Durations in microseconds.
#[derive(Debug, Default, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Timings {
    /// To find out what the host offers; a part of `prepare`.
    pub probe: u64,
    /// From the start of the launcher to the clone.
    pub prepare: u64,
    /// From the clone to the agent's exec.
    pub enter: u64,
    /// From the exec to the agent's end.
    pub run: u64,
    /// From the agent's end to the last byte removed.
    pub wipe: u64,
}

/// What a run used.
#[derive(Debug, Default, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Usage {
    /// CPU time in user mode, in microseconds.
    pub user: u64,
    /// CPU time in the kernel, in microseconds.
    pub system: u64,
    /// The largest process, in bytes.
    pub peak_process: u64,
    /// The whole cell where a cgroup counted it, in bytes.
    pub peak_cell: Option<u64>,
}
