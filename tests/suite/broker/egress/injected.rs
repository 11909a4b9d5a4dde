//! Tokens for hosts: real clients work with a host that wants one, and no file, variable or answer of the cell has it.

use std::fs;
use std::process::Command;

use super::super::upstream::{Asked, Front, Upstream, plain};
use super::super::{Service, everybody, report, somebody};
use super::{Listed, bare, client, counted, number};
use crate::need::need_program;
use crate::stage::{Done, output};

const TOKEN: &str = "glpat-0123456789abcdef";

/// A listed host that wants a token.
struct Wanting {
    listed: Listed,
    file: std::path::PathBuf,
}

impl Wanting {
    fn new(service: Service, upstream: Upstream) -> Wanting {
        let file = service.stage.private_file(service.who, "git-token", &format!("{TOKEN}\n"));
        Wanting { listed: Listed::new(service, upstream), file }
    }

    fn injection(&self) -> String {
        format!("test.example:{}=header:Private-Token:{}", self.listed.port(), self.file.display())
    }

    /// A run whose broker trusts the host.
    fn run(&self) -> Command {
        let mut command = self.listed.run("");
        command.arg("--inject").arg(self.injection()).arg("--ca").arg(&self.listed.front.ca);
        command
    }

    fn play(&self, script: &str) -> Done {
        output(client(&mut self.run(), &self.listed.front, script))
    }
}

