//! Hosts that are in the way: full disks, names taken, limits reached, closed streams, signals that come too early.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Findings, Row, table, words};
use crate::launch::{Lab, Launch, Who, everybody};
use crate::need;

fn signal(child: &std::process::Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

#[test]
fn state_directories_that_cannot_be_used() {
    if !need::as_root() {
        return;
    }
    let lab = Lab::new();
    lab.file("file", "", 0o600);
    lab.directory("full", 0o777);
    lab.directory("full-of-names", 0o777);
    lab.directory("read-only", 0o777);
    lab.directory("theirs", 0o755);
    std::os::unix::fs::chown(lab.path("theirs"), Some(lab.uid + 1), None).unwrap();
    lab.directory("home", 0o700);
    lab.file("home/diary", "", 0o600);
    symlink("mine", lab.path("link")).unwrap();
    let rows: &[Row<'_>] = &[
        (&["--state-dir", "full/state"], 125, &["full/state", "No space left"]),
        (&["--state-dir", "full-of-names/state"], 125, &["full-of-names/state", "No space left"]),
        (&["--state-dir", "read-only/state"], 125, &["read-only/state", "Read-only"]),
        (&["--state-dir", "theirs"], 125, &["state directory", "theirs", "belongs to uid"]),
        (&["--state-dir", "link"], 125, &["state directory", "link", "it is a link"]),
        (&["--state-dir", "file"], 125, &["state directory", "file", "it is a link or a file"]),
        (&["--state-dir", "nosuch/state"], 125, &["nosuch/state", "No such file"]),
        (&["--state-dir", "/"], 125, &["state directory /"]),
        (&["--state-dir", "/usr"], 125, &["state directory /usr"]),
    ];
    table(rows, &lab, |launch| {
        launch
            .mounts(
                "mount -t tmpfs -o size=4k,mode=1777 full $L/full && { head -c 9999 /dev/zero >$L/full/x 2>/dev/null || :; }",
            )
            .mounts("mount -t tmpfs -o nr_inodes=4,mode=1777 full $L/full-of-names")
            .mounts("mount -t tmpfs -o ro none $L/read-only")
            .after("find $L/full $L/full-of-names -path '*/cells/*' >&2")
    });
    let mut findings = Findings::default();
    let ended = lab.launch(Who::Plain, words(&["--state-dir", "home"], &["true"])).run();
    findings.refused(&lab, "HOME", &ended, 125, &["state directory", "home", "other files"]);
    lab.directory("closed", 0o700);
    let level = include_str!("../../../policies/developer.toml");
    lab.file("directories.toml", format!("{level}\n[layers]\nroot = \"off\"\n"), 0o644);
    for name in ["closed", "directories.toml"] {
        std::os::unix::fs::chown(lab.path(name), Some(0), Some(0)).unwrap();
    }
    let closed = words(&["--state-dir", "closed/state", "--policy", "directories.toml"], &["true"]);
    let ended = lab.launch(Who::Root, closed).after("ls closed/state/cells >&2").run();
    findings.refused(&lab, "closed", &ended, 125, &["enter the workspace", "closed/state/cells/", "chmod o+x"]);
    findings.none();
    let mode = std::fs::metadata(lab.path("home")).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o700, "a directory that is not taken keeps its mode");
}

#[test]
fn names_that_somebody_took_first_are_stepped_round() {
    if !need::as_root() {
        return;
    }
    let lab = Lab::new();
    let mut findings = Findings::default();
    for (who, uid, taker) in [(Who::Plain, lab.uid, 0), (Who::Root, 0, lab.uid)] {
        let taken = format!("/var/tmp/oubliette-{uid} /tmp/oubliette-{uid}");
        let ended = lab
            .launch(who, words(&["-q"], &["true"]))
            .mounts("mount --bind $L /mnt && cd /mnt")
            .mounts("mount -t tmpfs -o mode=1777 t /var/tmp && mount -t tmpfs -o mode=1777 t /tmp")
            .mounts(&format!("mkdir {taken} && mkdir -p /run/oubliette && chown {taker} {taken} /run/oubliette"))
            .program("/mnt/oubliette")
            .env("XDG_RUNTIME_DIR", "")
            .after("ls /var/tmp")
            .run();
        std::fs::remove_dir_all(lab.path("run/oubliette")).unwrap();
        findings.works(&lab, &format!("{who:?}"), &ended);
        assert!(ended.stdout.contains(&format!("oubliette-{uid}.")), "{ended:?}");
    }
    findings.none();
}

