//! The files that a launcher puts into a cell.
#![forbid(unsafe_code)]

use std::path::Path;

use crate::broker::authority::Authority;
use crate::confine::ids::Ids;
use crate::confine::mounts::CellFile;
use crate::confine::{CREDENTIAL_FD, Places, expand};
use crate::job::Job;
use crate::plan::{Credential, Plan, Shim};
use crate::policy::NetworkMode;

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
    if let Some(settings) = &plan.settings {
        files.push(launchers(&places.settings.join("settings.json"), settings.settings.as_bytes()));
        if let Some(path) = plan.managed.as_ref().filter(|_| plan.root.is_some()) {
            files.push(launchers(path, settings.managed.as_bytes()));
        }
    }
    if !job.servers.text.is_empty() {
        files.push(launchers(&places.settings.join("mcp.json"), job.servers.text.as_bytes()));
    }
    let more = if terminal { &plan.home_terminal[..] } else { &[] };
    files.extend(own.into_iter().flat_map(|authority| authorities(plan, places, authority)));
    for (name, text) in plan.home.iter().chain(more) {
        let bytes = expand(text, places).into_bytes();
        files.push(CellFile { path: places.home.join(name), bytes, mode: 0o600, to_agent: true });
    }
    if plan.credential == Credential::File {
        // Empty: the child fills it from a pipe, so that no heap holds the credential.
        files.push(CellFile { path: places.credential(), bytes: Vec::new(), mode: 0o600, to_agent: true });
    }
    if let Some(shim) = &plan.shim {
        files.push(shim_script(shim, places, plan.credential == Credential::File));
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

/// A file that the agent reads and does not own.
fn launchers(path: &Path, bytes: &[u8]) -> CellFile {
    CellFile { path: path.to_owned(), bytes: bytes.to_vec(), mode: 0o444, to_agent: false }
}

/// A script under the agent's name that gives it the arguments of its level, and its credential anew each time.
fn shim_script(shim: &Shim, places: &Places, credential: bool) -> CellFile {
    let quote = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let path = |path: &Path| quote(&path.to_string_lossy());
    let mut script = String::from("#!/bin/sh\n");
    if credential {
        script += &format!("exec {CREDENTIAL_FD}<{}\n", path(&places.credential()));
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
