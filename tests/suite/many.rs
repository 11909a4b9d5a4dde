//! 32 cells at once for a minute, each replaced as it ends: nothing fails, and nothing is left without any sweep.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::need;
use crate::place::{Place, Who, marked, marker, text, within};

/// Cells at once.
const CELLS: usize = 32;

/// How long.
const LASTS: Duration = Duration::from_secs(60);

/// What one run may take on a busy machine.
const LONGEST: &str = "90s";

/// How an agent ends, and the status of its run. Each leaves files, closed directories and processes behind.
const ENDS: [(&str, i32); 3] = [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)];

const AGENT: &str = "
for dir in . \"$HOME\" \"$TMPDIR\"; do mkdir -p \"$dir/deep/er\"; echo x >\"$dir/deep/er/left-$MARK\"; chmod 0 \"$dir/deep\"; done
setsid sh -c 'trap \"\" HUP INT QUIT TERM USR1; exec sleep 999' &
sleep $1
";

/// What the workers have seen.
#[derive(Default)]
struct Seen {
    runs: usize,
    failures: Vec<String>,
    cells: BTreeSet<OsString>,
    /// How many cells were there, again and again.
    alive: Vec<usize>,
}

/// Everything below a directory.
fn tree(dir: &Path) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(tree(&entry.path()));
        }
        all.insert(entry.path());
    }
    all
}

/// Locks of flock(2) and fcntl(2) on any of these files (proc_locks(5): the inode is after the last colon).
fn locks(files: &BTreeSet<PathBuf>) -> Vec<String> {
    let inodes: Vec<u64> = files.iter().filter_map(|file| Some(fs::symlink_metadata(file).ok()?.ino())).collect();
    let inode = |line: &str| {
        line.split_whitespace().find(|word| word.matches(':').count() == 2)?.rsplit(':').next()?.parse().ok()
    };
    let text = fs::read_to_string("/proc/locks").unwrap();
    text.lines()
        .filter(|line| inode(line).is_some_and(|inode: u64| inodes.contains(&inode)))
        .map(str::to_owned)
        .collect()
}

/// One run after the other, until time is up.
fn work(place: &Place, policy: &Path, marker: &str, over: &AtomicBool, seen: &Mutex<Seen>) {
    let mark = format!("MARK={marker}");
    while !over.load(Ordering::Relaxed) {
        let (end, status) = ENDS[rand::random_range(0..ENDS.len())];
        let options = ["--setenv", &mark, "--timeout", LONGEST, "--policy", policy.to_str().unwrap()];
        let mut command = place.run(&options, &format!("{AGENT}{end}"));
        // Long enough for most of them to be alive at any time, and not only on their way.
        let life = format!("{:.3}", rand::random_range(1.0..4.0));
        let output = command.arg(life).stdin(Stdio::null()).output().unwrap();
        let mut seen = seen.lock().unwrap();
        seen.runs += 1;
        if output.status.code() != Some(status) {
            seen.failures.push(format!("{status} expected: {}", text(&output)));
        }
    }
}

fn at_once(who: Who) {
    let place = Place::new(who);
    // Half of them with all that there is, the other half without a PID namespace: with a keeper.
    let policies = [place.policy(""), place.policy("pid = \"off\"")];
    let marker = marker();
    // The state directory as one run leaves it.
    let first = place.run(&["--policy", policies[0].to_str().unwrap()], "exit 0").output().unwrap();
    assert_eq!(first.status.code(), Some(0), "{}", text(&first));
    let before = tree(&place.path("state"));
    let (over, seen, started) = (AtomicBool::new(false), Mutex::new(Seen::default()), Instant::now());
    std::thread::scope(|scope| {
        for number in 0..CELLS {
            let (place, policies, marker, over, seen) = (&place, &policies, &marker, &over, &seen);
            scope.spawn(move || work(place, &policies[number % 2], marker, over, seen));
        }
        while started.elapsed() < LASTS {
            let cells = place.cells();
            let mut seen = seen.lock().unwrap();
            seen.alive.push(cells.len());
            seen.cells.extend(cells);
            drop(seen);
            std::thread::sleep(Duration::from_millis(100));
        }
        over.store(true, Ordering::Relaxed);
    });
    let took = started.elapsed().as_secs_f64();
    let mut seen = seen.into_inner().unwrap();
    seen.alive.sort_unstable();
    let (alive, most) = (seen.alive[seen.alive.len() / 2], *seen.alive.last().unwrap());
    let line = format!(
        "{who:?}, {CELLS} at once for {took:.0} s: {} runs, {:.1} launches per second, {alive} cells alive (median; at \
         most {most}), {} failed",
        seen.runs,
        seen.runs as f64 / took,
        seen.failures.len()
    );
    need::tell(&line);
    assert!(seen.failures.is_empty(), "{line}\n{}", seen.failures.join("\n"));
    assert!(seen.runs > 2 * CELLS && most > CELLS / 2 && seen.cells.len() > CELLS, "{line}");
    nothing_left(&place, &before, &marker, seen.cells);
}

/// Without any sweep.
fn nothing_left(place: &Place, before: &BTreeSet<PathBuf>, marker: &str, cells: BTreeSet<OsString>) {
    // A process that was killed counts until it is waited for, by a parent that is not the launcher.
    within(Duration::from_secs(5), "no process is left", || marked(marker).is_empty());
    let state = tree(&place.path("state"));
    assert_eq!(&state, before);
    assert_eq!(locks(&state), Vec::<String>::new());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(place.dir.path().to_str().unwrap()), "{mounts}");
    for dir in ["/tmp", "/var/tmp", "/dev/shm"] {
        let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let left: Vec<OsString> = names.filter(|name| name.to_string_lossy().contains(marker)).collect();
        assert_eq!(left, Vec::<OsString>::new(), "{dir}");
    }
    place.assert_nothing_left(&cells.into_iter().collect::<Vec<_>>());
    let swept = place.sweep();
    assert_eq!((&swept["removed"], &swept["live"]), (&json!([]), &json!(0)));
}

#[test]
fn many_cells_as_root() {
    if need::as_root() {
        at_once(Who::Root);
    }
}

#[test]
fn many_cells_as_a_plain_user() {
    at_once(Who::Plain);
}
