//! The bytes of a connection as the library that reads them gets them. It takes a request with a length and chunks for one
//! in chunks, as RFC 9112 (6.3) allows, and does not say that there was a length, or that there were two. Two programs read
//! such a request in two ways, so that it is found here.
//!
//! Nothing is changed on the way and nothing held up: a request that is read wrongly here can be refused at most.
#![forbid(unsafe_code)]

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use memchr::memchr;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::HEAD_SIZE;

/// What was seen of a connection's requests. It stays: whoever sends such a thing once is not heard again.
#[derive(Debug, Default)]
pub struct Seen {
    two_lengths: AtomicBool,
    early: AtomicBool,
}

impl Seen {
    /// Whether a request told its length in two ways, or in chunks by a line that not everybody reads as that.
    pub fn two_lengths(&self) -> bool {
        self.two_lengths.load(Ordering::Relaxed)
    }

    /// Whether something came behind a request that wants another protocol, which nobody has agreed to yet.
    pub fn early(&self) -> bool {
        self.early.load(Ordering::Relaxed)
    }
}

/// A connection that is watched.
pub struct Watched<T> {
    stream: T,
    heads: Heads,
}

impl<T> Watched<T> {
    /// Watches this one.
    pub fn new(stream: T, seen: Arc<Seen>) -> Watched<T> {
        Watched { stream, heads: Heads { seen, part: Part::Head(Vec::new()) } }
    }
}

/// Where a connection's requests are.
struct Heads {
    seen: Arc<Seen>,
    part: Part,
}

enum Part {
    /// In a head, of which this much has come.
    Head(Vec<u8>),
    /// In a body of which so many bytes are to come.
    Body(u64),
    /// Behind a head that asks for another protocol.
    Other,
    /// Behind one whose connection ends with its answer.
    Last,
}

impl Heads {
    fn see(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match &mut self.part {
                Part::Head(head) => {
                    let Some(taken) = up_to_its_end(head, bytes) else {
                        if head.len() > HEAD_SIZE {
                            // Too large for whoever reads it, too.
                            self.part = Part::Last;
                        }
                        return;
                    };
                    bytes = &bytes[taken..];
                    let (next, two_lengths) = behind(head);
                    self.part = next;
                    if two_lengths {
                        self.seen.two_lengths.store(true, Ordering::Relaxed);
                    }
                }
                Part::Body(left) => {
                    let taken = (*left).min(bytes.len() as u64);
                    *left -= taken;
                    bytes = &bytes[taken as usize..];
                    if *left == 0 {
                        self.part = Part::Head(Vec::new());
                    }
                }
                Part::Other => return self.seen.early.store(true, Ordering::Relaxed),
                Part::Last => return,
            }
        }
    }
}

/// Takes bytes into a head until that ends with an empty line, and says how many; nothing where it does not end. Empty
/// lines before it are none of its.
fn up_to_its_end(head: &mut Vec<u8>, bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = memchr(b'\n', &bytes[from..]) {
        head.extend_from_slice(&bytes[from..=from + at]);
        from += at + 1;
        if matches!(head[..], [b'\n'] | [b'\r', b'\n']) {
            head.clear();
        } else if head.ends_with(b"\n\n") || head.ends_with(b"\n\r\n") {
            return Some(from);
        }
        if head.len() > HEAD_SIZE {
            return None;
        }
    }
    head.extend_from_slice(&bytes[from..]);
    None
}

/// What comes behind a head, and whether that is told in two ways.
fn behind(head: &[u8]) -> (Part, bool) {
    let (mut lengths, mut codings, mut upgrade) = (Vec::new(), Vec::new(), false);
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        let Some(colon) = memchr(b':', line) else { continue };
        let (name, value) = (line[..colon].trim_ascii(), &line[colon + 1..]);
        if name.eq_ignore_ascii_case(b"content-length") {
            lengths.push(value);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            codings.push(value);
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            upgrade = true;
        }
    }
    let clear = match (&lengths[..], &codings[..]) {
        // The library makes one of two that are the same.
        ([] | [_], []) => true,
        // As every client writes it: with a tab before it, or in capitals, some read no coding in it.
        ([], [coding]) => matches!(*coding, b" chunked\r" | b"chunked\r"),
        _ => false,
    };
    let length = |value: &[u8]| std::str::from_utf8(value.trim_ascii()).ok().and_then(|text| text.parse().ok());
    let part = match (&lengths[..], &codings[..]) {
        _ if upgrade => Part::Other,
        ([], []) => Part::Head(Vec::new()),
        ([one], []) => match length(one) {
            Some(0) => Part::Head(Vec::new()),
            Some(length) => Part::Body(length),
            // No length for whoever reads it, too.
            None => Part::Last,
        },
        _ => Part::Last,
    };
    (part, !clear)
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, into))?;
        self.heads.see(&into.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is seen of these bytes, in parts of so many.
    fn seen(bytes: &[u8], size: usize) -> (bool, bool) {
        let seen = Arc::new(Seen::default());
        let mut heads = Heads { seen: seen.clone(), part: Part::Head(Vec::new()) };
        bytes.chunks(size).for_each(|part| heads.see(part));
        (seen.two_lengths(), seen.early())
    }

    #[test]
    fn a_length_told_in_two_ways_is_seen_wherever_it_is_cut() {
        let body = "POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n";
        let good = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let chunked = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
        let cases = [
            (good.clone(), false),
            (chunked.to_owned(), false),
            // Whoever reads it reads nothing behind a body in chunks.
            (format!("{chunked}0\r\n\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: x\r\n\r\n"), false),
            (format!("{good}GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n{chunked}"), false),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello".to_owned(), true),
            ("POST / HTTP/1.1\nTransfer-Encoding: chunked\nContent-Length: 1\n\n".to_owned(), true),
            (format!("{good}POST / HTTP/1.1\r\nContent-Length: 5\r\nTRANSFER-ENCODING: chunked\r\n\r\n"), true),
            (
                format!("\r\n\n{good}\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"),
                true,
            ),
        ];
        for (text, want) in cases {
            for size in [1, 2, 3, 7, text.len()] {
                assert_eq!(seen(text.as_bytes(), size), (want, false), "{size}: {text}");
            }
        }
        for line in [
            "Transfer-Encoding: Chunked",
            "Transfer-Encoding:\tchunked",
            "Transfer-Encoding:  chunked",
            "Transfer-Encoding: chunked ",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: identity, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding:",
        ] {
            assert!(seen(format!("POST / HTTP/1.1\r\n{line}\r\n\r\n").as_bytes(), 5).0, "{line}");
        }
    }

    #[test]
    fn what_comes_too_soon_behind_another_protocol_is_seen() {
        let asks = "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n";
        assert_eq!(seen(asks.as_bytes(), 4), (false, false));
        assert_eq!(seen(format!("{asks}x").as_bytes(), 4), (false, true));
        assert_eq!(seen(format!("{asks}x").as_bytes(), 400), (false, true));
    }

    #[test]
    fn a_head_without_end_is_not_kept() {
        let mut heads = Heads { seen: Arc::default(), part: Part::Head(Vec::new()) };
        for _ in 0..1000 {
            heads.see(&[b'a'; 1000]);
            heads.see(b"\n");
        }
        assert!(matches!(heads.part, Part::Last));
    }
}
