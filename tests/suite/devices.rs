//! File systems on which a regular file has another `st_dev` than its directory: nothing is lost on the way into a cell,
//! out of it, and at its end. An overlay whose layers are on different file systems is one, and so is gVisor's root.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::need::{self, copy_program};

/// Runs in a directory of such a file system, with the program as `$O` and further options as `$@`.
pub const SCRIPT: &str = r#"
    test "$(stat -c %d repo)" != "$(stat -c %d repo/f)" && echo 'another device'
    umask 077; echo token >cred; set -- "$@" --state-dir "$PWD/state"
    $O run -q "$@" --copy-in repo --export out --patch p --credential-file cred --network host --report-fd 3 -- \
        sh -c 'cat f sub/g; echo changed >>f; echo new >n' 3>report
    echo "status $?"; find out -type f | sort; cat out/f; grep -c '^+changed' p; grep -o '"left":[^]]*]' report
    $O run -q "$@" --copy-in repo --export - -- true | tar -t | sort
    $O run -q "$@" --user u --workspace user -- sh -c 'echo kept >k; mkdir d; echo deep >d/k'; echo "status $?"
    $O run -q "$@" --user u --workspace user --export out2 -- cat k d/k; echo "status $?"; cat out2/k out2/d/k
    find state/cells -mindepth 1; $O sweep --state-dir "$PWD/state" --json | grep -o '"left":[^]]*]'
"#;

/// What the script says where nothing is lost.
pub const SAID: &[&str] = &[
    "another device",
    "hello",
    "sub",
    "status 0",
    "out/f",
    "out/n",
    "out/sub/g",
    "hello",
    "changed",
    "1",
    "\"left\":[]",
    "f",
    "sub/",
    "sub/g",
    "status 0",
    "kept",
    "deep",
    "status 0",
    "kept",
    "deep",
    "\"left\": []",
];

/// What is there before the script: files of the lower layer.
pub const REPOSITORY: &str = "mkdir -p repo/sub; echo hello >repo/f; echo sub >repo/sub/g\n";

/// An overlay of two tmpfs, in a mount namespace of its own.
fn on_an_overlay(options: &[&str]) -> Vec<String> {
    let dir = tempfile::Builder::new().prefix("devices-").tempdir().unwrap();
    let program = dir.path().join("oubliette");
    copy_program(Path::new(env!("CARGO_BIN_EXE_oubliette")), &program);
    let mounts = r#"set -e; mkdir lower upper merged; mount -t tmpfs lower lower; mount -t tmpfs upper upper; mkdir upper/u upper/w
        cd lower; REPOSITORY
        cd ..; mount -t overlay overlay -o lowerdir=lower,upperdir=upper/u,workdir=upper/w,xino=off merged; cd merged; set +e"#;
    let script = format!("{}\n{SCRIPT}", mounts.replace("REPOSITORY", REPOSITORY));
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script, "sh"]).args(options).env("O", &program).current_dir(dir.path());
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn nothing_is_lost_on_an_overlay_of_two_file_systems() {
    if !need::as_root() {
        return;
    }
    assert_eq!(on_an_overlay(&[]), SAID);
    // The same without a private root: the cell itself is on the overlay.
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.toml");
    std::fs::write(&policy, "description = \"t\"\ndeny = []\ncommands = \"any\"\n[layers]\nroot = \"off\"\n").unwrap();
    assert_eq!(on_an_overlay(&["--policy", policy.to_str().unwrap()]), SAID);
}
