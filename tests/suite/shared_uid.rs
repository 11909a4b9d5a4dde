//! Cells that have their UID in common with others, and Landlock alone between them: sockets with a path, modes and times
//! of files. What agents need of them still works.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::{fs, os::unix::fs::chown};

use crate::environments::sandbox::{Kind, PLAIN, Sandbox, Scratch};
use crate::launch::{Lab, Who as Launcher, everybody};
use crate::need;
use crate::stage::{Running, Stage, Who};

/// What every tool chain does with its own files.
const WORK: &str = r#"
echo x >file; chmod 755 file; chmod u-w,o-x file; stat -c %a file; touch -d @5 file; stat -c %Y file
cp -p file copy; stat -c "%a %Y" copy; mkdir -m 750 d; chmod g+s d; stat -c %a d; install -m 711 file installed
stat -c %a installed; chmod 700 /proc/self/fd/7 7<file; stat -c %a file; ln -s file link; touch -h -d @9 link; stat -c %Y link
cd d; chmod 640 ../file; stat -c %a ../file; cd ..; chown "$(id -u):$(id -g)" file; tar -cf t.tar file; tar -xf t.tar -C d
stat -c "%a %Y" d/file; chmod 0 d; chmod 700 d
python3 - <<'P'
import os, socket, subprocess
fd = os.open("file", os.O_RDWR); os.fchmod(fd, 0o600); os.utime(fd, (3, 4)); os.chmod(".", 0o700)
print(oct(os.stat("file").st_mode), os.stat("file").st_mtime)
a, b = socket.socketpair(); a.send(b"pair"); print(b.recv(9).decode())
def tried(what, act):
    try: act(); print(what, "works")
    except OSError as error: print(what, error.strerror)
