//! Bodies pass part by part, both ways; an upstream that is down, slow or strange costs one request.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::channel;

use rcgen::SanType;

use super::upstream::{Front, Upstream, http2, plain};
use super::{Service, broker, client, everybody, report, somebody};
use crate::stage::{PATIENCE, Running, Who, output};

#[test]
fn a_part_of_an_answer_is_there_before_the_next_is_sent() {
    let Some(service) = Service::new(somebody()) else { return };
    let (go_on, next) = channel::<()>();
    let next = Mutex::new(next);
    let upstream = Upstream::start(move |_, stream| {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")?;
        for number in 0..5 {
            let event = format!("data: {number}\n\n");
            write!(stream, "{:x}\r\n{event}\r\n", event.len())?;
            // Until the client has said that it has this one.
            next.lock().unwrap().recv_timeout(PATIENCE).map_err(std::io::Error::other)?;
        }
        stream.write_all(b"0\r\n\r\n")
    });
    let front = Front::loopback(upstream.address, service.stage.path());
    let mut command = service.bare();
    command.args(["--upstream", &front.url(), "--ca"]).arg(&front.ca);
    let script = r#"
connection = connect()
connection.sendall(head("GET /stream HTTP/1.1"))
got = answer(connection)
for line in got:
    if line.strip():
        say(got.headers["content-type"], line.decode().strip())
"#;
    let mut running = Running::start(client(&mut command, script));
    for number in 0..5 {
        assert_eq!(running.line().trim(), format!("text/event-stream data: {number}"));
        go_on.send(()).unwrap();
    }
    report(&running.end());
}

#[test]
fn a_part_of_a_request_is_there_before_the_next_is_sent() {
    let Some(service) = Service::new(somebody()) else { return };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let script = r#"
connection = connect()
connection.sendall(head("POST /up HTTP/1.1", "Content-Length: 10", "Expect: 100-continue"))
say("asks")
first = connection.recv(1000)
say(first.split(b"\r\n")[0].decode())
connection.sendall(b"first")
sys.stdin.readline()
connection.sendall(b"after")
say(answer(connection).status)
"#;
    let mut running = service.start(address, script);
    assert_eq!(running.line().trim(), "asks");
    assert_eq!(running.line().trim(), "HTTP/1.1 100 Continue");
    let (mut stream, _) = listener.accept().unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"first") {
        let mut part = [0; 4096];
        let length = stream.read(&mut part).unwrap();
        assert!(length > 0, "{}", String::from_utf8_lossy(&got));
        got.extend(&part[..length]);
    }
    assert!(!String::from_utf8_lossy(&got).to_lowercase().contains("expect"));
    writeln!(running.child.stdin.take().unwrap()).unwrap();
    let mut rest = [0; 5];
    stream.read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"after");
    stream.write_all(&plain("200 OK", "", "")).unwrap();
    assert_eq!(running.line().trim(), "200");
    assert_eq!(report(&running.end())["broker"]["bytes-up"], 10);
}

