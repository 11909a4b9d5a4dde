//! The broker is a program of its own, and not a fork: another file, at other addresses in each run, with nothing of what
//! the launcher has read but what it is told.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use super::upstream::Upstream;
use super::{Service, broker, everybody, report, said, somebody};
use crate::need;
use crate::secret::in_memory;
use crate::stage::{Running, output};

/// Asks once, and then waits.
const ASKS: &str = "say(ask()[0].status); sys.stdin.readline()";

/// What the ELF header of a file says of it: ET_EXEC is 2, ET_DYN 3 (elf(5)).
fn elf_type(path: &Path) -> u8 {
    let bytes = fs::read(path).unwrap();
    assert_eq!(&bytes[..4], b"\x7fELF");
    bytes[16]
}

/// Where a process has its code.
fn text(pid: i32) -> String {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let code = maps.lines().find(|line| line.contains(" r-xp ") && line.contains("oubliette"));
    code.unwrap_or_else(|| panic!("code: {maps}")).split('-').next().unwrap().to_owned()
}

/// A run whose broker has answered once.
fn asked(service: &Service, upstream: &Upstream, marker: &str) -> (Running, i32) {
    let script = format!("{ASKS}  # {marker}");
    let mut running = Running::start(super::client(&mut service.run(upstream.address), &script).stdin(Stdio::piped()));
    assert_eq!(running.line().trim(), "200");
    let pid = broker(&running);
    (running, pid)
}

#[test]
fn it_is_another_program_at_other_addresses_and_knows_nothing_of_the_launchers() {
    if !need::as_root() {
        return;
    }
    for who in everybody() {
        let Some(service) = Service::anywhere(who) else { return };
        let upstream = Upstream::fine();
        let mut places = Vec::new();
        for _ in 0..2 {
            let marker = crate::place::marker();
            let (running, pid) = asked(&service, &upstream, &marker);
            let file =
                |pid: i32| fs::metadata(format!("/proc/{pid}/exe")).map(|meta| (meta.dev(), meta.ino())).unwrap();
            assert_ne!(file(pid), file(running.pid()), "{who:?}");
            assert!(in_memory(running.pid(), marker.as_bytes()) > 0, "the launcher knows it");
            assert_eq!(in_memory(pid, marker.as_bytes()), 0, "{who:?}: the broker has no memory of the launcher's");
            assert_eq!(fs::read(format!("/proc/{pid}/cmdline")).unwrap(), b"oubliette-broker\0");
            assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
            assert!(in_memory(pid, service.token.as_bytes()) > 0, "it holds the credential");
            // 0, 1, 2, the listener and the channel; what the runtime has made, and the client's and the upstream's connection.
            let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().map(|entry| entry.path());
            let open: Vec<_> = open.filter_map(|path| fs::read_link(path).ok()).collect();
            assert!(open.iter().all(|path| !path.to_string_lossy().contains("oubliette")), "{open:?}");
            assert!(open.iter().all(|path| !path.to_string_lossy().starts_with("pipe:")), "{open:?}");
            places.push(text(pid));
            report(&running.end());
        }
        assert_eq!(elf_type(&service.stage.program.with_file_name("oubliette-broker")), 3, "position-independent");
        assert_ne!(places[0], places[1], "{who:?}: its code is where it was in the last run");
    }
}

/// `setarch -R` is inherited by all that a caller starts.
#[test]
fn a_caller_without_random_addresses_does_not_take_them_from_the_broker() {
    if need::need_program("setarch").is_none() {
        return;
    }
    let Some(service) = Service::anywhere(somebody()) else { return };
    let upstream = Upstream::fine();
    let places = [0, 1].map(|_| {
        let command = service.run(upstream.address);
        let mut wrapped = Command::new("setarch");
        wrapped.stdout(Stdio::piped()).stderr(Stdio::piped()).env_clear();
        wrapped.arg("-R").arg(command.get_program()).args(command.get_args());
        command.get_envs().for_each(|(name, value)| {
            wrapped.env(name, value.unwrap_or_default());
        });
        let mut running = Running::start(super::client(&mut wrapped, ASKS).stdin(Stdio::piped()));
        assert_eq!(running.line().trim(), "200");
        let place = text(broker(&running));
        report(&running.end());
        place
    });
    assert_ne!(places[0], places[1]);
}

