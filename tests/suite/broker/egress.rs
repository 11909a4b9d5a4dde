//! The list of hosts: real clients reach what is on it, and a hostile one nothing else.

mod asked; // what the caller may add, what explain says of it, and a list with nothing on it
mod bounds; // connections, bytes, time
mod injected; // tokens that the broker adds, to a host whose TLS it ends
mod looked_up; // names and the addresses that they come to, with a DNS server that lies
mod refused; // forms of a request that are none, tunnels that are for another host

use std::path::PathBuf;
use std::process::Command;

use rcgen::SanType;
use serde_json::Value;

use super::upstream::{Front, Upstream};
use super::{Service, everybody, report};
use crate::need::need_program;
use crate::stage::{Done, output};

/// What each client's script begins with.
const CLIENT: &str = r#"
import base64, os, socket, ssl, subprocess, sys, time
from urllib.parse import urlsplit
PROXY = urlsplit(os.environ.get("HTTPS_PROXY") or os.environ.get("HTTP_PROXY") or "")
BASIC = lambda word: "Basic " + base64.b64encode(f"cell:{word}".encode()).decode()
AUTH = BASIC(PROXY.password)

def connect():
    return socket.create_connection((PROXY.hostname, PROXY.port), 60)

def head(connection):
    """The status of an answer, or that there was none. Byte by byte: what follows it is for others to read."""
    got = b""
    while b"\r\n\r\n" not in got:
        try:
            part = connection.recv(1)
        except ConnectionError:
            part = b""
        if not part:
            break
        got += part
    return got.split(b" ")[1].decode() if got else "closed"

def ask(*lines, body=b""):
    """One request with these lines on a connection of its own."""
    connection = connect()
    connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
    return connection, head(connection)

def tunnel(target, *more, auth=AUTH):
    return ask(f"CONNECT {target} HTTP/1.1", f"Host: {target}", f"Proxy-Authorization: {auth}", *more)

def tls(connection, name):
    context = ssl.create_default_context(cafile="ca.pem")
    context.check_hostname = False
    return context.wrap_socket(connection, server_hostname=name)

