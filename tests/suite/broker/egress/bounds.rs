//! What an agent may take of the list: connections, bytes, time.

use std::io::Write as _;

use super::super::upstream::Upstream;
use super::super::{Service, report, somebody};
use super::{Listed, counted, number};
use crate::stage::output;

#[test]
fn tunnels_take_the_places_of_the_cell_and_give_them_back() {
    let Some(service) = Service::new(somebody()) else { return };
    let listed = Listed::new(service, Upstream::fine());
    let script = r#"
good = f"test.example:{PORT}"
held = [tls(tunnel(good)[0], "test.example") for _ in range(4)]
late = connect()
late.sendall(f"CONNECT {good} HTTP/1.1\r\nHost: {good}\r\nProxy-Authorization: {AUTH}\r\n\r\n".encode())
late.settimeout(1)
try:
    say("fifth", late.recv(1))
except TimeoutError:
    say("fifth waits")
held.pop().close()
late.settimeout(60)
say("fifth", head(late))
held.clear()
late.close()
flood = [connect() for _ in range(1200)]
say("flood", len(flood))
for connection in flood:
    connection.close()
say(get(tunnel(good)[0], "test.example"))
"#;
    let done = listed.play("connections = 4", script);
    report(&done);
    assert_eq!(done.out.lines().collect::<Vec<_>>(), ["fifth waits", "fifth 200", "flood 1200", "fine"], "{done:?}");
}

#[test]
fn bytes_are_counted_over_all_hosts_and_then_spent() {
    let Some(service) = Service::new(somebody()) else { return };
    let upstream = Upstream::start(|_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n")?;
        (0..30).try_for_each(|_| stream.write_all(&[b'x'; 100_000]))
    });
    let plain = format!("\"http://plain.example:{}\" = \"127.0.0.1\"", upstream.address.port());
    let listed = Listed::new(service, upstream);
    let policy = listed.policy_with("bytes = \"2MiB\"", &plain);
    let mut command = super::bare(&listed.service);
    let script = r#"
stream = tls(tunnel(f"test.example:{PORT}")[0], "test.example")
stream.sendall(b"GET / HTTP/1.1\r\nHost: test.example\r\n\r\n")
got = 0
try:
    while part := stream.recv(65536):
        got += len(part)
except (ssl.SSLError, ConnectionError):
    pass
say(1 << 20 < got < 2 << 20)
say(tunnel(f"test.example:{PORT}")[1])
"#;
    let script = format!("{script}\nPLAIN = {}\n", listed.upstream.address.port())
        + "say(ask(f'GET http://plain.example:{PLAIN}/ HTTP/1.1', f'Host: plain.example:{PLAIN}', f'Proxy-Authorization: {AUTH}')[1])";
    let done = output(listed.client(command.arg("--policy").arg(policy), &script));
    let report = report(&done);
    assert_eq!(done.out.lines().collect::<Vec<_>>(), ["True", "403", "403"], "{done:?}");
    let host = counted(&report, "hosts", &format!("test.example:{}", listed.port()));
    assert!(number(host, "bytes-up") + number(host, "bytes-down") <= 2 << 20, "{host}");
    assert_eq!((number(host, "failed"), number(host, "refused")), (1, 1), "{host}");
    assert!(host["why"].as_str().unwrap().contains("network.bytes"), "{host}");
}

#[test]
fn what_carries_nothing_or_never_says_its_host_is_closed() {
    let Some(service) = Service::new(somebody()) else { return };
    let listed = Listed::new(service, Upstream::fine());
    let script = r#"
good = f"test.example:{PORT}"
slow, idle = tunnel(good)[0], tls(tunnel(good)[0], "test.example")
slow.sendall(b"\x16\x03\x01")
began = time.monotonic()
say("idle", ended(idle), time.monotonic() - began < 8)
# A byte now and then does not make it live.
for byte in b"\x02\x00\x01\x00\x01\xfc\x03\x03" * 4:
    try:
        slow.sendall(bytes([byte]))
        time.sleep(1)
    except ConnectionError:
        break
say("slow", ended(slow), time.monotonic() - began < 20)
say(get(tunnel(good)[0], "test.example"))
"#;
    let done = listed.play("idle-timeout = \"2s\"", script);
    let report = report(&done);
    assert_eq!(done.out.lines().collect::<Vec<_>>(), ["idle True True", "slow True True", "fine"], "{done:?}");
    let host = counted(&report, "hosts", &format!("test.example:{}", listed.port()));
    assert_eq!((number(host, "failed"), number(host, "refused")), (1, 1), "{host}");
}
