//! The launcher's own environment block, which every process of the same user may read in /proc/PID/environ.

use std::ffi::CStr;

unsafe extern "C" {
    static mut environ: *const *mut libc::c_char;
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
                std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
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
        static mut EMPTY: [*mut libc::c_char; 1] = [std::ptr::null_mut()];
        environ = (&raw const EMPTY).cast();
    }
}
