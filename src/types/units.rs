//! Sizes and times as texts.
#![forbid(unsafe_code)]

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A number of bytes: `4GiB`, `512MiB`, `100KiB`, `1024`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "BytesText", into = "String")]
pub struct Bytes(pub u64);

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number of bytes or a text such as \"512MiB\"")]
pub(crate) enum BytesText {
    Number(u64),
    Text(String),
}

impl TryFrom<BytesText> for Bytes {
    type Error = String;

    fn try_from(value: BytesText) -> Result<Bytes, String> {
        let text = match value {
            BytesText::Number(number) => return Ok(Bytes(number)),
            BytesText::Text(text) => text,
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let shift = match &text[digits..] {
            "" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            _ => {
                return Err(format!(
                    "`{text}` is no size; write a number of bytes or of KiB, MiB or GiB, as in 512MiB"
                ));
            }
        };
        let number: u64 = text[..digits].parse().map_err(|_| format!("`{text}` is no size; a number comes first"))?;
        number.checked_mul(1 << shift).map(Bytes).ok_or_else(|| format!("`{text}` is too large"))
    }
}

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            n if n >= 1 << 30 && n % (1 << 30) == 0 => write!(f, "{}GiB", n >> 30),
            n if n >= 1 << 20 && n % (1 << 20) == 0 => write!(f, "{}MiB", n >> 20),
            n if n >= 1 << 10 && n % (1 << 10) == 0 => write!(f, "{}KiB", n >> 10),
            n => write!(f, "{n}"),
        }
    }
}

/// A length of time: `90s`, `30m`, `1h 30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Time(pub Duration);

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Time, String> {
        text.parse()
    }
}

impl std::str::FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Time, String> {
        match humantime::parse_duration(text) {
            Ok(time) if time.is_zero() => Err(format!("`{text}` is no time at all")),
            Ok(time) => Ok(Time(time)),
            Err(error) => Err(format!("`{text}`: {error}; write it like 90s, 30m or 1h")),
        }
    }
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_back_as_written() {
        for (text, bytes) in [("4GiB", 4 << 30), ("512MiB", 512 << 20), ("3KiB", 3 << 10), ("1023", 1023)] {
            let read = Bytes::try_from(BytesText::Text(text.into())).unwrap();
            assert_eq!((read, read.to_string().as_str()), (Bytes(bytes), text));
        }
        for bad in ["", "GiB", "4GB", "99999999999GiB", "-1"] {
            assert!(Bytes::try_from(BytesText::Text(bad.into())).is_err(), "{bad}");
        }
        assert!("0s".parse::<Time>().is_err());
    }
}
