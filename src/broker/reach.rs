//! From a listed host to a connection: its name is looked up once, the addresses are looked at, and the connection goes to
//! one of them. A second look-up could have another answer.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::address;
use super::names::Names;
use super::tally::{Counters, Direction, Tally};
use super::tunnel::Cut;
use crate::plan::egress::Egress;
use crate::types::hosts::HostName;

/// Why a request reaches no host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreached {
    /// The status of the answer.
    pub status: StatusCode,
    /// For people.
    pub why: String,
}

/// A sentence with its status.
/// # Errors
/// Always.
pub fn unreached<T>(status: StatusCode, why: impl Into<String>) -> Result<T, Unreached> {
    Err(Unreached { status, why: why.into() })
}

/// What leads to the hosts of the list.
pub struct Reach {
    /// The list.
    pub egress: Egress,
    /// How names are looked up.
    pub names: Names,
    /// How long that and the connection may take.
    pub patience: Duration,
    /// Where the broker itself listens.
    pub listener: SocketAddr,
    /// How many bytes are left.
    pub budget: Arc<Budget>,
    /// What happened.
    pub tally: Arc<Tally>,
}

/// A host on its way to be reached.
pub struct Goal {
    /// Its counters.
    pub counters: Arc<Counters>,
    /// Its name.
    pub name: HostName,
    /// Its port.
    pub port: u16,
    address: Option<IpAddr>,
}

impl Reach {
    /// Whether the list leads there.
    ///
    /// # Errors
    /// It does not, which is counted.
    pub fn goal(&self, plain: bool, name: HostName, port: u16) -> Result<Goal, Unreached> {
        let shown = if plain { format!("http://{name}:{port}") } else { format!("{name}:{port}") };
        let Some(listed) = self.egress.find(plain, &name, port) else {
            let why = "it is not on the list of hosts that this cell reaches";
            self.tally.denied(&shown, why);
            return unreached(StatusCode::FORBIDDEN, format!("{shown}: {why}"));
        };
        Ok(Goal { counters: self.tally.host(&shown), name, port, address: listed.address })
    }

    /// A connection to there.
    ///
    /// # Errors
    /// There is none, or must be none, which is counted.
    pub async fn connect(&self, goal: &Goal) -> Result<TcpStream, Unreached> {
        let late = || unreached(StatusCode::GATEWAY_TIMEOUT, "no connection came about in time");
        let connection = timeout(self.patience, self.try_connect(goal)).await.unwrap_or_else(|_| late());
        connection.inspect_err(|unreached| goal.miss(unreached))
    }

    async fn try_connect(&self, goal: &Goal) -> Result<TcpStream, Unreached> {
        if self.budget.is_spent() {
            return unreached(StatusCode::FORBIDDEN, SPENT);
        }
        let addresses = match goal.address {
            Some(address) => vec![address],
            None => self.look_up(&goal.name).await?,
        };
        let mut why = "it has no address".to_owned();
        for address in addresses {
            let address = SocketAddr::new(address, goal.port);
            if self.is_listener(address) {
                return unreached(StatusCode::LOOP_DETECTED, "there is the broker itself");
            }
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(error) => why = error.to_string(),
            }
        }
        unreached(StatusCode::BAD_GATEWAY, why)
    }

    /// The host's addresses, where each of them may be connected to.
    async fn look_up(&self, name: &HostName) -> Result<Vec<IpAddr>, Unreached> {
        let found = self.names.of(name).await;
        let addresses = found.or_else(|why| unreached(StatusCode::BAD_GATEWAY, why))?;
        let own = address::own().or_else(|errno| {
            let why = format!("this host does not say its own addresses: {}", errno.desc());
            unreached(StatusCode::BAD_GATEWAY, why)
        })?;
        match addresses.iter().find_map(|&one| Some((one, address::refused(one, &own)?))) {
            None => Ok(addresses),
            Some((one, kind)) => unreached(StatusCode::FORBIDDEN, format!("its address {one} is {kind}")),
        }
    }

    fn is_listener(&self, address: SocketAddr) -> bool {
        let here = || address::own().is_ok_and(|own| own.contains(&address.ip()));
        address.port() == self.listener.port() && (address.ip().is_loopback() || here())
    }
}

impl Goal {
    /// It is not reached.
    pub fn miss(&self, unreached: &Unreached) {
        if unreached.status.is_server_error() && unreached.status != StatusCode::LOOP_DETECTED {
            self.counters.failed();
        } else {
            self.counters.refused();
        }
        self.counters.because(&unreached.why);
    }

    /// Its tunnel ended before its sides were done.
    pub fn cut(&self, cut: &Cut) {
        let why = match cut {
            Cut::Refused(why) => {
                self.counters.refused();
                why
            }
            Cut::Broken(why) => {
                self.counters.failed();
                why
            }
        };
        self.counters.because(why);
    }

    /// Name and port, as in an URL.
    pub fn authority(&self) -> String {
        if self.port == 80 { self.name.to_string() } else { format!("{}:{}", self.name, self.port) }
    }
}

/// Why nothing is sent on any more.
pub const SPENT: &str = "the bytes of this run are spent (`network.bytes` of the policy)";

/// How many bytes may still pass in a run.
#[derive(Debug)]
pub struct Budget(AtomicU64);

impl Budget {
    /// This many.
    pub fn new(bytes: u64) -> Budget {
        Budget(AtomicU64::new(bytes))
    }

    /// Takes some; nothing where there are fewer left, and then there are none.
    pub fn take(&self, bytes: u64) -> Option<()> {
        let left = self.0.load(Ordering::Relaxed);
        // One thread has all of them.
        self.0.store(left.saturating_sub(bytes), Ordering::Relaxed);
        (bytes <= left).then_some(())
    }

    fn is_spent(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

/// Bytes that pass to or from a host.
///
/// # Errors
/// There are no more.
pub fn pass(budget: &Budget, counters: &Counters, direction: Direction, bytes: u64) -> Result<(), &'static str> {
    budget.take(bytes).ok_or(SPENT)?;
    counters.passed(direction, bytes);
    Ok(())
}