/// The usual places for cells, each under a mount of the test's; the lab itself is seen at /mnt.
fn places<'l>(lab: &'l Lab, who: Who, command: &[&str], mount: &str) -> Launch<'l> {
    let places = ["/run", "/var/tmp", "/tmp"].map(|place| mount.replace("PLACE", place)).join(" && ");
    lab.launch(who, words(&[], command))
        .mounts("mount --bind $L /mnt && cd /mnt")
        .mounts(&places)
        .program("/mnt/oubliette")
        .env("XDG_RUNTIME_DIR", "")
        .after("find /run /var/tmp /tmp -path '*/cells/*' >&2")
}

#[test]
fn every_place_for_cells_is_read_only_or_full() {
    if !need::as_root() {
        return;
    }
    let lab = Lab::new();
    let mut findings = Findings::default();
    let full =
        "mount -t tmpfs -o size=4k,mode=1777 full PLACE && { head -c 9999 /dev/zero >PLACE/x 2>/dev/null || :; }";
    let names = "mount -t tmpfs -o nr_inodes=2,mode=1777 full PLACE && { : >PLACE/x || :; }";
    for (mount, cause) in
        [("mount -t tmpfs -o ro none PLACE", "Read-only"), (full, "No space left"), (names, "No space")]
    {
        for (who, first) in [(Who::Root, "/run/oubliette"), (Who::Plain, "/var/tmp/oubliette-")] {
            let ended = places(&lab, who, &["true"], mount).run();
            findings.refused(&lab, &format!("{who:?} {mount}"), &ended, 125, &[first, cause, "--state-dir"]);
        }
    }
    // One place is enough.
    for who in everybody() {
        let ended = places(&lab, who, &["true"], "mount -t tmpfs -o ro none PLACE")
            .mounts("mount -t tmpfs -o mode=1777 t /tmp")
            .run();
        findings.works(&lab, &format!("{who:?} /tmp"), &ended);
    }
    findings.none();
}

#[test]
fn a_read_only_root() {
    if !need::as_root() {
        return;
    }
    let lab = Lab::new();
    let mut findings = Findings::default();
    for who in everybody() {
        for (options, code) in [(&["-q"][..], 0), (&["-q", "--workspace", "user", "--user", "a"], 125)] {
            let ended = lab
                .launch(who, words(options, &["sh", "-c", "echo x >~/file && cat ~/file >/tmp/file"]))
                .mounts("mount -t tmpfs -o mode=1777 t /var/tmp && mount --bind $L $L")
                .mounts("mount -o remount,bind,ro / && mount -o remount,bind,ro $L")
                .setup("! touch $L/mine/x /var/lib/x 2>/dev/null")
                .env("XDG_RUNTIME_DIR", "")
                .run();
            let name = format!("{who:?} {options:?}");
            match code {
                0 => findings.works(&lab, &name, &ended),
                code => findings.refused(&lab, &name, &ended, code, &["Read-only", "--state-dir"]),
            }
        }
    }
    findings.none();
}

#[test]
fn a_host_without_proc_or_shared_memory() {
    if !need::as_root() {
        return;
    }
    let lab = Lab::new();
    let mut findings = Findings::default();
    for who in everybody() {
        let lines: [&[&str]; 6] = [
            &["run", "--", "true"],
            &["explain", "--", "true"],
            &["doctor"],
            &["doctor", "--attack"],
            &["sweep"],
            &["kill", "x"],
        ];
        for line in lines {
            let ended = lab.launch(who, line).mounts("mount -t tmpfs none /proc").run();
            findings.refused(&lab, &format!("{who:?} {line:?}"), &ended, 125, &["it shows no /proc", "mount -t proc"]);
        }
        // The cell has one of its own.
        let devices = "mkdir -p $L/dev && for d in null zero full random urandom tty; do : >$L/dev/$d && \
             mount --bind /dev/$d $L/dev/$d || exit; done && mount --rbind $L/dev /dev";
        let ended = lab
            .launch(who, words(&["-q"], &["sh", "-c", "! test -e /dev/sda && : >/dev/shm/file"]))
            .mounts(devices)
            .setup("! test -e /dev/shm")
            .run();
        findings.works(&lab, &format!("{who:?} /dev/shm"), &ended);
    }
    findings.none();
}

#[test]
fn no_uid_is_free() {
    if !need::as_root() {
        return;
    }
    let lab = Lab::new();
    let mut findings = Findings::default();
    let line = words(&["--uid-range", "40100-40103"], &["true"]);
    // The last quarter of a range belongs to the workspaces of users.
    let three: Vec<_> =
        (0..3).map(|_| lab.launch(Who::Root, &line).env("OUBLIETTE_PAUSE_AT", "leased").start()).collect();
    assert!(three.iter().all(|run| run.stopped()));
    let fourth = lab.launch(Who::Root, &line).run();
    three.iter().for_each(|run| signal(&run.child, Signal::SIGCONT));
    let three: Vec<_> = three.into_iter().map(|run| run.wait()).collect();
    findings.refused(&lab, "fourth", &fourth, 125, &["lease a UID", "40100-40102", "3 by live cells", "sweep"]);
    three.iter().for_each(|ended| findings.works(&lab, "first three", ended));
    for (user, code) in [("a", 0), ("b", 125), ("a", 0)] {
        let line = words(&["--uid-range", "40100-40103", "--workspace", "user", "--user", user], &["true"]);
        let ended = lab.launch(Who::Root, line).mounts("mkdir -p $L/lib && mount --bind $L/lib /var/lib").run();
        if code == 0 {
            findings.works(&lab, user, &ended);
        } else {
            findings.refused(&lab, user, &ended, code, &["workspace", "40103-40103", "--uid-range"]);
        }
    }
    findings.none();
}

