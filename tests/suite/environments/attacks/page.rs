//! The page `tests/ATTACKS.md`: attacks by class, environments as columns, and why what is open is open.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use oubliette::attack::{ATTACKS, Attack};
use serde_json::Value;

use super::{Column, LEVEL, rows};

/// Stands for the host's versions, which are not compared.
pub const HOST: &str = "(host)";

const MADE: &str = "Made on ";

/// Rows in which "blocked" and "nothing there" are told apart by what the host happens to have: devices, terminals,
/// set-id programs, control files, IPv6. The page has one mark for both.
const BY_HOST: [&str; 6] =
    ["foreign-terminals", "block-devices", "kernel-devices", "set-id-programs", "write-cgroup", "tcp-mapped"];

const HEAD: &str = "# Every attack in every environment

What `oubliette doctor --attack` finds in the eight environments that the tests make: a hostile agent in one cell, its
victim in another, everything tried for real. `OUBLIETTE_BLESS=1 cargo test --test suite table_of_attacks` writes this
page; without that variable the test compares it with what it finds, mark by mark.

";

const MARKS: &str = "
| mark | meaning |
|---|---|
| **open** | it works, and the plan said so before anything was started; [why](#what-is-open-and-why) |
| (open) | not tried, since it could hit what is not the test's; counts as open, as the plan says |
| · | blocked by a layer that the plan names |
| (·) | blocked, though the plan does not promise it |
| – | nothing to attack: the victim cannot make such an object, or the call or the protocol is not there, be it that the filter answers so |
| ¹ | · stands for – as well: which of the two it is, the host's devices, programs and protocols decide |

An attack that is open against the plan has no mark: `doctor --attack` ends with 2 then, and the test fails. The table is
that of level `developer`, which confines least, with a broker: the upstream is the doctor's own.
";

/// The mark of one result.
fn mark(row: &Value) -> &'static str {
    let by_host = BY_HOST.iter().any(|name| row["attack"] == **name);
    match (row["verdict"].as_str().unwrap(), row["expected"].as_str().unwrap()) {
        ("open", _) => "**open**",
        ("not-tried", "open") => "(open)",
        ("blocked", "open") => "(·)",
        ("blocked" | "not-tried", _) => "·",
        ("absent", _) if by_host => "·",
        _ => "–",
    }
}

/// Open, or counted as such.
fn open(row: &Value) -> bool {
    mark(row).contains("open")
}

/// The row of an attack.
fn find<'a>(encounter: &'a Value, attack: &Attack) -> &'a Value {
    rows(encounter).iter().find(|row| row["attack"] == attack.name).unwrap()
}

fn head(columns: &[Column]) -> String {
    let ids: String = columns.iter().map(|column| format!(" {} |", column.environment.id)).collect();
    format!("| attack | what it does |{ids}\n|---|---|{}\n", ":-:|".repeat(columns.len()))
}

fn line(columns: &[Column], attack: &Attack, pick: impl Fn(&Column) -> &Value) -> String {
    let marks: String = columns.iter().map(|column| format!(" {} |", mark(find(pick(column), attack)))).collect();
    let note = if BY_HOST.contains(&attack.name) { "¹" } else { "" };
    format!("| `{}`{note} | {} |{marks}\n", attack.name, attack.about)
}

fn class(attack: &Attack) -> String {
    serde_json::to_value(attack.class).unwrap().as_str().unwrap().to_owned()
}

/// The whole page.
pub fn text(columns: &[Column]) -> String {
    let mut text = format!("{HEAD}{MADE}{HOST}.\n\n| | environment | open | blocked | nothing to attack |\n");
    text += "|---|---|---:|---:|---:|\n";
    for column in columns {
        let environment = column.environment;
        let marks: Vec<&str> = rows(column.level(LEVEL)).iter().map(mark).collect();
        let count = |part: &str| marks.iter().filter(|mark| mark.contains(part)).count();
        let (id, about) = (environment.id, environment.about);
        let _ = writeln!(text, "| {id} | {about} | {} | {} | {} |", count("open"), count("·"), count("–"));
    }
    text += MARKS;
    let mut classes: Vec<String> = Vec::new();
    for name in ATTACKS.iter().map(class) {
        if !classes.contains(&name) {
            classes.push(name);
        }
    }
    for name in classes {
        let _ = write!(text, "\n## {name}\n\n{}", head(columns));
        let rows = ATTACKS.iter().filter(|attack| class(attack) == name);
        text.extend(rows.map(|attack| line(columns, attack, |column| column.level(LEVEL))));
    }
    text + &levels(columns) + &others_network(columns) + &reasons(columns)
}

