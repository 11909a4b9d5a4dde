//! Facts, requests and programs that choose themselves from bytes.

use std::fs::File;
use std::path::PathBuf;
use std::sync::OnceLock;

use clap::{CommandFactory, FromArgMatches};
use oubliette::host::facts::{Cgroups, Fact, Kind, Lack, Maker, Shown, capability};
use oubliette::host::image::Image;
use oubliette::host::program::Program;
use oubliette::host::ranges::{Other, Ranges};
use oubliette::host::{Counts, Host, Programs};
use oubliette::policy::Policy;
use oubliette::request::args::{Cli, RunArgs};
use oubliette::request::{Config, Request};
use oubliette::types::class::Class;
use oubliette::types::values::UidRange;

/// Bytes, one for each choice; zeros when they are spent.
pub struct Choices<'a>(std::slice::Iter<'a, u8>);

impl<'a> Choices<'a> {
    /// From what is left of an input.
    pub fn new(bytes: &'a [u8]) -> Choices<'a> {
        Choices(bytes.iter())
    }

    /// A number below this one.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::from(*self.0.next().unwrap_or(&0)) % limit
    }

    fn fact<T>(&mut self, value: T, what: &str) -> Fact<T> {
        // The first choice is a host that has everything.
        if self.below(2) == 0 { Fact::Has(value) } else { Fact::Lacks(Lack::new(format!("no {what}"), "get it")) }
    }
}

/// A host with any combination of facts, on which every path of the policy exists.
pub fn host(choices: &mut Choices<'_>, policy: &Policy, request: &Request) -> Host {
    let paths = policy.files.programs.iter().chain(&policy.files.config);
    let kinds = [Kind::Directory, Kind::File, Kind::Link("usr/bin".into())];
    let files = paths.map(|path| Shown { path: path.as_path().to_owned(), kind: kinds[choices.below(3)].clone() });
    let files = files.collect();
    let program = |path: &str| Program {
        path: path.into(),
        shown: vec![path.into()],
        links: vec![(format!("{path}.link").into(), path.into())],
        executed: vec![path.into(), "/lib64/ld.so".into()],
        search: vec!["/opt/node/bin".into()],
    };
    let maker = if choices.below(2) == 0 { Maker::Privilege } else { Maker::UserNamespace };
    let abi = [7, 6, 4, 1, 0, 5][choices.below(6)];
    let ranges = ranges(choices.below(3), request);
    Host {
        uid: if choices.below(2) == 0 { 0 } else { 1000 },
        gid: 0,
        groups: Vec::new(),
        capabilities: [u64::MAX, 0, capability::SETPCAP][choices.below(3)],
        namespaces: choices.fact(maker, "namespaces"),
        mounts: choices.fact((), "mounts"),
        proc: choices.fact((), "fresh /proc"),
        uts: choices.fact((), "host name"),
        net: choices.fact((), "network"),
        landlock: choices.fact(abi, "Landlock"),
        seccomp: choices.fact((), "seccomp"),
        modes: choices.fact((), "seccomp that asks"),
        uids: choices.fact((), "UIDs"),
        uid_map: vec![[(0, u32::MAX), (0, 65536)][choices.below(2)]],
        ranges: choices.fact(ranges, "ranges"),
        authorities: choices.fact("/etc/ssl/certs/ca-certificates.crt".into(), "authorities"),
        broker: choices.fact(image(), "the broker's program"),
        cgroup: choices.fact(Cgroups::V2("/sys/fs/cgroup".into()), "cgroup"),
        counts: Counts {
            swap: choices.below(2) == 0,
            swap_is_on: choices.below(2) == 0,
            sockets: choices.below(2) == 0,
            file_max: [u64::MAX, 1 << 16][choices.below(2)],
        },
        private_descriptors: choices.below(2) == 0,
        oom_order: choices.fact((), "OOM order"),
        orphans: choices.below(2) == 0,
        files,
        masked: vec![("kcore".into(), Kind::File)],
        programs: Programs {
            agent: program("/usr/bin/tool"),
            wrapped: (choices.below(2) == 1).then(|| program("/opt/claude/bin/claude")),
            servers: vec![program("/srv/mcp/server")],
        },
        servers: if choices.below(2) == 0 { vec![] } else { vec!["server".into()] },
        extra: vec![(PathBuf::from("/srv/mcp/server.py"), Kind::File)],
        agent_programs: vec!["/usr/bin/rg".into()],
        around: [vec![], vec![Class::SharedTmp]][choices.below(2)].clone(),
        inherited: vec![("LANG".into(), "C.UTF-8".into())],
        shell: "/bin/sh".into(),
    }
}

/// Nothing executes it.
fn image() -> Image {
    Image::of("/usr/bin/oubliette-broker".into(), File::open("/dev/null").expect("a device"))
}

fn ranges(choice: usize, request: &Request) -> Ranges {
    let given = UidRange { first: 300_000, last: 300_999 };
    let range = request.uid_range.unwrap_or(given);
    let other = Other { range: UidRange { first: range.last, last: range.last }, whose: "somebody".into() };
    match choice {
        0 => Ranges::default(),
        1 => Ranges { given: Some(given), others: vec![] },
        _ => Ranges { given: Some(given), others: vec![other] },
    }
}

/// Requests of every kind, without a file of the host's.
pub fn requests() -> &'static [Request] {
    static ALL: OnceLock<Vec<Request>> = OnceLock::new();
    ALL.get_or_init(|| {
        let lines: [&[&str]; 10] = [
            &[],
            &["--network", "none"],
            &["--network", "host", "--credential-fd", "5"],
            &["--network", "broker", "--credential-fd", "5"],
            &["--network", "broker", "--allow", "*.example", "--allow", "git.example:8443"],
            &["--require", "all"],
            &["--require", "pid", "--network", "none"],
            &["--workspace", "user", "--uid-range", "40000-40099"],
            &["--workspace", "/srv/work", "--beside"],
            &["--upstream", "http://127.0.0.1:8080/v1", "--setenv", "A=b"],
        ];
        lines.into_iter().map(request).collect()
    })
}

fn request(words: &[&str]) -> Request {
    let line = ["oubliette", "run"].iter().chain(words).chain(&["--", "/usr/bin/tool", "-x"]);
    let matches = Cli::command().try_get_matches_from(line).expect("a command line");
    let sub = matches.subcommand().expect("a subcommand").1;
    Request::new(RunArgs::from_arg_matches(sub).expect("arguments"), sub, Config::default()).expect("a request")
}