def ended(connection):
    """Whether the other side has closed, without a byte."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True

def get(connection, name):
    """An answer through TLS."""
    stream = tls(connection, name)
    stream.sendall(f"GET /in HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
    got = b""
    while part := stream.recv(65536):
        got += part
        if got.endswith(b"fine"):
            break
    return got.split(b"\r\n\r\n", 1)[1].decode()

def say(*words):
    print(*words, flush=True)
"#;

/// A server behind TLS, by the name `test.example`, which the policy says is here.
struct Listed {
    service: Service,
    upstream: Upstream,
    front: Front,
}

impl Listed {
    fn new(service: Service, upstream: Upstream) -> Listed {
        let name = SanType::DnsName("test.example".try_into().unwrap());
        let front = Front::new(upstream.address, name, service.stage.path());
        Listed { service, upstream, front }
    }

    fn port(&self) -> u16 {
        self.front.address.port()
    }

    /// A level with the server on its list, and with these lines.
    fn policy(&self, lines: &str) -> PathBuf {
        self.policy_with(lines, "")
    }

    /// The same with one more host whose address the policy says.
    fn policy_with(&self, lines: &str, pinned: &str) -> PathBuf {
        let own = format!("\"test.example:{}\" = \"127.0.0.1\"", self.port());
        self.service.network(&format!("{lines}\n[network.allow-private]\n{own}\n{pinned}"))
    }

    /// A run of any program with such a level.
    fn run(&self, lines: &str) -> Command {
        let mut command = bare(&self.service);
        command.arg("--policy").arg(self.policy(lines));
        command
    }

    /// A client with this script; PORT is the server's.
    fn play(&self, lines: &str, script: &str) -> Done {
        output(self.client(&mut self.run(lines), script))
    }

    /// Adds a client with this script as the command.
    fn client<'a>(&self, command: &'a mut Command, script: &str) -> &'a mut Command {
        client(command, &self.front, script)
    }
}

fn client<'a>(command: &'a mut Command, front: &Front, script: &str) -> &'a mut Command {
    let ca = std::fs::read_to_string(&front.ca).unwrap();
    let port = front.address.port();
    let given = format!("PORT = {port}\nopen('ca.pem', 'w').write('''{ca}''')");
    command.args(["--", "python3", "-c", &format!("{CLIENT}\n{given}\n{script}")])
}

const OPTIONS: [&str; 7] = ["--quiet", "--agent", "none", "--timeout", "5m", "--report-fd", "2"];

/// `oubliette run` of any program, without a policy and a command.
fn bare(service: &Service) -> Command {
    let mut command = service.stage.run(service.who, &[]);
    command.args(OPTIONS);
    command
}

/// What the report says of a host, on the list or not.
fn counted<'a>(report: &'a Value, list: &str, host: &str) -> &'a Value {
    let all = report["broker"][list].as_array().unwrap_or_else(|| panic!("{report}"));
    all.iter().find(|one| one["host"] == host).unwrap_or_else(|| panic!("{host} in {report}"))
}

fn number(counted: &Value, name: &str) -> u64 {
    counted[name].as_u64().unwrap_or_else(|| panic!("{name} of {counted}"))
}

const CLIENTS: &str = r#"
def shown(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout.strip()

URL = f"https://test.example:{PORT}"
say("curl", *shown("curl", "-sS", "--cacert", "ca.pem", f"{URL}/curl"))
fetch = "import ssl, sys, urllib.request as r; c = ssl.create_default_context(cafile='ca.pem'); print(r.urlopen(sys.argv[1], context=c).read().decode())"
say("python", *shown(sys.executable, "-c", fetch, f"{URL}/python"))
os.environ["GIT_SSL_CAINFO"] = os.path.abspath("ca.pem")
say("git", *shown("git", "ls-remote", f"{URL}/repository.git"))
say("other port", shown("curl", "-sS", f"https://test.example:{PORT ^ 1}/")[0])
say("other host", shown("curl", "-sS", f"https://other.example:{PORT}/")[0])
say("direct", shown("curl", "-sS", "--noproxy", "*", "--resolve", f"test.example:{PORT}:127.0.0.1", f"{URL}/")[0])
say("in the clear", shown("curl", "-sS", "--proxy", os.environ["HTTPS_PROXY"], f"http://test.example:{PORT}/")[1])
say("variables", *sorted(name for name in os.environ if "PROXY" in name.upper()), os.environ["NO_PROXY"])
"#;

/// As a git server answers, where somebody asks what it has.
fn answer(asked: &super::upstream::Asked, stream: &mut std::net::TcpStream) -> std::io::Result<()> {
    use std::io::Write as _;
    if asked.head.contains("/info/refs?") {
        let kind = "content-type: application/x-git-upload-pack-advertisement\r\n";
        let refs = format!("{} HEAD\0\n", "1".repeat(40));
        let line = |text: &str| format!("{:04x}{text}", text.len() + 4);
        let body = format!("{}0000{}0000", line("# service=git-upload-pack\n"), line(&refs));
        return stream.write_all(&super::upstream::plain("200 OK", kind, &body));
    }
    stream.write_all(&super::upstream::plain("200 OK", "", "fine"))
}

#[test]
fn real_clients_reach_a_listed_host_and_no_other() {
    if need_program("curl").is_none() || need_program("git").is_none() {
        return;
    }
    for who in everybody() {
        let Some(service) = Service::new(who) else { return };
        let listed = Listed::new(service, Upstream::start(answer));
        let done = listed.play("", CLIENTS);
        let report = report(&done);
        let lines: Vec<&str> = done.out.lines().collect();
        assert_eq!(
            lines[..3],
            ["curl 0 fine", "python 0 fine", &format!("git 0 {}\tHEAD", "1".repeat(40))],
            "{done:?}"
        );
        // curl's words for a proxy that refuses, and for no way at all.
        assert_eq!(lines[3..6], ["other port 56", "other host 56", "direct 7"], "{done:?}");
        assert!(lines[6].contains("it is not on the list"), "{done:?}");
        assert_eq!(lines[7], "variables HTTPS_PROXY NO_PROXY https_proxy no_proxy 127.0.0.1,localhost,::1");
        let asked = listed.upstream.asked();
        assert_eq!(asked.len(), 3, "{asked:?}");
        assert!(asked.iter().all(|one| one.header("proxy-authorization").is_empty()), "{asked:?}");

        let host = counted(&report, "hosts", &format!("test.example:{}", listed.port()));
        assert_eq!((number(host, "requests"), number(host, "failed"), number(host, "refused")), (3, 0, 0), "{host}");
        // TLS, which adds to what was said.
        let said: usize = asked.iter().map(|one| one.head.len()).sum();
        assert!(number(host, "bytes-up") > said as u64 && number(host, "bytes-down") > 3 * 100, "{host}");
        assert!(number(host, "first-byte-mean") > 0 && number(host, "first-byte-max") > 0, "{host}");
        for (name, refused) in [
            (format!("test.example:{}", listed.port() ^ 1), 1),
            (format!("other.example:{}", listed.port()), 1),
            (format!("http://test.example:{}", listed.port()), 1),
        ] {
            let denied = counted(&report, "denied", &name);
            assert_eq!((number(denied, "refused"), number(denied, "requests")), (refused, 0), "{denied}");
        }
    }
}

#[test]
fn plain_http_goes_where_a_rule_says_so_and_is_written_anew() {
    for who in everybody() {
        let Some(service) = Service::new(who) else { return };
        let upstream = Upstream::fine();
        let port = upstream.address.port();
        let pinned = format!("allow-private = {{ \"http://plain.example:{port}\" = \"127.0.0.1\" }}");
        let mut command = bare(&service);
        command.arg("--policy").arg(service.network(&pinned));
        let script = format!(
            r#"{CLIENT}
import urllib.request
say(urllib.request.urlopen("http://plain.example:{port}/a?b=c").read().decode())
host, auth = "Host: plain.example:{port}", "Proxy-Authorization: " + AUTH
connection, code = ask("POST http://plain.example:{port}/x HTTP/1.1", host, auth, "Content-Length: 5", "Connection: x-mine",
                       "X-Mine: 1", "X-Kept: 1", "Proxy-Connection: keep-alive", "TE: trailers", body=b"hello")
say(code)
say(ask("POST http://plain.example:{port}/chunks HTTP/1.1", host, auth, "Transfer-Encoding: chunked",
        body=b"5\r\nhello\r\n0\r\n\r\n")[1])
say(ask("POST http://plain.example:{port}/both HTTP/1.1", host, auth, "Transfer-Encoding: chunked", "Content-Length: 5",
        body=b"0\r\n\r\n")[1])
say(sorted(name for name in os.environ if "PROXY" in name.upper()))
say(tunnel("plain.example:{port}")[1])
"#
        );
        let done = output(command.args(["--", "python3", "-c", &script]));
        let report = report(&done);
        let names = "['HTTP_PROXY', 'NO_PROXY', 'http_proxy', 'no_proxy']";
        assert_eq!(done.out.lines().collect::<Vec<_>>(), ["fine", "200", "200", "400", names, "403"], "{done:?}");
        let asked = upstream.asked();
        assert_eq!(asked.len(), 3, "{asked:?}");
        assert_eq!((asked[2].head.lines().next(), &asked[2].body[..]), (Some("POST /chunks HTTP/1.1"), &b"hello"[..]));
        assert!(asked[0].head.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{asked:?}");
        assert_eq!((asked[1].head.lines().next(), &asked[1].body[..]), (Some("POST /x HTTP/1.1"), &b"hello"[..]));
        for one in &asked {
            assert_eq!(one.header("host"), [format!("plain.example:{port}")]);
            for gone in ["proxy-authorization", "proxy-connection", "connection", "x-mine", "te"] {
                assert!(one.header(gone).is_empty(), "{gone}: {asked:?}");
            }
        }
        assert_eq!(asked[1].header("x-kept"), ["1"]);
        let host = counted(&report, "hosts", &format!("http://plain.example:{port}"));
        assert_eq!(
            (number(host, "requests"), number(host, "bytes-up"), number(host, "bytes-down")),
            (3, 10, 12),
            "{host}"
        );
    }
}

/// The base URL is the broker's, and so is the proxy: the phantom works at the one, the pass at the other.
#[test]
fn an_agent_with_a_credential_has_its_api_and_the_list_and_each_word_opens_one() {
    for who in everybody() {
        let Some(service) = Service::new(who) else { return };
        let listed = Listed::new(service, Upstream::fine());
        let (service, model) = (&listed.service, Upstream::fine());
        let mut command = service.stage.run(who, &[]);
        command.args(["--quiet", "--agent", "client", "--timeout", "5m", "--report-fd", "2", "--policy-dir"]);
        command
            .arg(&service.policies)
            .arg("--policy")
            .arg(listed.policy(""))
            .arg("--credential-file")
            .arg(&service.file);
        command.arg("--upstream").arg(format!("http://{}", model.address));
        let script = r#"
import urllib.request
KEY = os.read(3, 4096).decode()
URL = os.environ["CLIENT_URL"]
def post(key):
    request = urllib.request.Request(URL + "/v1/x", data=b"hello", headers={"x-api-key": key})
    try:
        return urllib.request.urlopen(request).status
    except urllib.error.HTTPError as error:
        return error.code
say("api", post(KEY), post(PROXY.password))
say("list", get(tunnel(f"test.example:{PORT}")[0], "test.example"), tunnel(f"test.example:{PORT}", auth=BASIC(KEY))[1])
say("same", KEY == PROXY.password, URL == f"http://127.0.0.1:{PROXY.port}")
"#;
        let done = output(listed.client(&mut command, script));
        let report = report(&done);
        assert_eq!(
            done.out.lines().collect::<Vec<_>>(),
            ["api 200 401", "list fine 407", "same False True"],
            "{done:?}"
        );
        assert_eq!(model.asked()[0].header("x-api-key"), [&service.token]);
        let through = listed.upstream.asked();
        assert_eq!(through.len(), 1);
        assert!(!through[0].head.contains(&service.token), "a listed host gets no credential");
        assert_eq!((number(&report["broker"], "requests"), number(&report["broker"], "refused")), (1, 1));
    }
}

/// Where an API answers with what it took, the report says it, and the answer passes as it is.
#[test]
fn the_tokens_of_answers_are_counted_as_they_pass() {
    let Some(service) = Service::new(super::somebody()) else { return };
    const STREAM: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,\
        \"cache_read_input_tokens\":7,\"output_tokens\":1}}}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\
        \"usage\":{\"output_tokens\":15}}\n\n";
    const WHOLE: &str = r#"{"usageMetadata":{"promptTokenCount":8,"candidatesTokenCount":5}}"#;
    let upstream = Upstream::start(|asked, stream| {
        use std::io::Write as _;
        if asked.head.contains("/whole") {
            return stream.write_all(&super::upstream::plain("200 OK", "content-type: application/json\r\n", WHOLE));
        }
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")?;
        for part in STREAM.as_bytes().chunks(11) {
            write!(stream, "{:x}\r\n", part.len())?;
            stream.write_all(&[part, b"\r\n"].concat())?;
        }
        stream.write_all(b"0\r\n\r\n")
    });
    let done = service
        .play(upstream.address, "sys.stdout.write(ask()[1])\nsys.stdout.write(ask(line='POST /whole HTTP/1.1')[1])");
    let report = report(&done);
    assert_eq!(done.out, format!("{STREAM}{WHOLE}"), "{done:?}");
    let want = serde_json::json!({"answers": 2, "input": 33, "output": 20, "cache-written": 0, "cache-read": 7});
    assert_eq!(report["broker"]["tokens"], want);
}
