//! What a run takes of disks that no mount of the cell's bounds: counted before it starts, while it lasts, and at its end.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};

use super::attempt::Run;
use crate::cell::Cell;
use crate::cell::disk_use::{self, DiskUse, Most, Stopped};
use crate::confine::failure::Failure;
use crate::plan::Plan;
use crate::plan::counts::DiskBy;
use crate::run::supervise::{Counter, Ended, Outcome, Watch};
use crate::types::error::Error;

impl Run<'_> {
    /// What takes disk that no mount of the cell's bounds.
    pub(super) fn unbounded<'r>(&'r self, plan: &Plan, cell: &'r Cell) -> Vec<BorrowedFd<'r>> {
        let cell = (plan.disk.cell == DiskBy::Counts).then(|| cell.dir());
        cell.into_iter().chain(self.kept.iter().map(|kept| kept.directory.fd.as_fd())).collect()
    }

    /// Counts that; nothing where there is none of it.
    pub(super) fn count(&self, cell: &Cell, plan: &Plan) -> std::result::Result<Option<DiskUse>, Stopped> {
        let roots = self.unbounded(plan, cell);
        if roots.is_empty() || self.rehearsal {
            return Ok(None);
        }
        disk_use::count(&roots, Most::from(&self.job.level.value.limits), &|| true).map(Some)
    }

    pub(super) fn too_much(&self, plan: &Plan, stopped: Stopped) -> Error {
        let object = match &self.kept {
            Some(kept) => format!("run in {}", kept.directory.path.display()),
            None => format!("run {} in a cell", plan.program.display()),
        };
        Error::new(object, format!("it holds {stopped}"))
            .hint("remove files from it, or raise limits.disk and limits.files of the policy")
    }

    /// Starts what counts while the run lasts. Without it there is no run.
    pub(super) fn start_counter(&self, plan: &Plan, cell: &Cell, watch: &mut Watch<'_>) -> Option<Failure> {
        let roots = self.unbounded(plan, cell);
        if roots.is_empty() || self.rehearsal {
            return None;
        }
        match Counter::start(&roots, Most::from(&self.job.level.value.limits), DiskUse::default()) {
            Ok(counter) => watch.counter = Some(counter),
            Err(errno) => {
                watch.kill_child();
                return Some(Failure::plain(errno, "count the files of the cell"));
            }
        }
        None
    }

    /// The count at the end, when nothing writes any more: a run that was faster than the counter is over its limit, too.
    pub(super) fn charged(
        &self,
        plan: &Plan,
        cell: &Cell,
        outcome: Outcome,
        watch: &mut Watch<'_>,
    ) -> (Outcome, Option<DiskUse>) {
        watch.counter = None;
        match (self.count(cell, plan), outcome) {
            (Ok(disk), outcome) => (outcome, disk),
            (Err(stopped), Outcome::Ran(Ended::Exited(_) | Ended::Signaled(_))) => {
                (Outcome::Ran(Ended::OverLimit(stopped.to_string())), None)
            }
            (Err(_), outcome) => (outcome, None),
        }
    }
}
