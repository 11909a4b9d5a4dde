//! Requests that lead nowhere, and tunnels that are for another host than they say.

use std::io::{Read, Write};

use super::super::upstream::Upstream;
use super::super::{Service, report, somebody};
use super::{Listed, counted, number};

/// Each on a connection of its own: where it wants to go, and what it says beside.
const FORMS: &str = r#"
auth, good = f"Proxy-Authorization: {AUTH}", f"test.example:{PORT}"
host = f"Host: {good}"
connects = [f"CONNECT {good} HTTP/1.1", host, auth]
inner = f"GET /smuggled HTTP/1.1\r\nHost: {good}\r\n\r\n".encode()
forms = {
    "not listed": ["CONNECT other.example:443 HTTP/1.1", "Host: other.example:443", auth],
    "no port": ["CONNECT test.example HTTP/1.1", "Host: test.example", auth],
    "port 0": ["CONNECT test.example:0 HTTP/1.1", "Host: test.example:0", auth],
    "a port with a sign": [f"CONNECT test.example:+{PORT} HTTP/1.1", host, auth],
    "a user": [f"CONNECT a@{good} HTTP/1.1", host, auth],
    "a listed name as user": [f"CONNECT {good}@other.example:443 HTTP/1.1", host, auth],
    "a dot behind": [f"CONNECT test.example.:{PORT} HTTP/1.1", f"Host: test.example.:{PORT}", auth],
    "a listed end": [f"CONNECT xtest.example:{PORT} HTTP/1.1", f"Host: xtest.example:{PORT}", auth],
    "below": [f"CONNECT a.test.example:{PORT} HTTP/1.1", f"Host: a.test.example:{PORT}", auth],
    "a NUL": [f"CONNECT test.example\0:{PORT} HTTP/1.1", host, auth],
    "a blank": [f"CONNECT test.example :{PORT} HTTP/1.1", host, auth],
    "a letter that looks alike": [f"CONNECT t\xe9st.example:{PORT} HTTP/1.1", host, auth],
    "percent": [f"CONNECT test%2eexample:{PORT} HTTP/1.1", host, auth],
    "another host": [f"CONNECT {good} HTTP/1.1", "Host: other.example:443", auth],
    "two hosts": [*connects, host],
    "no host": [f"CONNECT {good} HTTP/1.1", auth],
    "a length": [*connects, f"Content-Length: {len(inner)}"],
    "no length": [*connects, "Content-Length: 0"],
    "chunks": [*connects, "Transfer-Encoding: chunked"],
    "length and chunks": [*connects, "Content-Length: 5", "Transfer-Encoding: chunked"],
    "a folded header": [*connects, "X-A: 1", " 2"],
    "HTTP/0.9": [f"CONNECT {good}", host, auth],
    "a URL": [f"GET http://{good}/ HTTP/1.1", host, auth],
    "a URL with TLS": [f"GET https://{good}/ HTTP/1.1", host, auth],
    "a URL with another host": [f"GET http://{good}/ HTTP/1.1", "Host: other.example", auth],
    "a URL with a user": [f"GET http://a@{good}/ HTTP/1.1", host, auth],
    "a URL of a file": [f"GET ftp://{good}/ HTTP/1.1", host, auth],
    "a URL that climbs": [f"GET http://{good}/../x HTTP/1.1", host, auth],
    "a path": ["GET / HTTP/1.1", host, auth],
    "no pass": connects[:2],
    "an empty pass": [*connects[:2], "Proxy-Authorization:"],
    "a wrong pass": [*connects[:2], f"Proxy-Authorization: {BASIC(PROXY.password[:-1] + 'x')}"],
    "half a pass": [*connects[:2], f"Proxy-Authorization: {BASIC(PROXY.password[:-1])}"],
    "two passes": [*connects, auth],
    "another scheme": [*connects[:2], f"Proxy-Authorization: Bearer {PROXY.password}"],
    "the pass for a server": [*connects[:2], f"Authorization: {AUTH}"],
}
for address in [
    "127.0.0.1", "127.1", "0", "0.0.0.0", "2130706433", "017700000001", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1",
    "169.254.169.254", "2852039166", "10.0.0.1", "8.8.8.8", "127.0.0.1.", "[::1]", "[::ffff:127.0.0.1]",
    "[fd00:ec2::254]", "[64:ff9b::7f00:1]", "::1",
]:
    forms[address] = [f"CONNECT {address}:{PORT} HTTP/1.1", f"Host: {address}:{PORT}", auth]
for name, lines in forms.items():
    connection, code = ask(*lines, body=inner)
    connection.close()
    say(name, "|", code)
say("good", get(tunnel(good)[0], "test.example"))
say("good", get(ask(f"CONNECT {good.upper()} HTTP/1.0", auth)[0], "test.example"))
say("good", get(tunnel(good, auth=AUTH.replace("Basic", "bASIC"))[0], "test.example"))
"#;

