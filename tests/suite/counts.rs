//! What one cell takes of what the kernel counts for everybody, and what its neighbour still gets. Two real cells at a
//! time; the greedy one holds what it has until the other has tried.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use crate::need;
use crate::stage::{Done, Running, Stage, Who, output};

/// Takes pseudo-terminals until the kernel says no, says how many, and holds them until its input ends.
const TERMINALS: &str = r#"use Fcntl; $| = 1;
    while (sysopen(my $h, "/dev/ptmx", O_RDWR | O_NOCTTY)) { push @h, $h }
    print scalar(@h), "\n"; <STDIN>;"#;

/// Fills the buffers of connections that nobody reads.
const BUFFERS: &str = r#"use IO::Socket::INET; $| = 1; $SIG{PIPE} = "IGNORE";
    my $l = IO::Socket::INET->new(LocalAddr => "127.0.0.1", Listen => 128) or die "listen: $@";
    for (1 .. 100) {
        my $c = IO::Socket::INET->new(PeerAddr => "127.0.0.1", PeerPort => $l->sockport) or last;
        my $s = $l->accept or last; $c->blocking(0); push @h, $c, $s; my $x = "x" x 65536;
        1 while defined syswrite($c, $x);
    }
    print scalar(@h), "\n"; <STDIN>;"#;

/// Sends 8 MiB through a connection of its own.
const TRANSFER: &str = r#"use IO::Socket::INET;
    my $l = IO::Socket::INET->new(LocalAddr => "127.0.0.1", Listen => 1) or die "listen: $@";
    if (!fork) {
        my $c = IO::Socket::INET->new(PeerAddr => "127.0.0.1", PeerPort => $l->sockport) or die "connect: $@";
        print $c "x" x 65536 for 1 .. 128; exit;
    }
    my $s = $l->accept; my $n = 0; while (my $got = sysread($s, my $b, 65536)) { $n += $got } print "$n\n";"#;

/// The level `developer` with these limits.
fn policy(stage: &Stage, limits: &str) -> PathBuf {
    let path = stage.policy(&[], None);
    let text = fs::read_to_string(&path).unwrap();
    let start = text.find("[limits]").unwrap();
    let end = text[start..].find("\n[").map_or(text.len(), |length| start + length);
    fs::write(&path, [&text[..start], "[limits]\n", limits, "\n", &text[end..]].concat()).unwrap();
    path
}