#[test]
fn layers_that_this_host_lacks_are_refused_with_a_remedy() {
    let lab = Lab::new();
    let mut findings = Findings::default();
    for (layer, names) in [
        ("uid", &["layer uid", "plain user", "CAP_SETUID"][..]),
        ("all", &["enforce layer", "missing in all: ", "uid"]),
        ("net", &["layer net", "--network none"]),
        ("settings", &["layer settings", "no settings"]),
    ] {
        let ended = lab.launch(Who::Plain, words(&["--require", layer, "--network", "host"], &["true"])).run();
        findings.refused(&lab, layer, &ended, 125, names);
        let ended = lab.launch(Who::Plain, ["explain", "--require", layer, "--network", "host", "--", "true"]).run();
        findings.refused(&lab, &format!("explain {layer}"), &ended, 125, names);
        assert!(ended.stdout.contains("refuse"), "{}", ended.stdout);
    }
    findings.none();
}

#[test]
fn a_signal_during_the_set_up_ends_it() {
    let lab = Lab::new();
    let mut findings = Findings::default();
    for who in everybody() {
        for stage in ["planned", "leased", "created", "written", "cloned"] {
            for (number, name) in [(Signal::SIGTERM, "SIGTERM"), (Signal::SIGINT, "SIGINT"), (Signal::SIGHUP, "SIGHUP")]
            {
                let run = lab.launch(who, words(&[], &["true"])).env("OUBLIETTE_PAUSE_AT", stage).start();
                assert!(run.stopped(), "{who:?} {stage}");
                signal(&run.child, number);
                signal(&run.child, Signal::SIGCONT);
                findings.refused(
                    &lab,
                    &format!("{who:?} {stage} {name}"),
                    &run.wait(),
                    125,
                    &["start the agent", name],
                );
            }
        }
    }
    findings.none();
}

#[test]
fn limits_that_are_reached() {
    let lab = Lab::new();
    let mut findings = Findings::default();
    let files = (3..24).map(|n| format!("--nofile={n}"));
    let sizes = [0, 1, 100, 4096].map(|n| format!("--fsize={n}"));
    let processes = [1, 2, 3].map(|n| format!("--nproc={n}"));
    // Below the size of the program itself the kernel ends it in execve(2).
    let memory = [40, 48, 64, 128].map(|n| format!("--as={}", n << 20));
    let data = [4, 8, 16, 32].map(|n| format!("--data={}", n << 18));
    let all: Vec<String> = files.chain(sizes).chain(processes).chain(memory).chain(data).collect();
    let (mut good, mut bad) = (0, 0);
    let before = stepped_round();
    for who in everybody() {
        for limit in &all {
            let ended = lab.launch(who, words(&["-q"], &["true"])).through(&format!("prlimit {limit}")).run();
            let name = format!("{who:?} {limit}");
            match ended.code() {
                0 => {
                    findings.works(&lab, &name, &ended);
                    good += 1;
                }
                code => {
                    let code = if code == 126 { 126 } else { 125 };
                    findings.refused(&lab, &name, &ended, code, &[]);
                    bad += 1;
                }
            }
        }
    }
    findings.none();
    assert!(good > 5 && bad > 15, "{good} runs worked and {bad} were refused");
    assert_eq!(stepped_round(), before, "state directories that no run could use");
}

/// State directories of a name that nobody else could take first.
fn stepped_round() -> Vec<PathBuf> {
    let names = ["/var/tmp", "/tmp"].into_iter().flat_map(|place| fs::read_dir(place).unwrap().flatten());
    let ours = names.filter(|entry| entry.file_name().to_string_lossy().starts_with("oubliette-"));
    let mut all: Vec<PathBuf> = ours.map(|entry| entry.path()).filter(|path| path.extension().is_some()).collect();
    all.sort();
    all
}

