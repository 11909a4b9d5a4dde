//! The posture of an agent is the one that `explain` promises for the same words: nothing more, and nothing less.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::resource::{Resource, getrlimit};
use oubliette::types::layout::DEVICES;
use oubliette::types::units::Bytes;
use serde_json::{Map, Value, json};

use crate::need;
use crate::stage::{Running, Stage, Who, descendants, output};

/// What a service may have around: none of it is the agent's business.
const POLLUTION: [(&str, &str); 12] = [
    ("SECRET_OF_SERVICE", "do-not-tell"),
    ("OUBLIETTE_GRACE", "7s"),
    ("OUBLIETTE_CREDENTIAL_FD", "0"),
    ("LANG", "C.UTF-8"),
    ("NODE_OPTIONS", "--require=/nowhere.js"),
    ("PYTHONPATH", "/nowhere"),
    ("GIT_DIR", "/nowhere"),
    ("BASH_ENV", "/nowhere"),
    ("ENV", "/nowhere"),
    ("ANTHROPIC_API_KEY", "do-not-tell"),
    ("HTTPS_PROXY", "http://127.0.0.1:1"),
    ("TMPDIR", "/nowhere"),
];

/// A mask of /proc/self/status.
const NO_SIGNAL: &str = "0000000000000000";

/// What a user namespace shows of a group that it does not map (/proc/sys/kernel/overflowgid).
const OVERFLOW: u64 = 65_534;

/// A launcher with a mask of its own, ignored and blocked signals, descriptors left open, and a library to preload.
const MESS: &str = "umask 077; exec 7</ 9</etc/passwd 8>/dev/null; \
     exec env --ignore-signal=PIPE,HUP,INT,QUIT,USR1,ALRM,TSTP,TTOU,WINCH,RTMIN --block-signal=TERM,USR2 LD_PRELOAD=/nowhere/evil.so LD_LIBRARY_PATH=/nowhere \"$@\"";

/// Every other thing that exec(2) hands on, as unlike a plain process's as its owner may make it. Ignored signals are
/// left to [`MESS`]; a dead timer, to its own test.
fn odd_caller(who: Who) -> Vec<&'static str> {
    const ANYBODY: &str = "ulimit -S -s unlimited; echo 1 >/proc/self/timerslack_ns 2>/dev/null; \
        exec setarch -R ionice -c 2 -n 0 \"$@\"";
    const ROOT: &str = "ulimit -S -s unlimited; echo 1 >/proc/self/timerslack_ns; { echo -1000 >/proc/self/oom_score_adj; } 2>/dev/null; \
        exec setarch -R -Z ionice -c 1 -n 0 nice -n -10 setpriv \
        --pdeathsig USR1 \"$@\"";
    vec!["sh", "-c", if who == Who::Root { ROOT } else { ANYBODY }, "sh"]
}

/// One launch: who, and the words between `run` or `explain` and the command.
struct Case {
    stage: Stage,
    who: Who,
    words: Vec<OsString>,
    /// What the launcher is started by.
    caller: Vec<&'static str>,
}

impl Case {
    fn new(who: Who, words: &[&str]) -> Case {
        Case { stage: Stage::new(), who, words: words.iter().map(Into::into).collect(), caller: Vec::new() }
    }

    /// The level `developer` with these layers off.
    fn without(who: Who, off: &[&str], words: &[&str]) -> Case {
        let mut case = Case::new(who, words);
        case.words.extend(["--policy".into(), case.stage.policy(off, None).into()]);
        case
    }

    fn with_credential(mut self) -> Case {
        let token = self.stage.private_file(self.who, "token", "sk-test-0123456789\n");
        self.words.extend(["--network".into(), "host".into(), "--credential-file".into(), token.into()]);
        self
    }

    fn command(&self, word: &[&str], agent: &[&str]) -> std::process::Command {
        let wrap = [&self.caller[..], &["sh", "-c", MESS, "sh"]].concat();
        let mut command = self.stage.command(self.who, &wrap);
        command.args(word).arg("--state-dir").arg(self.stage.state(self.who)).args(&self.words);
        command.args(["--agent", "none", "--"]).args(agent).envs(POLLUTION);
        command
    }

