//! A test that needs something says so by name; where it must not be skipped, its absence is a failure.

use std::io::Write;
use std::path::PathBuf;

/// Names what must not be skipped: a list with commas, or `all`.
pub const MUST_ENFORCE: &str = "OUBLIETTE_TEST_MUST_ENFORCE";

/// Whether `what` is there. If it is not, says `skipped: needs <what>` past the test runner's capture.
///
/// # Panics
/// When it is not there and `OUBLIETTE_TEST_MUST_ENFORCE` names it.
pub fn need(what: &str, there: bool) -> bool {
    if there {
        return true;
    }
    let must = std::env::var(MUST_ENFORCE).unwrap_or_default();
    let must = must.split(',').map(str::trim).any(|name| name == "all" || name == what);
    assert!(!must, "needs {what}, and {MUST_ENFORCE} says that it must be here");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // The print macros are captured and shown for failures only.
    let _ = writeln!(std::io::stderr(), "{test}: skipped: needs {what}");
    false
}

/// Figures that a test has measured, past the test runner's capture.
pub fn tell(figures: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "{test}: {figures}");
}

/// Where a program is, by PATH; says that it is skipped when there is none.
pub fn need_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    need(name, found.is_some()).then_some(found)?
}

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of the repository below `dir` that has one of these endings, sorted; `target` and `.git` excepted.
pub fn files(dir: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join(dir)];
    while let Some(dir) = dirs.pop() {
        let entries = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        for path in entries.map(|entry| entry.expect("an entry of a directory").path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !path.is_symlink() {
                if name != "target" && name != ".git" {
                    dirs.push(path);
                }
            } else if endings.is_empty() || endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The path as it is written inside the repository.
pub fn short(path: &std::path::Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Whether the test runs as root.
pub fn as_root() -> bool {
    need("root", nix::unistd::geteuid().is_root())
}

/// Copies the launcher to this place, and the broker's program beside it.
pub fn copy_launcher(to: &std::path::Path) {
    copy_program(env!("CARGO_BIN_EXE_oubliette").as_ref(), to);
    copy_program(env!("CARGO_BIN_EXE_oubliette-broker").as_ref(), &to.with_file_name("oubliette-broker"));
}

/// Copies a program by another process: a descriptor that is open for writing here would be inherited by whatever
/// another test forks meanwhile, and the copy could not be executed (ETXTBSY).
pub fn copy_program(from: &std::path::Path, to: &std::path::Path) {
    let done = std::process::Command::new("cp").arg("--").arg(from).arg(to).status().expect("cp");
    assert!(done.success(), "cp {} {}", from.display(), to.display());
}
