//! Values of the command line and of policies: what is taken is written back as the same, and ranges split soundly.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oubliette::cell::uids;
use oubliette::types::units::{Bytes, Time};
use oubliette::types::values::UidRange;
use oubliette::types::values::Upstream;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(time) = text.parse::<Time>() {
        assert!(!time.0.is_zero());
        assert_eq!(time.to_string().parse(), Ok(time), "{time}");
    }
    let size = |text: &str| serde_json::from_value::<Bytes>(text.into()).ok();
    if let Some(bytes) = size(text) {
        assert_eq!(size(&bytes.to_string()), Some(bytes), "{bytes}");
    }
    if let Ok(range) = text.parse::<UidRange>() {
        assert!(range.first >= 1000 && range.last >= range.first && range.last < u32::MAX);
        assert!(!(range.first..=range.last).contains(&65534));
        assert_eq!(range.to_string().parse(), Ok(range));
        let (runs, bound) = uids::split(range);
        assert!(runs.first == range.first && bound.last == range.last && runs.last >= runs.first);
        assert_eq!(runs.last + 1, bound.first);
    }
    if let Ok(upstream) = text.parse::<Upstream>() {
        assert_eq!(upstream.url, text);
        assert!(upstream.port > 0);
        let rest = text.split_once("://").expect("a scheme").1;
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        assert!(!authority.is_empty() && !authority.contains('@'), "{text}");
        assert!(!text.contains(|c: char| c.is_whitespace() || c.is_control()), "{text:?}");
    }
});
