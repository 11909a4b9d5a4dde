//! Real agents through the real broker: the upstream is the scripted model behind TLS.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::broker::agent::{launchers, look};
use crate::broker::tap::{self, Tap};
use crate::broker::upstream::Front;
use crate::model::Model;
use crate::need;
use crate::real_agent::run::{LIMIT, Seen, Stage, output, play};
use crate::real_agent::table::{Neighbour, Table};
use crate::stage::descendants;

/// `oubliette run` with a broker. Options and command are to be added.
pub fn brokered(stage: &Stage, level: &str, model: &Model) -> Command {
    let front = Front::loopback(model.url().trim_start_matches("http://").parse().unwrap(), stage.open());
    let mut command: Command = stage.oubliette();
    command.args(["run", "--user", "alice@example.org", "--level", level, "--timeout", "200s", "--network", "broker"]);
    command.args(["--upstream", &format!("{}/v1", front.url()), "--ca"]).arg(&front.ca);
    command.arg("--credential-file").arg(stage.own().join("token"));
    command
}

/// Lets the agent end, also where the test fails before it says so.
struct LetGo<'a>(&'a Model);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// The launcher of the agent, which is not the neighbour's: what has the others below it. Numbers begin anew one day.
fn launcher(dir: &Path, neighbour: u32) -> Option<u32> {
    let mut others = descendants(neighbour as i32);
    others.push(neighbour as i32);
    let all = launchers(dir).into_iter().filter(|pid| !others.contains(&(*pid as i32)));
    all.max_by_key(|pid| descendants(*pid as i32).len())
}

/// Runs it to the end. While its model holds the last of so many requests, the credential is looked for in its cell,
/// where a process of the agent's name must be.
pub fn watched(
    stage: &Stage,
    command: Command,
    model: Model,
    neighbour: &Neighbour,
    requests: usize,
    agent: &str,
) -> Seen {
    let seen = looked_at(stage, command, model, neighbour, requests, agent);
    check_credential(stage, &seen);
    seen
}

/// The same for an agent with a header of its own.
pub fn looked_at(
    stage: &Stage,
    mut command: Command,
    model: Model,
    neighbour: &Neighbour,
    requests: usize,
    agent: &str,
) -> Seen {
    command.env("LAUNCHER_ONLY", &neighbour.marks.launcher);
    let (dir, other) = (stage.open().to_owned(), neighbour.marks.pid);
    let tap = need::as_root().then(|| Tap::start(move || launcher(&dir, other)));
    let output = std::thread::scope(|scope| {
        let _let_go = LetGo(&model);
        let run = scope.spawn(move || output(&mut command));
        let waits = model.wait_for_requests(requests, LIMIT);
        let looked =
            launcher(stage.open(), neighbour.marks.pid).filter(|_| waits).map(|pid| look(pid, &stage.token, agent));
        model.release();
        let output = run.join().unwrap();
        assert!(looked.is_some(), "it was looked at: {output:?}");
        output
    });
    tap.into_iter().for_each(|tap| tap::check(&tap.stop(), &stage.token));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    let requests = model.requests();
    Seen { status: output.status.code(), stdout, stderr, answers: model.finish(), requests }
}

/// The upstream got the real credential, and nobody printed it.
fn check_credential(stage: &Stage, seen: &Seen) {
    let bearer = format!("Bearer {}", stage.token);
    for request in &seen.requests {
        assert_eq!(request.authorization.as_deref(), Some(bearer.as_str()), "{}", request.path);
        assert!(!request.body.to_string().contains(&stage.token));
    }
    assert!(!seen.stdout.contains(&stage.token) && !seen.stderr.contains(&stage.token));
}

/// Nothing is wrong, and the README has this table between its marks.
pub fn publish(table: &Table, name: &str) {
    let text = table.text();
    println!("{text}");
    assert!(table.wrong.is_empty(), "{}", table.wrong);
    let (begin, end) = (format!("<!-- {name}:begin -->\n"), format!("<!-- {name}:end -->"));
    let path = need::root().join("README.md");
    let readme = fs::read_to_string(&path).expect("README.md");
    let (before, rest) = readme.split_once(&begin).expect("where the table begins");
    let (_, after) = rest.split_once(&end).expect("where the table ends");
    let expected = format!("{before}{begin}{text}{end}{after}");
    if std::env::var_os("OUBLIETTE_BLESS").is_some_and(|value| value == "1") {
        fs::write(&path, expected).expect("README.md");
    } else {
        assert!(readme == expected, "README.md has another table; OUBLIETTE_BLESS=1 writes this one:\n{text}");
    }
}

/// PATH with the agent's own directory.
pub fn path_with(agent: &Path) -> std::ffi::OsString {
    path_with_all([agent])
}

/// PATH with the directories of these programs.
pub fn path_with_all<'a>(programs: impl IntoIterator<Item = &'a Path>) -> std::ffi::OsString {
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let first = programs.into_iter().filter_map(Path::parent).map(Path::to_owned);
    std::env::join_paths(first.chain(std::env::split_paths(&rest))).expect("directories without a colon")
}

/// A second start of the agent in the same cell goes on with the conversation of the first, of which the last request tells
/// under this key: both prompts, and what the first turn wrote and the second read.
pub fn goes_on(command: Command, model: Model, key: &str) -> Result<&'static str, String> {
    let seen = play(command, model);
    let asked = seen.requests.last().map(|request| request.body[key].to_string()).unwrap_or_default();
    let remembers = ["one", "two", "turn one"].iter().all(|text| asked.contains(text));
    let fine = seen.answers.len() == 2 && seen.answers[1].text.contains("turn one");
    if remembers && fine && seen.status == Some(0) {
        Ok("works")
    } else {
        Err(format!("{:?} {:?} {}", seen.status, seen.answers, seen.stderr))
    }
}
