//! Every wrong word, file and host gives its exit status, one message that names the object and the cause, one hint,
//! and leaves nothing: no file in the state directory, no process.

mod host;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::launch::{Ended, Lab, Launch, Who, everybody};
use crate::need;

/// The value of every secret here: no message may hold it.
const SECRET: &str = "sk-ant-bad-input-0123456789";

/// Collects what is wrong, so that one run of a test names every bad row of its table.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn refused(&mut self, lab: &Lab, name: &str, ended: &Ended, code: i32, words: &[&str]) {
        let wrong = ended.wrong(code, words);
        self.0.extend(wrong.map(|wrong| format!("{name}: {wrong}")));
        if ended.stderr.contains(SECRET) || ended.stdout.contains(SECRET) {
            self.0.push(format!("{name}: the secret is in {ended:?}"));
        }
        self.0.extend(lab.left().into_iter().map(|left| format!("{name}: leaves {left}")));
    }

    fn works(&mut self, lab: &Lab, name: &str, ended: &Ended) {
        if ended.code() != 0 || ended.stderr.contains(SECRET) {
            self.0.push(format!("{name}: {ended:?}"));
        }
        self.0.extend(lab.left().into_iter().map(|left| format!("{name}: leaves {left}")));
    }

    #[track_caller]
    fn none(self) {
        assert!(self.0.is_empty(), "{}", self.0.join("\n"));
    }
}