/// The largest that a process has been, in bytes.
pub fn peak(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn large_bodies_pass_and_are_kept_nowhere() {
    const SIZE: u64 = 256 << 20;
    let Some(service) = Service::new(somebody()) else { return };
    let upstream = Upstream::start(|asked, stream| {
        if asked.head.starts_with("POST") {
            return stream.write_all(&plain("200 OK", "", &asked.body.len().to_string()));
        }
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n")?;
        let part = vec![b's'; 1 << 20];
        (0..SIZE >> 20).try_for_each(|_| stream.write_all(&part))
    });
    let script = r#"
connection = connect()
connection.sendall(head("GET / HTTP/1.1"))
got, length = answer(connection), 0
while part := got.read(1 << 20):
    length += len(part)
say(length)
connection.sendall(head("POST / HTTP/1.1", f"Content-Length: {64 << 20}"))
for _ in range(64):
    connection.sendall(b"u" * (1 << 20))
say(answer(connection).read().decode())
sys.stdin.readline()
"#;
    let mut running = service.start(upstream.address, script);
    assert_eq!(running.line().trim(), SIZE.to_string());
    assert_eq!(running.line().trim(), (64 << 20).to_string());
    let peak = peak(broker(&running));
    // A debug build's code alone is some MiB.
    assert!(peak < 48 << 20, "{} MiB", peak >> 20);
    writeln!(running.child.stdin.take().unwrap()).unwrap();
    let report = report(&running.end());
    assert_eq!(
        (&report["broker"]["bytes-down"], &report["broker"]["bytes-up"]),
        (&(SIZE + 8).into(), &(64 << 20).into())
    );
}

#[test]
fn an_upstream_that_is_down_slow_or_strange_costs_one_request() {
    let Some(service) = Service::new(somebody()) else { return };
    let upstream = Upstream::start(|asked, stream| match asked.head.split(' ').nth(1) {
        Some("/stall") => given_up(stream),
        Some("/half") => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")?;
            given_up(stream)
        }
        Some("/cut") => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")?;
            Err(std::io::Error::other("cut"))
        }
        Some("/garbage") => stream.write_all(b"no HTTP at all\r\n\r\n"),
        Some("/switch") => {
            stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")
        }
        Some("/huge") => stream.write_all(&plain("200 OK", &format!("x-huge: {}\r\n", "a".repeat(1 << 20)), "")),
        Some("/many") => stream.write_all(&plain("200 OK", &"x-many: a\r\n".repeat(10_000), "")),
        Some("/two") => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\naa"),
        Some("/error") => stream.write_all(&plain("529 Overloaded", "retry-after: 7\r\n", "{\"type\":\"error\"}")),
        _ => stream.write_all(&plain("200 OK", "", "fine")),
    });
    let script = r#"
for path in ["/stall", "/half", "/cut", "/garbage", "/switch", "/huge", "/many", "/two"]:
    try:
        got, text = ask(line=f"GET {path} HTTP/1.1", body=b"")
        say(path, got.status, '"type":"error"' in text)
    except (http.client.HTTPException, ConnectionError) as error:
        say(path, "broke off")
got, text = ask(line="GET /error HTTP/1.1", body=b"")
say("/error", got.status, got.headers["retry-after"], text)
say("/", ask(line="GET / HTTP/1.1", body=b"")[0].status)
"#;
    let policy = service.network("upstream-timeout = \"2s\"");
    let mut command = service.stage.run(service.who, &[]);
    command.args(["--quiet", "--agent", "client", "--timeout", "5m", "--report-fd", "2", "--policy-dir"]);
    command.arg(&service.policies).arg("--policy").arg(policy).arg("--credential-file").arg(&service.file);
    command.arg("--upstream").arg(format!("http://{}", upstream.address));
    let done = output(client(&mut command, script));
    let report = report(&done);
    let want = [
        "/stall 504 True",
        "/half broke off",
        "/cut broke off",
        "/garbage 502 True",
        "/switch 502 True",
        "/huge 502 True",
        "/many 502 True",
        "/two 502 True",
        "/error 529 7 {\"type\":\"error\"}",
        "/ 200",
    ];
    assert_eq!(done.out.lines().collect::<Vec<_>>(), want, "{done:?}");
    assert_eq!((&report["broker"]["requests"], &report["broker"]["failed"]), (&10.into(), &8.into()));
}

/// Sends no more, and stays until the broker has given up.
fn given_up(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let ended = stream.read(&mut [0]);
    Err(std::io::Error::other(format!("given up: {ended:?}")))
}

#[test]
fn an_upstream_that_is_down_or_nobody_vouches_for_gets_nothing() {
    let Some(service) = Service::new(somebody()) else { return };
    let upstream = Upstream::fine();
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let good = Front::loopback(upstream.address, service.stage.path());
    let misnamed =
        Front::new(upstream.address, SanType::DnsName("api.example".try_into().unwrap()), service.stage.path());
    let plain = upstream.address.port();
    let cases = [
        (format!("http://{free}"), &good.ca, "502 True Connection refused"),
        (good.url(), &misnamed.ca, "502 True invalid peer certificate"),
        (misnamed.url(), &misnamed.ca, "502 True invalid peer certificate"),
        // Plain HTTP where TLS was planned.
        (format!("https://127.0.0.1:{plain}"), &good.ca, "502 True tls handshake"),
        (good.url(), &good.ca, "200 False fine"),
    ];
    for (url, ca, want) in cases {
        let mut command = service.bare();
        command.args(["--upstream", &url, "--ca"]).arg(ca);
        let script = "got, text = ask(); say(got.status, '\"api_error\"' in text, text)";
        let done = output(client(&mut command, script));
        report(&done);
        let [status, part] = [&want[..want.len().min(8)], want.splitn(3, ' ').nth(2).unwrap()];
        assert!(done.out.starts_with(status.trim()) && done.out.contains(part), "{url}: {want}: {done:?}");
    }
    let asked = upstream.asked();
    // The one that was meant for TLS is no request.
    assert_eq!(asked.iter().filter(|one| !one.header("x-api-key").is_empty()).count(), 1, "{asked:?}");
    let _ = Who::Root;
}

