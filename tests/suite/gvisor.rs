//! The same program in a real gVisor sandbox, as root and as a plain user: no Landlock, no mounts, no pidfds, and other
//! processes' environments open to everybody.

use std::fs;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::devices::{REPOSITORY, SAID, SCRIPT};
use crate::model::{Call, Model};
use crate::need::{self, need_program};
use crate::real_agent::run::{claude, output};

/// A plain user in the sandbox.
const USER: u32 = 50_001;

/// What Docker leaves to root in a container.
const CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// An OCI bundle whose root is this host's, read-only, with memory where something must be written.
struct Sandbox {
    dir: tempfile::TempDir,
}

impl Sandbox {
    fn new() -> Option<Sandbox> {
        need_program("runsc")?;
        if !need::as_root() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["program", "bundle", "state"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        need::copy_launcher(&dir.path().join("program/oubliette"));
        Some(Sandbox { dir })
    }

    fn config(&self, uid: u32, script: &str) -> Value {
        let capabilities: Vec<String> = CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect();
        let effective = if uid == 0 { capabilities.clone() } else { Vec::new() };
        let memory = |place: &str| json!({"destination": place, "type": "tmpfs", "source": "tmpfs"});
        json!({
            "ociVersion": "1.0.2",
            "hostname": "sandbox",
            "process": {
                "user": {"uid": uid, "gid": uid},
                "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp", "O=/tmp/program/oubliette"],
                "cwd": "/tmp",
                "capabilities": {
                    "bounding": capabilities, "effective": effective, "permitted": effective, "inheritable": effective,
                },
            },
            "root": {"path": "/", "readonly": true},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                memory("/dev"), memory("/tmp"), memory("/run"), memory("/var/tmp"),
                {
                    "destination": "/tmp/program", "type": "bind", "source": self.dir.path().join("program"),
                    "options": ["rbind", "ro"],
                },
            ],
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]},
        })
    }

    /// Runs a script of the shell's to its end.
    fn run(&self, uid: u32, network: &str, script: &str) -> Output {
        self.started(&self.config(uid, script), network, &[])
    }

    /// Runs what this configuration says, with further options of runsc's.
    fn started(&self, config: &Value, network: &str, options: &[&str]) -> Output {
        fs::write(self.dir.path().join("bundle/config.json"), serde_json::to_vec(config).unwrap()).unwrap();
        let mut command = Command::new("runsc");
        command.args(options).args([
            &format!("--network={network}"),
            "--platform=ptrace",
            "--rootless",
            "--ignore-cgroups",
            "--root",
        ]);
        command.arg(self.dir.path().join("state")).args(["run", "--bundle"]).arg(self.dir.path().join("bundle"));
        output(command.arg(format!("oubliette-{}", rand::random::<u64>())).stdin(Stdio::null()))
    }

    /// Runs a script that must end well, and gives its lines.
    fn lines(&self, uid: u32, script: &str) -> Vec<String> {
        let ended = self.run(uid, "none", script);
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert_eq!(ended.status.code(), Some(0), "{uid}: {said}{}", String::from_utf8_lossy(&ended.stderr));
        said.lines().map(str::to_owned).collect()
    }
}

