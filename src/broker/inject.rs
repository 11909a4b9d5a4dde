//! Hosts whose TLS the broker ends, so that it can add a token which the cell does not have. The cell's client speaks to
//! the broker, who has a certificate of the run's own authority; the broker speaks to the host, and looks at its
//! certificate as any client does.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use http::request::Parts;
use http::uri::Authority as UriAuthority;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder as Connect, SendRequest};
use hyper::server::conn::http1::Builder as Serve;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::authority::Authority;
use super::body::{Part, Passing};
use super::gate::{METHODS, framing, is_last, only};
use super::pass::{Answer, cleaned, closing, drop_hop_by_hop, own};
use super::proxy::{lost, name_and_port};
use super::reach::{Goal, Reach, Unreached, unreached};
use super::watched::{Seen, Watched};
use super::{HEAD, HEAD_SIZE, HEADERS};
use crate::secret::Secret;
use crate::types::hosts::{HostName, HostRule};
use crate::types::network::HeaderName;

/// Headers of a request that are the broker's to set. A part of an answer could hold a part of the token.
const NOT_THE_CELLS: [&str; 6] =
    ["accept-encoding", "content-length", "expect", "if-range", "proxy-authorization", "range"];

/// A token and where it belongs.
#[derive(Debug, Clone)]
pub struct Injected {
    /// The host.
    pub rule: HostRule,
    /// The header.
    pub header: HeaderName,
    /// Its value.
    pub secret: Arc<Secret>,
}

/// The tokens, and what stands for their hosts.
pub struct Injector {
    hosts: HashMap<(HostName, u16), (Injected, Arc<ServerConfig>)>,
    client: TlsConnector,
}

impl Injector {
    /// One for these tokens.
    ///
    /// # Errors
    /// A sentence.
    pub fn new(all: &[Injected], authority: &Authority, mut client: ClientConfig) -> Result<Injector, String> {
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        let host = |one: &Injected| {
            let HostRule { name, port, .. } = &one.rule;
            Ok(((name.clone(), *port), (one.clone(), authority.server(name)?)))
        };
        let hosts = all.iter().map(host).collect::<Result<_, String>>()?;
        Ok(Injector { hosts, client: TlsConnector::from(Arc::new(client)) })
    }

    /// What a host gets, where it gets something.
    pub fn find(&self, goal: &Goal) -> Option<Ended> {
        let (injected, server) = self.hosts.get(&(goal.name.clone(), goal.port))?;
        Some(Ended { injected: injected.clone(), server: server.clone(), client: self.client.clone() })
    }
}

/// One tunnel whose TLS ends here.
pub struct Ended {
    injected: Injected,
    server: Arc<ServerConfig>,
    client: TlsConnector,
}

/// What its requests share.
struct Session {
    ended: Ended,
    reach: Arc<Reach>,
    goal: Goal,
    seen: Arc<Seen>,
    /// One: requests of HTTP/1.1 come one after the other.
    host: Mutex<Option<SendRequest<Passing>>>,
}

impl Ended {
    /// Serves a tunnel to its end.
    pub async fn serve(self, client: Upgraded, host: TcpStream, reach: Arc<Reach>, goal: Goal) {
        let acceptor = TlsAcceptor::from(self.server.clone());
        let client = match timeout(HEAD, acceptor.accept(TokioIo::new(client))).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                return goal.cut(&super::tunnel::Cut::Refused(format!("the cell's TLS: {error}")));
            }
            Err(_) => {
                return goal.cut(&super::tunnel::Cut::Refused("the tunnel did not begin with TLS in time".into()));
            }
        };
        let seen = Arc::<Seen>::default();
        let client = TokioIo::new(Watched::new(client, seen.clone()));
        let session = Arc::new(Session { ended: self, reach, goal, seen, host: Mutex::new(None) });
        match session.greet(host).await {
            Ok(sender) => *session.host.lock().await = Some(sender),
            // The first request says so.
            Err(why) => session.goal.miss(&why),
        }
        let mut http = Serve::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD);
        http.max_buf_size(HEAD_SIZE).max_header_size(HEAD_SIZE).max_headers(HEADERS);
        let answer = service_fn(move |request| session.clone().answer(request));
        // The cell's end of a connection is the cell's business.
        let _ = http.serve_connection(client, answer).await;
    }
}

