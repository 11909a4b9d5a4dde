//! Hands a cell's workspace to the caller: as a directory or as a tar archive. The content is hostile.
//!
//! Links stay links with their text, also absolute ones and ones with `..`; nothing is ever followed. Fifos, sockets,
//! devices, set-id bits, owners and extended attributes do not leave the cell. Hard links become files of their own.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{readlinkat, renameat};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::geteuid;
use tar::{Builder, EntryType, Header};

use crate::fs::copy::{Copied, copy_out};
use crate::fs::rights::Rights;
use crate::fs::walk::{
    Bounds, Kind, Status, Step, TreeError, Walk, entries, is_dots, open_dir, open_file, printable, status, status_of,
};
use crate::fs::wipe::wipe;

/// Copies everything in `from` to a new directory `name` in `parent`, which appears complete or not at all.
///
/// It is written under another name beside the target and renamed; what is there already must be an empty directory of
/// the caller's, and gives the mode (else 0700). All of it belongs to whoever has these `rights`, which are those of the
/// parent's owner: he may move names about in it while this goes on, and gains nothing by that. The draft is held by its
/// descriptor; what stands under its name is renamed or removed only while that is the draft.
///
/// # Errors
/// EEXIST, ENOTEMPTY or EPERM when the target is something else, ESTALE when somebody has swapped the draft; what
/// [`copy_out`] fails with. Nothing new is left.
pub fn to_directory(
    from: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    rights: Rights,
    name: &OsStr,
    bounds: &Bounds,
) -> Result<Copied, TreeError> {
    let failed = |errno| TreeError::Path { verb: "create", path: printable(name.as_bytes()), errno };
    let mode = rights.with(|| vacant(parent, name)).map_err(failed)?;
    let draft = OsString::from(format!(".oubliette-{}", crate::sys::random::name().map_err(failed)?));
    let made = rights.with(|| {
        mkdirat(parent, draft.as_os_str(), Mode::S_IRWXU)?;
        let dir = open_dir(parent, &draft)?;
        // Whoever owns the parent may have put a directory of his own there already.
        let is_empty = entries(dir.as_fd())?.iter().all(|one| one.is_ok_and(|one| is_dots(one.file_name().to_bytes())));
        if is_empty { Ok(dir) } else { Err(Errno::ESTALE) }
    });
    let dir = made.map_err(failed)?;
    let result = fill(from, dir.as_fd(), rights, mode, bounds)
        // A directory replaces a name that does not exist or an empty directory, and nothing else (rename(2)).
        .and_then(|copied| rights.with(|| put(parent, &draft, dir.as_fd(), name)).map_err(failed).map(|()| copied));
    if result.is_err() {
        let _ = rights.with(|| Ok::<_, Errno>(wipe(parent, &draft, dir.as_fd())));
    }
    result
}

fn fill(
    from: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    rights: Rights,
    mode: Mode,
    bounds: &Bounds,
) -> Result<Copied, TreeError> {
    let failed = |errno| TreeError::Path { verb: "create", path: ".".into(), errno };
    let copied = copy_out(from, dir, rights, bounds)?;
    rights.with(|| fchmod(dir, mode)).map_err(failed)?;
    Ok(copied)
}

/// Gives the draft its name.
fn put(parent: BorrowedFd<'_>, draft: &OsStr, dir: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
    let is_draft = |name| Ok::<_, Errno>(status(parent, name)?.id == status_of(dir)?.id);
    if !is_draft(draft)? {
        return Err(Errno::ESTALE);
    }
    renameat(parent, draft, parent, name)?;
    if is_draft(name)? { Ok(()) } else { Err(Errno::ESTALE) }
}

