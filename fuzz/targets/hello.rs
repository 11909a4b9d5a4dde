//! The first message of a tunnel: what is taken is TLS, and for the host that was asked for, as another reader of it says.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use oubliette::broker::tunnel::hello;
use oubliette::types::hosts::HostName;
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().build().expect("a runtime"));

static NAME: LazyLock<HostName> = LazyLock::new(|| "listed.example".parse().expect("a name"));

fuzz_target!(|data: &[u8]| {
    match RUNTIME.block_on(hello(&mut &data[..], &NAME)) {
        Ok(read) => {
            assert!(data.starts_with(&read), "it goes on as it came");
            let message = message(&read).expect("a hello in records of TLS");
            assert!(says(&message).expect("a name in it").eq_ignore_ascii_case(b"listed.example"));
        }
        Err(why) => assert!(!why.is_empty() && !why.contains(char::is_control), "{why:?}"),
    }
});

/// Takes bytes from the front of a text.
fn take<'a>(text: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = text.split_at_checked(length)?;
    *text = rest;
    Some(taken)
}

/// What stands behind its length, of so many bytes.
fn counted<'a>(text: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let length = take(text, bytes)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    take(text, length)
}

/// The first handshake message, out of as many records as it takes (RFC 8446, 5.1).
fn message(mut records: &[u8]) -> Option<Vec<u8>> {
    let mut handshake = Vec::new();
    while let Some([22, 3, _]) = take(&mut records, 3) {
        handshake.extend_from_slice(counted(&mut records, 2)?);
        let mut text = &handshake[..];
        if take(&mut text, 1).is_some_and(|kind| kind == [1])
            && let Some(hello) = counted(&mut text, 3)
        {
            return Some(hello.to_vec());
        }
    }
    None
}

/// The one name of a host in it (RFC 6066, 3).
fn says(mut hello: &[u8]) -> Option<&[u8]> {
    take(&mut hello, 2 + 32)?;
    counted(&mut hello, 1)?;
    counted(&mut hello, 2)?;
    counted(&mut hello, 1)?;
    let mut extensions = counted(&mut hello, 2)?;
    while let Some(kind) = take(&mut extensions, 2) {
        let mut extension = counted(&mut extensions, 2)?;
        if kind == [0, 0] {
            let mut names = counted(&mut extension, 2)?;
            take(&mut names, 1).filter(|kind| *kind == [0])?;
            return counted(&mut names, 2);
        }
    }
    None
}
