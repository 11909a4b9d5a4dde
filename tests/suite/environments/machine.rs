//! A virtual machine with another kernel than this host's: one of 6.1, whose Landlock knows files alone, and whose
//! control groups are those of the unified hierarchy. Emulated, since not every host lends its processor.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::sandbox::Scratch;
use crate::need::{copy_program, need, need_program};

/// Names the kernel's file, where it is not in /boot.
const KERNEL: &str = "OUBLIETTE_TEST_KERNEL";

/// What the tests expect of it depends on its version.
const VERSION: &str = "6.1.";

/// The longest that a machine may take on a busy host, in seconds.
const LONGEST: &str = "400";

/// What the scripts call.
const PROGRAMS: [&str; 30] = [
    "bash", "busybox", "cat", "chmod", "dirname", "env", "find", "grep", "head", "id", "ln", "ls", "mkdir", "mkfifo",
    "rm", "sed", "setpriv", "setsid", "sh", "sleep", "sort", "stat", "tail", "timeout", "touch", "tr", "true", "wc",
    "sync", "kill",
];

/// Moves from the initial ramfs, which cannot be left by pivot_root(2), into a tmpfs.
const FIRST: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mkdir /new && $b mount -t tmpfs -o mode=755 new /new || exec $b poweroff -f
for name in bin sbin lib lib64 usr etc mnt second words; do $b cp -a /$name /new/; done
exec $b switch_root /new /second
"#;

/// Mounts what a host has, puts the caller into a group of its own, and executes the words.
const SECOND: &str = r#"#!/bin/bash
export PATH=/usr/bin:/bin HOME=/tmp
mkdir -p /proc /sys /dev /tmp /run /var/tmp /root
mount() { busybox mount "$@"; }
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm; mount -t devpts pts /dev/pts
for place in /dev/shm /tmp /var/tmp; do mount -t tmpfs -o mode=1777 tmpfs $place; done
mount -t tmpfs -o mode=755 tmpfs /run
busybox ip link set lo up
busybox stty -F /dev/ttyS1 raw
groups=/sys/fs/cgroup
mount -t cgroup2 groups $groups
echo "+memory +pids +cpu" >$groups/cgroup.subtree_control
mkdir $groups/service
group=$groups/service
if [ "$ID" != 0 ]; then
  # As a service that delegates its group and has its processes in one below.
  echo "+memory +pids +cpu" >$group/cgroup.subtree_control
  mkdir $group/launcher
  for file in . ./cgroup.procs ./cgroup.subtree_control ./launcher ./launcher/cgroup.procs; do
    busybox chown "$ID:$ID" "$group/$file"
  done
  group=$group/launcher
fi
echo $$ >$group/cgroup.procs
cd /
setpriv --reuid="$ID" --regid="$ID" --clear-groups sh /words >/dev/ttyS1 2>&1 </dev/null
echo "== end" >/dev/ttyS1
sync
busybox poweroff -f
"#;

/// What of the machine's root differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// A tmpfs, which is like any other file system.
    Tmpfs,
    /// The initial ramfs itself.
    Ramfs,
}

/// What makes it; says which part is missing.
pub fn there() -> bool {
    ["qemu-system-x86_64", "cpio", "busybox", "setpriv"].iter().all(|name| need_program(name).is_some())
        && need("a bzImage of Linux 6.1 (in /boot, or named by OUBLIETTE_TEST_KERNEL)", kernel().is_some())
}

/// The named one, else the first in /boot that is of the version.
fn kernel() -> Option<PathBuf> {
    let images: Vec<PathBuf> = match std::env::var_os(KERNEL) {
        Some(named) => vec![named.into()],
        None => fs::read_dir("/boot").ok()?.flatten().map(|entry| entry.path()).collect(),
    };
    images.into_iter().find(|image| version(image).is_some_and(|version| version.starts_with(VERSION)))
}

/// The version in the header of a bzImage (the kernel's Documentation/arch/x86/boot.rst, `kernel_version`).
fn version(image: &Path) -> Option<String> {
    let bytes = fs::read(image).ok()?;
    if bytes.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let at = 0x200 + usize::from(u16::from_le_bytes([*bytes.get(0x20e)?, *bytes.get(0x20f)?]));
    Some(bytes.get(at..)?.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect())
}

/// Words executed in it, with these variables, at /mnt a copy of the scratch directory.
pub fn run(scratch: &Scratch, uid: u32, root: Root, variables: &[(&str, &str)], words: &[&str]) -> String {
    let dir = tempfile::Builder::new().prefix("machine-").tempdir_in("/var/tmp").unwrap();
    let tree = dir.path().join("tree");
    lay_out(&tree, scratch.0.path());
    let first = if root == Root::Tmpfs { FIRST } else { SECOND };
    program(&tree.join("init"), first);
    program(&tree.join("second"), SECOND);
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let set: String = variables.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value))).collect();
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    program(&tree.join("words"), &format!("{set}exec {}\n", words.join(" ")));
    let packed = dir.path().join("initramfs");
    let pack = "cd \"$0\" && find . | cpio --create --format=newc --owner=0:0 --quiet >\"$1\"";
    let done = Command::new("sh").args(["-c", pack]).args([&tree, &packed]).status().unwrap();
    assert!(done.success());
    boot(dir.path(), &packed, uid)
}

fn boot(dir: &Path, initramfs: &Path, uid: u32) -> String {
    let (console, said) = (dir.join("console"), dir.join("said"));
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", LONGEST, "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "2G"]);
    command.args(["-nodefaults", "-display", "none", "-no-reboot"]);
    command.arg("-kernel").arg(kernel().unwrap()).arg("-initrd").arg(initramfs);
    command.args(["-append", &format!("console=ttyS0 quiet panic=-1 ID={uid}")]);
    for file in [&console, &said] {
        command.arg("-serial").arg(format!("file:{}", file.display()));
    }
    let done = command.output().unwrap();
    let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let text = read(&said);
    let Some(text) = text.strip_suffix("== end\n") else {
        panic!("{done:?}\nconsole: {}\nsaid: {text}", read(&console));
    };
    text.to_owned()
}

fn program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The programs and their libraries at their places, and the scratch directory at /mnt.
fn lay_out(tree: &Path, scratch: &Path) {
    for dir in ["usr/bin", "usr/lib", "usr/lib64", "usr/sbin", "etc", "mnt"] {
        fs::create_dir_all(tree.join(dir)).unwrap();
    }
    for dir in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{dir}"), tree.join(dir)).unwrap();
    }
    let mut libraries = BTreeSet::new();
    for name in PROGRAMS {
        let found = need_program(name).unwrap_or_else(|| panic!("{name}"));
        copy_program(&found, &tree.join("usr/bin").join(name));
        let said = Command::new("ldd").arg(&found).output().unwrap().stdout;
        let said = String::from_utf8(said).unwrap();
        libraries.extend(said.split_ascii_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
    }
    for library in libraries {
        let place = library.parent().unwrap().canonicalize().unwrap();
        let place = tree.join(place.strip_prefix("/").unwrap());
        fs::create_dir_all(&place).unwrap();
        copy_program(&library, &place.join(library.file_name().unwrap()));
    }
    for file in ["etc/passwd", "etc/group"] {
        copy_program(&Path::new("/").join(file), &tree.join(file));
    }
    for entry in fs::read_dir(scratch).unwrap().map(Result::unwrap) {
        copy_program(&entry.path(), &tree.join("mnt").join(entry.file_name()));
    }
}