fn words<'a>(before: &[&'a str], command: &[&'a str]) -> Vec<&'a OsStr> {
    let all = ["run"].iter().chain(before).chain(&["--"]).chain(command);
    all.map(|word| OsStr::new(*word)).collect()
}

/// Options of `run`, the status, and what the message must name; the command is `true`.
type Row<'a> = (&'a [&'a str], i32, &'a [&'a str]);

fn table(rows: &[Row<'_>], lab: &Lab, prepare: impl for<'l> Fn(Launch<'l>) -> Launch<'l>) {
    let mut findings = Findings::default();
    for who in everybody() {
        for (options, code, names) in rows {
            let ended = prepare(lab.launch(who, words(options, &["true"]))).run();
            findings.refused(lab, &format!("{who:?} {options:?}"), &ended, *code, names);
        }
    }
    findings.none();
}

#[test]
fn words_that_cannot_be_used() {
    let long = "x".repeat(600);
    let secret = format!("--setenv=SOME THING{SECRET}");
    let url = format!("--upstream=https://user:{SECRET}@host");
    let stray = format!("TOKEN={SECRET}");
    let unknown = format!("--tokn={SECRET}");
    let rows: &[Row<'_>] = &[
        (&["--user", ""], 125, &["user id", "empty"]),
        (&["--user", "a\nb"], 125, &["user id", "0x0a"]),
        (&["--user", "\x1b[2J"], 125, &["user id", "0x1b"]),
        (&["--user", &long], 125, &["user id", "600 bytes"]),
        (&["--level", "nosuch"], 125, &["level `nosuch`", "paranoid, balanced, developer"]),
        (&["--level", "../balanced"], 125, &["level `../balanced`"]),
        (&["--agent", "nosuch"], 125, &["agent `nosuch`", "claude, codex, gemini, kimi, kiro, none, opencode, qwen"]),
        (&["--level", "balanced", "--policy", "x"], 125, &["--level and --policy"]),
        (&["--levle", "x"], 125, &["--levle", "--level"]),
        (&["--network", "some"], 125, &["'some'", "host, none"]),
        (&["--require", "nosuch"], 125, &["nosuch", "landlock-fs"]),
        (&["--timeout", "0s"], 125, &["--timeout", "no time"]),
        (&["--timeout", "5"], 125, &["--timeout", "90s"]),
        (&["--timeout", "-5s"], 125, &["-5"]),
        (&["--timeout", "99999999999999999999y"], 125, &["--timeout"]),
        (&["--grace", "soon"], 125, &["--grace", "soon"]),
        (&["--wait", "0s"], 125, &["--wait", "no time"]),
        (&["--uid-range", "5"], 125, &["--uid-range", "FIRST-LAST"]),
        (&["--uid-range", "9-5"], 125, &["--uid-range", "rise"]),
        (&["--uid-range", "0-4"], 125, &["--uid-range", "1000"]),
        (&["--uid-range", "60000-70000"], 125, &["--uid-range", "65534"]),
        (&["--uid-range", "2000-4294967295"], 125, &["--uid-range"]),
        (&["--uid-range", "a-b"], 125, &["--uid-range", "`a-b`"]),
        (&["--upstream", "ftp://x"], 125, &["--upstream", "ftp://x", "http"]),
        (&["--upstream", "https://"], 125, &["--upstream", "host"]),
        (&["--upstream", "http://x:0"], 125, &["--upstream", "port"]),
        (&["--upstream", "http://x:99999"], 125, &["--upstream", "port"]),
        (&["--upstream", "http://a b"], 125, &["--upstream"]),
        (&[&url], 125, &["--upstream", "password"]),
        (&["--upstream", "http://x"], 125, &["--upstream", "base URL"]),
        (&["--mcp-config", "x"], 125, &["--mcp-config"]),
        (&["--workspace", ""], 125, &["--workspace"]),
        (&["--setenv", "NAME"], 125, &["--setenv", "NAME=VALUE"]),
        (&["--setenv", "=x"], 125, &["--setenv", "NAME=VALUE"]),
        (&[&secret], 125, &["--setenv", "NAME=VALUE"]),
        (&[&unknown], 125, &["--tokn"]),
        (&[&stray], 125, &["TOKEN="]),
        (&["--credential-fd", SECRET], 125, &["--credential-fd"]),
        (&["--credential-env", SECRET], 125, &["--credential-env", "names no variable"]),
        (&["--credential-env", &stray], 125, &["--credential-env", "names no variable"]),
    ];
    table(rows, &Lab::new(), |launch| launch);
}

#[test]
fn no_command_no_option_no_file() {
    let lab = Lab::new();
    let mut findings = Findings::default();
    for who in everybody() {
        for (line, names) in [
            (&["run"][..], &["no command", "`--`"][..]),
            (&["run", "--user", "a"], &["no command"]),
            (&["explain"], &["no command"]),
            (&["rum"], &["'rum'", "'run'"]),
            (&["kill", "nosuch"], &["nosuch"]),
            (&["policy", "show", "nosuch"], &["nosuch"]),
            (&["policy", "check", "/nosuch"], &["/nosuch"]),
        ] {
            let ended = lab.launch(who, line).run();
            findings.refused(&lab, &format!("{who:?} {line:?}"), &ended, 125, names);
        }
    }
    findings.none();
}

#[test]
fn names_that_setenv_refuses() {
    let lab = Lab::new();
    let names = [
        "BASH_ENV",
        "BASH_FUNC_x%%",
        "CDPATH",
        "ENV",
        "GCONV_PATH",
        "GIT_DIR",
        "GLIBC_TUNABLES",
        "HOME",
        "IFS",
        "JAVA_TOOL_OPTIONS",
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "LOCPATH",
        "LOGNAME",
        "MALLOC_CHECK_",
        "NLSPATH",
        "NODE_OPTIONS",
        "NODE_PATH",
        "OUBLIETTE_LEVEL",
        "PATH",
        "PERL5LIB",
        "PERL5OPT",
        "PS4",
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "RUBYOPT",
        "SHELL",
        "SHELLOPTS",
        "TMPDIR",
        "USER",
        "A\nB",
    ];
    let claude = [
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_BASE_URL",
        "CLAUDE_CONFIG_DIR",
        "CLAUDECODE",
        "DISABLE_AUTOUPDATER",
        "https_proxy",
        "NODE_EXTRA_CA_CERTS",
        "CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR",
    ];
    let mut findings = Findings::default();
    let both = names.iter().map(|name| (name, "none")).chain(claude.iter().map(|name| (name, "claude")));
    for (name, agent) in both {
        let pair = format!("{name}={SECRET}");
        let ended = lab.launch(Who::Plain, words(&["--agent", agent, "--setenv", &pair], &["true"])).run();
        findings.refused(&lab, name, &ended, 125, &["--setenv", &name.replace('\n', "\\n"), "steers"]);
    }
    findings.none();
}

#[test]
fn the_value_of_a_variable_reaches_the_agent_and_no_message() {
    let lab = Lab::new();
    let mut findings = Findings::default();
    let pair = format!("WANTED={SECRET}");
    for who in everybody() {
        for fd in ["", "--json"] {
            let line = ["explain", fd, "--setenv", &pair, "--", "true"];
            let ended = lab.launch(who, line.into_iter().filter(|word| !word.is_empty())).run();
            findings.works(&lab, "explain", &ended);
            assert!(ended.stdout.contains("WANTED") && !ended.stdout.contains(SECRET), "{}", ended.stdout);
        }
        let script = format!("test \"$WANTED\" = {SECRET}");
        let line = words(&["--setenv", &pair, "--report-fd", "3"], &["sh", "-c", &script]);
        let ended = lab.launch(who, line).setup("exec 3>&1").run();
        findings.works(&lab, "run", &ended);
        assert!(ended.stdout.contains("\"layers\"") && !ended.stdout.contains(SECRET), "{}", ended.stdout);
    }
    findings.none();
}

#[test]
fn good_user_ids_are_never_a_path() {
    let lab = Lab::new();
    let mut findings = Findings::default();
    let ids: [&[u8]; 6] = [
        b"alice@example.org",
        b"123e4567-e89b-12d3-a456-426614174000",
        "用户-ü".as_bytes(),
        b"../../etc",
        b"\xff\xfe\x80",
        b"-rf",
    ];
    for who in everybody() {
        for id in ids {
            for workspace in ["fresh", "user"] {
                let mut user = OsString::from("--user=");
                user.push(OsStr::from_bytes(id));
                let place = format!("--workspace={workspace}");
                let line = [OsStr::new("run"), &user, OsStr::new(&place), OsStr::new("--"), OsStr::new("true")];
                let state = lab.path("mine/kept");
                let ended = lab
                    .launch(who, line)
                    .env("XDG_STATE_HOME", &state)
                    .env("HOME", lab.path("mine"))
                    .mounts("mkdir -p $L/lib && mount --bind $L/lib /var/lib")
                    .run();
                findings.works(&lab, &format!("{who:?} {id:?} {workspace}"), &ended);
            }
        }
    }
    let named =
        |name: &OsStr| ids.iter().any(|id| id.len() > 3 && name.as_bytes().windows(id.len()).any(|part| part == *id));
    let mut places = vec![lab.path("")];
    let mut seen = 0;
    while let Some(place) = places.pop() {
        for entry in fs::read_dir(&place).unwrap().flatten() {
            seen += 1;
            assert!(!named(&entry.file_name()), "{:?} names its user", entry.path());
            places.extend(entry.file_type().unwrap().is_dir().then(|| entry.path()));
        }
    }
    assert!(seen > ids.len(), "the workspaces of the users are somewhere: {seen}");
    findings.none();
}

fn credentials(lab: &Lab) {
    lab.file("good", SECRET, 0o600);
    lab.file("public", SECRET, 0o644);
    lab.file("empty", "", 0o600);
    lab.file("blank", "\r\n", 0o600);
    lab.file("two", format!("{SECRET}\nmore\n"), 0o600);
    lab.file("huge", SECRET.repeat(4000), 0o600);
    lab.directory("directory", 0o700);
    symlink("good", lab.path("link")).unwrap();
    nix::unistd::mkfifo(&lab.path("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    lab.give(&lab.path("fifo"), 0o600);
}

#[test]
fn credentials_that_cannot_be_used() {
    let lab = Lab::new();
    credentials(&lab);
    let rows: &[Row<'_>] = &[
        (&["--credential-file", "public"], 125, &["credential file public", "0644", "chmod 600"]),
        (&["--credential-file", "empty"], 125, &["credential file empty", "is empty"]),
        (&["--credential-file", "blank"], 125, &["credential file blank", "is empty"]),
        (&["--credential-file", "two"], 125, &["credential file two", "more than one line"]),
        (&["--credential-file", "huge"], 125, &["credential file huge", "larger than"]),
        (&["--credential-file", "directory"], 125, &["credential file directory", "is a directory"]),
        (&["--credential-file", "link"], 125, &["credential file link", "symbolic link"]),
        (&["--credential-file", "fifo"], 125, &["credential file fifo", "not a regular file"]),
        (&["--credential-file", "no\nsuch"], 125, &["credential file no\\nsuch", "No such file"]),
        (&["--credential-file", "good/x"], 125, &["credential file good/x", "Not a directory"]),
        (&["--credential-fd", "3"], 125, &["descriptor 3", "not open", "3<"]),
        (&["--credential-fd", "4"], 125, &["descriptor 4", "not open"]),
        (&["--credential-fd", "99"], 125, &["descriptor 99", "not open"]),
        (&["--credential-fd", "0"], 125, &["descriptor 0", "--credential-stdin"]),
        (&["--credential-fd", "1"], 125, &["descriptor 1", "standard"]),
        (&["--credential-fd", "2"], 125, &["descriptor 2", "standard"]),
        (&["--credential-fd=-1"], 125, &["descriptor -1"]),
        (&["--credential-env", "NOT_SET"], 125, &["variable NOT_SET", "not set"]),
        (&["--credential-env", "EMPTY"], 125, &["variable EMPTY", "is empty"]),
        (&["--credential-env", "HUGE"], 125, &["variable HUGE"]),
        (&["--credential-stdin"], 125, &["standard input", "is empty"]),
        (&["--credential-file", "good", "--credential-fd", "3"], 125, &["--credential-file", "--credential-fd"]),
        (&["--credential-env", "HUGE", "--credential-stdin"], 125, &["--credential-env", "--credential-stdin"]),
        (&["--agent", "claude"], 125, &["Claude Code", "--credential-file"]),
    ];
    let huge = SECRET.repeat(2000);
    table(rows, &lab, |launch| launch.env("EMPTY", "").env("HUGE", &huge).env("OUBLIETTE_NETWORK", "host"));
}

#[test]
fn descriptors_that_cannot_be_used() {
    let lab = Lab::new();
    lab.file("good", SECRET, 0o600);
    let rows: &[Row<'_>] = &[
        (&["--report-fd", "6"], 125, &["descriptor 6", "not open"]),
        (&["--report-fd", "5"], 125, &["descriptor 5", "not open"]),
        (&["--report-fd", "0"], 125, &["0 is standard input"]),
        (&["--report-fd=-1"], 125, &["descriptor -1"]),
        (&["--report-fd", "3"], 125, &["descriptor 3", "reading only"]),
        (&["--report-fd", "4", "--credential-fd", "4"], 125, &["descriptor 4", "--credential-fd and --report-fd"]),
    ];
    table(rows, &lab, |launch| launch.setup("exec 3<$L/good 4<>$L/good"));
}

#[test]
fn another_users_credential_is_not_read() {
    if !need::as_root() {
        return;
    }
    let lab = Lab::new();
    fs::write(lab.path("roots"), SECRET).unwrap();
    fs::set_permissions(lab.path("roots"), fs::Permissions::from_mode(0o600)).unwrap();
    let ended = lab.launch(Who::Plain, words(&["--network", "host", "--credential-file", "roots"], &["true"])).run();
    let mut findings = Findings::default();
    findings.refused(&lab, "root's", &ended, 125, &["credential file roots", "Permission denied"]);
    findings.none();
}

#[test]
fn commands_that_cannot_be_executed() {
    let lab = Lab::new();
    lab.directory("directory", 0o755);
    lab.file("text", "text", 0o644);
    lab.file("closed", "#!/bin/sh\n", 0o000);
    lab.file("no-interpreter", "#!/nosuch/interpreter\n", 0o755);
    lab.file("no-name", "#!\n", 0o755);
    lab.file("no-env", "#!/usr/bin/env nosuch-interpreter\n", 0o755);
    lab.file("garbage", "\x7fELF garbage", 0o755);
    let rows: [(&[&str], i32, &[&str]); 12] = [
        (&["nosuch-command"], 127, &["`nosuch-command`", "PATH"]),
        (&["./nosuch"], 127, &["nosuch", "No such file"]),
        (&["/nosuch/x"], 127, &["/nosuch/x"]),
        (&[""], 127, &["name is empty"]),
        (&["./directory"], 126, &["directory", "is a directory"]),
        (&["./text"], 126, &["text", "Permission denied"]),
        (&["./closed"], 126, &["closed", "Permission denied"]),
        (&["./text/x"], 127, &["text/x", "Not a directory"]),
        (&["./no-interpreter"], 126, &["no-interpreter", "/nosuch/interpreter"]),
        (&["./no-name"], 126, &["no-name", "no interpreter"]),
        (&["./no-env"], 126, &["no-env", "nosuch-interpreter"]),
        (&["./garbage"], 126, &["garbage"]),
    ];
    let mut findings = Findings::default();
    for who in everybody() {
        for (command, code, names) in rows {
            let ended = lab.launch(who, words(&[], command)).run();
            findings.refused(&lab, &format!("{who:?} {command:?}"), &ended, code, names);
        }
    }
    findings.none();
}

#[test]
fn the_shell_runs_by_each_of_its_names() {
    let lab = Lab::new();
    let mut findings = Findings::default();
    lab.file("script", "#!/bin/sh\nexit 0\n", 0o755);
    symlink("script", lab.path("link")).unwrap();
    for who in everybody() {
        for command in [
            &["sh", "-c", "exit 0"][..],
            &["/bin/sh", "-c", ""],
            &["/usr/bin/sh", "-c", ""],
            &["./script"],
            &["./link"],
        ] {
            let ended = lab.launch(who, words(&[], command)).run();
            findings.works(&lab, &format!("{who:?} {command:?}"), &ended);
        }
    }
    findings.none();
}

/// As in a service of systemd's.
#[test]
fn a_launcher_without_a_home_or_any_variable() {
    let lab = Lab::new();
    let mut findings = Findings::default();
    for who in everybody() {
        for line in [
            &["run", "-q", "--state-dir", "mine/s", "--", "/usr/bin/true"][..],
            &["policy", "list"],
            &["ps", "--state-dir", "mine/s"],
        ] {
            let _ = fs::remove_dir_all(lab.path("mine/s"));
            findings.works(&lab, &format!("{who:?} {line:?}"), &lab.launch(who, line).through("env -i").run());
        }
    }
    findings.none();
}

#[test]
fn arguments_that_could_loosen_the_level() {
    let lab = Lab::new();
    lab.file("claude", "#!/bin/sh\n", 0o755);
    let mut findings = Findings::default();
    for argument in [
        "--settings",
        "--settings={}",
        "--dangerously-skip-permissions",
        "--permission-mode=plan",
        "--add-dir",
        "--mcp-config",
    ] {
        let line = words(&["--credential-env", "TOKEN"], &["./claude", "-p", "hi", argument]);
        let ended = lab.launch(Who::Plain, line).env("TOKEN", SECRET).run();
        let name = argument.split('=').next().unwrap();
        findings.refused(&lab, argument, &ended, 125, &[name, "Claude Code", "loosen"]);
    }
    findings.none();
}

#[test]
fn workspaces_that_cannot_be_used() {
    let lab = Lab::new();
    lab.directory("good", 0o700);
    lab.directory("open", 0o777);
    lab.file("file", "", 0o600);
    symlink("good", lab.path("link")).unwrap();
    fs::create_dir(lab.path("roots")).unwrap();
    let here = lab.path("").display().to_string();
    let home = lab.path("mine").display().to_string();
    let rows: &[Row<'_>] = &[
        (&["--workspace", "link"], 125, &["workspace", "link", "name the directory itself"]),
        (&["--workspace", "roots"], 125, &["workspace", "roots", "belongs to"]),
        (&["--workspace", "nosuch"], 125, &["workspace", "nosuch", "No such file"]),
        (&["--workspace", "file"], 125, &["workspace", "file", "Not a directory"]),
        (&["--workspace", "open"], 125, &["workspace", "open", "everybody can write"]),
        (&["--workspace", "/"], 125, &["workspace /"]),
        (&["--workspace", &home], 125, &["workspace", "holds a HOME"]),
        (&["--workspace", &here], 125, &["workspace"]),
        (&["--workspace", "good", "--copy-in", "good"], 125, &["--copy-in", "not a fresh one"]),
        (&["--copy-in", "nosuch"], 125, &["copy in nosuch", "No such file"]),
        (&["--copy-in", "file"], 125, &["copy in file", "Not a directory"]),
    ];
    if nix::unistd::geteuid().is_root() {
        table(rows, &lab, |launch| launch);
    } else {
        need::need("root", false);
    }
}

#[test]
fn a_workspace_is_held_by_one_run() {
    let lab = Lab::new();
    lab.directory("work", 0o700);
    let mut findings = Findings::default();
    for who in everybody() {
        let first =
            lab.launch(who, words(&["--workspace", "work"], &["true"])).env("OUBLIETTE_PAUSE_AT", "running").start();
        assert!(first.stopped());
        let second = lab.launch(who, words(&["--workspace", "work"], &["true"])).run();
        kill(Pid::from_raw(first.child.id() as i32), Signal::SIGCONT).unwrap();
        findings.works(&lab, "first", &first.wait());
        findings.refused(&lab, "second", &second, 125, &["workspace", "work", "another run holds it"]);
    }
    findings.none();
}

#[test]
fn outputs_that_cannot_be_written() {
    let lab = Lab::new();
    lab.file("file", "", 0o600);
    lab.directory("full", 0o700);
    lab.file("full/x", "", 0o600);
    symlink("nosuch", lab.path("link")).unwrap();
    symlink("nosuch", lab.path("link.tar")).unwrap();
    nix::unistd::mkfifo(&lab.path("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    lab.give(&lab.path("fifo"), 0o600);
    let rows: &[Row<'_>] = &[
        (&["--export", "file"], 125, &["export to", "file", "exists"]),
        (&["--export", "full"], 125, &["export to", "full", "exists"]),
        (&["--export", "link"], 125, &["export to", "link", "exists"]),
        (&["--export", "nosuch/x"], 125, &["export to", "nosuch/x", "parent"]),
        (&["--export", "/"], 125, &["export to /", "root directory"]),
        (&["--export", "nosuch/x.tar"], 125, &["export to nosuch/x.tar"]),
        (&["--export", "link.tar"], 125, &["export to link.tar", "link"]),
        (&["--patch", "nosuch/x"], 125, &["patch nosuch/x"]),
        (&["--patch", "full"], 125, &["patch full", "directory"]),
        (&["--patch", "fifo"], 125, &["patch fifo"]),
    ];
    table(rows, &lab, |launch| launch);
}

#[test]
fn files_of_mcp_servers_that_are_broken() {
    let lab = Lab::new();
    lab.file("claude", "#!/bin/sh\n", 0o755);
    lab.file("no.json", format!("{{ {SECRET}"), 0o600);
    lab.file("other.json", format!(r#"{{"mcpServers": {{"a": "{SECRET}"}}}}"#), 0o600);
    lab.file("list.json", format!(r#"["{SECRET}"]"#), 0o600);
    lab.file("name.json", r#"{"mcpServers": {"a b)": {"command": "true"}}}"#, 0o600);
    lab.file("program.json", r#"{"mcpServers": {"tools": {"command": "nosuch-server"}}}"#, 0o600);
    lab.file("latin.json", b"\"\xff\"", 0o600);
    lab.file("open.json", "{}", 0o666);
    lab.directory("directory.json", 0o700);
    let row = |file: &'static str, names: &'static [&'static str]| (file, names);
    let rows = [
        row("nosuch.json", &["nosuch.json", "No such file"]),
        row("no.json", &["no.json", "no JSON", "line 1"]),
        row("other.json", &["other.json", "another form", "line 1"]),
        row("list.json", &["list.json", "another form"]),
        row("name.json", &["name.json", "a b)"]),
        row("program.json", &["MCP server tools", "nosuch-server"]),
        row("latin.json", &["latin.json", "UTF-8"]),
        row("open.json", &["open.json", "others can write"]),
        row("directory.json", &["directory.json", "not a regular file"]),
    ];
    let mut findings = Findings::default();
    for (file, names) in rows {
        let line = words(&["--mcp-config", file, "--credential-env", "TOKEN"], &["./claude"]);
        let ended = lab.launch(Who::Plain, line).env("TOKEN", SECRET).run();
        findings.refused(&lab, file, &ended, 125, names);
    }
    findings.none();
}
