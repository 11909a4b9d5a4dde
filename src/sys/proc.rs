//! What /proc says of processes and of this one (proc(5)). A process chooses its own name, any 15 bytes, and the kernel
//! writes it into these files as it is: no name may hide its process or speak for another field.
#![forbid(unsafe_code)]

use nix::unistd::Pid;

/// Of /proc/PID/stat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// It runs or could; not so of one that is dead and not yet waited for.
    pub alive: bool,
    /// Its parent.
    pub parent: i32,
    /// When it started, in ticks since the boot, where the kernel says it.
    pub started: Option<u64>,
}

impl Stat {
    /// Nothing for a process that is gone.
    pub fn of(pid: Pid) -> Option<Stat> {
        Stat::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Fields 3, 4 and 22, counted from the last parenthesis: the second field is the name, in parentheses.
    pub fn parse(stat: &[u8]) -> Option<Stat> {
        let end = stat.iter().rposition(|byte| *byte == b')')?;
        let mut fields = std::str::from_utf8(&stat[end + 1..]).ok()?.split_ascii_whitespace();
        let alive = is_alive(fields.next()?);
        let parent = fields.next()?.parse().ok()?;
        Some(Stat { alive, parent, started: fields.nth(17).and_then(|word| word.parse().ok()) })
    }
}

/// Of /proc/PID/status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// As in [`Stat`].
    pub alive: bool,
    /// Its real UID.
    pub uid: u32,
    /// It is in a PID namespace below this one.
    pub nested: bool,
    /// It can gain privileges by an exec; nothing where the kernel does not say.
    pub gains: Option<bool>,
}

impl Status {
    /// Nothing for a process that is gone.
    pub fn of(pid: Pid) -> Option<Status> {
        Status::parse(&std::fs::read(format!("/proc/{pid}/status")).ok()?)
    }

    /// The last line of a name counts: the process's own comes first, and gVisor writes the line ends in it as they are.
    pub fn parse(status: &[u8]) -> Option<Status> {
        let field = |name: &str| {
            let mut lines = status.rsplit(|byte| *byte == b'\n');
            let value = lines.find_map(|line| line.strip_prefix(name.as_bytes()))?;
            Some(std::str::from_utf8(value).ok()?.split_ascii_whitespace())
        };
        let first = |name: &str| field(name).and_then(|mut words| words.next());
        Some(Status {
            alive: is_alive(first("State:")?),
            uid: first("Uid:")?.parse().ok()?,
            nested: field("NSpid:").is_some_and(|numbers| numbers.count() > 1),
            gains: first("NoNewPrivs:").map(|word| word == "0"),
        })
    }
}

fn is_alive(state: &str) -> bool {
    !matches!(state, "Z" | "X")
}

/// When the host was started, in seconds since 1970: `btime` of /proc/stat.
pub fn boot() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// First and count of each line of /proc/self/uid_map (user_namespaces(7)); lines of another form say nothing.
pub fn id_map(text: &str) -> Vec<(u32, u32)> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let first = words.next()?.parse().ok()?;
        Some((first, words.nth(1)?.parse().ok()?))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_hides_a_process_or_speaks_for_it() {
        let me = Pid::this();
        let (real, known) = (Stat::of(me).unwrap(), Status::of(me).unwrap());
        assert_eq!((real.alive, known.alive, known.nested), (true, true, false));
        assert_eq!(real.parent, nix::unistd::getppid().as_raw());
        assert_eq!(known.uid, nix::unistd::getuid().as_raw());
        let [stat, status] = ["stat", "status"].map(|file| std::fs::read(format!("/proc/self/{file}")).unwrap());
        let rest = stat.iter().rposition(|byte| *byte == b')').unwrap();
        let lines = status.iter().position(|byte| *byte == b'\n').unwrap();
        for name in [&b"\xff\xfe"[..], b") Z 1 ", b"a\nUid:\t0 0 0", b"x\nState:\tZ", b""] {
            let named = [b"7 (", name, &stat[rest..]].concat();
            assert_eq!(Stat::parse(&named), Some(real), "{}", name.escape_ascii());
            let named = [b"Name:\t", name, &status[lines..]].concat();
            assert_eq!(Status::parse(&named), Some(known), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn what_is_dead_is_not_alive() {
        let text = |state: char| format!("7 (x) {state} 3 {}99 0\n", "0 ".repeat(17));
        assert_eq!(Stat::parse(text('S').as_bytes()), Some(Stat { alive: true, parent: 3, started: Some(99) }));
        assert_eq!(Stat::parse(text('Z').as_bytes()).map(|stat| stat.alive), Some(false));
        assert_eq!(Stat::parse(b"7 (x) S"), None);
        assert_eq!(Status::parse(b"Name:\tx\n"), None);
    }
}
