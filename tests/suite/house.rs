//! Every import goes downwards: the floors stand in the front page of the library, and this reads each `use` and each
//! path of `src` against them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use proc_macro2::{TokenStream, TokenTree};
use syn::UseTree;

use crate::need::{self, files, short};

/// Floors by room, as the front page says.
fn floors() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(need::root().join("src/lib.rs")).expect("the library");
    read_floors(&text)
}

/// The rows of the table: `| 4 | [`plan`] … | …`.
fn read_floors(text: &str) -> BTreeMap<String, usize> {
    let mut rooms = BTreeMap::new();
    for row in text.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let mut cells = row.split(" | ");
        let (Some(Ok(floor)), Some(names)) = (cells.next().map(str::parse), cells.next()) else { continue };
        for name in names.split("[`").skip(1).filter_map(|rest| rest.split_once('`')) {
            assert!(rooms.insert(name.0.to_owned(), floor).is_none(), "{} stands twice", name.0);
        }
    }
    rooms
}

/// One place of a file that names something of the library: its line, and the path below the root of the crate.
type Named = (usize, Vec<String>);

/// Everything that a file names of its own crate. Test modules are left out: they may use what is above.
fn named(text: &str, module: &[String]) -> Vec<Named> {
    let all: Vec<TokenTree> = text.parse::<TokenStream>().expect("valid tokens").into_iter().collect();
    let declared = all.windows(3).filter_map(|three| match three {
        [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Punct(end)]
            if word == "mod" && end.as_char() == ';' =>
        {
            Some(name.to_string())
        }
        _ => None,
    });
    let mut reader = Reader { module, children: declared.collect(), found: Vec::new() };
    reader.read(&all);
    reader.found
}

struct Reader<'a> {
    module: &'a [String],
    /// Modules that this file declares.
    children: BTreeSet<String>,
    found: Vec<Named>,
}

impl Reader<'_> {
    fn read(&mut self, all: &[TokenTree]) {
        let mut at = 0;
        while let Some(token) = all.get(at) {
            at += match token {
                TokenTree::Ident(word) if word == "use" => self.import(&all[at..]),
                TokenTree::Ident(_) => self.path(&all[at..]),
                TokenTree::Punct(sign) if sign.as_char() == '#' => self.attribute(&all[at..]),
                TokenTree::Group(group) => {
                    self.read(&group.stream().into_iter().collect::<Vec<_>>());
                    1
                }
                // In attributes of serde a path stands in a text.
                TokenTree::Literal(literal) => {
                    let text = literal.to_string();
                    if let Some(path) = text.strip_prefix("\"crate::").and_then(|rest| rest.strip_suffix('"')) {
                        let path = path.split("::").map(str::to_owned).collect();
                        self.found.push((literal.span().start().line, path));
                    }
                    1
                }
                TokenTree::Punct(_) => 1,
            };
        }
    }

    /// `use …;`, or a bound such as `use<'a>`. Gives how many tokens that is.
    fn import(&mut self, all: &[TokenTree]) -> usize {
        let length = all.iter().position(|token| matches!(token, TokenTree::Punct(sign) if sign.as_char() == ';'));
        let Some(length) = length.map(|end| end + 1) else { return 1 };
        let Ok(import) = syn::parse2::<syn::ItemUse>(all[..length].iter().cloned().collect()) else { return 1 };
        let mut leaves = Vec::new();
        flatten(&import.tree, &mut Vec::new(), &mut leaves);
        let line = all[0].span().start().line;
        for path in leaves {
            self.found.extend(self.absolute(&path).map(|path| (line, path)));
        }
        length
    }

    /// `crate::a::b`, `super::c`.
    fn path(&mut self, all: &[TokenTree]) -> usize {
        let is_colon = |at: usize| matches!(all.get(at), Some(TokenTree::Punct(sign)) if sign.as_char() == ':');
        let (mut path, mut at) = (vec![all[0].to_string()], 1);
        while is_colon(at) && is_colon(at + 1) {
            let Some(TokenTree::Ident(next)) = all.get(at + 2) else { break };
            path.push(next.to_string());
            at += 3;
        }
        if path.len() > 1 {
            self.found.extend(self.absolute(&path).map(|path| (all[0].span().start().line, path)));
        }
        at
    }

    /// Passes over `#[cfg(test)] mod tests { … }`; else what stands in the brackets is read as everything else.
    fn attribute(&self, all: &[TokenTree]) -> usize {
        match all {
            [_, TokenTree::Group(cfg), TokenTree::Ident(word), _, TokenTree::Group(_), ..]
                if word == "mod" && cfg.stream().to_string().replace(' ', "") == "cfg(test)" =>
            {
                5
            }
            _ => 1,
        }
    }

    /// The path below the root of the crate, where it is one of the crate's.
    fn absolute(&self, path: &[String]) -> Option<Vec<String>> {
        let up = path.iter().take_while(|step| *step == "super").count();
        let (base, rest) = match path.first().map(String::as_str) {
            Some("crate") => (0, &path[1..]),
            Some("super") => (self.module.len().checked_sub(up)?, &path[up..]),
            Some("self") => (self.module.len(), &path[1..]),
            Some(name) if self.children.contains(name) => (self.module.len(), path),
            _ => return None,
        };
        let rest = rest.iter().filter(|step| *step != "self").cloned();
        Some(self.module[..base].iter().cloned().chain(rest).collect())
    }
}

