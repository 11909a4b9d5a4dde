//! Attacks on the victim's files and names.
#![forbid(unsafe_code)]

use std::ffi::CString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::target::{Target, any, read_some};
use crate::attack::tried::{Miss, Tried, absent, blocked};
use crate::sys::attack::kernel;

pub(super) fn c_path(path: &Path) -> Result<CString, Miss> {
    CString::new(path.as_os_str().as_bytes()).map_err(blocked)
}

/// A name in the current directory that nobody else uses.
fn own_name(what: &str) -> PathBuf {
    PathBuf::from(format!("oubliette-attack-{what}-{}", std::process::id()))
}

pub(super) fn read(t: &Target) -> Tried {
    t.each_dir(|dir| t.read(&dir.join("secret.txt")))
}

pub(super) fn list(t: &Target) -> Tried {
    t.each_dir(|dir| Ok(format!("{} names", fs::read_dir(dir)?.count())))
}

pub(super) fn stat(t: &Target) -> Tried {
    t.each_dir(|dir| Ok(format!("{} bytes", fs::symlink_metadata(dir.join("secret.txt"))?.len())))
}

pub(super) fn append(t: &Target) -> Tried {
    t.each_dir(|dir| {
        OpenOptions::new().append(true).open(dir.join("victim.txt"))?.write_all(b"appended")?;
        Ok("appended".into())
    })
}

pub(super) fn truncate(t: &Target) -> Tried {
    t.each_dir(|dir| {
        nix::unistd::truncate(&dir.join("victim.txt"), 0)?;
        Ok("truncated".into())
    })
}

pub(super) fn chmod(t: &Target) -> Tried {
    t.each_dir(|dir| {
        fs::set_permissions(dir.join("victim.txt"), Permissions::from_mode(0o644))?;
        Ok("mode changed".into())
    })
}

pub(super) fn touch(t: &Target) -> Tried {
    t.each_dir(|dir| {
        let epoch = nix::sys::time::TimeSpec::new(1, 0);
        let (here, follow) = (nix::fcntl::AT_FDCWD, nix::sys::stat::UtimensatFlags::FollowSymlink);
        nix::sys::stat::utimensat(here, &dir.join("victim.txt"), &epoch, &epoch, follow)?;
        Ok("times changed".into())
    })
}

pub(super) fn create(t: &Target) -> Tried {
    t.each_dir(|dir| {
        fs::write(dir.join("planted"), "planted")?;
        Ok("planted a file".into())
    })
}

pub(super) fn hard_link(t: &Target) -> Tried {
    t.each_dir(|dir| {
        let own = own_name("link");
        fs::hard_link(dir.join("secret.txt"), &own)?;
        let read = t.read(&own);
        fs::remove_file(&own)?;
        read
    })
}

pub(super) fn symbolic_link(t: &Target) -> Tried {
    t.each_dir(|dir| {
        let own = own_name("symlink");
        symlink(dir.join("secret.txt"), &own)?;
        let read = t.read(&own);
        fs::remove_file(&own)?;
        read
    })
}

pub(super) fn chdir(t: &Target) -> Tried {
    t.each_dir(|dir| {
        let back = fs::File::open(".")?;
        std::env::set_current_dir(dir)?;
        nix::unistd::fchdir(back.as_fd())?;
        Ok("entered".into())
    })
}

pub(super) fn uring(t: &Target) -> Tried {
    use std::io::Read;
    t.each_dir(|dir| {
        let file = kernel::open_by_uring(&c_path(&dir.join("secret.txt"))?)?;
        let mut bytes = Vec::new();
        fs::File::from(file).read_to_end(&mut bytes)?;
        t.shows(&bytes, "opened by the ring")
    })
}

pub(super) fn watch_dir(t: &Target) -> Tried {
    t.each_dir(|dir| {
        kernel::watch(&c_path(dir)?)?;
        Ok("watched".into())
    })
}

/// The parent of HOME tells the names of new cells, if it is the victim's parent and not one of the same name.
pub(super) fn watch_parent(t: &Target) -> Tried {
    let home = t.places.iter().find(|place| place.what == "home").ok_or_else(|| t.lacks("home"))?;
    home.is_here()?;
    kernel::watch(&c_path(home.path.parent().unwrap_or(Path::new("/")))?)?;
    Ok("watched the parent of HOME".into())
}

fn tmp(t: &Target) -> Result<&Path, Miss> {
    t.tmp_file.as_deref().ok_or_else(|| t.lacks("tmp_file"))
}

