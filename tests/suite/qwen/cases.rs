//! The calls of the table, and what must come of each at each level.

use serde_json::json;

use crate::real_agent::cases::Like::{Test, Text};
use crate::real_agent::cases::Want::{Denied, Kernel, Own, Works};
use crate::real_agent::cases::{
    Case, DEBUGGER, Marks, PROGRAM, SNOOP, Want, call, not_chowned, nothing_there, own_root,
};

/// Gives the agent the time to read: what a command writes right before its end it loses now and then.
pub const WAIT: &str = "python3 -c 'import time; time.sleep(0.3)'";

/// A command whose output counts.
fn command(row: &'static str, line: &str, want: [Want; 2]) -> Case {
    silent(row, &format!("{line}; {WAIT}"), want)
}

/// A command that writes nothing. Paranoid has none.
fn silent(row: &'static str, command: &str, [balanced, developer]: [Want; 2]) -> Case {
    let input = json!({"command": command, "is_background": false});
    call(row, "run_shell_command", input, [Denied, balanced, developer])
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
    call(row, "write_file", json!({"file_path": path, "content": content}), want)
}

const CODE: &str = "write and edit code";
const SEARCH: &str = "read and search files";

fn code() -> Vec<Case> {
    let draft = PROGRAM.replace("hello {name}", "hullo {name}");
    let edit = json!({"file_path": "/work/main.py", "old_string": "hullo", "new_string": "hello"});
    let works = |text| [Works(Text(text)); 3];
    vec![
        write(CODE, "/work/main.py", &draft, works("Successfully created")),
        call(CODE, "edit", edit, works("has been updated")),
        call(SEARCH, "read_file", json!({"file_path": "/work/main.py"}), works("return f")),
        call(SEARCH, "list_directory", json!({"path": "/work"}), works("main.py")),
        call(SEARCH, "grep_search", json!({"pattern": "def greet"}), works("greet(name)")),
    ]
}

fn commands() -> Vec<Case> {
    const FILES: &str = "`cp`, `mv`, `rm`";
    const GIT: &str = "`git init`, `add`, `commit`";
    const SUBSTITUTE: &str = "a command in `$( )` of a listed one";
    vec![
        silent(FILES, "cp main.py b.py", [Works(Test(quiet)); 2]),
        both(
            FILES,
            "mv b.py c.py && ls",
            Works(Test(|text| shown(text).contains("c.py") && !shown(text).contains("b.py"))),
        ),
        both(
            FILES,
            "rm c.py && ls",
            Works(Test(|text| shown(text).contains("main.py") && !shown(text).contains("c.py"))),
        ),
        silent(GIT, "git init -q .", [Works(Test(quiet)); 2]),
        silent(GIT, "git add main.py && git commit -qm first", [Works(Test(quiet)); 2]),
        both(GIT, "git log --oneline -1", Works(Text("first"))),
        both("`python3`", "python3 main.py", Works(Text("hello cell"))),
        both(
            "redirect a command's output to a file",
            "echo redirected >out.txt; cat out.txt",
            Works(Test(|text| shown(text).contains("redirected"))),
        ),
        command("a command that is not listed", "ls; hostname", [Denied, Works(Text("cell"))]),
        both(SUBSTITUTE, "echo in-$(hostname)", Works(Text("in-cell"))),
    ]
}

fn programs() -> Vec<Case> {
    const MONITOR: &str = "`df`, `free`, `uptime`";
    const DEBUG: &str = "debug a process of its own";
    vec![
        both("`ps`", "ps", Works(Text("ps"))),
        both(MONITOR, "df", Works(Text("Filesystem"))),
        both(MONITOR, "free", Works(Text("Mem:"))),
        both(MONITOR, "uptime", Works(Text("load average"))),
        write(CODE, "/work/debugger.py", DEBUGGER, [Works(Text("created")); 3]),
        command(DEBUG, "python3 debugger.py", [Kernel(Text("Operation not permitted")), Works(Text("stopped"))]),
    ]
}

