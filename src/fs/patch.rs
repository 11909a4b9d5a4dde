//! What an agent changed, as a patch that `git apply --binary` takes.
//!
//! Made in-process: git is never run on a hostile tree, whose configuration, hooks, filters and attributes could make it
//! execute something.
#![forbid(unsafe_code)]

mod blob;
mod text;

use std::cmp::Ordering;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::read::ZlibEncoder;
use nix::errno::Errno;
use nix::fcntl::readlinkat;
use similar::{Algorithm, DiffOp, capture_diff_slices_deadline, group_diff_ops};

use crate::fs::walk::{Bounds, Entry, Kind, Leave, Passed, Step, TreeError, Walk, errno, open_file, printable};
use blob::{Blob, Body, fill};
use text::{LINE, range};

pub use text::{base85, quoted};

/// Files up to this size are compared line by line in memory; a larger one is streamed as a binary literal.
const TEXT_BYTES: u64 = 4 << 20;
/// The time for the line comparison of one file, and of all files of a patch. Myers' algorithm is quadratic on a file
/// made for it; past the deadline the rest of a file is one removal and one addition, which is still correct.
const FILE_TIME: Duration = Duration::from_secs(1);
const PATCH_TIME: Duration = Duration::from_secs(10);
/// What `git apply` reads at most (MAX_APPLY_SIZE in its apply.c).
const PATCH_BYTES: u64 = 1023 << 20;
const CONTEXT: usize = 3;
const NOTHING: &str = "0000000000000000000000000000000000000000";

/// What a patch contains.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Files and links that only the new tree has.
    pub added: u64,
    /// Files and links that only the old tree has.
    pub removed: u64,
    /// Files and links with another content, mode or kind.
    pub changed: u64,
    /// Names of the new tree that a patch cannot carry: fifos, sockets, devices, and every spelling of `.git` that git
    /// refuses to write. Not `.git` itself, which is the repository and no part of its content.
    pub skipped: Passed,
}

/// Writes the difference from the tree `base` to the tree `work` in git's format, with full SHA-1 object names.
///
/// Content decides, not size or time. Modes are git's (100644, 100755, 120000); empty directories are not represented,
/// nothing called `.git` is, at any depth. The output is the same for the same trees unless a deadline cuts in. `git
/// apply -R` takes it too, and forgets the modes of what it brings back, as with git's own patches.
/// Memory stays below some 40 MiB whatever the trees are.
///
/// # Errors
/// A bound is exceeded (each tree has its own count; the patch itself may have 1023 MiB, which is what git reads), a
/// file cannot be read or changes while it is read, or `out` fails. `out` then holds part of a patch.
pub fn write(
    base: BorrowedFd<'_>,
    work: BorrowedFd<'_>,
    out: &mut dyn Write,
    bounds: &Bounds,
) -> Result<Summary, TreeError> {
    let mut old = Side::new(base, bounds)?;
    let mut new = Side::new(work, bounds)?;
    let mut patch = Patch { out, written: 0, until: Instant::now() + PATCH_TIME };
    let mut summary = Summary::default();
    loop {
        match order(&old, &new) {
            None => break,
            Some(Ordering::Less) => {
                patch.part(old.walk.path(), Some(&mut old.load()?), None)?;
                summary.removed += 1;
                old.advance()?;
            }
            Some(Ordering::Greater) => {
                patch.part(new.walk.path(), None, Some(&mut new.load()?))?;
                summary.added += 1;
                new.advance()?;
            }
            Some(Ordering::Equal) => {
                summary.changed += u64::from(patch.pair(&old, &new)?);
                old.advance()?;
                new.advance()?;
            }
        }
    }
    patch.out.flush()?;
    summary.skipped = new.walk.passed();
    Ok(summary)
}

