//! Man page and completions are made from the command line's definition and checked in.
//!
//! `OUBLIETTE_BLESS=1 cargo test generated` writes them; without it the test compares and says which line differs first.

use std::fs;
use std::process::Command as Process;

use clap::builder::PossibleValuesParser;
use clap::{Arg, Command, CommandFactory};
use clap_complete::Shell;
use oubliette::request::args::Cli;
use oubliette::types::layer::Layer;

use crate::need::{need_program, root};

const BLESS: &str = "OUBLIETTE_BLESS";

/// The command line as a newcomer sees it: without the subcommands that only the project's own tests use.
fn visible() -> Command {
    let full = Cli::command();
    let mut command = Command::new("oubliette").version(env!("CARGO_PKG_VERSION"));
    command = command.about(full.get_about().cloned().unwrap_or_default());
    command = command.disable_help_subcommand(true).args(full.get_arguments().cloned());
    for subcommand in full.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        command = command.subcommand(subcommand.clone());
    }
    command
}

/// Adds the words that a shell can suggest where the definition takes any text.
fn suggest(command: Command) -> Command {
    let mut layers = vec!["all"];
    layers.extend(Layer::ALL.iter().map(|layer| layer.name()));
    let suggestions = [
        ("require", layers),
        ("level", vec!["paranoid", "balanced", "developer"]),
        ("agent", vec!["claude", "codex", "gemini", "kimi", "kiro", "none", "opencode", "qwen"]),
    ];
    suggestions.into_iter().fold(command, |command, (id, words)| {
        let there = command.get_arguments().any(|arg| arg.get_id() == id);
        if there { command.mut_arg(id, |arg| arg.value_parser(PossibleValuesParser::new(words))) } else { command }
    })
}

fn completion(shell: Shell) -> String {
    let names: Vec<String> = visible().get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let mut command = names.iter().fold(visible(), |command, name| command.mut_subcommand(name, suggest));
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, "oubliette", &mut text);
    String::from_utf8(text).expect("completions are UTF-8")
}

/// `man/oubliette.1`: the prose of `man/parts/oubliette.1` with the generated options in it.
fn man_page() -> String {
    let template = fs::read_to_string(root().join("man/parts/oubliette.1")).expect("man/parts/oubliette.1");
    let commands = visible().get_subcommands().map(|command| man_command(command, "oubliette")).collect::<String>();
    let note = ".\\\" Made from man/parts/oubliette.1 by tests/suite/generated.rs: edit that file.\n\
                .\\\" clap_mangen writes an apostrophe as this string.\n.ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";
    assert!(template.contains("@COMMANDS@\n"), "man/parts/oubliette.1 has no place for the commands");
    let page = template.replace("@VERSION@", env!("CARGO_PKG_VERSION")).replace("@COMMANDS@\n", &commands);
    format!("{note}{}", code(&page))
}

/// The section of one subcommand, or those of its own subcommands.
fn man_command(command: &Command, parent: &str) -> String {
    let name = format!("{parent} {}", command.get_name());
    let below: String = command.get_subcommands().map(|sub| man_command(sub, &name)).collect();
    if !below.is_empty() {
        return below;
    }
    let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string).unwrap_or_default();
    let mut text = format!(".SS {name}{}\n", positionals(command));
    for line in about.lines() {
        text += &if line.trim().is_empty() { ".PP\n".to_owned() } else { format!("{}\n", sentence(&escape(line))) };
    }
    text + &options(command)
}

/// ` COMMAND` and the like, for the heading.
fn positionals(command: &Command) -> String {
    let name = |arg: &Arg| arg.get_value_names().map_or_else(String::new, |names| names.join(" "));
    command
        .get_positionals()
        .map(|arg| if arg.is_last_set() { format!(" \\-\\- {}...", name(arg)) } else { format!(" {}", name(arg)) })
        .collect()
}

