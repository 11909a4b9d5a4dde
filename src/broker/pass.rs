//! One request: looked at, sent on with the credential in the phantom's place, and its answer passed back.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::sync::OwnedSemaphorePermit;

use super::body::{Fault, Part, Passing};
use super::gate::{Gate, Refusal, is_last};
use super::names::Names;
use super::redact::{Redactor, contains};
use super::socket;
use super::tally::Tally;
use super::usage::Reader;
use super::watched::Seen;
use crate::plan::broker::Target;
use crate::secret::Secret;

/// What an agent gets as a body: the upstream's, or the broker's own words.
pub type Answer = Response<Either<Passing, Full<Bytes>>>;

/// Connections to upstreams.
pub type Connections = Client<HttpsConnector<HttpConnector<Names>>, Passing>;

/// Headers that belong to one connection (RFC 9110, 7.6.1), beside those that `Connection` names.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Headers of a request that the broker sets itself, or that would let the agent use another account than the one that
/// it was given. A part of an answer could hold a part of the credential, which nobody would know.
const NOT_THE_AGENTS: [&str; 12] = [
    "accept-encoding",
    "authorization",
    "content-length",
    "cookie",
    "expect",
    "host",
    "if-range",
    "proxy-authorization",
    "range",
    "x-api-key",
    "x-goog-api-key",
    "api-key",
];

/// Everything that a request needs.
pub struct Path {
    /// What lets it pass.
    pub gate: Gate,
    /// Where it goes.
    pub target: Target,
    /// What it has there instead of the phantom, with what comes before it.
    pub value: HeaderValue,
    /// The same alone, to be found in answers.
    pub credential: Arc<Secret>,
    /// Connections to there.
    pub client: Connections,
    /// Those that become WebSockets, where it speaks them.
    pub sockets: Option<Connections>,
    /// How long an answer may take to begin and to go on.
    pub timeout: Duration,
    /// What happened.
    pub tally: Arc<Tally>,
}

/// Why a request that was sent on has no answer.
pub enum Lost {
    /// The upstream did not answer, or with something that is no answer.
    Unreachable(String),
    /// The agent's own request broke off.
    Broken(StatusCode, String),
    /// It did not in time.
    Late,
    /// Nobody could look into its answer.
    Encoded,
}

impl Path {
    /// Answers one request.
    ///
    /// # Errors
    /// None: a request that cannot be answered gets an error in the API's own form.
    pub async fn answer(
        self: Arc<Path>,
        request: Request<Incoming>,
        place: Arc<OwnedSemaphorePermit>,
        seen: &Seen,
    ) -> Result<Answer, Infallible> {
        if self.sockets.is_some() && request.headers().contains_key(header::UPGRADE) {
            return Ok(socket::answer(self, request, place, seen).await);
        }
        let (head, body) = request.into_parts();
        if let Err(refusal) = self.gate.admit(&head, seen) {
            return Ok(self.refused(refusal));
        }
        let last = is_last(&head.headers);
        let answer = self.send(head, body).await.unwrap_or_else(|lost| self.lost(&lost));
        Ok(if last { closing(answer) } else { answer })
    }

    async fn send(&self, head: Parts, body: Incoming) -> Result<Answer, Lost> {
        let answer = self.ask(&self.client, head, body, |_| {}).await?;
        let reader = Reader::new(answer.headers(), &self.tally);
        cleaned(answer, &self.credential, self.part(), reader).map_err(|_| Lost::Encoded)
    }

    /// The upstream's answer to a request of the agent's with the credential, and with headers that are added last.
    ///
    /// # Errors
    /// There is none.
    pub async fn ask(
        &self,
        client: &Connections,
        head: Parts,
        body: Incoming,
        add: impl FnOnce(&mut HeaderMap),
    ) -> Result<Response<Incoming>, Lost> {
        let started = Instant::now();
        let mut request = Request::new(Passing::up(body, self.part()));
        *request.method_mut() = head.method;
        *request.uri_mut() = self.uri(&head.uri).ok_or_else(|| Lost::Unreachable("its URL cannot be made".into()))?;
        *request.headers_mut() = self.headers(head.headers);
        add(request.headers_mut());
        self.tally.model.sent();
        let answer = match tokio::time::timeout(self.timeout, client.request(request)).await {
            Err(_) => return Err(Lost::Late),
            Ok(Err(error)) => return Err(lost(&error)),
            Ok(Ok(answer)) => answer,
        };
        self.tally.model.answered(started.elapsed());
        Ok(answer)
    }

