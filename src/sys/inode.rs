//! What the kernel knows about one inode: its kind, its mount, its immutable and append-only flags.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::NixPath;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, Mode};
use nix::sys::time::TimeSpec;

/// The kinds of inode that this crate treats differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character or block device.
    Device,
}

/// Which mount an inode was reached through. Two of them are not to be compared: [`Mount::holds`] is the question.
#[derive(Debug, Clone, Copy)]
pub struct Mount {
    device: u64,
    id: Option<u64>,
}

impl Mount {
    /// Whether something in a directory of this mount is of this mount, too.
    ///
    /// The mount's id says so, where the kernel gives one (Linux 5.8; gVisor does not). `st_dev` cannot: a regular file
    /// has another one than its directory on an overlay whose layers are on different file systems, as gVisor's root is
    /// (overlayfs.rst, "st_dev"), and a bind mount of the same file system has the same one. So without an id the
    /// device is compared of directories alone. A single file that is mounted over another is then taken for a file of
    /// the tree: reading it is reading what its name shows, and unlink(2) of it says EBUSY.
    pub fn holds(self, status: &Status) -> bool {
        match (self.id, status.mount.id) {
            (Some(here), Some(there)) => here == there,
            _ => status.kind != Kind::Directory || self.device == status.mount.device,
        }
    }
}

/// One file system object, however many names it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// The device that holds it.
    pub device: u64,
    /// Its inode number there.
    pub inode: u64,
}

/// What statx(2) says about a name or a descriptor.
#[derive(Debug, Clone, Copy)]
pub struct Status {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky.
    pub mode: u32,
    /// Apparent size in bytes.
    pub size: u64,
    /// Blocks of 512 bytes that are really allocated.
    pub blocks: u64,
    /// Names of this inode.
    pub links: u64,
    /// Its owner.
    pub uid: u32,
    /// Last change of the content.
    pub modified: TimeSpec,
    /// Its identity.
    pub id: FileId,
    /// The mount by which it was reached.
    pub mount: Mount,
}

impl Status {
    /// Read, write and execute bits only: a set-id bit is never carried from one tree to another.
    pub fn permissions(&self) -> Mode {
        Mode::from_bits_truncate(self.mode & 0o777)
    }

    /// Fewer blocks than bytes: there are holes worth keeping.
    pub fn is_sparse(&self) -> bool {
        self.blocks.saturating_mul(512) < self.size
    }
}

/// Looks at `name` in `dir` without following it when it is a link.
///
/// # Errors
/// The errno of statx(2), or of fstatat(2) where statx is missing, knows less, or is forbidden by a container's
/// filter.
pub fn status(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Status, Errno> {
    look(dir, name, libc::AT_SYMLINK_NOFOLLOW)
}

/// Looks at what a descriptor refers to.
///
/// # Errors
/// As [`status`].
pub fn status_of(fd: BorrowedFd<'_>) -> Result<Status, Errno> {
    look(fd, OsStr::new(""), libc::AT_EMPTY_PATH)
}

fn look(dir: BorrowedFd<'_>, name: &OsStr, flags: libc::c_int) -> Result<Status, Errno> {
    match statx(dir, name, flags) {
        // EINVAL: gVisor, which does not know AT_NO_AUTOMOUNT.
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EINVAL) => {
            let old = if name.is_empty() {
                nix::sys::stat::fstat(dir)?
            } else {
                nix::sys::stat::fstatat(dir, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)?
            };
            Ok(from_stat(&old))
        }
        other => other,
    }
}

