//! Whose UIDs are whose: what /etc/subuid and /etc/subgid give to `oubliette` for its runs, and what belongs to
//! somebody else. A run's GID has the number of its UID, so that groups count like accounts. Accounts that are in no
//! file of /etc (LDAP, sssd) are not known here.
#![forbid(unsafe_code)]

use std::path::Path;

use serde::Serialize;

use crate::fs::trusted::{absent, read_trusted_bytes};
use crate::host::facts::{Fact, Lack};
use crate::types::values::UidRange;

/// Under whose name the two files give a range to runs, as useradd(8) does for accounts: subuid(5). No such account need
/// be there; where it is, its number will do.
pub const OWNER: &str = "oubliette";

/// The longest of these files that is read, in bytes: some hundred thousand accounts.
const MAX: u64 = 16 << 20;

const SUBUID: &str = "/etc/subuid";
const SUBGID: &str = "/etc/subgid";

/// What the files say of UIDs that runs may get.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Ranges {
    /// What they give to `oubliette`.
    pub given: Option<UidRange>,
    /// What is somebody else's, as far as it was asked for.
    pub others: Vec<Other>,
}

/// Numbers that are somebody else's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Other {
    /// Which.
    pub range: UidRange,
    /// Whose, and where that is written.
    pub whose: String,
}

/// The content of the four files; empty where one is not there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Texts<'a> {
    /// /etc/subuid.
    pub subuid: &'a [u8],
    /// /etc/subgid.
    pub subgid: &'a [u8],
    /// /etc/passwd.
    pub passwd: &'a [u8],
    /// /etc/group.
    pub group: &'a [u8],
}

impl Ranges {
    /// Reads the files of this host. Of what is somebody else's only what overlaps one of these ranges, or what is given
    /// to `oubliette`, is kept.
    pub fn read(lent: &[UidRange]) -> Fact<Ranges> {
        let trusted = |path: &str| -> Result<Vec<u8>, Lack> {
            if absent(Path::new(path)) {
                return Ok(Vec::new());
            }
            read_trusted_bytes(Path::new(path), MAX).map_err(|error| Lack::new(error.to_string(), error.remedy()))
        };
        // These two give nothing: they can only take numbers away, so that whoever owns them in a container may.
        let plain = |path: &str| match std::fs::read(path) {
            Err(error) if !absent(Path::new(path)) => {
                Err(Lack::new(format!("cannot read {path}: {error}"), "make it readable for root"))
            }
            read => Ok(read.unwrap_or_default()),
        };
        let read = || {
            let [subuid, subgid] = [trusted(SUBUID)?, trusted(SUBGID)?];
            let [passwd, group] = [plain("/etc/passwd")?, plain("/etc/group")?];
            Ranges::parse(Texts { subuid: &subuid, subgid: &subgid, passwd: &passwd, group: &group }, lent)
        };
        match read() {
            Ok(ranges) => Fact::Has(ranges),
            Err(lack) => Fact::Lacks(lack),
        }
    }

    /// The same from the files' content.
    ///
    /// # Errors
    /// What is given to `oubliette` is no range, is more than one, or is not the same in both files: a guess would put
    /// agents under numbers that the operator did not mean.
    pub fn parse(texts: Texts<'_>, lent: &[UidRange]) -> Result<Ranges, Lack> {
        let number = accounts(texts.passwd).find(|account| account.name == OWNER.as_bytes()).map(|account| account.uid);
        let given = given(texts, number)?;
        let wanted = |other: &Other| lent.iter().chain(&given).any(|range| overlap(*range, other.range));
        let people = accounts(texts.passwd).flat_map(|Account { line, name, uid, gid }| {
            let whose = move |what| format!("the {what} of account {} (/etc/passwd line {line})", printed(name));
            [Other { range: one(uid), whose: whose("UID") }, Other { range: one(gid), whose: whose("GID") }]
        });
        let groups = groups(texts.group).map(|(line, name, gid)| Other {
            range: one(gid),
            whose: format!("the GID of group {} (/etc/group line {line})", printed(name)),
        });
        let subids = [(SUBUID, texts.subuid), (SUBGID, texts.subgid)].into_iter().flat_map(|(file, text)| {
            let foreign = lines(text).filter(move |(_, text)| !ours(text, number));
            foreign.filter_map(move |(line, text)| {
                let (owner, range) = grant(text)?;
                Some(Other { range, whose: format!("given to {} ({file} line {line})", printed(owner)) })
            })
        });
        let others = subids.chain(people).chain(groups).filter(wanted).collect();
        Ok(Ranges { given, others })
    }

    /// What of a range is somebody else's.
    pub fn taken(&self, range: UidRange) -> Option<&Other> {
        self.others.iter().find(|other| overlap(range, other.range))
    }
}

