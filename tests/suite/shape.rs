//! The shape of the source, measured on its syntax tree: long functions give a reason, unsafe code is in one place.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Block, Expr, Lit, Meta};

use crate::need::{files, short};

/// A function of more lines than this needs a doc line that begins with [`REASON`].
const LIMIT: usize = 60;
const REASON: &str = "Long because";

/// One function: its name, the lines from `fn` to the closing brace, and whether its doc says why it is long.
struct Function {
    name: String,
    lines: usize,
    excused: bool,
}

#[derive(Default)]
struct Functions(Vec<Function>);

impl Functions {
    fn add(&mut self, name: String, signature: Span, block: &Block, attributes: &[Attribute]) {
        let lines = block.span().end().line - signature.start().line + 1;
        self.0.push(Function { name, lines, excused: doc(attributes).contains(REASON) });
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.add(item.sig.ident.to_string(), item.sig.span(), &item.block, &item.attrs);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.add(item.sig.ident.to_string(), item.sig.span(), &item.block, &item.attrs);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.add(item.sig.ident.to_string(), item.sig.span(), block, &item.attrs);
        }
        visit::visit_trait_item_fn(self, item);
    }
}

/// The text of the doc comments among these attributes.
fn doc(attributes: &[Attribute]) -> String {
    let mut text = String::new();
    for attribute in attributes {
        if let Meta::NameValue(pair) = &attribute.meta
            && pair.path.is_ident("doc")
            && let Expr::Lit(literal) = &pair.value
            && let Lit::Str(line) = &literal.lit
        {
            let _ = writeln!(text, "{}", line.value());
        }
    }
    text
}

fn parse(path: &Path) -> syn::File {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn functions(file: &syn::File) -> Vec<Function> {
    let mut functions = Functions::default();
    functions.visit_file(file);
    functions.0
}

/// Lines on which the keyword `unsafe` stands, inside macros too; comments and names like `unsafe_code` do not count.
fn unsafe_lines(tokens: TokenStream, lines: &mut Vec<usize>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => unsafe_lines(group.stream(), lines),
            TokenTree::Ident(ident) if ident == "unsafe" => lines.push(ident.span().start().line),
            _ => {}
        }
    }
}

fn rust_files() -> Vec<std::path::PathBuf> {
    ["src", "tests", "benches", "fuzz"].into_iter().flat_map(|dir| files(dir, &[".rs"])).collect()
}

#[test]
fn a_function_over_60_lines_says_why() {
    let mut long = String::new();
    for path in rust_files() {
        for function in functions(&parse(&path)) {
            if function.lines > LIMIT && !function.excused {
                let _ = writeln!(long, "{}: `{}` has {} lines", short(&path), function.name, function.lines);
            }
        }
    }
    assert!(long.is_empty(), "split these, or begin a doc line with `{REASON}`:\n{long}");
}

#[test]
fn the_length_is_that_of_the_whole_function() {
    let text = "/// Long because it is a test.\nfn a(\n    b: u8,\n) {\n    let _ = b;\n    // a comment\n\n}\n\
                trait T {\n    fn c() {\n    }\n    fn d();\n}\nimpl U {\n    fn e() { fn f() {} }\n}";
    let found = functions(&syn::parse_file(text).expect("valid Rust"));
    let found: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.lines, f.excused)).collect();
    assert_eq!(found, [("a", 7, true), ("c", 2, false), ("e", 1, false), ("f", 1, false)]);
}

#[test]
fn unsafe_code_is_in_src_sys_only() {
    let mut wrong = String::new();
    for path in files("src", &[".rs"]) {
        let name = short(&path);
        if name == "src/sys.rs" || name.starts_with("src/sys/") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source file");
        let mut lines = Vec::new();
        unsafe_lines(text.parse().expect("valid tokens"), &mut lines);
        for line in lines {
            let _ = writeln!(wrong, "{name}:{line}: unsafe");
        }
        // In lib.rs the attribute would reach src/sys too.
        if name != "src/lib.rs" && !text.contains("#![forbid(unsafe_code)]") {
            let _ = writeln!(wrong, "{name}: does not begin with #![forbid(unsafe_code)]");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_keyword_is_found_inside_macros_and_not_in_comments() {
    let text = "// unsafe\n/// unsafe\nfn a() { m!({ unsafe { b() } }); }\n#[unsafe(no_mangle)]\nfn unsafe_c() { \"unsafe\"; }";
    let mut lines = Vec::new();
    unsafe_lines(text.parse().expect("valid tokens"), &mut lines);
    assert_eq!(lines, [3, 4]);
}

/// Words that have no place in the repository, in halves so that this file does not contain them.
const WORDS: [(&str, &str, &str); 8] = [
    ("TO", "DO", "finish it or write it into an issue"),
    ("FIX", "ME", "finish it or write it into an issue"),
    ("black", "list", "say deny list"),
    ("white", "list", "say allow list"),
    ("sha", "red/", "it names a file outside of the repository"),
    ("layers", ".md", "it names a file outside of the repository"),
    ("agents", ".md", "it names a file outside of the repository"),
    ("design", ".md", "it names a file outside of the repository"),
];

#[test]
fn no_file_contains_a_word_that_is_out_of_place() {
    let mut wrong = String::new();
    for path in files(".", &[]) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            for (first, second, why) in WORDS {
                let word = format!("{first}{second}");
                // Part of a longer name is another word.
                let mut hits = line.match_indices(&word).map(|(at, _)| line[..at].chars().next_back());
                if hits.any(|before| before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '-')) {
                    let _ = writeln!(wrong, "{}:{}: {word}: {why}", short(&path), number + 1);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
