//! Where there can be no broker there is no run; where there is one, `explain` says what it does, and the process is
//! what the plan says.

use std::fs;
use std::path::Path;

use oubliette::host::Host;
use oubliette::plan::{Credential, Plan};
use oubliette::policy::agents::spec::AgentSpec;
use oubliette::types::class::Class;
use oubliette::types::layer::{Decision, Layer, Want};
use oubliette::types::network::NetworkMode;

use super::upstream::Upstream;
use super::{Service, broker, client, everybody, report, somebody};
use crate::plans::{agent, full, lacks, level, plain, request};
use crate::secret::{closed, in_memory};
use crate::stage::{Who, descendants, output};

const ASKED: [&str; 4] = ["--network", "broker", "--credential-file", "/nowhere"];

/// A host with a file of authorities.
fn able(host: Host) -> Host {
    Host { authorities: oubliette::host::facts::Fact::Has("/etc/ssl/cert.pem".into()), ..host }
}

fn why(host: &Host, words: &[&str], spec: &AgentSpec, net: Want) -> String {
    let mut policy = level("developer").value;
    policy.layers.insert(Layer::Net, net);
    let Err(refusal) = Plan::new(&request(words), &policy, spec, host) else { return String::new() };
    let refused = refusal.layers.iter().filter_map(|planned| match &planned.decision {
        Decision::Refuse { why, remedy } => Some(format!("{}: {why} -> {remedy}", planned.layer)),
        _ => None,
    });
    refused.collect::<Vec<_>>().join("; ")
}

