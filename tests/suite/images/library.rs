//! The program asks the C library for no name of a user, a group, a host or a service: a static one would load the
//! host's NSS modules for it, in whatever version the host has, and crash on another than its own.

use std::fs;
use std::process::Command;

use crate::launch::{Lab, Who};
use crate::need::{self, need_program};

const PROGRAM: &str = env!("CARGO_BIN_EXE_oubliette");
const BROKER: &str = env!("CARGO_BIN_EXE_oubliette-broker");

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn both_programs_are_static() {
    let Some(readelf) = need_program("readelf") else { return };
    // A position-independent one has a dynamic section, by which it moves itself, and no loader and no library.
    let broker = said(Command::new(&readelf).args(["--program-headers", "--dynamic", "--wide", BROKER]));
    assert!(broker.contains(" LOAD ") && !broker.contains(" INTERP ") && !broker.contains("(NEEDED)"), "{broker}");
    let segments = said(Command::new(readelf).args(["--program-headers", "--wide", PROGRAM]));
    assert!(segments.contains(" LOAD "), "{segments}");
    assert!(!segments.contains(" INTERP ") && !segments.contains(" DYNAMIC "), "{segments}");
}

#[test]
fn it_links_no_look_up_of_users() {
    // Host names are the broker's business, and nobody else's: see it_opens_nothing_of_the_c_library. A stripped program, as releases are, has no symbols.
    let Some(nm) = need_program("nm") else { return };
    let symbols = String::from_utf8(Command::new(nm).arg(PROGRAM).output().unwrap().stdout).unwrap();
    let names = symbols.lines().filter(|line| line.contains(" T ") || line.contains(" W "));
    let look_ups = ["getpwnam", "getpwuid", "getgrnam", "getgrgid", "getgrouplist"];
    let linked =
        names.filter(|line| look_ups.iter().any(|name| line.ends_with(name) || line.ends_with(&format!("{name}_r"))));
    assert_eq!(linked.collect::<Vec<_>>(), Vec::<&str>::new());
}

#[test]
fn it_opens_nothing_of_the_c_library() {
    let (Some(_), Some(busybox)) = (need_program("strace"), need_program("busybox")) else { return };
    if !need::as_root() {
        return;
    }
    let lab = Lab::new();
    let trap = lab.file("nsswitch.conf", "passwd: trap\ngroup: trap\nhosts: trap\nservices: trap\n", 0o644);
    // HOME is known from here alone.
    let passwd = format!("me:x:{}:{}::{}:/bin/sh\n", lab.uid, lab.uid, lab.path("mine").display());
    let passwd = lab.file("passwd", passwd, 0o644);
    let busybox = busybox.to_str().unwrap();
    lab.file("token", "sk-ant-trap", 0o600);
    let run = ["run", "-q", "--user", "alice", "--workspace", "user", "--", busybox, "true"];
    need::copy_program(busybox.as_ref(), &lab.path("claude"));
    let (token, claude) = (lab.path("token"), lab.path("claude"));
    let [token, claude] = [&token, &claude].map(|path| path.to_str().unwrap());
    let upstream = ["explain", "--upstream", "http://127.0.0.1:1", "--credential-file", token, "--", claude];
    for who in [Who::Root, Who::Plain] {
        for words in [&run[..], &upstream, &["explain", "--", busybox], &["doctor"], &["sweep"], &["ps"]] {
            let log = lab.path("log");
            let ended = lab
                .launch(who, words)
                .mounts(&format!("mount --bind {} /etc/nsswitch.conf", trap.display()))
                .mounts(&format!("mount --bind {} /etc/passwd", passwd.display()))
                .mounts("mkdir -p $L/lib && mount --bind $L/lib /var/lib && : >$L/log && chmod 666 $L/log")
                .setup("unset HOME")
                .through(&format!("strace -f -qq -e trace=open,openat,openat2,connect,execve -o {}", log.display()))
                .run();
            let fine = if words == ["doctor"] { [0, 1].contains(&ended.code()) } else { ended.code() == 0 };
            assert!(fine, "{who:?} {words:?}: {ended:?}");
            let calls = fs::read_to_string(&log).unwrap();
            assert!(calls.contains("execve(") && calls.contains("/proc/self"), "{calls}");
            let loaded = ["ld.so.cache", "libnss", "nscd", "gconv", "locale-archive", "gai.conf", "libc.so"];
            // Landlock's rules are made from descriptors that read nothing.
            let opened = calls.lines().filter(|line| !line.contains("O_PATH"));
            let found: Vec<&str> = opened.filter(|line| loaded.iter().any(|name| line.contains(name))).collect();
            assert_eq!(found, Vec::<&str>::new(), "{who:?} {words:?}");
        }
    }
}