/// The kernel kills the cell's first process before the agent is there: that is a failure of the set-up and not the
/// agent's end.
#[test]
fn memory_runs_out_during_the_set_up() {
    let lab = Lab::new();
    if !need::as_root() || !need::need("cgroup", oubliette::host::cgroup::find(0, 100).get().is_ok()) {
        return;
    }
    let mut findings = Findings::default();
    for layers in ["", "pid = \"off\"\n"] {
        let policy = format!(
            "description = \"for a test\"\ndeny = []\ncommands = \"any\"\n[layers]\n{layers}[limits]\nmemory = \"16KiB\"\n"
        );
        lab.file("little.toml", &policy, 0o644);
        std::os::unix::fs::chown(lab.path("little.toml"), Some(0), Some(0)).unwrap();
        let ended = lab.launch(Who::Root, words(&["-q", "--policy", "little.toml"], &["true"])).run();
        findings.refused(&lab, layers, &ended, 125, &["start the agent", "killed", "limits.memory"]);
    }
    findings.none();
}

#[test]
fn streams_that_are_closed() {
    let lab = Lab::new();
    let mut findings = Findings::default();
    for who in everybody() {
        for closed in 0..8 {
            let one = |bit: u32, text: &'static str| if closed >> bit & 1 == 1 { text } else { "" };
            let redirect = [one(0, "<&-"), one(1, ">&-"), one(2, "2>&-")].join(" ");
            let name = format!("{who:?} {redirect}");
            let run = |command: &[&str]| lab.launch(who, words(&["-q"], command)).redirect(&redirect).run();
            // Each is open for the agent, so that no file that it opens is taken for one of them.
            let ended =
                run(&["sh", "-c", "for n in 0 1 2; do test -e /proc/self/fd/$n || exit 9; done; echo out; exit 7"]);
            if ended.code() != 7 || ended.stdout.contains("out") == (closed >> 1 & 1 == 1) || !ended.stderr.is_empty() {
                findings.0.push(format!("{name}: {ended:?}"));
            }
            let ended = run(&["nosuch-command"]);
            if closed >> 2 & 1 == 0 {
                findings.refused(&lab, &name, &ended, 127, &["nosuch-command"]);
            } else if ended.code() != 127 {
                findings.0.push(format!("{name}: {ended:?}"));
            }
        }
        let ended = lab.launch(who, words(&[], &["true"])).redirect("</").run();
        findings.refused(&lab, "a directory", &ended, 125, &["descriptor 0", "directory"]);
    }
    findings.none();
}

/// Words of the command line's own.
const KNOWN: &str = "run explain doctor sweep ps kill policy list show check -- true --user --credential-file \
    --credential-fd --credential-env --credential-stdin --level paranoid --policy --agent none \
    claude --require all pid --network host --mcp-config --upstream http://[::1]:1/ --setenv A=b \
    --workspace user --copy-in --export - --patch --timeout 1s --grace --report-fd 2 --quiet \
    --uid-range --json =";

/// xorshift64: the words of a fuzz run, again and again the same from one seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    /// A word of the command line's own, or random bytes, or both.
    fn word(&mut self) -> Vec<u8> {
        let known: Vec<&str> = KNOWN.split(' ').collect();
        let mut word = Vec::new();
        if self.below(4) > 0 {
            word.extend(known[self.below(known.len())].as_bytes());
        }
        if self.below(3) == 0 {
            let length = self.below(12);
            word.extend((0..length).map(|_| 1 + self.below(255) as u8));
        }
        word
    }
}

#[test]
fn random_words_never_panic_or_hang() {
    use std::os::unix::ffi::OsStringExt;
    let lab = Lab::new();
    let seed = u64::from(std::process::id()) << 20 | 0x9e37_79b9;
    let mut random = Random(seed);
    let (start, mut runs) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(8) && runs < 600 {
        runs += 1;
        let count = random.below(9);
        let line: Vec<std::ffi::OsString> = (0..count).map(|_| std::ffi::OsString::from_vec(random.word())).collect();
        let mut command = Command::new(lab.path("oubliette"));
        command.args(&line).env_clear().env("PATH", "/usr/bin:/bin").env("XDG_RUNTIME_DIR", lab.path("mine"));
        command.env("XDG_STATE_HOME", lab.path("mine")).current_dir(lab.path("mine"));
        if nix::unistd::geteuid().is_root() {
            command.uid(lab.uid).gid(lab.uid);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if begun.elapsed() < Duration::from_secs(30) => std::thread::sleep(Duration::from_millis(1)),
                None => {
                    let _ = child.kill();
                    panic!("seed {seed}: {line:?} hangs");
                }
            }
        };
        let mut text = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut text).unwrap_or_default();
        let code = status.code().unwrap_or(101);
        assert!(
            !text.contains("panicked") && ![101, 134, 139].contains(&code),
            "seed {seed}: {line:?}: {status} {text}"
        );
    }
    assert!(runs > 20, "{runs} runs");
    assert_eq!(lab.left(), Vec::<String>::new());
}