/// The options as `clap_mangen` renders them, with its sections turned into paragraphs' heads.
fn options(command: &Command) -> String {
    let run = Cli::command().find_subcommand("run").expect("run").clone();
    let own = |arg: &&Arg| {
        let same = |other: &Arg| other.get_id() == arg.get_id() && other.get_help_heading() == arg.get_help_heading();
        !arg.is_positional() && (command.get_name() == "run" || !run.get_arguments().any(same))
    };
    let mut bare = Command::new("options").disable_help_flag(true).disable_version_flag(true);
    bare = bare.args(command.get_arguments().filter(own).cloned());
    let mut text = String::new();
    if command.get_arguments().any(|arg| arg.get_id() == "command") && command.get_name() != "run" {
        text += ".PP\nIt takes the options of\n.BR \"oubliette run\" ,\nand:\n";
    }
    let mut rendered = Vec::new();
    clap_mangen::Man::new(bare).render_options_section(&mut rendered).expect("writing to memory");
    for line in String::from_utf8(rendered).expect("roff is UTF-8").lines() {
        match line.strip_prefix(".SH ") {
            // The only section that has no heading of its own in the definition.
            Some("OPTIONS") => {}
            Some(heading) => text += &format!(".PP\n.I {}\n", sentence(&heading.trim_matches('"').to_lowercase())),
            // The preamble of a page of its own.
            None if line.starts_with(".ie ") || line.starts_with(".el ") => {}
            None => text += &format!("{line}\n"),
        }
    }
    text
}

/// `word` in backticks becomes bold: a page of roff has no backticks.
fn code(text: &str) -> String {
    let line = |line: &str| -> String {
        let bold =
            |(index, part): (usize, &str)| if index % 2 == 1 { format!("\\fB{part}\\fR") } else { part.to_owned() };
        line.split('`').enumerate().map(bold).collect()
    };
    text.lines().map(|text| line(text) + "\n").collect()
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

/// Compares, or writes when asked to.
fn check(file: &str, wanted: &str) {
    let path = root().join(file);
    let found = fs::read_to_string(&path).unwrap_or_default();
    if found == wanted {
        return;
    }
    if std::env::var_os(BLESS).is_some() {
        fs::write(&path, wanted).unwrap_or_else(|error| panic!("cannot write {file}: {error}"));
        return;
    }
    let same = found.lines().zip(wanted.lines()).take_while(|(found, wanted)| found == wanted).count();
    let line = |text: &str| text.lines().nth(same).unwrap_or("(end of file)").to_owned();
    panic!(
        "{file} is not what the command line says, from line {}:\n- {}\n+ {}\nhint: {BLESS}=1 cargo test generated",
        same + 1,
        line(&found),
        line(wanted)
    );
}

#[test]
fn man_page_is_generated() {
    check("man/oubliette.1", &man_page());
}

#[test]
fn bash_completion_is_generated() {
    check("completions/oubliette.bash", &completion(Shell::Bash));
}

#[test]
fn zsh_completion_is_generated() {
    check("completions/_oubliette", &completion(Shell::Zsh));
}

#[test]
fn fish_completion_is_generated() {
    check("completions/oubliette.fish", &completion(Shell::Fish));
}

#[test]
fn generated_files_do_not_show_hidden_subcommands() {
    for text in [man_page(), completion(Shell::Bash), completion(Shell::Zsh), completion(Shell::Fish)] {
        for hidden in Cli::command().get_subcommands().filter(|command| command.is_hide_set()) {
            assert!(!text.contains(hidden.get_name()), "{} is hidden", hidden.get_name());
        }
    }
}

#[test]
fn generated_completions_are_valid_for_their_shells() {
    let files = [
        ("bash", "completions/oubliette.bash"),
        ("zsh", "completions/_oubliette"),
        ("fish", "completions/oubliette.fish"),
    ];
    for (shell, file) in files {
        let Some(program) = need_program(shell) else { continue };
        let output = Process::new(program).arg("-n").arg(root().join(file)).output().expect("start the shell");
        assert!(output.status.success() && output.stderr.is_empty(), "{file}: {output:?}");
    }
}

#[test]
fn generated_man_page_names_every_option() {
    let page = man_page().replace("\\-", "-");
    for command in visible().get_subcommands() {
        for long in command.get_arguments().filter_map(Arg::get_long) {
            assert!(
                page.contains(&format!("--{long}")),
                "--{long} of {} is not in man/oubliette.1",
                command.get_name()
            );
        }
    }
}

#[test]
fn man_pages_have_no_mistakes_in_their_markup() {
    let Some(groff) = need_program("groff") else { return };
    for file in ["man/oubliette.1", "man/oubliette-policy.5"] {
        let mut command = Process::new(&groff);
        let output = command.args(["-man", "-Tutf8", "-Kutf8", "-ww", "-z"]).arg(root().join(file)).output();
        let output = output.expect("start groff");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{file}:\n{said}");
    }
}

#[test]
fn every_layer_is_in_the_policy_page() {
    let page = fs::read_to_string(root().join("man/oubliette-policy.5")).expect("man/oubliette-policy.5");
    let page = page.replace("\\-", "-");
    for layer in Layer::ALL {
        assert!(page.contains(&format!(".B {layer}\n")), "{layer} is not in man/oubliette-policy.5");
    }
}