/// What both files give to `oubliette`.
fn given(texts: Texts<'_>, number: Option<u32>) -> Result<Option<UidRange>, Lack> {
    let remedy = format!("write one line such as {OWNER}:1800000000:65536, the same in {SUBUID} and {SUBGID}");
    let lack = |why: String| Err(Lack::new(why, remedy.clone()));
    let mut found = [None; 2];
    for (found, (file, text)) in found.iter_mut().zip([(SUBUID, texts.subuid), (SUBGID, texts.subgid)]) {
        for (line, text) in lines(text).filter(|(_, text)| ours(text, number)) {
            let Some((_, UidRange { first, last })) = grant(text) else {
                return lack(format!("{file} line {line} is that of {OWNER} and is not {OWNER}:FIRST:COUNT"));
            };
            let Ok(range) = UidRange::new(first, last) else {
                let why = "runs get no UID below 1000, 65534 (nobody) or beyond 4294967294";
                return lack(format!("{file} line {line} gives {first}-{last} to {OWNER}, and {why}"));
            };
            if found.replace(range).is_some() {
                return lack(format!("{file} line {line} is a second one of {OWNER}, and runs get one range"));
            }
        }
    }
    let show = |range: Option<UidRange>| range.map_or("nothing".to_owned(), |range| range.to_string());
    match found {
        [uids, gids] if uids == gids => Ok(uids),
        [uids, gids] => lack(format!(
            "{SUBUID} gives {} to {OWNER} and {SUBGID} {}, and a run has one number for both",
            show(uids),
            show(gids)
        )),
    }
}

struct Account<'a> {
    line: usize,
    name: &'a [u8],
    uid: u32,
    gid: u32,
}

/// The accounts of passwd(5); lines of another form are passed over, as by getpwent(3).
fn accounts(passwd: &[u8]) -> impl Iterator<Item = Account<'_>> {
    lines(passwd).filter_map(|(line, text)| {
        let mut fields = text.split(|byte| *byte == b':');
        let name = fields.next()?;
        let (uid, gid) = (decimal(fields.nth(1)?)?, decimal(fields.next()?)?);
        Some(Account { line, name, uid, gid })
    })
}

/// Line, name and GID of the groups of group(5); lines of another form are passed over.
pub fn groups(file: &[u8]) -> impl Iterator<Item = (usize, &[u8], u32)> {
    lines(file).filter_map(|(line, text)| {
        let mut fields = text.split(|byte| *byte == b':');
        Some((line, fields.next()?, decimal(fields.nth(1)?)?))
    })
}

/// With their numbers, from 1.
fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    text.split(|byte| *byte == b'\n').enumerate().map(|(index, line)| (index + 1, line))
}

/// Whether a line of subuid(5) is that of `oubliette`, sound or not.
fn ours(line: &[u8], number: Option<u32>) -> bool {
    let owner = line.split(|byte| *byte == b':').next().unwrap_or_default();
    owner == OWNER.as_bytes() || number.is_some_and(|number| decimal(owner) == Some(number))
}

/// `OWNER:FIRST:COUNT`; nothing for what shadow's own tools pass over: another number of fields, an empty one, no number.
fn grant(line: &[u8]) -> Option<(&[u8], UidRange)> {
    let mut fields = line.split(|byte| *byte == b':');
    let (owner, first, count) = (fields.next()?, decimal(fields.next()?)?, fields.next()?);
    if owner.is_empty() || fields.next().is_some() {
        return None;
    }
    // A count beyond the last number gives what there is.
    let digits = !count.is_empty() && count.iter().all(u8::is_ascii_digit);
    let more = decimal(count).or(digits.then_some(u32::MAX))?.checked_sub(1)?;
    Some((owner, UidRange { first, last: first.saturating_add(more) }))
}

fn decimal(text: &[u8]) -> Option<u32> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

fn one(number: u32) -> UidRange {
    UidRange { first: number, last: number }
}

fn overlap(a: UidRange, b: UidRange) -> bool {
    a.first <= b.last && b.first <= a.last
}

fn printed(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}

/// UIDs for runs where nothing else is said: above what systemd gives to containers and useradd(8) to accounts for
/// theirs, below what systemd leaves to nobody (its UIDS-GIDS), so that no account of the host has one.
pub const UIDS: UidRange = UidRange { first: 1_900_000_000, last: 1_900_065_535 };

