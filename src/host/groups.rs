//! Supplementary groups of the launcher. A plain user cannot give them up: setgroups(2) wants CAP_SETGID, and a user
//! namespace that he maps himself has it switched off (CVE-2014-8989).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;

use nix::unistd::{getegid, getgroups};
use serde::Serialize;

use crate::host::ranges;

/// A group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Its number.
    pub gid: u32,
    /// Its name in /etc/group, where that has one.
    pub name: Option<String>,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{} ({})", self.gid, name.escape_debug()),
            None => self.gid.fmt(f),
        }
    }
}

/// Those of this process beside its GID, in order. `named`: with their names.
pub fn supplementary(named: bool) -> Vec<Group> {
    let own = getegid();
    let all: BTreeSet<u32> =
        getgroups().unwrap_or_default().into_iter().filter(|gid| *gid != own).map(nix::unistd::Gid::as_raw).collect();
    let file = if named && !all.is_empty() { std::fs::read("/etc/group").unwrap_or_default() } else { Vec::new() };
    all.into_iter().map(|gid| Group { gid, name: name(&file, gid) }).collect()
}

/// The first one with this number.
fn name(file: &[u8], gid: u32) -> Option<String> {
    let (_, name, _) = ranges::groups(file).find(|(_, name, number)| *number == gid && !name.is_empty())?;
    Some(String::from_utf8_lossy(name).into_owned())
}

/// `998 (docker), 44 (video)`
pub fn list(groups: &[Group]) -> String {
    groups.iter().map(Group::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_first_line_with_the_number() {
        let file = b"root:x:0:\nbroken\n+\n:x:7:\ndocker:x:998:a,b\nother:x:998:\nlong:x:99999999999:\n";
        assert_eq!(name(file, 998).as_deref(), Some("docker"));
        assert_eq!(name(file, 0).as_deref(), Some("root"));
        assert_eq!(name(file, 7), None);
        assert_eq!(name(file, 44), None);
    }
}