#[test]
fn what_is_no_request_for_a_listed_host_in_one_form_leads_nowhere() {
    let Some(service) = Service::new(somebody()) else { return };
    let listed = Listed::new(service, Upstream::fine());
    let done = listed.play("", FORMS);
    let report = report(&done);
    let (good, bad): (Vec<&str>, Vec<&str>) = done.out.lines().partition(|line| line.starts_with("good "));
    assert_eq!((good, bad.len()), (vec!["good fine"; 3], 55), "{done:?}");
    for line in &bad {
        let (name, code) = line.split_once(" | ").unwrap();
        let want: &[&str] = match name {
            "not listed" | "a listed end" | "below" | "a URL" => &["403"],
            "no pass" | "an empty pass" | "a wrong pass" | "half a pass" | "two passes" | "another scheme" => &["407"],
            "the pass for a server" => &["407"],
            "another host" | "two hosts" | "no host" | "a URL with another host" => &["421"],
            "a path" => &["404"],
            "chunks" | "length and chunks" | "a length" | "no length" => &["400"],
            // As the library says it, or the broker.
            _ => &["400", "403", "421", "closed"],
        };
        // A connection that is closed with bytes unread is reset, and the answer may be lost with it.
        assert!(want.contains(&code) || code == "closed", "{line}: {want:?}");
    }
    let asked = listed.upstream.asked();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked.iter().all(|one| one.head.starts_with("GET /in ")), "{asked:?}");
    assert!(number(counted(&report, "denied", "without the cell's pass"), "refused") >= 7, "{report}");
    assert!(number(counted(&report, "denied", "other.example:443"), "refused") == 1, "{report}");
}

const HELLO: &str = r#"
def hello(name):
    """The first bytes of a client's TLS."""
    out = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return out.read()
"#;

const TUNNELS: &str = r#"
good = f"test.example:{PORT}"
def through(name, first, wait=True):
    connection, code = tunnel(good)
    connection.sendall(first)
    say(name, "|", code, ended(connection))
    connection.close()

through("another name", hello("other.example"))
through("a name above", hello("example"))
through("a name below", hello("a.test.example"))
through("no name", hello(None))
through("plain text", f"GET /clear HTTP/1.1\r\nHost: {good}\r\n\r\n".encode())
through("ssh", b"SSH-2.0-OpenSSH_9.2\r\n")
through("SSL 2", bytes.fromhex("802e010002001500000010") + b"\0" * 64)
through("an alert", bytes.fromhex("15030100020100"))
through("a hello that is none", bytes.fromhex("160301000501000001") + b"\0" * 64)
through("a hello that never ends", bytes.fromhex("1603014000010100000303") + b"\0" * 60000)
name = b"test.example"
twice = hello("test.example").replace(name, b"test.exampl\0")
through("a NUL in the name", twice)
# Part by part it is the same, and what is written before it is answered waits.
connection, code = tunnel(good)
text = hello("test.example")
for at in range(0, len(text), 100):
    connection.sendall(text[at:at + 100])
    time.sleep(0.01)
say("in parts", "|", code, connection.recv(1) == b"\x16")
say("in capitals", "|", get(tunnel(good)[0], "TEST.example"))
at_once, code = ask(f"CONNECT {good} HTTP/1.1", f"Host: {good}", f"Proxy-Authorization: {AUTH}", body=hello("test.example"))
say("at once", "|", code, at_once.recv(1) == b"\x16")
"#;

#[test]
fn a_tunnel_that_is_not_for_the_host_that_was_asked_for_is_closed() {
    let Some(service) = Service::new(somebody()) else { return };
    let listed = Listed::new(service, Upstream::fine());
    let done = listed.play("", &format!("{HELLO}{TUNNELS}"));
    let report = report(&done);
    let lines: Vec<&str> = done.out.lines().collect();
    assert_eq!(lines.len(), 14, "{done:?}");
    for line in &lines[..11] {
        assert!(line.ends_with("| 200 True"), "{line}: {done:?}");
    }
    assert_eq!(lines[11..], ["in parts | 200 True", "in capitals | fine", "at once | 200 True"], "{done:?}");
    assert_eq!(listed.upstream.asked().len(), 1, "nothing in the clear has come through");
    let host = counted(&report, "hosts", &format!("test.example:{}", listed.port()));
    assert_eq!((number(host, "requests"), number(host, "refused")), (3, 11), "{host}");
}