fn leave(path: &[u8], kind: Kind) -> Leave {
    match path.rsplit(|byte| *byte == b'/').next() {
        Some(b".git") => Leave::Out,
        _ if refused_by_git(path, kind) => Leave::Named("git takes no such name"),
        _ => Leave::Take,
    }
}

/// Names that git refuses to write anywhere (verify_path in its read-cache.c): one of them in a patch and git takes
/// none of it.
fn refused_by_git(path: &[u8], kind: Kind) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_ascii_lowercase();
    let dotgit = name.split(|byte| *byte == b'\\').any(|part| {
        let part = part.split(|byte| *byte == b':').next().unwrap_or_default();
        let end = part.iter().rposition(|byte| !matches!(byte, b' ' | b'.')).map_or(0, |last| last + 1);
        matches!(&part[..end], b".git" | b"git~1")
    });
    let modules = [&b".gitmodules"[..], b"gitmod~", b"gi7eba~", b"gi7eb~", b"gi7e~", b"gi7~", b"gi~"];
    dotgit || (kind == Kind::Link && modules.iter().any(|start| name.starts_with(start)))
}

fn order(old: &Side, new: &Side) -> Option<Ordering> {
    match (&old.item, &new.item) {
        (None, None) => None,
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (Some(_), Some(_)) => Some(old.walk.path().cmp(new.walk.path())),
    }
}

/// One of the two trees, at one of its files or links.
struct Side {
    walk: Walk<'static>,
    item: Option<Entry>,
}

impl Side {
    fn new(root: BorrowedFd<'_>, bounds: &Bounds) -> Result<Side, TreeError> {
        let mut side = Side { walk: Walk::without(root, bounds, &leave)?, item: None };
        side.advance()?;
        Ok(side)
    }

    fn advance(&mut self) -> Result<(), TreeError> {
        self.item = loop {
            match self.walk.step()? {
                Some(Step::Enter(_) | Step::Leave) => {}
                Some(Step::File(entry) | Step::Link(entry)) => break Some(entry),
                None => break None,
            }
        };
        Ok(())
    }

    fn load(&self) -> Result<Blob, TreeError> {
        let entry = self.item.as_ref().expect("loaded only while there is an item");
        self.blob(entry).map_err(|errno| self.walk.failed("read", errno))
    }

    fn blob(&self, entry: &Entry) -> nix::Result<Blob> {
        if entry.status.kind == Kind::Link {
            let text = readlinkat(self.walk.dir(), entry.name.as_os_str())?.into_vec();
            return Ok(Blob { mode: "120000", size: text.len() as u64, body: Body::Whole(text) });
        }
        let (mut file, status) = open_file(self.walk.dir(), &entry.name)?;
        let mode = if status.mode & 0o100 == 0 { "100644" } else { "100755" };
        if status.size != entry.status.size {
            return Err(Errno::EBUSY);
        }
        if status.size > TEXT_BYTES {
            return Ok(Blob { mode, size: status.size, body: Body::Large(file) });
        }
        let mut content = Vec::with_capacity(status.size as usize + 1);
        (&mut file).take(TEXT_BYTES + 1).read_to_end(&mut content).map_err(|error| errno(&error))?;
        if content.len() as u64 != status.size {
            return Err(Errno::EBUSY);
        }
        Ok(Blob { mode, size: status.size, body: Body::Whole(content) })
    }
}

struct Patch<'a> {
    out: &'a mut dyn Write,
    written: u64,
    until: Instant,
}