const CLIENTS: &str = r#"
def shown(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout.strip(), done.stderr.strip()

URL = f"https://test.example:{PORT}"
say("curl", *shown("curl", "-sS", "-H", "private-token: mine", f"{URL}/curl"))
fetch = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"
say("python", *shown(sys.executable, "-c", fetch, f"{URL}/python"))
say("git", *shown("git", "ls-remote", f"{URL}/repository.git"))
"#;

/// Every file that the cell can read of its own, and every variable of every process in it.
const SEARCH: &str = r#"
import glob
found = []
for top in ["/home", "/tmp", "/run", os.getcwd(), os.path.dirname(os.environ["SSL_CERT_FILE"])]:
    for path in glob.glob(top + "/**", recursive=True, include_hidden=True):
        if os.path.isfile(path) and b"glpat-" + b"0123456789abcdef" in open(path, "rb").read():
            found.append(path)
for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
    try:
        found += [path] if b"glpat-" + b"0123456789" in open(path, "rb").read() else []
    except OSError:
        pass
say("found", found)
"#;

fn answer(asked: &Asked, stream: &mut std::net::TcpStream) -> std::io::Result<()> {
    use std::io::Write as _;
    if asked.head.contains("/info/refs?") {
        return super::answer(asked, stream);
    }
    // As a host does that shows what it got.
    let token = asked.header("private-token").join(",");
    stream.write_all(&plain("200 OK", &format!("x-token: <{token}>\r\nx-kept: 1\r\n"), &format!("fine {token} fine")))
}

#[test]
fn real_clients_get_a_hosts_token_without_having_it() {
    if need_program("curl").is_none() || need_program("git").is_none() {
        return;
    }
    for who in everybody() {
        let Some(service) = Service::new(who) else { return };
        let wanting = Wanting::new(service, Upstream::start(answer));
        let done = wanting.play(&format!("{CLIENTS}\n{SEARCH}"));
        let lines: Vec<&str> = done.out.lines().collect();
        let covered = format!("fine {} fine", "*".repeat(TOKEN.len()));
        assert_eq!(lines[0].trim(), format!("curl 0 {covered}"), "{done:?}");
        assert_eq!(lines[1].trim(), format!("python 0 {covered}"), "{done:?}");
        assert_eq!(lines[2].trim(), format!("git 0 {}\tHEAD", "1".repeat(40)), "{done:?}");
        assert_eq!(lines[3], "found []", "{done:?}");
        let asked = wanting.listed.upstream.asked();
        assert_eq!(asked.len(), 3, "{asked:?}");
        for one in &asked {
            assert_eq!(one.header("private-token"), [TOKEN], "the cell's own is no other: {one:?}");
            assert_eq!(one.header("host"), [format!("test.example:{}", wanting.listed.port())], "{one:?}");
            assert!(one.header("proxy-authorization").is_empty(), "{one:?}");
        }
        assert!(!done.err.contains(TOKEN) && !done.out.contains(TOKEN), "{done:?}");
        let report = report(&done);
        let host = counted(&report, "hosts", &format!("test.example:{}", wanting.listed.port()));
        assert_eq!((number(host, "requests"), number(host, "failed"), number(host, "refused")), (3, 0, 0), "{host}");
    }
}

const BODIES: &str = r#"
def begin(name="test.example", host=None):
    connection, status = tunnel(f"test.example:{PORT}")
    context = ssl.create_default_context()
    context.check_hostname = False
    stream = context.wrap_socket(connection, server_hostname=name)
    return stream

def send(stream, *lines, body=b""):
    stream.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    got = b""
    while b"\r\n\r\n" not in got:
        part = stream.recv(65536)
        if not part:
            return "closed"
        got += part
    status = got.split(b" ")[1].decode()
    length = [line for line in got.split(b"\r\n") if line.lower().startswith(b"content-length")]
    while length and len(got.split(b"\r\n\r\n", 1)[1]) < int(length[0].split(b":")[1]):
        got += stream.recv(65536)
    return status

here = f"Host: test.example:{PORT}"
stream = begin()
say("chunks", send(stream, "POST /a HTTP/1.1", here, "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n"))
say("behind them", send(stream, "POST /smuggled HTTP/1.1", here, "Content-Length: 0"))
say("length", send(begin(), "POST /b HTTP/1.1", here, "Content-Length: 5", body=b"hello"))
say("another host", send(begin(), "GET /c HTTP/1.1", "Host: other.example"))
say("another port", send(begin(), "GET /c HTTP/1.1", "Host: test.example"))
say("two hosts", send(begin(), "GET /c HTTP/1.1", here, "Host: other.example"))
say("a URL", send(begin(), f"GET https://other.example/c HTTP/1.1", here))
say("an upgrade", send(begin(), "GET /c HTTP/1.1", here, "Connection: upgrade", "Upgrade: websocket"))
say("a tunnel", send(begin(), f"CONNECT test.example:{PORT} HTTP/1.1", here))
say("both", send(begin(), "POST /c HTTP/1.1", here, "Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"))
say("codings", send(begin(), "POST /c HTTP/1.1", here, "Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"))
for name in ["other.example", "sub.test.example", None]:
    try:
        begin(name)
        say("served", name)
    except (ssl.SSLError, OSError) as error:
        say("not served", name)
"#;

#[test]
fn a_token_goes_with_requests_to_its_host_and_with_nothing_else() {
    let Some(service) = Service::new(somebody()) else { return };
    let wanting = Wanting::new(service, Upstream::start(answer));
    let done = wanting.play(BODIES);
    let lines: Vec<&str> = done.out.lines().collect();
    let want = [
        "chunks 200",
        "behind them closed",
        "length 200",
        "another host 421",
        "another port 421",
        "two hosts 421",
        "a URL 421",
        "an upgrade 400",
        "a tunnel 405",
        "both 400",
    ];
    assert_eq!(lines[..10], want, "{done:?}");
    // Either the library or the broker.
    assert!(["codings 400", "codings 501", "codings closed"].contains(&lines[10]), "{done:?}");
    assert_eq!(lines[11..], ["not served other.example", "not served sub.test.example", "not served None"], "{done:?}");
    let asked = wanting.listed.upstream.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_eq!((asked[0].header("transfer-encoding"), asked[0].header("content-length")), (vec!["chunked"], vec![]));
    assert_eq!((asked[1].header("transfer-encoding"), asked[1].header("content-length")), (vec![], vec!["5"]));
    assert!(asked.iter().all(|one| one.body == b"hello"), "{asked:?}");
}

#[test]
fn a_host_that_nobody_vouches_for_gets_no_token() {
    let Some(service) = Service::new(somebody()) else { return };
    let wanting = Wanting::new(service, Upstream::start(answer));
    // Another one's authority.
    let name = rcgen::SanType::DnsName("test.example".try_into().unwrap());
    let other = Front::new(wanting.listed.upstream.address, name, wanting.listed.service.stage.path());
    let mut command = wanting.listed.run("");
    command.arg("--inject").arg(wanting.injection()).arg("--ca").arg(&other.ca);
    let done = output(client(&mut command, &wanting.listed.front, BODIES_ONCE));
    assert_eq!(done.out, "502\n", "{done:?}");
    assert!(wanting.listed.upstream.asked().is_empty());
    let report = report(&done);
    let host = counted(&report, "hosts", &format!("test.example:{}", wanting.listed.port()));
    assert!(number(host, "failed") > 0 && host["why"].as_str().unwrap().contains("certificate"), "{host}");
}

const BODIES_ONCE: &str = r#"
connection, _ = tunnel(f"test.example:{PORT}")
stream = ssl.create_default_context().wrap_socket(connection, server_hostname="test.example")
stream.sendall(f"GET / HTTP/1.1\r\nHost: test.example:{PORT}\r\n\r\n".encode())
say(stream.recv(65536).split(b" ")[1].decode())
"#;

#[test]
fn what_cannot_be_added_is_refused_before_anything_runs() {
    let Some(service) = Service::new(somebody()) else { return };
    let wanting = Wanting::new(service, Upstream::fine());
    let service = &wanting.listed.service;
    let open = service.stage.private_file(service.who, "open-token", TOKEN);
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let closed = wanting.listed.policy("");
    let (closed, file, open) = (closed.to_str().unwrap(), wanting.file.to_str().unwrap(), open.to_str().unwrap());
    let injection = |host: &str, file: &str| format!("{host}=header:private-token:{file}");
    let here = format!("test.example:{}", wanting.listed.port());
    let cases: [(&[&str], String, &str); 6] = [
        (&["--policy", closed], injection("a.example", file), "the policy has the whole list"),
        (&["--policy", closed], injection("test.example:1", file), "the policy has"),
        (&["--policy", closed, "--network", "none"], injection(&here, file), "no broker is asked for"),
        (&["--policy", closed], injection(&here, open), "others can read it"),
        (&["--policy", closed], injection(&here, "/nowhere"), "/nowhere"),
        (&["--policy", closed], "a.example=b".into(), "is not HOST[:PORT]=header:NAME:FILE"),
    ];
    for (words, injection, part) in cases {
        let mut command = bare(service);
        command.args(words).args(["--inject", &injection, "--", "true"]);
        let done = output(&mut command);
        assert_eq!(done.status.code(), Some(125), "{injection}: {done:?}");
        assert!(done.err.contains(part) && done.err.contains("hint: "), "{injection}: {done:?}");
        assert!(!done.err.contains(TOKEN), "{done:?}");
    }
}
