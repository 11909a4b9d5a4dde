//! The calls of the table, and what must come of each at each level.

use serde_json::json;

use super::patch;
use crate::real_agent::cases::Like::{Test, Text};
use crate::real_agent::cases::Want::{Denied, Kernel, Own, Works};
use crate::real_agent::cases::{
    Case, DEBUGGER, Marks, PROGRAM, SNOOP, Want, call, not_chowned, nothing_there, own_root,
};

/// A command at paranoid, balanced and developer.
fn command(row: &'static str, words: &str, want: [Want; 3]) -> Case {
    call(row, "exec_command", json!({ "cmd": words }), want)
}

/// Nothing but the agent's own programs is executed at paranoid.
fn not_at_paranoid(row: &'static str, words: &str, want: Want) -> Case {
    command(row, words, [Kernel(Text("Permission denied")), want, want])
}

/// A rule forbids it at all levels but developer.
fn forbidden(row: &'static str, words: &str, developer: Want) -> Case {
    command(row, words, [Denied, Denied, developer])
}

/// Every call, in the order in which it is played.
pub fn cases(marks: &Marks) -> Vec<Case> {
    let parts = [code(), programs(), debugging(), listings(), neighbours(marks), files(), privilege(), network()];
    parts.into_iter().flatten().collect()
}

fn file(name: &str, text: &str) -> serde_json::Value {
    patch(&format!("*** Add File: {name}\n+{}", text.trim_end().replace('\n', "\n+")))
}

fn code() -> Vec<Case> {
    const ROW: &str = "write and edit code";
    const READ: &str = "read and search files";
    const FILES: &str = "`cp`, `mv`, `rm`";
    const GIT: &str = "`git init`, `add`, `commit`";
    let change = patch("*** Update File: main.py\n@@\n-    return f\"hullo {name}\"\n+    return f\"hello {name}\"");
    vec![
        call(ROW, "apply_patch", file("main.py", &PROGRAM.replace("hello {", "hullo {")), [Works(Text("Success")); 3]),
        call(ROW, "apply_patch", change, [Works(Text("Success")); 3]),
        command(READ, "cat main.py", [Works(Text("return f\"hello")); 3]),
        command(READ, "grep -rn 'def greet' .", [Works(Text("greet(name)")); 3]),
        command(READ, "ls -la", [Works(Text("main.py")); 3]),
        not_at_paranoid(FILES, "cp main.py b.py && mv b.py c.py && rm c.py && ls", Works(Text("main.py"))),
        not_at_paranoid(
            GIT,
            "git init -q . && git add main.py && git commit -qm first && git log --oneline -1",
            Works(Text("first")),
        ),
        not_at_paranoid("`python3`", "python3 main.py", Works(Text("hello cell"))),
    ]
}

fn programs() -> Vec<Case> {
    const MONITOR: &str = "`df`, `free`, `uptime`";
    // As the agent's own models call a server: from a program of theirs.
    let sum = "const sum = await tools.mcp__sum__add({a: 20, b: 22}); text(JSON.stringify(sum));";
    vec![
        call("an MCP server that the caller names", "exec", json!(sum), [Works(Text("42 says the server")); 3]),
        not_at_paranoid("`ps`", "ps", Works(Text("ps"))),
        not_at_paranoid(MONITOR, "df", Works(Text("Filesystem"))),
        not_at_paranoid(MONITOR, "free", Works(Text("Mem:"))),
        not_at_paranoid(MONITOR, "uptime", Works(Text("load average"))),
    ]
}

fn debugging() -> Vec<Case> {
    let denied = Kernel(Text("Permission denied"));
    let traced = [denied, Kernel(Text("Operation not permitted")), Works(Text("stopped"))];
    vec![
        call("write and edit code", "apply_patch", file("debugger.py", DEBUGGER), [Works(Text("Success")); 3]),
        command("debug a process of its own", "python3 debugger.py", traced),
    ]
}