    /// What the same words would do.
    fn plan(&self, agent: &[&str]) -> Value {
        let done = output(&mut self.command(&["explain", "--json"], agent));
        let said: Value = serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {done:?}"));
        said["plan"].clone()
    }

    fn program(&self) -> String {
        self.stage.program.display().to_string()
    }

    /// The posture and the plan.
    fn compare(&self) -> Posture<'_> {
        let program = self.program();
        let plan = self.plan(&[&program, "__posture"]);
        let done = output(&mut self.command(&["run", "--quiet"], &[&program, "__posture"]));
        let is = serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {done:?}"));
        assert_eq!((done.status.code(), done.err.as_str()), (Some(0), ""));
        Posture { case: self, plan, is }
    }

    /// Everything at once.
    fn check(&self) {
        let posture = self.compare();
        posture.ids();
        posture.privileges();
        posture.namespaces();
        posture.descriptors();
        posture.environment();
        posture.limits();
        posture.places();
        posture.mounts();
        posture.process();
        self.signals();
    }

    /// As a program sees them that does not change them at its start.
    fn signals(&self) {
        let done =
            output(&mut self.command(&["run", "--quiet"], &["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]));
        let mask = |name: &str| {
            let line = done.out.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{done:?}"));
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        assert_eq!(mask("SigBlk:"), 0, "no signal is blocked");
        assert_eq!(mask("SigIgn:"), 0, "no signal is ignored");
    }
}

struct Posture<'a> {
    case: &'a Case,
    plan: Value,
    is: Value,
}

/// A line of the test's own status, which its children inherit.
fn own_status(name: &str) -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim().to_owned()
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|entry| entry.as_str().unwrap()).collect()
}

