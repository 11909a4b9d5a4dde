//! The broker as a proxy to the hosts of the list: tunnels, and where a rule says so requests in plain HTTP.
#![forbid(unsafe_code)]

use std::sync::Arc;

use data_encoding::BASE64;
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use subtle::ConstantTimeEq;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::body::{Fault, Part, Passing};
use super::gate::{METHODS, climbs, framing, is_last, only};
use super::inject::Injector;
use super::pass::{Answer, closing, drop_hop_by_hop, own, own_empty};
use super::reach::{Goal, Reach, Unreached, unreached};
use super::tunnel::{self, Bounds};
use super::watched::Seen;
use super::{HEAD_SIZE, HEADERS};
use crate::secret::Secret;
use crate::types::hosts::HostName;

/// Who uses the broker as a proxy, and to where.
pub struct Proxy {
    /// The list.
    pub reach: Arc<Reach>,
    /// The hosts that get a token.
    pub injector: Option<Injector>,
    /// What a client sends to show that it is of this cell.
    pub pass: Pass,
}

/// `Basic …`, as a client makes it of the URL that the cell got.
pub struct Pass(Zeroizing<Vec<u8>>);

impl Pass {
    /// For this word.
    pub fn new(word: &Secret) -> Pass {
        let pair = Zeroizing::new([&b"cell:"[..], word.expose()].concat());
        Pass(Zeroizing::new(BASE64.encode(&pair).into_bytes()))
    }

    fn fits(&self, headers: &HeaderMap) -> bool {
        let sent = only(headers, &header::PROXY_AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let scheme = sent.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"basic "));
        scheme && bool::from(sent[6..].ct_eq(&self.0))
    }
}

impl Proxy {
    /// Answers a request that is for another host than the broker.
    pub async fn answer(
        self: Arc<Proxy>,
        request: Request<Incoming>,
        place: Arc<OwnedSemaphorePermit>,
        seen: &Seen,
    ) -> Answer {
        let asked = Instant::now();
        if !self.pass.fits(request.headers()) {
            let mut answer = own(StatusCode::PROXY_AUTHENTICATION_REQUIRED, "authentication_error", "not of this cell");
            let basic = HeaderValue::from_static("Basic realm=\"cell\"");
            answer.headers_mut().insert(header::PROXY_AUTHENTICATE, basic);
            self.reach.tally.denied("without the cell's pass", "it is not of this cell");
            return answer;
        }
        let done = if request.method() == Method::CONNECT {
            self.tunnel(request, asked, place, seen).await
        } else {
            self.plain(request, asked, seen).await
        };
        // There may be a body that nobody reads.
        done.unwrap_or_else(|Unreached { status, why }| closing(own(status, "egress_error", &why)))
    }

    /// A goal in a head that can be read in one way.
    fn goal(&self, head: &Parts, plain: bool, seen: &Seen) -> Result<Goal, Unreached> {
        let (name, port) = target(head, plain, seen).inspect_err(|refused| {
            self.reach.tally.denied("a request that is none", &refused.why);
        })?;
        self.reach.goal(plain, name, port)
    }

    async fn tunnel(
        self: Arc<Proxy>,
        mut request: Request<Incoming>,
        asked: Instant,
        place: Arc<OwnedSemaphorePermit>,
        seen: &Seen,
    ) -> Result<Answer, Unreached> {
        let upgrade = hyper::upgrade::on(&mut request);
        let (head, _) = request.into_parts();
        let goal = self.goal(&head, false, seen)?;
        let ended = self.injector.as_ref().and_then(|injector| injector.find(&goal));
        let host = self.reach.connect(&goal).await?;
        tokio::spawn(async move {
            let _place = place;
            // The client has gone before it had its answer.
            let Ok(client) = upgrade.await else { return };
            if let Some(ended) = ended {
                return ended.serve(client, host, self.reach.clone(), goal).await;
            }
            let Reach { budget, egress, .. } = &*self.reach;
            let bounds = Bounds { budget, idle: egress.idle_timeout, asked };
            if let Err(cut) = tunnel::carry(TokioIo::new(client), host, &goal, &bounds).await {
                goal.cut(&cut);
            }
        });
        // The tunnel begins behind its head.
        Ok(own_empty())
    }

    async fn plain(&self, request: Request<Incoming>, asked: Instant, seen: &Seen) -> Result<Answer, Unreached> {
        let (head, body) = request.into_parts();
        let goal = self.goal(&head, true, seen)?;
        let host = self.reach.connect(&goal).await?;
        let last = is_last(&head.headers);
        let sent = self.send(head, body, &goal, host, asked).await;
        let sent = sent.inspect_err(|unreached| goal.miss(unreached));
        sent.map(|answer| if last { closing(answer) } else { answer })
    }