/// What `explain` says of each layer.
fn decisions(explained: &str) -> Vec<(String, String)> {
    let said: Value = serde_json::from_str(explained).unwrap_or_else(|error| panic!("{error}: {explained}"));
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    said["plan"]["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| (word(&layer["layer"]), word(&layer["decision"])))
        .collect()
}

#[test]
fn the_plan_says_what_holds_there() {
    let Some(sandbox) = Sandbox::new() else { return };
    for uid in [0, USER] {
        let lines = sandbox.lines(uid, "$O explain --json --network none -- true");
        let enforced = |(layer, decision): &(String, String)| (decision == "enforce").then(|| layer.clone());
        let enforced: Vec<String> = decisions(&lines.concat()).iter().filter_map(enforced).collect();
        let mut expected =
            vec!["pid", "ipc", "uts", "net", "uid", "seccomp", "capabilities", "no-new-privs", "limits", "alone"];
        expected.retain(|layer| uid == 0 || *layer != "uid");
        // A socket with a path is the filter's to refuse.
        expected.insert(expected.iter().position(|layer| *layer == "seccomp").unwrap(), "path-sockets");
        assert_eq!(enforced, expected, "{uid}");
        // The report of a run says the same.
        let lines = sandbox.lines(uid, "$O run -q --report-fd 3 --network none -- true 3>&1");
        let report: Value = serde_json::from_str(&lines.concat()).unwrap();
        let planned = report["layers"].as_array().unwrap().iter().filter(|layer| layer["decision"] == "enforce");
        assert_eq!(planned.map(|layer| layer["layer"].as_str().unwrap()).collect::<Vec<_>>(), expected, "{uid}");
    }
}

#[test]
fn a_run_works_and_leaves_nothing() {
    let Some(sandbox) = Sandbox::new() else { return };
    // What an agent may leave: a closed tree, a deep one, odd names, a process in the background.
    let script = r#"
        agent='id -u; cat /proc/self/uid_map; test -w ~ && test -w . && echo writable; umask
            mkdir -p a/b "$(printf "new\nline")"; echo x >a/b/c; chmod 0 a/b a; ln -s / out; mkfifo fifo
            d=.; for i in $(seq 200); do d=$d/d; done; mkdir -p $d; sleep 999 & exit 7'
        $O run -q --timeout 30s -- sh -c "$agent"; echo "status $?"
        $O run -q -- /nonexistent 2>/dev/null; echo "status $?"
        $O run -q --timeout 300ms --grace 100ms -- sleep 99 2>/dev/null; echo "status $?"
        $O run -q -- sh -c 'kill -9 $$'; echo "status $?"
        echo cells: /run/oubliette/cells/* /var/tmp/oubliette-*/cells/*
        for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline; echo; done | grep -c '^sleep 999'; true"#;
    for uid in [0, USER] {
        let lines = sandbox.lines(uid, script);
        let agent: u32 = lines[0].parse().unwrap();
        assert_eq!(agent != USER, uid == 0, "{lines:?}");
        let maps = lines.iter().skip(1).take_while(|line| line.split_whitespace().count() == 3).count();
        assert_eq!(maps, if uid == 0 { 2 } else { 1 }, "{lines:?}");
        let rest: Vec<&str> = lines[1 + maps..].iter().map(String::as_str).collect();
        let cells = "cells: /run/oubliette/cells/* /var/tmp/oubliette-*/cells/*";
        let expected = ["writable", "0022", "status 7", "status 127", "status 124", "status 137", cells, "0"];
        assert_eq!(rest, expected, "{uid}");
    }
}

/// Nothing separates the files of two cells of a plain user there: one lives at a time, and finds nothing of the last.
#[test]
fn cells_of_a_plain_user_live_one_at_a_time() {
    let Some(sandbox) = Sandbox::new() else { return };
    let script = r#"
        cells=/var/tmp/oubliette-$(id -u)/cells
        $O run -q -- sh -c 'echo up >ready; sleep 999 & exec sleep 999' & launcher=$!
        for i in $(seq 100); do test -e $cells/*/work/ready && break; sleep 0.1; done
        $O run -q -- echo second 2>/dev/null; echo "status $?"
        $O run -q --wait 1m -- sh -c 'set -- ${HOME%/*/*}/*; echo $#; echo third' & third=$!
        kill -9 $launcher; wait $launcher 2>/dev/null
        wait $third; echo "status $?"
        for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline; echo; done | grep -c '^sleep 999'; true"#;
    let lines = sandbox.lines(USER, script);
    assert_eq!(lines, ["status 125", "1", "third", "status 0", "0"]);
}

/// `kill -9` of the launcher: a sweep ends what is left and removes it.
#[test]
fn a_sweep_finishes_what_a_killed_launcher_left() {
    let Some(sandbox) = Sandbox::new() else { return };
    let script = r#"
        $O run -q -- sh -c 'echo up >ready; sleep 999 & exec sleep 999' & launcher=$!
        cells=/run/oubliette/cells; test -d $cells || cells=/var/tmp/oubliette-$(id -u)/cells
        for i in $(seq 100); do test -e $cells/*/work/ready && break; sleep 0.1; done
        kill -9 $launcher; wait $launcher 2>/dev/null
        $O sweep --json; echo; echo left: $(ls -A $cells 2>/dev/null | wc -l)
        for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline; echo; done | grep -c '^sleep 999'; true"#;
    for uid in [0, USER] {
        let lines = sandbox.lines(uid, script);
        let end = lines.iter().position(|line| line.starts_with("left: ")).unwrap();
        let swept: Value = serde_json::from_str(&lines[..end].concat()).unwrap();
        assert_eq!((&swept["live"], &swept["left"]), (&json!(0), &json!([])), "{uid}");
        assert_eq!(lines[end..], ["left: 0", "0"], "{uid}");
    }
}

/// What an agent resumes from is put back there, too, and what a dead run had begun to keep is cleared up.
#[test]
fn what_an_agent_resumes_from_is_kept() {
    let Some(sandbox) = Sandbox::new() else { return };
    let script = r#"
        export OUBLIETTE_STATE_DIR=$PWD/state; mkdir -p policies/agents; chmod 755 . policies policies/agents; chmod 711 /tmp
        printf 'title = "Talker"\ncommands = ["sh"]\nresume = [".talk/*/all"]\n' >policies/agents/talker.toml
        run() { $O run -q --user "$1" --workspace user --resume --agent talker --policy-dir $PWD/policies -- sh -c "$2"; }
        run alice 'mkdir -p ~/.talk/a/all; echo one >~/.talk/a/all/one; echo not >~/.talk/a/not; ln -s /etc ~/.talk/a/all/etc'
        run alice 'cd ~/.talk; find . | sort; readlink a/all/etc; echo two >>a/all/one'
        run bob 'ls ~/.talk'
        cd $OUBLIETTE_STATE_DIR/kept/resume; ls | wc -l; name=$(ls -t | tail -1)
        mv $name .old-$name; mkdir .draft-$name
        $O sweep; ls -A | cut -d. -f2-; cd /tmp
        run alice 'cat ~/.talk/a/all/one'"#;
    for uid in [0, USER] {
        let expected =
            [".", "./a", "./a/all", "./a/all/etc", "./a/all/one", "/etc", "2", "talker", "talker", "one", "two"];
        assert_eq!(sandbox.lines(uid, script), expected, "{uid}");
    }
}

/// Environments, arguments and descriptors of others are open there, so the token is in none of them, for root inside
/// who looks at all of them while the agent runs. It is in one file, and another run's UID cannot read that.
#[test]
fn the_credential_is_in_one_closed_file() {
    let Some(sandbox) = Sandbox::new() else { return };
    let script = r#"
        umask 077; printf %s%s sk-ant- canary >token
        printf '#!/bin/sh\ntouch ready; sleep 999\n' >claude; chmod 755 claude . ; chmod 711 /tmp
        $O run -q --user a --network host --credential-file token --agent claude -- ./claude & launcher=$!
        cell=/run/oubliette/cells/*; for i in $(seq 100); do test -e $cell/work/ready && break; sleep 0.1; done
        test -e $cell/work/ready && echo running
        for p in /proc/[0-9]*; do cat $p/environ $p/cmdline 2>/dev/null; done | tr '\0' '\n' | grep -c 'sk-ant-[c]anary'
        for f in /proc/[0-9]*/fd/*; do case $(readlink $f) in pipe:*) echo $f;; esac; done >pipes; echo searched $(test -s pipes && echo pipes)
        find $cell -type f | while read f; do grep -q 'sk-ant-[c]anary' $f && find $f -perm 600; done | sed 's,/run.*/home,HOME,'
        $O run -q --user b -- sh -c "cat $(echo $cell)/home/.credential" 2>&1 | grep -c 'Permission denied'
        kill $launcher; wait $launcher; $O ps; ls -A /run/oubliette/cells | wc -l"#;
    const HEADER: &str = "CELL                              SECONDS   AGENT       LEVEL       USER";
    let lines = sandbox.lines(0, script);
    assert_eq!(lines, ["running", "0", "searched pipes", "HOME/.credential", "1", HEADER, "0"], "{lines:?}");
}

/// The real agent edits a file in a cell in the sandbox.
#[test]
fn the_real_agent_edits_a_file() {
    let (Some(sandbox), Some(claude)) = (Sandbox::new(), claude()) else { return };
    for uid in [0, USER] {
        let calls = vec![
            Call::new("Write", json!({"file_path": "note.txt", "content": "from the model\n"})),
            Call::new("Read", json!({"file_path": "note.txt"})),
            Call::new("Edit", json!({"file_path": "note.txt", "old_string": "the model", "new_string": "a sandbox"})),
        ];
        let model = Model::start(calls);
        let script = format!(
            "umask 077; printf sk-ant-api03-x >token; mkdir out; exec $O run --user a --network host --credential-file token --level \
             paranoid --timeout 200s --upstream {} --export out/tree -- {} -p hello 2>err",
            model.url(),
            claude.display()
        );
        let script =
            format!("({script}); echo status $?; cat out/tree/note.txt; grep -v 'not enforced here' err; true");
        let ended = sandbox.run(uid, "host", &script);
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        let answers = model.finish();
        assert!(said.contains("status 0\nfrom a sandbox\n"), "{uid}: {said} {answers:?}");
        assert!(answers.iter().all(|answer| !answer.is_error), "{uid}: {answers:?}");
    }
}

/// The sandbox has network namespaces, so a broker is there, too: it alone reaches the upstream, with the credential.
#[test]
fn a_broker_has_the_credential() {
    let Some(sandbox) = Sandbox::new() else { return };
    let script = r#"umask 022; mkdir -p policies/agents; cat >policies/agents/client.toml <<'EOF'
title = "a client"
[[credential.way]]
descriptor = "CLIENT_FD"
header = "x-api-key"
[environment]
base-url = "CLIENT_URL"
EOF
cat >upstream.py <<'EOF'
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        text = self.headers["x-api-key"][:7].encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
server = http.server.HTTPServer(("127.0.0.1", 9998), Handler)
open("listens", "w")
server.serve_forever()
EOF
umask 077; echo sk-real-0123456789 >token; python3 upstream.py 2>upstream.log & server=$!
until [ -e listens ]; do sleep 0.1; done
$O run -q --level developer --policy-dir policies --agent client --network broker --upstream http://127.0.0.1:9998 --timeout 100s \
    --credential-file token -- python3 -c '
import http.client, os
key = os.read(3, 4096).decode()
print("real" in key)
for key in [key, "x"]:
    connection = http.client.HTTPConnection("127.0.0.1", 20080)
    connection.request("GET", "/", headers={"x-api-key": key})
    answer = connection.getresponse()
    print(answer.status, answer.read()[:7].decode())
'; echo status $?; kill $server"#;
    for uid in [0, USER] {
        assert_eq!(sandbox.lines(uid, script), ["False", "200 sk-real", "401 {\"type\"", "status 0"], "{uid}");
    }
}

/// The plan names beforehand what one agent can do to another here.
#[test]
fn the_attack_finds_what_the_plan_says() {
    let Some(sandbox) = Sandbox::new() else { return };
    for uid in [0, USER] {
        let script = "$O doctor --attack --json --level developer --state-dir /tmp/state; echo \"status $?\" >&2; echo /tmp/state/cells/* >&2";
        let ended = sandbox.run(uid, "none", script);
        let errors = String::from_utf8_lossy(&ended.stderr).into_owned();
        let said: Value = serde_json::from_slice(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {errors}"));
        let rows = said["encounters"][0]["attacks"].as_array().unwrap();
        let broken: Vec<&Value> = rows.iter().filter(|row| row["broken"] != false).collect();
        assert!(broken.is_empty(), "{uid}: {broken:#?}");
        assert!(said["encounters"][0]["kept"] == true, "{uid}: {}", said["encounters"][0]["damage"]);
        assert_eq!(errors, "status 1\n/tmp/state/cells/*\n", "{uid}: no cell is left");
    }
}

/// Its own overlay over the root, as it makes one by default in later versions: a file of it has another device than its
/// directory.
#[test]
fn nothing_is_lost_on_its_root_overlay() {
    let Some(sandbox) = Sandbox::new() else { return };
    for uid in [0, USER] {
        // Nothing is mounted there: it is the root's.
        let place = tempfile::Builder::new().prefix("oubliette-test-").tempdir_in("/srv").unwrap();
        fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let script = format!("set -e; cd {}; {REPOSITORY}set +e{SCRIPT}", place.path().display());
        let mut config = sandbox.config(uid, &script);
        config["root"]["readonly"] = json!(false);
        let ended = sandbox.started(&config, "none", &["--overlay2=root:memory"]);
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert_eq!(ended.status.code(), Some(0), "{uid}: {said}{}", String::from_utf8_lossy(&ended.stderr));
        // Its stat(1) does not tell; its fstat(2) does.
        let said: Vec<&str> = said.lines().filter(|line| *line != SAID[0]).collect();
        assert_eq!(said, SAID[1..], "{uid}");
    }
}