fn flatten(tree: &UseTree, path: &mut Vec<String>, leaves: &mut Vec<Vec<String>>) {
    match tree {
        UseTree::Path(step) => {
            path.push(step.ident.to_string());
            flatten(&step.tree, path, leaves);
            path.pop();
        }
        UseTree::Name(name) => leaves.push([&path[..], &[name.ident.to_string()]].concat()),
        UseTree::Rename(name) => leaves.push([&path[..], &[name.ident.to_string()]].concat()),
        UseTree::Glob(_) => leaves.push(path.clone()),
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, path, leaves)),
    }
}

/// The source: each module with its file and its text.
struct Source {
    modules: BTreeMap<Vec<String>, (String, String)>,
    floors: BTreeMap<String, usize>,
}

impl Source {
    fn read() -> Source {
        let mut modules = BTreeMap::new();
        for path in files("src", &[".rs"]) {
            let name = short(&path);
            let module = name.trim_start_matches("src/").trim_end_matches(".rs").to_owned();
            // Programs, the build script and the front page decide nothing.
            if module.starts_with("bin/") || ["main", "lib", "build"].contains(&module.as_str()) {
                continue;
            }
            let text = fs::read_to_string(&path).expect("a source file");
            modules.insert(module.split('/').map(str::to_owned).collect(), (name, text));
        }
        Source { modules, floors: floors() }
    }

    /// The module in whose file a path ends.
    fn home(&self, path: &[String]) -> Option<&[String]> {
        let known = (1..=path.len()).rev().find(|&length| self.modules.contains_key(&path[..length]));
        known.and_then(|length| self.modules.get_key_value(&path[..length])).map(|(module, _)| &module[..])
    }

    /// Imports that do not go down, one line each.
    fn upward(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (module, (file, text)) in &self.modules {
            let Some(own) = self.floors.get(&module[0]) else {
                wrong.push(format!("{file}: room {} is on no floor of src/lib.rs", module[0]));
                continue;
            };
            for (line, path) in named(text, module) {
                let Some(room) = path.first().filter(|room| **room != module[0]) else { continue };
                if self.floors.get(room).is_some_and(|floor| floor >= own) {
                    let path = path.join("::");
                    wrong.push(format!("{file}:{line}: {} (floor {own}) uses {path} of {room}", module[0]));
                }
            }
        }
        wrong.sort();
        wrong.dedup();
        wrong
    }

    /// What each file uses of its own room.
    fn inside(&self) -> BTreeMap<&[String], BTreeSet<&[String]>> {
        let uses = |module: &[String], text: &str| {
            let all = named(text, module).into_iter();
            all.filter(|(_, path)| path.first() == module.first())
                .filter_map(|(_, path)| self.home(&path))
                .filter(|used| *used != module)
                .collect()
        };
        self.modules.iter().map(|(module, (_, text))| (&module[..], uses(module, text))).collect()
    }

    /// Files that use the module above them, and circles of files, one line each.
    fn circles(&self) -> Vec<String> {
        let graph = self.inside();
        let name = |module: &[String]| module.join("::");
        let mut wrong = Vec::new();
        for (module, used) in &graph {
            let above = used.iter().filter(|other| module.starts_with(other));
            wrong.extend(above.map(|other| format!("{} uses {}, which is above it", name(module), name(other))));
            let reached = reach(&graph, module);
            if reached.contains(module) {
                let round: Vec<String> =
                    reached.iter().filter(|other| reach(&graph, other).contains(module)).map(|m| name(m)).collect();
                wrong.push(format!("a circle: {}", round.join(", ")));
            }
        }
        wrong.sort();
        wrong.dedup();
        wrong
    }
}

