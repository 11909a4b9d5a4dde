//! What an upstream says over a WebSocket, frame by frame (RFC 6455, 5.2): as long as nothing is compressed, the
//! credential is found in it, and so are the tokens that its messages count. What the agent says is masked, and passes.
#![forbid(unsafe_code)]

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::redact::Redactor;
use super::tally::Tally;
use super::usage::Reader;
use crate::secret::Secret;

/// The longest head of a frame.
const HEAD: usize = 10;

/// The largest payload of a frame that says something of the connection.
const CONTROL: u64 = 125;

/// Why a connection is cut.
const NONE: &str = "what the upstream sends are no frames that can be looked into";

/// The frames of one connection.
pub struct Frames {
    redactor: Redactor,
    reader: Reader,
    head: [u8; HEAD],
    /// How much of it has come.
    known: usize,
    /// The frame whose payload comes.
    frame: Option<Frame>,
    /// Whether the message that the last frame is part of is text, where it goes on.
    message: Option<bool>,
}

#[derive(Clone, Copy)]
struct Frame {
    left: u64,
    kind: Kind,
    last: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Binary,
    Control,
}

impl Frames {
    /// Those of an upstream that has this credential, whose answers are counted here.
    pub fn new(credential: Arc<Secret>, tally: &Arc<Tally>) -> Frames {
        let (redactor, reader) = (Redactor::new(credential), Reader::messages(tally));
        Frames { redactor, reader, head: [0; HEAD], known: 0, frame: None, message: None }
    }