#[test]
fn where_there_can_be_no_broker_there_is_no_run() {
    let claude = agent("claude").value;
    let none = agent("none").value;
    let mut headless = claude.clone();
    headless.credential.way[1].header = None;
    let with = |more: &[&'static str]| [&ASKED[..], more].concat();
    let hosts = [able(full()), able(plain())];
    for host in &hosts {
        let lacking =
            [Host { namespaces: lacks("namespace"), ..host.clone() }, Host { net: lacks("network"), ..host.clone() }];
        for lacking in &lacking {
            for want in [Want::Preferred, Want::Required, Want::Off] {
                // A list alone is worth as much; with nothing on it the network is none, as far as the host can.
                let listed = ["--network", "broker", "--allow", "a.example"];
                for (words, spec) in [(&ASKED[..], &claude), (&listed, &none), (&ASKED[..2], &none)] {
                    assert_eq!(why(lacking, words, spec, want).is_empty(), want != Want::Required, "{words:?}");
                }
            }
        }
        let cases: [(&[&str], &AgentSpec, Want, &str); 11] = [
            (&ASKED, &claude, Want::Preferred, ""),
            // Whatever becomes of the namespace, the agent never gets the credential itself.
            (&ASKED, &none, Want::Off, "no variable for a base URL"),
            (&ASKED, &headless, Want::Off, "in which header"),
            (&ASKED, &none, Want::Preferred, "no variable for a base URL"),
            (&ASKED, &headless, Want::Preferred, "in which header"),
            (&ASKED[..2], &claude, Want::Preferred, "no credential to broker"),
            (&with(&["--upstream", "http://api.example"]), &claude, Want::Preferred, "in the clear"),
            (&with(&["--upstream", "http://10.0.0.1"]), &claude, Want::Preferred, "in the clear"),
            (&with(&["--upstream", "https://api.example/?key=1"]), &claude, Want::Preferred, "more than a path"),
            (&with(&["--upstream", "https://api.example/a"]), &claude, Want::Preferred, ""),
            (&with(&["--upstream", "http://127.0.0.1:1/a"]), &claude, Want::Off, ""),
        ];
        for (words, spec, want, part) in cases {
            let why = why(host, words, spec, want);
            assert_eq!(why.is_empty(), part.is_empty(), "{words:?}: {why}");
            assert!(why.contains(part), "{words:?}: {why}");
        }
        let unvouched = Host { authorities: lacks("authority"), ..host.clone() };
        assert!(why(&unvouched, &ASKED, &claude, Want::Preferred).contains("no authority here"));
        let loopback = with(&["--upstream", "http://[::1]:9/"]);
        assert_eq!(why(&unvouched, &loopback, &claude, Want::Preferred), "");
    }
}

/// Each tier by what makes it, and what the plan says of it.
#[test]
fn without_its_namespace_a_broker_has_what_the_host_gives() {
    use oubliette::types::network::Hold;
    let (claude, policy) = (agent("claude").value, level("balanced").value);
    for host in [able(full()), able(plain())] {
        let own_uid = host.uid == 0;
        let tiers = [
            (Host { namespaces: lacks("namespace"), ..host.clone() }, Hold::Port),
            (Host { net: lacks("network"), ..host.clone() }, Hold::Port),
            (
                Host { net: lacks("network"), landlock: oubliette::host::facts::Fact::Has(3), ..host.clone() },
                Hold::Nothing,
            ),
            // Landlock alone has holes.
            (Host { namespaces: lacks("namespace"), seccomp: lacks("filter"), ..host.clone() }, Hold::Nothing),
            (Host { namespaces: lacks("namespace"), landlock: lacks("Landlock"), ..host.clone() }, Hold::Nothing),
        ];
        for (number, (host, hold)) in tiers.iter().enumerate() {
            let plan = Plan::new(&request(&ASKED), &policy, &claude, host).unwrap();
            let broker = plan.broker.as_ref().unwrap();
            assert_eq!(broker.hold, *hold, "{number}");
            assert_eq!(broker.url, "http://127.0.0.1:{broker-port}");
            let (_, why, _) = plan.degraded().find(|(layer, ..)| *layer == Layer::Net).unwrap();
            assert!(why.contains("without it the broker listens on the host's loopback"), "{why}");
            assert_eq!(why.contains("that port of every host"), *hold == Hold::Port, "{why}");
            assert_eq!(why.contains("whatever the host reaches"), *hold == Hold::Nothing, "{why}");
            let shared = !own_uid && number == 4;
            assert_eq!(why.contains("other processes of its UID can read by what word"), shared, "{number}: {why}");
            let domain = plan.landlock.as_ref().filter(|domain| domain.connect.is_some());
            if *hold == Hold::Port {
                let domain = domain.unwrap();
                assert_eq!(
                    (domain.connect.as_deref(), domain.broker, domain.bind.as_deref()),
                    (Some(&[][..]), true, Some(&[][..]))
                );
                let filter = plan.filter.unwrap();
                assert_eq!((filter.inet, filter.udp, filter.listen), (true, false, false));
            }
            // The credential stays outside in every tier.
            assert!(plan.classes.iter().any(|denied| denied.class == Class::NetworkTools
                && denied.kernel.is_some_and(|by| by.contains("broker")) == (*hold == Hold::Port)));
            for least in [Hold::Nothing, Hold::Port, Hold::Namespace] {
                let mut strict = policy.clone();
                strict.network.least = least;
                let made = Plan::new(&request(&ASKED), &strict, &claude, host);
                assert_eq!(made.is_ok(), *hold >= least, "{number} {least:?}");
                let Err(refusal) = made else { continue };
                let error = refusal.error();
                let (text, hint) = (error.to_string(), error.remedy().to_owned());
                assert!(text.starts_with("cannot enforce layer net: ") && text.contains(least.name()), "{text}");
                assert!(hint.contains("`network.least`"), "{hint}");
            }
            let required = request(&[&ASKED[..], &["--require", "net"]].concat());
            let refusal = Plan::new(&required, &policy, &claude, host).unwrap_err();
            assert!(refusal.error().to_string().starts_with("cannot enforce layer net: no "), "{}", refusal.error());
        }
    }
}

#[test]
fn the_plan_has_the_whole_broker() {
    let host = able(full());
    let plan = Plan::new(&request(&ASKED), &level("balanced").value, &agent("claude").value, &host).unwrap();
    let broker = plan.broker.as_ref().unwrap();
    let model = broker.model.as_ref().unwrap();
    assert_eq!(model.upstream.url, "https://api.anthropic.com");
    assert_eq!(broker.authorities.as_deref(), Some(Path::new("/etc/ssl/cert.pem")));
    assert!(broker.egress.hosts.is_empty());
    let proxies = plan.environment.iter().filter(|(name, _)| name.to_string_lossy().to_lowercase().contains("proxy"));
    assert_eq!(proxies.count(), 0);
    assert!(broker.uids.is_some() && broker.landlock.is_some() && broker.filter.is_some());
    assert_eq!(broker.landlock.as_ref().unwrap().connect, Some(vec![53, 443]));
    assert_eq!(plan.credential, Credential::Pipe);
    let url = plan.environment.iter().find(|(name, _)| name == "ANTHROPIC_BASE_URL").map(|(_, text)| text.show());
    assert_eq!(url.as_deref(), Some("http://127.0.0.1:20080"));
    let listed = ["--network", "broker", "--allow", "a.example:8443"];
    let plan = Plan::new(&request(&listed), &level("balanced").value, &agent("none").value, &host).unwrap();
    let broker = plan.broker.as_ref().unwrap();
    assert_eq!((broker.model.as_ref(), broker.egress.hosts.len(), plan.credential), (None, 1, Credential::None));
    assert_eq!(broker.landlock.as_ref().unwrap().connect, Some(vec![53, 8443]));
    assert_eq!(broker.landlock.as_ref().unwrap().files, Some(vec![]));
    let nothing = Plan::new(&request(&ASKED[..2]), &level("balanced").value, &agent("none").value, &host).unwrap();
    assert_eq!((nothing.broker, nothing.network), (None, NetworkMode::None));
    for mode in ["none", "host"] {
        let request = request(&["--network", mode, "--credential-file", "/nowhere"]);
        assert!(Plan::new(&request, &level("balanced").value, &agent("claude").value, &host).unwrap().broker.is_none());
    }
}

#[test]
fn explain_says_where_requests_go_and_what_the_agent_holds() {
    let Some(service) = Service::new(somebody()) else { return };
    let explain = |words: &[&str]| {
        let mut command = service.stage.command(service.who, &[]);
        command.arg("explain").arg("--state-dir").arg(service.stage.state(service.who));
        command.arg("--policy-dir").arg(&service.policies).arg("--credential-file").arg(&service.file);
        output(command.args(["--level", "developer", "--network", "broker"]).args(words))
    };
    let done = explain(&["--agent", "client", "--upstream", "http://127.0.0.1:9/v1", "--", "python3"]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    for line in [
        "net             enforce  its own loopback, and on it the broker",
        "broker    http://127.0.0.1:20080, a process of its own that holds the credential",
        "upstream  http://127.0.0.1:9/v1, in the clear, on this machine's loopback",
        "header    authorization: Bearer (where it begins with bearer-), else x-api-key: the phantom in it becomes the credential",
        "credential  with the broker; the agent holds a phantom: a pipe on descriptor 3",
        "CLIENT_URL=http://127.0.0.1:20080",
    ] {
        assert!(done.out.contains(line), "{line}: {}", done.out);
    }
    assert!(done.out.contains("hosts     no other one"), "{}", done.out);
    let refused = explain(&["--agent", "none", "--", "python3"]);
    assert_eq!(refused.status.code(), Some(125));
    assert!(refused.out.contains("net             refuse   any program has no variable"), "{refused:?}");
    assert!(refused.err.contains("cannot enforce layer net: any program has no variable"), "{refused:?}");
}

#[test]
fn authorities_that_are_none_and_options_without_a_broker_are_refused() {
    let Some(service) = Service::new(somebody()) else { return };
    let upstream = Upstream::fine();
    let none = service.stage.private_file(service.who, "none.pem", "no certificate\n");
    for (words, part) in [
        (vec!["--ca", none.to_str().unwrap()], "there is none in it"),
        (vec!["--ca", "/nowhere.pem"], "cannot use the certificate authorities of /nowhere.pem"),
        (vec!["--ca", none.to_str().unwrap(), "--network", "none"], "cannot use --ca: no credential is brokered"),
    ] {
        let mut command = service.stage.run(service.who, &[]);
        command.args(["--level", "developer", "--agent", "client", "--policy-dir"]).arg(&service.policies);
        command.arg("--credential-file").arg(&service.file);
        command.args(["--upstream", &format!("http://{}", upstream.address)]);
        if !words.contains(&"--network") {
            command.args(["--network", "broker"]);
        }
        let done = output(client(command.args(&words), "say(1)"));
        assert_eq!(done.status.code(), Some(125), "{done:?}");
        assert!(done.err.contains(part) && done.err.contains("hint: "), "{part}: {done:?}");
    }
}

/// A field of /proc/PID/status.
fn field(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("{name} in {status}")).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_process_is_confined_and_alone_has_the_credential() {
    for who in everybody() {
        let Some(service) = Service::new(who) else { return };
        let upstream = Upstream::fine();
        let script = "say(ask()[0].status); kept = KEY * 3; sys.stdin.readline()";
        let mut running = service.start(upstream.address, script);
        assert_eq!(running.line().trim(), "200");
        let pid = broker(&running);
        assert_eq!((field(pid, "CapEff"), field(pid, "CapPrm")), ("0".repeat(16), "0".repeat(16)));
        assert_eq!((field(pid, "NoNewPrivs"), field(pid, "Seccomp")), ("1".into(), "2".into()));
        let (own, family) = (field(pid, "Uid"), descendants(running.pid()));
        if who == Who::Root {
            assert_eq!(field(pid, "CapBnd"), "0".repeat(16));
            let number: u32 = own.split(' ').next().unwrap().parse().unwrap();
            assert!(number >= 60_578, "a UID for runs: {own}");
            let agents: Vec<String> =
                family.iter().filter(|other| **other != pid).map(|other| field(*other, "Uid")).collect();
            assert!(!agents.contains(&own), "and not the agent's: {agents:?}");
        } else {
            assert!(own.starts_with(&service.stage.uid(who).to_string()), "{own}");
            closed(&service.stage, pid);
        }
        if nix::unistd::geteuid().is_root() {
            let net = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
            assert_eq!(net(pid), net(running.pid()));
            let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
            for file in open.filter_map(|entry| fs::read_link(entry.path()).ok()) {
                let file = file.to_string_lossy().into_owned();
                let known = ["socket:", "anon_inode:", "/dev/null", "/dev/urandom"];
                assert!(known.iter().any(|start| file.starts_with(start)), "{file}");
            }
            let token = service.token.as_bytes();
            assert!(in_memory(pid, token) > 0 && in_memory(running.pid(), token) == 1);
            for other in family.into_iter().filter(|other| *other != pid) {
                assert_eq!(in_memory(other, token), 0, "of {}", field(other, "Name"));
                for leaf in ["environ", "cmdline"] {
                    let bytes = fs::read(format!("/proc/{other}/{leaf}")).unwrap();
                    assert!(!bytes.windows(token.len()).any(|window| window == token), "{leaf}");
                }
            }
        }
        drop(running.child.stdin.take());
        report(&running.end());
    }
}
