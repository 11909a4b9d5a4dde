//! Policies, agent files and the operator's config.toml: where they come from, which comes first, what is wrong with
//! them; `policy list|show|check`.

use std::fs;

use crate::launch::{Ended, Lab, Launch, Who, everybody};
use crate::need;
use crate::real_agent::run::pinned;

const BALANCED: &str = include_str!("../../policies/balanced.toml");
const CLAUDE: &str = include_str!("../../policies/agents/claude.toml");

fn line_of(text: &str, word: &str) -> String {
    format!("line {}", 1 + text[..text.find(word).unwrap()].matches('\n').count())
}

#[track_caller]
fn refused(ended: &Ended, names: &[&str]) {
    assert_eq!(ended.wrong(125, names), None);
}

#[track_caller]
fn well(ended: Ended) -> String {
    assert!(ended.code() == 0 && ended.stderr.is_empty(), "{ended:?}");
    ended.stdout
}

#[test]
fn a_policy_with_a_mistake_names_line_and_known_words() {
    let lab = Lab::new();
    let cases = [
        ("[limits]", "[limits]\nmemroy = \"1GiB\"", "memroy", &["unknown field `memroy`", "`memory`", "`disk`"][..]),
        ("[network]", "[netwrok]\nudp = true\n[network]", "[netwrok]", &["unknown field `netwrok`", "`network`"]),
        ("\"other-homes\"", "\"other-hoems\"", "other-hoems", &["unknown variant `other-hoems`", "`other-homes`"]),
        ("[kernel]", "[layers]\npidd = \"off\"\n[kernel]", "pidd", &["unknown variant `pidd`", "`landlock-fs`"]),
        ("[kernel]", "[layers]\npid = \"on\"\n[kernel]", "pid = \"on\"", &["unknown variant `on`", "`required`"]),
        ("connect = [443]", "connect = \"all\"", "connect = \"all\"", &["\"any\" or a list of ports"]),
        ("connect = [443]", "connect = [99999]", "connect = [99999]", &["\"any\" or a list of ports"]),
        ("memory = \"4GiB\"", "memory = \"4GB\"", "memory = \"4GB\"", &["`4GB`", "512MiB"]),
        ("time = \"1h\"", "time = \"0s\"", "time = \"0s\"", &["`0s`"]),
        ("execute = \"any\"", "execute = \"some\"", "execute = \"some\"", &["\"any\" or a list of programs"]),
        ("execute = \"any\"", "execute = [\"bin/x\"]", "execute = [", &["list of programs by name or by path"]),
        ("\"cat\"", "\"\"", "commands = [", &["list of program names without blanks"]),
        ("\"cat\"", "\"cat) \"", "commands = [", &["list of program names without blanks"]),
        ("\"cat\"", "\"*\"", "commands = [", &["list of program names without blanks"]),
        ("[kernel]", "[kernel\n", "[kernel\n", &[]),
    ];
    for (from, to, at, names) in cases {
        assert!(BALANCED.contains(from), "{from}");
        let text = BALANCED.replacen(from, to, 1);
        let place = line_of(&text, at);
        lab.file("p.toml", &text, 0o600);
        let mut names = names.to_vec();
        names.extend(["p.toml", &place]);
        for words in [&["run", "--policy", "p.toml", "--", "true"][..], &["policy", "check", "p.toml"]] {
            refused(&lab.launch(Who::Plain, words).run(), &names);
        }
        fs::remove_file(lab.path("p.toml")).unwrap();
    }
}

