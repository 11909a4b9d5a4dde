//! Where the cell has no network of its own: what the broker is reached by, what else the agent reaches, and that no agent
//! uses the broker of another.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::upstream::Upstream;
use super::{Service, broker, client, everybody, report, said};
use crate::need::need;
use crate::stage::{Done, Running, Who, output};

/// What holds an agent to its broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    /// A network namespace.
    Namespace,
    /// A Landlock rule and a filter.
    Port,
    /// Nothing.
    Nothing,
}

const BELOW: [Tier; 2] = [Tier::Port, Tier::Nothing];

impl Tier {
    /// A level without the layers that would do better.
    fn policy(self, service: &Service) -> PathBuf {
        let off: &[&str] = match self {
            Tier::Namespace => &[],
            Tier::Port => &["net"],
            Tier::Nothing => &["net", "landlock-net"],
        };
        service.stage.policy(off, Some("[network]\nmode = \"broker\""))
    }

    /// A run of this tier; a script is to follow.
    fn run(self, service: &Service, upstream: &Upstream) -> Command {
        let mut command = service.stage.run(service.who, &[]);
        command.args(["--quiet", "--agent", "client", "--timeout", "5m", "--report-fd", "2", "--policy-dir"]);
        command.arg(&service.policies).arg("--policy").arg(self.policy(service));
        command.arg("--credential-file").arg(&service.file);
        command.arg("--upstream").arg(format!("http://{}", upstream.address));
        command
    }

    fn play(self, service: &Service, upstream: &Upstream, script: &str) -> Done {
        output(client(&mut self.run(service, upstream), script))
    }

    fn start(self, service: &Service, upstream: &Upstream, script: &str) -> Running {
        Running::start(client(&mut self.run(service, upstream), script).stdin(Stdio::piped()))
    }
}

/// Nothing where this host has no Landlock rules for ports.
fn service(who: Who) -> Option<Service> {
    let service = Service::anywhere(who)?;
    let explained = explain(&service, Tier::Port);
    need("Landlock rules for TCP ports", explained.contains("landlock-net    enforce")).then_some(service)
}

fn explain(service: &Service, tier: Tier) -> String {
    let mut command = service.stage.command(service.who, &[]);
    command.arg("explain").arg("--state-dir").arg(service.stage.state(service.who));
    command.args(["--agent", "client", "--upstream", "http://127.0.0.1:9", "--policy-dir"]).arg(&service.policies);
    command.arg("--policy").arg(tier.policy(service)).arg("--credential-file").arg(&service.file);
    let done = output(command.args(["--", "python3"]));
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    done.out
}

/// Everything that goes round a rule for TCP ports, to a listener and a datagram socket of the host's.
const ROUND: &str = r#"
import ctypes
FASTOPEN, MPTCP, port = 0x20000000, 262, int(PLACES)
def tried(what, act):
    try:
        act()
        say(what, "open")
    except OSError as error:
        say(what, "shut")
def plain(family=socket.AF_INET, address=("127.0.0.1", port), protocol=0):
    socket.socket(family, socket.SOCK_STREAM, protocol).connect(address)
def fast(send):
    send(socket.socket())
