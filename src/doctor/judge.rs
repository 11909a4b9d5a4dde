//! Holds what an attacker and its victim say against what the plan promised. Pure.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::attack::{ATTACKS, Class, Damage, Verdict};
use crate::doctor::expect::{Expected, Scene};

/// What an attacker says of one attack.
#[derive(Debug, Clone, Deserialize)]
pub struct Told {
    /// Its name.
    pub attack: String,
    /// What came of it.
    pub verdict: Verdict,
    /// The proof, or the errno.
    pub detail: String,
}

/// One attack: the promise and what came of it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Row {
    /// Its name.
    pub attack: &'static str,
    /// What it is about.
    pub class: Class,
    /// In a line.
    pub about: &'static str,
    /// A CVE or the like.
    pub reference: &'static str,
    /// What the plan says.
    #[serde(flatten)]
    pub expected: Expected,
    /// What came of it; nothing where the attacker did not say.
    pub verdict: Option<Verdict>,
    /// The proof, or the errno.
    pub detail: String,
    /// It is open and the plan did not say so, or there is no verdict.
    pub broken: bool,
}

/// Something that was done to the victim.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Harm {
    /// To what, and what.
    #[serde(flatten)]
    pub damage: Damage,
    /// An attack that is open explains it.
    pub explained: bool,
}

/// What two cells came to.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Judged {
    /// Every attack.
    pub attacks: Vec<Row>,
    /// What was done to the victim; nothing where it did not live to tell.
    pub damage: Option<Vec<Harm>>,
    /// Everything is as the plan says.
    pub kept: bool,
}

/// Compares. `damage` is nothing where the victim did not report.
pub fn judge(scene: &Scene<'_>, told: &[Told], damage: Option<Vec<Damage>>) -> Judged {
    let rows: Vec<Row> = ATTACKS
        .iter()
        .map(|attack| {
            let said = told.iter().find(|told| told.attack == attack.name);
            let verdict = said.map(|told| told.verdict).map(|verdict| match verdict {
                // Something was left open, so that nothing is there is the launcher's doing.
                Verdict::Absent if attack.name.starts_with("leaked-") => Verdict::Blocked,
                other => other,
            });
            let expected = scene.expect(attack.name);
            Row {
                attack: attack.name,
                class: attack.class,
                about: attack.about,
                reference: attack.reference,
                broken: breaks(&expected, verdict),
                expected,
                verdict,
                detail: said.map_or_else(|| "the attacker did not report it".into(), |told| told.detail.clone()),
            }
        })
        .collect();
    let open = |name: &str| rows.iter().any(|row| row.attack == name && row.verdict == Some(Verdict::Open));
    let explained = |damage: &Damage| causes(&damage.object).iter().any(|name| open(name));
    let damage: Option<Vec<Harm>> =
        damage.map(|all| all.into_iter().map(|damage| Harm { explained: explained(&damage), damage }).collect());
    // A victim that was killed is explained by the attack that says so.
    let explained = damage.as_ref().map_or_else(|| open("kill-victim"), |all| all.iter().all(|harm| harm.explained));
    let kept = explained && rows.iter().all(|row| !row.broken);
    Judged { attacks: rows, damage, kept }
}

fn breaks(expected: &Expected, verdict: Option<Verdict>) -> bool {
    match verdict {
        None => true,
        Some(Verdict::Open) => !matches!(expected, Expected::Open { .. }),
        Some(Verdict::Blocked | Verdict::Absent | Verdict::NotTried) => false,
    }
}

/// The attacks that leave such a trace on an object of the victim's.
fn causes(object: &str) -> &'static [&'static str] {
    match object {
        "tcp" => &["tcp-connect", "tcp-mapped", "mptcp-connect", "fastopen-connect"],
        "udp" => &["udp-send"],
        "abstract_socket" => &["abstract-socket"],
        "tmp_socket" => &["tmp-socket"],
        "signal" => &["kill-usr1", "pidfd-signal", "kill-all", "signal-by-owner"],
        "process" => &["ptrace-seize"],
        "sem" => &["sysv-sem"],
        "msg" => &["sysv-msg"],
        "memory" => &["process-vm-writev"],
        "nice" => &["setpriority", "setpriority-user"],
        "policy" => &["sched-setscheduler"],
        "io priority" => &["ioprio-set", "ioprio-set-user", "setpriority", "setpriority-user", "sched-setscheduler"],
        "affinity" => &["sched-setaffinity"],
        "lock limit" => &["prlimit"],
        name if name.starts_with("path socket") => &["path-socket"],
        name if name.ends_with(" directory") => &["plant-file", "rename-dir", "unlink-file"],
        name if name.ends_with(" victim.txt") => {
            &["append-file", "truncate-file", "chmod-file", "touch-file", "unlink-file"]
        }
        _ => &[],
    }
}
