//! What an upstream says over a WebSocket: wherever it is cut, the same goes on, as long as it was, and no frame has the
//! credential in it.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use oubliette::broker::frames::Frames;
use oubliette::secret::Secret;

static CREDENTIAL: LazyLock<Arc<Secret>> = LazyLock::new(|| Arc::new(Secret::phantom("sk-").expect("random bytes")));

/// Stands in an input for the credential, and is as long.
static WORD: LazyLock<Vec<u8>> = LazyLock::new(|| vec![b'K'; CREDENTIAL.expose().len()]);

fuzz_target!(|data: &[u8]| {
    let data = with_credential(data);
    let sizes = [data.len().max(1), 1, 7];
    let passed = sizes.map(|size| pass(&data, size));
    let (whole, fine) = &passed[0];
    for (other, also) in &passed[1..] {
        assert!(fine == also, "in parts it is another matter");
        assert!(!fine || whole == other, "in parts it is another text");
    }
    // What has begun to be one may wait for more; whatever came out is as long as what went in, or waits.
    assert!(whole.len() <= data.len());
    for (at, byte) in whole.iter().enumerate() {
        assert!(*byte == data[at] || *byte == b'*', "byte {at}");
    }
    check(whole);
});

fn with_credential(data: &[u8]) -> Vec<u8> {
    let (mut data, mut from) = (data.to_vec(), 0);
    while let Some(at) = data[from..].windows(WORD.len()).position(|word| *word == *WORD) {
        from += at + WORD.len();
        data[from - WORD.len()..from].copy_from_slice(CREDENTIAL.expose());
    }
    data
}

/// What goes on, and whether the connection does.
fn pass(data: &[u8], size: usize) -> (Vec<u8>, bool) {
    let mut frames = Frames::new(CREDENTIAL.clone(), &Arc::default());
    let mut out = Vec::new();
    for part in data.chunks(size) {
        match frames.pass(part) {
            Ok(part) => out.extend_from_slice(&part),
            Err(_) => return (out, false),
        }
    }
    (out, true)
}

/// No payload that went on has the credential in it; a head may by chance be a part of one.
fn check(mut frames: &[u8]) {
    while let [_, length, rest @ ..] = frames {
        let more = match length & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let (bytes, rest) = rest.split_at(more.min(rest.len()));
        let long = bytes.iter().fold(0, |sum: usize, byte| sum << 8 | usize::from(*byte));
        let length = if more == 0 { usize::from(length & 0x7f) } else { long };
        let (payload, rest) = rest.split_at(length.min(rest.len()));
        let credential = CREDENTIAL.expose();
        assert!(!payload.windows(credential.len()).any(|word| word == credential));
        frames = rest;
    }
}
