//! Memory for a secret: not copied by fork, not in a core file, not swapped where the limit allows.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};

/// One private mapping of [`MAX`] + 1 bytes.
///
/// `MADV_DONTFORK`: the init, the agent and what becomes the broker are forks of the launcher and must not start with a
/// copy of the secret (madvise(2)). `MADV_DONTDUMP`: not in a core file. `mlock` may fail under a small RLIMIT_MEMLOCK, which costs
/// secrecy only where the host swaps.
pub struct Vault {
    start: NonNull<libc::c_void>,
    length: usize,
}

// SAFETY: the mapping is this value's alone, and belongs to no thread.
unsafe impl Send for Vault {}
// SAFETY: through a shared reference it is only read.
unsafe impl Sync for Vault {}

const SIZE: usize = MAX + 1;

impl Vault {
    /// An empty vault.
    ///
    /// # Errors
    /// The errno of mmap(2) or madvise(2).
    pub fn new() -> Result<Vault, Errno> {
        const BYTES: NonZeroUsize = NonZeroUsize::new(SIZE).unwrap();
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe {
            mmap_anonymous(None, BYTES, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)?
        };
        let vault = Vault { start, length: 0 };
        // SAFETY: start and SIZE are the mapping made above; both advices keep its content.
        unsafe {
            madvise(start, SIZE, MmapAdvise::MADV_DONTFORK)?;
            madvise(start, SIZE, MmapAdvise::MADV_DONTDUMP)?;
            lock(start);
        }
        Ok(vault)
    }

    /// The whole mapping, to read into.
    pub fn space(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is SIZE bytes, readable, writable, zero-filled, and borrowed with self.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), SIZE) }
    }

    /// How much of it is the secret.
    pub fn set_len(&mut self, length: usize) {
        self.length = length.min(SIZE);
    }

    /// The secret.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: length ≤ SIZE bytes of the mapping, borrowed with self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length) }
    }
}

/// Keeps out of swap what is touched. mlock(2) without that would make every page of the largest secret at once.
///
/// # Safety
/// `start` is a mapping of [`SIZE`] bytes.
unsafe fn lock(start: NonNull<libc::c_void>) {
    // SAFETY: neither call changes the content; the caller names the mapping.
    unsafe {
        if libc::mlock2(start.as_ptr(), SIZE, libc::MLOCK_ONFAULT) != 0 {
            let _ = mlock(start, SIZE);
        }
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        // SAFETY: the mapping made in new(); no slice outlives self.
        unsafe {
            let _ = munmap(self.start, SIZE);
        }
    }
}

/// The longest credential that is taken, in bytes: one pipe takes it whole, and no token is near it.
pub const MAX: usize = 32 * 1024;
