//! The static program in roots that have next to nothing: an empty one, one like a distroless image, one like Alpine's.
//! Its agent is busybox, which is as static, and in the last one a program that musl's loader starts.

mod image; // makes a root and runs words in it
mod library; // nothing of the host's C library is loaded

use std::collections::BTreeMap;
use std::fs;

use image::{DEVICES, Image, PROC, TMP, compile};

use crate::environments::sandbox::{PLAIN, sections};
use crate::need;

/// What distroless images call nonroot.
const NONROOT: u32 = 65_532;

const SCRIPT: &[u8] = include_bytes!("images/checks.sh");

/// What `checks.sh` must say in each of them. `private`: the cell has a root of its own.
fn check(said: &BTreeMap<String, String>, uid: u32, private: bool) {
    let same = [
        ("version", format!("oubliette {}\nstatus 0\n", env!("CARGO_PKG_VERSION"))),
        ("help", "status 0\n1\n".into()),
        ("levels", "status 0\n3\n".into()),
        ("credential", "token-of-an-imagestatus 0\n".into()),
        ("attack", "status 1\nEvery attack came to what the plan says.\n".into()),
        ("sweep", "status 0\n".into()),
        ("left", "0\n".into()),
    ];
    for (section, expected) in same {
        assert_eq!(said[section], expected, "{section}");
    }
    let run: Vec<&str> = said["run"].lines().collect();
    let ["text", agent, home, "status 7"] = run[..] else { panic!("{run:?}") };
    assert_eq!(home, format!("700 {agent}"));
    assert_eq!(agent != uid.to_string(), uid == 0, "{run:?}");
    assert!(said["explain"].ends_with("status 0\n"), "{}", said["explain"]);
    assert_eq!(said["explain"].contains("  root            enforce"), private, "{}", said["explain"]);
    // Some layer is always missing: no image brings a control group.
    assert!(said["doctor"].starts_with("status 1\n") && !said["doctor"].ends_with("\n0\n"), "{}", said["doctor"]);
    assert!(said["kill"].starts_with("status 0\nlauncher "), "{}", said["kill"]);
    let ps: Vec<&str> = said["ps"].lines().collect();
    assert!(matches!(ps[..], [head, "status 0"] if head.starts_with("CELL ")), "{ps:?}");
    let missing = &said["missing"];
    assert!(missing.starts_with("oubliette: cannot find command `no-such-program`: "), "{missing}");
    assert!(missing.contains("\nhint: ") && missing.ends_with("\nstatus 127\n"), "{missing}");
}

/// One message that names these, one hint, status 125.
#[track_caller]
fn refused(image: &Image, uid: u32, mounts: &[&[&str]], words: &[&str], names: &[&str]) {
    let ended = image.words(uid, mounts, words);
    let lines: Vec<&str> = ended.stderr.lines().filter(|line| !line.starts_with("oubliette: not enforced")).collect();
    let shape =
        matches!(lines[..], [what, hint] if what.starts_with("oubliette: cannot ") && hint.starts_with("hint: "));
    assert!(shape && ended.code == Some(125) && ended.stdout.is_empty(), "{uid} {words:?}: {ended:?}");
    for name in names {
        assert!(ended.stderr.contains(name), "{uid} {words:?}: {name}: {ended:?}");
    }
}