/// The same in a user namespace of 65,536 UIDs: between systemd's accounts for humans and for services.
pub const FEW_UIDS: UidRange = UidRange { first: 60_578, last: 61_183 };

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u32, last: u32) -> UidRange {
        UidRange { first, last }
    }

    fn parse(subuid: &str, subgid: &str, passwd: &str) -> Result<Ranges, String> {
        let everything = range(0, u32::MAX);
        let texts =
            Texts { subuid: subuid.as_bytes(), subgid: subgid.as_bytes(), passwd: passwd.as_bytes(), group: b"" };
        Ranges::parse(texts, &[everything]).map_err(|lack| lack.why)
    }

    #[test]
    fn one_line_in_both_files_gives_a_range() {
        let given = |subuid: &str, passwd: &str| parse(subuid, subuid, passwd).unwrap().given;
        assert_eq!(given("", ""), None);
        assert_eq!(given("alice:100000:65536\n", ""), None);
        assert_eq!(given("alice:100000:65536\noubliette:200000:1000", ""), Some(range(200_000, 200_999)));
        // By number, where there is an account.
        let account = "oubliette:x:998:998::/:/bin/false\n";
        assert_eq!(given("998:200000:1000\n", account), Some(range(200_000, 200_999)));
        assert_eq!(given("998:200000:1000\n", ""), None);
        // Near misses are somebody else's.
        for other in ["oubliette2", "#oubliette", " oubliette", "Oubliette"] {
            let found = parse(&format!("{other}:200000:1000\n"), "", "").unwrap();
            assert_eq!((found.given, found.others.len()), (None, 1), "{other}");
        }
    }

    #[test]
    fn a_line_of_oubliette_with_a_mistake_is_named() {
        for (subuid, subgid, why) in [
            ("a:1:1\noubliette:abc:5\n", "", "/etc/subuid line 2 is that of oubliette"),
            ("oubliette:300000\n", "", "/etc/subuid line 1"),
            ("oubliette:300000:65536:x\n", "", "/etc/subuid line 1"),
            ("oubliette\n", "", "/etc/subuid line 1"),
            ("oubliette:300000:65536\r\n", "", "/etc/subuid line 1"),
            ("oubliette:300000:0\n", "", "/etc/subuid line 1"),
            ("oubliette:-1:5\n", "", "/etc/subuid line 1"),
            ("", "\noubliette::5\n", "/etc/subgid line 2"),
            ("oubliette:100:5\n", "", "gives 100-104"),
            ("oubliette:65000:65536\n", "", "65534"),
            ("oubliette:300000:99999999999999999999\n", "", "beyond 4294967294"),
            ("oubliette:300000:5\noubliette:400000:5\n", "", "/etc/subuid line 2 is a second"),
            ("oubliette:300000:5\n", "", "gives 300000-300004 to oubliette and /etc/subgid nothing"),
            ("oubliette:300000:5\n", "oubliette:300000:6\n", "and /etc/subgid 300000-300005"),
        ] {
            let found = parse(subuid, subgid, "").unwrap_err();
            assert!(found.contains(why), "{subuid:?}: {found}");
        }
    }

    #[test]
    fn lines_of_others_that_say_nothing_are_passed_over() {
        for line in ["", "alice", "alice:1", "alice:1:2:3", ":1:2", "alice::2", "alice:1:", "alice:x:2", "alice:1:0"] {
            assert_eq!(parse(line, line, "").unwrap(), Ranges::default(), "{line}");
        }
        let beyond = parse("alice:4294967290:65536\n", "", "").unwrap();
        assert_eq!(beyond.others[0].range, range(4_294_967_290, u32::MAX));
    }

    #[test]
    fn what_is_somebody_elses_is_named() {
        let texts = Texts {
            subuid: b"alice:100000:65536\noubliette:300000:1000\n",
            subgid: b"oubliette:300000:1000\nbob:300500:10\n",
            passwd: b"root:x:0:0::/:/bin/sh\ncarol:x:5000:100::/:/bin/sh\n+\n",
            group: b"users:x:100:\nteam:x:6000:carol\n",
        };
        let found = Ranges::parse(texts, &[range(1000, 200_000)]).unwrap();
        assert_eq!(found.given, Some(range(300_000, 300_999)));
        let whose = |first, last| found.taken(range(first, last)).map(|other| other.whose.as_str());
        assert_eq!(whose(165_535, 165_600), Some("given to alice (/etc/subuid line 1)"));
        assert_eq!(whose(165_536, 165_600), None);
        assert_eq!(whose(300_000, 300_999), Some("given to bob (/etc/subgid line 2)"));
        assert_eq!(whose(4999, 5001), Some("the UID of account carol (/etc/passwd line 2)"));
        assert_eq!(whose(6000, 6000), Some("the GID of group team (/etc/group line 2)"));
        assert_eq!(found.others.len(), 4, "what nobody asked for is left out: {:?}", found.others);
    }

    /// login.defs(5): useradd(8) gives accounts ranges from SUB_UID_MIN to SUB_UID_MAX by itself. systemd's containers
    /// get theirs from 524,288 to 1,879,048,191.
    #[test]
    fn nobody_gets_a_default_range_by_chance() {
        use crate::host::ranges::{FEW_UIDS, UIDS};
        for lent in [UIDS, FEW_UIDS] {
            assert!(!overlap(lent, range(100_000, 600_100_000)), "{lent}");
            assert!(!overlap(lent, range(524_288, 1_879_048_191)), "{lent}");
            assert_eq!(UidRange::new(lent.first, lent.last), Ok(lent));
        }
    }
}
