//! Objects of System V: they belong to no file system, and outlive their processes.

use nix::errno::Errno;

/// A kind of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Shared memory.
    Memory,
    /// Message queues.
    Queue,
    /// Sets of semaphores.
    Semaphores,
}

/// Those that a UID owns or has made, by number. None where the kernel has no such objects.
///
/// # Errors
/// The list cannot be read, or does not say whose they are.
pub fn of(kind: Kind, uid: u32) -> std::io::Result<Vec<i32>> {
    let (name, number) = match kind {
        Kind::Memory => ("shm", "shmid"),
        Kind::Queue => ("msg", "msqid"),
        Kind::Semaphores => ("sem", "semid"),
    };
    let text = match std::fs::read_to_string(format!("/proc/sysvipc/{name}")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let mut lines = text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let Some(head) = lines.next() else { return Ok(Vec::new()) };
    let column = |name: &str| head.iter().position(|word| *word == name);
    let (Some(number), Some(owner), Some(maker)) = (column(number), column("uid"), column("cuid")) else {
        return Err(std::io::Error::other("it does not say whose they are"));
    };
    let is = |line: &[&str], column: usize| line.get(column).and_then(|word| word.parse().ok()) == Some(uid);
    let owned = lines.filter(|line| is(line, owner) || is(line, maker));
    Ok(owned.filter_map(|line| line.get(number)?.parse().ok()).collect())
}

/// Removes one.
///
/// # Errors
/// The errno of shmctl(2), msgctl(2) or semctl(2). One that is gone already is no error.
pub fn remove(kind: Kind, object: i32) -> Result<(), Errno> {
    let call = match kind {
        Kind::Memory => libc::SYS_shmctl,
        Kind::Queue => libc::SYS_msgctl,
        Kind::Semaphores => libc::SYS_semctl,
    };
    // SAFETY: IPC_RMID takes numbers and reads no memory; the arguments of the three differ in their order only, and all
    // but the first are the command or zero.
    let done = unsafe {
        match kind {
            Kind::Semaphores => libc::syscall(call, object, 0, libc::IPC_RMID, 0),
            _ => libc::syscall(call, object, libc::IPC_RMID, 0),
        }
    };
    match Errno::result(done) {
        Err(Errno::EINVAL | Errno::EIDRM) | Ok(_) => Ok(()),
        Err(errno) => Err(errno),
    }
}
