//! Servers on 127.0.0.1 that write down what they get, and TLS in front of any of them.

use std::convert::Infallible;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;

/// One request, as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The first line and the headers.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Asked {
    /// The values of a header, by its name in small letters.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let pairs = self.head.lines().filter_map(|line| line.split_once(':'));
        pairs.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }
}

/// A server that answers every request with what `answer` writes.
pub struct Upstream {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    ended: Arc<AtomicBool>,
    accept: Option<JoinHandle<()>>,
}

/// An answer with a length.
pub fn plain(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes()
}

impl Upstream {
    /// One that says `fine` to everything.
    pub fn fine() -> Upstream {
        Upstream::start(|_, stream| stream.write_all(&plain("200 OK", "", "fine")))
    }

    pub fn start(answer: impl Fn(&Asked, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Upstream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, ended) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (answer, list, end) = (Arc::new(answer), Arc::clone(&asked), Arc::clone(&ended));
        let accept = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let (answer, list): (_, Arc<Mutex<Vec<Asked>>>) = (Arc::clone(&answer), Arc::clone(&list));
                // Ends with its connection, at the latest when the broker ends.
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    let mut stream = stream;
                    while let Some(request) = read(&mut reader) {
                        list.lock().unwrap().push(request.clone());
                        if answer(&request, &mut stream).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Upstream { address, asked, ended, accept: Some(accept) }
    }

    /// What came so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        let _ = self.accept.take().map(JoinHandle::join);
    }
}

fn read(reader: &mut impl BufRead) -> Option<Asked> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let mut asked = Asked { head, body: Vec::new() };
    if asked.header("transfer-encoding") == ["chunked"] {
        asked.body = chunks(reader)?;
        return Some(asked);
    }
    let length = asked.header("content-length").first().map_or(0, |text| text.parse().unwrap());
    reader.take(length).read_to_end(&mut asked.body).ok()?;
    Some(asked)
}

/// A body in chunks, where it is whole and has no trailers.
fn chunks(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let size = u64::from_str_radix(line.strip_suffix("\r\n")?, 16).ok()?;
        let mut part = Vec::new();
        reader.take(size + 2).read_to_end(&mut part).ok()?;
        body.extend_from_slice(part.strip_suffix(b"\r\n").filter(|part| part.len() as u64 == size)?);
        if size == 0 {
            return Some(body);
        }
    }
}

/// TLS in front of a server, with a certificate of an authority of the test's own.
pub struct Front {
    pub address: SocketAddr,
    /// The authority's certificate.
    pub ca: PathBuf,
}

impl Front {
    /// For the name or address that the certificate says, on 127.0.0.1. The file goes into this directory.
    pub fn new(behind: SocketAddr, name: SanType, dir: &Path) -> Front {
        Front::with(certificates(name), behind, dir)
    }

    /// One that wants a certificate of its clients, and that of a client of its, with the key.
    pub fn mutual(behind: SocketAddr, dir: &Path) -> (Front, String) {
        let (certificate, key, ca) = issued(SanType::DnsName("client.example".try_into().unwrap()));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let (server, own, ca) = issued(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
        let own = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_client_cert_verifier(clients).with_single_cert(vec![server.der().clone()], own);
        (Front::with((config.unwrap(), ca), behind, dir), certificate.pem() + &key.serialize_pem())
    }

    fn with((config, ca): (ServerConfig, String), behind: SocketAddr, dir: &Path) -> Front {
        let path = dir.join(format!("ca-{:016x}.pem", rand::random::<u64>()));
        fs::write(&path, ca).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        // Lives as long as the tests do: nobody connects to it any more when its test is over.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(listener, behind, TlsAcceptor::from(Arc::new(config))))
        });
        Front { address, ca: path }
    }

    /// For 127.0.0.1 itself, with HTTP/2 for whoever speaks it, although the server behind does not.
    pub fn choosing(behind: SocketAddr, dir: &Path) -> Front {
        let (mut config, ca) = certificates(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Front::with((config, ca), behind, dir)
    }

    /// For 127.0.0.1 itself.
    pub fn loopback(behind: SocketAddr, dir: &Path) -> Front {
        Front::new(behind, SanType::IpAddress(Ipv4Addr::LOCALHOST.into()), dir)
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

async fn serve(listener: TcpListener, behind: SocketAddr, tls: TlsAcceptor) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let tls = tls.clone();
        tokio::spawn(async move {
            let (Ok(mut outer), Ok(mut inner)) =
                (tls.accept(stream).await, tokio::net::TcpStream::connect(behind).await)
            else {
                return;
            };
            let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
        });
    }
}

/// A server that speaks HTTP/2 alone. It answers with the version, the authority and the headers that it saw.
pub fn http2(dir: &Path) -> Front {
    let (mut config, ca) = certificates(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let path = dir.join(format!("ca-{:016x}.pem", rand::random::<u64>()));
    fs::write(&path, ca).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let tls = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = tls.accept(stream).await else { continue };
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service_fn(describe)));
            }
        })
    });
    Front { address, ca: path }
}

async fn describe(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let authority = head.uri.authority().map(ToString::to_string).unwrap_or_default();
    let header =
        |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let text = format!(
        "{:?} {} {authority} key={} connection={} body={}",
        head.version,
        head.uri.path(),
        header("x-api-key"),
        header("connection"),
        String::from_utf8_lossy(&body)
    );
    Ok(Response::new(Full::new(Bytes::from(text))))
}

/// A server's configuration, and its authority in PEM.
fn certificates(name: SanType) -> (ServerConfig, String) {
    let (certificate, key, ca) = issued(name);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (config, ca)
}

/// A certificate, its key and its authority, in PEM.
pub fn pem(name: SanType) -> (String, String, String) {
    let (certificate, key, ca) = issued(name);
    (certificate.pem(), key.serialize_pem(), ca)
}

fn issued(name: SanType) -> (Certificate, KeyPair, String) {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // A certificate of the same name as its issuer's is taken for a self-signed one.
    authority.distinguished_name.push(DnType::CommonName, "an authority");
    let ca = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let mut server = CertificateParams::default();
    server.subject_alt_names = vec![name];
    (server.signed_by(&key, &issuer).unwrap(), key, ca)
}
