//! /etc/subuid, /etc/subgid, /etc/passwd and /etc/group: what is somebody else's is never lent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oubliette::host::ranges::{Ranges, Texts};
use oubliette::types::values::UidRange;
use oubliette_fuzz::parts;

const ALL: UidRange = UidRange { first: 0, last: u32::MAX };

fuzz_target!(|data: &[u8]| {
    let [subuid, subgid, passwd, group] = parts(data);
    let read = |texts| Ranges::parse(texts, &[ALL]);
    let texts = Texts { subuid, subgid, passwd, group };
    let ranges = match read(texts) {
        Ok(ranges) => ranges,
        Err(lack) => {
            assert!(!lack.why.is_empty() && !lack.remedy.is_empty());
            // The mistake is in a line of its own: without these files there is none.
            assert!(read(Texts { subuid: b"", subgid: b"", ..texts }).is_ok());
            return;
        }
    };
    for other in &ranges.others {
        assert!(other.range.first <= other.range.last, "{other:?}");
        assert!(!other.whose.contains(char::is_control), "{other:?}");
        assert!(ranges.taken(other.range).is_some(), "{other:?}");
    }
    for (text, name) in [(subuid, "/etc/subuid"), (subgid, "/etc/subgid")] {
        for (line, first, last) in text.split(|byte| *byte == b'\n').filter_map(naive) {
            let ours = line == b"oubliette" || ranges.given == Some(UidRange { first, last });
            let range = UidRange { first, last };
            let found = ranges.others.iter().any(|other| other.range == range && other.whose.contains(name));
            assert!(found || ours, "{}: {range}", line.escape_ascii());
        }
    }
    let Some(given) = ranges.given else { return };
    assert_eq!(UidRange::new(given.first, given.last), Ok(given));
    for number in [given.first, given.last] {
        let line = format!("\nmallory:{number}:1");
        let more = [subgid, line.as_bytes()].concat();
        let more = Ranges::parse(Texts { subuid, subgid: &more, passwd, group }, &[ALL]);
        let ranges = more.unwrap_or_else(|lack| panic!("somebody else's line is no mistake: {lack:?}"));
        assert!(ranges.taken(given).is_some(), "{number} is mallory's");
    }
});

/// A line as a reader of subuid(5) would take it who knows nothing of the launcher's code.
fn naive(line: &[u8]) -> Option<(&[u8], u32, u32)> {
    let [owner, first, count] = line.split(|byte| *byte == b':').collect::<Vec<_>>().try_into().ok()?;
    let number = |text: &[u8]| -> Option<u64> { std::str::from_utf8(text).ok()?.parse().ok() };
    let plain = |text: &[u8]| text.iter().all(u8::is_ascii_digit);
    let (first, count) = (number(first).filter(|_| plain(first))?, number(count).filter(|_| plain(count))?);
    let last = u32::try_from(first.checked_add(count)?.checked_sub(1)?).ok()?;
    (count > 0 && !owner.is_empty()).then_some((owner, u32::try_from(first).ok()?, last))
}
