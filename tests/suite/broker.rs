//! The broker: a hostile client in a real cell, an upstream on this machine, and what each of them got to see.

pub mod agent; // the real agent works through it, and the credential is nowhere in its cell
mod chunks; // bodies whose length is not told before, and what is no such body
mod egress; // what is reached beside the API, and by whom
mod end; // a run whose broker ends is a failure, and leaves nothing
mod endpoints; // the same at Bedrock and Vertex AI
mod executed; // it is no fork: another file, other addresses, no memory of the launcher's
mod flow; // bodies pass part by part, both ways; an upstream that is down, slow or strange
pub mod frames; // an upstream that speaks WebSocket
mod hostile; // what is not sent on: wrong phantoms, smuggled requests, floods
mod planned;
mod sockets; // WebSockets to the upstream, for agents whose file says so
pub mod tap; // what passes on the loopback of a cell
mod tiers; // without a network of the cell's own: what is reached, and by whom
pub mod upstream; // servers on 127.0.0.1 that write down what they get, and TLS in front of any

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::need::{self, need_program};
use crate::stage::{Done, Running, Stage, Who, descendants, output, wait_for};

/// A client of no particular API: it gets its credential and its base URL as an agent does.
const AGENT: &str = r#"
title = "a client"
commands = ["client"]

[[credential.way]]
prefix = "bearer-"
descriptor = "CLIENT_FD"
header = "authorization"
scheme = "Bearer"

[[credential.way]]
descriptor = "CLIENT_FD"
header = "x-api-key"
phantom = "ph-"

[environment]
base-url = "CLIENT_URL"
"#;

/// What each client's script begins with.
const CLIENT: &str = r#"
import http.client, os, socket, sys
KEY = os.read(3, 4096).decode()
HOST, PORT = os.environ["CLIENT_URL"].removeprefix("http://").split(":")

def connect():
    return socket.create_connection((HOST, int(PORT)), 60)

def head(line="POST /v1/x HTTP/1.1", *more, key=None):
    """A good head, with more headers."""
    lines = [line, f"Host: {HOST}:{PORT}", f"x-api-key: {KEY if key is None else key}", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()

def answer(connection, method="POST"):
    got = http.client.HTTPResponse(connection, method=method)
    got.begin()
    return got

def ask(*more, line="POST /v1/x HTTP/1.1", key=None, body=b"hello"):
    """One request on a connection of its own."""
    connection = connect()
    connection.sendall(head(line, f"Content-Length: {len(body)}", *more, key=key) + body)
    got = answer(connection)
    return got, got.read().decode("latin-1")

def say(*words):
    print(*words, flush=True)
"#;

/// A service with one credential, whose clients have a phantom.
struct Service {
    stage: Stage,
    who: Who,
    token: String,
    file: PathBuf,
    policies: PathBuf,
}

impl Service {
    /// Nothing, and the reason said aloud, where this host has no network namespaces or no Python for the client.
    fn new(who: Who) -> Option<Service> {
        Service::with(who, &format!("sk-real-{:032x}", rand::random::<u128>()))
    }

    fn with(who: Who, token: &str) -> Option<Service> {
        let service = Service::made(who, token)?;
        let mut explain = service.stage.command(who, &[]);
        explain.arg("explain").arg("--state-dir").arg(service.stage.state(who));
        let explained = output(explain.args(["--json", "--network", "none", "--", "true"]));
        let plan: Value = serde_json::from_str(&explained.out).unwrap_or_else(|_| panic!("a plan: {explained:?}"));
        let layers = plan["plan"]["layers"].as_array().unwrap();
        let net = layers.iter().any(|layer| layer["layer"] == "net" && layer["decision"] == "enforce");
        need::need("network namespaces", net).then_some(service)
    }

    /// The same on every host.
    fn anywhere(who: Who) -> Option<Service> {
        Service::made(who, &format!("sk-real-{:032x}", rand::random::<u128>()))
    }

    fn made(who: Who, token: &str) -> Option<Service> {
        need_program("python3")?;
        let stage = Stage::new();
        let policies = stage.path().join("policies");
        fs::create_dir_all(policies.join("agents")).unwrap();
        fs::write(policies.join("agents/client.toml"), AGENT).unwrap();
        let file = stage.private_file(who, "token", &format!("{token}\n"));
        Some(Service { stage, who, token: token.to_owned(), file, policies })
    }

    /// `oubliette run` with everything but the upstream and the command.
    fn bare(&self) -> Command {
        let mut command = self.stage.run(self.who, &[]);
        command.args([
            "--quiet",
            "--level",
            "developer",
            "--agent",
            "client",
            "--network",
            "broker",
            "--timeout",
            "5m",
        ]);
        command.args(["--report-fd", "2", "--policy-dir"]).arg(&self.policies);
        command.arg("--credential-file").arg(&self.file);
        command
    }

    /// The same with an upstream that needs no TLS; a script is to follow.
    fn run(&self, upstream: SocketAddr) -> Command {
        let mut command = self.bare();
        command.arg("--upstream").arg(format!("http://{upstream}"));
        command
    }

    /// A client with this script, to its end.
    fn play(&self, upstream: SocketAddr, script: &str) -> Done {
        output(client(&mut self.run(upstream), script))
    }

    /// The same, while the test looks on. Standard input is open until the end is waited for.
    fn start(&self, upstream: SocketAddr, script: &str) -> Running {
        Running::start(client(&mut self.run(upstream), script).stdin(Stdio::piped()))
    }

    /// A level with one more line for its network.
    fn network(&self, line: &str) -> PathBuf {
        self.stage.policy(&[], Some(&format!("[network]\nmode = \"broker\"\n{line}")))
    }
}

/// Adds a client with this script as the command.
fn client<'a>(command: &'a mut Command, script: &str) -> &'a mut Command {
    command.args(["--", "python3", "-c", &format!("{CLIENT}\n{script}")])
}

/// Whoever this test can be.
fn everybody() -> Vec<Who> {
    if need::as_root() { vec![Who::Root, Who::User] } else { vec![Who::User] }
}

/// Whoever this test can be, one of them.
fn somebody() -> Who {
    everybody()[0]
}

/// The report of a run that went well.
fn report(done: &Done) -> Value {
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    said(done)
}

/// The report of any run: the last line that is one.
fn said(done: &Done) -> Value {
    let mut lines = done.err.lines().rev();
    lines.find_map(|line| serde_json::from_str(line).ok()).unwrap_or_else(|| panic!("a report: {done:?}"))
}

/// The process of a run's broker, once it is there.
fn broker(running: &Running) -> i32 {
    wait_for("the broker's process", || {
        let named = |pid: &i32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| text.starts_with(b"oubliette-broker"))
        };
        descendants(running.pid()).into_iter().find(named)
    })
}
