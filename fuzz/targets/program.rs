//! The beginning of a program, script or ELF file.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{MFdFlags, memfd_create};
use oubliette::host::program::{Header, header};

fuzz_target!(|data: &[u8]| {
    let mut file = File::from(memfd_create(c"program", MFdFlags::MFD_CLOEXEC).expect("a file in memory"));
    file.write_all(data).expect("write to it");
    match header(&file) {
        Header::Script(line) => {
            assert!(data.starts_with(b"#!") && line.len() <= 254 && !line.contains(&b'\n'));
            assert!(data[2..].starts_with(&line));
        }
        Header::Elf(loader) => {
            assert!(data.starts_with(b"\x7fELF"));
            if let Some(loader) = loader {
                let name = loader.as_os_str().as_bytes();
                assert!(name.len() < 4096 && !name.contains(&0));
                let there = name.is_empty() || data.windows(name.len()).any(|window| window == name);
                assert!(there, "{} is not in the file", loader.display());
            }
        }
        Header::Other => {}
    }
});
