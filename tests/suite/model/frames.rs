//! Frames of Amazon's event streams (`application/vnd.amazon.eventstream`), in which its API sends the events of a message.

use data_encoding::BASE64;
use serde_json::{Value, json};

/// One event: lengths, their checksum, headers, the payload, the checksum of all.
pub fn frame(event: &Value) -> Vec<u8> {
    let payload = json!({"bytes": BASE64.encode(event.to_string().as_bytes())}).to_string();
    let headers: Vec<u8> =
        [(":event-type", "chunk"), (":content-type", "application/json"), (":message-type", "event")]
            .into_iter()
            .flat_map(|(name, value)| header(name, value))
            .collect();
    let total = 12 + headers.len() + payload.len() + 4;
    let mut frame = [(total as u32).to_be_bytes(), (headers.len() as u32).to_be_bytes()].concat();
    frame.extend(checksum(&frame).to_be_bytes());
    frame.extend(headers);
    frame.extend(payload.as_bytes());
    frame.extend(checksum(&frame).to_be_bytes());
    frame
}

/// A header whose value is a text, which has the type 7.
fn header(name: &str, value: &str) -> Vec<u8> {
    let length = (value.len() as u16).to_be_bytes();
    [&[name.len() as u8], name.as_bytes(), &[7], &length, value.as_bytes()].concat()
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}