impl Session {
    /// TLS with the host, whose certificate must be for its name.
    async fn greet(&self, host: TcpStream) -> Result<SendRequest<Passing>, Unreached> {
        const BAD: StatusCode = StatusCode::BAD_GATEWAY;
        let name = ServerName::try_from(self.goal.name.to_string()).or_else(|_| unreached(BAD, "it has no name"))?;
        let greeted = timeout(self.reach.patience, self.ended.client.connect(name, host)).await;
        let Ok(greeted) = greeted else { return unreached(StatusCode::GATEWAY_TIMEOUT, "no TLS came about in time") };
        let stream = greeted.or_else(|error| unreached(BAD, error.to_string()))?;
        let mut builder = Connect::new();
        builder.max_buf_size(HEAD_SIZE).max_headers(HEADERS);
        let (sender, connection) = builder
            .handshake(TokioIo::new(stream))
            .await
            .or_else(|error: hyper::Error| unreached(BAD, error.to_string()))?;
        // Ends with the sender.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn answer(self: Arc<Session>, request: Request<Incoming>) -> Result<Answer, Infallible> {
        let asked = Instant::now();
        let (head, body) = request.into_parts();
        let last = is_last(&head.headers);
        let done = match self.admit(&head) {
            Ok(()) => self.send(head, body, asked).await,
            Err(refused) => Err(refused),
        };
        Ok(match done {
            Ok(answer) if last => closing(answer),
            Ok(answer) => answer,
            Err(lost) => {
                self.goal.miss(&lost);
                closing(own(lost.status, "egress_error", &lost.why))
            }
        })
    }

    /// A request to this host, which can be read in one way. See [`super::gate`].
    fn admit(&self, head: &Parts) -> Result<(), Unreached> {
        if !METHODS.contains(&head.method) {
            return unreached(StatusCode::METHOD_NOT_ALLOWED, "the broker does not send this method on");
        }
        if head.version != Version::HTTP_11 {
            return unreached(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "the broker speaks HTTP/1.1");
        }
        if head.uri.authority().is_some() || !head.uri.path().starts_with('/') {
            return unreached(StatusCode::MISDIRECTED_REQUEST, "the request names a host, or has no path");
        }
        framing(head, &self.seen).or_else(|refusal| unreached(refusal.status, refusal.message))?;
        let said = only(&head.headers, &header::HOST).and_then(|value| value.to_str().ok());
        let said = said.and_then(|text| text.parse::<UriAuthority>().ok());
        let here = (self.goal.name.clone(), self.goal.port);
        match said.map(|said| name_and_port(&said, Some(443))) {
            Some(Ok(said)) if said == here => Ok(()),
            _ => unreached(StatusCode::MISDIRECTED_REQUEST, "its Host is not the host of the tunnel"),
        }
    }

    async fn send(&self, head: Parts, body: Incoming, asked: Instant) -> Result<Answer, Unreached> {
        let request = self.request(head, body)?;
        let mut host = self.host.lock().await;
        let mut sender = match host.take() {
            Some(sender) if !sender.is_closed() => sender,
            _ => self.greet(self.reach.connect(&self.goal).await?).await?,
        };
        // Until the last answer has been read to its end.
        sender.ready().await.or_else(|error| unreached(StatusCode::BAD_GATEWAY, error.to_string()))?;
        self.goal.counters.sent();
        let idle = self.reach.egress.idle_timeout;
        let Ok(answer) = timeout(idle, sender.send_request(request)).await else {
            return unreached(StatusCode::GATEWAY_TIMEOUT, "no answer began in time");
        };
        let answer: Response<Incoming> = answer.map_err(lost)?;
        *host = Some(sender);
        self.goal.counters.answered(asked.elapsed());
        cleaned(answer, &self.ended.injected.secret, self.part(), None)
            .or_else(|why| unreached(StatusCode::BAD_GATEWAY, why))
    }

    /// The cell's request, with the token.
    fn request(&self, head: Parts, body: Incoming) -> Result<Request<Passing>, Unreached> {
        let Injected { header: name, secret, .. } = &self.ended.injected;
        let mut request = Request::new(Passing::up(body, self.part()));
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse::<Uri>().or_else(|_| unreached(StatusCode::BAD_REQUEST, "its path is none"))?;
        *request.method_mut() = head.method;
        *request.headers_mut() = head.headers;
        let headers = request.headers_mut();
        drop_hop_by_hop(headers);
        NOT_THE_CELLS.iter().for_each(|name| drop(headers.remove(*name)));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let mut value = HeaderValue::from_bytes(secret.expose())
            .or_else(|_| unreached(StatusCode::BAD_GATEWAY, "its token cannot stand in a header"))?;
        value.set_sensitive(true);
        headers.insert(name.get().clone(), value);
        Ok(request)
    }

    fn part(&self) -> Part {
        Part {
            counters: self.goal.counters.clone(),
            timeout: self.reach.egress.idle_timeout,
            budget: Some(self.reach.budget.clone()),
        }
    }
}