/// All that a file uses by way of others.
fn reach<'a>(graph: &BTreeMap<&'a [String], BTreeSet<&'a [String]>>, from: &[String]) -> BTreeSet<&'a [String]> {
    let mut seen = BTreeSet::new();
    let mut next: Vec<&[String]> = graph.get(from).into_iter().flatten().copied().collect();
    while let Some(module) = next.pop() {
        if seen.insert(module) {
            next.extend(graph.get(module).into_iter().flatten().copied());
        }
    }
    seen
}

#[test]
fn every_import_goes_down() {
    let wrong = Source::read().upward();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What goes round inside of a room today. One that ends is taken out of here, and none comes in.
const STANDING: &[&str] = &[
    "a circle: broker, broker::gate, broker::inject, broker::pass, broker::process, broker::proxy, broker::socket, broker::watched, broker::wire",
    "a circle: broker::reach, broker::tunnel",
    "a circle: cell::alone, cell::sweep, cell::uids",
    "a circle: cell::outputs, cell::workspace",
    "a circle: confine, confine::init",
    "a circle: plan, plan::counts",
    "a circle: run::attempt, run::brokered, run::conclude, run::streams",
    "a circle: run::keeper, run::supervise",
    "broker::inject uses broker, which is above it",
    "broker::process uses broker, which is above it",
    "broker::proxy uses broker, which is above it",
    "broker::watched uses broker, which is above it",
    "broker::wire uses broker, which is above it",
    "cell::sweep uses cell, which is above it",
    "confine::init uses confine, which is above it",
    "plan::counts uses plan, which is above it",
    "sys::ids uses sys, which is above it",
    "sys::notify uses sys, which is above it",
];

#[test]
fn inside_a_room_nothing_goes_round() {
    let found = Source::read().circles();
    let new: Vec<&String> = found.iter().filter(|line| !STANDING.contains(&line.as_str())).collect();
    let ended: Vec<&&str> = STANDING.iter().filter(|line| !found.iter().any(|found| found == **line)).collect();
    assert!(new.is_empty() && ended.is_empty(), "new: {new:#?}\nended, to be taken off the list: {ended:#?}");
}

/// A house of two rooms, of these files.
fn house(files: &[(&str, &str)]) -> Source {
    let modules = files.iter().map(|(module, text)| {
        let steps = module.split("::").map(str::to_owned).collect();
        (steps, (format!("src/{}.rs", module.replace("::", "/")), (*text).to_owned()))
    });
    let floors = read_floors("//! | 2 | [`upper`] | what decides |\n//! | 1 | [`lower`] | words |\n");
    Source { modules: modules.collect(), floors }
}

#[test]
fn a_planted_import_is_found() {
    let sound =
        [("upper", "use crate::lower::Word;\npub mod part;"), ("upper::part", ""), ("lower", "pub struct Word;")];
    assert_eq!((house(&sound).upward(), house(&sound).circles()), (vec![], vec![]));
    for (planted, said) in [
        ("use crate::upper::part;", "src/lower.rs:1: lower (floor 1) uses upper::part of upper"),
        ("use crate::{upper::{part as p}};", "src/lower.rs:1: lower (floor 1) uses upper::part of upper"),
        ("fn f() {\n    crate::upper::g();\n}", "src/lower.rs:2: lower (floor 1) uses upper::g of upper"),
        ("fn f() { println!(\"{}\", crate::upper::N); }", "src/lower.rs:1: lower (floor 1) uses upper::N of upper"),
        ("fn f(x: super::upper::T) {}", "src/lower.rs:1: lower (floor 1) uses upper::T of upper"),
    ] {
        let planted = [sound[0], sound[1], ("lower", planted)];
        assert_eq!(house(&planted).upward(), [said]);
    }
    let test = [sound[0], sound[1], ("lower", "#[cfg(test)]\nmod tests { use crate::upper::part; }")];
    assert!(house(&test).upward().is_empty());
}

#[test]
fn a_planted_circle_is_found() {
    let round =
        [("upper", "mod a;\nmod b;"), ("upper::a", "use super::b::B;"), ("upper::b", "use crate::upper::a::A;")];
    assert_eq!(house(&round).circles(), ["a circle: upper::a, upper::b"]);
    let above = [("upper", "pub mod a;"), ("upper::a", "use super::Word;")];
    assert_eq!(house(&above).circles(), ["upper::a uses upper, which is above it"]);
    let nowhere = [("attic", "")];
    assert_eq!(house(&nowhere).upward(), ["src/attic.rs: room attic is on no floor of src/lib.rs"]);
}
