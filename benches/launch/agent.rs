//! What the bench runs in the cells: as small as a static C program, because `main` is the C library's own.
//!
//! Without an argument it is `true`. `clock` writes CLOCK_MONOTONIC as it was at the start of `main`, `mounts` writes
//! /proc/self/mountinfo, `files N` makes N small files in the working directory, `wait` makes any of them sleep at the
//! end until a signal comes. `private` before them moves into a tmpfs in a mount namespace of its own, which needs root and
//! shows what the kernel alone needs to free it. Files are made in a cell's workspace only: its last name is `work`, and the variable
//! `BENCH_CELL` is set by the bench for cells alone.
#![no_main]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::ptr::null;

unsafe extern "C" {
    fn clock_gettime(clock: c_int, time: *mut [c_long; 2]) -> c_int;
    fn write(fd: c_int, bytes: *const c_void, count: usize) -> isize;
    fn read(fd: c_int, bytes: *mut c_void, count: usize) -> isize;
    fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int;
    fn close(fd: c_int) -> c_int;
    fn pause() -> c_int;
    fn getcwd(path: *mut c_char, size: usize) -> *mut c_char;
    fn getenv(name: *const c_char) -> *const c_char;
    fn unshare(flags: c_int) -> c_int;
    fn mount(from: *const c_char, to: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void)
    -> c_int;
    fn chdir(path: *const c_char) -> c_int;
}

const CLOCK_MONOTONIC: c_int = 1;
const O_RDONLY: c_int = 0;
const O_WRONLY_CREAT_EXCL: c_int = 0o301;
const CLONE_NEWNS: c_int = 0x20000;
const MS_PRIVATE_REC: c_ulong = 0x44000;
const BODY: [u8; 100] = [b'x'; 100];

fn now() -> [c_long; 2] {
    let mut time = [0; 2];
    // SAFETY: `time` has the layout of a 64-bit timespec and is ours.
    unsafe { clock_gettime(CLOCK_MONOTONIC, &raw mut time) };
    time
}

fn say_clock(time: [c_long; 2]) {
    // SAFETY: the pointer and the length are those of `time`.
    unsafe { write(1, time.as_ptr().cast(), size_of_val(&time)) };
}

fn say_mounts() {
    let mut buffer = [0u8; 4096];
    // SAFETY: the path ends with NUL; reads and writes stay inside `buffer`.
    unsafe {
        let fd = open(c"/proc/self/mountinfo".as_ptr(), O_RDONLY, 0);
        loop {
            let count = read(fd, buffer.as_mut_ptr().cast(), buffer.len());
            if count <= 0 {
                return;
            }
            write(1, buffer.as_ptr().cast(), count.unsigned_abs());
        }
    }
}

/// Whether this is a cell's workspace: anywhere else thousands of files would be somebody's.
fn in_workspace() -> bool {
    let mut path = [0; 4096];
    // SAFETY: both names end with NUL; getcwd writes at most the length of `path`, a string where it succeeds.
    unsafe {
        !getenv(c"BENCH_CELL".as_ptr()).is_null()
            && !getcwd(path.as_mut_ptr(), path.len()).is_null()
            && CStr::from_ptr(path.as_ptr()).to_bytes().ends_with(b"/work")
    }
}

/// Enters a tmpfs that nobody else sees and that is gone with this process.
fn enter_private() -> bool {
    // SAFETY: every text ends with NUL; the pointers that mount(2) does not need are null.
    unsafe {
        unshare(CLONE_NEWNS) == 0
            && mount(null(), c"/".as_ptr(), null(), MS_PRIVATE_REC, null()) == 0
            && mount(c"tmpfs".as_ptr(), c"/tmp".as_ptr(), c"tmpfs".as_ptr(), 0, null()) == 0
            && chdir(c"/tmp".as_ptr()) == 0
    }
}

/// Makes files `f000000`, `f000001`, … and says whether all of them came to be.
fn make_files(count: u32) -> bool {
    let mut name = *b"f000000\0";
    for number in 0..count {
        let mut rest = number;
        for digit in name[1..7].iter_mut().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
        }
        // SAFETY: `name` ends with NUL; the pointer and the length are those of `BODY`.
        unsafe {
            let fd = open(name.as_ptr().cast(), O_WRONLY_CREAT_EXCL, 0o600);
            if fd < 0 || write(fd, BODY.as_ptr().cast(), BODY.len()) != 100 {
                return false;
            }
            close(fd);
        }
    }
    true
}

fn number(text: &CStr) -> u32 {
    text.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The C library's entry.
///
/// # Safety
/// `argv` holds `argc` strings, as every C library promises.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    if argc < 2 {
        return 0;
    }
    let start = now();
    let argument = |index: c_int| -> &CStr {
        if index >= argc {
            return c"";
        }
        // SAFETY: index is below argc, and argv holds that many strings.
        unsafe { CStr::from_ptr(*argv.add(usize::try_from(index).unwrap_or(0))) }
    };
    let mut private = false;
    // An agent's own arguments may come first: the mode is found by its name.
    for index in 1..argc {
        match argument(index).to_bytes() {
            b"clock" => say_clock(start),
            b"mounts" => say_mounts(),
            b"private" => {
                private = enter_private();
                if !private {
                    return 1;
                }
            }
            b"files" => {
                if !(private || in_workspace()) || !make_files(number(argument(index + 1))) {
                    return 1;
                }
                say_clock(now());
            }
            // SAFETY: no argument; a signal ends the process.
            b"wait" => unsafe {
                say_clock(start);
                pause();
            },
            _ => {}
        }
    }
    0
}