/// With an encrypted hello (RFC 9849) the outer one is all that anybody but the host can read: the tunnel leads to its host.
const ENCRYPTED: &str = r#"
good = f"test.example:{PORT}"
def encrypted(name):
    """The same with an inner one, which nobody here can read."""
    text = hello(name)
    sealed = b"\0" + b"\0\1\0\1" + b"\x2a" + b"\0\x20" + os.urandom(32) + b"\0\xb0" + os.urandom(176)
    more = b"\xfe\x0d" + len(sealed).to_bytes(2, "big") + sealed
    at = 5 + 4 + 2 + 32
    at += 1 + text[at]
    at += 2 + int.from_bytes(text[at:at + 2], "big")
    at += 1 + text[at]
    grown = lambda place, size: (int.from_bytes(text[place:place + size], "big") + len(more)).to_bytes(size, "big")
    return text[:3] + grown(3, 2) + text[5:6] + grown(6, 3) + text[9:at] + grown(at, 2) + text[at + 2:] + more

for name in ["test.example", "other.example", None]:
    connection, code = tunnel(good)
    connection.sendall(encrypted(name))
    if name == "test.example":
        kind = connection.recv(1)
        say(name, code, kind.hex())
    else:
        say(name, code, ended(connection))
connection, code = tunnel(f"second.example:{SECOND}")
connection.sendall(encrypted("test.example"))
say("second", code, ended(connection))
connection, code = tunnel(f"second.example:{SECOND}")
connection.sendall(encrypted("second.example"))
say("second", code, connection.recv(1).hex())
"#;

#[test]
fn an_encrypted_hello_leads_to_the_host_that_it_names_outside_and_to_no_other() {
    let Some(service) = Service::new(somebody()) else { return };
    let listed = Listed::new(service, Upstream::fine());
    let second = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = second.local_addr().unwrap().port();
    let heard = std::thread::spawn(move || {
        let mut heard = Vec::new();
        for stream in second.incoming().take(2) {
            let (mut stream, mut part) = (stream.unwrap(), [0; 4096]);
            heard.push(stream.read(&mut part).unwrap());
            let _ = stream.write_all(b"\x16");
        }
        heard
    });
    let policy = listed.policy_with("", &format!("\"second.example:{port}\" = \"127.0.0.1\""));
    let mut command = super::bare(&listed.service);
    let script = format!("SECOND = {port}\n{HELLO}{ENCRYPTED}");
    let done = crate::stage::output(listed.client(command.arg("--policy").arg(policy), &script));
    let want = ["test.example 200 16", "other.example 200 True", "None 200 True", "second 200 True", "second 200 16"];
    assert_eq!(done.out.lines().collect::<Vec<_>>(), want, "{done:?}");
    // Of the hello for the first host the second hears nothing.
    let heard = heard.join().unwrap();
    assert!(heard[0] == 0 && heard[1] > 300, "{heard:?}");
    let host = report(&done);
    let host = counted(&host, "hosts", &format!("second.example:{port}"));
    assert_eq!((number(host, "requests"), number(host, "refused")), (1, 1), "{host}");
}

#[test]
fn the_pass_of_another_cell_opens_nothing() {
    let Some(service) = Service::new(somebody()) else { return };
    let listed = Listed::new(service, Upstream::fine());
    let first = listed.play("", "say(AUTH)");
    let neighbours = first.out.trim();
    let script = format!("say(tunnel(f'test.example:{{PORT}}', auth={neighbours:?})[1], AUTH == {neighbours:?})");
    let done = listed.play("", &script);
    assert_eq!(done.out.trim(), "407 False", "{done:?}");
    assert!(listed.upstream.asked().is_empty());
}

/// A list that is too short looks like a network that is down.
#[test]
fn hosts_that_are_missing_from_the_list_are_named_at_the_end() {
    let Some(service) = Service::new(somebody()) else { return };
    let listed = Listed::new(service, Upstream::fine());
    let script = "for name in ['a', 'b', 'a', '127.0.0.1:1#']: tunnel(f'{name}.example:443')";
    for (options, told) in [(&[][..], true), (&["--quiet"], false)] {
        let mut command = listed.service.stage.run(listed.service.who, &[]);
        command.args(["--agent", "none"]).args(options).arg("--policy").arg(listed.policy(""));
        let done = crate::stage::output(listed.client(&mut command, script));
        let note = "the agent asked for hosts that are not on its list: a.example:443, b.example:443\n";
        assert_eq!((done.status.code(), done.err.contains(note)), (Some(0), told), "{done:?}");
    }
}

#[test]
fn the_broker_does_not_lead_to_itself() {
    let Some(service) = Service::new(somebody()) else { return };
    let listed = Listed::new(service, Upstream::fine());
    let policy = listed.policy_with("", "\"here.example:20080\" = \"127.0.0.1\"");
    let mut command = super::bare(&listed.service);
    let script = "say(tunnel('here.example:20080')[1], tunnel('127.0.0.1:20080')[1], tunnel('localhost:20080')[1])";
    let done = crate::stage::output(listed.client(command.arg("--policy").arg(policy), script));
    let report = report(&done);
    assert_eq!(done.out.trim(), "508 400 403", "{done:?}");
    let host = counted(&report, "hosts", "here.example:20080");
    assert_eq!((number(host, "refused"), host["why"].as_str()), (1, Some("there is the broker itself")), "{host}");
}
