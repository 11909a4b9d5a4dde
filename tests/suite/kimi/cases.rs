//! The calls of the table, and what must come of each at each level.

use serde_json::json;

use crate::real_agent::cases::Like::{Test, Text};
use crate::real_agent::cases::Want::{Kernel, Own, Works};
use crate::real_agent::cases::{
    Case, DEBUGGER, Marks, PROGRAM, SNOOP, Want, call, not_chowned, nothing_there, own_root,
};

/// A command. Paranoid has none: no program can be executed there.
fn command(row: &'static str, line: &str, [balanced, developer]: [Want; 2]) -> Case {
    call(row, "Bash", json!({ "command": line }), [Kernel(Text("spawn /bin/bash EACCES")), balanced, developer])
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

fn write(row: &'static str, path: &str, content: &str, want: Want) -> Case {
    call(row, "Write", json!({"path": path, "content": content}), [want; 3])
}

fn read(row: &'static str, path: &str, want: Want) -> Case {
    call(row, "Read", json!({ "path": path }), [want; 3])
}

const CODE: &str = "write and edit code";
const SEARCH: &str = "read and search files";
const WRITTEN: Want = Works(Text("Wrote"));

fn code() -> Vec<Case> {
    let draft = PROGRAM.replace("hello {name}", "hullo {name}");
    let edit = json!({"path": "/work/main.py", "old_string": "hullo", "new_string": "hello"});
    let grep = json!({"pattern": "def greet", "output_mode": "content"});
    vec![
        write(CODE, "/work/main.py", &draft, WRITTEN),
        call(CODE, "Edit", edit, [Works(Text("Replaced")); 3]),
        read(SEARCH, "/work/main.py", Works(Text("return f"))),
        call(SEARCH, "Glob", json!({"pattern": "*.py"}), [Works(Text("main.py")); 3]),
        call(SEARCH, "Grep", grep, [Works(Text("greet(name)")); 3]),
    ]
}

fn commands() -> Vec<Case> {
    const FILES: &str = "`cp`, `mv`, `rm`";
    const GIT: &str = "`git init`, `add`, `commit`";
    vec![
        both(FILES, "cp main.py b.py && ls", Works(Text("b.py"))),
        both(FILES, "mv b.py c.py && ls", Works(Test(|text| text.contains("c.py") && !text.contains("b.py")))),
        both(FILES, "rm c.py && ls", Works(Test(|text| text.contains("main.py") && !text.contains("c.py")))),
        both(
            GIT,
            "git init -q . && git add main.py && git commit -qm first && git log --oneline -1",
            Works(Text("first")),
        ),
        both("`python3`", "python3 main.py", Works(Text("hello cell"))),
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
        write(CODE, "/work/debugger.py", DEBUGGER, WRITTEN),
        command(DEBUG, "python3 debugger.py", [Kernel(Text("Operation not permitted")), Works(Text("stopped"))]),
    ]
}

fn listings() -> Vec<Case> {
    const PROCESSES: &str = "`ps aux`, `top`";
    let few = Own(Test(|text| text.contains("agent") && text.lines().count() < 30));
    vec![
        both(PROCESSES, "ps aux", few),
        both(PROCESSES, "top -bn1", few),
        both("`ls /`", "ls /", Own(Test(own_root))),
        both("`ls /tmp`", "ls /tmp", Own(Test(|text| !text.contains("secret")))),
    ]
}

fn neighbours(marks: &Marks) -> Vec<Case> {
    const CELLS: &str = "another cell, by its path";
    const ENVIRON: &str = "`/proc/*/environ`";
    let path = &marks.path;
    let script =
        SNOOP.replace("print(read.decode(\"latin-1\"))", "print(read.decode(\"latin-1\").replace(chr(0), \" \"))");
    let script = script.replace("PATH", &format!("{path:?}")).replace("PID", &marks.pid.to_string());
    let missing = Own(Text("No such file or directory"));
    vec![
        read(CELLS, &format!("{path}/home/secret"), Own(Text("does not exist"))),
        both(CELLS, &format!("cat {path}/home/secret"), missing),
        both(CELLS, &format!("ls {path}"), missing),
        read(ENVIRON, "/proc/1/environ", Kernel(Text("permission denied"))),
        both(ENVIRON, "cat /proc/1/environ", Kernel(Text("Permission denied"))),
        both(ENVIRON, &format!("cat /proc/{}/environ", marks.pid), missing),
        write(CODE, "/work/snoop.py", &script, WRITTEN),
        both("the same from a `python3` program", "python3 snoop.py", Own(Test(nothing_there))),
    ]
}

fn files() -> Vec<Case> {
    const MODES: &str = "`ln -s`, `chmod`";
    const SYSTEM: &str = "write `/etc`, `/usr`";
    const ACCOUNTS: &str = "read `/etc/passwd`, `/etc/shadow`";
    let own_passwd = |text: &str| text.contains("agent:x:") && text.contains("Total lines in file: 2");
    vec![
        both(MODES, "ln -s main.py link.py && ls -l", Works(Text("link.py -> main.py"))),
        both(MODES, "chmod 700 main.py && ls -l", Works(Text("-rwx------"))),
        both("`chown` to another user", "chown 0:0 main.py", Kernel(Test(not_chowned))),
        read(ACCOUNTS, "/etc/passwd", Own(Test(own_passwd))),
        read(ACCOUNTS, "/etc/shadow", Own(Text("does not exist"))),
        write(SYSTEM, "/etc/x", "{}", Kernel(Text("write failed"))),
        write(SYSTEM, "/usr/bin/x", "{}", Kernel(Text("write failed"))),
    ]
}

fn privilege() -> Vec<Case> {
    const ROW: &str = "`sudo`, `su`";
    let nobody = Kernel(Test(|text| text.contains("Command failed with exit code") && !text.contains("uid=0")));
    // Its tool asks no address of the host's own; the name is nobody's.
    let fetch = json!({"url": "http://nobody.example/"});
    vec![
        both(ROW, "sudo id", nobody),
        both(ROW, "su root -c id", nobody),
        call("`FetchURL`", "FetchURL", fetch, [Kernel(Text("Failed to fetch URL")); 3]),
    ]
}