fn listings() -> Vec<Case> {
    const PROCESSES: &str = "`ps aux`, `top`";
    vec![
        forbidden(PROCESSES, "ps aux", Own(Test(few_processes))),
        forbidden(PROCESSES, "top -bn1", Own(Test(few_processes))),
        forbidden("`ls /`", "ls /", Own(Test(own_root))),
        forbidden("`ls /tmp`", "ls /tmp", Own(Test(|text| !text.contains("systemd")))),
    ]
}

/// Every process is the agent's user's, and there are few.
fn few_processes(text: &str) -> bool {
    let rows: Vec<&str> = text.lines().skip_while(|line| !line.contains("PID")).skip(1).collect();
    let own = |row: &&str| row.trim().is_empty() || row.split_whitespace().take(2).any(|word| word == "agent");
    rows.len() > 1 && rows.len() < 20 && rows.iter().all(own)
}

fn neighbours(marks: &Marks) -> Vec<Case> {
    const CELLS: &str = "another cell, by its path";
    const ENVIRON: &str = "`/proc/*/environ`";
    let (path, pid) = (&marks.path, marks.pid);
    let gone = [Own(Text("No such file or directory")); 3];
    let script = SNOOP.replace("PATH", &format!("{path:?}")).replace("PID", &pid.to_string());
    vec![
        command(CELLS, &format!("cat {path}/home/secret"), gone),
        command(CELLS, &format!("ls {path}"), gone),
        command(ENVIRON, "cat /proc/1/environ", [Kernel(Text("Permission denied")); 3]),
        command(ENVIRON, &format!("cat /proc/{pid}/environ"), gone),
        command(ENVIRON, "cat /proc/*/environ", [Own(Text("Permission denied")); 3]),
        call("write and edit code", "apply_patch", file("snoop.py", &script), [Works(Text("Success")); 3]),
        not_at_paranoid("the same from a `python3` program", "python3 snoop.py", Own(Test(nothing_there))),
    ]
}

fn files() -> Vec<Case> {
    const MODES: &str = "`ln -s`, `chmod`";
    const SYSTEM: &str = "read `/etc/passwd`";
    const WRITE: &str = "write `/etc` or the agent's requirements";
    let no = Kernel(Test(|text| text.contains("Read-only file system") || text.contains("Permission denied")));
    vec![
        forbidden(MODES, "ln -s main.py link.py && echo linked", Works(Text("linked"))),
        forbidden(MODES, "chmod 700 main.py && echo changed", Works(Text("changed"))),
        forbidden("`chown` to another user", "chown 0:0 main.py", Kernel(Test(not_chowned))),
        command(
            SYSTEM,
            "cat /etc/passwd",
            [Own(Test(|text| text.contains("agent:x:") && !text.contains("daemon"))); 3],
        ),
        command(WRITE, "echo x >/etc/x", [no; 3]),
        command(WRITE, "echo x >/etc/codex/requirements.toml", [no; 3]),
        call(WRITE, "apply_patch", file("/etc/y", "x"), [Kernel(Text("Failed to write file")); 3]),
    ]
}

fn privilege() -> Vec<Case> {
    const ROW: &str = "`sudo`, `su`";
    const HIDDEN: &str = "the same from `bash -c`";
    let from_program =
        "try { text(JSON.stringify(await tools.exec_command({cmd: 'sudo id'}))) } catch (error) { text('' + error) }";
    let mut all: Vec<Case> =
        ["sudo id", "echo a; /usr/bin/sudo id", "su root -c id"].map(|words| command(ROW, words, [Denied; 3])).into();
    all.push(call(ROW, "exec", json!(from_program), [Denied; 3]));
    // No rule sees it, and it gains nothing.
    all.push(not_at_paranoid(
        HIDDEN,
        "bash -c 'su root -c id' </dev/null; echo ended",
        Kernel(Test(|t| t.contains("ended") && !t.contains("uid=0"))),
    ));
    all
}

fn network() -> Vec<Case> {
    let nowhere = Kernel(Test(|text| {
        text.contains("Failed to connect") || text.contains("Couldn't connect") || text.contains("not found")
    }));
    vec![forbidden("`curl` to the metadata address", "curl -sS -m 5 http://169.254.169.254/", nowhere)]
}
