//! `doctor --attack`: what the plan says against what two cells on this very host do to each other.
#![forbid(unsafe_code)]

use std::ffi::OsString;

use serde::Serialize;

use super::encounter::{Stage, Stopped};
use super::judge::{Harm, Judged, Row, judge};
use crate::attack::{LISTED, Verdict};
use crate::cell::state::State;
use crate::doctor::diagnosis::{Diagnosis, LevelReport};
use crate::doctor::expect::{Around, Expected, Scene};
use crate::plan::{self, Apart, Plan, Refusal, egress};
use crate::request::{From, Request};
use crate::run::job::Job;
use crate::sys::signals::Signals;
use crate::types::error::{Error, Result};
use crate::types::exit::Exit;
use crate::types::hosts::HostRule;
use crate::types::network::NetworkMode;

pub use super::upstream::Upstream;

/// One level, attacked.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Encounter {
    /// The level.
    pub level: String,
    /// The network of both cells.
    pub network: NetworkMode,
    /// A run keeps such cells apart in time: the two were put side by side for this alone.
    pub in_time: bool,
    /// What came of it.
    #[serde(flatten)]
    pub judged: Judged,
}

/// What `doctor --attack` says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Siege {
    /// What `doctor` says.
    #[serde(flatten)]
    pub diagnosis: Diagnosis,
    /// One for each level that is not refused.
    pub encounters: Vec<Encounter>,
}

/// A level that is attacked: the request for its cells, and the options that make it.
pub struct Case {
    /// The request.
    pub request: Request,
    /// The same in words.
    pub options: Vec<OsString>,
}

/// Attacks every case. A signal ends it with nothing left and no result.
///
/// # Errors
/// A policy that cannot be used, a cell that did not start.
pub fn siege(upstream: &Upstream, cases: Vec<Case>) -> Result<std::result::Result<Siege, Exit>> {
    let program =
        std::env::current_exe().map_err(|error| Error::new("find this program", error).hint("mount /proc"))?;
    let signals = Signals::block().map_err(|errno| Error::new("take signals", errno))?;
    let (mut levels, mut encounters, mut host) = (Vec::new(), Vec::new(), None);
    for Case { request, mut options } in cases {
        let mut job = Job::new(request)?;
        list(&mut job, upstream, &mut options);
        crate::run::rehearse(&mut job)?;
        let level = job.level.name.clone();
        let refused = |refusal: Box<Refusal>| LevelReport { level: level.clone(), layers: refusal.layers };
        let mut plan = match job.plan().map_err(refused) {
            Ok(plan) => plan,
            Err(report) => {
                levels.push(report);
                host = Some(job.host);
                continue;
            }
        };
        levels.push(LevelReport { level: level.clone(), layers: plan.layers.clone() });
        let in_time = plan.apart == Apart::InTime;
        if in_time {
            // A run would not start the second cell; what lies between the two is asked all the same.
            job.request.beside = true;
            options.push("--beside".into());
            plan = job.plan().map_err(|refusal| refusal.error())?;
        }
        options.extend(insist(&plan));
        let state = State::open(job.request.state_dir.as_deref())?;
        let stage = Stage { program: &program, options: &options, state: &state, signals: &signals, upstream };
        let scene = Scene { victim: &plan, attacker: &plan, around: Around::probe(&job.host) };
        let met = match stage.meet(&scene) {
            Ok(met) => met,
            Err(Stopped::Signal(signal)) => return Ok(Err(Exit::Signal(signal as u8))),
            Err(Stopped::Failed(error)) => return Err(error),
        };
        let judged = judge(&scene, &met.told, met.damage);
        encounters.push(Encounter { level, network: plan.network, in_time, judged });
        host = Some(job.host);
    }
    let host = host.ok_or_else(|| Error::new("attack", "there is no level"))?;
    Ok(Ok(Siege { diagnosis: Diagnosis { host, levels }, encounters }))
}

/// Where the level lets a caller add hosts, the list has a name of this host: what a broker makes of that is attacked, too.
fn list(job: &mut Job, upstream: &Upstream, options: &mut Vec<OsString>) {
    let rule = format!("{LISTED}:{}", upstream.tcp_port());
    let Ok(parsed) = rule.parse::<HostRule>() else { return };
    let brokered = plan::broker::asked(&job.request, &job.level.value) == NetworkMode::Broker;
    if brokered && egress::addable(&job.level.value, &parsed).is_ok() {
        job.request.allow.push((parsed, From::Flag));
        options.extend(["--allow".into(), rule.into()]);
    }
}

/// A cell with less than the plan says is refused: expectations would be those of another one.
fn insist(plan: &Plan) -> Vec<OsString> {
    let enforced = plan.layers.iter().filter(|planned| planned.decision.enforced());
    enforced.flat_map(|planned| ["--require".into(), planned.layer.name().into()]).collect()
}

