//! Finds a program on the host, and what of the host a cell must show so that it runs there – and nothing else of the
//! directory that it lives in, which may be somebody's home.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use serde::Serialize;

use crate::types::error::{Error, Result};
use crate::types::exit::Exit;

/// Interpreters of interpreters end here (the kernel's own limit is 5, execve(2)).
const DEPTH: usize = 5;

/// A program that exists on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Program {
    /// The file that is executed, without links in its path.
    pub path: PathBuf,
    /// What a cell must show read-only: files and directories.
    pub shown: Vec<PathBuf>,
    /// Links that a cell must have: where, and to what.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Every file that the kernel will execute: the program, its interpreters, their loaders.
    pub executed: Vec<PathBuf>,
    /// Directories for PATH, where a `#!/usr/bin/env NAME` finds its interpreter.
    pub search: Vec<PathBuf>,
}

impl Program {
    /// Finds `command` as a shell would: by its path, or along `search_path`.
    ///
    /// # Errors
    /// Not found (127), or found and not executable (126).
    pub fn find(command: &OsStr, search_path: &OsStr) -> Result<Program> {
        let found = locate(command, search_path)?;
        let mut program = Program::default();
        program.add(&found, search_path, DEPTH)?;
        program.path = program.executed.first().cloned().unwrap_or(found);
        Ok(program)
    }

    /// The directory of the npm package that it belongs to.
    pub fn package(&self) -> Option<PathBuf> {
        package_root(&self.path)
    }

    /// Whether something that it shows is a file or a directory.
    pub fn kind(&self, shown: &Path) -> crate::host::facts::Kind {
        let file = self.executed.iter().any(|executed| executed == shown);
        if file { crate::host::facts::Kind::File } else { crate::host::facts::Kind::Directory }
    }

    /// Its name, from which `--agent` is guessed.
    pub fn name(command: &OsStr) -> &OsStr {
        Path::new(command).file_name().unwrap_or(command)
    }

