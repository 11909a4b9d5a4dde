//! A user id: any text. The name of its workspace is a safe file name that no other id has, and it forges no line.
#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;
use oubliette::cell::workspace::hashed;
use oubliette::types::user::{MAX, UserId};
use oubliette_fuzz::parts;

fuzz_target!(|data: &[u8]| {
    let [one, two] = parts(data);
    let known: Vec<UserId> = [one, two].into_iter().filter_map(read).collect();
    for user in &known {
        let name = hashed(user, &[7; 32]);
        assert!(name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{name}");
        assert_ne!(name, hashed(user, &[8; 32]), "a name without its key");
        for shown in [user.to_string(), format!("{user:?}")] {
            assert!(!shown.contains(char::is_control), "{shown:?}");
        }
        let json = serde_json::to_string(user).expect("an id as JSON");
        assert_eq!(serde_json::from_str::<String>(&json).expect("text"), user.to_string());
    }
    if let [one, two] = &known[..] {
        assert_eq!(one == two, hashed(one, &[7; 32]) == hashed(two, &[7; 32]));
    }
});

fn read(bytes: &[u8]) -> Option<UserId> {
    let read = UserId::new(OsStr::from_bytes(bytes));
    let sound = !bytes.is_empty() && bytes.len() <= MAX && !bytes.iter().any(|byte| *byte < 32 || *byte == 127);
    assert_eq!(read.is_ok(), sound);
    if let Ok(user) = &read {
        assert_eq!(user.as_bytes(), bytes);
    }
    read.ok()
}