    /// What bounds a body to or from the upstream.
    pub fn part(&self) -> Part {
        Part { counters: self.tally.model.clone(), timeout: self.timeout, budget: None }
    }

    /// The upstream's path, and then the agent's.
    fn uri(&self, asked: &Uri) -> Option<Uri> {
        let path = asked.path_and_query().map_or("/", PathAndQuery::as_str);
        let all = Uri::builder().scheme(self.target.scheme.clone()).authority(self.target.authority.clone());
        all.path_and_query(format!("{}{path}", self.target.prefix)).build().ok()
    }

    /// The agent's headers, without what is of this connection, and with the credential.
    fn headers(&self, mut headers: HeaderMap) -> HeaderMap {
        drop_hop_by_hop(&mut headers);
        for name in NOT_THE_AGENTS {
            headers.remove(name);
        }
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        // Last, so that nothing above takes it out again.
        headers.insert(self.gate.header.clone(), self.value.clone());
        headers
    }

    /// A request that is not sent on may have a body that nobody reads: its connection ends.
    pub fn refused(&self, refusal: Refusal) -> Answer {
        self.tally.model.refused();
        closing(own(refusal.status, refusal.kind, refusal.message))
    }

    /// One that was sent on and got no answer.
    pub fn lost(&self, lost: &Lost) -> Answer {
        self.tally.model.failed();
        let upstream = &self.target.authority;
        let (status, kind, why) = match lost {
            Lost::Broken(status, why) => return closing(own(*status, "invalid_request_error", why)),
            Lost::Unreachable(why) => (StatusCode::BAD_GATEWAY, "api_error", why.as_str()),
            Lost::Late => (StatusCode::GATEWAY_TIMEOUT, "timeout_error", "no answer began in time"),
            Lost::Encoded => (StatusCode::BAD_GATEWAY, "api_error", ENCODED),
        };
        own(status, kind, &format!("the broker has no answer of {upstream}: {why}"))
    }
}

const ENCODED: &str = "its answer has an encoding that was not asked for";

/// An answer as a cell gets it: without what is of one connection, and without the secret, in its head and in its body.
///
/// # Errors
/// It cannot be looked at.
pub fn cleaned(
    answer: Response<Incoming>,
    secret: &Arc<Secret>,
    part: Part,
    reader: Option<Reader>,
) -> Result<Answer, &'static str> {
    let (mut head, body) = answer.into_parts();
    let encoded = head.headers.get(header::CONTENT_ENCODING).is_some_and(|value| value != "identity");
    // Not asked for, and the secret could not be found in it.
    if encoded || head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(ENCODED);
    }
    clean_head(&mut head.headers, secret);
    let mut answer = passing(Passing::down(body, part, Some(Redactor::new(secret.clone())), reader));
    *answer.status_mut() = head.status;
    *answer.headers_mut() = head.headers;
    Ok(answer)
}

/// Takes out what is of one connection, and what tells the secret.
pub fn clean_head(headers: &mut HeaderMap, secret: &Secret) {
    drop_hop_by_hop(headers);
    let tells = |value: &HeaderValue| contains(value.as_bytes(), secret);
    let telling: Vec<HeaderName> =
        headers.iter().filter(|(_, value)| tells(value)).map(|(name, _)| name.clone()).collect();
    telling.iter().for_each(|name| drop(headers.remove(name)));
}

/// Takes out what is of one connection, and what is named as that.
pub fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

fn lost(error: &(dyn Error + 'static)) -> Lost {
    match Fault::of(error) {
        Some(fault) => Lost::Broken(fault.status(), fault.to_string()),
        None => Lost::Unreachable(innermost(error)),
    }
}

/// The last cause: "connection refused", "invalid peer certificate".
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

/// An answer that is the last of its connection.
pub fn closing(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// An answer whose body passes.
pub fn passing(body: Passing) -> Answer {
    Response::new(Either::Left(body))
}

/// An answer of a head alone.
pub fn own_empty() -> Answer {
    Response::new(Either::Right(Full::default()))
}

/// An error in the form of the Messages API, which other APIs' clients read as well.
pub fn own(status: StatusCode, kind: &str, message: &str) -> Answer {
    let text = serde_json::json!({"type": "error", "error": {"type": kind, "message": message}}).to_string();
    let mut answer = Response::new(Either::Right(Full::new(Bytes::from(text))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
