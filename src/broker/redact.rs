//! Takes the credential out of what comes back from upstream.
#![forbid(unsafe_code)]

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use memchr::memmem;

use crate::secret::Secret;

/// Shorter, it would be found in every other text, and it is no secret either.
const SHORTEST: usize = 8;

/// What stands for each of its bytes: a length that was announced still holds.
const COVER: u8 = b'*';

/// Whether a text contains the credential.
pub fn contains(text: &[u8], credential: &Secret) -> bool {
    let word = credential.expose();
    word.len() >= SHORTEST && memmem::find(text, word).is_some()
}

/// Covers the credential in a stream, also where it is cut in two. Bytes at the end of a part that could be its beginning
/// wait for the next part; all others go on at once.
#[derive(Debug)]
pub struct Redactor {
    credential: Arc<Secret>,
    held: BytesMut,
}

impl Redactor {
    /// One for a stream.
    pub fn new(credential: Arc<Secret>) -> Redactor {
        Redactor { credential, held: BytesMut::new() }
    }

    /// A part of the stream, as it goes on. It may be empty.
    pub fn pass(&mut self, part: Bytes) -> Bytes {
        let word = self.credential.expose();
        if word.len() < SHORTEST {
            return part;
        }
        if self.held.is_empty() && memmem::find(&part, word).is_none() && beginning(&part, word) == 0 {
            return part;
        }
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(&part);
        let mut from = 0;
        while let Some(at) = memmem::find(&all[from..], word) {
            all[from + at..from + at + word.len()].fill(COVER);
            from += at + word.len();
        }
        self.held = all.split_off(all.len() - beginning(&all, word));
        all.freeze()
    }

    /// How many bytes wait.
    pub fn held(&self) -> u64 {
        self.held.len() as u64
    }

    /// What waits, when no more comes.
    pub fn end(&mut self) -> Option<Bytes> {
        Some(std::mem::take(&mut self.held)).filter(|held| !held.is_empty()).map(BytesMut::freeze)
    }
}

/// How many bytes at the end of a text are the beginning of the word, which is not whole.
fn beginning(text: &[u8], word: &[u8]) -> usize {
    let longest = text.len().min(word.len() - 1);
    (1..=longest).rev().find(|&length| text.ends_with(&word[..length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(parts: &[&[u8]], credential: &Arc<Secret>) -> Vec<u8> {
        let mut redactor = Redactor::new(credential.clone());
        let mut out: Vec<u8> = parts.iter().flat_map(|part| redactor.pass(Bytes::copy_from_slice(part))).collect();
        out.extend(redactor.end().into_iter().flatten());
        out
    }

    #[test]
    fn the_credential_is_covered_wherever_it_is_cut_and_nothing_else_changes() {
        let credential = Arc::new(Secret::phantom("aaaab-").unwrap());
        let word = credential.expose().to_owned();
        let cover = vec![COVER; word.len()];
        for before in [&b""[..], b"aaaa", b"aaaab-", b"x\n"] {
            let text = [before, &word, b"aaaab", &word, b"-end aaa"].concat();
            let want = [before, &cover, b"aaaab", &cover, b"-end aaa"].concat();
            for cut in 0..text.len() {
                let (left, right) = text.split_at(cut);
                assert_eq!(passed(&[left, right], &credential), want, "cut at {cut}");
            }
            let single: Vec<&[u8]> = text.chunks(1).collect();
            assert_eq!(passed(&single, &credential), want, "byte by byte");
        }
    }

    #[test]
    fn what_cannot_be_a_beginning_goes_on_at_once() {
        let credential = Arc::new(Secret::phantom("sk-").unwrap());
        let mut redactor = Redactor::new(credential);
        assert_eq!(redactor.pass(Bytes::from_static(b"data: {}\n\n")), "data: {}\n\n");
        assert_eq!(redactor.pass(Bytes::from_static(b"thus")), "thu");
        assert_eq!(redactor.held(), 1);
        assert_eq!(redactor.pass(Bytes::from_static(b"!")), "s!");
    }
}