pub(super) fn list_tmp(t: &Target) -> Tried {
    seen_in_parent(tmp(t)?)
}

fn seen_in_parent(file: &Path) -> Tried {
    let parent = file.parent().unwrap_or(Path::new("/"));
    let seen = fs::read_dir(parent)?.flatten().any(|entry| Some(entry.file_name().as_os_str()) == file.file_name());
    if seen { Ok(format!("{} is listed", file.display())) } else { Err(blocked("not in the list")) }
}

pub(super) fn read_tmp(t: &Target) -> Tried {
    t.read(tmp(t)?)
}

pub(super) fn list_shm(t: &Target) -> Tried {
    seen_in_parent(t.shm_file.as_deref().ok_or_else(|| t.lacks("shm_file"))?)
}

pub(super) fn read_shm(t: &Target) -> Tried {
    t.read(t.shm_file.as_deref().ok_or_else(|| t.lacks("shm_file"))?)
}

/// Takes a name where the victim will look for its own: only in the very directory that the victim has.
pub(super) fn plant(t: &Target) -> Tried {
    let place = t.places.iter().find(|place| place.what == "tmp").ok_or_else(|| t.lacks("tmp"))?;
    place.is_here()?;
    let name = place.path.join(own_name("plant"));
    symlink("/nowhere", &name)?;
    fs::remove_file(&name)?;
    Ok(format!("planted {}", name.display()))
}

pub(super) fn rename_dir(t: &Target) -> Tried {
    t.each_dir(|dir| {
        let away = dir.with_extension("moved");
        fs::rename(dir, &away)?;
        fs::rename(&away, dir)?;
        Ok("moved away and back".into())
    })
}

pub(super) fn unlink(t: &Target) -> Tried {
    t.each_dir(|dir| {
        fs::remove_file(dir.join("victim.txt"))?;
        Ok("removed".into())
    })
}

/// Searches what it can read for the secret, wherever it may be: only regular files that are small and changed of late,
/// and only some thousands of names, so that a large disk does not hold it up.
pub(super) fn search(t: &Target) -> Tried {
    let named = ["/tmp", "/dev/shm", "/var/tmp", "/run", "/var/lib", "/home"].map(PathBuf::from);
    let mut dirs: Vec<PathBuf> = t.cell_dir.iter().chain(&t.state_dir).cloned().chain(named).collect();
    dirs.reverse();
    let (mut names, mut read) = (0, 0);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(2);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            names += 1;
            if names > 20_000 || std::time::Instant::now() > until {
                return Err(blocked(format!("not in {read} files")));
            }
            // Not followed: a link leads to what is met anyway, or to what is not a file.
            let Ok(meta) = fs::symlink_metadata(entry.path()) else { continue };
            if meta.is_dir() {
                dirs.push(entry.path());
            } else if meta.is_file() && meta.len() < 1 << 16 && is_young(&meta) {
                read += 1;
                if let Ok(proof) = t.read(&entry.path()) {
                    return Ok(proof);
                }
            }
        }
    }
    Err(blocked(format!("not in {read} files")))
}

fn is_young(meta: &fs::Metadata) -> bool {
    let age = meta.modified().ok().and_then(|time| time.elapsed().ok());
    age.is_none_or(|age| age < std::time::Duration::from_secs(600))
}

pub(super) fn cell_dir(t: &Target) -> Tried {
    let cell = t.cell_dir.as_deref().ok_or_else(|| absent("no cell_dir given"))?;
    let look = |name: &str| -> Tried {
        let path = cell.join(name);
        if fs::symlink_metadata(&path)?.is_dir() {
            return Ok(format!("lists {} names", fs::read_dir(&path)?.count()));
        }
        Ok(format!("reads {} bytes", read_some(&path)?.len()))
    };
    any(["", "cell.json", "home", "tmp", "work"].into_iter().map(|name| (name, look(name))), || absent("nothing"))
}

pub(super) fn state_dir(t: &Target) -> Tried {
    let state = t.state_dir.as_deref().ok_or_else(|| absent("no state_dir given"))?;
    let look = |name: &str| -> Tried {
        // An empty directory of the same name in the own root proves nothing.
        match fs::read_dir(state.join(name))?.count() {
            0 => Err(blocked("empty")),
            count => Ok(format!("lists {count} names")),
        }
    };
    any(["", "cells"].into_iter().map(|name| (name, look(name))), || absent("nothing"))
}