impl Posture<'_> {
    fn has_root(&self) -> bool {
        !self.plan["root"].is_null()
    }

    fn has(&self, namespace: &str) -> bool {
        self.plan["namespaces"][namespace] == true
    }

    fn enforces(&self, layer: &str) -> bool {
        let layers = self.plan["layers"].as_array().unwrap();
        layers.iter().any(|planned| planned["layer"] == layer && planned["decision"] == "enforce")
    }

    /// Where a place of the cell is: inside a private root, or in the cell's own directory of the host.
    fn place(&self, name: &str, private: &str) -> String {
        if self.has_root() {
            return private.to_owned();
        }
        let home = PathBuf::from(self.is["environ"]["HOME"].as_str().unwrap());
        let cell = home.parent().unwrap();
        assert_eq!(cell.parent(), Some(self.case.stage.state(self.case.who).join("cells").as_path()));
        assert_eq!(cell.file_name().unwrap().len(), 32, "128 bits in hexadecimal");
        cell.join(name).display().to_string()
    }

    fn ids(&self) {
        let ids = &self.is["ids"];
        let uid = ids["uid"][0].as_u64().unwrap();
        match self.plan["identity"]["per-run"].as_object() {
            Some(range) => {
                assert!((range["first"].as_u64().unwrap()..=range["last"].as_u64().unwrap()).contains(&uid), "{uid}");
            }
            None => assert_eq!(uid, u64::from(self.case.stage.uid(self.case.who))),
        }
        for kind in ["uid", "gid"] {
            assert_eq!(ids[kind], Value::from(vec![uid; 3]), "real, effective and saved {kind}");
            assert_eq!(ids[format!("fs{kind}")], uid, "of the file system: {kind}");
        }
        let planned: Vec<u64> =
            self.plan["groups"].as_array().unwrap().iter().map(|group| group["gid"].as_u64().unwrap()).collect();
        let shown = |gid: &u64| if self.plan["namespaces"]["user"] == true { OVERFLOW } else { *gid };
        assert_eq!(ids["groups"], Value::from(planned.iter().map(shown).collect::<Vec<_>>()));
    }

    fn privileges(&self) {
        let layers = self.plan["layers"].as_array().unwrap();
        let how = layers.iter().find(|planned| planned["layer"] == "capabilities").unwrap()["how"].as_str().unwrap();
        for set in ["effective", "permitted", "inheritable", "ambient", "bounding"] {
            let empty = self.is["caps"][set] == "0000000000000000";
            assert_eq!(empty, set != "bounding" || how == "every set is empty", "{set}: {how}");
        }
        assert_eq!(self.is["no_new_privs"], true);
        let own: u32 = own_status("Seccomp_filters").parse().unwrap_or(0);
        let planned = u32::from(!self.plan["filter"].is_null());
        assert_eq!(self.is["seccomp"]["filters"], own + planned);
        assert_eq!(self.is["seccomp"]["mode"], if own + planned > 0 { 2 } else { 0 });
    }

    fn namespaces(&self) {
        for (name, planned) in [
            ("ipc", "ipc"),
            ("mnt", "mount"),
            ("net", "net"),
            ("pid", "pid"),
            ("user", "user"),
            ("uts", "uts"),
            ("cgroup", "cgroup"),
            ("time", ""),
        ] {
            let own = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
            let own: u64 = own.to_str().unwrap().split(['[', ']']).nth(1).unwrap().parse().unwrap();
            let other = self.is["namespaces"][name] != own;
            assert_eq!(other, self.has(planned), "{name}: {} and {own} outside", self.is["namespaces"][name]);
        }
        let hostname = nix::unistd::gethostname().unwrap().into_string().unwrap();
        assert_eq!(self.is["hostname"], if self.has("uts") { "cell" } else { &hostname });
        if self.has("net") {
            let names: Vec<&String> = self.is["interfaces"].as_object().unwrap().keys().collect();
            assert_eq!(names, ["lo"]);
        }
    }

    fn descriptors(&self) {
        let all = self.is["descriptors"].as_array().unwrap();
        let numbers: Vec<u64> = all.iter().map(|open| open["fd"].as_u64().unwrap()).collect();
        let expected: &[u64] = if self.plan["credential"] == "pipe" { &[0, 1, 2, 3] } else { &[0, 1, 2] };
        assert_eq!(numbers, expected, "{all:?}");
        if let Some(credential) = all.get(3) {
            assert!(credential["target"].as_str().unwrap_or("pipe:").starts_with("pipe:"), "{credential}");
        }
    }

    fn environment(&self) {
        let mut planned: Map<String, Value> = self.plan["environment"].as_object().unwrap().clone();
        if self.plan["credential"] == "pipe" {
            planned.insert("OUBLIETTE_CREDENTIAL_FD".into(), "3".into());
        }
        for value in planned.values_mut() {
            let text = value.as_str().unwrap();
            let text = text.replace("{home}", &self.place("home", "/home/agent"));
            *value = text.replace("{tmp}", &self.place("tmp", "/tmp")).into();
        }
        let is = self.is["environ"].as_object().unwrap();
        assert_eq!(is.iter().collect::<BTreeMap<_, _>>(), planned.iter().collect::<BTreeMap<_, _>>());
        for (name, value) in POLLUTION {
            let agents_own = ["LANG", "TMPDIR", "OUBLIETTE_CREDENTIAL_FD"].contains(&name);
            assert!(agents_own || !is.contains_key(name), "{name} is the service's");
            assert!(
                name == "LANG" || is.get(name).is_none_or(|found| found != value),
                "{name}={value} is the service's"
            );
        }
    }

    fn limits(&self) {
        let planned = &self.plan["limits"];
        let size =
            |value: &Value| value.as_u64().or_else(|| Some(serde_json::from_value::<Bytes>(value.clone()).ok()?.0));
        let expected = [
            ("core", Resource::RLIMIT_CORE, Some(1)),
            ("nofile", Resource::RLIMIT_NOFILE, size(&planned["open-files"])),
            ("fsize", Resource::RLIMIT_FSIZE, size(&planned["file-size"])),
            ("nproc", Resource::RLIMIT_NPROC, size(&planned["processes"])),
            ("data", Resource::RLIMIT_DATA, size(&planned["data"])),
            ("memlock", Resource::RLIMIT_MEMLOCK, Some(64 << 20)),
            ("nice", Resource::RLIMIT_NICE, Some(0)),
            ("rtprio", Resource::RLIMIT_RTPRIO, Some(0)),
        ];
        for (name, resource, bound) in expected {
            let (_, own) = getrlimit(resource).unwrap();
            let Some(bound) = bound else { continue };
            let both = vec![bound.min(own); 2];
            assert_eq!(self.is["limits"][name], Value::from(both), "soft and hard limit {name}");
        }
        assert_eq!(planned["data"].is_null(), self.enforces("cgroup"), "one or the other bounds memory");
    }

    fn places(&self) {
        assert_eq!(self.is["cwd"].as_str(), Some(self.place("work", "/work").as_str()));
        assert_eq!(self.is["terminal"]["device"], 0, "no controlling terminal");
        assert_eq!(self.is["terminal"]["open"], "ENXIO");
        let outside = self.is["outside"].as_object().unwrap();
        if self.has_root() {
            let top = strings(&self.is["root"]);
            let shown =
                self.plan["root"]["shown"].as_array().unwrap().iter().map(|shown| shown["path"].as_str().unwrap());
            let own = ["dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "var", "work"].into_iter();
            let expected: BTreeSet<&str> = shown.map(|path| path.split('/').nth(1).unwrap()).chain(own).collect();
            assert_eq!(top, expected.into_iter().collect::<Vec<_>>());
            for path in ["/etc/shadow", "/var/lib", "/sys/kernel", "/boot", "/dev/mem", "/proc/kcore"] {
                assert!(["ENOENT", "EACCES"].contains(&outside[path].as_str().unwrap()), "{path}: {}", outside[path]);
            }
        } else if self.enforces("landlock-fs") {
            for path in ["/", "/root", "/home", "/etc/shadow", "/var/lib", "/run", "/boot", "/tmp", "/dev/shm", "/proc"]
            {
                assert!(["EACCES", "ENOENT"].contains(&outside[path].as_str().unwrap()), "{path}: {}", outside[path]);
            }
        }
        assert_eq!(outside["/proc/1/environ"], "EACCES", "process 1 does not tell its environment");
    }

    /// The planned mounts, and what their options must and must not have.
    fn expected_mounts(&self) -> BTreeMap<String, &'static [&'static str]> {
        const READ_ONLY: &[&str] = &["ro", "nosuid", "nodev"];
        let root = &self.plan["root"];
        let mut expected: BTreeMap<String, &[&str]> = BTreeMap::from([("/".to_owned(), READ_ONLY)]);
        for place in ["/home/agent", "/tmp", "/work", "/dev/shm"] {
            expected.insert(place.into(), &["rw", "nosuid", "nodev"]);
        }
        for shown in root["shown"].as_array().unwrap().iter().filter(|shown| shown["kind"].is_string()) {
            expected.insert(shown["path"].as_str().unwrap().into(), READ_ONLY);
        }
        expected.extend(DEVICES.map(|name| (format!("/dev/{name}"), &["rw"][..])));
        expected.insert("/dev/pts".into(), &["rw", "nosuid", "noexec"]);
        // Without a PID namespace it is the host's.
        let fresh = root["fresh-proc"] == true;
        expected.insert("/proc".into(), if fresh { &["ro", "nosuid", "nodev", "noexec"] } else { READ_ONLY });
        for masked in root["masked"].as_array().unwrap() {
            let cover: &[&str] = if masked[1] == "directory" { READ_ONLY } else { &[] };
            expected.insert(format!("/proc/{}", masked[0].as_str().unwrap()), cover);
        }
        expected
    }

    fn mounts(&self) {
        if !self.has_root() {
            return;
        }
        let expected = self.expected_mounts();
        let all = self.is["mounts"].as_array().unwrap();
        let at = |mount: &Value| mount["at"].as_str().unwrap().to_owned();
        // A bind is recursive: what the host has mounted below a shown directory comes along.
        let bound: Vec<&str> =
            expected.keys().map(String::as_str).filter(|path| path.matches('/').count() > 0 && *path != "/").collect();
        let shown = |path: &str| {
            bound.iter().any(|bound| Path::new(path).starts_with(bound) && !["/dev", "/tmp"].contains(bound))
        };
        let extra: Vec<String> =
            all.iter().map(at).filter(|path| !expected.contains_key(path) && !shown(path)).collect();
        assert_eq!(extra, Vec::<String>::new(), "mounts that nobody planned");
        for (path, options) in expected {
            let mount = all.iter().rfind(|mount| at(mount) == path).unwrap_or_else(|| panic!("{path} is not mounted"));
            let has: Vec<&str> = mount["options"].as_str().unwrap().split(',').collect();
            let missing: Vec<_> = options.iter().filter(|option| !has.contains(option)).collect();
            assert!(missing.is_empty(), "{path} lacks {missing:?}: {mount}");
            assert_eq!(mount["propagation"], "", "{path} does not spread");
        }
        let terminals = all.iter().rfind(|mount| at(mount) == "/dev/pts").unwrap();
        let options = terminals["super"].as_str().unwrap();
        assert!(options.split(',').any(|option| option == "max=64"), "a cell has its share of terminals: {options}");
        for place in ["/home/agent", "/tmp", "/work", "/dev/shm"] {
            let mount = all.iter().find(|mount| at(mount) == place).unwrap();
            let size = serde_json::from_value::<Bytes>(self.plan["root"]["disk"].clone()).unwrap().0 / 1024;
            let bounds = format!("size={size}k,nr_inodes={}", self.plan["root"]["files"]);
            assert!(
                mount["type"] == "tmpfs" && mount["super"].as_str().unwrap().contains(&bounds),
                "{bounds}: {mount}"
            );
        }
    }

    fn process(&self) {
        let process = &self.is["process"];
        assert_eq!(process["umask"], "0022");
        // The session is init's where there is one: never that of the caller's shell.
        let leader = if self.has("pid") { Value::from(1) } else { process["pid"].clone() };
        assert_eq!((&process["sid"], &process["pgid"]), (&leader, &process["pid"]), "a session and group of its own");
        if self.has("pid") {
            assert_eq!((process["pid"].as_i64(), process["ppid"].as_i64()), (Some(2), Some(1)));
        } else {
            assert_eq!(process["death_signal"], "SIGKILL", "it dies with its launcher");
        }
        assert_eq!((&process["nice"], &process["policy"]), (&json!(0), &json!(0)), "{process}");
        assert!([0, -1].contains(&process["io_priority"].as_i64().unwrap()), "no class of its own: {process}");
        assert!([0, -1].contains(&process["personality"].as_i64().unwrap()), "{process}");
        assert!([0, -1].contains(&process["memory_merge"].as_i64().unwrap()), "{process}");
        assert_eq!(process["timer_slack_ns"], 50_000, "{process}");
        assert_eq!(process["blocked_signals"], NO_SIGNAL);
        assert_eq!(process["oom_score_adj"], self.plan["limits"]["oom-score-adj"].to_string());
        assert_eq!(self.is["limits"]["stack"][0], 8 << 20);
        assert_eq!(process["cpus"], own_status("Cpus_allowed_list"));
    }
}