#[test]
fn an_empty_root_has_one_message_for_what_it_lacks() {
    let (Some(bare), Some(image)) = (Image::empty(&["proc"]), Image::empty(&["proc", "tmp"])) else { return };
    let run: &[&[&str]] = &[&["run", "--", "/busybox", "true"], &["explain", "--", "/busybox"], &["doctor"]];
    let rest: &[&[&str]] = &[&["sweep"], &["ps"], &["kill", "x"]];
    for uid in [0, PLAIN] {
        for words in run.iter().chain(&[&["doctor", "--attack"][..], &["sweep"], &["kill", "x"]]) {
            refused(&image, uid, &[TMP, DEVICES], words, &["it shows no /proc", "mount -t proc"]);
        }
        for words in run {
            refused(&image, uid, &[PROC, TMP], words, &["it has no device /dev/null"]);
            refused(&bare, uid, &[PROC, DEVICES], words, &["neither /run nor /var/tmp nor /tmp", "--state-dir"]);
        }
        for words in rest {
            refused(&bare, uid, &[PROC], words, &["neither /run nor /var/tmp nor /tmp", "--state-dir"]);
        }
        for words in
            [&["--version"][..], &["--help"], &["run", "--help"], &["policy", "list"], &["policy", "show", "balanced"]]
        {
            let ended = bare.words(uid, &[], words);
            assert!(
                ended.code == Some(0) && ended.stderr.is_empty() && !ended.stdout.is_empty(),
                "{words:?}: {ended:?}"
            );
        }
    }
    // With a place of its own a plain user needs nothing else. Root's runs lease their UIDs in one place for all.
    let state = ["run", "-q", "--state-dir", "/state/it", "--", "/busybox", "echo", "ran"];
    bare.directory("state", 0o777);
    let ended = bare.words(PLAIN, &[PROC, DEVICES], &state);
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "ran\n", ""));
    assert_eq!(fs::read_dir(bare.path("state/it/cells")).unwrap().count(), 0);
    fs::remove_dir_all(bare.path("state/it")).unwrap();
    refused(
        &bare,
        0,
        &[PROC, DEVICES],
        &state,
        &["neither /run", "UIDs are leased in one place", "mount a tmpfs on /run"],
    );
}

#[test]
fn a_root_without_every_device_gives_none_of_its_own() {
    let Some(image) = Image::empty(&["proc", "tmp"]) else { return };
    for uid in [0, PLAIN] {
        let ended = image.words(uid, &[PROC, TMP, &DEVICES[..3]], &["run", "--", "/busybox", "echo", "ran"]);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "ran\n"), "{ended:?}");
        assert!(ended.stderr.contains("root (there is no device /dev/"), "{ended:?}");
    }
}

#[test]
fn an_empty_root() {
    let Some(image) = Image::empty(&["proc", "dev", "sys", "tmp"]) else { return };
    image.script(SCRIPT);
    for uid in [0, PLAIN] {
        let said = sections(&image.checks(uid, &[PROC, DEVICES, TMP]));
        check(&said, uid, true);
        let why =
            if uid == 0 { "cannot use state directory /var/lib/" } else { "neither XDG_STATE_HOME nor HOME is set" };
        workspace(&said, uid, why);
        // There HOME is /tmp.
        let Some(text) = image.checks_in_gvisor(uid) else { return };
        let said = sections(&text);
        check(&said, uid, false);
        workspace(&said, uid, if uid == 0 { why } else { "" });
    }
}

/// A workspace of the user's outlives the run where there is a place for it; the reason why not.
fn workspace(said: &BTreeMap<String, String>, uid: u32, why: &str) {
    let text = &said["workspace"];
    if why.is_empty() {
        assert_eq!(text, "status 0\nkept\nstatus 0\n", "{uid}");
        return;
    }
    assert_eq!(text.matches(why).count(), 2, "{uid}: {text}");
    assert_eq!((text.matches("\nhint: ").count(), text.matches("status 125").count()), (2, 2), "{uid}: {text}");
}

/// gcr.io/distroless/static, as far as it matters here: certificates, users, time zones, and no shell.
fn distroless() -> Option<Image> {
    let directories = ["proc", "dev", "sys", "tmp", "run", "home", "var/lib", "var/tmp", "etc", "usr/share/zoneinfo"];
    let mut image = Image::new("/usr/local/bin/oubliette", "/opt/service/busybox", &directories)?;
    image.file(
        "etc/passwd",
        "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n\
         nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n",
        0o644,
    );
    image.file("etc/group", "root:x:0:\nnobody:x:65534:\ntty:x:5:\nstaff:x:50:\nnonroot:x:65532:\n", 0o644);
    image.home("root", 0);
    image.home("home/nonroot", NONROOT);
    image.directory("var/tmp", 0o1777);
    for name in ["/etc/ssl/certs/ca-certificates.crt", "/usr/share/zoneinfo/Europe/Berlin"] {
        image.copy(name);
    }
    image.variables = vec![("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt".into())];
    Some(image)
}

