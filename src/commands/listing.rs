//! `policy list`: the levels, and what each agent can be told and was tested with.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use serde::Serialize;

use crate::fs::trusted::Found;
use crate::policy::agents::spec::AgentSpec;
use crate::policy::agents::way::{Hand, Way};
use crate::policy::library::Library;
use crate::types::class::Class;
use crate::types::error::Result;
use crate::types::paths::HomePath;

/// Levels and agents.
#[derive(Debug, Serialize)]
pub struct Listing {
    levels: Vec<LevelLine>,
    agents: Vec<AgentLines>,
}

#[derive(Debug, Serialize)]
struct LevelLine {
    name: String,
    description: String,
    origin: String,
}

#[derive(Debug, Serialize)]
struct AgentLines {
    name: String,
    title: String,
    commands: Vec<String>,
    /// The version that the tests drive.
    tested: Option<String>,
    /// Classes that its settings can deny; nothing where it has none.
    settings: Option<Vec<Class>>,
    credential: Vec<Handed>,
    /// The file of its own login, for `--login-file`.
    login: Option<String>,
    /// What it asks, one of them in a run, unless the caller names another upstream.
    upstreams: Vec<String>,
    /// Other APIs, for `--endpoint`.
    endpoints: Vec<String>,
    /// What of its HOME is kept by `--resume`.
    resume: Vec<HomePath>,
    origin: String,
}

/// One way to hand a credential over.
#[derive(Debug, Serialize)]
struct Handed {
    way: &'static str,
    name: String,
    /// As the agent sends it; a broker needs that.
    header: Option<String>,
}

impl Listing {
    /// Of all that there is.
    ///
    /// # Errors
    /// A file of the operator's that is wrong.
    pub fn new(library: &Library) -> Result<Listing> {
        let level = |name: &String| {
            let Found { name, origin, value, .. } = library.level(name)?;
            Ok(LevelLine { name, description: value.description, origin })
        };
        let agent = |name: &String| library.agent(name).map(AgentLines::new);
        Ok(Listing {
            levels: library.levels().iter().map(level).collect::<Result<_>>()?,
            agents: library.agents().iter().map(agent).collect::<Result<_>>()?,
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for LevelLine { name, description, origin } in &self.levels {
            let _ = writeln!(text, "level {name:<12} {description} ({origin})");
        }
        self.agents.iter().for_each(|agent| text += &agent.text());
        text
    }
}

impl AgentLines {
    fn new(found: Found<AgentSpec>) -> AgentLines {
        let Found { name, origin, value, .. } = found;
        let told = |settings: &crate::policy::agents::spec::Settings| {
            Class::ALL.into_iter().filter(|class| settings.maps(*class)).collect::<Vec<_>>()
        };
        let of_login = value.login.as_ref().and_then(|login| login.upstream.as_ref());
        let upstreams = [value.environment.upstream.as_ref(), of_login];
        AgentLines {
            name,
            title: value.title,
            commands: value.commands,
            tested: value.tested,
            settings: value.settings.as_ref().map(told),
            credential: value.credential.way.iter().map(Handed::new).collect(),
            upstreams: upstreams.into_iter().flatten().map(|upstream| upstream.url.clone()).collect(),
            login: value.login.map(|login| login.file),
            endpoints: value.endpoint.into_keys().collect(),
            resume: value.resume,
            origin,
        }
    }

    fn text(&self) -> String {
        let AgentLines {
            name,
            title,
            commands,
            tested,
            settings,
            credential,
            login,
            upstreams,
            endpoints,
            resume,
            origin,
        } = self;
        let holds = if settings.is_some() { "settings and kernel" } else { "kernel only" };
        let mut text = format!("agent {name:<12} {title}: {holds} ({origin})\n");
        let mut line = |key: &str, value: &str| {
            let _ = writeln!(text, "  {key:<16} {value}");
        };
        if !commands.is_empty() {
            line("commands", &commands.join(", "));
            line("tested with", tested.as_deref().unwrap_or("nothing: as its makers document it"));
        }
        if let Some(told) = settings {
            let names =
                |classes: &mut dyn Iterator<Item = Class>| classes.map(Class::name).collect::<Vec<_>>().join(", ");
            let left = names(&mut Class::ALL.into_iter().filter(|class| !told.contains(class)));
            let but = if left.is_empty() { left } else { format!(" but {left}") };
            line("settings deny", &format!("every class{but}"));
        }
        for Handed { way, name, header } in credential {
            let header = header.as_deref().map(|header| format!(", sent as {header}")).unwrap_or_default();
            line("credential", &format!("{way} {name}{header}"));
        }
        login.iter().for_each(|file| line("login", &format!("the token of {file}, by --login-file")));
        if !upstreams.is_empty() {
            line("asks", &format!("{}, or what --upstream names, and no other host", upstreams.join(" or ")));
        }
        if !endpoints.is_empty() {
            line("endpoints", &endpoints.join(", "));
        }
        if !resume.is_empty() {
            let paths: Vec<String> = resume.iter().map(|path| format!("~/{}", path.as_str())).collect();
            line("resumes from", &format!("{}, by --resume", paths.join(", ")));
        }
        text
    }
}

impl Handed {
    fn new(way: &Way) -> Handed {
        let (kind, name) = match &way.hand {
            Hand::Descriptor(name) => ("descriptor in", name.clone()),
            Hand::File(file) => ("file", format!("~/{}", file.path.as_str())),
            Hand::Variable(name) => ("variable", name.clone()),
        };
        Handed { way: kind, name, header: way.shown() }
    }
}