/// Whoever this test can be.
fn everybody() -> Vec<Who> {
    if need::as_root() { vec![Who::Root, Who::User] } else { vec![Who::User] }
}

const NAMESPACES: [&str; 5] = ["pid", "root", "ipc", "uts", "net"];
const LANDLOCK: [&str; 3] = ["landlock-fs", "landlock-net", "landlock-scope"];

#[test]
fn at_every_level_and_with_either_network() {
    for who in everybody() {
        for level in ["paranoid", "balanced", "developer"] {
            Case::new(who, &["--level", level]).check();
        }
        Case::new(who, &["--level", "developer", "--network", "none"]).check();
    }
}

/// Whoever starts the launcher before everybody else, or first of all in vain, does not mean the agent by that.
#[test]
fn whatever_the_caller_hands_on() {
    for who in everybody() {
        for off in [&[][..], &NAMESPACES, &["seccomp"]] {
            let mut case = Case::without(who, off, &[]);
            case.caller = odd_caller(who);
            case.check();
        }
    }
    if !need::as_root() {
        return;
    }
    for policy in ["-f", "-r"] {
        let mut case = Case::new(Who::Root, &["--level", "balanced"]);
        case.caller = vec!["chrt", policy, "10"];
        case.check();
    }
}

/// The launcher's place in the order of the OOM killer stays its own, and the agent cannot go back to it.
#[test]
fn the_agent_is_killed_before_its_launcher() {
    for who in everybody() {
        for off in [&[][..], &NAMESPACES] {
            let case = Case::without(who, off, &[]);
            let mut running =
                Running::start(case.command(&["run", "--quiet"], &[&case.program(), "__victim"]).stdin(Stdio::piped()));
            running.line();
            let score = |pid: i32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().to_owned();
            let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
            assert_eq!(score(running.pid()), own.trim(), "the launcher's");
            let agent = *descendants(running.pid()).last().unwrap();
            assert_eq!(score(agent), "500");
            assert_eq!(running.end().status.code(), Some(0));
        }
    }
}

