//! Paths of policies and agent files: what is taken leads where it says, and hides no place of the cell.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use oubliette::types::paths::{HomePath, HostPath};

const OWN: [&str; 7] = ["/home/agent", "/work", "/etc/oubliette", "/proc", "/dev", "/tmp", "/sys"];

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(path) = HostPath::try_from(text.to_owned()) {
        assert_eq!(path.as_path(), Path::new(text));
        let names: Vec<&str> = text.split('/').collect();
        assert!(names.len() > 1 && names[0].is_empty(), "{text:?} is relative");
        assert!(names[1..].iter().all(|name| is_name(name)), "{text:?}");
        for own in OWN {
            assert!(own != text && !own.starts_with(&format!("{text}/")), "{text:?} hides {own}");
        }
        for own in &OWN[..5] {
            assert!(!text.starts_with(&format!("{own}/")), "{text:?} is inside {own}");
        }
        assert_eq!(HostPath::try_from(String::from(path.clone())), Ok(path));
    }
    if let Ok(path) = HomePath::try_from(text.to_owned()) {
        assert_eq!(path.as_str(), text);
        assert!(text.split('/').all(is_name), "{text:?} leads out of HOME");
    }
});

fn is_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains('\0')
}