/// Without it no agent is started, and the message says which file it is and where it belongs.
#[test]
fn a_run_without_the_brokers_program_is_refused() {
    for who in everybody() {
        let Some(service) = Service::anywhere(who) else { return };
        let upstream = Upstream::fine();
        let program = service.stage.program.with_file_name("oubliette-broker");
        let aside = program.with_file_name("aside");
        let refused = |why: &str| {
            let done = service.play(upstream.address, "say('ran')");
            assert_eq!((done.status.code(), done.out.as_str()), (Some(125), ""), "{done:?}");
            assert!(done.err.contains(program.to_str().unwrap()) && done.err.contains(why), "{why}: {done:?}");
            assert!(done.err.contains("hint: "), "{done:?}");
            assert!(service.stage.cells(who).is_empty());
        };
        fs::rename(&program, &aside).unwrap();
        refused("is missing");
        // A run that needs none is none the worse.
        let mut alone = service.stage.run(who, &[]);
        alone.args(["--quiet", "--level", "developer", "--network", "host", "--", "true"]);
        assert_eq!(output(&mut alone).status.code(), Some(0));
        symlink(&aside, &program).unwrap();
        refused("is a symbolic link");
        fs::remove_file(&program).unwrap();
        fs::rename(&aside, &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o575)).unwrap();
        refused("can be changed by others");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o444)).unwrap();
        refused("is not an executable file");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o555)).unwrap();
        if need::as_root() {
            std::os::unix::fs::chown(&program, Some(54_321), None).unwrap();
            refused("belongs to uid 54321");
        }
    }
}

/// One that is of no use, or of another build, gets no secret: the run ends.
#[test]
fn another_program_in_its_place_gets_no_secret() {
    let Some(service) = Service::anywhere(somebody()) else { return };
    let upstream = Upstream::fine();
    let program = service.stage.program.with_file_name("oubliette-broker");
    let ended = |why: &str| {
        let done = service.play(upstream.address, "say(ask()[0].status)");
        assert_eq!(done.status.code(), Some(125), "{done:?}");
        let said = said(&done);
        let told = said["outcome"]["broker-ended"].as_str().unwrap_or_else(|| panic!("{done:?}"));
        assert!(told.contains(why), "{told}");
        assert_eq!(said["left"], serde_json::json!([]));
    };
    let put = |bytes: &[u8]| {
        let [made, new] = ["made", "new"].map(|name| program.with_file_name(name));
        fs::write(&made, bytes).unwrap();
        need::copy_program(&made, &new);
        fs::set_permissions(&new, fs::Permissions::from_mode(0o555)).unwrap();
        fs::rename(&new, &program).unwrap();
    };
    let own = fs::read(&program).unwrap();
    put(b"no program at all");
    ended("cannot execute it");
    let mut other = own.clone();
    let word = concat!("r", env!("CARGO_PKG_VERSION"), " ").as_bytes();
    let build: Vec<usize> = memchr::memmem::find_iter(&own, word).collect();
    assert!(!build.is_empty(), "its first word");
    build.iter().for_each(|at| other[at + word.len()] ^= 1);
    put(&other);
    ended("of another build");
    need::copy_program(Path::new("/bin/true"), &program.with_file_name("true"));
    fs::rename(program.with_file_name("true"), &program).unwrap();
    ended("ended");
}

/// By hand it has nothing to do.
#[test]
fn executed_by_somebody_else_it_says_who_executes_it() {
    let done = Command::new(env!("CARGO_BIN_EXE_oubliette-broker")).output().unwrap();
    assert_eq!(done.status.code(), Some(125), "{done:?}");
    assert!(String::from_utf8_lossy(&done.stderr).contains("oubliette run"), "{done:?}");
}
