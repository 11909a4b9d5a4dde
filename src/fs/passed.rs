//! What was passed over on the ways of a run.
#![forbid(unsafe_code)]

use serde::Serialize;

use crate::fs::walk::{Passed, Skipped};

/// Something that was passed over.
#[derive(Debug, Clone, Serialize)]
pub struct Skip {
    /// On which way: `copy-in`, `export`, `patch` or `resume`.
    pub at: &'static str,
    /// Where, relative to the tree, escaped.
    pub path: String,
    /// Why.
    pub why: String,
}

/// All of it in one run.
#[derive(Debug, Default)]
pub struct Skips {
    /// By name.
    pub listed: Vec<Skip>,
    /// In all.
    pub total: u64,
}

impl Skips {
    /// What one walk passed over.
    pub fn of(at: &'static str, passed: Passed) -> Skips {
        let mut skips = Skips::default();
        skips.take(at, passed);
        skips
    }

    /// Takes what one walk passed over.
    pub fn take(&mut self, at: &'static str, passed: Passed) {
        self.total += passed.total;
        self.listed.extend(passed.listed.into_iter().map(|Skipped { path, why }| Skip { at, path, why }));
    }

    /// One line for people; nothing where nothing was passed over.
    pub fn line(&self) -> Option<String> {
        const SHOWN: usize = 3;
        let shown = |one: &Skip| format!("{} (at {}: {})", one.path, one.at, one.why);
        let named: Vec<String> = self.listed.iter().take(SHOWN).map(shown).collect();
        let rest = self.total.saturating_sub(named.len() as u64);
        let more = if rest > 0 { format!(" and {rest} more; --report-fd lists them") } else { String::new() };
        (self.total > 0).then(|| format!("not copied: {}{more}", named.join(", ")))
    }
}
