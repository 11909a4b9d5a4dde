//! A body on its way through the broker: part by part, counted, bounded in size and in time, never kept.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

use super::reach::{Budget, pass};
use super::redact::Redactor;
use super::tally::{Counters, Direction};
use super::usage::Reader;

/// The largest body of a request.
pub const LARGEST: u64 = 1 << 30;

/// Why a request's body broke off: that is the agent's doing, and the host's never.
#[derive(Debug)]
pub enum Fault {
    /// It is larger than [`LARGEST`].
    TooLarge,
    /// It is none, or nothing came for too long, or no more may be sent.
    Broken(Broken),
}

impl Fault {
    /// The one that a request failed for, where it did.
    pub fn of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Fault> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(fault) = error.downcast_ref() {
                return Some(fault);
            }
            next = error.source();
        }
        None
    }

    /// What the agent is told.
    pub fn status(&self) -> StatusCode {
        match self {
            Fault::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Fault::Broken(_) => StatusCode::BAD_REQUEST,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::TooLarge => f.write_str(TOO_LARGE),
            Fault::Broken(why) => write!(f, "the body of the request broke off: {why}"),
        }
    }
}

impl Error for Fault {}

/// Why a larger one is not sent on.
pub const TOO_LARGE: &str = "the body is larger than the broker sends on";

/// Why a body broke off.
pub type Broken = Box<dyn Error + Send + Sync>;

/// What counts and bounds a body.
pub struct Part {
    /// The host's counters.
    pub counters: Arc<Counters>,
    /// How long nothing may come.
    pub timeout: Duration,
    /// How many bytes may pass, where they are counted for the whole run.
    pub budget: Option<Arc<Budget>>,
}

/// A body that passes.
pub struct Passing {
    inner: Incoming,
    direction: Direction,
    part: Part,
    redactor: Option<Redactor>,
    reader: Option<Reader>,
    stalled: Pin<Box<Sleep>>,
    /// How much may still come of a request's: its length is not always told before.
    left: u64,
}

impl Passing {
    /// A request's.
    pub fn up(inner: Incoming, part: Part) -> Passing {
        let stalled = Box::pin(sleep(part.timeout));
        Passing { inner, direction: Direction::Up, part, redactor: None, reader: None, stalled, left: LARGEST }
    }

    /// An answer's, in which the credential is covered and tokens are counted, where that is wanted.
    pub fn down(inner: Incoming, part: Part, redactor: Option<Redactor>, reader: Option<Reader>) -> Passing {
        let stalled = Box::pin(sleep(part.timeout));
        Passing { inner, direction: Direction::Down, part, redactor, reader, stalled, left: u64::MAX }
    }

    /// Counts what passes.
    fn count(&mut self, bytes: &Bytes) -> Result<(), Broken> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(Fault::TooLarge)?;
        if let Some(reader) = &mut self.reader {
            reader.read(bytes);
        }
        match &self.part.budget {
            Some(budget) => Ok(pass(budget, &self.part.counters, self.direction, bytes.len() as u64)?),
            None => {
                self.part.counters.passed(self.direction, bytes.len() as u64);
                Ok(())
            }
        }
    }

    fn broken(&self, why: impl Into<Broken>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let why = why.into();
        Poll::Ready(Some(Err(match (self.direction, why.is::<Fault>()) {
            (Direction::Down, _) => {
                self.part.counters.failed();
                why
            }
            // A request that breaks off has no answer, which is counted where that is missed.
            (Direction::Up, false) => Fault::Broken(why).into(),
            (Direction::Up, true) => why,
        })))
    }
}

impl Body for Passing {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        loop {
            let Poll::Ready(next) = Pin::new(&mut self.inner).poll_frame(cx) else {
                ready!(self.stalled.as_mut().poll(cx));
                return self.broken("nothing came for too long");
            };
            let until = Instant::now() + self.part.timeout;
            self.stalled.as_mut().reset(until);
            let part = match next {
                None => match self.redactor.as_mut().and_then(Redactor::end) {
                    None => return Poll::Ready(None),
                    Some(rest) => rest,
                },
                Some(Err(error)) => return self.broken(error),
                // Trailers are dropped: nobody has looked at them.
                Some(Ok(frame)) => match frame.into_data() {
                    Err(_) => continue,
                    Ok(part) => {
                        if let Err(spent) = self.count(&part) {
                            return self.broken(spent);
                        }
                        match &mut self.redactor {
                            Some(redactor) => redactor.pass(part),
                            None => part,
                        }
                    }
                },
            };
            if !part.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream() && self.redactor.as_ref().is_none_or(|redactor| redactor.held() == 0)
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.redactor.as_ref().map_or(0, Redactor::held);
        let inner = self.inner.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + held);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + held);
        }
        hint
    }
}
