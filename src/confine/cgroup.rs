//! The control group: memory, processes and CPU of the whole cell.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::confine::failure::Failure;
use crate::host::Step;
use crate::host::cgroup::PERIOD;
use crate::host::facts::Cgroups;
use crate::plan::Limits;
use crate::sys::cgroup::remove;

/// One control group, in one or several hierarchies. Removed when dropped.
#[derive(Debug)]
pub struct Cgroup {
    directories: Vec<PathBuf>,
    /// Of the old kind, with a file for single threads.
    old: bool,
}

impl Cgroup {
    /// Makes the group and sets its limits.
    ///
    /// # Errors
    /// The file that could not be written; nothing is left.
    pub fn create(cgroups: &Cgroups, cell: &str, limits: &Limits) -> Result<Cgroup, Failure> {
        let name = format!("oubliette-{cell}");
        let quota = u64::from(limits.cpu_percent) * PERIOD / 100;
        let mut group = Cgroup { directories: Vec::new(), old: matches!(cgroups, Cgroups::V1 { .. }) };
        match cgroups {
            Cgroups::V2(parent) => {
                let directory = group.make(parent, &name)?;
                write(&directory, "memory.max", &limits.memory.0.to_string())?;
                if limits.swap {
                    write(&directory, "memory.swap.max", "0")?;
                }
                write(&directory, "pids.max", &limits.cell_processes.to_string())?;
                // The cpu controller may be missing where memory and pids are delegated.
                let _ = write(&directory, "cpu.max", &format!("{quota} {PERIOD}"));
                let _ = write(&directory, "memory.oom.group", "1");
            }
            Cgroups::V1 { memory, pids, cpu } => {
                let bytes = limits.memory.0;
                // Memory and swap together may not be less than memory: in this order.
                let memory_files = [
                    ("memory.limit_in_bytes", Some(bytes)),
                    ("memory.memsw.limit_in_bytes", limits.swap.then_some(bytes)),
                    ("memory.kmem.tcp.limit_in_bytes", limits.socket_buffers.map(|bytes| bytes.0)),
                ];
                let settings = [
                    (memory, &memory_files[..]),
                    (pids, &[("pids.max", Some(limits.cell_processes.into()))]),
                    (cpu, &[("cpu.cfs_quota_us", Some(quota))]),
                ];
                for (parent, files) in settings {
                    let Some(parent) = parent else { continue };
                    let directory = group.make(parent, &name)?;
                    for (file, value) in files {
                        value.map_or(Ok(()), |value| write(&directory, file, &value.to_string()))?;
                    }
                }
            }
        }
        Ok(group)
    }

    /// The directories that [`Cgroup::create`] would make: `sweep` removes them after a crash.
    pub fn planned(cgroups: &Cgroups, cell: &str) -> Vec<PathBuf> {
        let parents = match cgroups {
            Cgroups::V2(parent) => vec![Some(parent)],
            Cgroups::V1 { memory, pids, cpu } => vec![memory.as_ref(), pids.as_ref(), cpu.as_ref()],
        };
        parents.into_iter().flatten().map(|parent| parent.join(format!("oubliette-{cell}"))).collect()
    }

    fn make(&mut self, parent: &Path, name: &str) -> Result<PathBuf, Failure> {
        let directory = parent.join(name);
        fs::create_dir(&directory).map_err(|error| failure(&error, &format!("make cgroup {}", directory.display())))?;
        self.directories.push(directory.clone());
        Ok(directory)
    }

    /// Its doors, open: the child that gets them goes in by itself ([`go_in`]) after its own view of the files is gone
    /// and its rights with it. The kernel asks for the rights of whoever opened the file.
    ///
    /// # Errors
    /// The door that does not open.
    pub fn doors(&self) -> Result<Vec<File>, Failure> {
        // A thread that moves itself through `tasks` took 0.1 ms; to move a process took 0.1 ms or, one time in ten on
        // a busy machine, 13 ms. The unified hierarchy has no such file for a group that is not threaded.
        let door = if self.old { "tasks" } else { "cgroup.procs" };
        let open = |directory: &PathBuf| {
            let path = directory.join(door);
            let opened = File::options().write(true).open(&path);
            opened.map_err(|error| failure(&error, &format!("open {}", path.display())))
        };
        self.directories.iter().map(open).collect()
    }

    /// The most memory that the cell had at once, in bytes.
    pub fn peak(&self) -> Option<u64> {
        let files = ["memory.peak", "memory.max_usage_in_bytes"];
        let mut found = self.directories.iter().flat_map(|directory| files.map(|file| directory.join(file)));
        found.find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
    }
}

/// Puts this process, which has one thread, into the group behind a door.
///
/// # Errors
/// The errno of write(2): the group does not take it.
pub fn go_in(mut door: File) -> Result<(), Failure> {
    door.write_all(b"0").map_err(|error| failure(&error, "enter the cell's control group"))
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for directory in &self.directories {
            remove(directory);
        }
    }
}

fn write(directory: &Path, file: &str, text: &str) -> Result<(), Failure> {
    let path = directory.join(file);
    fs::write(&path, text).map_err(|error| failure(&error, &format!("write {text} to {}", path.display())))
}

fn failure(error: &std::io::Error, action: &str) -> Failure {
    Failure::at(Step::Cgroup, Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)), action)
}
