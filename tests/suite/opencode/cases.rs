//! The calls of the table, and what must come of each at each level.

use serde_json::json;

use super::shell;
use crate::real_agent::cases::Like::{Test, Text};
use crate::real_agent::cases::Want::{Denied, Kernel, Own, Works};
use crate::real_agent::cases::{
    Case, DEBUGGER, Marks, PROGRAM, SNOOP, Want, call, not_chowned, nothing_there, own_root,
};

/// A command, which paranoid does not have.
fn command(row: &'static str, command: &str, [balanced, developer]: [Want; 2]) -> Case {
    call(row, "bash", shell(command), [Denied, balanced, developer])
}

fn both(row: &'static str, line: &str, want: Want) -> Case {
    command(row, line, [want; 2])
}

/// Every call, in the order in which it is played.
pub fn cases(marks: &Marks) -> Vec<Case> {
    [code(), commands(), programs(), listings(), neighbours(marks), files(), privilege()]
        .into_iter()
        .flatten()
        .collect()
}

fn write(row: &'static str, path: &str, content: &str, want: [Want; 3]) -> Case {
    call(row, "write", json!({"filePath": path, "content": content}), want)
}

const CODE: &str = "write and edit code";
const SEARCH: &str = "read and search files";

fn code() -> Vec<Case> {
    let draft = PROGRAM.replace("hello {name}", "hullo {name}");
    let edit = json!({"filePath": "main.py", "oldString": "hullo", "newString": "hello"});
    let works = |text| [Works(Text(text)); 3];
    vec![
        write(CODE, "main.py", &draft, works("Wrote file successfully")),
        call(CODE, "edit", edit, works("Edit applied successfully")),
        call(SEARCH, "read", json!({"filePath": "main.py"}), works("return f")),
        call(SEARCH, "read", json!({"filePath": "."}), works("main.py")),
        call(SEARCH, "grep", json!({"pattern": "def greet"}), works("greet(name)")),
        call(SEARCH, "glob", json!({"pattern": "**/*.py"}), works("main.py")),
    ]
}

fn commands() -> Vec<Case> {
    const FILES: &str = "`cp`, `mv`, `rm`";
    const GIT: &str = "`git init`, `add`, `commit`";
    const REDIRECT: &str = "redirect a command's output to a file";
    vec![
        both(FILES, "cp main.py b.py", Works(Test(quiet))),
        both(FILES, "mv b.py c.py && ls", Works(Test(|text| text.contains("c.py") && !text.contains("b.py")))),
        both(FILES, "rm c.py && ls", Works(Test(|text| text.contains("main.py") && !text.contains("c.py")))),
        both(GIT, "git init -q .", Works(Test(quiet))),
        both(GIT, "git add main.py && git commit -qm first", Works(Test(quiet))),
        both(GIT, "git log --oneline -1", Works(Text("first"))),
        both("`python3`", "python3 main.py", Works(Text("hello cell"))),
        command(REDIRECT, "echo redirected >out.txt; cat out.txt", [Works(Text("redirected")); 2]),
    ]
}

fn programs() -> Vec<Case> {
    const MONITOR: &str = "`df`, `free`, `uptime`";
    const DEBUG: &str = "debug a process of its own";
    let sum = json!({"a": 20, "b": 22});
    vec![
        call("an MCP server that the caller names", "sum_add", sum, [Works(Text("42 says the server")); 3]),
        both("`ps`", "ps", Works(Text("ps"))),
        both(MONITOR, "df", Works(Text("Filesystem"))),
        both(MONITOR, "free", Works(Text("Mem:"))),
        both(MONITOR, "uptime", Works(Text("load average"))),
        write(CODE, "debugger.py", DEBUGGER, [Works(Text("Wrote file")); 3]),
        command(DEBUG, "python3 debugger.py", [Kernel(Text("Operation not permitted")), Works(Text("stopped"))]),
    ]
}

