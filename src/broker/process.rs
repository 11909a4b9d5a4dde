//! The broker's own process: confined first, then it serves until the launcher wants it to end.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use super::gate::Gate;
use super::inject::Injector;
use super::names::Names;
use super::pass::{Answer, Connections, Path, own};
use super::peer::Peers;
use super::proxy::{Pass, Proxy};
use super::reach::{Budget, Reach};
use super::tally::Tally;
use super::watched::{Seen, Watched};
use super::{HANDED, HEAD, HEAD_SIZE, HEADERS, Held, MORE, QUIT, READY, Setup, trust, wire};
use crate::confine::{capabilities, landlock, seccomp};
use crate::plan::broker::Model;
use crate::secret::Secret;
use crate::sys;
use crate::sys::channel::{Channel, MAX};
use crate::sys::ids::{Ids, become_run};
use crate::sys::process::exit_now;
use crate::types::layout::Places;
use crate::types::network::Hold;

/// What is read of an answer at once, and the largest head of one: a large answer passes a third faster than by 64 KiB.
const ANSWER: usize = 4 * HEAD_SIZE;

/// How long a connection to upstream is kept for the next request.
const IDLE: Duration = Duration::from_secs(60);

/// What the process is for, and what it has.
pub struct Charge<'a> {
    /// From the launcher.
    pub setup: Setup<'a>,
    /// In the cell's network namespace.
    pub listener: OwnedFd,
    /// To the launcher.
    pub channel: Channel,
    /// Its own UID, where it has one.
    pub ids: Option<Ids>,
    /// The process to die with.
    pub launcher: Pid,
}

/// Becomes the broker of the run whose launcher has executed this program.
pub fn main() -> ! {
    // Exec made it dumpable: whoever has this UID could read the memory that the secrets are to come into.
    let hidden = prctl::set_dumpable(false);
    // A task that panics would be dropped alone, and the others go on; the message could hold anything.
    std::panic::set_hook(Box::new(|_| std::process::abort()));
    let [Ok(listener), Ok(channel), Ok(pipe)] = HANDED.map(sys::fds::take) else { by_hand() };
    // Where it is executed by descriptor, some kernels name it by the number of that.
    let _ = prctl::set_name(c"oubliette-broker");
    let (listener, channel) = (OwnedFd::from(listener), Channel::of(channel.into()));
    let last = channel.try_clone();
    let done = match hidden.map(|()| channel.send(READY, None)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => by_hand(),
        Err(errno) => Err(format!("cannot keep others from its memory: {}", errno.desc())),
    };
    let done = done.and_then(|()| wire::take(&pipe)).and_then(|taken| {
        drop(pipe);
        let (ids, launcher) = (taken.words.ids(), taken.words.launcher());
        let charge = Charge { setup: taken.setup(), listener, channel, ids, launcher };
        enter(&charge).and_then(|read| serve(charge, read))
    });
    if let (Err(why), Ok(channel)) = (&done, last) {
        let _ = channel.send(format!("F{why}").as_bytes(), None);
    }
    exit_now(i32::from(done.is_err()) * 125)
}

/// Nobody is there to say what it is for.
fn by_hand() -> ! {
    eprintln!("oubliette-broker: `oubliette run` executes this program, and gives it what it needs");
    exit_now(125)
}

/// What the process has read of the host's files, which it cannot open any more.
struct Read {
    roots: RootCertStore,
    names: Names,
    /// Where anybody may connect, who does.
    peers: Option<Peers>,
}