    async fn send(
        &self,
        head: Parts,
        body: Incoming,
        goal: &Goal,
        host: tokio::net::TcpStream,
        asked: Instant,
    ) -> Result<Answer, Unreached> {
        let idle = self.reach.egress.idle_timeout;
        let part = || Part { counters: goal.counters.clone(), timeout: idle, budget: Some(self.reach.budget.clone()) };
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEAD_SIZE).max_headers(HEADERS);
        let (mut sender, connection) = builder.handshake(TokioIo::new(host)).await.map_err(lost)?;
        // Ends with the answer.
        tokio::spawn(connection);
        let mut request = Request::new(Passing::up(body, part()));
        *request.method_mut() = head.method;
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse::<Uri>().or_else(|_| unreached(StatusCode::BAD_REQUEST, "its path is none"))?;
        *request.headers_mut() = head.headers;
        drop_hop_by_hop(request.headers_mut());
        for name in [header::PROXY_AUTHORIZATION, header::EXPECT] {
            request.headers_mut().remove(name);
        }
        let authority = HeaderValue::from_str(&goal.authority());
        let authority = authority.or_else(|_| unreached(StatusCode::BAD_REQUEST, "its host is none"))?;
        request.headers_mut().insert(header::HOST, authority);
        goal.counters.sent();
        let Ok(answer) = tokio::time::timeout(idle, sender.send_request(request)).await else {
            return unreached(StatusCode::GATEWAY_TIMEOUT, "no answer began in time");
        };
        let (mut head, body) = answer.map_err(lost)?.into_parts();
        goal.counters.answered(asked.elapsed());
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return unreached(StatusCode::BAD_GATEWAY, "it changes protocols, which nobody asked for");
        }
        drop_hop_by_hop(&mut head.headers);
        let mut answer = super::pass::passing(Passing::down(body, part(), None, None));
        *answer.status_mut() = head.status;
        *answer.headers_mut() = head.headers;
        Ok(answer)
    }
}

/// A request whose host did not answer, or that broke off itself.
pub fn lost(error: hyper::Error) -> Unreached {
    match Fault::of(&error) {
        Some(fault) => Unreached { status: fault.status(), why: fault.to_string() },
        None => Unreached { status: StatusCode::BAD_GATEWAY, why: error.to_string() },
    }
}

/// Where a request wants to go, where it says so in one way. Nothing is repaired: see [`super::gate`].
///
/// # Errors
/// It is none, or could be read in two ways.
pub fn target(head: &Parts, plain: bool, seen: &Seen) -> Result<(HostName, u16), Unreached> {
    const BAD: StatusCode = StatusCode::BAD_REQUEST;
    let Some(authority) = head.uri.authority() else { return unreached(BAD, "it names no host") };
    let tunnels = head.method == Method::CONNECT;
    if !tunnels && !METHODS.contains(&head.method) {
        return unreached(StatusCode::METHOD_NOT_ALLOWED, "the broker does not send this method on");
    }
    // Python's older clients ask for tunnels in HTTP/1.0.
    if head.version != Version::HTTP_11 && !(tunnels && head.version == Version::HTTP_10) {
        return unreached(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "the broker speaks HTTP/1.1");
    }
    if plain && (head.uri.scheme() != Some(&http::uri::Scheme::HTTP) || climbs(head.uri.path())) {
        return unreached(BAD, "it is no URL in plain HTTP, or its path climbs; TLS goes by CONNECT");
    }
    framing(head, seen).or_else(|refusal| unreached(refusal.status, refusal.message))?;
    if tunnels && [header::CONTENT_LENGTH, header::TRANSFER_ENCODING].iter().any(|name| head.headers.contains_key(name))
    {
        return unreached(BAD, "CONNECT has no body");
    }
    let (name, port) = name_and_port(authority, plain.then_some(80))?;
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let same = |value: &HeaderValue| {
        let said = value.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
        let usual = if plain { 80 } else { port };
        said.is_some_and(|said| name_and_port(&said, Some(usual)).is_ok_and(|said| said == (name.clone(), port)))
    };
    match (hosts.next(), hosts.next()) {
        (None, None) if head.version == Version::HTTP_10 => {}
        (Some(host), None) if same(host) => {}
        _ => return unreached(StatusCode::MISDIRECTED_REQUEST, "its Host is not the host that it asks for"),
    }
    Ok((name, port))
}

/// A name and a port and nothing else: no user before it, no address.
pub fn name_and_port(authority: &Authority, usual: Option<u16>) -> Result<(HostName, u16), Unreached> {
    const BAD: StatusCode = StatusCode::BAD_REQUEST;
    let text = authority.as_str();
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let name = host.parse::<HostName>().or_else(|why| unreached(BAD, why))?;
    // `u16` alone would read +443.
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok()).flatten();
    match port.map_or(usual, digits).filter(|port| *port > 0) {
        Some(port) => Ok((name, port)),
        None => unreached(BAD, "it names no port"),
    }
}
