//! A run with the file of an agent's own login: the broker has the token for requests, the agent a phantom of it, and what
//! renews it is in no process at all.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use crate::broker::agent::{launcher, look};
use crate::broker::upstream::Front;
use crate::model::{Call, Model, Request, Step};
use crate::need;
use crate::real_agent::run::{LAUNCHERS, LIMIT, Launcher, Stage, output};
use crate::secret::in_memory;

/// An agent with a login.
struct Agent {
    name: &'static str,
    /// How the name of its process begins.
    process: &'static str,
    arguments: &'static [&'static str],
    /// What comes after the host in its base URL.
    path: &'static str,
    /// How the token begins.
    beginning: &'static str,
    /// Its file, for a token, what renews that, and when that ends.
    file: fn(&str, &str, SystemTime) -> Value,
    /// Calls that make a file.
    steps: fn() -> Vec<Step>,
}

const ACCOUNT: &str = "5f2b-account";

fn millis(end: SystemTime) -> u64 {
    end.duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

const CLAUDE: Agent = Agent {
    name: "claude",
    process: "claude",
    arguments: &["-p", "go"],
    path: "",
    beginning: "sk-ant-oat01-",
    file: |token, renewal, end| {
        json!({"claudeAiOauth": {
            "accessToken": token, "refreshToken": renewal, "expiresAt": millis(end), "scopes": ["user:inference"],
        }})
    },
    steps: || vec![Call::new("Write", json!({"file_path": "/work/out.txt", "content": "made"})).into(), Step::Hold],
};

/// Its token is a JSON Web Token, which ends when it says so itself.
const CODEX: Agent = Agent {
    name: "codex",
    process: "codex",
    arguments: &["exec", "--skip-git-repo-check", "go"],
    path: "/backend-api/codex",
    beginning: "",
    file: |token, renewal, _| {
        json!({"OPENAI_API_KEY": null, "auth_mode": "chatgpt", "last_refresh": "2026-01-01T00:00:00Z", "tokens": {
            "id_token": "e30.e30.e30", "access_token": token, "refresh_token": renewal, "account_id": ACCOUNT,
        }})
    },
    steps: || vec![Call::new("exec_command", json!({"cmd": "echo made >out.txt"})).into(), Step::Hold],
};

const GEMINI: Agent = Agent {
    name: "gemini",
    process: "node",
    arguments: &["-p", "go"],
    path: "",
    beginning: "ya29.",
    file: |token, renewal, end| json!({"access_token": token, "refresh_token": renewal, "expiry_date": millis(end), "token_type": "Bearer"}),
    steps: || vec![Call::new("write_file", json!({"file_path": "out.txt", "content": "made"})).into(), Step::Hold],
};

fn hours(count: u64) -> SystemTime {
    SystemTime::now() + std::time::Duration::from_secs(count * 3600)
}

impl Agent {
    /// A stage whose token is one of this agent's login, and what renews that. The file is `login.json`.
    fn stage(&self, launcher: Launcher, end: SystemTime) -> Option<(Stage, String)> {
        let mut stage = Stage::with(launcher, self.name, self.beginning)?;
        if self.name == "codex" {
            let claims = json!({"exp": end.duration_since(UNIX_EPOCH).unwrap().as_secs(), "jti": stage.token});
            stage.token = format!("e30.{}.{:032x}", BASE64URL_NOPAD.encode(claims.to_string().as_bytes()), 0xfeed_u128);
        }
        let renewal = format!("renews-{:032x}", rand::random::<u128>());
        stage.write("login.json", &(self.file)(&stage.token, &renewal, end).to_string());
        Some((stage, renewal))
    }
}

/// Every request came with the token, and Codex's with the account.
fn check_requests(agent: &Agent, stage: &Stage, requests: &[Request]) {
    let bearer = format!("Bearer {}", stage.token);
    assert!(requests.len() >= 2, "{requests:?}");
    for request in requests {
        assert_eq!(request.authorization.as_deref(), Some(bearer.as_str()), "{} {}", agent.name, request.path);
        let account = (agent.name == "codex").then_some(ACCOUNT);
        assert_eq!(request.account.as_deref(), account, "{} {}", agent.name, request.path);
    }
}

fn works(agent: &Agent, launched_by: Launcher) {
    let Some((stage, renewal)) = agent.stage(launched_by, hours(2)) else { return };
    let model = Model::play((agent.steps)());
    let front = Front::loopback(model.url().trim_start_matches("http://").parse().unwrap(), stage.open());
    let export = stage.own().join("out");
    let mut command = stage.oubliette();
    command.args(["run", "--quiet", "--user", "alice", "--level", "balanced", "--timeout", "200s", "--report-fd", "2"]);
    command.args(["--upstream", &format!("{}{}", front.url(), agent.path), "--ca"]).arg(&front.ca);
    command.arg("--login-file").arg(stage.own().join("login.json")).arg("--export").arg(&export);
    command.arg("--").arg(&stage.agent).args(agent.arguments);
    let (output, looked) = std::thread::scope(|scope| {
        let run = scope.spawn(move || output(&mut command));
        let held = model.wait_for_answers(1, LIMIT);
        let looked = launcher(stage.open()).filter(|_| held && need::as_root()).map(|pid| {
            look(pid, &stage.token, agent.process);
            for pid in [vec![pid as i32], crate::stage::descendants(pid as i32)].concat() {
                assert_eq!(in_memory(pid, renewal.as_bytes()), 0, "what renews the token, in {pid}");
            }
        });
        model.release();
        (run.join().unwrap(), looked)
    });
    let context = format!("{} {launched_by:?}: {output:?}", agent.name);
    assert_eq!(output.status.code(), Some(0), "{context}");
    assert!(looked.is_some() || !need::as_root(), "it was looked at: {context}");
    let made = fs::read_to_string(export.join("out.txt")).unwrap_or_default();
    assert_eq!(made.trim_end(), "made", "{context}");
    check_requests(agent, &stage, &model.requests());
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    for secret in [&stage.token, &renewal] {
        assert!(memchr::memmem::find(&said, secret.as_bytes()).is_none(), "{context}");
    }
    assert_eq!(stage.left(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn claude_code_works_with_its_login() {
    LAUNCHERS.iter().for_each(|launcher| works(&CLAUDE, *launcher));
}

#[test]
fn codex_works_with_its_login() {
    LAUNCHERS.iter().for_each(|launcher| works(&CODEX, *launcher));
}

#[test]
fn gemini_cli_works_with_its_login() {
    LAUNCHERS.iter().for_each(|launcher| works(&GEMINI, *launcher));
}

/// Without a broker the agent holds the token, and not what renews it.
#[test]
fn without_a_broker_what_renews_the_token_stays_outside_too() {
    let Some((stage, renewal)) = CODEX.stage(Launcher::Plain, hours(2)) else { return };
    let model = Model::play(vec![Call::new("exec_command", json!({"cmd": "cat ~/.codex/auth.json; env"})).into()]);
    let mut command = stage.oubliette();
    command.args([
        "run",
        "--quiet",
        "--user",
        "alice",
        "--level",
        "developer",
        "--timeout",
        "200s",
        "--network",
        "host",
    ]);
    command.args(["--upstream", &model.url()]).arg("--login-file").arg(stage.own().join("login.json"));
    command.arg("--").arg(&stage.agent).args(CODEX.arguments);
    let output = output(&mut command);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    check_requests(&CODEX, &stage, &model.requests());
    let answers = model.finish();
    assert!(answers[0].text.contains(&stage.token), "{answers:?}");
    assert!(!answers[0].text.contains(&renewal), "{answers:?}");
}

#[test]
fn a_token_that_has_ended_or_is_not_there_is_said_before_anything_is_made() {
    for agent in [&CLAUDE, &CODEX, &GEMINI] {
        let ended = SystemTime::now() - std::time::Duration::from_secs(90);
        let Some((stage, _)) = agent.stage(Launcher::Plain, ended) else { continue };
        let mut explained = stage.oubliette();
        explained.args(["explain", "--user", "a", "--login-file", "login.json", "--"]).arg(&stage.agent).arg("x");
        let explained = String::from_utf8(output(&mut explained).stdout).unwrap();
        assert!(
            explained.contains("login.json the token for requests alone; what renews it goes nowhere"),
            "{explained}"
        );
        let refused = |text: &str| {
            stage.write("login.json", text);
            let mut command = stage.oubliette();
            command.args(["run", "--user", "a", "--login-file", "login.json", "--"]).arg(&stage.agent).arg("x");
            let output = output(&mut command);
            assert_eq!(output.status.code(), Some(125), "{output:?}");
            assert_eq!(stage.left(), Vec::<std::path::PathBuf>::new());
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(said.contains("login file login.json") && said.contains("hint: "), "{said}");
            assert!(!said.contains(&stage.token), "{said}");
            said
        };
        let text = fs::read_to_string(stage.own().join("login.json")).unwrap();
        assert!(refused(&text).contains("its token ended 1m 3"), "{}", agent.name);
        for broken in
            ["{}".to_owned(), text.replace(&stage.token, ""), stage.token.clone(), text[..text.len() - 1].into()]
        {
            assert!(refused(&broken).contains("it has no `"), "{} {broken}", agent.name);
        }
        assert!(refused("").contains("it is empty"));
    }
}

#[test]
fn an_agent_without_a_login_says_so() {
    let Some((stage, _)) = CLAUDE.stage(Launcher::Plain, hours(2)) else { return };
    let mut command = stage.oubliette();
    command.args(["run", "--user", "a", "--agent", "none", "--login-file", "login.json", "--", "true"]);
    let output = output(&mut command);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("does not say what one of its own login looks like") && said.contains("hint: "), "{said}");
}
