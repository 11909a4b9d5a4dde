//! Use case × level × launcher: every call is made by the real agent in a real cell.
//! `cargo test --test suite use_case_table -- --nocapture` prints it.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::Value;

use super::cases::{self, Around, Case, Marks};
use super::run::{LAUNCHERS, LEVELS, Launcher, Seen, Stage, output, play};
use super::turns;
use crate::model::{Call, DONE, Model};
use crate::need;

/// A server of the Model Context Protocol that adds two numbers.
pub const SERVER: &str = r#"
import json, sys
def reply(id, result):
    print(json.dumps({"jsonrpc": "2.0", "id": id, "result": result}), flush=True)
numbers = {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}}
for line in sys.stdin:
    message = json.loads(line)
    method, id = message.get("method"), message.get("id")
    if method == "initialize":
        version = message["params"]["protocolVersion"]
        reply(id, {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": {"name": "sum", "version": "1"}})
    elif method == "tools/list":
        reply(id, {"tools": [{"name": "add", "description": "adds", "inputSchema": numbers}]})
    elif method == "tools/call":
        given = message["params"]["arguments"]
        reply(id, {"content": [{"type": "text", "text": f"{given['a'] + given['b']} says the server"}]})
    elif id is not None:
        reply(id, {})
"#;

/// Another user's cell that lives while the agent is led, and waits on its standard input.
pub struct Neighbour {
    child: Child,
    stdin: Option<ChildStdin>,
    pub marks: Marks,
}

impl Neighbour {
    pub fn start(stage: &Stage) -> Neighbour {
        let mark = format!("neighbour-{:032x}", rand::random::<u128>());
        let mut command = stage.oubliette();
        command.args(["run", "-q", "--user", "bob", "--setenv", &format!("MARK={mark}"), "--", "sh", "-c"]);
        command.args(["echo $0 >~/secret; echo $0 >secret; echo $0 >/tmp/secret; echo ready; read end", &mark]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a neighbour");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n", "the neighbour has written its secrets");
        let cells = output(stage.oubliette().args(["ps", "--json"]));
        let cells: Value = serde_json::from_slice(&cells.stdout).expect("cells in JSON");
        let cell = cells[0]["cell"].as_str().unwrap_or_else(|| panic!("one live cell: {cells}"));
        let path = stage.state().join("cells").join(cell);
        assert!(path.is_dir(), "{}", path.display());
        let launcher = format!("launcher-{:032x}", rand::random::<u128>());
        let marks = Marks { neighbour: mark, path: path.display().to_string(), pid: child.id(), launcher };
        Neighbour { stdin: child.stdin.take(), child, marks }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // It ends at a line. If it is dead already the test has said so.
        let _ = self.stdin.take().map(|mut stdin| stdin.write_all(b"end\n"));
        let _ = self.child.wait();
    }
}

/// The caller's MCP servers, as options.
pub fn servers(stage: &Stage) -> [String; 2] {
    let script = stage.write("server.py", SERVER);
    let servers = serde_json::json!({"mcpServers": {"sum": {"command": "/usr/bin/python3", "args": [script]}}});
    // The server's user is the agent's, who reads the script as what it is: a file that the caller shows.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(script, open).expect("a mode");
    ["--mcp-config".into(), stage.write("servers.json", &servers.to_string()).display().to_string()]
}

/// The calls of a level, played in one run, and each with what came of it.
pub struct Played {
    pub seen: Seen,
    pub rows: Vec<(&'static str, Result<&'static str, String>)>,
}

/// Plays all calls of a level; `prepare` may add to the launcher and to the options.
pub fn play_cases(
    stage: &Stage,
    level: usize,
    neighbour: &Neighbour,
    options: &[String],
    prepare: impl FnOnce(&mut Command),
) -> Played {
    let cases = cases::cases(level, &neighbour.marks, Around::LINUX);
    let model = Model::start(cases.iter().map(Case::call).collect::<Vec<Call>>());
    let mut all: Vec<String> = servers(stage).into();
    all.extend_from_slice(options);
    let mut command = stage.claude(LEVELS[level], &model, &all, &["-p", "do as the script says"]);
    command.env("LAUNCHER_ONLY", &neighbour.marks.launcher);
    prepare(&mut command);
    let seen = play(command, model);
    assert_eq!(seen.answers.len(), cases.len(), "{}\n{}\n{:#?}", seen.stdout, seen.stderr, seen.answers.last());
    let verdict = |(case, answer)| cases::verdict(case, level, answer, &neighbour.marks);
    let rows = cases.iter().zip(&seen.answers).map(|pair| (pair.0.row, verdict(pair))).collect();
    Played { seen, rows }
}

/// Rows in their order, and in each the verdicts of every level.
#[derive(Default)]
pub struct Table {
    order: Vec<&'static str>,
    cells: BTreeMap<(&'static str, usize), Vec<&'static str>>,
    /// What is not as its case says.
    pub wrong: String,
}

impl Table {
    /// One more verdict of a row; `who` saw it.
    pub fn add(&mut self, row: &'static str, level: usize, verdict: Result<&'static str, String>, who: impl Debug) {
        if !self.order.contains(&row) {
            self.order.push(row);
        }
        match verdict {
            Ok(verdict) => {
                let cell = self.cells.entry((row, level)).or_default();
                if !cell.contains(&verdict) {
                    cell.push(verdict);
                }
            }
            Err(why) => drop(writeln!(self.wrong, "{who:?} {}: {row}: {why}", LEVELS[level])),
        }
    }

    /// What a row says of a level.
    pub fn cell(&self, row: &str, level: usize) -> String {
        let seen = self.cells.iter().find(|((name, at), _)| *name == row && *at == level);
        seen.map_or("–".to_owned(), |(_, verdicts)| verdicts.join(", "))
    }

    /// As it stands in the README.
    pub fn text(&self) -> String {
        let mut text = String::from("| | paranoid | balanced | developer |\n|---|---|---|---|\n");
        for row in &self.order {
            let cell = |level| self.cell(row, level);
            let _ = writeln!(text, "| {row} | {} | {} | {} |", cell(0), cell(1), cell(2));
        }
        text
    }
}

fn fill(table: &mut Table, launcher: Launcher) -> Option<()> {
    let stage = Stage::new(launcher)?;
    let neighbour = Neighbour::start(&stage);
    for (level, name) in LEVELS.into_iter().enumerate() {
        let out = stage.own().join(format!("out-{name}"));
        let export = ["--export".to_owned(), out.display().to_string()];
        let played = play_cases(&stage, level, &neighbour, &export, |_| ());
        assert_eq!((played.seen.status, played.seen.stdout.trim()), (Some(0), DONE), "{}", played.seen.stderr);
        assert_eq!(played.seen.complaints(), "", "{launcher:?} {name}");
        table.add(CHAT, level, Ok("works"), launcher);
        table.add(turns::ROW, level, turns::second_turn(&stage, name), launcher);
        played.rows.into_iter().for_each(|(row, verdict)| table.add(row, level, verdict, launcher));
        let written = fs::read_to_string(out.join("main.py")).expect("the file that the agent wrote");
        assert_eq!(written, cases::PROGRAM, "{launcher:?} {name}: the exported file");
        assert!(!out.join(".claude").exists() && !out.join(".mcp.json").exists());
    }
    Some(())
}

pub const CHAT: &str = "chat";
pub const BEGIN: &str = "<!-- use-cases:begin -->\n";
pub const END: &str = "<!-- use-cases:end -->";

#[test]
fn use_case_table() {
    let mut table = Table::default();
    let launchers = LAUNCHERS.map(|launcher| fill(&mut table, launcher)).into_iter().flatten().count();
    if launchers == 0 {
        return;
    }
    let text = table.text();
    println!("{text}");
    assert!(table.wrong.is_empty(), "{}", table.wrong);
    let path = need::root().join("README.md");
    let readme = fs::read_to_string(&path).expect("README.md");
    let (before, rest) = readme.split_once(BEGIN).expect("where the table begins");
    let (_, after) = rest.split_once(END).expect("where the table ends");
    let expected = format!("{before}{BEGIN}{text}{END}{after}");
    if std::env::var_os("OUBLIETTE_BLESS").is_some_and(|value| value == "1") {
        fs::write(&path, expected).expect("README.md");
    } else {
        assert!(readme == expected, "README.md has another table; OUBLIETTE_BLESS=1 writes this one:\n{text}");
    }
}
