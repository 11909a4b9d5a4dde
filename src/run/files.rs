//! The files that a launcher puts into a cell.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use crate::broker::authority::Authority;
use crate::confine::session::CREDENTIAL_FD;
use crate::plan::{Credential, Plan, Shim};
use crate::policy::agents::rendered::{FilePlace, SERVERS, SettingsFile, quoted};
use crate::run::job::Job;
use crate::sys::ids::Ids;
use crate::types::layout::{CellFile, Places, expand, expand_as};
use crate::types::network::NetworkMode;

/// All of them, in the places of this cell.
pub fn of_cell(
    plan: &Plan,
    job: &Job,
    places: &Places,
    agent: Ids,
    terminal: bool,
    own: Option<&Authority>,
) -> Vec<CellFile> {
    let mut files = Vec::new();
    files.extend(of_settings(plan, job, places));
    let more = if terminal { &plan.home_terminal[..] } else { &[] };
    files.extend(own.into_iter().flat_map(|authority| authorities(plan, places, authority)));
    for (name, text) in plan.home.iter().chain(more) {
        let bytes = expand(text, places).into_bytes();
        files.push(CellFile { path: places.home.join(name), bytes, mode: 0o600, to_agent: true });
    }
    let credential = places.credential(plan.credential.file());
    // Empty: the child fills it from a pipe, so that no heap holds the credential.
    files.extend(credential.iter().cloned().map(|path| CellFile {
        path,
        bytes: Vec::new(),
        mode: 0o600,
        to_agent: true,
    }));
    if let Some(shim) = &plan.shim {
        files.push(shim_script(shim, places, credential.filter(|_| plan.credential == Credential::File)));
    }
    if plan.root.is_some() {
        files.extend(synthetic(plan.network, agent));
    }
    files
}

/// What the cell's clients trust where its broker ends the TLS of some hosts: the run's own authority, and those that
/// vouch for all other hosts.
fn authorities(plan: &Plan, places: &Places, own: &Authority) -> [CellFile; 2] {
    let others = plan.broker.as_ref().and_then(|broker| broker.authorities.as_ref());
    // Read before, when it was looked for; a client without it trusts fewer.
    let mut all = others.and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
    all.push(b'\n');
    all.extend_from_slice(own.pem().as_bytes());
    [
        launchers(&places.settings.join("authorities.pem"), &all),
        launchers(&places.settings.join("authority.pem"), own.pem().as_bytes()),
    ]
}

/// Settings, with what is only known now: the places of the cell, and the caller's servers.
fn of_settings(plan: &Plan, job: &Job, places: &Places) -> Vec<CellFile> {
    let (Some(rendered), Some(settings)) = (&plan.settings, &job.agent.value.settings) else { return Vec::new() };
    let file = |SettingsFile { place, text }: &SettingsFile| {
        let path = match place {
            FilePlace::Settings(name) => places.settings.join(name),
            FilePlace::Home(name) => places.home.join(name.as_str()),
            FilePlace::Managed(path) if plan.root.is_some() => path.as_path().to_owned(),
            FilePlace::Managed(_) => return None,
        };
        let text = expand_as(text, places, quoted);
        // The servers last: what the caller wrote is nobody's template.
        Some(launchers(&path, text.replace(SERVERS, &settings.servers(&job.servers)).as_bytes()))
    };
    rendered.files.iter().filter_map(file).collect()
}

/// A file that the agent reads and does not own.
fn launchers(path: &Path, bytes: &[u8]) -> CellFile {
    CellFile { path: path.to_owned(), bytes: bytes.to_vec(), mode: 0o444, to_agent: false }
}

/// A script under the agent's name that gives it the arguments of its level, and its credential anew each time.
fn shim_script(shim: &Shim, places: &Places, credential: Option<PathBuf>) -> CellFile {
    let quote = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let path = |path: &Path| quote(&path.to_string_lossy());
    let mut script = String::from("#!/bin/sh\n");
    if !shim.hidden.is_empty() {
        let names: Vec<String> = shim.hidden.iter().map(|name| quote(name.as_str())).collect();
        script += &guard(&path(&places.work), &names.join(" "), &quote(&shim.name));
    }
    if let Some(credential) = credential {
        script += &format!("exec {CREDENTIAL_FD}<{}\n", path(&credential));
    }
    script += &format!("exec {}", path(&shim.program));
    for argument in &shim.arguments {
        script += &format!(" {}", quote(&expand(&argument.show(), places)));
    }
    script += " \"$@\"\n";
    let mut file = launchers(&places.settings.join("bin").join(&shim.name), script.as_bytes());
    file.mode = 0o555;
    file
}

/// Not where the agent would find settings that nothing hides: those of another directory than the top of the workspace,
/// or ones that a run before this one has made. What is hidden lies on a read-only mount.
fn guard(work: &str, names: &str, agent: &str) -> String {
    let refuse = |what: &str, hint: &str| {
        format!("echo \"oubliette: cannot start \"{agent}\": {what}\" >&2; echo \"hint: {hint}\" >&2; exit 125")
    };
    let elsewhere = refuse("it would read settings of $(pwd -P)", "start it at the top of the workspace");
    let made = refuse("it would read $name, which was made in this cell", "remove it");
    format!(
        "[ \"$(pwd -P)\" = \"$(cd {work} && pwd -P)\" ] || {{ {elsewhere}; }}\n\
         for name in {names}; do\n  if [ -L \"$name\" ] || [ -w \"$name\" ]; then {made}; fi\ndone\n"
    )
}

/// /etc of a cell: nothing of the host's users, names or addresses.
fn synthetic(network: NetworkMode, agent: Ids) -> Vec<CellFile> {
    let Ids { uid, gid } = agent;
    let passwd = format!("root:x:0:0:root:/root:/usr/sbin/nologin\nagent:x:{uid}:{gid}:agent:/home/agent:/bin/sh\n");
    let group = format!("root:x:0:\nagent:x:{gid}:\n");
    let hosts = "127.0.0.1\tlocalhost cell\n::1\tlocalhost cell\n";
    // In a network of its own there is nobody to ask.
    let resolver = match network {
        NetworkMode::Host => std::fs::read("/etc/resolv.conf").unwrap_or_default(),
        NetworkMode::None | NetworkMode::Broker => Vec::new(),
    };
    let names = "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n";
    vec![
        launchers(Path::new("/etc/passwd"), passwd.as_bytes()),
        launchers(Path::new("/etc/group"), group.as_bytes()),
        launchers(Path::new("/etc/hosts"), hosts.as_bytes()),
        launchers(Path::new("/etc/hostname"), b"cell\n"),
        launchers(Path::new("/etc/nsswitch.conf"), names.as_bytes()),
        launchers(Path::new("/etc/resolv.conf"), &resolver),
    ]
}