#[test]
fn an_upstream_with_http_2_gets_the_same() {
    let Some(service) = Service::new(somebody()) else { return };
    let front = http2(service.stage.path());
    let mut command = service.bare();
    command.args(["--upstream", &format!("{}/prefix/", front.url()), "--ca"]).arg(&front.ca);
    let script = r#"
for _ in range(2):
    say(ask("Connection: close, x-mine", "X-Mine: 1")[1])
"#;
    let done = output(client(&mut command, script));
    report(&done);
    // An upstream that repeats the credential is not heard, so what it saw of that is a row of stars.
    let stars = "*".repeat(service.token.len());
    let want = format!("HTTP/2.0 /prefix/v1/x {} key={stars} connection= body=hello", front.address);
    assert_eq!(done.out.lines().collect::<Vec<_>>(), [&want, &want], "{done:?}");
}

/// A broker needs the network namespace and nothing else.
#[test]
fn whatever_other_layers_there_are() {
    for who in everybody() {
        let Some(service) = Service::new(who) else { return };
        let upstream = Upstream::fine();
        let other =
            ["root", "pid", "ipc", "uts", "uid", "landlock-fs", "landlock-net", "landlock-scope", "seccomp", "cgroup"];
        for off in [&other[..1], &other[..2], &other[..5], &other[5..], &other[..]] {
            let policy = service.stage.policy(off, Some("[network]\nmode = \"broker\""));
            let mut command = service.stage.run(who, &[]);
            command.args(["--quiet", "--agent", "client", "--timeout", "5m", "--report-fd", "2", "--policy-dir"]);
            command.arg(&service.policies).arg("--policy").arg(policy).arg("--credential-file").arg(&service.file);
            command.arg("--upstream").arg(format!("http://{}", upstream.address));
            let done = output(client(&mut command, "say(ask()[0].status, ask(key='x')[0].status)"));
            assert_eq!(report(&done)["broker"]["requests"], 1, "without {off:?}: {done:?}");
            assert_eq!(done.out.trim(), "200 401", "without {off:?}: {done:?}");
            assert!(service.stage.cells(who).is_empty(), "without {off:?}");
        }
        assert!(upstream.asked().iter().all(|asked| asked.header("x-api-key") == [&service.token]));
    }
}

#[test]
fn an_upstream_that_wants_a_certificate_gets_the_brokers() {
    let Some(service) = Service::new(somebody()) else { return };
    let upstream = Upstream::fine();
    let (front, client_cert) = Front::mutual(upstream.address, service.stage.path());
    let file = service.stage.private_file(service.who, "client.pem", &client_cert);
    let script = "got, text = ask()\nsay(got.status, text)";
    let ask = |more: &[&str]| {
        let mut command = service.bare();
        command.args(["--upstream", &front.url(), "--ca"]).arg(&front.ca).args(more);
        output(client(&mut command, script))
    };
    let done = ask(&["--client-cert", file.to_str().unwrap()]);
    assert_eq!(done.out, "200 fine\n", "{done:?}");
    assert!(!done.err.contains("PRIVATE KEY"), "{done:?}");
    // Without one the upstream does not answer.
    assert!(ask(&[]).out.starts_with("502 "));
    let ca = service.stage.private_file(service.who, "no-key.pem", &fs::read_to_string(&front.ca).unwrap());
    let done = ask(&["--client-cert", ca.to_str().unwrap()]);
    assert!(done.status.code() == Some(125) && done.err.contains("there is no private key in PEM in it"), "{done:?}");
}
