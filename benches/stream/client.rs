//! What runs in the cells: it asks the base URL that it was given for streams and for one large answer, and writes what
//! each took.

use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::{TASK, Task, now};

/// In the environment of a client that has to verify its server itself: the authority in hexadecimal DER.
pub const AUTHORITY: &str = "BENCH_CA";

/// How long the client lies still before and after the large answer, so that its broker's memory can be read.
pub const REST: Duration = Duration::from_millis(300);

trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

/// A connection to the base URL.
struct Client {
    wire: Box<dyn Wire>,
    host: String,
    key: String,
}

/// Does the task of the environment. Lines on standard output: `first NANOSECONDS` and `chunk NANOSECONDS` for streams,
/// `bulk NANOSECONDS` for the large answer, `rest` before it and `done` after it.
pub fn run() -> Result<(), String> {
    let task = Task::parse(&env::var(TASK).map_err(|_| "there is no task")?)?;
    let failed = |error: io::Error| error.to_string();
    let mut client = Client::connect()?;
    let mut out = io::stdout().lock();
    client.stream(1, 0).map_err(failed)?;
    for _ in 0..task.streams {
        let asked = now();
        for (index, (stamp, seen)) in client.stream(task.chunks, task.gap).map_err(failed)?.into_iter().enumerate() {
            if index == 0 {
                writeln!(out, "first {}", seen - asked).map_err(failed)?;
            }
            writeln!(out, "chunk {}", seen.saturating_sub(stamp)).map_err(failed)?;
        }
    }
    if task.bytes > 0 {
        writeln!(out, "rest").and_then(|()| out.flush()).map_err(failed)?;
        std::thread::sleep(REST);
        let asked = now();
        client.bulk(task.bytes).map_err(failed)?;
        writeln!(out, "bulk {}\ndone", now() - asked).and_then(|()| out.flush()).map_err(failed)?;
        std::thread::sleep(REST);
    }
    Ok(())
}

impl Client {
    fn connect() -> Result<Client, String> {
        let url = env::var("ANTHROPIC_BASE_URL").map_err(|_| "there is no base URL")?;
        let (scheme, host) = url.split_once("://").ok_or("the base URL has no scheme")?;
        let stream = TcpStream::connect(host).map_err(|error| format!("{host}: {error}"))?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let wire: Box<dyn Wire> = if scheme == "https" { Box::new(tls(stream)?) } else { Box::new(stream) };
        Ok(Client { wire, host: host.to_owned(), key: credential()? })
    }

    fn ask(&mut self, path: &str) -> io::Result<()> {
        let Client { wire, host, key } = self;
        wire.write_all(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nx-api-key: {key}\r\n\r\n").as_bytes())?;
        wire.flush()
    }

    /// The moments at which each event of a stream was written and was here.
    fn stream(&mut self, chunks: usize, gap: u64) -> io::Result<Vec<(u64, u64)>> {
        self.ask(&format!("/stream/{chunks}/{gap}"))?;
        let (mut text, mut from, mut seen) = (Vec::new(), 0, Vec::new());
        while !text.ends_with(b"\r\n0\r\n\r\n") {
            self.more(&mut text)?;
            let moment = now();
            while let Some(end) = text[from..].iter().position(|&byte| byte == b'\n') {
                let line = &text[from..from + end];
                from += end + 1;
                let stamp = line.strip_prefix(b"data: ").and_then(|digits| str::from_utf8(digits).ok());
                seen.extend(stamp.and_then(|digits| digits.trim().parse().ok()).map(|stamp: u64| (stamp, moment)));
            }
        }
        if seen.len() == chunks { Ok(seen) } else { Err(io::Error::other(String::from_utf8_lossy(&text).into_owned())) }
    }

    /// Reads an answer of this size and drops it.
    fn bulk(&mut self, bytes: u64) -> io::Result<()> {
        self.ask(&format!("/bulk/{bytes}"))?;
        let mut head = Vec::new();
        let body = loop {
            self.more(&mut head)?;
            if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                break head.len() - end - 4;
            }
        };
        if !head.starts_with(b"HTTP/1.1 200") {
            return Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()));
        }
        let mut left = bytes - body as u64;
        let mut buffer = vec![0; 256 << 10];
        while left > 0 {
            match self.wire.read(&mut buffer)? {
                0 => return Err(io::Error::other(format!("{left} bytes did not come"))),
                count => left -= count as u64,
            }
        }
        Ok(())
    }

    fn more(&mut self, to: &mut Vec<u8>) -> io::Result<()> {
        let mut buffer = [0; 4096];
        match self.wire.read(&mut buffer)? {
            0 => Err(io::Error::other(format!("the connection ended after {}", String::from_utf8_lossy(to)))),
            count => {
                to.extend_from_slice(&buffer[..count]);
                Ok(())
            }
        }
    }
}

/// The cell's phantom, or the credential where there is no broker.
fn credential() -> Result<String, String> {
    let number = env::var("CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR").map_err(|_| "there is no credential")?;
    let number = number.parse().map_err(|_| "the credential's descriptor is no number")?;
    let mut text = String::new();
    // SAFETY: the launcher opened it for this process, and nothing else here has it.
    let mut file = unsafe { File::from_raw_fd(number) };
    file.read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

fn tls(stream: TcpStream) -> Result<StreamOwned<ClientConnection, TcpStream>, String> {
    let hex = env::var(AUTHORITY).map_err(|_| "there is no authority")?;
    let digits = |at: usize| hex.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let der = (0..hex.len()).step_by(2).map(digits).collect::<Option<Vec<u8>>>().ok_or("the authority is not text")?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(der)).map_err(|error| error.to_string())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").map_err(|error| error.to_string())?;
    let connection = ClientConnection::new(Arc::new(config), name).map_err(|error| error.to_string())?;
    Ok(StreamOwned::new(connection, stream))
}
