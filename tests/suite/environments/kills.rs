//! `kill -9` of launcher, init and keeper, at each stage and at random moments, in every environment: after a sweep
//! nothing is left, and a neighbour has noticed nothing.
//!
//! The moments are drawn from a seed, which is printed; `OUBLIETTE_TEST_SEED` draws the same ones again.

use std::time::Instant;

use oubliette::run::progress::Stage;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::sandbox::{Kind, PLAIN, Sandbox, Scratch, sections};
use crate::need;

const SEED: &str = "OUBLIETTE_TEST_SEED";

/// Each of them lives side by side with others, also where a run of a shipped level would not.
const BESIDE: &str = "description = \"for a test\"\ndeny = []\ncommands = \"any\"\n[layers]\nalone = \"off\"\n";

const VICTIMS: [&str; 3] = ["launcher", "below", "both"];

/// Every stage with every victim, and random moments up to the end of a run, in random order. More than are needed: a
/// run that has ended before its moment does not count.
fn kills(random: &mut StdRng, count: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for stage in Stage::ALL {
        let agent = match stage {
            Stage::Ended | Stage::Killed | Stage::Wiped => "exits",
            _ => "holds",
        };
        lines.extend(VICTIMS.map(|victim| format!("{victim} {} {agent}", stage.name())));
    }
    while lines.len() < count * 2 {
        let victim = VICTIMS.choose(random).unwrap();
        let agent = ["holds", "exits"].choose(random).unwrap();
        lines.push(format!("{victim} {} {agent}", random.random_range(0..1100)));
    }
    // Every stage is among those that count.
    lines[..count].shuffle(random);
    for at in [count / 4, count / 2] {
        lines.insert(at, "sweep".into());
    }
    lines.join("\n") + "\n"
}

/// Runs the script in an environment and judges what it says.
fn killed(name: &str, kind: Kind, uid: u32, count: usize) {
    let sandbox = Sandbox { kind, uid, host_network: false };
    if !need::as_root() || !sandbox.there() {
        return;
    }
    let seed = std::env::var(SEED).ok().map_or_else(rand::random, |text| text.parse().expect("a seed is a number"));
    let scratch = Scratch::new();
    scratch.file("kills.bash", include_bytes!("kills.bash"));
    scratch.file("kills", kills(&mut StdRng::seed_from_u64(seed), count).as_bytes());
    scratch.file("beside.toml", BESIDE.as_bytes());
    // Not from the seed: two that run at once must not take each other's for their own.
    for name in ["mark", "bob"] {
        scratch.file(name, format!("{name}-{:032x}", rand::random::<u128>()).as_bytes());
    }
    let first = 1_900_000_000 + rand::random_range(0..10_000_u32) * 4096;
    let range = format!("{first}-{}", first + 4095);
    let wanted = count.to_string();
    let mut variables = vec![("S", "/tmp/scratch"), ("KILLS", wanted.as_str())];
    if kind == Kind::Linux && uid == 0 {
        // It shares the host's processes with other tests: no UID of theirs.
        variables.push(("OUBLIETTE_UID_RANGE", &range));
    }
    let started = Instant::now();
    let said = sections(&sandbox.run(&scratch, &variables, &["bash", "/mnt/kills.bash"]));
    let numbers: Vec<usize> = said["kills"].split_whitespace().map(|word| word.parse().unwrap()).collect();
    let [launcher, below, both, late, whole] = numbers[..] else { panic!("{said:?}") };
    let line = format!(
        "kill -9 in {name}, seed {seed}: {} in all, of {launcher} launchers, {below} inits or keepers, {both} both; \
         {late} too late; {} cells left before the sweep; a run {whole} µs, all {} s",
        launcher + below + both,
        said["dead"].trim(),
        started.elapsed().as_secs()
    );
    need::tell(&line);
    assert_eq!(launcher + below + both, count, "{line}: {said:?}");
    assert!(launcher.min(below).min(both) > 0, "{line}: {said:?}");
    // In gVisor a plain user's cells have a keeper and no namespace: what it outlives it wipes, mostly all.
    assert!(said["dead"] != "0\n" || (kind, uid) == (Kind::Gvisor, PLAIN), "{line}: {said:?}");
    // Of a launcher whose init or keeper was killed: the agent was done, it was not, it had not begun.
    assert!(said["statuses"].lines().all(|status| ["0", "137", "125"].contains(&status)), "{line}: {said:?}");
    assert_eq!(said["sweep"], "status 0\n", "{line}");
    assert_eq!(said["left"], "processes 0\n", "{line}");
    assert_eq!(said["neighbour"], "status 7\nmine\nleft \n", "{line}");
}

#[test]
fn killed_on_linux_as_root() {
    killed("A", Kind::Linux, 0, 200);
}

#[test]
fn killed_on_linux_as_a_plain_user() {
    killed("B", Kind::Linux, PLAIN, 200);
}

#[test]
fn killed_without_user_namespaces() {
    killed("C", Kind::NoUserNamespaces, PLAIN, 200);
}

#[test]
fn killed_in_a_container_as_root() {
    killed("D", Kind::Container, 0, 200);
}

#[test]
fn killed_in_a_container_as_a_plain_user() {
    killed("Du", Kind::Container, PLAIN, 200);
}

#[test]
fn killed_in_gvisor_as_root() {
    killed("E", Kind::Gvisor, 0, 200);
}

#[test]
fn killed_in_gvisor_as_a_plain_user() {
    killed("Eu", Kind::Gvisor, PLAIN, 200);
}

#[test]
fn killed_without_landlock() {
    killed("F", Kind::NoLandlock, PLAIN, 200);
}
