//! What agents' files say of a denied class, for agents whose own rules are made out of that: a tool, a path, a command.
#![forbid(unsafe_code)]

use serde::Deserialize;

/// One thing that is denied; `Tool` is the agent's own names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deny<Tool> {
    /// A tool, which then does not exist.
    Tool(Tool),
    /// A path, for the tools that read and write files.
    Path(Place),
    /// A path, for the tools that write.
    Write(Place),
    /// A command line, as a whole or as a part of one.
    Command(Line),
}

/// A command line, where `*` stands for any text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Line(pub(super) String);

/// A path from / on, or the end of one, and what lies below. `*` stands for any text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Place(pub(super) String);

/// Gemini CLI drops expressions of more than 2048 characters; a text of ours may grow by the spelling.
const LONGEST: usize = 200;

impl TryFrom<String> for Line {
    type Error = String;

    fn try_from(text: String) -> Result<Line, String> {
        match text.trim() == text && !text.is_empty() && text.len() <= LONGEST && !text.contains(char::is_control) {
            true => Ok(Line(text)),
            false => Err(format!(
                "`{}` is no command; write one without blanks at the ends, of {LONGEST} bytes at most",
                text.escape_debug()
            )),
        }
    }
}

impl TryFrom<String> for Place {
    type Error = String;

    fn try_from(text: String) -> Result<Place, String> {
        let mut names = text.strip_prefix('/').unwrap_or(&text).split('/');
        let sound = |name: &str| !matches!(name, "" | "." | ".." | "~") && !name.contains(char::is_control);
        match names.all(sound) && text.len() <= LONGEST {
            true => Ok(Place(text)),
            false => Err(format!(
                "`{}` is no path; write one without `.`, `..`, `~` and a slash at the end, of {LONGEST} bytes at most",
                text.escape_debug()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_matches_is_refused() {
        for bad in ["", "/", "a/", "~/.ssh", "../x", "/etc/./x", "a//b"] {
            assert!(Place::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        for bad in ["", " sudo", "ls ", "a\nb", &"x".repeat(LONGEST + 1)] {
            assert!(Line::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
