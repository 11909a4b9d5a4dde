//! The calls of the table, and what must come of each at each level.

use serde_json::{Value, json};

use crate::model::{Answer, Call};

/// Columns of the table.
const PARANOID: usize = 0;

/// One call, and what must come of it at paranoid, balanced and developer.
pub struct Case {
    /// The use case that it belongs to: a row of the table.
    pub row: &'static str,
    tool: &'static str,
    input: Value,
    want: [Want; 3],
}

/// What must come of a call.
#[derive(Clone, Copy)]
pub enum Want {
    /// It does what it is for, and its answer is like this.
    Works(Like),
    /// The agent refuses it by its settings.
    Denied,
    /// It runs and sees nothing but its own cell: its answer is like this.
    Own(Like),
    /// It runs, and the kernel refuses it: its answer is like this.
    Kernel(Like),
}

/// What an answer is like.
#[derive(Clone, Copy)]
pub enum Like {
    /// It contains this.
    Text(&'static str),
    /// This holds.
    Test(fn(&str) -> bool),
}

use Like::{Test, Text};
use Want::{Denied, Kernel, Own, Works};

/// Every way in which this agent says that its settings refuse a call.
const REFUSALS: [&str; 6] = [
    "has been denied",
    "No such tool available",
    "is denied by your permission settings",
    "haven't granted it yet",
    "setting blocks",
    "running in don't ask mode",
];

/// What the neighbour's cell and the launcher hold, and no answer may contain.
pub struct Marks {
    /// In every file, argument and variable of the neighbour's.
    pub neighbour: String,
    /// The neighbour's HOME, as a path on the host.
    pub path: String,
    /// A PID of the host: the neighbour's launcher.
    pub pid: u32,
    /// In a variable of the launcher's.
    pub launcher: String,
}

/// What stands round the agent, as far as the answers tell.
#[derive(Clone, Copy)]
pub struct Around {
    /// The cell has a root of its own: its workspace and HOME are at usual places, and /proc is its own. Else they have
    /// no known names, and no program finds itself in /proc.
    pub root: bool,
    /// What the policy does not show cannot be read.
    pub landlock: bool,
    /// It lies in /tmp, which the settings can then not deny.
    pub tmp: bool,
    /// Another cell lives beside it.
    pub neighbour: bool,
}

impl Around {
    /// Linux with all that a cell asks for.
    pub const LINUX: Around = Around { root: true, landlock: true, tmp: false, neighbour: true };

    /// A file of the workspace.
    pub fn work(self, name: &str) -> String {
        if self.root { format!("/work/{name}") } else { name.to_owned() }
    }

    /// A file of the agent's HOME.
    fn home(self, name: &str) -> String {
        if self.root { format!("/home/agent/{name}") } else { format!("~/{name}") }
    }
}

/// The result of one call, as the table shows it.
pub fn verdict(case: &Case, level: usize, answer: &Answer, marks: &Marks) -> Result<&'static str, String> {
    let denied = answer.is_error && REFUSALS.iter().any(|refusal| answer.text.contains(refusal));
    judge(case, level, answer, marks, denied)
}

/// The same, where it is known whether the agent's settings refused the call.
pub fn judge(case: &Case, level: usize, answer: &Answer, marks: &Marks, denied: bool) -> Result<&'static str, String> {
    let text = &answer.text;
    let wrong = |what: &str| Err(format!("{what}: {} {}: {}", case.tool, case.input, text.escape_debug()));
    if text.contains(&marks.neighbour) || text.contains(&marks.launcher) {
        return wrong("leaked");
    }
    match case.want[level] {
        Denied if denied => Ok("denied"),
        Works(like) if !denied && !answer.is_error && like.holds(text) => Ok("works"),
        Own(like) if !denied && like.holds(text) => Ok("own cell only"),
        Kernel(like) if !denied && like.holds(text) => Ok("kernel refuses"),
        _ => wrong("not as expected"),
    }
}

impl Like {
    fn holds(self, text: &str) -> bool {
        match self {
            Text(part) => text.contains(part),
            Test(test) => test(text),
        }
    }
}

