//! The real Claude Code in each environment: the same use cases as in the README's table, led by the scripted model. What
//! comes of one may differ from that table where the environment lacks a layer; every difference stands here.

use std::path::Path;

use super::sandbox::{Kind, PLAIN, Sandbox, Scratch, Session};
use crate::model::{Call, DONE, Model};
use crate::need;
use crate::real_agent;
use crate::real_agent::cases::{self, Around, Case, Marks};
use crate::real_agent::run::LEVELS;
use crate::real_agent::table::{BEGIN, CHAT, END, SERVER, Table};
use crate::real_agent::turns;

/// The script's directory in the sandbox.
const S: &str = "/tmp/real-agent-scratch";

/// Where the agent is led, and what must come of it.
struct Led {
    kind: Kind,
    uid: u32,
    around: Around,
    levels: &'static [usize],
    /// Rows that are not as in the README, and what they are.
    differs: &'static [Row],
}

type Row = (&'static str, [&'static str; 3]);

impl Led {
    fn check(&self) {
        let sandbox = Sandbox { kind: self.kind, uid: self.uid, host_network: true };
        if !need::as_root() || !sandbox.there() {
            return;
        }
        let Some(claude) = real_agent::claude() else { return };
        self.lead(&sandbox, &claude, "broker", self.levels);
        // Where the agent holds its credential itself.
        self.lead(&sandbox, &claude, "host", &[1]);
    }

    fn lead(&self, sandbox: &Sandbox, claude: &Path, network: &str, levels: &[usize]) {
        let token = format!("sk-ant-api03-{:032x}", rand::random::<u128>());
        let scratch = scratch(&token);
        let secret = |what: &str| format!("{what}-{:032x}", rand::random::<u128>());
        let (mark, launcher) = (secret("neighbour"), secret("launcher"));
        let claude = claude.display().to_string();
        let mut session =
            sandbox.start(&scratch, &[("S", S), ("CLAUDE", &claude), ("NETWORK", network)], &["sh", "/mnt/agent.sh"]);
        // Not by a variable: under gVisor everybody reads those of the script.
        session.tell(&format!("{launcher} {}", if self.around.neighbour { &mark } else { "" }));
        let marks = marks(&session.hear()["neighbour"], mark, launcher);
        let mut table = Table::default();
        for &level in levels {
            self.play(&mut session, level, &marks, &token, &mut table);
            if self.around.neighbour {
                self.turns(&mut session, level, &mut table);
            }
        }
        assert_eq!(session.end()["left"], "", "cells are left");
        assert!(table.wrong.is_empty(), "{}", table.wrong);
        let readme = std::fs::read_to_string(need::root().join("README.md")).unwrap();
        let rows = readme.split_once(BEGIN).unwrap().1.split_once(END).unwrap().0.lines().skip(2);
        for row in rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect::<Vec<&str>>()) {
            let differs = self.differs.iter().find(|(name, _)| *name == row[0]);
            for &level in levels {
                let expected = differs.map_or(row[level + 1], |(_, cells)| cells[level]);
                assert_eq!(table.cell(row[0], level), expected, "{:?} {}: {}", self.kind, LEVELS[level], row[0]);
            }
        }
    }

    /// Two turns in one cell.
    fn turns(&self, session: &mut Session, level: usize, table: &mut Table) {
        let model = turns::model(self.around);
        session.tell(&format!("{} {} {}", LEVELS[level], model.url(), turns::COMMAND));
        let said = session.hear();
        let requests = model.requests();
        let verdict = turns::verdict(&model.finish(), &requests, &said["said"]);
        assert_eq!((said["status"].as_str(), said["complaints"].as_str()), ("0\n", ""), "{verdict:?}");
        table.add(turns::ROW, level, verdict, self.kind);
    }

    /// All calls of a level, in one run of the agent.
    fn play(&self, session: &mut Session, level: usize, marks: &Marks, token: &str, table: &mut Table) {
        let cases = cases::cases(level, marks, self.around);
        let model = Model::start(cases.iter().map(Case::call).collect::<Vec<Call>>());
        session.tell(&format!("{} {}", LEVELS[level], model.url()));
        let said = session.hear();
        let keys: Vec<_> = model.requests().into_iter().map(|request| request.x_api_key).collect();
        assert!(!keys.is_empty() && keys.iter().all(|key| key.as_deref() == Some(token)), "{keys:?}");
        let answers = model.finish();
        assert_eq!((said["status"].as_str(), said["said"].trim()), ("0\n", DONE), "{said:?}\n{:#?}", answers.last());
        assert_eq!(said["complaints"], "", "{}", LEVELS[level]);
        assert_eq!(answers.len(), cases.len(), "{said:?}\n{:#?}", answers.last());
        table.add(CHAT, level, Ok("works"), self.kind);
        for (case, answer) in cases.iter().zip(&answers) {
            table.add(case.row, level, cases::verdict(case, level, answer, marks), self.kind);
        }
        let exported = (said["written"].as_str(), said["settings"].as_str());
        assert_eq!(exported, (cases::PROGRAM, ""), "the exported files; {}", table.wrong);
    }
}