/// Reads what it needs of the host, and gives up its rights. Descriptors and session are its own since the exec.
fn enter(charge: &Charge<'_>) -> Result<Read, String> {
    let Charge { setup: Setup { plan, agent, .. }, ids, launcher, .. } = charge;
    let failed = |what: &'static str| move |errno: nix::errno::Errno| format!("cannot {what}: {}", errno.desc());
    let roots = plan.authorities.as_deref().map(trust::read).transpose().map_err(|error| error.to_string())?;
    let names = Names::read()?;
    let open = || Peers::open(*agent).map_err(|error| format!("cannot see who connects to the broker: {error}"));
    let peers = (plan.hold != Hold::Namespace).then(open).transpose()?;
    capabilities::drop_bounding().map_err(failed("empty the broker's capability bounding set"))?;
    if let Some(ids) = ids {
        become_run(*ids).map_err(failed("give the broker a UID of its own"))?;
    }
    // After the change of the UID, which clears it (prctl(2)).
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed("let the broker die with the launcher"))?;
    if getppid() != *launcher {
        exit_now(125);
    }
    capabilities::drop_all().map_err(failed("give up the broker's capabilities"))?;
    prctl::set_no_new_privs().map_err(failed("set no_new_privs for the broker"))?;
    if let Some(domain) = &plan.landlock {
        landlock::enter(domain, &Places::private(), None)
            .map_err(|(action, errno)| format!("cannot {action} for the broker: {}", errno.desc()))?;
    }
    if let Some(filter) = &plan.filter {
        sys::seccomp::load(&seccomp::compile(filter)).map_err(failed("load the broker's seccomp filter"))?;
    }
    Ok(Read { roots: roots.unwrap_or_else(RootCertStore::empty), names, peers })
}

fn serve(charge: Charge<'_>, mut read: Read) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot serve the cell: {error}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let Charge { setup, listener, channel, .. } = charge;
    let tally = Arc::new(Tally::default());
    let counted = tally.clone();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(TcpListener::from(listener)).map_err(failed)?;
        let peers = read.peers.take();
        let service = service(&setup, read, tally, listener.local_addr().map_err(failed)?)?;
        tokio::spawn(accept(listener, peers, Arc::new(service), setup.plan.connections));
        wait_for_the_launcher(&channel).await.map_err(failed)?;
        // A launcher that is gone asks nothing.
        let _ = say(&channel, &serde_json::to_vec(&counted.traffic()).unwrap_or_default());
        Ok(())
    })
}

/// In as many messages as it takes, and an empty one.
fn say(channel: &Channel, text: &[u8]) -> Result<(), nix::errno::Errno> {
    text.chunks(MAX - 1).try_for_each(|part| channel.send(&[MORE, part].concat(), None))?;
    channel.send(MORE, None)
}

/// Until it asks for the end, or is gone.
async fn wait_for_the_launcher(channel: &Channel) -> std::io::Result<()> {
    let fd = channel.watch()?;
    loop {
        let mut ready = fd.readable().await?;
        match channel.receive()? {
            Some(message) if message.bytes != QUIT => ready.clear_ready(),
            _ => return Ok(()),
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, mut peers: Option<Peers>, service: Arc<Service>, connections: u32) {
    let places = Arc::new(Semaphore::new(connections as usize));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_SIZE)
        .max_header_size(HEAD_SIZE)
        .max_headers(HEADERS);
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, there)) = listener.accept().await else {
            // No descriptor left: one comes back when a connection ends.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let agents = |peers: &mut Peers| stream.local_addr().is_ok_and(|here| peers.is_agents(here, there));
        if !peers.as_mut().is_none_or(agents) {
            service.tally.model.refused();
            continue;
        }
        let _ = stream.set_nodelay(true);
        // A tunnel has its place to its end.
        let (service, place, seen) = (service.clone(), Arc::new(place), Arc::<Seen>::default());
        let stream = TokioIo::new(Watched::new(stream, seen.clone()));
        let answer = service_fn(move |request| service.clone().answer(request, place.clone(), seen.clone()));
        let connection = http.serve_connection(stream, answer).with_upgrades();
        // The agent's end of a connection is the agent's business.
        tokio::spawn(connection);
    }
}

/// All that a broker answers.
struct Service {
    model: Option<Arc<Path>>,
    proxy: Option<Arc<Proxy>>,
    tally: Arc<Tally>,
}

impl Service {
    /// # Errors
    /// None: a request that cannot be answered gets an error in the API's own form.
    async fn answer(
        self: Arc<Service>,
        request: Request<Incoming>,
        place: Arc<OwnedSemaphorePermit>,
        seen: Arc<Seen>,
    ) -> Result<Answer, Infallible> {
        // What names a host of its own is for a proxy. The broker's own address is no host's name.
        let elsewhere = request.method() == Method::CONNECT || request.uri().authority().is_some();
        Ok(match (&self.proxy, &self.model) {
            (Some(proxy), _) if elsewhere => proxy.clone().answer(request, place, &seen).await,
            (_, Some(model)) => return model.clone().answer(request, place, &seen).await,
            (_, None) => {
                self.tally.model.refused();
                own(StatusCode::NOT_FOUND, "not_found_error", "no credential is brokered for this cell")
            }
        })
    }
}

