//! The launcher's own environment block, which every process of the same user may read in /proc/PID/environ.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicPtr, Ordering};

unsafe extern "C" {
    static mut environ: *const *mut libc::c_char;
}

/// The caller's HOME: the variable, else what /etc/passwd says.
///
/// Not [`std::env::home_dir`]: without the variable, as in a service of systemd's, that asks the C library, which in a
/// statically linked program loads the host's NSS modules and crashes on any other version than its own.
pub fn home() -> Option<PathBuf> {
    let named = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    named.or_else(|| {
        let uid = nix::unistd::getuid().to_string();
        let text = std::fs::read("/etc/passwd").ok()?;
        // name:password:UID:GID:gecos:directory:shell (passwd(5))
        let mut lines = text.split(|&b| b == b'\n').map(|line| line.split(|&b| b == b':').collect::<Vec<_>>());
        let own = lines.find(|fields| fields.get(2) == Some(&uid.as_bytes()))?;
        Some(PathBuf::from(OsStr::from_bytes(own.get(5)?))).filter(|home| home.is_absolute())
    })
}

/// Moves the value of `name` into `space` and overwrites every copy of it in the block that the kernel made at exec.
///
/// Gives the length, or nothing when the variable is not set or does not fit. The memory of the block is what
/// /proc/PID/environ shows (proc(5)), so removing the variable alone would leave the value there.
pub fn take(name: &str, space: &mut [u8]) -> Option<usize> {
    let mut taken = None;
    // SAFETY: the launcher is single-threaded here and nothing has changed the environment since exec, so `environ`
    // is the kernel's NULL-terminated array of NUL-terminated strings in writable stack memory. Each string is
    // overwritten within its own length.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            let string = *entry;
            let length = CStr::from_ptr(string).to_bytes().len();
            let bytes = std::slice::from_raw_parts_mut(string.cast::<u8>(), length);
            if let Some(value) = value_of(bytes, name.as_bytes()) {
                if taken.is_none() && value.len() <= space.len() {
                    space[..value.len()].copy_from_slice(value);
                    taken = Some(value.len());
                }
                std::ptr::write_bytes(value.as_mut_ptr(), b'x', value.len());
                std::sync::atomic::compiler_fence(Ordering::SeqCst);
            }
            entry = entry.add(1);
        }
    }
    taken
}

fn value_of<'a>(entry: &'a mut [u8], name: &[u8]) -> Option<&'a mut [u8]> {
    let rest = entry.strip_prefix(name)?.strip_prefix(b"=")?.len();
    let start = entry.len() - rest;
    Some(&mut entry[start..])
}

/// Where the array was before [`forget`].
static ORIGINAL: AtomicPtr<*mut libc::c_char> = AtomicPtr::new(std::ptr::null_mut());

/// Overwrites the arguments of this process with a name: init is a copy of the launcher, and the cell would read in
/// /proc/1/cmdline whose run it is and where on the host the credential lies. Does nothing before [`forget`].
pub fn rename(name: &[u8]) {
    let array = ORIGINAL.load(Ordering::Relaxed);
    if array.is_null() {
        return;
    }
    let count = std::env::args_os().len();
    // SAFETY: at exec the kernel lays the argument array right below the environment array, with one null pointer in
    // between (System V ABI, process initialization; the same on aarch64). Both are writable memory of this process,
    // nothing else reads them now, and each string is overwritten within its own length.
    unsafe {
        let mut rest = name;
        for &argument in std::slice::from_raw_parts(array.sub(count + 1), count) {
            let length = CStr::from_ptr(argument).to_bytes().len();
            let bytes = std::slice::from_raw_parts_mut(argument.cast::<u8>(), length);
            let taken = rest.len().min(length);
            bytes.fill(0);
            bytes[..taken].copy_from_slice(&rest[..taken]);
            rest = &rest[taken..];
        }
    }
}

/// Overwrites the whole block. From now on this process has no variables, and whoever may read its /proc/PID/environ
/// (gVisor lets every process) finds none of the service's.
pub fn forget() {
    // SAFETY: as in `take`; the array is emptied afterwards, so nothing reads the overwritten strings as variables.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            let length = CStr::from_ptr(*entry).to_bytes().len();
            std::ptr::write_bytes((*entry).cast::<u8>(), 0, length);
            entry = entry.add(1);
        }
        ORIGINAL.store(environ.cast_mut(), Ordering::Relaxed);
        static mut EMPTY: [*mut libc::c_char; 1] = [std::ptr::null_mut()];
        environ = (&raw const EMPTY).cast();
    }
}