impl Siege {
    /// 2 where anything is not as its plan says, else what `doctor` says.
    pub fn status(&self) -> u8 {
        let kept = self.encounters.iter().all(|encounter| encounter.judged.kept);
        if kept { self.diagnosis.status() } else { 2 }
    }

    /// Tables for people.
    pub fn text(&self) -> String {
        let mut out: String = self.encounters.iter().map(Encounter::text).collect();
        for level in &self.diagnosis.levels {
            if !self.encounters.iter().any(|encounter| encounter.level == level.level) {
                out += &format!("level {}: refused here, so not attacked\n\n", level.level);
            }
        }
        let broken = self.encounters.iter().filter(|encounter| !encounter.judged.kept);
        let broken: Vec<&str> = broken.map(|encounter| encounter.level.as_str()).collect();
        out + &match broken.is_empty() {
            true => "Every attack came to what the plan says.\n".to_owned(),
            false => format!("NOT AS THE PLAN SAYS: {}\n", broken.join(", ")),
        }
    }
}

impl Encounter {
    fn text(&self) -> String {
        let Judged { attacks, damage, .. } = &self.judged;
        let mut out = format!("level {}, network {}\n", self.level, self.network.name());
        if self.in_time {
            out += "(a run starts no second cell here while one is alive; these two were put side by side)\n";
        }
        out += &format!("{:<20}{:<14}{:<24}{:<16}by, or why\n", "attack", "class", "case", "verdict");
        for row in attacks {
            let (verdict, why) = words(row);
            let (class, case) = (class(row), row.reference);
            out += format!("{:<20}{class:<14}{case:<24}{verdict:<16}{why}", row.attack).trim_end();
            out.push('\n');
        }
        out + &summary(attacks, damage.as_deref())
    }
}

fn class(row: &Row) -> String {
    serde_json::to_value(row.class).ok().and_then(|value| Some(value.as_str()?.to_owned())).unwrap_or_default()
}

/// The verdict and its reason.
fn words(row: &Row) -> (&'static str, String) {
    match (row.verdict, &row.expected) {
        (None, _) => ("NO REPORT", row.detail.clone()),
        (Some(Verdict::Open), Expected::Open { why }) => ("open", why.clone()),
        (Some(Verdict::Open), Expected::Blocked { by }) => {
            ("OPEN", format!("though the plan names {}: {}", by.join(", "), row.detail))
        }
        (Some(Verdict::Open), Expected::NotApplicable { why }) => ("OPEN", format!("though {why}: {}", row.detail)),
        (Some(Verdict::Blocked), Expected::Blocked { by }) => ("blocked", by.join(", ")),
        (Some(Verdict::Blocked), Expected::Open { .. }) => {
            ("blocked", format!("though the plan does not promise it ({})", row.detail))
        }
        (Some(Verdict::Blocked), Expected::NotApplicable { why }) => ("not applicable", why.clone()),
        (Some(Verdict::Absent), Expected::NotApplicable { why }) => ("not applicable", why.clone()),
        (Some(Verdict::Absent), Expected::Blocked { by }) => {
            ("not applicable", format!("{}; else {}", row.detail, by.join(", ")))
        }
        (Some(Verdict::Absent), Expected::Open { .. }) => ("not applicable", row.detail.clone()),
        (Some(Verdict::NotTried), Expected::Open { why }) => ("not tried", format!("{}; open: {why}", row.detail)),
        (Some(Verdict::NotTried), Expected::Blocked { by }) => {
            ("not tried", format!("{}; the plan names {}", row.detail, by.join(", ")))
        }
        (Some(Verdict::NotTried), Expected::NotApplicable { why }) => ("not applicable", why.clone()),
    }
}

fn summary(attacks: &[Row], damage: Option<&[Harm]>) -> String {
    // A right that was not tried counts as the plan says.
    let open = |row: &&Row| match row.verdict {
        Some(Verdict::NotTried) => matches!(row.expected, Expected::Open { .. }),
        verdict => verdict == Some(Verdict::Open),
    };
    let count = |verdict| attacks.iter().filter(|row| row.verdict == Some(verdict)).count();
    let broken = attacks.iter().filter(|row| row.broken).count();
    let mut out = format!(
        "{} attacks: {} blocked, {} open, {} not applicable, {} not tried; {broken} not as the plan says\n",
        attacks.len(),
        count(Verdict::Blocked),
        attacks.iter().filter(open).count(),
        count(Verdict::Absent),
        count(Verdict::NotTried),
    );
    match damage {
        None => out += "the victim did not live to tell what was done to it\n",
        Some(all) => {
            for harm in all {
                let mark = if harm.explained { "as the open attacks say" } else { "NO OPEN ATTACK EXPLAINS IT" };
                out += &format!("the victim's {}: {} ({mark})\n", harm.damage.object, harm.damage.what);
            }
        }
    }
    out + "\n"
}