fn service(setup: &Setup<'_>, read: Read, tally: Arc<Tally>, listener: SocketAddr) -> Result<Service, String> {
    let Setup { plan, held, pass, injected, authority, .. } = setup;
    let Read { roots, names, .. } = read;
    let injector = match authority {
        Some(authority) => Some(Injector::new(injected, authority, tls(roots.clone(), None)?)?),
        None => None,
    };
    let reach = (!plan.egress.hosts.is_empty()).then(|| Reach {
        egress: plan.egress.clone(),
        names: names.clone(),
        patience: plan.connect_timeout,
        listener,
        budget: Arc::new(Budget::new(plan.egress.bytes.0)),
        tally: tally.clone(),
    });
    let proxy = reach.map(|reach| Arc::new(Proxy { reach: Arc::new(reach), injector, pass: Pass::new(pass) }));
    let model = match (&plan.model, held) {
        (Some(model), Some(held)) => {
            let tls = tls(roots, held.client_key.as_deref())?;
            let sockets = model.websocket.then(|| for_sockets(tls.clone(), names.clone(), plan.connect_timeout));
            let client = client(tls, names, plan.connect_timeout);
            Some(Arc::new(path(model, held, client, sockets, &tally, listener)?))
        }
        _ => None,
    };
    Ok(Service { model, proxy, tally })
}

fn path(
    model: &Model,
    held: &Held,
    client: Connections,
    sockets: Option<Connections>,
    tally: &Arc<Tally>,
    listener: SocketAddr,
) -> Result<Path, String> {
    let Held { credential, phantom, header, scheme, .. } = held;
    let header = header.get().clone();
    let scheme = if scheme.is_empty() { String::new() } else { format!("{scheme} ") };
    let mut value = HeaderValue::from_bytes(&[scheme.as_bytes(), credential.expose()].concat())
        .map_err(|_| "the credential cannot stand in a header")?;
    value.set_sensitive(true);
    Ok(Path {
        gate: Gate { authority: listener.to_string(), header, scheme, phantom: phantom.clone() },
        target: model.upstream.target()?,
        value,
        credential: credential.clone(),
        client,
        sockets,
        timeout: model.timeout,
        tally: tally.clone(),
    })
}

/// How the broker speaks TLS to a host: it looks at its certificate, and shows its own where it has one.
fn tls(roots: RootCertStore, key: Option<&Secret>) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let failed = |error: rustls::Error| format!("cannot set TLS up: {error}");
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(failed)?.with_root_certificates(roots);
    let Some(key) = key else { return Ok(builder.with_no_client_auth()) };
    let (chain, key) = trust::identity(key.expose())?;
    builder.with_client_auth_cert(chain, key).map_err(failed)
}

fn tcp(names: Names, patience: Duration) -> HttpConnector<Names> {
    let mut tcp = HttpConnector::new_with_resolver(names);
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(patience));
    tcp
}

/// Connections that become something else, one for each: only HTTP/1.1 lets them.
fn for_sockets(mut tls: ClientConfig, names: Names, patience: Duration) -> Connections {
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut builder = Client::builder(TokioExecutor::new());
    builder.timer(TokioTimer::new()).pool_max_idle_per_host(0);
    builder.http1_max_buf_size(HEAD_SIZE).http1_max_headers(HEADERS);
    builder.build(HttpsConnector::from((tcp(names, patience), tls)))
}

fn client(tls: ClientConfig, names: Names, patience: Duration) -> Connections {
    // http is planned for the loopback only (see `Upstream::target`).
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().enable_http2();
    let mut builder = Client::builder(TokioExecutor::new());
    builder.timer(TokioTimer::new()).pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE);
    builder.http1_max_buf_size(ANSWER).http1_max_headers(HEADERS).http2_max_header_list_size(HEAD_SIZE as u32);
    builder.build(https.wrap_connector(tcp(names, patience)))
}