/// `perl -e 'alarm 1; exec @ARGV'` is how shells of old give a command a deadline.
#[test]
fn an_alarm_of_the_callers_ends_the_run_and_leaves_nothing() {
    for who in everybody() {
        let mut case = Case::without(who, &NAMESPACES, &[]);
        case.caller = vec!["perl", "-e", "alarm 1; exec @ARGV"];
        let done = output(&mut case.command(&["run", "--quiet"], &["sleep", "60"]));
        assert_eq!(done.status.code(), Some(128 + 14), "{done:?}");
        assert_eq!(case.stage.cells(who), Vec::<PathBuf>::new());
    }
}

/// SECBIT_NO_SETUID_FIXUP keeps capabilities across a change of UID: whoever then kills everything that its new UID may
/// signal, kills everything. In a PID namespace, where a failure ends this test alone.
#[test]
fn securebits_of_the_callers_end_no_bystander() {
    if !need::as_root() {
        return;
    }
    const INSIDE: &str = "sleep 60 & bystander=$!; \
        setpriv --securebits +no_setuid_fixup \"$@\" || echo \"failed: $?\"; kill -0 $bystander && echo alive";
    for off in [&[][..], &NAMESPACES] {
        let mut case = Case::without(Who::Root, off, &[]);
        case.caller = vec!["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", INSIDE, "sh"];
        let done = output(&mut case.command(&["run", "--quiet"], &["grep", "-h", "^Cap", "/proc/self/status"]));
        let sets: BTreeSet<&str> = done.out.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!((done.out.ends_with("alive\n"), sets), (true, BTreeSet::from([NO_SIGNAL])), "{done:?}");
    }
}

