//! A root made of single files. bwrap makes it the root of a process, or runsc that of a sandbox.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::environments::sandbox::{Inside, finish, patient, tmpfs};
use crate::need::{self, copy_program, need_program, root};

pub const PROC: &[&str] = &["--dev-bind", "/proc", "/proc"];
pub const TMP: &[&str] = &["--tmpfs", "/tmp", "--chmod", "1777", "/tmp"];

/// What every container's runtime makes (opencontainers/runtime-spec, default devices); a node each.
pub const DEVICES: &[&str] = &[
    "--dev-bind",
    "/dev/null",
    "/dev/null",
    "--dev-bind",
    "/dev/zero",
    "/dev/zero",
    "--dev-bind",
    "/dev/full",
    "/dev/full",
    "--dev-bind",
    "/dev/random",
    "/dev/random",
    "--dev-bind",
    "/dev/urandom",
    "/dev/urandom",
    "--dev-bind",
    "/dev/tty",
    "/dev/tty",
];

/// A root, and where the launcher and busybox are in it.
pub struct Image {
    dir: tempfile::TempDir,
    pub program: &'static str,
    pub busybox: &'static str,
    pub variables: Vec<(&'static str, String)>,
}

/// What a command in it came to.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Image {
    /// Nothing but the launcher, busybox, a program that changes the UID, and these mount points.
    pub fn empty(points: &[&str]) -> Option<Image> {
        Image::new("/oubliette", "/busybox", points)
    }

    /// With these directories and both programs. Nothing where what makes one is missing.
    pub fn new(program: &'static str, busybox: &'static str, directories: &[&str]) -> Option<Image> {
        if !need::as_root() || need_program("bwrap").is_none() {
            return None;
        }
        let applets = need_program("busybox")?;
        let mode = Permissions::from_mode(0o755);
        let dir = tempfile::Builder::new().prefix("image-").permissions(mode).tempdir_in("/var/tmp").unwrap();
        let image = Image { dir, program, busybox, variables: Vec::new() };
        for name in directories {
            image.directory(name, 0o755);
        }
        need::copy_launcher(&image.made(program));
        copy_program(&applets, &image.made(busybox));
        compile("gcc", "as.c", &["-static"], &image.path("as"))?;
        for point in DEVICES.iter().skip(1).step_by(3) {
            image.file(point, "", 0o644);
        }
        Some(image)
    }

    /// A path of the image on this host.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name.trim_start_matches('/'))
    }

    /// The same, with the directories above it.
    fn made(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.made(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    pub fn directory(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.made(name);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    pub fn home(&self, name: &str, uid: u32) {
        chown(self.directory(name, 0o700), Some(uid), Some(uid)).unwrap();
    }

    pub fn link(&self, name: &str, target: &str) {
        symlink(target, self.made(name)).unwrap();
    }

    /// A file of this host under its own name.
    pub fn copy(&self, name: &str) {
        copy_program(Path::new(name), &self.made(name));
    }

    /// The script of [`Image::checks`].
    pub fn script(&self, text: &[u8]) {
        self.file("checks.sh", text, 0o644);
    }

    fn command(&self, uid: u32, mounts: &[&[&str]], words: &[&str]) -> Command {
        let mut command = patient();
        command.args(["bwrap", "--die-with-parent", "--cap-add", "ALL", "--bind"]).arg(self.dir.path()).arg("/");
        command.args(mounts.concat()).args(["--chdir", "/", "--clearenv", "--setenv", "PATH", "/usr/local/bin:/bin"]);
        for (name, value) in &self.variables {
            command.args(["--setenv", name, value]);
        }
        command.args(["--", "/as", &uid.to_string()]).args(words);
        command
    }

    /// The launcher with these words, in the image with these mounts.
    pub fn words(&self, uid: u32, mounts: &[&[&str]], words: &[&str]) -> Ended {
        let words: Vec<&str> = [self.program].iter().chain(words).copied().collect();
        let output = self.command(uid, mounts, &words).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    fn checking(&self) -> [String; 5] {
        let variables = format!("B={} O={}; . /checks.sh", self.busybox, self.program);
        [self.busybox.into(), "sh".into(), "-c".into(), variables, "checks".into()]
    }

    /// What the script says.
    pub fn checks(&self, uid: u32, mounts: &[&[&str]]) -> String {
        let words = self.checking();
        finish(&mut self.command(uid, mounts, &words.each_ref().map(String::as_str)))
    }

    /// What it says under gVisor, where nobody can write to the image itself.
    pub fn checks_in_gvisor(&self, uid: u32) -> Option<String> {
        need_program("runsc")?;
        let words = self.checking();
        let variables: Vec<(&str, &str)> = self.variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
        let inside = Inside { root: self.dir.path(), uid, host_network: false };
        Some(inside.run(scratch.path(), &[tmpfs("/tmp", "1777")], &variables, &words.each_ref().map(String::as_str)))
    }
}

/// Compiles a source of this directory. Nothing where there is no such compiler.
pub fn compile(compiler: &str, source: &str, options: &[&str], to: &Path) -> Option<()> {
    let compiler = need_program(compiler)?;
    let source = root().join("tests/suite/images").join(source);
    let done = Command::new(compiler).arg("-O1").arg(source).args(options).arg("-o").arg(to).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Some(())
}