impl Case {
    pub fn call(&self) -> Call {
        Call::new(self.tool, self.input.clone())
    }
}

/// A call of any tool.
pub fn call(row: &'static str, tool: &'static str, input: Value, want: [Want; 3]) -> Case {
    Case { row, tool, input, want }
}

/// A command, which paranoid does not have.
fn command(row: &'static str, command: &str, [balanced, developer]: [Want; 2]) -> Case {
    call(row, "Bash", json!({ "command": command }), [Denied, balanced, developer])
}

/// Every call, in the order in which it is played.
pub fn cases(level: usize, marks: &Marks, around: Around) -> Vec<Case> {
    let parts = [
        code(around),
        search(level, around),
        commands(),
        programs(around),
        debugging(around),
        listings(around),
        neighbours(marks, around),
        files(around),
        privilege(),
        web(),
    ];
    parts.into_iter().flatten().collect()
}

pub const PROGRAM: &str = "def greet(name):\n    return f\"hello {name}\"\n\nprint(greet(\"cell\"))\n";

fn code(around: Around) -> Vec<Case> {
    const ROW: &str = "write and edit code";
    let draft = PROGRAM.replace("hello {name}", "hullo {name}");
    let edit = json!({"file_path": around.work("main.py"), "old_string": "hullo", "new_string": "hello"});
    vec![
        call(ROW, "Write", json!({"file_path": around.work("main.py"), "content": draft}), [Works(Text("created")); 3]),
        call(ROW, "Edit", edit, [Works(Text("updated")); 3]),
        call(
            "read and search files",
            "Read",
            json!({"file_path": around.work("main.py")}),
            [Works(Text("return f")); 3],
        ),
    ]
}

/// An agent with commands has no tools for searching, and `grep` instead.
fn search(level: usize, around: Around) -> Vec<Case> {
    const ROW: &str = "read and search files";
    if level == PARANOID {
        let grep = json!({"pattern": "def greet", "output_mode": "content"});
        return vec![
            call(ROW, "Grep", grep, [Works(Text("greet(name)")); 3]),
            call(ROW, "Glob", json!({"pattern": "**/*.py"}), [Works(Text("main.py")); 3]),
        ];
    }
    let [any, grep] = [Works(Text("main.py")), Works(Text("greet(name)"))];
    // The statx(2) of gVisor releases of 2022 answers EINVAL to `ls -l`.
    let list = if around.root || around.landlock { "ls -la" } else { "ls -a" };
    vec![command(ROW, list, [any, any]), command(ROW, "grep -rn 'def greet' .", [grep, grep])]
}

fn commands() -> Vec<Case> {
    const FILES: &str = "`cp`, `mv`, `rm`";
    const GIT: &str = "`git init`, `add`, `commit`";
    let same = |row, words: &str, want| command(row, words, [want, want]);
    vec![
        same(FILES, "cp main.py b.py", Works(Test(quiet))),
        same(FILES, "mv b.py c.py && ls", Works(Test(|text| text.contains("c.py") && !text.contains("b.py")))),
        same(FILES, "rm c.py && ls", Works(Test(|text| text.contains("main.py") && !text.contains("c.py")))),
        same(GIT, "git init -q .", Works(Test(quiet))),
        same(GIT, "git add main.py && git commit -qm first", Works(Test(quiet))),
        same(GIT, "git log --oneline -1", Works(Text("first"))),
        same("`python3`", "python3 main.py", Works(Text("hello cell"))),
    ]
}

fn programs(around: Around) -> Vec<Case> {
    const MONITOR: &str = "`df`, `free`, `uptime`";
    let sum = json!({"a": 20, "b": 22});
    // Its table of mounts is in /proc/self.
    let shut = around.landlock && !around.root;
    vec![
        call("an MCP server that the caller names", "mcp__sum__add", sum, [Works(Text("42 says the server")); 3]),
        command("`ps`", "ps", [if around.root { Works(Text("ps")) } else { Kernel(Test(lost)) }; 2]),
        command(MONITOR, "df", [if shut { Kernel(Text("Permission denied")) } else { Works(Text("Filesystem")) }; 2]),
        command(MONITOR, "free", [Works(Text("Mem:")); 2]),
        command(MONITOR, "uptime", [Works(Text("load average")); 2]),
    ]
}

