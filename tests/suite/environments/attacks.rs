//! `doctor --attack` in each environment: nothing is open that its plan did not name, nothing is left, and what each
//! attack came to stands in `tests/ATTACKS.md`.
//!
//! `OUBLIETTE_BLESS=1 cargo test --test suite table_of_attacks` writes that page; without it the test compares. A host
//! with another kernel or another gVisor may honestly come to another table: its page is to be read before it is taken.

mod page; // the table as a page

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::sandbox::{Kind, PLAIN, Sandbox, Scratch, sections};
use crate::need;

/// An environment, and the column that it has in the table.
struct Environment {
    id: &'static str,
    kind: Kind,
    uid: u32,
    /// In a few words.
    about: &'static str,
}

const fn environment(id: &'static str, kind: Kind, uid: u32, about: &'static str) -> Environment {
    Environment { id, kind, uid, about }
}

const ENVIRONMENTS: [Environment; 8] = [
    environment("A", Kind::Linux, 0, "root on Linux"),
    environment("B", Kind::Linux, PLAIN, "plain user on Linux"),
    environment("C", Kind::NoUserNamespaces, PLAIN, "plain user, user namespaces off"),
    environment("D", Kind::Container, 0, "root in a container with Docker's capabilities and filter"),
    environment("Du", Kind::Container, PLAIN, "plain user in such a container"),
    environment("E", Kind::Gvisor, 0, "root in gVisor"),
    environment("Eu", Kind::Gvisor, PLAIN, "plain user in gVisor"),
    environment("F", Kind::NoLandlock, PLAIN, "plain user on a kernel without Landlock"),
];

/// What `doctor --attack --json` said in one of them.
struct Column {
    environment: &'static Environment,
    /// Each level with a broker.
    levels: Value,
    /// The level `developer` with the host's network.
    host: Value,
    /// The level `developer` without a network.
    offline: Value,
}

/// The level that confines least, by which the table is made.
const LEVEL: &str = "developer";

const SCRIPT: &str = "
attack() {
  /mnt/oubliette doctor --attack --json --state-dir /tmp/state \"$@\" >/tmp/said 2>/tmp/errors; status=$?
  cat /tmp/said; echo; echo \"== $step-errors\"; cat /tmp/errors; echo \"== $step-status\"; echo $status
}
step=levels; echo '== levels'; attack --network broker
step=host; echo '== host'; attack --level developer --network host
step=offline; echo '== offline'; attack --level developer --network none
echo '== left'; find /tmp/state/cells -mindepth 1
";

impl Environment {
    /// Attacks in it; nothing where it cannot be made here.
    fn attacked(&'static self) -> Option<Column> {
        let sandbox = Sandbox { kind: self.kind, uid: self.uid, host_network: false };
        if !need::as_root() || !sandbox.there() {
            return None;
        }
        let said = sections(&sandbox.output(&Scratch::new(), &["sh", "-c", SCRIPT]));
        let parse = |name: &str| -> Value {
            let errors = format!("{name}-errors");
            serde_json::from_str(&said[name]).unwrap_or_else(|error: serde_json::Error| {
                let at = said[name].lines().skip(error.line().saturating_sub(3)).take(5).collect::<Vec<_>>().join("\n");
                panic!("{}: {error} in\n{at}\n{}", self.id, said[&errors])
            })
        };
        let column =
            Column { environment: self, levels: parse("levels"), host: parse("host"), offline: parse("offline") };
        for (part, value) in [("levels", &column.levels), ("host", &column.host), ("offline", &column.offline)] {
            assert_eq!(said[&format!("{part}-errors")], "", "{}", self.id);
            column.check(value);
            // Where a layer is missing it is 1, and never the 2 of an attack that is open against the plan.
            let degraded = &value.to_string().contains("\"decision\":\"degrade\"");
            assert_eq!(said[&format!("{part}-status")], format!("{}\n", u8::from(*degraded)), "{}", self.id);
        }
        assert_eq!(said["left"], "", "{}", self.id);
        Some(column)
    }
}

impl Column {
    fn check(&self, said: &Value) {
        let id = self.environment.id;
        assert!(!said.to_string().contains("\"decision\":\"refuse\""), "{id}: {}", said["levels"]);
        for encounter in encounters(said) {
            let rows = rows(encounter);
            assert_eq!(rows.len(), oubliette::attack::ATTACKS.len(), "{id}");
            let broken: Vec<&Value> = rows.iter().filter(|row| row["broken"] != false).collect();
            assert!(broken.is_empty(), "{id} {}: {broken:#?}", encounter["level"]);
            assert!(encounter["kept"] == true, "{id} {}: {}", encounter["level"], encounter["damage"]);
        }
    }

    /// What was said of a level.
    fn level(&self, name: &str) -> &Value {
        let found = encounters(&self.levels).iter().find(|encounter| encounter["level"] == name);
        found.unwrap_or_else(|| panic!("{}: {name} was not attacked", self.environment.id))
    }
}

fn encounters(said: &Value) -> &[Value] {
    said["encounters"].as_array().unwrap()
}

fn rows(encounter: &Value) -> &[Value] {
    encounter["attacks"].as_array().unwrap()
}

/// Versions on which results depend.
fn host() -> String {
    let said = |program: &str, option: &str| {
        let output = Command::new(program).arg(option).output().unwrap();
        String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned()
    };
    let release = said("uname", "-r");
    let release = release.split('-').next().unwrap();
    format!("Linux {release} {}, {}", said("uname", "-m"), said("runsc", "--version"))
}

#[test]
fn table_of_attacks() {
    let columns: Vec<Option<Column>> = ENVIRONMENTS.iter().map(Environment::attacked).collect();
    // Each has been judged by itself; the page needs all of them.
    let Some(columns) = columns.into_iter().collect::<Option<Vec<Column>>>() else { return };
    let (text, host) = (page::text(&columns), host());
    let path = need::root().join("tests/ATTACKS.md");
    if std::env::var_os("OUBLIETTE_BLESS").is_some() {
        fs::write(&path, text.replace(page::HOST, &host)).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    // The host is named for the reader, and not compared.
    let theirs = page::host(&kept);
    let expected = kept.replace(&theirs, page::HOST);
    let differences: Vec<String> = page::differences(&expected, &text);
    assert!(
        differences.is_empty(),
        "tests/ATTACKS.md was made on {theirs}; here, on {host}:\n{}\nhint: OUBLIETTE_BLESS=1 writes it; read the \
         difference before you take it",
        differences.join("\n")
    );
}
