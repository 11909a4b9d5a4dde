//! As much of WebSockets (RFC 6455) as an upstream of the tests speaks.

use std::io::{Error, Read, Result, Write};

use data_encoding::BASE64;
use sha1::{Digest, Sha1};

use super::upstream::Asked;

/// What a client sent in one frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// The first byte: whether it is the last of its message, and its kind.
    pub first: u8,
    /// Without its mask.
    pub payload: Vec<u8>,
}

/// What a server proves to have read the key with.
pub fn accept(asked: &Asked) -> String {
    let key = asked.header("sec-websocket-key").concat();
    BASE64.encode(&Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11")))
}

/// Agrees to a WebSocket, with more headers.
pub fn agree(asked: &Asked, out: &mut impl Write, more: &str) -> Result<()> {
    let accept = accept(asked);
    write!(
        out,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{more}\r\n"
    )
}

/// The next frame of a client, which masks it.
pub fn read(from: &mut impl Read) -> Result<Frame> {
    let mut head = [0; 2];
    from.read_exact(&mut head)?;
    let mut length = [0; 8];
    let known = match head[1] & 0x7f {
        126 => &mut length[6..],
        127 => &mut length[..],
        _ => &mut length[..0],
    };
    from.read_exact(known)?;
    let length = if known.is_empty() { u64::from(head[1] & 0x7f) } else { u64::from_be_bytes(length) };
    let mut mask = [0; 4];
    from.read_exact(&mut mask)?;
    let mut payload = Vec::new();
    if head[1] & 0x80 == 0 || from.take(length).read_to_end(&mut payload)? as u64 != length {
        return Err(Error::other("no masked frame"));
    }
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Ok(Frame { first: head[0], payload })
}

/// A server's frame.
pub fn write(out: &mut impl Write, first: u8, payload: &[u8]) -> Result<()> {
    let length = payload.len();
    let head = match length {
        0..126 => vec![first, length as u8],
        126..0x10000 => [&[first, 126][..], &(length as u16).to_be_bytes()].concat(),
        _ => [&[first, 127][..], &(length as u64).to_be_bytes()].concat(),
    };
    out.write_all(&[head, payload.to_vec()].concat())
}
