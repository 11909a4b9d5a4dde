//! Isolation in time: where nothing is between cells of one UID, one lives at a time, and the next one finds nothing of
//! the last.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::unistd::Pid;
use oubliette::types::layer::Layer;

use crate::place::{PATIENCE, Place, Started, Who, children, lives, marked, marker, text, within};

/// The lock belongs to a UID, and all tests have the same ones.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every layer off but the one that is tried.
fn permission_only(place: &Place, alone: &str) -> PathBuf {
    let off = Layer::ALL.into_iter().filter(|layer| *layer != Layer::Alone);
    let off: String = off.map(|layer| format!("{layer} = \"off\"\n")).collect();
    place.policy(&format!("{off}alone = \"{alone}\""))
}

fn run(place: &Place, policy: &std::path::Path, options: &[&str], script: &str) -> Command {
    place.run(&[&["--policy", policy.to_str().unwrap()], options].concat(), script)
}

const HOLD: &str = "echo ready; read line; exit 7";

/// Deaf, double-forked, without an environment of the cell's and out of its directories, under a name that is no UTF-8.
const UNTIED: &str = "
(setsid env -i sh -c 'printf \"\\377\" >/proc/self/comm; cd /; trap \"\" HUP INT QUIT TERM; (sleep 999 & echo child); while :; do sleep 999; done' \"$MARK\" &) &
wait
sleep 999
";

#[test]
fn twenty_callers_never_overlap() {
    let _one = one_at_a_time();
    for who in Who::all() {
        let place = Place::new(who);
        let policy = permission_only(&place, "preferred");
        let shared = place.directory("shared");
        let cells = place.path("state/cells");
        let script = format!(
            "mkdir {0}/one || exit 9; ls {1}; for n in 1 2 3 4 5 6 7 8 9; do ls {1} >/dev/null; done; rmdir {0}/one",
            shared.display(),
            cells.display()
        );
        let start = |number: usize| {
            let user = format!("user-{number}");
            Started::new(&mut run(&place, &policy, &["--wait", "10m", "--user", &user], &script))
        };
        let callers: Vec<Started> = (0..20).map(start).collect();
        let mut seen = Vec::new();
        for caller in callers {
            let ended = caller.end();
            assert_eq!(ended.status.code(), Some(0), "{who:?}: {}", ended.err);
            assert_eq!(ended.out.lines().count(), 1, "{who:?}: a cell beside it: {}", ended.out);
            seen.push(ended.out);
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 20, "each in a cell of its own");
        place.assert_nothing_left(&[]);
    }
}

#[test]
fn a_second_is_refused_with_a_hint_or_waits() {
    let _one = one_at_a_time();
    for who in Who::all() {
        let place = Place::new(who);
        let policy = permission_only(&place, "required");
        let mut first = Started::new(&mut run(&place, &policy, &[], HOLD));
        first.line("ready");
        for options in [&[][..], &["--wait", "300ms"]] {
            let second = run(&place, &policy, options, "echo started").output().unwrap();
            assert_eq!(second.status.code(), Some(125), "{}", text(&second));
            assert!(text(&second).contains("--wait 30s") && second.stdout.is_empty(), "{}", text(&second));
        }
        assert_eq!(place.cells().len(), 1);
        let mut third = Started::new(run(&place, &policy, &[], "echo started").env("OUBLIETTE_WAIT", "10m"));
        let mut fourth = Started::new(&mut run(&place, &policy, &["--wait", "10m"], "echo started"));
        for waits in [&mut third, &mut fourth] {
            let waiting = crate::place::read_line(waits.child.stderr.as_mut().unwrap());
            assert!(waiting.contains("waiting for another cell"), "{waiting}");
        }
        // Told to end while it waits, it does.
        fourth.signal(Signal::SIGTERM);
        let ended = fourth.end();
        assert_eq!((ended.status.code(), ended.out.as_str()), (Some(125), ""), "{}", ended.err);
        assert_eq!(first.end().status.code(), Some(7), "{who:?}");
        third.line("started");
        assert_eq!(third.end().status.code(), Some(0), "{who:?}");
        place.assert_nothing_left(&[]);
    }
}

/// A cell with a process that nothing ties to it, and its launcher in a process group of its own.
fn hostile(place: &Place, policy: &std::path::Path, marker: &str) -> Started {
    let mark = format!("MARK={marker}");
    let mut holder = Started::new(run(place, policy, &["--setenv", &mark], UNTIED).process_group(0));
    holder.line("child");
    holder
}

#[test]
fn the_next_one_starts_when_the_holder_is_killed_and_finds_nothing() {
    let _one = one_at_a_time();
    for who in Who::all() {
        let place = Place::new(who);
        let policy = permission_only(&place, "preferred");
        let marker = marker();
        let mut holder = hostile(&place, &policy, &marker);
        let mut next = Started::new(&mut run(&place, &policy, &["--wait", "10m"], HOLD));
        killpg(holder.pid(), Signal::SIGKILL).unwrap();
        holder.kill();
        next.line("ready");
        assert_eq!(marked(&marker), [], "{who:?}: the keeper frees the lock when all are dead");
        assert_eq!(place.cells().len(), 1, "{who:?}: and when the cell is wiped");
        assert_eq!(next.end().status.code(), Some(7));
        place.assert_nothing_left(&[]);
    }
}

/// The agent may do this itself: it has the UID of both.
#[test]
fn the_next_one_ends_what_outlived_launcher_and_keeper() {
    let _one = one_at_a_time();
    for who in Who::all() {
        let place = Place::new(who);
        let policy = permission_only(&place, "preferred");
        let marker = marker();
        let mut holder = hostile(&place, &policy, &marker);
        let keeper = children(holder.pid())[0];
        holder.signal(Signal::SIGSTOP);
        assert!(holder.stopped());
        kill(keeper, Signal::SIGKILL).unwrap();
        holder.kill();
        let mut next = Started::new(&mut run(&place, &policy, &["--wait", "1m"], HOLD));
        next.line("ready");
        assert_eq!(marked(&marker), [], "{who:?}");
        assert_eq!(place.cells().len(), 1, "{who:?}");
        assert_eq!(next.end().status.code(), Some(7));
        place.assert_nothing_left(&[]);
    }
}

/// `sweep` does the same where no next one comes, and leaves a live one alone.
#[test]
fn sweep_ends_what_outlived_launcher_and_keeper() {
    let _one = one_at_a_time();
    let place = Place::new(Who::Plain);
    let policy = permission_only(&place, "preferred");
    let mut live = Started::new(&mut run(&place, &policy, &[], HOLD));
    live.line("ready");
    assert_eq!(place.sweep()["live"], 1);
    assert_eq!(live.end().status.code(), Some(7));
    let marker = marker();
    let mut holder = hostile(&place, &policy, &marker);
    let keeper = children(holder.pid())[0];
    holder.signal(Signal::SIGSTOP);
    assert!(holder.stopped());
    kill(keeper, Signal::SIGKILL).unwrap();
    holder.kill();
    place.sweep();
    within(PATIENCE, "what nothing tied to the cell is dead", || marked(&marker).is_empty());
    place.assert_nothing_left(&[]);
}

/// Whoever takes the name of the lock delays runs, and that is all.
#[test]
fn a_taken_name_refuses() {
    let _one = one_at_a_time();
    let place = Place::new(Who::Plain);
    let policy = permission_only(&place, "preferred");
    let name = UnixAddr::new_abstract(format!("oubliette-alone-{}", Who::Plain.uid()).as_bytes()).unwrap();
    let taken = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(std::os::fd::AsRawFd::as_raw_fd(&taken), &name).unwrap();
    let refused = run(&place, &policy, &[], "echo started").output().unwrap();
    assert_eq!(refused.status.code(), Some(125), "{}", text(&refused));
    assert!(text(&refused).contains("no launcher") && refused.stdout.is_empty(), "{}", text(&refused));
    listen(&taken, Backlog::new(1).unwrap()).unwrap();
    let refused = run(&place, &policy, &["--wait", "100ms"], "echo started").output().unwrap();
    assert_eq!(refused.status.code(), Some(125), "{}", text(&refused));
    drop(taken);
    let ran = run(&place, &policy, &[], "echo started").output().unwrap();
    assert_eq!(ran.status.code(), Some(0), "{}", text(&ran));
}

#[test]
fn explain_says_in_space_in_time_or_neither() {
    let place = Place::new(Who::Plain);
    let says = |policy: PathBuf, options: &[&str]| {
        let output =
            place.command("explain").args(options).arg("--policy").arg(policy).args(["--", "sh"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let time = says(permission_only(&place, "preferred"), &[]);
    assert!(time.contains("alone           enforce  in time") && time.contains("a second is refused"), "{time}");
    let waits = says(permission_only(&place, "preferred"), &["--wait", "30s"]);
    assert!(waits.contains("a second waits 30s") && waits.contains("wait            30s (flag)"), "{waits}");
    let neither = says(permission_only(&place, "off"), &[]);
    assert!(neither.contains("alone           off") && neither.contains("neither in space nor in time"), "{neither}");
    let policy = place.policy("alone = \"preferred\"");
    if crate::need::need("landlock-fs or pid", place.enforces(&policy, &["landlock-fs"])) {
        let space = says(policy, &[]);
        assert!(space.contains("alone           enforce  in space") && space.contains("any number at once"), "{space}");
    }
}

/// Cells that are apart in space live side by side under one UID.
#[test]
fn cells_that_are_apart_in_space_do_not_wait() {
    let place = Place::new(Who::Plain);
    let policy = place.policy("alone = \"required\"");
    if !crate::need::need("landlock-fs or pid", place.enforces(&policy, &["landlock-fs"])) {
        return;
    }
    let mut first = Started::new(&mut run(&place, &policy, &[], HOLD));
    first.line("ready");
    let second = run(&place, &policy, &[], "echo started").output().unwrap();
    assert_eq!(second.status.code(), Some(0), "{}", text(&second));
    assert_eq!(first.end().status.code(), Some(7));
}

/// Below the mark is marked, too: an agent that lowers its limit further gains nothing.
#[test]
fn no_lower_limit_hides_a_process() {
    let _one = one_at_a_time();
    if crate::need::need_program("prlimit").is_none() {
        return;
    }
    let place = Place::new(Who::Plain);
    let policy = permission_only(&place, "preferred");
    let mark = marker();
    let script = "(setsid prlimit --locks=5 --rss=5 env -i sh -c 'cd /; echo child; while :; do sleep 999; done' \"$MARK\" &); sleep 999";
    let mark_option = format!("MARK={mark}");
    let mut holder = Started::new(&mut run(&place, &policy, &["--setenv", &mark_option], script));
    holder.line("child");
    let family: Vec<Pid> = crate::place::below(holder.pid());
    holder.signal(Signal::SIGSTOP);
    assert!(holder.stopped());
    kill(children(holder.pid())[0], Signal::SIGKILL).unwrap();
    holder.kill();
    let mut next = Started::new(&mut run(&place, &policy, &["--wait", "1m"], HOLD));
    next.line("ready");
    assert!(marked(&mark).is_empty() && !family.iter().any(|pid| lives(*pid)));
    assert_eq!(next.end().status.code(), Some(7));
}
