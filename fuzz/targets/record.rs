//! A cell's record, which an agent of the launcher's own UID can have written: it names no other cell's control group.
#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;
use oubliette::cell::Record;
use oubliette::cell::sweep::ours;

const CELL: &str = "0123456789abcdef0123456789abcdef";

fuzz_target!(|data: &[u8]| {
    let Some(record) = Record::parse(data) else { return };
    let written = serde_json::to_vec(&record).expect("a record as JSON");
    assert_eq!(Record::parse(&written), Some(record.clone()));
    for path in record.cgroups.iter().filter(|path| ours(path, OsStr::new(CELL))) {
        let parts: Vec<&[u8]> = path.as_os_str().as_bytes().split(|byte| *byte == b'/').collect();
        let parts: Vec<&[u8]> = parts.into_iter().filter(|part| !matches!(*part, b"" | b".")).collect();
        assert_eq!(parts[..3], [&b"sys"[..], b"fs", b"cgroup"], "{}", path.display());
        assert!(!parts.contains(&&b".."[..]), "{}", path.display());
        assert_eq!(parts.last(), Some(&format!("oubliette-{CELL}").as_bytes()), "{}", path.display());
    }
});
