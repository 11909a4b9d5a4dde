//! `--inject`: one host by its name, a header that holds nothing of the connection's, a file.
#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;
use oubliette::request::injection::Injection;
use oubliette_fuzz::check_name;

fuzz_target!(|data: &[u8]| {
    let text = OsStr::from_bytes(data);
    let one = match Injection::parse(text) {
        Ok(one) => one,
        Err(why) => return assert!(!why.contains(char::is_control), "{why:?}"),
    };
    check_name(one.rule.name.as_str());
    assert!(!one.rule.below && !one.rule.plain && one.rule.port > 0, "{}", one.rule);
    let header = one.header.get().as_str();
    let framing = ["content-length", "transfer-encoding", "host", "connection", "upgrade", "te", "trailer", "expect"];
    assert!(!header.is_empty() && !framing.contains(&header), "{header}");
    let token = |byte: u8| byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&byte);
    assert!(header.bytes().all(|byte| token(byte) && !byte.is_ascii_uppercase()), "{header:?}");
    let file = one.file.as_os_str().as_bytes();
    assert!(!file.is_empty() && data.ends_with(file));
    let again = [one.shown().as_bytes(), b":", file].concat();
    assert_eq!(Injection::parse(OsStr::from_bytes(&again)), Ok(one.clone()));
    let twice = [text.to_owned(), OsStr::from_bytes(&again).to_owned()];
    assert!(Injection::all(&twice).is_err(), "{} is named twice", one.rule);
});