#[test]
fn with_a_credential() {
    for who in everybody() {
        let case = Case::new(who, &["--level", "balanced"]).with_credential();
        let posture = case.compare();
        assert_eq!(posture.plan["credential"], "pipe");
        posture.descriptors();
        posture.environment();
    }
}

#[test]
fn without_namespaces() {
    for who in everybody() {
        Case::without(who, &NAMESPACES, &[]).check();
        Case::without(who, &NAMESPACES, &["--network", "none"]).check();
    }
}

#[test]
fn with_modes_and_names_alone() {
    let off: Vec<&str> = NAMESPACES.into_iter().chain(["uid"]).chain(LANDLOCK).chain(["seccomp", "cgroup"]).collect();
    Case::without(Who::User, &off, &[]).check();
}

#[test]
fn without_one_layer() {
    for who in everybody() {
        for layer in ["pid", "root", "ipc", "uts", "landlock-fs", "landlock-scope", "seccomp", "cgroup"] {
            Case::without(who, &[layer], &[]).check();
        }
    }
}

/// A launcher in two groups, of which the second has no name.
fn in_groups(mut case: Case) -> Case {
    case.stage.groups = vec![6, 71_234];
    case
}

/// A plain user cannot give up his groups, and what they open is not the UID's: the plan says so, and it is so.
#[test]
fn groups_of_a_plain_user_are_kept_and_said() {
    if !need::as_root() {
        return;
    }
    for off in [&[][..], &NAMESPACES, &[&NAMESPACES[..], &LANDLOCK].concat()] {
        let case = in_groups(Case::without(Who::User, off, &[]));
        let posture = case.compare();
        posture.ids();
        posture.namespaces();
        let kept = json!([{"gid": 6, "name": "disk"}, {"gid": 71_234, "name": null}]);
        assert_eq!(posture.plan["groups"], kept);
        let said = output(&mut case.command(&["explain"], &["true"])).out;
        let row = said.lines().find(|line| line.starts_with("  uid ")).unwrap();
        assert!(row.contains("degrade") && row.contains("groups 6 (disk), 71234;"), "{row}");
        assert!(row.contains("setpriv --clear-groups"), "{row}");
        assert!(said.contains("the launcher's, with its groups 6 (disk), 71234\n"), "{said}");
    }
}