    fn add(&mut self, found: &Path, search_path: &OsStr, depth: usize) -> Result<()> {
        let path = real(found)?;
        let file = File::open(&path).map_err(|error| cannot_execute(found, error))?;
        self.show(found, &path);
        self.executed.push(path.clone());
        match header(&file) {
            Header::Script(line) if depth > 0 => self.add_interpreter(&path, &line, search_path, depth - 1),
            Header::Elf(Some(loader)) => {
                self.executed.push(real(&loader).unwrap_or(loader));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// `#!INTERPRETER [ARGUMENT]`; `env` looks its argument up along PATH.
    fn add_interpreter(&mut self, script: &Path, line: &[u8], search_path: &OsStr, depth: usize) -> Result<()> {
        let mut words = line.split(|b| b" \t".contains(b)).filter(|word| !word.is_empty());
        let Some(interpreter) = words.next().map(|word| PathBuf::from(OsStr::from_bytes(word))) else {
            return Err(cannot_execute(script, "its first line names no interpreter"));
        };
        self.add(&interpreter, search_path, depth).map_err(|error| {
            let cause = format!("its interpreter: {error}");
            Error::new(format!("execute {}", script.display()), cause)
                .hint("install the interpreter, or correct the first line of the script")
                .exit(Exit::CannotExecute)
        })?;
        if interpreter.file_name() != Some(OsStr::new("env")) {
            return Ok(());
        }
        let is_name = |word: &&[u8]| !word.starts_with(b"-") && !word.contains(&b'=');
        let Some(name) = words.find(is_name) else { return Ok(()) };
        let found = locate(OsStr::from_bytes(name), search_path).map_err(|error| {
            let cause = format!("its interpreter: {error}");
            Error::new(format!("execute {}", script.display()), cause)
                .hint("install the interpreter, or add its directory to PATH")
                .exit(Exit::CannotExecute)
        })?;
        if let Some(directory) = found.parent() {
            self.search.push(directory.canonicalize().unwrap_or_else(|_| directory.to_owned()));
        }
        self.add(&found, search_path, depth)
    }

    fn show(&mut self, found: &Path, path: &Path) {
        // Where /bin is a link to usr/bin, as on every merged system, /bin/sh cannot be made beside it: the link to make
        // is /usr/bin/sh.
        let parent = found.parent().and_then(|parent| parent.canonicalize().ok());
        let place = parent.zip(found.file_name()).map_or_else(|| found.to_owned(), |(parent, name)| parent.join(name));
        if place != path {
            self.links.push((place, path.to_owned()));
            if let Some(prefix) =
                found.parent().and_then(Path::parent).filter(|prefix| prefix.join("pyvenv.cfg").exists())
            {
                self.shown.push(prefix.to_owned());
            }
        }
        self.shown.push(surroundings(path).unwrap_or_else(|| path.to_owned()));
    }
}

/// The directory that a program needs beside its own file: its npm package, or the prefix of its Python.
fn surroundings(path: &Path) -> Option<PathBuf> {
    if let Some(package) = package_root(path) {
        let modules = path.ancestors().find(|a| a.file_name() == Some(OsStr::new("node_modules")))?;
        return Some(if needs_siblings(&package, modules) { modules.to_owned() } else { package });
    }
    let prefix = path.parent()?.parent()?;
    let name = path.file_name()?.as_bytes();
    let home = crate::sys::environ::home();
    let safe = prefix.parent().is_some() && home.is_none_or(|home| !home.starts_with(prefix));
    let library = prefix.join("lib").join(OsStr::from_bytes(name));
    (safe && name.starts_with(b"python3") && library.is_dir()).then(|| prefix.to_owned())
}

/// `…/node_modules/NAME` or `…/node_modules/@SCOPE/NAME` above a file.
fn package_root(path: &Path) -> Option<PathBuf> {
    let modules = path.ancestors().find(|a| a.file_name() == Some(OsStr::new("node_modules")))?;
    let mut parts = path.strip_prefix(modules).ok()?.components();
    let first = parts.next()?;
    let scoped = first.as_os_str().as_bytes().starts_with(b"@");
    Some(if scoped { modules.join(first).join(parts.next()?) } else { modules.join(first) })
}

/// Whether a package finds a dependency beside itself instead of below itself.
fn needs_siblings(package: &Path, modules: &Path) -> bool {
    let text = std::fs::read(package.join("package.json")).unwrap_or_default();
    let Ok(manifest) = serde_json::from_slice::<serde_json::Value>(&text) else { return false };
    let names = ["dependencies", "optionalDependencies"].into_iter().filter_map(|key| manifest.get(key)?.as_object());
    let mut needed = names.flat_map(serde_json::Map::keys);
    needed.any(|name| !package.join("node_modules").join(name).exists() && modules.join(name).exists())
}

fn locate(command: &OsStr, search_path: &OsStr) -> Result<PathBuf> {
    if command.is_empty() {
        return Err(Error::new("run the command", "its name is empty")
            .hint("put the command after `--`")
            .exit(Exit::NotFound));
    }
    if command.as_bytes().contains(&b'/') {
        let path = std::path::absolute(command).map_err(|error| cannot_execute(Path::new(command), error))?;
        return check(&path).map(|()| path);
    }
    let mut refused = None;
    // A directory that cannot be entered holds nothing: another user's entry in PATH is no reason to say 126.
    let enters = |directory: &PathBuf| directory.is_absolute() && access(directory, AccessFlags::X_OK).is_ok();
    for directory in std::env::split_paths(search_path).filter(enters) {
        let path = directory.join(command);
        match check(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.status() == Exit::CannotExecute => refused = refused.or(Some(error)),
            Err(_) => {}
        }
    }
    Err(refused.unwrap_or_else(|| {
        let name = command.to_string_lossy();
        Error::new(format!("find command `{}`", name.escape_debug()), "it is in no absolute directory of PATH")
            .hint("name it by its path, or add its directory to PATH")
            .exit(Exit::NotFound)
    }))
}

fn check(path: &Path) -> Result<()> {
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return Err(cannot_execute(path, error)),
        Err(error) => {
            return Err(Error::new(format!("find {}", path.display()), error)
                .hint("check the path of the command")
                .exit(Exit::NotFound));
        }
    };
    if meta.is_dir() {
        return Err(cannot_execute(path, "it is a directory"));
    }
    access(path, AccessFlags::X_OK).map_err(|errno| cannot_execute(path, errno))
}

fn cannot_execute(path: &Path, cause: impl Into<crate::types::error::Cause>) -> Error {
    Error::new(format!("execute {}", path.display()), cause)
        .hint("it must be readable and executable by the user that runs oubliette")
        .exit(Exit::CannotExecute)
}

fn real(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|error| cannot_execute(path, error))
}

/// How the kernel executes a file.
#[derive(Debug)]
pub enum Header {
    /// By the interpreter of its first line, which is this without `#!`.
    Script(Vec<u8>),
    /// By this loader, if any.
    Elf(Option<PathBuf>),
    /// In another way, or not at all.
    Other,
}

/// Reads the beginning of a file, and of an ELF file what that points to. It may be anybody's.
pub fn header(file: &File) -> Header {
    // The table of an ELF file mostly follows its header; of a script the kernel reads 256 bytes (execve(2)).
    let mut start = [0; 1024];
    let Ok(length) = file.read_at(&mut start, 0) else { return Header::Other };
    let start = &start[..length];
    if let Some(line) = start[..length.min(256)].strip_prefix(b"#!") {
        let end = line.iter().position(|&b| b == b'\n').unwrap_or(line.len());
        return Header::Script(line[..end].to_vec());
    }
    if start.starts_with(b"\x7fELF\x02\x01") { Header::Elf(elf_loader(file, start)) } else { Header::Other }
}

/// PT_INTERP of a 64-bit little-endian ELF file (elf(5)); nothing for a static one.
fn elf_loader(file: &File, header: &[u8]) -> Option<PathBuf> {
    const PT_INTERP: u64 = 3;
    let number = |bytes: &[u8], at: usize, size: usize| -> Option<u64> {
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(bytes.get(at..at + size)?);
        Some(u64::from_le_bytes(wide))
    };
    let table = number(header, 32, 8)?;
    let entry_size = number(header, 54, 2)?;
    for index in 0..number(header, 56, 2)?.min(64) {
        let mut entry = [0; 56];
        let at = table.checked_add(index * entry_size)?;
        match usize::try_from(at).ok().and_then(|at| header.get(at..at.checked_add(56)?)) {
            Some(known) => entry.copy_from_slice(known),
            None => file.read_exact_at(&mut entry, at).ok()?,
        }
        if number(&entry, 0, 4)? == PT_INTERP {
            let mut name = vec![0; usize::try_from(number(&entry, 32, 8)?).ok()?.min(4096)];
            file.read_exact_at(&mut name, number(&entry, 8, 8)?).ok()?;
            name.truncate(name.iter().position(|&b| b == 0)?);
            return Some(OsString::from_vec(name).into());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_shown_and_not_the_directory_it_lives_in() {
        let package = |path: &str| package_root(Path::new(path)).map(|p| p.display().to_string());
        assert_eq!(package("/h/.nvm/lib/node_modules/@a/b/cli.js").as_deref(), Some("/h/.nvm/lib/node_modules/@a/b"));
        assert_eq!(package("/h/lib/node_modules/b/bin/x").as_deref(), Some("/h/lib/node_modules/b"));
        assert_eq!(package("/h/bin/x"), None);
    }

    #[test]
    fn finds_what_the_kernel_will_execute() {
        let program = Program::find(OsStr::new("sh"), OsStr::new("/usr/bin:/bin")).unwrap();
        assert!(program.executed.contains(&program.path), "{program:?}");
        assert_eq!(
            Program::find(OsStr::new("no-such-program"), OsStr::new("/bin")).unwrap_err().status(),
            Exit::NotFound
        );
        assert_eq!(Program::find(OsStr::new("/etc"), OsStr::new("/bin")).unwrap_err().status(), Exit::CannotExecute);
    }
}