#[test]
fn files_that_decide_nothing() {
    let lab = Lab::new();
    lab.file("open.toml", BALANCED, 0o666);
    lab.file("group.toml", BALANCED, 0o620);
    lab.file("closed.toml", BALANCED, 0o000);
    lab.file("long.toml", "#".repeat(300 * 1024), 0o600);
    lab.file("latin.toml", b"description = \"\xff\"", 0o600);
    lab.file("empty.toml", "", 0o600);
    lab.directory("directory.toml", 0o700);
    nix::unistd::mkfifo(&lab.path("fifo.toml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    lab.give(&lab.path("fifo.toml"), 0o600);
    for (name, names) in [
        ("open.toml", &["others can write it", "0666", "chmod go-w"][..]),
        ("group.toml", &["others can write it", "0620"]),
        ("closed.toml", &["Permission denied"]),
        ("long.toml", &["larger than"]),
        ("latin.toml", &["UTF-8"]),
        ("empty.toml", &["description"]),
        ("directory.toml", &["not a regular file"]),
        ("fifo.toml", &["not a regular file"]),
        ("nosuch.toml", &["No such file"]),
    ] {
        let mut names = names.to_vec();
        names.push(name);
        refused(&lab.launch(Who::Plain, ["run", "--policy", name, "--", "true"]).run(), &names);
        refused(&lab.launch(Who::Plain, ["policy", "check", name]).run(), &names);
    }
    if need::as_root() {
        // Somebody else's, even where he lets nobody else write it: root only believes root.
        lab.file("theirs.toml", BALANCED, 0o644);
        let ended = lab.launch(Who::Root, ["run", "--policy", "theirs.toml", "--", "true"]).run();
        refused(&ended, &["theirs.toml", "others can write it"]);
    }
    assert_eq!(lab.left(), Vec::<String>::new());
}

#[test]
fn list_show_and_check() {
    let lab = Lab::new();
    let list = well(lab.launch(Who::Plain, ["policy", "list"]).run());
    for word in [
        "level paranoid",
        "level balanced",
        "level developer",
        "agent claude",
        "agent codex",
        "agent gemini",
        "agent kimi",
        "agent kiro",
        "agent qwen",
        "agent none",
        "agent opencode",
        "compiled in",
    ] {
        assert!(list.contains(word), "{list}");
    }
    assert_eq!(list.lines().filter(|line| !line.starts_with(' ')).count(), 11, "{list}");
    assert_eq!(well(lab.launch(Who::Plain, ["policy", "show", "balanced"]).run()), BALANCED);
    assert_eq!(well(lab.launch(Who::Plain, ["policy", "show", "claude"]).run()), CLAUDE);
    // What it prints is a policy of one's own.
    lab.file("p.toml", BALANCED, 0o600);
    lab.file("a.toml", CLAUDE, 0o600);
    assert!(well(lab.launch(Who::Plain, ["policy", "check", "p.toml"]).run()).contains("a sound policy"));
    assert!(well(lab.launch(Who::Plain, ["policy", "check", "a.toml"]).run()).contains("a sound agent file"));
    well(lab.launch(Who::Plain, ["run", "-q", "--policy", "p.toml", "--", "true"]).run());
    refused(&lab.launch(Who::Plain, ["policy", "show", "../balanced"]).run(), &["../balanced"]);
}

#[test]
fn agents_that_look_for_their_credential_in_a_variable_alone() {
    let lab = Lab::new();
    lab.file("token", "sk-1", 0o600);
    let run = |agent: &str, program: &str| {
        lab.file(program, "#!/bin/sh\n", 0o755);
        let program = lab.path(program).display().to_string();
        let words = ["run", "--network", "host", "--agent", agent, "--credential-file", "token", "--", &program];
        lab.launch(Who::Plain, words).run()
    };
    refused(&run("kimi", "kimi"), &["KIMI_MODEL_API_KEY", "every program that it starts", "--network broker"]);
    let kiro = run("kiro", "kiro-cli");
    refused(&kiro, &["KIRO_API_KEY", "every program that it starts", "`environment = true`"]);
    assert!(!kiro.stderr.contains("broker"), "no broker takes it: {kiro:?}");
}

/// What the list says was tested is what CI installs, and nothing else.
#[test]
fn list_of_what_was_tested() {
    let lab = Lab::new();
    let list = well(lab.launch(Who::Plain, ["policy", "list", "--json"]).run());
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let installed = |name: &str| pinned(&format!("\"{name} "))?.split(' ').nth(1).map(str::to_owned);
    for agent in list["agents"].as_array().unwrap() {
        let name = agent["name"].as_str().unwrap();
        assert_eq!(agent["tested"].as_str().map(str::to_owned), installed(name), "{agent}");
        assert_eq!(agent["settings"].is_null(), ["kimi", "kiro", "none"].contains(&name), "{agent}");
        let ways = agent["credential"].as_array().unwrap();
        assert!(!ways.is_empty() && ways.iter().all(|way| way["name"].is_string()), "{agent}");
    }
    let text = well(lab.launch(Who::Plain, ["policy", "list"]).run());
    let kiro = text.split("agent ").find(|part| part.starts_with("kiro")).unwrap();
    assert!(kiro.contains("kernel only") && kiro.contains("tested with      nothing"), "{kiro}");
    assert!(!kiro.contains("login") && !kiro.contains("asks") && !kiro.contains("endpoints"), "{kiro}");
    let claude = text.split("agent ").find(|part| part.starts_with("claude")).unwrap();
    for line in [
        "login            the token of ~/.claude/.credentials.json",
        "asks             https://api.anthropic.com, or what --upstream names, and no other host",
        "endpoints        bedrock, vertex",
        "resumes from     ~/.claude/projects/*/*.jsonl, by --resume",
    ] {
        assert!(claude.contains(line), "{claude}");
    }
}

#[test]
fn agent_files_with_a_mistake() {
    let lab = Lab::new();
    for (from, to, names) in [
        ("[arguments]", "[arguments]\ninserts = []", &["unknown field `inserts`", "`insert`"][..]),
        ("title = ", "name = \"x\"\ntitle = ", &["unknown field `name`", "`title`"]),
        ("required = true", "requierd = true", &["unknown field `requierd`", "`required`"]),
        ("[settings.deny]", "[settings.dney]", &["unknown field `dney`", "`deny`"]),
        ("none = \"dontAsk\"", "none = \"bypassPermissions\"", &["unknown variant `bypassPermissions`", "`dontAsk`"]),
        ("\"Edit(//etc/**)\"", "\"Edit(/etc/**)\"", &["never matches"]),
        ("other-homes = ", "other-hoems = ", &["unknown variant `other-hoems`"]),
        ("commands = [\"claude\"]", "commands = [\"../claude\"]", &["`../claude` is no name of a program"]),
        ("descriptor = \"", "descriptor = \"A=", &["is no variable"]),
        ("[environment.set]", "[environment.set]\n\"a\\nb\" = \"c\"", &["is no variable", "a\\nb"]),
        ("format = \"claude\"", "format = \"cloud\"", &["unknown variant `cloud`", "`claude`"]),
    ] {
        assert!(CLAUDE.contains(from), "{from}");
        lab.file("a.toml", CLAUDE.replacen(from, to, 1), 0o600);
        let mut names = names.to_vec();
        names.push("a.toml line ");
        refused(&lab.launch(Who::Plain, ["policy", "check", "a.toml"]).run(), &names);
        fs::remove_file(lab.path("a.toml")).unwrap();
    }
}

/// A directory of policies with a level `mine`, a `balanced` and an agent `robot` of its own.
fn policies(lab: &Lab, name: &str) {
    lab.directory(name, 0o755);
    lab.directory(&format!("{name}/agents"), 0o755);
    let text = |title: &str| BALANCED.replacen("description = \"", &format!("description = \"{name} {title}: "), 1);
    lab.file(&format!("{name}/mine.toml"), text("mine"), 0o644);
    lab.file(&format!("{name}/balanced.toml"), text("balanced"), 0o644);
    lab.file(&format!("{name}/agents/robot.toml"), "title = \"Robot\"\ncommands = [\"true\"]\n", 0o644);
}

#[test]
fn a_directory_of_policies_comes_first() {
    let lab = Lab::new();
    policies(&lab, "own");
    lab.file("own/broken.toml", "nonsense", 0o644);
    let own = lab.path("own");
    let explain = |words: &[&str]| {
        let line = ["explain", "--state-dir", "mine"].iter().chain(words).chain(&["--", "true"]).copied();
        lab.launch(Who::Plain, line.map(str::to_owned).collect::<Vec<_>>())
    };
    // Without it there is neither.
    refused(&explain(&["--level", "mine"]).run(), &["level `mine`"]);
    for (by, launch) in [
        ("variable", explain(&["--level", "mine"]).env("OUBLIETTE_POLICY_DIR", &own)),
        ("flag", explain(&["--level", "mine", "--policy-dir", "own"])),
        // The flag is nearer than the variable.
        ("flag", explain(&["--level", "mine", "--policy-dir", "own"]).env("OUBLIETTE_POLICY_DIR", "/nosuch")),
    ] {
        let text = well(launch.run());
        assert!(text.starts_with("Robot at level mine (") && text.contains("own/mine.toml"), "{text}");
        assert!(text.contains(&format!("({by})")), "{text}");
    }
    let text = well(explain(&[]).env("OUBLIETTE_POLICY_DIR", &own).run());
    assert!(text.contains("own/balanced.toml"), "a level of the directory comes before the compiled-in one: {text}");
    let ended = explain(&["--level", "broken"]).env("OUBLIETTE_POLICY_DIR", &own).run();
    refused(&ended, &["broken.toml line 1"]);
    fs::remove_file(lab.path("own/broken.toml")).unwrap();

    let list = well(lab.launch(Who::Plain, ["policy", "list"]).env("OUBLIETTE_POLICY_DIR", &own).run());
    for word in ["level mine", "own mine: ", "own balanced: ", "agent robot", "own/agents/robot.toml"] {
        assert!(list.contains(word), "{list}");
    }
    let shown = well(lab.launch(Who::Plain, ["policy", "show", "balanced"]).env("OUBLIETTE_POLICY_DIR", &own).run());
    assert!(shown.contains("own balanced: "), "{shown}");
    // doctor knows the levels that a run would.
    let ended = lab.launch(Who::Plain, ["doctor"]).env("OUBLIETTE_POLICY_DIR", &own).run();
    assert!(ended.stdout.lines().next().unwrap_or_default().contains("mine"), "{ended:?}");
    // What cannot be read is not passed over.
    lab.give(&lab.path("own/balanced.toml"), 0o000);
    refused(&explain(&[]).env("OUBLIETTE_POLICY_DIR", &own).run(), &["own/balanced.toml", "Permission denied"]);
    lab.give(&lab.path("own/balanced.toml"), 0o666);
    refused(&explain(&[]).env("OUBLIETTE_POLICY_DIR", &own).run(), &["own/balanced.toml", "others can write it"]);
}

/// Puts an empty /etc with this /etc/oubliette/config.toml in front of the host's.
fn with_config<'a>(lab: &'a Lab, launch: Launch<'a>, text: &str, mode: u32) -> Launch<'a> {
    let path = lab.path("config.toml");
    let _ = fs::remove_file(&path);
    fs::write(&path, text).unwrap();
    launch
        .mounts("mount -t tmpfs -o mode=755 none /etc && mkdir /etc/oubliette")
        .mounts(&format!("cp $L/config.toml /etc/oubliette/ && chmod {mode:o} /etc/oubliette/config.toml"))
}

#[test]
fn every_value_says_where_it_comes_from() {
    if !need::as_root() {
        return;
    }
    let lab = Lab::new();
    policies(&lab, "operators");
    for name in ["mine.toml", "balanced.toml", "agents/robot.toml"] {
        std::os::unix::fs::chown(lab.path(&format!("operators/{name}")), Some(0), Some(0)).unwrap();
    }
    for (user, text) in [(Who::Root, "root"), (Who::Plain, "plain")] {
        let config = format!(
            "level = \"paranoid\"\nnetwork = \"none\"\ntimeout = \"7m\"\ngrace = \"3s\"\nrequire = [\"seccomp\"]\n\
             upstream = \"http://model.example:1234\"\npolicy-dir = \"{}\"\n",
            lab.path("operators").display()
        );
        let line = ["explain", "--timeout", "90s", "--require", "no-new-privs", "--user", text, "--", "/bin/sleep"];
        let launch = lab.launch(user, line).env("OUBLIETTE_GRACE", "2s").env("OUBLIETTE_LEVEL", "mine");
        let text = well(with_config(&lab, launch, &config, 0o644).run());
        for (name, value, from) in [
            ("timeout", "90s", "flag"),
            ("grace", "2s", "variable"),
            ("level", "mine", "variable"),
            ("network", "none", "config.toml"),
            ("require", "seccomp", "config.toml"),
            ("require", "no-new-privs", "flag"),
            ("workspace", "fresh", "default"),
            ("agent", "none", "default"),
        ] {
            let found = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let wanted = [name, value, &format!("({from})")];
            assert!(found.into_iter().any(|words| words == wanted), "{wanted:?} in\n{text}");
        }
        // The operator's default for agents is no business of a program that has no use for it.
        assert!(!text.contains("model.example"), "{text}");
        let list = with_config(&lab, lab.launch(user, ["policy", "list"]), &config, 0o644).run();
        assert!(list.stdout.contains("operators mine: "), "{list:?}");
    }
}

#[test]
fn a_config_with_a_mistake_stops_everything() {
    if !need::as_root() {
        return;
    }
    let lab = Lab::new();
    let cases: [(&str, u32, &[&str]); 9] = [
        ("levle = \"x\"\n", 0o644, &["config.toml line 1", "unknown field `levle`", "`level`"]),
        ("\nnetwork = \"some\"\n", 0o644, &["config.toml line 2", "`host`, `none`, `broker`"]),
        ("level = \"nosuch\"\n", 0o644, &["level `nosuch`"]),
        ("timeout = \"soon\"\n", 0o644, &["`timeout` of /etc/oubliette/config.toml", "correct the file"]),
        ("uid-range = \"1-2\"\n", 0o644, &["`uid-range` of /etc/oubliette/config.toml"]),
        ("require = [\"nosuch\"]\n", 0o644, &["`require` of /etc/oubliette/config.toml", "nosuch"]),
        ("level = \n", 0o644, &["config.toml line 1"]),
        ("level = \"balanced\"\n", 0o666, &["config.toml", "others can write it"]),
        ("level = \"balanced\"\npolicy = \"x\"\n", 0o644, &["--level and --policy"]),
    ];
    for (text, mode, names) in cases {
        for who in everybody() {
            refused(&with_config(&lab, lab.launch(who, ["run", "--", "true"]), text, mode).run(), names);
        }
    }
    // A file that the launcher may not read is the operator's word all the same.
    refused(
        &with_config(&lab, lab.launch(Who::Plain, ["run", "--", "true"]), "", 0o600).run(),
        &["config.toml", "denied"],
    );
    let ended = lab.launch(Who::Plain, ["run", "--", "true"]).env("OUBLIETTE_TIMEOUT", "soon").run();
    refused(&ended, &["OUBLIETTE_TIMEOUT", "soon", "variable"]);
    assert_eq!(lab.left(), Vec::<String>::new());
}

/// A list of programs names those of PATH: what the workspace has under such a name is none of them.
#[test]
fn a_program_of_the_list_is_not_the_workspaces() {
    if !need::need("landlock-fs", oubliette::sys::landlock::abi().is_ok()) {
        return;
    }
    let lab = Lab::new();
    let policy =
        "description = \"a list\"\ndeny = []\ncommands = \"any\"\n[kernel]\nexecute = [\"sh\", \"cat\", \"tool\"]\n";
    let policy = lab.file("list.toml", policy, 0o600).display().to_string();
    let repository = lab.directory("repository", 0o700);
    for name in ["cat", "tool"] {
        lab.file(&format!("repository/{name}"), "#!/bin/sh\necho ran\n", 0o755);
    }
    let repository = repository.display().to_string();
    for who in everybody() {
        if who == Who::Root {
            for path in [&policy, &repository] {
                std::os::unix::fs::chown(path, Some(0), Some(0)).unwrap();
            }
        }
        let line = ["run", "--require", "landlock-fs", "--policy", &policy, "--copy-in", &repository, "--"];
        let run = |script: &str| lab.launch(who, line.iter().copied().chain(["sh", "-c", script])).run();
        for name in ["cat", "tool"] {
            let ended = run(&format!("ls; ./{name}"));
            assert!(ended.code() == 126 && !ended.stdout.contains("ran"), "{who:?} {name}: {ended:?}");
        }
        assert_eq!(run("cat cat >copy && exit 7").code(), 7, "{who:?}: what is on PATH may be executed");
    }
}