impl Write for Patch<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Patch<'_> {
    /// The difference between two things of the same name, if there is one.
    fn pair(&mut self, old: &Side, new: &Side) -> Result<bool, TreeError> {
        let (mut a, mut b) = (old.load()?, new.load()?);
        let path = new.walk.path();
        if a.mode == b.mode && a.same(&mut b).map_err(|error| new.walk.failed("read", errno(&error)))? {
            return Ok(false);
        }
        if (a.mode == "120000") == (b.mode == "120000") {
            self.part(path, Some(&mut a), Some(&mut b))?;
        } else {
            // Another kind: git writes it as a removal and an addition.
            self.part(path, Some(&mut a), None)?;
            self.part(path, None, Some(&mut b))?;
        }
        Ok(true)
    }

    /// One file's part of the patch.
    fn part(&mut self, path: &[u8], mut old: Option<&mut Blob>, mut new: Option<&mut Blob>) -> Result<(), TreeError> {
        let name = |blob: &mut Option<&mut Blob>| {
            let name = blob.as_mut().map_or(Ok(NOTHING.to_owned()), |blob| blob.name());
            name.map_err(|error| TreeError::Path { verb: "read", path: printable(path), errno: errno(&error) })
        };
        let names = (name(&mut old)?, name(&mut new)?);
        self.difference(path, names, old, new)?;
        if self.written > PATCH_BYTES {
            return Err(TreeError::Bound { path: printable(path), bound: "patch bytes", limit: PATCH_BYTES });
        }
        Ok(())
    }

    fn difference(
        &mut self,
        path: &[u8],
        names: (String, String),
        old: Option<&mut Blob>,
        new: Option<&mut Blob>,
    ) -> io::Result<()> {
        let (a, b) = (quoted(b"a/", path), quoted(b"b/", path));
        self.line(&[b"diff --git ", &a, b" ", &b])?;
        self.modes(old.as_deref().map(|blob| blob.mode), new.as_deref().map(|blob| blob.mode))?;
        if names.0 == names.1 {
            return Ok(());
        }
        write!(self, "index {}..{}", names.0, names.1)?;
        if let (Some(old), Some(new)) = (&old, &new)
            && old.mode == new.mode
        {
            write!(self, " {}", new.mode)?;
        }
        writeln!(self)?;
        let lines = (
            old.as_ref().map_or(Some(Vec::new()), |blob| blob.lines()),
            new.as_ref().map_or(Some(Vec::new()), |blob| blob.lines()),
        );
        let (Some(before), Some(after)) = lines else {
            writeln!(self, "GIT binary patch")?;
            self.literal(new)?;
            return self.literal(old);
        };
        if before.is_empty() && after.is_empty() {
            return Ok(());
        }
        self.label(b"--- ", old.is_some().then_some(&a))?;
        self.label(b"+++ ", new.is_some().then_some(&b))?;
        self.hunks(&before, &after)
    }

    fn line(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        for part in parts {
            self.write_all(part)?;
        }
        self.write_all(b"\n")
    }

    fn modes(&mut self, old: Option<&str>, new: Option<&str>) -> io::Result<()> {
        match (old, new) {
            (None, Some(mode)) => writeln!(self, "new file mode {mode}"),
            (Some(mode), None) => writeln!(self, "deleted file mode {mode}"),
            (Some(old), Some(new)) if old != new => writeln!(self, "old mode {old}\nnew mode {new}"),
            _ => Ok(()),
        }
    }

    /// A name with a space is ended by a tab, because other tools' patches have a time there.
    fn label(&mut self, sign: &[u8], name: Option<&Vec<u8>>) -> io::Result<()> {
        match name {
            None => self.line(&[sign, b"/dev/null"]),
            Some(name) if name.contains(&b' ') => self.line(&[sign, name, b"\t"]),
            Some(name) => self.line(&[sign, name]),
        }
    }

    fn hunks(&mut self, before: &[&[u8]], after: &[&[u8]]) -> io::Result<()> {
        let deadline = self.until.min(Instant::now() + FILE_TIME);
        let ops = capture_diff_slices_deadline(Algorithm::Myers, before, after, Some(deadline));
        for hunk in group_diff_ops(ops, CONTEXT) {
            let (Some(first), Some(last)) = (hunk.first(), hunk.last()) else { continue };
            let old = range(first.old_range().start, last.old_range().end);
            let new = range(first.new_range().start, last.new_range().end);
            writeln!(self, "@@ -{old} +{new} @@")?;
            for op in &hunk {
                if let DiffOp::Equal { .. } = op {
                    self.lines(b" ", &before[op.old_range()])?;
                } else {
                    self.lines(b"-", &before[op.old_range()])?;
                    self.lines(b"+", &after[op.new_range()])?;
                }
            }
        }
        Ok(())
    }

    fn lines(&mut self, sign: &[u8], lines: &[&[u8]]) -> io::Result<()> {
        for line in lines {
            self.write_all(sign)?;
            self.write_all(line)?;
            if line.last() != Some(&b'\n') {
                self.write_all(b"\n\\ No newline at end of file\n")?;
            }
        }
        Ok(())
    }

    /// The whole content, deflated, in git's base 85; an absent file is an empty one.
    fn literal(&mut self, blob: Option<&mut Blob>) -> io::Result<()> {
        writeln!(self, "literal {}", blob.as_ref().map_or(0, |blob| blob.size))?;
        let content = blob.map_or(Ok(Box::new(io::empty()) as Box<dyn Read>), |blob| blob.read())?;
        let mut deflated = ZlibEncoder::new(content, Compression::default());
        let mut buffer = vec![0; LINE * 256];
        loop {
            let n = fill(&mut deflated, &mut buffer)?;
            for chunk in buffer[..n].chunks(LINE) {
                self.write_all(&base85(chunk))?;
            }
            if n < buffer.len() {
                return writeln!(self);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Blob, Body, base85, quoted, range, refused_by_git};
    use crate::fs::walk::Kind;

    #[test]
    fn names_are_quoted_as_git_quotes_them() {
        for (path, text) in [
            (&b"plain name"[..], &b"a/plain name"[..]),
            (b"tab\there", b"\"a/tab\\there\""),
            (b"nl\n", b"\"a/nl\\n\""),
            (b"q\"b\\", b"\"a/q\\\"b\\\\\""),
            ("ü".as_bytes(), b"\"a/\\303\\274\""),
            (b"\x1b\x7f\xff", b"\"a/\\033\\177\\377\""),
        ] {
            assert_eq!(quoted(b"a/", path), text, "{path:?}");
        }
    }

    #[test]
    fn base85_lines_as_git_writes_them() {
        // What git writes for an empty blob.
        let empty = [0x78, 0x01, 0x03, 0, 0, 0, 0, 1];
        assert_eq!(base85(&empty), b"HcmV?d00001\n");
        assert_eq!(base85(&[0xff; 4]), b"D|NsC0\n");
        assert_eq!(base85(&[0; 52]).first(), Some(&b'z'));
        assert_eq!(base85(&[0; 27]).first(), Some(&b'a'));
        assert_eq!(base85(&[0; 26]).first(), Some(&b'Z'));
    }

    #[test]
    fn object_names_are_gits() {
        let mut blob = Blob { mode: "100644", size: 6, body: Body::Whole(b"hello\n".to_vec()) };
        assert_eq!(blob.name().unwrap(), "ce013625030ba8dba906f756967f9e9ca394464a");
    }

    #[test]
    fn ranges_of_hunks() {
        assert_eq!((range(0, 0), range(0, 1), range(4, 9)), ("0,0".into(), "1".into(), "5,5".into()));
    }

    #[test]
    fn spellings_of_dot_git() {
        let file = |name: &[u8]| refused_by_git(&[b"a/", name].concat(), Kind::File);
        for name in [&b".git"[..], b".GIT", b".git ", b".git...", b"git~1", b".git::$INDEX_ALLOCATION", b"a\\.git"] {
            assert!(file(name), "{name:?}");
        }
        for name in [&b".gitignore"[..], b".github", b"git", b"x.git", b".gitmodules", b"git~2"] {
            assert!(!file(name), "{name:?}");
        }
        assert!(refused_by_git(b".gitmodules", Kind::Link));
    }
}
