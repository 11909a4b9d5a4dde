//! Files of /proc: a process's own name neither hides it nor speaks for it, and nothing leads out of the cgroup mount.
#![no_main]

use std::path::Component;

use libfuzzer_sys::fuzz_target;
use oubliette::host::cgroup::{own_v1, own_v2};
use oubliette::sys::proc::{Stat, Status, id_map};
use oubliette_fuzz::parts;

fuzz_target!(|data: &[u8]| {
    let _ = (Stat::parse(data), Status::parse(data));
    let text = String::from_utf8_lossy(data);
    let _ = id_map(&text);
    for path in ["memory", "pids", "cpu"].into_iter().filter_map(|name| own_v1(&text, name)).chain(own_v2(&text)) {
        assert!(path.starts_with("/sys/fs/cgroup"), "{}", path.display());
        assert!(!path.components().any(|part| part == Component::ParentDir), "{}", path.display());
    }
    let [name, numbers] = parts(data);
    let mut bytes = [0; 12];
    let length = numbers.len().min(12);
    bytes[..length].copy_from_slice(&numbers[..length]);
    let [parent, started, uid] = [0, 4, 8].map(|at| u32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[at + byte])));
    let parent = parent >> 1;
    let stat = [b"7 (", name, format!(") S {parent} {}{started} 0\n", "0 ".repeat(17)).as_bytes()].concat();
    let read = Stat::parse(&stat).expect("a process");
    assert!(read.alive && read.parent.unsigned_abs() == parent && read.started == Some(started.into()), "{read:?}");
    let rest = format!("\nState:\tS (sleeping)\nPid:\t7\nUid:\t{uid}\t1\t2\t3\nNSpid:\t7\nNoNewPrivs:\t1\n");
    let read = Status::parse(&[b"Name:\t", name, rest.as_bytes()].concat()).expect("a process");
    assert_eq!(read, Status { alive: true, uid, nested: false, gains: Some(false) });
});