fn listings() -> Vec<Case> {
    const PROCESSES: &str = "`ps aux`, `top`";
    const OUT: &str = "list what is outside of the workspace by a tool";
    let glob = |path: &str| call(OUT, "glob", json!({"pattern": "*", "path": path}), [Denied; 3]);
    let own = |test| [Denied, Own(Test(test))];
    vec![
        command(PROCESSES, "ps aux", own(|text| text.contains("agent") && text.lines().count() < 30)),
        command(PROCESSES, "top -bn1", own(|text| text.contains("agent") && text.lines().count() < 30)),
        command("`ls /`", "ls /", own(own_root)),
        command("`ls /tmp`", "ls /tmp", own(|text| !text.contains("secret"))),
        call(OUT, "read", json!({"filePath": "/"}), [Denied; 3]),
        glob("/etc"),
        glob(".."),
        call(OUT, "grep", json!({"pattern": "root", "path": "/etc"}), [Denied; 3]),
    ]
}

fn neighbours(marks: &Marks) -> Vec<Case> {
    const CELLS: &str = "another cell, by its path";
    const ENVIRON: &str = "`/proc/*/environ`";
    let path = &marks.path;
    let script = SNOOP.replace("PATH", &format!("{path:?}")).replace("PID", &marks.pid.to_string());
    let read = |row, path: String| call(row, "read", json!({ "filePath": path }), [Denied; 3]);
    vec![
        read(CELLS, format!("{path}/home/secret")),
        read(CELLS, format!("{path}/work/secret")),
        both(CELLS, &format!("cat {path}/home/secret"), Denied),
        both(CELLS, &format!("ls {path}"), Own(Text("No such file or directory"))),
        read(ENVIRON, "/proc/1/environ".into()),
        both(ENVIRON, "cat /proc/1/environ", Denied),
        both(ENVIRON, &format!("cat /proc/{}/environ", marks.pid), Denied),
        write(CODE, "snoop.py", &script, [Works(Text("Wrote file")); 3]),
        both("the same from a `python3` program", "python3 snoop.py", Own(Test(nothing_there))),
    ]
}

fn files() -> Vec<Case> {
    const MODES: &str = "`ln -s`, `chmod`";
    const SYSTEM: &str = "read `/etc/passwd`, write `/etc` or the agent's settings";
    const BUILD: &str = "write `Makefile`, `package.json` by the tool for files";
    let chown = command("`chown` to another user", "chown 0:0 main.py", [Denied, Kernel(Test(not_chowned))]);
    let denied = |path: &str| write(SYSTEM, path, "{}", [Denied; 3]);
    vec![
        command(MODES, "ln -s main.py link.py", [Denied, Works(Test(quiet))]),
        command(MODES, "chmod 700 main.py", [Denied, Works(Test(quiet))]),
        chown,
        call(SYSTEM, "read", json!({"filePath": "/etc/passwd"}), [Denied; 3]),
        denied("/etc/x"),
        denied("/home/agent/.config/opencode/opencode.json"),
        denied("opencode.json"),
        denied(".opencode/plugin/x.js"),
        denied("./a/../.opencode/opencode.json"),
        denied(".git/hooks/pre-commit"),
        write(BUILD, "Makefile", "all:\n", [Works(Text("Wrote file")); 3]),
        write(BUILD, "package.json", "{}", [Works(Text("Wrote file")); 3]),
    ]
}

fn privilege() -> Vec<Case> {
    const ROW: &str = "`sudo`, `su`";
    const WEB: &str = "`webfetch`, `websearch`";
    let mut cases: Vec<Case> = ["sudo id", "/usr/bin/sudo id", "bash -c 'sudo id'", "env sudo id", "su root -c id"]
        .map(|line| both(ROW, line, Denied))
        .into();
    cases.push(call(WEB, "webfetch", json!({"url": "http://127.0.0.1:1/", "format": "text"}), [Denied; 3]));
    cases.push(call(WEB, "websearch", json!({"query": "oubliette"}), [Denied; 3]));
    cases
}

/// What it says of a command that printed nothing.
fn quiet(text: &str) -> bool {
    text.contains("(no output)")
}