/// With the credential, the caller's MCP server, and the script.
fn scratch(token: &str) -> Scratch {
    let scratch = Scratch::new();
    scratch.file("agent.sh", include_bytes!("agent.sh"));
    scratch.file("token", token.as_bytes());
    scratch.file("server.py", SERVER.as_bytes());
    let server = serde_json::json!({"command": "/usr/bin/python3", "args": [format!("{S}/server.py")]});
    scratch.file("servers.json", serde_json::json!({"mcpServers": {"sum": server}}).to_string().as_bytes());
    scratch
}

/// What the script says of the neighbour: the PID of its launcher, and the one cell that there is.
fn marks(said: &str, neighbour: String, launcher: String) -> Marks {
    let lines: Vec<&str> = said.lines().collect();
    let (pid, path) = match lines[..] {
        [pid, path] => (pid.parse().unwrap(), path.to_owned()),
        [] => (0, String::new()),
        _ => panic!("{said}"),
    };
    Marks { neighbour, path, pid, launcher }
}

const ALL: &[usize] = &[0, 1, 2];

/// Landlock in place of a root of the cell's own: /proc is the host's, so no program finds itself in it, and what the
/// cell does not show is refused instead of missing.
const SHUT: &[Row] = &[
    ("`ps`", ["denied", "kernel refuses", "kernel refuses"]),
    ("`df`, `free`, `uptime`", ["denied", "kernel refuses, works", "kernel refuses, works"]),
    ("`ps aux`, `top`", ["denied", "denied", "kernel refuses"]),
    ("`ls /`", ["denied", "denied", "kernel refuses"]),
    ("another cell, by its path", ["denied", "denied", "denied, kernel refuses"]),
    ("`ls /tmp`", ["denied", "denied", "denied"]),
];

/// The same where the only place for cells is /tmp.
const SHUT_IN_TMP: &[Row] =
    &[SHUT[0], SHUT[1], SHUT[2], SHUT[3], SHUT[4], ("`ls /tmp`", ["denied", "denied", "kernel refuses"])];

#[test]
fn the_real_agent_without_user_namespaces() {
    let around = Around { root: false, landlock: true, tmp: false, neighbour: true };
    Led { kind: Kind::NoUserNamespaces, uid: PLAIN, around, levels: ALL, differs: SHUT }.check();
}

#[test]
fn the_real_agent_without_landlock() {
    let around = Around { landlock: false, ..Around::LINUX };
    Led { kind: Kind::NoLandlock, uid: PLAIN, around, levels: ALL, differs: &[] }.check();
}

#[test]
fn the_real_agent_in_a_container() {
    let around = Around { root: false, landlock: true, tmp: true, neighbour: true };
    for uid in [0, PLAIN] {
        Led { kind: Kind::Container, uid, around, levels: ALL, differs: SHUT_IN_TMP }.check();
    }
}

/// One level: each call takes a second there. What a neighbour's cell shows is asked by `checks.sh`, and a plain user has
/// none beside his own.
#[test]
fn the_real_agent_under_gvisor() {
    let around = Around { root: false, landlock: false, tmp: false, neighbour: false };
    let differs = &[
        ("a second turn (`--continue`)", ["–"; 3]),
        ("`ps`", ["denied", "kernel refuses", "kernel refuses"]),
        ("another cell, by its path", ["–"; 3]),
        ("`/proc/*/environ`", ["–"; 3]),
        ("the same from a `python3` program", ["–"; 3]),
    ];
    for uid in [0, PLAIN] {
        Led { kind: Kind::Gvisor, uid, around, levels: &[1], differs }.check();
    }
}
