//! Names and the addresses that they come to, in a network and with a /etc/hosts of the test's own, where a DNS server
//! answers as it is told: another time something else.

use std::fs;

use rcgen::SanType;

use super::super::upstream::pem;
use super::super::{Service, report};
use super::{CLIENT, OPTIONS, counted, number};
use crate::need::{self, need_program};
use crate::stage::{Who, output};

/// In new namespaces for mounts and network: a DNS server, a server with TLS on every address that leads here, and the
/// launcher. 8.8.8.0/24 leads here and is no address of an interface; 8.8.4.4 is one. Last it says what each server saw.
const WORLD: &str = r#"
import os, socket, ssl, struct, subprocess, sys, threading
DIR = sys.argv[1]
os.environ["PATH"] += ":/usr/sbin:/sbin"
def sh(*words):
    subprocess.run(words, check=True)
sh("ip", "link", "set", "lo", "up")
sh("ip", "route", "add", "local", "8.8.8.0/24", "dev", "lo")
sh("ip", "address", "add", "8.8.4.4/32", "dev", "lo")
sh("mount", "--make-rprivate", "/")
for name in ["hosts", "resolv.conf"]:
    sh("mount", "--bind", f"{DIR}/{name}", f"/etc/{name}")

A = {
    "good.example": [["8.8.8.8"]], "a.wild.example": [["8.8.8.9"]], "b.a.wild.example": [["8.8.8.9"]],
    "rebind.example": [["8.8.8.10"], ["127.0.0.1"]], "back.example": [["127.0.0.1"], ["8.8.8.11"]],
    "loop.example": [["127.0.0.1"]], "private.example": [["10.0.0.1"]], "meta.example": [["169.254.169.254"]],
    "cgnat.example": [["100.64.0.1"]], "zero.example": [["0.0.0.0"]], "mixed.example": [["8.8.8.8", "192.168.0.1"]],
    "own.example": [["8.8.4.4"]], "azure.example": [["168.63.129.16"]], "broad.example": [["255.255.255.255"]],
    "wild.example": [["8.8.8.8"]], "added.example": [["8.8.8.12"]],
}
AAAA = {
    "mapped.example": "::ffff:127.0.0.1", "mappedmeta.example": "::ffff:169.254.169.254", "six.example": "::1",
    "compatible.example": "::127.0.0.1", "nat64.example": "64:ff9b::7f00:1", "meta6.example": "fd00:ec2::254",
    "link.example": "fe80::1", "sixtofour.example": "2002:7f00:1::1", "teredo.example": "2001:0:1::1",
}
asked, reached = [], []
dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
dns.bind(("127.0.0.1", 53))
def answers():
    while True:
        query, client = dns.recvfrom(4096)
        at, labels = 12, []
        while query[at]:
            labels.append(query[at + 1:at + 1 + query[at]].decode().lower())
            at += 1 + query[at]
        kind, = struct.unpack(">H", query[at + 1:at + 3])
        name = ".".join(labels)
        records = []
        if kind == 1 and name in A:
            asked.append(name)
            lists = A[name]
            records = [socket.inet_aton(one) for one in (lists.pop(0) if len(lists) > 1 else lists[0])]
        elif kind == 28 and name in AAAA:
            asked.append(name)
            records = [socket.inet_pton(socket.AF_INET6, AAAA[name])]
        # No answer is to be kept: its time to live is 0.
        body = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 0, len(one)) + one for one in records)
        head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(records), 0, 0)
        dns.sendto(head + query[12:at + 5] + body, client)
threading.Thread(target=answers, daemon=True).start()

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{DIR}/cert.pem", f"{DIR}/key.pem")
server = socket.socket()
server.bind(("0.0.0.0", 443))
server.listen(64)
def serve():
    while True:
        stream, _ = server.accept()
        reached.append(stream.getsockname()[0])
        try:
            with context.wrap_socket(stream, server_side=True) as stream:
                stream.recv(4096)
                stream.sendall(b"HTTP/1.1 200 OK\r\n\r\nfine")
        except OSError:
            pass
threading.Thread(target=serve, daemon=True).start()
code = subprocess.call(sys.argv[2:])
print("asked", *sorted(set(name for name in asked if asked.count(name) > 1)))
print("reached", *reached)
sys.exit(code)
"#;