fn words<'a>(policy: &'a Path, program: &[&'a str]) -> Vec<&'a str> {
    [&["--quiet", "--network", "none", "--agent", "none", "--policy", policy.to_str().unwrap(), "--"], program].concat()
}

fn greedy(stage: &Stage, who: Who, policy: &Path, script: &str) -> (Running, String) {
    let mut command = stage.run(who, &[]);
    command.args(words(policy, &["perl", "-e", script])).stdin(Stdio::piped());
    let mut running = Running::start(&mut command);
    let took = running.line().trim().to_owned();
    (running, took)
}

fn neighbour(stage: &Stage, who: Who, policy: &Path, program: &[&str]) -> Done {
    output(stage.run(who, &[]).args(words(policy, program)))
}

fn everybody() -> Vec<Who> {
    if need::as_root() { vec![Who::Root, Who::User] } else { vec![Who::User] }
}

/// Without a bound of its mount an instance of devpts has what the host has, and 3,072 are soon taken.
#[test]
fn a_cell_takes_no_more_pseudo_terminals_than_its_limit() {
    for who in everybody() {
        let stage = Stage::new();
        let policy = policy(&stage, "terminals = 8");
        let (greedy, took) = greedy(&stage, who, &policy, TERMINALS);
        assert_eq!(took, "8");
        let one = neighbour(&stage, who, &policy, &["perl", "-e", TERMINALS]);
        assert_eq!((one.out.as_str(), one.status.code()), ("8\n", Some(0)), "{one:?}");
        assert_eq!(greedy.end().status.code(), Some(0));
    }
}

/// The file of the running cell's own memory group.
fn group(stage: &Stage, plan: &Value, file: &str) -> Option<PathBuf> {
    let parent = plan["cgroup"]["v1"]["memory"].as_str()?;
    let cell = stage.cells(Who::Root).pop()?;
    Some(Path::new(parent).join(format!("oubliette-{}", cell.file_name()?.to_str()?)).join(file))
}

fn number(path: &Path) -> u64 {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().parse().unwrap()
}

/// Version 1 counts buffers of sockets by themselves; unbounded, one cell's take what net.ipv4.tcp_mem has for the host.
#[test]
fn a_cell_takes_no_more_socket_buffers_than_its_limit() {
    if !need::as_root() {
        return;
    }
    let stage = Stage::new();
    let policy = policy(&stage, "memory = \"64MiB\"");
    let explained =
        output(stage.command(Who::Root, &[]).arg("explain").arg("--json").args(&words(&policy, &["true"])[1..]));
    let said: Value = serde_json::from_str(&explained.out).unwrap_or_else(|error| panic!("{error}: {explained:?}"));
    let plan = &said["plan"];
    if !need::need("cgroup v1 with socket buffers", plan["limits"]["socket-buffers"] == "16MiB") {
        return;
    }
    assert_eq!(plan["limits"]["swap"], true, "{plan}");
    let (greedy, took) = greedy(&stage, Who::Root, &policy, BUFFERS);
    assert!(took.parse::<u32>().unwrap() >= 20, "{took} sockets");
    let usage = number(&group(&stage, plan, "memory.kmem.tcp.usage_in_bytes").unwrap());
    // Each socket keeps its minimum beyond that; unbounded, they took 379 MiB.
    assert!((1 << 20..=40 << 20).contains(&usage), "{usage} bytes");
    let both = number(&group(&stage, plan, "memory.memsw.limit_in_bytes").unwrap());
    assert_eq!(both, 64 << 20, "memory and swap together");
    let one = neighbour(&stage, Who::Root, &policy, &["perl", "-e", TRANSFER]);
    assert_eq!(one.out, format!("{}\n", 8 << 20), "{one:?}");
    assert_eq!(greedy.end().status.code(), Some(0));
}

/// Files of a tmpfs are memory of whoever wrote them, and end with him.
#[test]
fn a_cell_that_fills_its_tmpfs_leaves_its_neighbours_memory() {
    if !need::as_root() {
        return;
    }
    let stage = Stage::new();
    let policy = policy(&stage, "memory = \"64MiB\"\ndisk = \"1GiB\"");
    let fill = ["sh", "-c", "head -c 200M /dev/zero >/dev/shm/a; head -c 200M /dev/zero >/tmp/b; echo survived"];
    let greedy = neighbour(&stage, Who::Root, &policy, &fill);
    assert!(!greedy.out.contains("survived") || greedy.err.contains("write error"), "{greedy:?}");
    let one = neighbour(&stage, Who::Root, &policy, &["sh", "-c", "head -c 30M /dev/zero >/dev/shm/a && echo has"]);
    assert_eq!(one.out, "has\n", "{one:?}");
}

/// What no count of the cell's holds is in the plan, in the text and in the report.
#[test]
fn what_nothing_counts_for_the_cell_is_named() {
    let stage = Stage::new();
    let policy = stage.policy(&["root", "pid", "landlock-fs", "cgroup", "uid"], None);
    let words = ["--network", "host", "--agent", "none", "--policy", policy.to_str().unwrap(), "--", "true"];
    let text = output(stage.command(Who::User, &[]).arg("explain").args(words)).out;
    let wanted = ["memory: ", "pseudo-terminals: ", "socket buffers: ", "inotify, epoll, ", "ports, connections: "];
    for what in wanted {
        assert!(text.contains(&format!("  uncounted   {what}")), "{what}: {text}");
    }
    let run = output(
        stage
            .command(Who::User, &["sh", "-c", "exec 3>&1 >/dev/null; exec \"$@\"", "sh"])
            .args(["run", "--quiet", "--report-fd", "3", "--state-dir"])
            .arg(stage.state(Who::User))
            .args(words),
    );
    let report: Value = serde_json::from_str(&run.out).unwrap_or_else(|error| panic!("{error}: {run:?}"));
    let named: Vec<&str> =
        report["uncounted"].as_array().unwrap().iter().map(|one| one["what"].as_str().unwrap()).collect();
    assert!(
        wanted.iter().all(|what| named.iter().any(|one| one.starts_with(what.trim_end_matches([':', ' ', ','])))),
        "{named:?}"
    );
}
