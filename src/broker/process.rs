//! The broker's own process: confined first, then it serves until the launcher wants it to end.
#![forbid(unsafe_code)]

use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid, setsid};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::gate::Gate;
use super::pass::Path;
use super::tally::Tally;
use super::{QUIT, Setup, trust};
use crate::confine::ids::{Ids, become_run};
use crate::confine::{Places, capabilities, landlock, seccomp};
use crate::plan;
use crate::sys;
use crate::sys::channel::Channel;
use crate::sys::process::exit_now;

/// Connections of the agent's at once; more wait. A model's agents have a handful.
const CONNECTIONS: usize = 64;

/// How long a connection may take to send the head of a request, or be idle.
const HEAD: Duration = Duration::from_secs(15);

/// The largest head of a request or an answer, in bytes and in headers.
const HEAD_SIZE: usize = 64 << 10;
const HEADERS: usize = 128;

/// How long a TCP connection to upstream may take.
const CONNECT: Duration = Duration::from_secs(10);

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

/// Makes this process, a fork of the launcher, the broker.
pub fn run(charge: Charge<'_>) -> ! {
    sys::environ::rename(b"oubliette-broker");
    // A task that panics would be dropped alone, and the others go on; the message could hold anything.
    std::panic::set_hook(Box::new(|_| std::process::abort()));
    let channel = charge.channel.try_clone();
    let done = enter(&charge).and_then(|roots| serve(charge, roots));
    if let (Err(why), Ok(channel)) = (&done, channel) {
        let _ = channel.send(format!("F{why}").as_bytes(), None);
    }
    exit_now(i32::from(done.is_err()) * 125)
}

/// Takes leave of the launcher: its descriptors, its session, its rights.
fn enter(charge: &Charge<'_>) -> Result<RootCertStore, String> {
    let Charge { setup: Setup { plan, .. }, listener, channel, ids, launcher } = charge;
    let failed = |what: &'static str| move |errno: nix::errno::Errno| format!("cannot {what}: {}", errno.desc());
    setsid().map_err(failed("leave the launcher's session"))?;
    sys::fds::keep_only(&[listener.as_fd(), channel.as_fd()]).map_err(failed("close the launcher's descriptors"))?;
    let roots = plan.authorities.as_deref().map(trust::read).transpose().map_err(|error| error.to_string())?;
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
    Ok(roots.unwrap_or_else(RootCertStore::empty))
}

fn serve(charge: Charge<'_>, roots: RootCertStore) -> Result<(), String> {
    let path = Arc::new(path(&charge.setup, roots)?);
    let failed = |error: std::io::Error| format!("cannot serve the cell: {error}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let tally = path.tally.clone();
    let Charge { listener, channel, .. } = charge;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(TcpListener::from(listener)).map_err(failed)?;
        tokio::spawn(accept(listener, path));
        wait_for_the_launcher(&channel).await.map_err(failed)?;
        let said = serde_json::to_vec(&tally.traffic()).unwrap_or_default();
        // A launcher that is gone asks nothing.
        let _ = channel.send(&said, None);
        Ok(())
    })
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

async fn accept(listener: tokio::net::TcpListener, path: Arc<Path>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_SIZE)
        .max_header_size(HEAD_SIZE)
        .max_headers(HEADERS);
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptor left: one comes back when a connection ends.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let path = path.clone();
        let connection =
            http.serve_connection(TokioIo::new(stream), service_fn(move |request| path.clone().answer(request)));
        tokio::spawn(async move {
            // The agent's end of a connection is the agent's business.
            let _ = connection.await;
            drop(place);
        });
    }
}

fn path(setup: &Setup<'_>, roots: RootCertStore) -> Result<Path, String> {
    let Setup { plan, credential, phantom, way, .. } = setup;
    let header = way.header.as_ref().ok_or("the agent's file names no header")?.get().clone();
    let scheme = if way.scheme.is_empty() { String::new() } else { format!("{} ", way.scheme) };
    let mut value = HeaderValue::from_bytes(&[scheme.as_bytes(), credential.expose()].concat())
        .map_err(|_| "the credential cannot stand in a header")?;
    value.set_sensitive(true);
    let authority = format!("127.0.0.1:{}", plan::broker::PORT);
    Ok(Path {
        gate: Gate { authority, header, scheme, phantom: phantom.clone() },
        target: plan.upstream.target()?,
        value,
        credential: credential.clone(),
        client: client(roots)?,
        timeout: plan.timeout,
        tally: Arc::new(Tally::default()),
    })
}

fn client<B>(roots: RootCertStore) -> Result<Client<hyper_rustls::HttpsConnector<HttpConnector>, B>, String>
where
    B: http_body::Body + Send,
    B::Data: Send,
{
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("cannot set TLS up: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    // http is planned for the loopback only (see `Upstream::target`).
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().enable_http2();
    let mut builder = Client::builder(TokioExecutor::new());
    builder.timer(TokioTimer::new()).pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE);
    builder.http1_max_buf_size(HEAD_SIZE).http1_max_headers(HEADERS).http2_max_header_list_size(HEAD_SIZE as u32);
    Ok(builder.build(https.wrap_connector(tcp)))
}
