//! As much of HTTP/1.1 as an agent's client and a proxy use: keep-alive, chunked bodies, server-sent events.

use std::io::{self, BufRead, Read, Write};

use serde_json::Value;

use super::frames;

/// More than any conversation of a test; a wrong length ends the connection, not the memory.
const MAX_BODY: u64 = 64 << 20;

/// One request as it came.
pub struct Request {
    /// `POST`, `HEAD`…
    pub method: String,
    /// With the query.
    pub path: String,
    /// The body, without its transfer coding.
    pub body: Vec<u8>,
    headers: Vec<(String, String)>,
}

impl Request {
    /// The first header of this name, which is given in lower case.
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }
}

/// Reads one request; `None` when the client has closed the connection between two.
pub fn read(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let start = line(reader)?;
    let mut words = start.split_whitespace().map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(None) };
    let mut request = Request { method, path, headers: Vec::new(), body: Vec::new() };
    loop {
        let line = line(reader)?;
        let Some((name, value)) = line.split_once(':') else { break };
        request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    request.body = match request.header("transfer-encoding") {
        Some(coding) if coding.contains("chunked") => chunks(reader)?,
        _ => {
            let length =
                request.header("content-length").map_or(Ok(0), |text| text.parse()).map_err(io::Error::other)?;
            exactly(reader, length)?
        }
    };
    Ok(Some(request))
}

/// One line without its end; empty at the end of the stream.
fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    line.truncate(line.trim_end().len());
    Ok(line)
}

fn exactly(reader: &mut impl BufRead, length: u64) -> io::Result<Vec<u8>> {
    if length > MAX_BODY {
        return Err(io::Error::other("a body that no agent sends"));
    }
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    if body.len() as u64 == length { Ok(body) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn chunks(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let head = line(reader)?;
        let digits = head.split(';').next().unwrap_or_default().trim();
        let length = u64::from_str_radix(digits, 16).map_err(io::Error::other)?;
        body.extend(exactly(reader, length)?);
        if body.len() as u64 > MAX_BODY {
            return Err(io::Error::other("a body that no agent sends"));
        }
        // After the last chunk come trailers, which no agent sends, and the same empty line.
        line(reader)?;
        if length == 0 {
            return Ok(body);
        }
    }
}

/// What is sent back.
pub struct Response {
    status: u16,
    body: Body,
}

enum Body {
    Json(Vec<u8>),
    Events(Vec<Value>),
    Frames(Vec<Value>),
}

impl Response {
    /// A JSON body.
    pub fn json(status: u16, body: &Value) -> Response {
        Response { status, body: Body::Json(body.to_string().into_bytes()) }
    }

    /// Server-sent events, each named by its `type` where it has one.
    pub fn events(events: Vec<Value>) -> Response {
        Response { status: 200, body: Body::Events(events) }
    }

    /// The same events as Amazon's API has them.
    pub fn framed(self) -> Response {
        match self.body {
            Body::Events(events) => Response { body: Body::Frames(events), ..self },
            body => Response { body, ..self },
        }
    }

    /// Sends it; the head alone when that was asked for. Events go out one by one, as from a real model.
    pub fn write(&self, out: &mut impl Write, head_only: bool) -> io::Result<()> {
        let status = self.status;
        match &self.body {
            Body::Json(body) => {
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 {status} Scripted\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
                );
                out.write_all(&[head.as_bytes(), if head_only { b"" } else { body }].concat())
            }
            Body::Events(events) => {
                let head = "content-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked";
                write!(out, "HTTP/1.1 {status} Scripted\r\n{head}\r\n\r\n")?;
                for event in events {
                    let name = event["type"].as_str().map(|name| format!("event: {name}\n")).unwrap_or_default();
                    let text = format!("{name}data: {event}\n\n");
                    out.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())?;
                }
                out.write_all(b"0\r\n\r\n")
            }
            Body::Frames(events) => {
                let head = "content-type: application/vnd.amazon.eventstream\r\ntransfer-encoding: chunked";
                write!(out, "HTTP/1.1 {status} Scripted\r\n{head}\r\n\r\n")?;
                for event in events {
                    let frame = frames::frame(event);
                    out.write_all(&[format!("{:x}\r\n", frame.len()).as_bytes(), &frame, b"\r\n"].concat())?;
                }
                out.write_all(b"0\r\n\r\n")
            }
        }
    }
}
