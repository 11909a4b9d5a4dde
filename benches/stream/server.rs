//! The upstream: streams of events with the moment in each, and large answers, in the clear and by TLS.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::now;

/// Two servers that end with the process.
pub struct Server {
    /// `http://127.0.0.1:PORT`.
    pub clear: String,
    /// `https://127.0.0.1:PORT`.
    pub tls: String,
    /// Who vouches for the second, for a file.
    pub authority_pem: String,
    /// The same, for a variable.
    pub authority_hex: String,
}

impl Server {
    /// Starts both.
    ///
    /// # Errors
    /// A sentence.
    pub fn start() -> Result<Server, String> {
        let text = |error: rcgen::Error| error.to_string();
        let key = KeyPair::generate().map_err(text)?;
        let mut params = CertificateParams::new(Vec::new()).map_err(text)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).map_err(text)?;
        let mut leaf = CertificateParams::new(Vec::new()).map_err(text)?;
        leaf.subject_alt_names = vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into())];
        let leaf_key = KeyPair::generate().map_err(text)?;
        let certificate = leaf.signed_by(&leaf_key, &Issuer::new(params, key)).map_err(text)?;
        let config = config(certificate.der().clone(), &leaf_key)?;
        let clear = serve("http", |stream| answer_all(stream.try_clone()?, stream))?;
        let tls = serve("https", move |stream| {
            let connection = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
            let stream = Shared(std::rc::Rc::new(std::cell::RefCell::new(StreamOwned::new(connection, stream))));
            answer_all(stream.clone(), stream)
        })?;
        let authority_hex = authority.der().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Server { clear, tls, authority_pem: authority.pem(), authority_hex })
    }
}

fn config(certificate: CertificateDer<'static>, key: &KeyPair) -> Result<Arc<ServerConfig>, String> {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| error.to_string())?.with_no_client_auth();
    config.with_single_cert(vec![certificate], key).map(Arc::new).map_err(|error| error.to_string())
}

/// A thread for each connection: TLS of the one must not wait for the other's.
fn serve(
    scheme: &str,
    answer: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
) -> Result<String, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| error.to_string())?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let answer = answer.clone();
            let _ = stream.set_nodelay(true);
            // A client that goes away ends its connection with an error, which is nobody's.
            thread::spawn(move || answer(stream).is_ok());
        }
    });
    Ok(format!("{scheme}://{address}"))
}

/// Reader and writer of one TLS connection, in one thread.
#[derive(Clone)]
struct Shared(std::rc::Rc<std::cell::RefCell<StreamOwned<ServerConnection, TcpStream>>>);

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().read(buffer)
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.borrow_mut().flush()
    }
}

fn answer_all(from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut from = BufReader::new(from);
    while let Some(path) = request(&mut from)? {
        let words: Vec<&str> = path.split('/').skip(1).collect();
        match words[..] {
            ["stream", chunks, gap] => stream(&mut to, number(chunks)?, number(gap)?)?,
            ["bulk", bytes] => bulk(&mut to, number(bytes)?)?,
            _ => return Err(io::Error::other(path)),
        }
    }
    Ok(())
}

fn number(text: &str) -> io::Result<u64> {
    text.parse().map_err(io::Error::other)
}

/// The path of a request without a body, or nothing at the end of the connection.
fn request(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut path = None;
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match (&path, line.trim_end()) {
            (None, first) => path = first.split(' ').nth(1).map(str::to_owned),
            (Some(_), "") => return Ok(path),
            (Some(_), _) => {}
        }
    }
}

/// Events as a model's API writes them, one for each write; the gap between them is in microseconds.
fn stream(to: &mut impl Write, chunks: u64, gap: u64) -> io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    to.write_all(head.as_bytes())?;
    to.flush()?;
    for _ in 0..chunks {
        if gap > 0 {
            thread::sleep(Duration::from_micros(gap));
        }
        let event = format!("event: content_block_delta\ndata: {}\n\n", now());
        to.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())?;
        to.flush()?;
    }
    to.write_all(b"0\r\n\r\n")?;
    to.flush()
}

fn bulk(to: &mut impl Write, bytes: u64) -> io::Result<()> {
    to.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n").as_bytes())?;
    let block = vec![b'x'; 256 << 10];
    let mut left = bytes;
    while left > 0 {
        let count = left.min(block.len() as u64);
        to.write_all(&block[..count as usize])?;
        left -= count;
    }
    to.flush()
}