const SCRIPT: &str = r#"
for name in ["good", "a.wild", "b.a.wild", "rebind", "added"]:
    say(name, get(tunnel(f"{name}.example:443")[0], f"{name}.example"))
for name in ["rebind", "back", "loop", "private", "meta", "cgnat", "zero", "mixed", "own", "azure", "broad", "hosts",
             "mapped", "mappedmeta", "six", "compatible", "nat64", "meta6", "link", "sixtofour", "teredo", "nobody"]:
    say(name, tunnel(f"{name}.example:443")[1])
say("wild", tunnel("wild.example:443")[1])
"#;

/// Long because it is one world, and what each of its names comes to.
#[test]
fn a_listed_name_leads_to_the_internet_and_to_the_address_that_was_looked_at() {
    let root = need::need("root", nix::unistd::geteuid().is_root());
    if !root || ["ip", "mount", "unshare"].into_iter().any(|name| need_program(name).is_none()) {
        return;
    }
    let Some(service) = Service::new(Who::Root) else { return };
    let directory = service.stage.path().join("world");
    fs::create_dir(&directory).unwrap();
    let (certificate, key, ca) = pem(SanType::DnsName("*.example".try_into().unwrap()));
    for (name, text) in [
        ("cert.pem", certificate.as_str()),
        ("key.pem", &key),
        ("hosts", "127.0.0.1 localhost\n127.0.0.2 hosts.example\n"),
        ("resolv.conf", "nameserver 127.0.0.1\noptions timeout:2 attempts:1\n"),
    ] {
        fs::write(directory.join(name), text).unwrap();
    }
    let names = [
        "good",
        "rebind",
        "back",
        "loop",
        "private",
        "meta",
        "cgnat",
        "zero",
        "mixed",
        "own",
        "azure",
        "broad",
        "hosts",
        "mapped",
        "mappedmeta",
        "six",
        "compatible",
        "nat64",
        "meta6",
        "link",
        "sixtofour",
        "teredo",
        "nobody",
        "*.wild",
    ];
    let list: Vec<String> = names.iter().map(|name| format!("\"{name}.example\"")).collect();
    let policy = service.network(&format!("allow = [{}]\nallow-more = true", list.join(", ")));
    let world = ["unshare", "--mount", "--net", "--", "python3", "-c", WORLD, directory.to_str().unwrap()];
    let mut run = service.stage.run(service.who, &world);
    run.args(OPTIONS).args(["--allow", "added.example"]).arg("--policy").arg(policy).args(["--", "python3", "-c"]);
    let done = output(run.arg(format!("{CLIENT}\nopen('ca.pem', 'w').write('''{ca}''')\n{SCRIPT}")));
    let report = report(&done);
    let lines: Vec<&str> = done.out.lines().collect();
    assert_eq!(lines[..4], ["good fine", "a.wild fine", "b.a.wild fine", "rebind fine"], "{done:?}");
    assert_eq!(lines[4], "added fine", "{done:?}");
    let closed = &lines[5..26];
    assert!(closed.len() == 21 && closed.iter().all(|line| line.ends_with(" 403")), "{closed:?}: {done:?}");
    assert_eq!(lines[26..28], ["nobody 502", "wild 403"], "{done:?}");
    // Each request asks once, so that nothing can change between the look and the connection.
    assert_eq!(lines[28..], ["asked rebind.example", "reached 8.8.8.8 8.8.8.9 8.8.8.9 8.8.8.10 8.8.8.12"], "{done:?}");
    let why = |name: &str| counted(&report, "hosts", name)["why"].as_str().unwrap_or_default().to_owned();
    for (name, part) in [
        ("rebind.example:443", "its address 127.0.0.1 is loopback"),
        ("mixed.example:443", "its address 192.168.0.1 is private"),
        ("own.example:443", "its address 8.8.4.4 is this host's own"),
        ("hosts.example:443", "its address 127.0.0.2 is loopback"),
        ("mapped.example:443", "in disguise"),
        ("nobody.example:443", "its name has no address"),
    ] {
        assert!(why(name).contains(part), "{name}: {}", why(name));
    }
    let rebind = counted(&report, "hosts", "rebind.example:443");
    assert_eq!((number(rebind, "requests"), number(rebind, "refused")), (1, 1), "{rebind}");
}
