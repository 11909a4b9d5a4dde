//! A body on its way through the broker: part by part, counted, bounded in size and in time, never kept.
#![forbid(unsafe_code)]

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

use super::reach::{Budget, pass};
use super::redact::Redactor;
use super::tally::{Counters, Direction};
use super::usage::Reader;

/// The largest body of a request.
pub const LARGEST: u64 = 1 << 30;

/// Why a body broke off.
pub type Broken = Box<dyn std::error::Error + Send + Sync>;

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
}

impl Passing {
    /// A request's.
    pub fn up(inner: Incoming, part: Part) -> Passing {
        let stalled = Box::pin(sleep(part.timeout));
        Passing { inner, direction: Direction::Up, part, redactor: None, reader: None, stalled }
    }

    /// An answer's, in which the credential is covered and tokens are counted, where that is wanted.
    pub fn down(inner: Incoming, part: Part, redactor: Option<Redactor>, reader: Option<Reader>) -> Passing {
        let stalled = Box::pin(sleep(part.timeout));
        Passing { inner, direction: Direction::Down, part, redactor, reader, stalled }
    }

    /// Counts what passes.
    fn count(&mut self, bytes: &Bytes) -> Result<(), &'static str> {
        if let Some(reader) = &mut self.reader {
            reader.read(bytes);
        }
        match &self.part.budget {
            Some(budget) => pass(budget, &self.part.counters, self.direction, bytes.len() as u64),
            None => {
                self.part.counters.passed(self.direction, bytes.len() as u64);
                Ok(())
            }
        }
    }

    fn broken(&self, why: impl Into<Broken>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        // A request that breaks off has no answer, which is counted where that is missed.
        if self.direction == Direction::Down {
            self.part.counters.failed();
        }
        Poll::Ready(Some(Err(why.into())))
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