#[test]
fn a_root_like_a_distroless_image() {
    let Some(image) = distroless() else { return };
    image.script(
        &[SCRIPT, b"step files\n$O run -q -- $B ls /usr/share/zoneinfo/Europe \"$SSL_CERT_FILE\" /etc/passwd\n"]
            .concat(),
    );
    for uid in [0, NONROOT] {
        let said = sections(&image.checks(uid, &[PROC, DEVICES, TMP]));
        check(&said, uid, true);
        workspace(&said, uid, "");
        let files = "/etc/passwd\n/etc/ssl/certs/ca-certificates.crt\n\n/usr/share/zoneinfo/Europe:\nBerlin\n";
        assert_eq!(said["files"], files);
        let Some(text) = image.checks_in_gvisor(uid) else { return };
        check(&sections(&text), uid, false);
    }
}

#[test]
fn a_distroless_image_without_an_account_for_the_caller() {
    let Some(image) = distroless() else { return };
    let run = ["run", "-q", "--user", "alice", "--workspace", "user", "--", "/opt/service/busybox", "echo", "ran"];
    let mounts = &[PROC, DEVICES, TMP];
    // Kubernetes' runAsUser may be any number; HOME is then / or nothing.
    refused(&image, PLAIN, mounts, &run, &["neither XDG_STATE_HOME nor HOME is set", "--state-dir"]);
    let fresh = image.words(PLAIN, mounts, &["run", "-q", "--", "/opt/service/busybox", "id"]);
    assert_eq!((fresh.code, fresh.stderr.as_str()), (Some(0), ""), "{fresh:?}");
    assert!(fresh.stdout.starts_with(&format!("uid={PLAIN}(agent) gid={PLAIN}(agent)")), "{fresh:?}");
    // Modules that do not exist, users that do not exist, and no list of them at all.
    image.file("etc/nsswitch.conf", "passwd: nosuch [NOTFOUND=return]\ngroup: nosuch\nhosts: nosuch\n", 0o644);
    for uid in [0, NONROOT] {
        let ended = image.words(uid, mounts, &run);
        assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "ran\n", ""));
    }
    fs::remove_file(image.path("etc/passwd")).unwrap();
    refused(&image, NONROOT, mounts, &run, &["neither XDG_STATE_HOME nor HOME is set", "--state-dir"]);
    let ended = image.words(0, mounts, &run);
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "ran\n", ""));
}

