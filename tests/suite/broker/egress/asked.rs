//! What the caller may add to a list, what `explain` says of it, and a list with nothing on it.

use std::process::Command;

use clap::{CommandFactory, FromArgMatches};
use oubliette::fs::trusted::parse;
use oubliette::request::args::{Cli, RunArgs};
use oubliette::request::{Config, From, Request};

use super::super::upstream::Upstream;
use super::super::{Service, everybody, said, somebody};
use super::{Listed, bare};
use crate::stage::{Done, output};

/// `explain` with these words, up to the command.
fn explain(service: &Service, words: &[&str], variables: &[(&str, &str)]) -> Done {
    let mut command = service.stage.command(service.who, &[]);
    command.arg("explain").arg("--state-dir").arg(service.stage.state(service.who));
    for (name, value) in variables {
        command.env(name, value);
    }
    output(command.args(words).args(["--", "python3"]))
}

#[test]
fn explain_prints_the_list_and_who_named_each_host() {
    let Some(service) = Service::new(somebody()) else { return };
    let policy = service.network(
        "allow = [\"API.example\", \"http://deb.example\"]\nallow-more = true\nconnections = 9\nbytes = \"5MiB\"\n\
         allow-private = { \"mirror.example:8443\" = \"10.1.2.3\", \"http://cache.example\" = \"fd00::1\" }",
    );
    let policy = policy.to_str().unwrap();
    let words = ["--policy", policy, "--agent", "none", "--allow", "*.more.example", "--allow", "git.example:8443"];
    let done = explain(&service, &words, &[("OUBLIETTE_ALLOW", "a.example, b.example:99")]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    for line in [
        "net             enforce  its own loopback, and on it the broker",
        "broker    http://127.0.0.1:20080, a process of its own\n",
        "host      api.example, by TLS (policy)",
        "host      http://deb.example (policy)",
        "host      mirror.example:8443 at 10.1.2.3, by TLS (policy)",
        "host      http://cache.example at fd00::1 (policy)",
        "host      *.more.example, by TLS (flag)",
        "host      git.example:8443, by TLS (flag)",
        "host      a.example, by TLS (variable)",
        "host      b.example:99, by TLS (variable)",
        "bounds    9 connections at once, 5MiB in all, 5m without a byte",
        "HTTPS_PROXY=http://cell:{pass}@127.0.0.1:20080",
        "http_proxy=http://cell:{pass}@127.0.0.1:20080",
        "NO_PROXY=127.0.0.1,localhost,::1",
        "allow           *.more.example (flag)",
    ] {
        assert!(done.out.contains(line), "{line}: {}", done.out);
    }
    let json = explain(&service, &[&words[..], &["--json"]].concat(), &[]);
    let plan: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    let hosts = plan["plan"]["broker"]["egress"]["hosts"].as_array().unwrap();
    let want = serde_json::json!({"rule": "mirror.example:8443", "address": "10.1.2.3", "from": "policy"});
    assert!(hosts.contains(&want), "{hosts:?}");
    let want = serde_json::json!({"rule": "*.more.example", "address": null, "from": "flag"});
    assert!(hosts.contains(&want), "{hosts:?}");
}

#[test]
fn the_caller_adds_what_the_policy_permits_and_no_more() {
    let Some(service) = Service::new(somebody()) else { return };
    let more = service.network("allow-more = true\nallow-private = { \"mirror.example:8443\" = \"10.1.2.3\" }");
    let closed = service.network("allow = [\"api.example\"]");
    let (more, closed) = (more.to_str().unwrap(), closed.to_str().unwrap());
    let refused: [(&[&str], &str); 12] = [
        (&["--policy", closed, "--allow", "a.example"], "cannot use --allow a.example: the policy has the whole list"),
        (&["--level", "paranoid", "--network", "broker", "--allow", "a.example"], "the policy has the whole list"),
        (&["--policy", more, "--allow", "http://a.example"], "plain HTTP is for the policy to allow"),
        (&["--policy", more, "--allow", "mirror.example:22"], "the policy says where this host is"),
        (&["--policy", more, "--network", "none", "--allow", "a.example"], "no broker is asked for"),
        (&["--policy", more, "--network", "host", "--allow", "a.example"], "no broker is asked for"),
        (&["--policy", more, "--allow", "*"], "cannot use --allow: `*` has a `*` that is no first label"),
        (&["--policy", more, "--allow", "127.0.0.1"], "is an address; name the host"),
        (&["--policy", more, "--allow", "[::1]:443"], "is an address; name the host"),
        (&["--policy", more, "--allow", "0x7f.1"], "is an address; name the host"),
        (&["--policy", more, "--allow", "https://a.example/"], "needs no https://"),
        (&["--policy", more, "--allow", "bücher.example"], "is not ASCII"),
    ];
    for (words, part) in refused {
        for word in ["explain", "run"] {
            let mut command = service.stage.command(service.who, &[]);
            command.arg(word).arg("--state-dir").arg(service.stage.state(service.who));
            let done = output(command.args(["--agent", "none"]).args(words).args(["--", "true"]));
            assert_eq!(done.status.code(), Some(125), "{words:?}: {done:?}");
            assert!(done.err.contains(part) && done.err.contains("hint: "), "{words:?}: {part}: {done:?}");
        }
    }
    let wrong = explain(&service, &["--policy", more, "--agent", "none"], &[("OUBLIETTE_ALLOW", "10.0.0.1")]);
    assert!(wrong.err.contains("cannot use OUBLIETTE_ALLOW: `10.0.0.1` is an address"), "{wrong:?}");
    // What stands there for all runs is left out where the policy does not permit it.
    let dropped = explain(&service, &["--policy", closed, "--agent", "none"], &[("OUBLIETTE_ALLOW", "a.example")]);
    assert_eq!(dropped.status.code(), Some(0), "{dropped:?}");
    assert!(dropped.out.contains("host      api.example") && !dropped.out.contains("a.example,"), "{dropped:?}");
}

/// What the operator writes down for every run, and what the flags add to it.
#[test]
fn hosts_of_the_operators_file_and_of_flags_add_up() {
    let line = ["oubliette", "run", "--allow", "b.example", "--allow", "A.example", "--", "true"];
    let matches = Cli::command().try_get_matches_from(line).unwrap();
    let sub = matches.subcommand().unwrap().1;
    let request = |text: &str| {
        let config: Config = parse(text, "config.toml").unwrap();
        Request::new(RunArgs::from_arg_matches(sub).unwrap(), sub, config)
    };
    let asked = request("allow = [\"a.example\", \"c.example:8443\"]").unwrap();
    let shown: Vec<(String, From)> = asked.allow.iter().map(|(rule, from)| (rule.to_string(), *from)).collect();
    let want = [("b.example", From::Flag), ("a.example", From::Flag), ("c.example:8443", From::File)];
    assert_eq!(shown, want.map(|(rule, from)| (rule.to_owned(), from)));
    let wrong = request("allow = [\"127.1\"]").unwrap_err().to_string();
    assert!(wrong.contains("cannot use `allow` of /etc/oubliette/config.toml: `127.1` is an address"), "{wrong}");
}

#[test]
fn a_list_that_is_none_is_refused_where_it_is_read() {
    let Some(service) = Service::new(somebody()) else { return };
    for (line, part) in [
        ("allow = [\"10.0.0.1\"]", "`10.0.0.1` is an address; name the host"),
        ("allow = [\"*\"]", "has a `*` that is no first label"),
        ("allow = [\"a.example/x\"]", "is more than a host and a port"),
        ("allow = [\"https://a.example\"]", "needs no https://"),
        ("allow = \"a.example\"", "expected a sequence"),
        ("allow-private = { \"*.a.example\" = \"10.0.0.1\" }", "has one address: write each name"),
        ("allow-private = { \"a.example\" = \"0.0.0.0\" }", "is no host's address"),
        ("allow-private = { \"a.example\" = \"224.0.0.1\" }", "is no host's address"),
        ("allow-private = { \"a.example\" = \"b.example\" }", "invalid IP address"),
        ("allow-more = \"yes\"", "expected a boolean"),
        ("bytes = \"much\"", "`much` is no size"),
        ("connections = 0", "nonzero"),
        ("idle-timeout = \"0s\"", "is no time at all"),
    ] {
        let policy = service.network(line);
        let mut command = service.stage.command(service.who, &[]);
        let done = output(command.args(["policy", "check"]).arg(&policy));
        assert_eq!(done.status.code(), Some(125), "{line}: {done:?}");
        assert!(done.err.contains(part) && done.err.contains(" line "), "{line}: {part}: {done:?}");
    }
}

/// Whatever the program: it has a loopback and nothing on it, and no variable that leads anywhere.
#[test]
fn with_no_host_and_no_credential_there_is_no_broker_and_no_network() {
    for who in everybody() {
        let Some(service) = Service::new(who) else { return };
        let policy = service.network("");
        let policy = policy.to_str().unwrap();
        let done = explain(&service, &["--policy", policy, "--agent", "none"], &[]);
        for line in [
            "net             enforce  nothing but its own loopback: there is nothing to broker",
            "none but a loopback of the cell's own\n  no broker: there is no credential for it to hold, and no host on the list",
        ] {
            assert!(done.out.contains(line), "{line}: {}", done.out);
        }
        let script = "import os, socket; print(socket.socket().connect_ex(('127.0.0.1', 20080)), \
                      [name for name in os.environ if 'PROXY' in name.upper()])";
        let done = output(bare(&service).args(["--policy", policy, "--", "python3", "-c", script]));
        assert_eq!(done.out.trim(), format!("{} []", libc::ECONNREFUSED), "{done:?}");
        assert_eq!(said(&done)["broker"], serde_json::Value::Null);
    }
}

/// A credential that cannot be brokered does not go into the cell instead, whatever else is on the list.
#[test]
fn a_program_with_a_list_has_no_credential() {
    let Some(service) = Service::new(somebody()) else { return };
    let listed = Listed::new(service, Upstream::fine());
    let run = |command: &mut Command| {
        command.arg("--credential-file").arg(&listed.service.file);
        output(listed.client(command, "say(get(tunnel(f'test.example:{PORT}')[0], 'test.example'))"))
    };
    let done = run(&mut listed.run(""));
    assert_eq!(done.status.code(), Some(125), "{done:?}");
    assert!(done.err.contains("cannot enforce layer net: any program has no variable for a base URL"), "{done:?}");
    assert!(listed.upstream.asked().is_empty());

    // An agent file with ways, none of which is this credential's.
    let agent = super::super::AGENT.replacen(
        "descriptor = \"CLIENT_FD\"\nheader = \"x-api-key\"",
        "descriptor = \"CLIENT_FD\"\nheader = \"x-api-key\"\nprefix = \"other-\"",
        1,
    );
    std::fs::write(listed.service.policies.join("agents/client.toml"), agent).unwrap();
    let mut command = listed.service.stage.run(listed.service.who, &[]);
    command.args(["--quiet", "--agent", "client", "--upstream", "https://api.example", "--policy-dir"]);
    let done = run(command.arg(&listed.service.policies).arg("--policy").arg(listed.policy("")));
    assert_eq!(done.status.code(), Some(125), "{done:?}");
    assert!(done.err.contains("cannot broker the credential: it begins like none"), "{done:?}");
    assert!(listed.service.stage.cells(listed.service.who).is_empty());
}