fn statx(dir: BorrowedFd<'_>, name: &OsStr, flags: libc::c_int) -> Result<Status, Errno> {
    let mut raw = MaybeUninit::<libc::statx>::zeroed();
    let mask = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID;
    name.with_nix_path(|path| {
        // SAFETY: `path` is NUL-terminated and lives through the call; `raw` has room for one struct statx.
        Errno::result(unsafe {
            libc::statx(dir.as_raw_fd(), path.as_ptr(), flags | libc::AT_NO_AUTOMOUNT, mask, raw.as_mut_ptr())
        })
    })??;
    // SAFETY: the kernel filled the structure (statx succeeded), and zeroes are valid for what it left out.
    let raw = unsafe { raw.assume_init() };
    let device = libc::makedev(raw.stx_dev_major, raw.stx_dev_minor);
    Ok(Status {
        kind: kind(u32::from(raw.stx_mode)),
        mode: u32::from(raw.stx_mode) & 0o7777,
        size: raw.stx_size,
        blocks: raw.stx_blocks,
        links: u64::from(raw.stx_nlink),
        uid: raw.stx_uid,
        modified: TimeSpec::new(raw.stx_mtime.tv_sec, i64::from(raw.stx_mtime.tv_nsec)),
        id: FileId { device, inode: raw.stx_ino },
        mount: Mount { device, id: (raw.stx_mask & libc::STATX_MNT_ID != 0).then_some(raw.stx_mnt_id) },
    })
}

fn from_stat(old: &FileStat) -> Status {
    Status {
        kind: kind(old.st_mode),
        mode: old.st_mode & 0o7777,
        size: old.st_size.cast_unsigned(),
        blocks: old.st_blocks.cast_unsigned(),
        // Not every architecture has the same width here.
        #[allow(clippy::useless_conversion)]
        links: u64::from(old.st_nlink),
        uid: old.st_uid,
        modified: TimeSpec::new(old.st_mtime, old.st_mtime_nsec),
        id: FileId { device: old.st_dev, inode: old.st_ino },
        mount: Mount { device: old.st_dev, id: None },
    }
}

fn kind(mode: u32) -> Kind {
    match mode & libc::S_IFMT {
        libc::S_IFREG => Kind::File,
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFLNK => Kind::Link,
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFSOCK => Kind::Socket,
        _ => Kind::Device,
    }
}

mod ioctl {
    nix::ioctl_read!(get_flags, b'f', 1, libc::c_long);
    nix::ioctl_write_ptr!(set_flags, b'f', 2, libc::c_long);
}

/// FS_IMMUTABLE_FL and FS_APPEND_FL of linux/fs.h: they forbid unlink and rename, to root too.
const FIXED: libc::c_long = 0x10 | 0x20;

/// Clears the immutable and append-only flags of an open file or directory; gives whether there were any.
///
/// # Errors
/// ENOTTY where the file system has no such flags, EPERM without CAP_LINUX_IMMUTABLE.
pub fn clear_fixed(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut flags: libc::c_long = 0;
    // SAFETY: the kernel writes an int (ioctl_iflags(2)) into the c_long, which has room for it and starts as zero.
    unsafe { ioctl::get_flags(fd.as_raw_fd(), &raw mut flags)? };
    if flags & FIXED == 0 {
        return Ok(false);
    }
    flags &= !FIXED;
    // SAFETY: the kernel reads an int from the c_long that outlives the call.
    unsafe { ioctl::set_flags(fd.as_raw_fd(), &raw const flags)? };
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(kind: Kind, device: u64, id: Option<u64>) -> Status {
        Status {
            kind,
            mode: 0o644,
            size: 0,
            blocks: 0,
            links: 1,
            uid: 0,
            modified: TimeSpec::new(0, 0),
            id: FileId { device, inode: 1 },
            mount: Mount { device, id },
        }
    }

    #[test]
    fn a_file_with_a_device_of_its_own_is_of_its_directorys_mount() {
        for (kind, device, id, same) in [
            (Kind::File, 1, Some(7), true),
            (Kind::File, 2, Some(7), true),
            (Kind::File, 1, Some(8), false),
            // A subvolume of btrfs.
            (Kind::Directory, 2, Some(7), true),
            (Kind::Directory, 1, Some(8), false),
            (Kind::File, 2, None, true),
            (Kind::Link, 2, None, true),
            (Kind::Directory, 1, None, true),
            (Kind::Directory, 2, None, false),
        ] {
            for here in [Some(7), None] {
                let same = if here.is_none() { kind != Kind::Directory || device == 1 } else { same };
                let there = status(kind, device, id);
                assert_eq!(Mount { device: 1, id: here }.holds(&there), same, "{here:?} {there:?}");
            }
        }
    }
}
