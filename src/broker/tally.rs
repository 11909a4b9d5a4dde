//! What a broker did, counted.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many hosts are counted each for itself. A rule may cover any number of names, and a hostile agent asks for more.
const HOSTS: usize = 100;

/// All further ones together.
const OTHERS: &str = "others";

/// What a broker did in a run.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Traffic {
    /// With the model's API.
    #[serde(flatten)]
    pub model: Counts,
    /// Tokens that its answers counted.
    pub tokens: Tokens,
    /// With each host of the list.
    pub hosts: Vec<Host>,
    /// Hosts that it did not lead to.
    pub denied: Vec<Host>,
}

/// A host, and what happened there.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Host {
    /// Name and port.
    pub host: String,
    /// What happened; a request is a tunnel, or one in plain HTTP.
    #[serde(flatten)]
    pub counts: Counts,
    /// Why the last one was refused or failed.
    pub why: Option<String>,
}

/// Numbers of one host.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counts {
    /// Requests that were sent on.
    pub requests: u64,
    /// Requests that were not: without the phantom, in a form that is none, to somewhere else.
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

/// Tokens, in the words that the APIs have in common.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tokens {
    /// Answers that counted any.
    pub answers: u64,
    /// Of the requests.
    pub input: u64,
    /// Of the answers.
    pub output: u64,
    /// Of the requests, written to a cache.
    pub cache_written: u64,
    /// Of the requests, read from a cache.
    pub cache_read: u64,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the agent.
    Up,
    /// To the agent.
    Down,
}

/// The counters of one host.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    answered: AtomicU64,
    waited: AtomicU64,
    longest: AtomicU64,
    why: Mutex<Option<String>>,
}

fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

/// A task that panics ends the process, so that no lock is ever poisoned.
fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Counters {
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

    /// Why the last one was refused or failed.
    pub fn because(&self, why: &str) {
        *held(&self.why) = Some(why.to_owned());
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

    fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
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

/// Counters by host.
#[derive(Debug, Default)]
struct Hosts(Mutex<BTreeMap<String, Arc<Counters>>>);

impl Hosts {
    fn of(&self, host: &str) -> Arc<Counters> {
        let mut all = held(&self.0);
        let host = if all.len() < HOSTS || all.contains_key(host) { host } else { OTHERS };
        all.entry(host.to_owned()).or_default().clone()
    }

    fn all(&self) -> Vec<Host> {
        let host = |(host, counters): (&String, &Arc<Counters>)| Host {
            host: host.clone(),
            counts: counters.counts(),
            why: held(&counters.why).clone(),
        };
        held(&self.0).iter().map(host).collect()
    }
}

/// All counters.
#[derive(Debug, Default)]
pub struct Tally {
    /// Of the model's API.
    pub model: Arc<Counters>,
    tokens: Mutex<Tokens>,
    hosts: Hosts,
    denied: Hosts,
}

impl Tally {
    /// Those of a host of the list.
    pub fn host(&self, host: &str) -> Arc<Counters> {
        self.hosts.of(host)
    }

    /// A request to a host that is none of the list's.
    pub fn denied(&self, host: &str, why: &str) {
        let counters = self.denied.of(host);
        counters.refused();
        counters.because(why);
    }

    /// An answer has counted these.
    pub fn counted(&self, more: Tokens) {
        let mut tokens = held(&self.tokens);
        let sum = |a: &mut u64, b: u64| *a = a.saturating_add(b);
        sum(&mut tokens.answers, 1);
        sum(&mut tokens.input, more.input);
        sum(&mut tokens.output, more.output);
        sum(&mut tokens.cache_written, more.cache_written);
        sum(&mut tokens.cache_read, more.cache_read);
    }

    /// All of it.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            model: self.model.counts(),
            tokens: *held(&self.tokens),
            hosts: self.hosts.all(),
            denied: self.denied.all(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_asks_for_any_number_of_names_fills_no_memory() {
        let tally = Tally::default();
        tally.host("api.example:443").sent();
        for number in 0..10_000 {
            tally.denied(&format!("h{number}.example:443"), "it is not on the list");
        }
        let traffic = tally.traffic();
        assert_eq!((traffic.hosts.len(), traffic.denied.len()), (1, HOSTS + 1));
        let others = traffic.denied.iter().find(|host| host.host == OTHERS).unwrap();
        assert_eq!(others.counts.refused, 10_000 - HOSTS as u64);
    }
}