def many(s):
    # struct mmsghdr with an address, one byte, and the flag.
    name = ctypes.create_string_buffer(bytes([2, 0]) + port.to_bytes(2, "big") + bytes([127, 0, 0, 1]) + bytes(8), 16)
    text = ctypes.create_string_buffer(b"x", 1)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(text), 1)
    header = (ctypes.c_uint64 * 8)(ctypes.addressof(name), 16, ctypes.addressof(vector), 1, 0, 0, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.sendmmsg(s.fileno(), ctypes.byref(header), 1, FASTOPEN) < 0:
        raise OSError(ctypes.get_errno(), "sendmmsg")
tried("connect", plain)
tried("mapped", lambda: plain(socket.AF_INET6, ("::ffff:127.0.0.1", port)))
tried("mptcp", lambda: plain(protocol=MPTCP))
tried("fastopen", lambda: fast(lambda s: s.sendto(b"x", FASTOPEN, ("127.0.0.1", port))))
tried("fastopen by sendmsg", lambda: fast(lambda s: s.sendmsg([b"x"], [], FASTOPEN, ("127.0.0.1", port))))
tried("fastopen by sendmmsg", lambda: fast(many))
tried("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port)))
tried("bind", lambda: socket.socket().bind(("127.0.0.1", 0)))
tried("listen", lambda: socket.socket().listen())
say(ask()[0].status, ask(key="x")[0].status)
"#;

#[test]
fn the_agent_reaches_its_broker_and_what_its_plan_names() {
    for who in everybody() {
        let Some(service) = service(who) else { return };
        let upstream = Upstream::fine();
        let script = ROUND.replace("PLACES", &upstream.address.port().to_string());
        for (tier, open) in [(Tier::Port, &[][..]), (Tier::Nothing, &["connect", "mapped", "bind", "listen"])] {
            let done = tier.play(&service, &upstream, &script);
            let traffic = report(&done);
            let opened: Vec<&str> = done.out.lines().filter_map(|line| line.strip_suffix(" open")).collect();
            assert_eq!(opened, open, "{who:?} {tier:?}: {done:?}");
            assert!(done.out.ends_with("\n200 401\n"), "{who:?} {tier:?}: {done:?}");
            assert_eq!(traffic["broker"]["requests"], 1, "{traffic}");
            assert!(service.stage.cells(who).is_empty());
        }
        assert!(upstream.asked().iter().all(|asked| asked.header("x-api-key") == [&service.token]));
    }
}

/// A has told B everything: B's script gets A's port and A's phantom.
const OTHER: &str = r#"
port, key = int(sys.stdin.readline()), sys.stdin.readline().strip()
def use(key):
    try:
        connection = socket.create_connection(("127.0.0.1", port), 60)
        connection.sendall(f"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nx-api-key: {key}\r\nContent-Length: 0\r\n\r\n".encode())
        return answer(connection).status
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
say(use(KEY), use(key), ask()[0].status)
"#;

fn tell(running: &mut Running, text: &str) {
    running.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
}

#[test]
fn nobody_uses_the_broker_of_another() {
    for who in everybody() {
        let Some(service) = service(who) else { return };
        for tier in [Tier::Namespace, Tier::Port, Tier::Nothing] {
            let (hers, his) = (Upstream::fine(), Upstream::fine());
            let mut alice =
                tier.start(&service, &hers, "say(PORT); say(KEY); sys.stdin.readline(); say(ask()[0].status)");
            let (port, key) = (alice.line(), alice.line());
            let mut bob = tier.start(&service, &his, OTHER);
            tell(&mut bob, &format!("{}\n{}\n", port.trim(), key.trim()));
            let line = bob.line();
            let words: Vec<&str> = line.split_whitespace().collect();
            let want: &[&[&str]] = match (tier, who) {
                // It is his own broker, at the same port of his own loopback.
                (Tier::Namespace, _) => &[&["200"], &["401"], &["200"]],
                (Tier::Port, _) => &[&["PermissionError"], &["PermissionError"], &["200"]],
                // Closed as soon as it is accepted.
                (Tier::Nothing, Who::Root) => &[
                    &["RemoteDisconnected", "ConnectionResetError"],
                    &["RemoteDisconnected", "ConnectionResetError"],
                    &["200"],
                ],
                // One UID: whoever has her phantom is her, and her plan says so.
                (Tier::Nothing, Who::User) => &[&["401"], &["200"], &["200"]],
            };
            assert_eq!(words.len(), want.len(), "{who:?} {tier:?}: {line}");
            assert!(words.iter().zip(want).all(|(word, want)| want.contains(word)), "{who:?} {tier:?}: {line}");
            report(&bob.end());
            tell(&mut alice, "\n");
            assert_eq!(alice.line().trim(), "200", "{who:?} {tier:?}");
            report(&alice.end());
            let told = (tier, who) == (Tier::Nothing, Who::User);
            assert_eq!(hers.asked().len(), 1 + usize::from(told), "{who:?} {tier:?}");
        }
    }
}

/// Of the processes of one UID, only those beside which there is nothing can read a phantom.
#[test]
fn explain_says_what_stays_open() {
    for who in everybody() {
        let Some(service) = service(who) else { return };
        for (tier, network, reach) in [
            (Tier::Port, "the host's, and of that the broker's port alone", "reaches that port of every host"),
            (Tier::Nothing, "the host's, and on its loopback the broker", "reaches by TCP whatever the host reaches"),
        ] {
            let text = explain(&service, tier);
            let net = text.lines().find(|line| line.starts_with("  net ")).unwrap();
            assert!(
                net.contains("off      the policy switches it off; without it the broker listens on the host's"),
                "{net}"
            );
            assert!(net.contains(reach), "{net}");
            assert!(text.contains(network), "{text}");
            assert!(text.contains("CLIENT_URL=http://127.0.0.1:{broker-port}"), "{text}");
        }
    }
}

#[test]
fn a_run_whose_broker_is_killed_there_is_a_failure_and_wiped() {
    for who in everybody() {
        let Some(service) = service(who) else { return };
        for tier in BELOW {
            let upstream = Upstream::fine();
            let mut running = tier.start(&service, &upstream, "say(ask()[0].status); sys.stdin.read()");
            assert_eq!(running.line().trim(), "200");
            kill(Pid::from_raw(broker(&running)), Signal::SIGKILL).unwrap();
            let done = running.end();
            assert_eq!(done.status.code(), Some(125), "{tier:?}: {done:?}");
            let report = said(&done);
            assert!(report["outcome"]["broker-ended"].as_str().is_some_and(|why| why.contains("SIGKILL")), "{done:?}");
            assert_eq!(report["left"], serde_json::json!([]));
            assert!(service.stage.cells(who).is_empty());
            let leases = fs::read_dir(service.stage.state(who).join("uids")).into_iter().flatten().count();
            assert_eq!(leases, 0, "no UID stays leased");
        }
    }
}

/// The process is as confined as in the other tier; and while it lives, and after it, nobody else listens at its port.
#[test]
fn the_process_there_is_confined_and_the_port_is_kept() {
    for who in everybody() {
        let Some(service) = service(who) else { return };
        for tier in BELOW {
            let upstream = Upstream::fine();
            let mut running = tier.start(&service, &upstream, "say(PORT); say(ask()[0].status); sys.stdin.readline()");
            let port: u16 = running.line().trim().parse().unwrap();
            assert!(port >= 1024, "one of the kernel's");
            assert_eq!(running.line().trim(), "200");
            let pid = broker(&running);
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
                assert!(status.contains(line), "{line}: {status}");
            }
            assert!(std::net::TcpListener::bind(("127.0.0.1", port)).is_err(), "somebody else listens there");
            drop(running.child.stdin.take());
            report(&running.end());
            assert!(std::net::TcpListener::bind(("127.0.0.1", port)).is_ok(), "given back");
        }
    }
}
