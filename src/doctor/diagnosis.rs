//! What a host offers each level.
#![forbid(unsafe_code)]

use serde::Serialize;

use crate::host::Host;
use crate::request::Request;
use crate::run::job::Job;
use crate::types::error::Result;
use crate::types::layer::{Decision, Layer, Planned};

/// What a host does for one level.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LevelReport {
    /// The level.
    pub level: String,
    /// Every layer.
    pub layers: Vec<Planned>,
}

/// What `doctor` says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Diagnosis {
    /// The facts.
    pub host: Host,
    /// What they come to.
    pub levels: Vec<LevelReport>,
}

impl Diagnosis {
    /// Looks at every level. `requests` are requests for a harmless command, one for each level.
    ///
    /// # Errors
    /// A policy that cannot be used.
    pub fn new(requests: Vec<Request>) -> Result<Diagnosis> {
        let mut levels = Vec::new();
        let mut facts = None;
        for request in requests {
            let mut job = Job::new(request)?;
            if let Some(known) = &facts {
                job.host = known_for(known, &job);
            } else {
                crate::run::rehearse(&mut job)?;
            }
            let layers = match job.plan() {
                Ok(plan) => plan.layers,
                Err(refusal) => refusal.layers,
            };
            levels.push(LevelReport { level: job.level.name.clone(), layers });
            facts = facts.or(Some(job.host));
        }
        Ok(Diagnosis { host: facts.unwrap_or_else(|| unreachable!("there are levels")), levels })
    }

    /// 0 every layer is met, 1 some degrade, 2 a level refuses.
    pub fn status(&self) -> u8 {
        let all = self.levels.iter().flat_map(|level| &level.layers).map(|planned| &planned.decision);
        all.map(|decision| match decision {
            Decision::Enforce { .. } | Decision::Off { .. } => 0,
            Decision::Degrade { .. } => 1,
            Decision::Refuse { .. } => 2,
        })
        .max()
        .unwrap_or(0)
    }

    /// A table for people: layer by level, then what is missing, why, and the remedy.
    pub fn text(&self) -> String {
        let mut out = format!("{:<16}", "layer");
        for level in &self.levels {
            out += &format!("{:<12}", level.level);
        }
        out.push('\n');
        for layer in Layer::ALL {
            out += &format!("{:<16}", layer.name());
            for level in &self.levels {
                out += &format!("{:<12}", word(decision(level, layer)));
            }
            out = out.trim_end().to_owned();
            out.push('\n');
        }
        out + &self.missing()
    }

    pub(crate) fn missing(&self) -> String {
        let mut out = String::new();
        for layer in Layer::ALL {
            let lacks = self.levels.iter().find_map(|level| match decision(level, layer) {
                Some(Decision::Degrade { why, remedy } | Decision::Refuse { why, remedy }) => Some((why, remedy)),
                _ => None,
            });
            if let Some((why, remedy)) = lacks {
                out += &format!("\n{layer}: {why}\n  remedy: {remedy}\n");
            }
        }
        out
    }
}

/// The second level asks for other files than the first, and perhaps for a broker, and the host is the same.
pub(crate) fn known_for(known: &Host, job: &Job) -> Host {
    Host {
        files: job.host.files.clone(),
        programs: job.host.programs.clone(),
        agent_programs: job.host.agent_programs.clone(),
        servers: job.host.servers.clone(),
        extra: job.host.extra.clone(),
        inherited: job.host.inherited.clone(),
        ranges: job.host.ranges.clone(),
        authorities: job.host.authorities.clone(),
        broker: job.host.broker.clone(),
        ..known.clone()
    }
}

pub(crate) fn decision(level: &LevelReport, layer: Layer) -> Option<&Decision> {
    level.layers.iter().find(|planned| planned.layer == layer).map(|planned| &planned.decision)
}

/// One word for a decision.
pub fn word(decision: Option<&Decision>) -> &'static str {
    match decision {
        Some(Decision::Enforce { .. }) => "enforce",
        Some(Decision::Degrade { .. }) => "degrade",
        Some(Decision::Refuse { .. }) => "refuse",
        Some(Decision::Off { .. }) => "off",
        None => "-",
    }
}