/// Attaches to a child of its own, as a debugger does.
pub const DEBUGGER: &str = r#"
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
child = os.fork()
if child == 0:
    signal.pause()
PTRACE_ATTACH, PTRACE_DETACH = 16, 17
done = libc.ptrace(PTRACE_ATTACH, child, None, None)
if done == 0:
    stopped = os.WIFSTOPPED(os.waitpid(child, 0)[1])
    libc.ptrace(PTRACE_DETACH, child, None, None)
    print("stopped" if stopped else "not stopped")
else:
    print("ptrace:", os.strerror(ctypes.get_errno()))
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"#;

fn debugging(around: Around) -> Vec<Case> {
    const ROW: &str = "debug a process of its own";
    let script = json!({"file_path": around.work("debugger.py"), "content": DEBUGGER});
    vec![
        call("write and edit code", "Write", script, [Works(Text("created")); 3]),
        command(ROW, "python3 debugger.py", [Kernel(Text("Operation not permitted")), Works(Text("stopped"))]),
    ]
}

fn listings(around: Around) -> Vec<Case> {
    const PROCESSES: &str = "`ps aux`, `top`";
    let processes = if around.root { Own(Test(own_processes)) } else { Kernel(Test(lost)) };
    let directory = if around.root { Own(Test(own_root)) } else { Kernel(Text("Permission denied")) };
    let tmp = match around {
        Around { root: true, .. } => Own(Test(|text| text.split_whitespace().all(own_tmp))),
        Around { tmp: true, .. } => Kernel(Text("Permission denied")),
        _ => Denied,
    };
    let denied = |row, words: &str, want| command(row, words, [Denied, want]);
    vec![
        denied(PROCESSES, "ps aux", processes),
        denied(PROCESSES, "top -bn1", processes),
        denied("`ls /`", "ls /", directory),
        denied("`ls /tmp`", "ls /tmp", tmp),
    ]
}

/// procps without its own directory in /proc.
fn lost(text: &str) -> bool {
    text.contains("mount -t proc proc /proc") || text.contains("lookup self")
}

/// What the cell is made of, and no directory that only the host has.
pub fn own_root(text: &str) -> bool {
    text.contains("work") && !["boot", "mnt", "srv"].iter().any(|name| text.contains(name))
}

/// What the agent itself keeps in /tmp, and the way to the caller's MCP server.
fn own_tmp(name: &str) -> bool {
    name == "cc-socks" || ["claude-", "real-agent-"].iter().any(|start| name.starts_with(start))
}

/// Every process is the agent's user's, and there are few.
fn own_processes(text: &str) -> bool {
    let rows = text.lines().skip_while(|line| !line.contains("PID")).skip(1);
    let rows: Vec<&str> = rows.filter(|line| !line.trim().is_empty()).collect();
    let own = |row: &&str| row.split_whitespace().take(2).any(|word| word == "agent");
    !rows.is_empty() && rows.len() < 20 && rows.iter().all(own)
}

/// Looks everywhere for what belongs to others, as a program that the settings do not see through.
pub const SNOOP: &str = r#"
import glob, os, sys
places = [PATH, "/proc/1/environ", "/proc/PID/environ", "/proc/*/environ", "/proc/*/root/home/agent/*", "/proc/*/cwd/*",
          "/root/*", "/home/*/*", "/run/*/*/*", "/var/lib/oubliette/*/*", "/tmp/*", "/dev/shm/*"]
own = {str(os.getpid()), "self", "thread-self"}
found = [name for place in places for name in glob.glob(place)]
read = b""
for name in found:
    try:
        read += open(name, "rb").read(65536)
    except OSError:
        pass
print(read.decode("latin-1"))
try:
    open("/proc/1/environ").read()
    print("init: readable")
except OSError as error:
    print("init:", error.strerror)
try:
    print("others:", [p for p in os.listdir("/proc") if p.isdigit() and os.stat("/proc/" + p).st_uid != os.getuid() and p != "1"])