fn listings() -> Vec<Case> {
    const PROCESSES: &str = "`ps aux`, `top`";
    const OUT: &str = "list what is outside of the workspace by a tool";
    let own = |test| [Denied, Own(Test(test))];
    let glob = |pattern: &str, own| call(OUT, "glob", json!({ "pattern": pattern }), [Denied, Denied, Own(Test(own))]);
    vec![
        command(PROCESSES, "ps aux", own(|text| text.contains("agent") && text.lines().count() < 30)),
        command(PROCESSES, "top -bn1", own(|text| text.contains("agent") && text.lines().count() < 30)),
        command("`ls /`", "ls /", own(own_root)),
        command("`ls /tmp`", "ls /tmp", own(|text| !text.contains("secret"))),
        call(OUT, "list_directory", json!({"path": "/"}), [Denied; 3]),
        call(OUT, "grep_search", json!({"pattern": "root", "path": "/etc"}), [Denied; 3]),
        glob("/etc/*", |text| text.contains("/etc/passwd") && !text.contains("shadow")),
        glob("../tmp/*", |text| !text.contains("secret")),
    ]
}

fn neighbours(marks: &Marks) -> Vec<Case> {
    const CELLS: &str = "another cell, by its path";
    const ENVIRON: &str = "`/proc/*/environ`";
    let path = &marks.path;
    // It takes an output with a NUL byte for no text.
    let script =
        SNOOP.replace("print(read.decode(\"latin-1\"))", "print(read.decode(\"latin-1\").replace(chr(0), \" \"))");
    let script = script.replace("PATH", &format!("{path:?}")).replace("PID", &marks.pid.to_string());
    let missing = Own(Text("No such file or directory"));
    let read = |row, path: String| call(row, "read_file", json!({ "file_path": path }), [Denied; 3]);
    vec![
        read(CELLS, format!("{path}/home/secret")),
        read(CELLS, format!("{path}/work/secret")),
        both(CELLS, &format!("cat {path}/home/secret"), missing),
        both(CELLS, &format!("ls {path}"), missing),
        read(ENVIRON, "/proc/1/environ".into()),
        both(ENVIRON, "cat /proc/1/environ", Denied),
        both(ENVIRON, &format!("cat /proc/{}/environ", marks.pid), Denied),
        write(CODE, "/work/snoop.py", &script, [Works(Text("created")); 3]),
        both("the same from a `python3` program", "python3 snoop.py", Own(Test(nothing_there))),
    ]
}

fn files() -> Vec<Case> {
    const MODES: &str = "`ln -s`, `chmod`";
    const SYSTEM: &str = "read `/etc/passwd`, write `/etc` or the agent's settings";
    let chown = command("`chown` to another user", "chown 0:0 main.py", [Denied, Kernel(Test(not_chowned))]);
    let denied = |path: &str| write(SYSTEM, path, "{}", [Denied; 3]);
    vec![
        silent(MODES, "ln -s main.py link.py", [Denied, Works(Test(quiet))]),
        silent(MODES, "chmod 700 main.py", [Denied, Works(Test(quiet))]),
        chown,
        call(SYSTEM, "read_file", json!({"file_path": "/etc/passwd"}), [Denied; 3]),
        call(SYSTEM, "read_file", json!({"file_path": "/home/agent/.qwen/settings.json"}), [Denied; 3]),
        denied("/etc/x"),
        denied("/home/agent/.qwen/settings.json"),
        denied("/work/.qwen/settings.json"),
        denied("/work/a/../.qwen/.env"),
        denied("/work/.git/hooks/pre-commit"),
    ]
}

fn privilege() -> Vec<Case> {
    const ROW: &str = "`sudo`, `su`";
    let lines = ["sudo id", "/usr/bin/sudo id", "bash -c 'sudo id'", "env sudo id", "s\"u\"do id", "su root -c id"];
    let mut cases: Vec<Case> = lines.map(|line| both(ROW, line, Denied)).into();
    let fetch = json!({"url": "http://127.0.0.1:1/", "prompt": "read"});
    cases.push(call("`web_fetch`", "web_fetch", fetch.clone(), [Denied; 3]));
    // What it calls tools by that it did not name at first.
    let behind = json!({"name": "web_fetch", "arguments": fetch});
    cases.push(call("`web_fetch`", "tool_call", behind, [Denied; 3]));
    cases
}

/// What a command printed: its answer begins with the command itself.
fn shown(text: &str) -> &str {
    text.split_once("\nOutput: ").map_or("", |(_, rest)| rest)
}

/// What it says of a command that printed nothing.
fn quiet(text: &str) -> bool {
    shown(text).starts_with("(empty)") && text.contains("Exit Code: 0")
}
