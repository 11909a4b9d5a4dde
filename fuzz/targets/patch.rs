//! What a patch is written with: a reader of git's format gets back the name and the bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oubliette::fs::patch::{base85, quoted};

const DIGITS: &[u8; 85] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";

fuzz_target!(|data: &[u8]| {
    let text = quoted(b"a/", data);
    assert!(text.iter().all(|byte| (0x20..0x7f).contains(byte)), "{}", text.escape_ascii());
    let read = if text.first() == Some(&b'"') { unquoted(&text) } else { text.clone() };
    assert_eq!(read, [b"a/", data].concat(), "{}", text.escape_ascii());
    for chunk in data.chunks(52) {
        assert_eq!(decoded(&base85(chunk)), chunk);
    }
});

/// unquote_c_style in git's quote.c.
fn unquoted(text: &[u8]) -> Vec<u8> {
    let inside = text[1..].strip_suffix(b"\"").expect("a closing quote");
    let mut bytes = inside.iter().copied();
    let mut read = Vec::new();
    while let Some(byte) = bytes.next() {
        assert_ne!(byte, b'"', "a quote ends the name");
        if byte != b'\\' {
            read.push(byte);
            continue;
        }
        read.push(match bytes.next().expect("an escape") {
            b'a' => 7,
            b'b' => 8,
            b't' => 9,
            b'n' => 10,
            b'v' => 11,
            b'f' => 12,
            b'r' => 13,
            plain @ (b'"' | b'\\') => plain,
            digit => {
                let digits = [digit, bytes.next().expect("a digit"), bytes.next().expect("a digit")];
                digits.iter().fold(0, |value, digit| value << 3 | (digit - b'0'))
            }
        });
    }
    read
}

fn decoded(line: &[u8]) -> Vec<u8> {
    let line = line.strip_suffix(b"\n").expect("a line end");
    let count = match line[0] {
        letter @ b'A'..=b'Z' => letter - b'A' + 1,
        letter => letter - b'a' + 27,
    };
    let digit = |byte: &u8| DIGITS.iter().position(|known| known == byte).expect("a digit") as u64;
    let mut read: Vec<u8> = Vec::new();
    for group in line[1..].chunks(5) {
        let value = group.iter().fold(0, |value, byte| value * 85 + digit(byte));
        read.extend(u32::try_from(value).expect("four bytes").to_be_bytes());
    }
    read.truncate(count.into());
    read
}
