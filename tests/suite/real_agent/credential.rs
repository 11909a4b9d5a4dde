//! The model gets the credential, and on its way nobody sees it: the test looks from outside, as root, at every process
//! of the host and every file of the cell, while the agent runs a command and while it waits for its model.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::run::{LIMIT, Launcher, Stage, bash, output};
use super::table::servers;
use crate::model::{Model, Step};
use crate::need;

/// A process of the host, with its arguments and environment.
struct Process {
    pid: String,
    name: String,
    shown: Vec<u8>,
}

/// Every process that lives now. One that ends meanwhile has nothing to show.
fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path());
    let numbers =
        entries.filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit()));
    let process = |path: PathBuf| {
        let read = |name| fs::read(path.join(name)).unwrap_or_default();
        let name = String::from_utf8_lossy(&read("comm")).trim().to_owned();
        let pid = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Process { pid, name, shown: [read("cmdline"), read("environ")].concat() }
    };
    numbers.map(process).collect()
}

fn contains(bytes: &[u8], part: &str) -> bool {
    bytes.windows(part.len()).any(|window| window == part.as_bytes())
}

/// Every file below a directory that holds a text.
fn files_with(dir: &Path, text: &str) -> Vec<PathBuf> {
    let (mut found, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push(entry.path()),
                Ok(kind) if kind.is_file() && fs::read(entry.path()).is_ok_and(|bytes| contains(&bytes, text)) => {
                    found.push(entry.path());
                }
                _ => {}
            }
        }
    }
    found
}

/// Looks everywhere for the token. `names` must be among the processes that carry the mark of the run, so that it is
/// known that the right ones were looked at.
fn look(token: &str, mark: &str, names: &[&str], state: &Path) {
    let all = processes();
    let ours: Vec<&Process> = all.iter().filter(|process| contains(&process.shown, mark)).collect();
    for name in names {
        assert!(
            ours.iter().any(|p| p.name.starts_with(name)),
            "{name} among {:?}",
            ours.iter().map(|p| &p.name).collect::<Vec<_>>()
        );
    }
    for process in &all {
        assert!(!contains(&process.shown, token), "the token is shown by {} ({})", process.name, process.pid);
    }
    let agent = ours.iter().find(|process| process.name.starts_with("claude")).expect("the agent");
    let root = PathBuf::from(format!("/proc/{}/root", agent.pid));
    for dir in ["home", "tmp", "work", "dev/shm", "etc/oubliette", "etc/claude-code"] {
        assert_eq!(files_with(&root.join(dir), token), Vec::<PathBuf>::new());
    }
    // The agent's own record of what it was asked, so that it is known that its files were looked at.
    assert!(!files_with(&root.join("home"), "whoami-prompt").is_empty(), "a record in {}", root.display());
    assert_eq!(files_with(state, token), Vec::<PathBuf>::new());
}

/// The connection that a command of the agent's makes; it lives until that is closed. Nothing if the run ends first.
fn accept(listener: &TcpListener, ended: impl Fn() -> bool) -> Option<TcpStream> {
    while !ended() {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(100_u8)) == Ok(1) {
            return Some(listener.accept().expect("a connection").0);
        }
    }
    None
}

/// Lets the agent end, also where the test fails before it says so.
struct LetGo<'a>(&'a Model);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// While the run lasts: a command waits until its connection is closed, then the agent waits for its model.
fn run_and_look(
    stage: &Stage,
    mut command: Command,
    model: &Model,
    port: &TcpListener,
    token: &str,
    mark: &str,
) -> Output {
    std::thread::scope(|scope| {
        let _let_go = LetGo(model);
        let run = scope.spawn(move || output(&mut command));
        let state = stage.state();
        let Some(mut connection) = accept(port, || run.is_finished()) else { return run.join().expect("the run") };
        let mut said = [0; 4];
        connection.set_read_timeout(Some(LIMIT)).expect("a socket");
        connection.read_exact(&mut said).expect("what the command says");
        assert_eq!(&said, b"cat\n", "the name of the process that waits");
        look(token, mark, &["oubliette", "claude", "cat", "python3"], &state);
        drop(connection);
        assert!(model.wait_for_answers(2, LIMIT) && model.wait_for_requests(3, LIMIT), "{:?}", model.answers());
        look(token, mark, &["oubliette", "claude", "python3"], &state);
        model.release();
        run.join().expect("the run")
    })
}

fn show(launcher: Launcher, token: &str, by: impl FnOnce(&Stage, &mut Command)) {
    let Some(stage) = Stage::new(launcher).filter(|_| need::as_root()) else { return };
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let number = port.local_addr().expect("its number").port();
    let wait = format!("exec 3<>/dev/tcp/127.0.0.1/{number}; cat /proc/self/comm - <&3 >&3");
    let model = Model::play(vec![bash("env; ls -la ~").into(), bash(&wait).into(), Step::Hold]);
    let mark = format!("mark-{:032x}", rand::random::<u128>());
    let mut command = stage.start("developer", &model);
    command.args(servers(&stage)).args(["--setenv", &format!("MARK={mark}"), "--report-fd", "2", "--network", "host"]);
    by(&stage, &mut command);
    command.arg("--").arg(&stage.agent).args(["-p", "whoami-prompt"]);
    let output = run_and_look(&stage, command, &model, &port, token, &mark);
    let printed = [output.stdout, output.stderr].concat();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&printed));
    assert!(contains(&printed, "\"outcome\"") && !contains(&printed, token), "{}", String::from_utf8_lossy(&printed));
    let (requests, answers) = (model.requests(), model.finish());
    assert!(answers[0].text.contains(&mark), "the command's environment was shown: {}", answers[0].text);
    assert!(answers.iter().all(|answer| !answer.text.contains(token)), "{answers:?}");
    let bearer = format!("Bearer {token}");
    let oauth = token.starts_with("sk-ant-oat");
    let expected = if oauth { (Some(bearer.as_str()), None) } else { (None, Some(token)) };
    for request in requests.iter().filter(|request| request.path.contains("/v1/messages")) {
        assert_eq!((request.authorization.as_deref(), request.x_api_key.as_deref()), expected, "{}", request.path);
        assert!(!request.body.to_string().contains(token));
    }
    assert_eq!(
        files_with(stage.open(), token),
        [stage.own().join("token")].map(|file| file.exists().then_some(file)).into_iter().flatten().collect::<Vec<_>>()
    );
}

#[test]
fn an_api_key_from_a_variable_of_roots_launcher() {
    let token = format!("sk-ant-api03-{:032x}", rand::random::<u128>());
    show(Launcher::Root, &token, |stage, command| {
        fs::remove_file(stage.own().join("token")).expect("a token that is not used");
        command.args(["--credential-env", "TOKEN"]).env("TOKEN", &token);
    });
}

#[test]
fn an_oauth_token_from_a_file_of_a_plain_users_launcher() {
    let token = format!("sk-ant-oat01-{:032x}", rand::random::<u128>());
    show(Launcher::Plain, &token, |stage, command| {
        command.arg("--credential-file").arg(stage.write("token", &token));
    });
}
