//! How an agent gets its credential, and in which header it sends it.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::policy::names;
use crate::types::network::HeaderName;
use crate::types::paths::HomePath;

/// Where an agent wants its credential.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "WrittenCredential")]
pub struct Credential {
    /// It can do nothing without one.
    pub required: bool,
    /// Ways to hand it over; the first whose prefix fits is taken. All of one kind.
    pub way: Vec<Way>,
}

/// One way to hand a credential over, and the header in which the agent sends it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "Written", rename_all = "kebab-case")]
pub struct Way {
    /// How such a credential begins; empty for any.
    pub prefix: String,
    /// Where the agent finds it.
    #[serde(flatten)]
    pub hand: Hand,
    /// The header in which the agent sends it; without one no broker can put another in its place.
    pub header: Option<HeaderName>,
    /// What comes before it in that header, and a space: `Bearer`.
    pub scheme: String,
    /// How the phantom begins that a broker's cell has instead, where the agent looks at that.
    pub phantom: String,
}

/// Where an agent finds its credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hand {
    /// This variable has the number of a descriptor from which it can be read.
    Descriptor(String),
    /// A file of its HOME holds it.
    File(CredentialFile),
    /// This variable holds it, where every program that the agent starts finds it, too. Only for a broker's phantom,
    /// or where the policy allows it.
    Variable(String),
}

/// A file of HOME that holds the credential.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "WrittenFile")]
pub struct CredentialFile {
    /// Its name.
    pub path: HomePath,
    /// What comes before the credential in it, and what after it.
    pub text: [String; 2],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFile {
    path: HomePath,
    text: String,
}

/// Stands in the text of such a file for the credential.
const CREDENTIAL: &str = "{credential}";

impl TryFrom<WrittenFile> for CredentialFile {
    type Error = String;

    fn try_from(WrittenFile { path, text }: WrittenFile) -> Result<CredentialFile, String> {
        match text.split(CREDENTIAL).collect::<Vec<_>>()[..] {
            [before, after] => Ok(CredentialFile { path, text: [before.to_owned(), after.to_owned()] }),
            _ => Err(format!("the text of `{}` names {CREDENTIAL} not once", path.as_str().escape_debug())),
        }
    }
}

/// As it stands in an agent's file.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Written {
    #[serde(default)]
    prefix: String,
    #[serde(default, deserialize_with = "names::optional_variable")]
    descriptor: Option<String>,
    file: Option<CredentialFile>,
    #[serde(default, deserialize_with = "names::optional_variable")]
    variable: Option<String>,
    header: Option<HeaderName>,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    phantom: String,
}

impl TryFrom<Written> for Way {
    type Error = String;

    fn try_from(written: Written) -> Result<Way, String> {
        let Written { prefix, descriptor, file, variable, header, scheme, phantom } = written;
        let hand = match (descriptor, file, variable) {
            (Some(name), None, None) => Hand::Descriptor(name),
            (None, Some(file), None) => Hand::File(file),
            (None, None, Some(name)) => Hand::Variable(name),
            _ => return Err("a `credential.way` has one of `descriptor`, `file` and `variable`".into()),
        };
        Ok(Way { prefix, hand, header, scheme, phantom })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct WrittenCredential {
    #[serde(default)]
    required: bool,
    #[serde(default)]
    way: Vec<Way>,
}

impl TryFrom<WrittenCredential> for Credential {
    type Error = String;

    /// A plan says how the credential is handed over before anybody has read how it begins.
    fn try_from(WrittenCredential { required, way }: WrittenCredential) -> Result<Credential, String> {
        let kind = |way: &Way| match &way.hand {
            Hand::Descriptor(_) => (0, None),
            Hand::File(file) => (1, Some(file.path.clone())),
            Hand::Variable(_) => (2, None),
        };
        match way.iter().any(|other| kind(other) != kind(&way[0])) {
            true => Err("every `credential.way` of an agent is of one kind, and names the same file".into()),
            false => Ok(Credential { required, way }),
        }
    }
}

impl From<HeaderName> for String {
    fn from(name: HeaderName) -> String {
        name.0.to_string()
    }
}

impl Way {
    /// The header and what comes before the credential in it, for people; nothing without a header.
    pub fn shown(&self) -> Option<String> {
        let header = self.header.as_ref()?.get();
        Some(if self.scheme.is_empty() { header.to_string() } else { format!("{header}: {}", self.scheme) })
    }

    /// The variable that leads the agent to it.
    pub fn variable(&self) -> Option<&String> {
        match &self.hand {
            Hand::Descriptor(name) | Hand::Variable(name) => Some(name),
            Hand::File(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(text: &str) -> Result<Credential, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn a_way_is_one_and_all_are_of_one_kind() {
        let file = |path: &str, text: &str| format!("[[way]]\nfile = {{ path = \"{path}\", text = '{text}' }}\n");
        let sound = file("a/b", "{\"k\":\"{credential}\"}");
        let Hand::File(read) = &credential(&sound).unwrap().way[0].hand else { panic!() };
        assert_eq!(read.text, ["{\"k\":\"", "\"}"]);
        for bad in [
            "[[way]]\n".to_owned(),
            "[[way]]\ndescriptor = \"A\"\nvariable = \"B\"\n".to_owned(),
            file("a", "no place"),
            file("a", "{credential}{credential}"),
            file("../a", "{credential}"),
            "[[way]]\ndescriptor = \"A\"\n[[way]]\nvariable = \"B\"\n".to_owned(),
            sound.clone() + &file("c", "{credential}"),
            "[[way]]\nvariable = \"A=B\"\n".to_owned(),
        ] {
            assert!(credential(&bad).is_err(), "{bad}");
        }
        assert!(credential(&(sound + &file("a/b", "{credential}"))).is_ok());
    }
}
