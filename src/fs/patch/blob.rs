//! One side of a difference: the content of a file, in memory where it is small, or the text of a link.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Seek};

use nix::errno::Errno;
use sha1::{Digest, Sha1};

/// The content of a file, or the text of a link.
pub(super) struct Blob {
    pub(super) mode: &'static str,
    pub(super) size: u64,
    pub(super) body: Body,
}

pub(super) enum Body {
    Whole(Vec<u8>),
    Large(File),
}

impl Blob {
    /// The content from its start; a file that has shrunk since ends early.
    pub(super) fn read(&mut self) -> io::Result<Box<dyn Read + '_>> {
        Ok(match &mut self.body {
            Body::Whole(content) => Box::new(&content[..]),
            Body::Large(file) => {
                file.rewind()?;
                Box::new(file.take(self.size))
            }
        })
    }

    /// The name that git gives to this content.
    pub(super) fn name(&mut self) -> io::Result<String> {
        let mut hash = Sha1::new();
        hash.update(format!("blob {}\0", self.size));
        let size = self.size;
        let mut content = self.read()?;
        let mut buffer = vec![0; 64 << 10];
        let mut seen = 0;
        loop {
            match content.read(&mut buffer)? {
                0 => break,
                n => {
                    hash.update(&buffer[..n]);
                    seen += n as u64;
                }
            }
        }
        if seen != size {
            return Err(io::Error::from_raw_os_error(Errno::EBUSY as i32));
        }
        let mut name = String::with_capacity(40);
        for byte in hash.finalize() {
            let _ = write!(name, "{byte:02x}");
        }
        Ok(name)
    }

    pub(super) fn same(&mut self, other: &mut Blob) -> io::Result<bool> {
        if self.size != other.size {
            return Ok(false);
        }
        if let (Body::Whole(a), Body::Whole(b)) = (&self.body, &other.body) {
            return Ok(a == b);
        }
        let (mut a, mut b) = (self.read()?, other.read()?);
        let mut buffers = (vec![0; 64 << 10], vec![0; 64 << 10]);
        loop {
            let n = fill(&mut a, &mut buffers.0)?;
            if n != fill(&mut b, &mut buffers.1)? || buffers.0[..n] != buffers.1[..n] {
                return Ok(false);
            }
            if n == 0 {
                return Ok(true);
            }
        }
    }

    /// Its lines, when it is text that is worth comparing by lines. Git asks the first 8000 bytes for a NUL; asking all
    /// of them costs little and never writes a NUL into a patch.
    pub(super) fn lines(&self) -> Option<Vec<&[u8]>> {
        match &self.body {
            Body::Whole(content) if !content.contains(&0) => {
                let lines: Vec<&[u8]> = content.split_inclusive(|byte| *byte == b'\n').take(TEXT_LINES + 1).collect();
                (lines.len() <= TEXT_LINES).then_some(lines)
            }
            _ => None,
        }
    }
}

/// Reads until the buffer is full or the content ends.
pub(super) fn fill(content: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match content.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// A file of more lines than this is a binary literal too: the line tables would outgrow the text.
pub(crate) const TEXT_LINES: usize = 200_000;