    /// A part of them, as it goes on. A frame's bytes are never held for the next one.
    ///
    /// # Errors
    /// It cannot be looked into: the connection has to end.
    pub fn pass(&mut self, mut bytes: &[u8]) -> Result<Bytes, &'static str> {
        let mut out = BytesMut::with_capacity(bytes.len());
        loop {
            let Some(frame) = self.frame else {
                let Some((byte, rest)) = bytes.split_first() else { return Ok(out.freeze()) };
                self.head[self.known] = *byte;
                (bytes, self.known) = (rest, self.known + 1);
                if let Some(length) = self.whole_head() {
                    self.frame = Some(self.begin(length)?);
                    out.extend_from_slice(&self.head[..self.known]);
                    self.known = 0;
                }
                continue;
            };
            let (part, rest) = bytes.split_at(frame.left.min(bytes.len() as u64) as usize);
            bytes = rest;
            out.extend_from_slice(&self.redactor.pass(Bytes::copy_from_slice(part)));
            if frame.kind == Kind::Text {
                self.reader.read(part);
            }
            let left = frame.left - part.len() as u64;
            self.frame = Some(Frame { left, ..frame });
            if left > 0 {
                return Ok(out.freeze());
            }
            self.frame = None;
            out.extend(self.redactor.end().into_iter().flatten());
            if frame.last && frame.kind != Kind::Control {
                self.reader.end();
            }
        }
    }

    /// The length that a head says, where it is whole.
    fn whole_head(&self) -> Option<u64> {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte));
        match (self.head[1] & 0x7f, self.known) {
            (126, 4) => Some(number(&self.head[2..4])),
            (127, 10) => Some(number(&self.head[2..10])),
            (126 | 127, _) => None,
            (length, 2) => Some(length.into()),
            _ => None,
        }
    }

    /// A frame begins. A server's is not masked, and without extensions there are no further bits.
    fn begin(&mut self, length: u64) -> Result<Frame, &'static str> {
        let last = self.head[0] & 0x80 != 0;
        if self.head[0] & 0x70 != 0 || self.head[1] & 0x80 != 0 || length >> 63 != 0 {
            return Err(NONE);
        }
        let kind = match (self.head[0] & 0x0f, self.message) {
            (0, Some(true)) | (1, None) => Kind::Text,
            (0, Some(false)) | (2, None) => Kind::Binary,
            (8..=10, _) if last && length <= CONTROL => Kind::Control,
            _ => return Err(NONE),
        };
        if kind != Kind::Control {
            self.message = (!last).then_some(kind == Kind::Text);
        }
        Ok(Frame { left: length, kind, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let length = payload.len();
        let head = match length {
            0..126 => vec![first, length as u8],
            126..0x10000 => [&[first, 126][..], &(length as u16).to_be_bytes()].concat(),
            _ => [&[first, 127][..], &(length as u64).to_be_bytes()].concat(),
        };
        [head, payload.to_vec()].concat()
    }

    #[test]
    fn frames_pass_as_they_are_but_for_the_credential_wherever_they_are_cut() {
        let credential = Arc::new(Secret::phantom("sk-").unwrap());
        let word = credential.expose();
        let cover = vec![b'*'; word.len()];
        let message = |word: &[u8]| {
            let long = [&[b'x'; 70_000][..], word].concat();
            [
                frame(0x81, &[b"{\"a\":\"", word, b"\"}"].concat()),
                // Ends as the credential begins, and is whole all the same.
                frame(0x81, b"thus"),
                frame(0x01, &[b"first ", word].concat()),
                frame(0x89, word),
                frame(0x80, &[word, b" s"].concat()),
                frame(0x82, b""),
                frame(0x82, &[&[0; 200][..], word].concat()),
                frame(0x82, &long),
                frame(0x88, &[3, 232]),
            ]
            .concat()
        };
        let text = message(word);
        for size in [1, 2, 3, 10, 127, 4096, text.len()] {
            let mut frames = Frames::new(credential.clone(), &Arc::default());
            let parts = text.chunks(size).flat_map(|part| frames.pass(part).unwrap());
            assert!(parts.collect::<Vec<u8>>() == message(&cover), "in parts of {size}");
        }
        let mut frames = Frames::new(credential.clone(), &Arc::default());
        assert_eq!(frames.pass(&frame(0x81, b"thus")).unwrap(), frame(0x81, b"thus"));
    }

    #[test]
    fn each_message_that_counts_tokens_is_an_answer() {
        let (credential, tally) = (Arc::new(Secret::phantom("sk-").unwrap()), Arc::new(Tally::default()));
        let mut frames = Frames::new(credential.clone(), &tally);
        let usage = |input: u64| {
            format!(
                r#"{{"type":"response.completed","response":{{"usage":{{"input_tokens":{input},"output_tokens":2}}}}}}"#
            )
        };
        for input in [5, 7] {
            frames.pass(&frame(0x81, br#"{"type":"response.created","response":{"usage":null}}"#)).unwrap();
            let text = usage(input).into_bytes();
            let (first, second) = text.split_at(60);
            let bytes = [frame(0x01, first), frame(0x8a, b"pong"), frame(0x80, second)].concat();
            bytes.chunks(7).for_each(|part| drop(frames.pass(part).unwrap()));
        }
        // Not text, and a message that never ends.
        frames.pass(&frame(0x82, usage(1).as_bytes())).unwrap();
        let tokens = tally.traffic().tokens;
        assert_eq!((tokens.answers, tokens.input, tokens.output), (2, 12, 4));
    }

    #[test]
    fn what_nobody_could_look_into_ends_the_connection() {
        let credential = Arc::new(Secret::phantom("sk-").unwrap());
        for bad in [
            &[0xc1, 1][..],       // compressed
            &[0x91, 1],           // another extension's
            &[0x81, 0x81],        // masked
            &[0x83, 1],           // no kind that there is
            &[0x8b, 1],           // the same
            &[0x80, 1],           // goes on with nothing
            &[0x01, 0, 0x01, 0],  // begins in the middle
            &[0x09, 0],           // a ping in parts
            &[0x89, 126, 0, 126], // a large one
            &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0],
        ] {
            for size in [1, bad.len()] {
                let mut frames = Frames::new(credential.clone(), &Arc::default());
                assert!(bad.chunks(size).any(|part| frames.pass(part).is_err()), "{bad:x?}");
            }
        }
    }
}