/// Whoever may give them up does: with a UID of the run's own, with its own UID, in a user namespace, too.
#[test]
fn groups_go_wherever_the_launcher_may_give_them_up() {
    if !need::as_root() {
        return;
    }
    in_groups(Case::new(Who::Root, &["--level", "balanced"])).check();
    in_groups(Case::without(Who::Root, &["uid"], &[])).check();
    for (who, rights) in [
        (Who::Root, &["--bounding-set=-sys_admin", "--inh-caps=-all"][..]),
        (Who::Root, &["--bounding-set=-sys_admin,-chown", "--inh-caps=-all"]),
        (Who::User, &["--inh-caps=-all,+setgid", "--ambient-caps=+setgid"]),
        (Who::User, &["--inh-caps=-all,+setgid,+setuid,+chown", "--ambient-caps=+setgid,+setuid,+chown"]),
    ] {
        for off in [&[][..], &["pid", "root"]] {
            let mut case = in_groups(Case::without(who, off, &[]));
            case.stage.rights = rights;
            // The agent's UID must get to a cell of directories.
            fs::set_permissions(case.stage.own(who), fs::Permissions::from_mode(0o711)).unwrap();
            let posture = case.compare();
            assert_eq!(posture.plan["namespaces"]["user"], true, "{who:?} {rights:?}");
            posture.ids();
            posture.namespaces();
        }
    }
}

/// The control groups of a process: controllers and path.
fn cgroups(pid: i32) -> Vec<(String, String)> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let parts = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    };
    text.lines().filter_map(parts).collect()
}

#[test]
fn a_cgroup_bounds_the_whole_cell() {
    let case = Case::new(Who::Root, &["--level", "developer"]);
    if !need::as_root() {
        return;
    }
    let program = case.program();
    let plan = case.plan(&[&program, "__victim"]);
    let Some(v1) = plan["cgroup"]["v1"].as_object().cloned() else {
        need::need("cgroup v1", false);
        return;
    };
    let mut running = Running::start(case.command(&["run", "--quiet"], &[&program, "__victim"]).stdin(Stdio::piped()));
    running.line();
    let cell = case.stage.cells(Who::Root).pop().unwrap();
    let name = format!("oubliette-{}", cell.file_name().unwrap().to_str().unwrap());
    let limits = &plan["limits"];
    let memory = serde_json::from_value::<Bytes>(limits["memory"].clone()).unwrap().0;
    let quota = limits["cpu-percent"].as_u64().unwrap() * 1000;
    let files = [
        ("memory", "memory.limit_in_bytes", memory),
        ("pids", "pids.max", limits["cell-processes"].as_u64().unwrap()),
        ("cpu", "cpu.cfs_quota_us", quota),
    ];
    let processes = descendants(running.pid());
    assert_eq!(processes.len(), 2, "init and agent");
    let mut made = Vec::new();
    for (controller, file, value) in files {
        let Some(parent) = v1[controller].as_str() else { continue };
        let group = Path::new(parent).join(&name);
        assert_eq!(fs::read_to_string(group.join(file)).unwrap().trim(), value.to_string(), "{controller}");
        for &pid in &processes {
            let own =
                cgroups(pid).into_iter().find(|(names, _)| names.split(',').any(|name| name == controller)).unwrap();
            assert!(own.1.ends_with(&name), "{controller} of {pid}: {own:?}");
        }
        made.push(group);
    }
    assert!(!made.is_empty());
    assert_eq!(running.end().status.code(), Some(0));
    assert!(made.iter().all(|group| !group.exists()), "they are gone with the run: {made:?}");
}