/// The mode that the exported directory shall have, when nothing is in its way.
fn vacant(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<Mode> {
    let found = match status(parent, name) {
        Err(Errno::ENOENT) => return Ok(Mode::S_IRWXU),
        other => other?,
    };
    if found.kind != Kind::Directory {
        return Err(Errno::EEXIST);
    }
    if found.uid != geteuid().as_raw() {
        return Err(Errno::EPERM);
    }
    if !status_of(parent)?.mount.holds(&found) {
        return Err(Errno::EXDEV);
    }
    let dir = open_dir(parent, name)?;
    for entry in entries(dir.as_fd())?.iter() {
        if !is_dots(entry?.file_name().to_bytes()) {
            return Err(Errno::ENOTEMPTY);
        }
    }
    Ok(found.permissions())
}

/// Writes everything in `from` as a tar archive (GNU long names) in a fixed order, all of it owned by 0:0.
///
/// Holes are written as zeros, so a sparse file counts in full against the bounds. Gives the same counts as a copy.
///
/// # Errors
/// A bound is exceeded, a file cannot be read, or `out` fails; `out` then holds part of an archive without its end.
pub fn to_tar(from: BorrowedFd<'_>, out: &mut dyn Write, bounds: &Bounds) -> Result<Copied, TreeError> {
    let mut walk = Walk::new(from, bounds)?;
    let mut tar = Builder::new(out);
    let mut done = Copied::default();
    while let Some(step) = walk.step()? {
        match step {
            Step::Leave => {}
            Step::Enter(entry) => {
                let path = [walk.path(), b"/"].concat();
                append(&mut tar, EntryType::Directory, &path, &entry.status, 0, &mut io::empty())?;
                done.directories += 1;
            }
            Step::Link(entry) => {
                let text = readlinkat(walk.dir(), entry.name.as_os_str()).map_err(|e| walk.failed("read", e))?;
                link(&mut tar, walk.path(), text.as_bytes(), &entry.status)?;
                done.links += 1;
            }
            Step::File(entry) => {
                let (file, status) = match open_file(walk.dir(), &entry.name) {
                    Ok(opened) => opened,
                    Err(errno) => {
                        walk.pass_unreadable("open", errno)?;
                        continue;
                    }
                };
                let size = status.size.min(entry.status.size);
                // Exactly as long as the header says, even if a live writer truncates the file meanwhile.
                let mut content = file.chain(io::repeat(0)).take(size);
                append(&mut tar, EntryType::Regular, walk.path(), &status, size, &mut content)?;
                done.files += 1;
                done.bytes += size;
            }
        }
    }
    tar.finish()?;
    Ok(Copied { skipped: walk.passed(), ..done })
}

/// Names are written byte for byte: the convenience functions of the crate would normalise the text of a link.
fn append(
    tar: &mut Builder<&mut dyn Write>,
    kind: EntryType,
    path: &[u8],
    status: &Status,
    size: u64,
    content: &mut dyn Read,
) -> io::Result<()> {
    let mut header = header(kind, status, size);
    place(tar, EntryType::GNULongName, path, &mut header.as_old_mut().name)?;
    header.set_cksum();
    tar.append(&header, content)
}

fn link(tar: &mut Builder<&mut dyn Write>, path: &[u8], text: &[u8], status: &Status) -> io::Result<()> {
    let mut header = header(EntryType::Symlink, status, 0);
    place(tar, EntryType::GNULongLink, text, &mut header.as_old_mut().linkname)?;
    place(tar, EntryType::GNULongName, path, &mut header.as_old_mut().name)?;
    header.set_cksum();
    tar.append(&header, io::empty())
}

/// Puts a name into its field, or, when it does not fit, into an entry of its own before.
fn place(tar: &mut Builder<&mut dyn Write>, kind: EntryType, name: &[u8], field: &mut [u8; 100]) -> io::Result<()> {
    let fits = name.len().min(field.len());
    field[..fits].copy_from_slice(&name[..fits]);
    if fits == name.len() {
        return Ok(());
    }
    let mut long = Header::new_gnu();
    long.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
    long.set_entry_type(kind);
    long.set_size(name.len() as u64 + 1);
    long.set_cksum();
    tar.append(&long, name.chain(&b"\0"[..]))
}

fn header(kind: EntryType, status: &Status, size: u64) -> Header {
    let mut header = Header::new_gnu();
    let mode = match kind {
        // Whoever unpacks it can also remove it.
        EntryType::Directory => status.permissions() | Mode::S_IRWXU,
        EntryType::Symlink => Mode::from_bits_truncate(0o777),
        _ => status.permissions(),
    };
    header.set_entry_type(kind);
    header.set_mode(mode.bits());
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(u64::try_from(status.modified.tv_sec()).unwrap_or(0));
    header.set_size(size);
    header
}