except OSError as error:
    print("others:", error.strerror)
print("snooped", os.path.exists(PATH), os.path.exists("/proc/PID"))
"#;

pub fn nothing_there(text: &str) -> bool {
    ["init: Permission denied", "others: []", "snooped False False"].iter().all(|line| text.contains(line))
}

fn nothing_opened(text: &str) -> bool {
    ["init: Permission denied", "others: Permission denied", "snooped "].iter().all(|line| text.contains(line))
}

fn neighbours(marks: &Marks, around: Around) -> Vec<Case> {
    if !around.neighbour {
        return Vec::new();
    }
    const CELLS: &str = "another cell, by its path";
    const ENVIRON: &str = "`/proc/*/environ`";
    const PROGRAM: &str = "the same from a `python3` program";
    let path = &marks.path;
    let read = |row, path: String| call(row, "Read", json!({ "file_path": path }), [Denied; 3]);
    let script = SNOOP.replace("PATH", &format!("{path:?}")).replace("PID", &marks.pid.to_string());
    // Landlock shows names that it does not open.
    let snooped = Own(if around.root { Test(nothing_there) } else { Test(nothing_opened) });
    let missing = if around.root { Own(Text("No such file or directory")) } else { Kernel(Text("Permission denied")) };
    vec![
        read(CELLS, format!("{path}/home/secret")),
        read(CELLS, format!("{path}/work/secret")),
        command(CELLS, &format!("cat {path}/home/secret"), [Denied, missing]),
        command(CELLS, &format!("ls {path}"), [Denied, missing]),
        read(ENVIRON, "/proc/1/environ".into()),
        read(ENVIRON, format!("/proc/{}/environ", marks.pid)),
        command(ENVIRON, "cat /proc/1/environ", [Denied; 2]),
        command(ENVIRON, &format!("cat /proc/{}/environ", marks.pid), [Denied; 2]),
        command(ENVIRON, "cat /proc/*/environ", [Denied; 2]),
        call(
            "write and edit code",
            "Write",
            json!({"file_path": around.work("snoop.py"), "content": script}),
            [Works(Text("created")); 3],
        ),
        command(PROGRAM, "python3 snoop.py", [snooped; 2]),
    ]
}

fn files(around: Around) -> Vec<Case> {
    const MODES: &str = "`ln -s`, `chmod`";
    const SYSTEM: &str = "read `/etc/passwd`, write `/etc` or the agent's settings";
    let write = |path: String| call(SYSTEM, "Write", json!({"file_path": path, "content": "{}"}), [Denied; 3]);
    vec![
        command(MODES, "ln -s main.py link.py", [Denied, Works(Test(quiet))]),
        command(MODES, "chmod 700 main.py", [Denied, Works(Test(quiet))]),
        command("`chown` to another user", "chown 0:0 main.py", [Denied, Kernel(Test(not_chowned))]),
        call(SYSTEM, "Read", json!({"file_path": "/etc/passwd"}), [Denied; 3]),
        write("/etc/x".into()),
        write(around.home(".claude/settings.json")),
        write(around.work(".claude/settings.json")),
        write(around.work(".mcp.json")),
    ]
}

fn privilege() -> Vec<Case> {
    const ROW: &str = "`sudo`, `su`";
    ["sudo id", "/usr/bin/sudo id", "bash -c 'sudo id'", "su root -c id"]
        .map(|words| command(ROW, words, [Denied; 2]))
        .into()
}

fn web() -> Vec<Case> {
    const ROW: &str = "`WebFetch`, `WebSearch`";
    let fetch = json!({"url": "http://127.0.0.1:1/", "prompt": "what is there?"});
    vec![call(ROW, "WebFetch", fetch, [Denied; 3]), call(ROW, "WebSearch", json!({"query": "oubliette"}), [Denied; 3])]
}

/// A user namespace does not even know the other user.
pub fn not_chowned(text: &str) -> bool {
    text.contains("Operation not permitted") || text.contains("Invalid argument")
}

/// What the agent says of a command that printed nothing.
fn quiet(text: &str) -> bool {
    text.trim().is_empty() || text.contains("no output")
}
