//! What a broker did, counted.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a broker did in a run.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Traffic {
    /// Requests that were sent on.
    pub requests: u64,
    /// Requests that were not: without the phantom, or in a form that is none.
    pub refused: u64,
    /// Requests that were sent on and got no whole answer.
    pub failed: u64,
    /// Bytes of the bodies of requests.
    pub bytes_up: u64,
    /// Bytes of the bodies of answers.
    pub bytes_down: u64,
    /// Microseconds from a request's head to that of its answer, on average.
    pub first_byte_mean: u64,
    /// The same, the longest.
    pub first_byte_max: u64,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the agent.
    Up,
    /// To the agent.
    Down,
}

/// The counters.
#[derive(Debug, Default)]
pub struct Tally {
    requests: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    answered: AtomicU64,
    waited: AtomicU64,
    longest: AtomicU64,
}

fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

impl Tally {
    /// A request is sent on.
    pub fn sent(&self) {
        add(&self.requests, 1);
    }

    /// A request is not sent on.
    pub fn refused(&self) {
        add(&self.refused, 1);
    }

    /// One that was sent on gets no whole answer.
    pub fn failed(&self) {
        add(&self.failed, 1);
    }

    /// The head of an answer came after this time.
    pub fn answered(&self, after: Duration) {
        let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        add(&self.answered, 1);
        add(&self.waited, micros);
        self.longest.fetch_max(micros, Ordering::Relaxed);
    }

    /// Bytes of a body passed.
    pub fn passed(&self, direction: Direction, bytes: u64) {
        add(if direction == Direction::Up { &self.up } else { &self.down }, bytes);
    }

    /// All of it.
    pub fn traffic(&self) -> Traffic {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            requests: get(&self.requests),
            refused: get(&self.refused),
            failed: get(&self.failed),
            bytes_up: get(&self.up),
            bytes_down: get(&self.down),
            first_byte_mean: get(&self.waited).checked_div(get(&self.answered)).unwrap_or_default(),
            first_byte_max: get(&self.longest),
        }
    }
}