pub(super) fn foreign_hard_link(_: &Target) -> Tried {
    let link = |path: &str| -> Tried {
        if fs::symlink_metadata(path)?.uid() == nix::unistd::geteuid().as_raw() {
            return Err(absent("our own file"));
        }
        let own = own_name("foreign");
        fs::hard_link(path, &own)?;
        fs::remove_file(&own)?;
        Ok("linked".into())
    };
    any(["/etc/passwd", "/etc/shadow", "/bin/sh", "/usr/bin/su"].into_iter().map(|path| (path, link(path))), || {
        absent("nothing")
    })
}

/// Climbs from the current directory by `..`: a directory from before pivot_root(2) never meets the root.
pub(super) fn dot_dot(t: &Target) -> Tried {
    let inode = |path: &Path| -> Result<(u64, u64), Miss> {
        let found = fs::metadata(path)?;
        Ok((found.dev(), found.ino()))
    };
    let root = inode(Path::new("/"))?;
    let top = PathBuf::from("../".repeat(64));
    if inode(&top)? != root {
        return Ok("the current directory lies outside the root".into());
    }
    let cwd = nix::unistd::getcwd()?;
    if !cwd.is_absolute() {
        return Ok(format!("the current directory is {}", cwd.display()));
    }
    let cell = t.cell_dir.as_deref().and_then(|dir| dir.strip_prefix("/").ok());
    match cell.map(|dir| fs::read_dir(top.join(dir))) {
        Some(Ok(_)) => Ok("reached the victim's cell by ..".into()),
        Some(Err(error)) => Err(error.into()),
        None => Err(blocked(".. ends at the root")),
    }
}

/// Directories that an agent may write to.
fn is_allowed(path: &Path, allowed: &[PathBuf]) -> bool {
    allowed.iter().any(|dir| path.starts_with(dir))
}

/// Creates a file in every directory of the root, two levels deep, outside the places that an agent has.
pub(super) fn write_outside(_: &Target) -> Tried {
    let mut allowed: Vec<PathBuf> = ["/proc", "/tmp", "/dev/shm"].iter().map(PathBuf::from).collect();
    allowed.extend(["HOME", "TMPDIR"].iter().filter_map(std::env::var_os).map(PathBuf::from));
    allowed.extend(nix::unistd::getcwd());
    let below = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect()
    };
    let mut dirs = vec![PathBuf::from("/")];
    for first in below(Path::new("/")) {
        dirs.extend(below(&first));
        dirs.push(first);
    }
    dirs.retain(|dir| !is_allowed(dir, &allowed));
    let mut written = Vec::new();
    for dir in &dirs {
        let name = dir.join(own_name("outside"));
        if fs::File::create_new(&name).is_ok() {
            let _ = fs::remove_file(&name);
            written.push(dir.display().to_string());
        }
    }
    match written.is_empty() {
        false => Ok(format!("created a file in {}", written.join(" "))),
        true => Err(blocked(format!("{} directories refused", dirs.len()))),
    }
}

/// Where the attacker's agent file says that its settings are.
pub(super) const SETTINGS: &str = "OUBLIETTE_SETTINGS";

fn settings(t: &Target) -> Result<&Path, Miss> {
    t.settings.as_deref().ok_or_else(|| absent("no settings given"))
}

pub(super) fn settings_write(t: &Target) -> Tried {
    let path = settings(t)?;
    OpenOptions::new().append(true).open(path)?;
    Ok(format!("{} opens for writing", path.display()))
}

pub(super) fn settings_chmod(t: &Target) -> Tried {
    let path = settings(t)?;
    fs::set_permissions(path, fs::metadata(path)?.permissions())?;
    Ok("its mode can be set".into())
}

pub(super) fn settings_replace(t: &Target) -> Tried {
    let path = settings(t)?;
    let away = path.with_extension("moved");
    fs::rename(path, &away)?;
    fs::rename(&away, path)?;
    Ok("moved away and back".into())
}

pub(super) fn settings_plant(t: &Target) -> Tried {
    let name = settings(t)?.with_file_name(own_name("settings"));
    fs::File::create_new(&name)?;
    fs::remove_file(&name)?;
    Ok("a new file beside it".into())
}

pub(super) fn settings_unlink(t: &Target) -> Tried {
    fs::remove_file(settings(t)?)?;
    Ok("removed".into())
}
