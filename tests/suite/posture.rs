//! `__posture` against a process whose posture the test has chosen.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::need;

fn posture(command: &mut Command) -> Value {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn posture_of_a_plain_user_with_one_variable() {
    if !need::as_root() {
        return;
    }
    let dir =
        tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    let program = dir.path().join("oubliette");
    need::copy_launcher(&program);
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "umask 0027; ulimit -n 77; exec setpriv --no-new-privs --bounding-set -all \"$0\" __posture"]);
    command
        .arg(&program)
        .env_clear()
        .env("ONLY", "this one")
        .env("PATH", "/usr/bin:/bin")
        .current_dir("/")
        .uid(41_000)
        .gid(41_000);
    let is = posture(&mut command);
    assert_eq!(
        is["ids"],
        json!({"uid": [41000, 41000, 41000], "gid": [41000, 41000, 41000], "groups": [], "fsuid": 41000, "fsgid": 41000})
    );
    assert_eq!(is["caps"]["effective"], "0000000000000000");
    assert_eq!(is["no_new_privs"], true);
    assert_eq!(is["process"]["umask"], "0027");
    assert_eq!(is["limits"]["nofile"], json!([77, 77]));
    assert_eq!(is["environ"]["ONLY"], "this one");
    assert_eq!(is["cwd"], "/");
    assert_eq!(is["outside"]["/etc/shadow"], "EACCES");
    assert_eq!(is["descriptors"][0]["target"], "/dev/null");
}