tried("socket", lambda: socket.socket(socket.AF_UNIX))
tried("datagrams", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
tried("attribute", lambda: os.setxattr("file", "user.x", b"x"))
P
"#;

const WORKED: &str = "\
554\n5\n554 5\n2750\n711\n700\n9\n640\n640 5\n0o100600 4.0\npair\nsocket Address family not supported by protocol\n\
datagrams Socket type not supported\nattribute Operation not supported\n";

/// What belongs to others of its UID, by its path, a link, a descriptor and a directory, and is left as it was.
const ATTACK: &str = r#"
for path in "$STATE" "$STATE/cells" "$HOME/.." /tmp/others "$HOME/../../../cells" /proc/self/exe; do
  chmod 0 "$path" 2>>errors; touch -d @7 "$path" 2>>errors; chown -h "$(id -u)" "$path" 2>>errors
done
ln -s /tmp/others away; chmod 0 away 2>>errors; touch -d @7 away 2>>errors; ln -s /tmp dir; chmod 0 dir/others 2>>errors
cd "$HOME/.." && chmod 0 . 2>/dev/null; cd "$OLDPWD"
grep -c "Operation not permitted" errors
"#;

/// The two as scripts in a sandbox; what they print, and what is left.
fn inside(kind: Kind, uid: u32, workspace: bool) -> Option<String> {
    let sandbox = Sandbox { kind, uid, host_network: false };
    if !need::as_root() || !sandbox.there() {
        return None;
    }
    let scratch = Scratch::new();
    scratch.file("work.sh", WORK.as_bytes());
    scratch.file("attack.sh", ATTACK.as_bytes());
    // Root's agents have the UID of whoever owns their workspace.
    let directory = if workspace { "--workspace /tmp/w" } else { "" };
    let script = format!(
        r#"
        mkdir -p /tmp/w; echo others >/tmp/others; chmod 644 /tmp/others
        [ {uid} = 0 ] && chown 50002:50002 /tmp/w /tmp/others
        run() {{ /mnt/oubliette run -q --state-dir /tmp/state {directory} --setenv STATE=/tmp/state -- sh -c "$(cat "$1")"; echo "status $?"; }}
        run /mnt/work.sh; run /mnt/attack.sh
        stat -c '%a %n' /tmp/state /tmp/state/cells /tmp/others
        [ "$(stat -c %Y /tmp/others)" = 7 ] && echo touched
        /mnt/oubliette run -q --state-dir /tmp/state -- true; echo "status $?"; ls -A /tmp/state/cells"#
    );
    Some(sandbox.run(&scratch, &[], &["sh", "-c", &script]))
}

#[test]
fn an_agent_changes_modes_and_times_of_its_own_files_and_of_no_others() {
    for (kind, uid, workspace) in [
        (Kind::NoUserNamespaces, PLAIN, false),
        (Kind::NoUserNamespaces, PLAIN, true),
        (Kind::Container, PLAIN, false),
        // The launcher has more rights than the agent, and does not lend them.
        (Kind::Container, 0, true),
    ] {
        let Some(said) = inside(kind, uid, workspace) else { return };
        let begin = format!("{WORKED}status 0\n");
        assert!(said.starts_with(&begin), "{kind:?} {uid} {workspace}: {said}");
        let rest: Vec<&str> = said[begin.len()..].lines().collect();
        let [refused, status, state, cells, others, again] = rest[..] else { panic!("{kind:?} {uid}: {said}") };
        assert!(refused.parse::<u32>().unwrap() >= 12, "{kind:?} {uid}: {said}");
        assert_eq!([status, state, cells], ["status 0", "711 /tmp/state", "711 /tmp/state/cells"], "{kind:?} {uid}");
        assert_eq!([others, again], ["644 /tmp/others", "status 0"], "{kind:?} {uid}: {said}");
    }
}

/// Where nothing holds modes back, a launcher repairs those of its own directories: nobody's cell is left behind, and
/// nobody is kept out.
#[test]
fn a_state_directory_that_an_agent_has_shut_is_opened_again() {
    let stage = Stage::new();
    let off = [
        "pid",
        "root",
        "ipc",
        "uts",
        "net",
        "landlock-fs",
        "landlock-net",
        "landlock-scope",
        "path-sockets",
        "seccomp",
    ];
    let policy = stage.policy(&off, None);
    let run = |script: &str| {
        let mut command = stage.run(Who::User, &[]);
        command.args(["--quiet", "--network", "host", "--policy"]).arg(&policy).args(["--", "sh", "-c", script]);
        command
    };
    let shut = "chmod 0 ../../..; echo shut";
    for script in
        ["cd ..; chmod 0 ../..; chmod 0 ..; chmod 0 .", shut, "chmod 0 ../..", "chmod 0 ..", "chmod 311 ../.. ../../.."]
    {
        // A neighbour of the same UID is alive meanwhile, and is no less wiped.
        let mut neighbour = Running::start(run("echo up; read -r line; exit 3").stdin(Stdio::piped()));
        neighbour.line();
        let done = Running::start(&mut run(script)).end();
        assert_eq!((done.status.code(), done.err.as_str()), (Some(0), ""), "{script}: {done:?}");
        let done = Running::start(&mut run("echo later")).end();
        assert_eq!((done.out.as_str(), done.err.as_str()), ("later\n", ""), "{script}: {done:?}");
        let done = neighbour.end();
        assert_eq!((done.status.code(), done.err.as_str()), (Some(3), ""), "{script}: {done:?}");
        assert_eq!(stage.cells(Who::User), Vec::<std::path::PathBuf>::new(), "{script}");
    }
    // What a killed launcher left is found by the next sweep.
    let mut running = Running::start(run("chmod 0 ../../.. ; echo up; exec sleep 60").stdin(Stdio::piped()));
    running.line();
    let _ = running.child.kill();
    let _ = running.child.wait();
    let swept = stage
        .command(Who::User, &["timeout", "30"])
        .arg("sweep")
        .arg("--state-dir")
        .arg(stage.state(Who::User))
        .output();
    assert!(swept.as_ref().is_ok_and(|output| output.status.success()), "{swept:?}");
    assert_eq!(stage.cells(Who::User), Vec::<std::path::PathBuf>::new());
}

/// A socket that is mounted into a cell is as good as outside of it.
#[test]
fn a_policy_shows_no_socket() {
    let lab = Lab::new();
    let socket = lab.path("mine/socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
    if nix::unistd::geteuid().is_root() {
        chown(&socket, Some(lab.uid), Some(lab.uid)).unwrap();
    }
    let text = format!("{}\n[files]\nconfig = [{:?}]\n", include_str!("../../policies/balanced.toml"), socket);
    lab.file("p.toml", text, 0o644);
    for who in everybody() {
        if who == Launcher::Root {
            // Only its own files count.
            chown(lab.path("p.toml"), Some(0), Some(0)).unwrap();
        }
        let ended = lab.launch(who, ["run", "--policy", "p.toml", "--", "true"]).run();
        assert_eq!(ended.wrong(125, &["mine/socket in a cell", "socket, a device or a fifo"]), None, "{ended:?}");
    }
}