/// Rows that have other marks than those of the page's level.
fn differing(columns: &[Column], pick: impl Fn(&Column) -> &Value) -> String {
    let line = |attack| (line(columns, attack, &pick), line(columns, attack, |column| column.level(LEVEL)));
    let rows = ATTACKS.iter().map(line).filter(|(here, there)| here != there);
    head(columns) + &rows.map(|(here, _)| here).collect::<String>()
}

/// The level of the page with the host's network.
fn others_network(columns: &[Column]) -> String {
    let table = differing(columns, |column| &super::encounters(&column.host)[0]);
    format!(
        "\n## With the host's network\n\nWhat `--network host` changes, where the agent holds its credential itself.\n\n{table}"
    )
}

/// Rows of the other levels that have other marks.
fn levels(columns: &[Column]) -> String {
    let table = |level: &str| differing(columns, |column| column.level(level));
    let (balanced, paranoid) = (table("balanced"), table("paranoid"));
    let tables = if balanced == paranoid {
        format!("`balanced` and `paranoid`:\n\n{balanced}")
    } else {
        format!("`balanced`:\n\n{balanced}\n`paranoid`:\n\n{paranoid}")
    };
    format!("\n## Other levels\n\nWhat differs from `developer`; everything else is the same.\n\n{tables}")
}

/// What is open in each environment, by the reason that the plan gives.
fn reasons(columns: &[Column]) -> String {
    let mut text = "\n## What is open, and why\n".to_owned();
    for column in columns {
        let encounter = column.level(LEVEL);
        let _ = writeln!(text, "\n### {}: {}\n", column.environment.id, column.environment.about);
        if encounter["in-time"] == true {
            text += "A run starts no second cell here while one is alive (layer `alone`), so no agent meets another: the \
                     two were\nput side by side for this table alone.\n\n";
        }
        let mut by_reason: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for row in rows(encounter).iter().filter(|row| open(row)) {
            let name = format!("`{}`", row["attack"].as_str().unwrap());
            by_reason.entry(row["why"].as_str().unwrap()).or_default().push(name);
        }
        for (why, names) in by_reason {
            let _ = writeln!(text, "- {why}: {}", names.join(", "));
        }
        let offline = &super::encounters(&column.offline)[0];
        let closes = |attack: &&Attack| open(find(encounter, attack)) && !open(find(offline, attack));
        let names: Vec<String> = ATTACKS.iter().filter(closes).map(|attack| format!("`{}`", attack.name)).collect();
        let opens = ATTACKS.iter().find(|attack| open(find(offline, attack)) && !open(find(encounter, attack)));
        assert!(opens.is_none(), "{}: without a network {} is open", column.environment.id, opens.unwrap().name);
        let names = if names.is_empty() { "nothing more".to_owned() } else { names.join(", ") };
        let _ = writeln!(text, "\n`--network none` closes {names}.");
    }
    text
}

/// The host that a page names.
pub fn host(page: &str) -> String {
    let line = page.lines().find_map(|line| line.strip_prefix(MADE)).unwrap_or("no host.");
    line.trim_end_matches('.').to_owned()
}

/// Lines that one page has and the other has not, for a person.
pub fn differences(kept: &str, made: &str) -> Vec<String> {
    let only = |mark: char, these: &str, those: &str| -> Vec<String> {
        let those: Vec<&str> = those.lines().collect();
        these.lines().filter(|line| !those.contains(line)).map(|line| format!("{mark} {line}")).collect()
    };
    let mut all = only('-', kept, made);
    all.extend(only('+', made, kept));
    if all.is_empty() && kept != made {
        all.push("the order of its lines".into());
    }
    all
}