#[test]
fn the_dockerfile_is_this_image() {
    let text = fs::read_to_string(need::root().join("deploy/Dockerfile")).unwrap();
    let last: Vec<&str> = text.split("\nFROM ").last().unwrap().lines().collect();
    let line = |word: &str| last.iter().find_map(|line| line.strip_prefix(word)).unwrap_or_else(|| panic!("{word}"));
    assert!(last[0].contains("distroless/static"), "{last:?}");
    let words = |text: &str| -> Vec<String> { serde_json::from_str(text).unwrap() };
    let [entry, command] = ["ENTRYPOINT ", "CMD "].map(|name| words(line(name)));
    let copied = line("COPY ").split_whitespace().last().unwrap();
    assert_eq!(entry, [format!("{copied}oubliette")]);
    let uid: u32 = line("USER ").split(':').next().unwrap().parse().unwrap();
    let Some(image) = distroless() else { return };
    assert_eq!(entry, [image.program]);
    let ended = image.words(uid, &[PROC, DEVICES, TMP], &command.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(ended.code == Some(1) && ended.stdout.contains("\nroot            enforce "), "{ended:?}");
}

/// Alpine, as far as it matters here: musl, busybox for every command, its users.
fn alpine() -> Option<Image> {
    let directories =
        ["proc", "dev", "sys", "tmp", "run", "home", "var/lib", "var/tmp", "etc", "sbin", "usr/bin", "usr/lib"];
    let image = Image::new("/usr/local/bin/oubliette", "/bin/busybox", &directories)?;
    image.file(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nbin:x:1:1:bin:/bin:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n\
         app:x:1000:1000:Linux User,,,:/home/app:/bin/sh\n",
        0o644,
    );
    image.file("etc/group", "root:x:0:root\nbin:x:1:root,bin,daemon\nnobody:x:65534:\napp:x:1000:\n", 0o644);
    image.home("root", 0);
    image.home("home/app", 1000);
    image.directory("var/tmp", 0o1777);
    for applet in ["sh", "ls", "cat", "id"] {
        image.link(&format!("bin/{applet}"), "/bin/busybox");
    }
    // There the loader is the file, and libc a link to it; Debian has it the other way round.
    let musl = "/lib/ld-musl-x86_64.so.1";
    if !need::need("musl", fs::metadata(musl).is_ok()) {
        return None;
    }
    image.file(musl, fs::read(musl).unwrap(), 0o755);
    image.link("lib/libc.musl-x86_64.so.1", "ld-musl-x86_64.so.1");
    let library = image.path("usr/lib/libgreet.so");
    compile("musl-gcc", "greet.c", &["-shared", "-fPIC", "-Wl,-soname,libgreet.so"], &library)?;
    compile("musl-gcc", "agent.c", &[library.to_str().unwrap()], &image.path("usr/local/bin/agent"))?;
    image.file("usr/local/bin/script", "#!/bin/sh\nexec agent\n", 0o755);
    Some(image)
}

/// The dynamic agent, as a program, from a script, with little to execute, and without a root of its own.
const MUSL: &[u8] = b"
step agent
$O run -q -- agent; echo \"status $?\"
step script
$O run -q -- script; echo \"status $?\"
step paranoid
$O run -q --level paranoid -- agent; echo \"status $?\"
step bare
$O run -q --policy /etc/bare.toml -- agent; echo \"status $?\"
step shell
$O run -q -- sh -c 'ls -l /bin/sh; id -u'; echo \"status $?\"
step shown
$O explain -- agent
";

#[test]
fn a_root_like_alpine() {
    let Some(image) = alpine() else { return };
    image.script(&[SCRIPT, MUSL].concat());
    let bare = fs::read_to_string(need::root().join("policies/balanced.toml")).unwrap();
    let bare = bare + "\n[layers]\npid = \"off\"\nroot = \"off\"\n";
    image.file("etc/bare.toml", bare, 0o644);
    for uid in [0, 1000] {
        let said = sections(&image.checks(uid, &[PROC, DEVICES, TMP]));
        check(&said, uid, true);
        workspace(&said, uid, "");
        musl(&said);
        let Some(text) = image.checks_in_gvisor(uid) else { return };
        let said = sections(&text);
        check(&said, uid, false);
        musl(&said);
    }
}

fn musl(said: &BTreeMap<String, String>) {
    let greeting = "greetings, by /lib/ld-musl-x86_64.so.1 and /usr/lib/libgreet.so\nstatus 0\n";
    for section in ["agent", "script", "paranoid", "bare"] {
        assert_eq!(said[section], greeting, "{section}");
    }
    let shell: Vec<&str> = said["shell"].lines().collect();
    assert!(matches!(shell[..], [link, _, "status 0"] if link.ends_with("/bin/sh -> /bin/busybox")), "{shell:?}");
    assert!(said["shown"].contains("/usr/local/bin/agent"), "{}", said["shown"]);
}
