//! The files that a launcher puts into a cell.
#![forbid(unsafe_code)]

use std::path::Path;

use crate::confine::{Places, expand};
use crate::confine::ids::Ids;
use crate::confine::mounts::CellFile;
use crate::job::Job;
use crate::plan::{Credential, Plan};
use crate::policy::NetworkMode;
use crate::policy::agent::Way;
use crate::secret::Secret;

/// All of them, in the places of this cell.
pub fn of_cell(plan: &Plan, job: &Job, places: &Places, agent: Ids, credential: Option<(&Way, &Secret)>, terminal: bool) -> Vec<CellFile> {
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
    for (name, text) in plan.home.iter().chain(more) {
        let bytes = expand(text, places).into_bytes();
        files.push(CellFile { path: places.home.join(name), bytes, mode: 0o600, to_agent: true });
    }
    if let (Credential::File, Some((way, secret))) = (plan.credential, credential) {
        files.extend(credential_file(way, secret, places));
    }
    if plan.root.is_some() {
        files.extend(synthetic(plan.network, agent));
    }
    files
}

/// A file that the agent reads and does not own.
fn launchers(path: &Path, bytes: &[u8]) -> CellFile {
    CellFile { path: path.to_owned(), bytes: bytes.to_vec(), mode: 0o444, to_agent: false }
}

/// 0600 in HOME: under gVisor every other place can be read by every UID.
fn credential_file(way: &Way, secret: &Secret, places: &Places) -> Option<CellFile> {
    let file = way.file.as_ref()?;
    let mut bytes = file.before.clone().into_bytes();
    bytes.extend(secret.expose());
    bytes.extend(file.after.as_bytes());
    Some(CellFile { path: places.home.join(&file.path), bytes, mode: 0o600, to_agent: true })
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
        NetworkMode::None => Vec::new(),
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
