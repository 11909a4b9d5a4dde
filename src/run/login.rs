//! Reads the file of an agent's own login, of which the token for requests is taken and no more.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use zeroize::Zeroizing;

use crate::policy::agents::login::{Expiry, Keys, Login};
use crate::secret::Secret;
use crate::types::error::{Error, Result};

/// What a login's file says beside the token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// The account's name, of letters, digits and `-_.@` alone.
    pub account: Option<String>,
    /// When the token ends.
    pub expires: Option<SystemTime>,
}

/// Takes the token out of the file of a login. The rest of the file is overwritten in memory before this returns.
///
/// # Errors
/// A file that is no credential file (see [`Secret::read`]), no such JSON, or with a token that has ended.
pub fn read(path: &Path, login: &Login, now: SystemTime) -> Result<(Secret, Told)> {
    let whole = Secret::read_lines(path, "login")?;
    let use_it = || format!("use login file {}", path.display());
    let none = |keys: &Keys| {
        Error::new(use_it(), format!("it has no `{}`", keys.show()))
            .hint(format!("log in with the agent itself, which writes {}; or name a token alone", login.file))
    };
    let text = |keys: &Keys| match find(whole.expose(), keys) {
        Some(Found::Text(text)) if !text.is_empty() => Ok(text),
        _ => Err(none(keys)),
    };
    let token = text(&login.token)?;
    let expires = match &login.expires {
        None => None,
        Some(Expiry::Token) => claimed_end(token),
        Some(Expiry::Milliseconds(keys)) => match find(whole.expose(), keys) {
            Some(Found::Number(end)) => Some(UNIX_EPOCH + Duration::from_millis(end)),
            _ => return Err(none(keys)),
        },
    };
    if let Some(ago) = expires.and_then(|end| now.duration_since(end).ok()) {
        let ago = crate::types::units::Time(Duration::from_secs(ago.as_secs()));
        return Err(Error::new(use_it(), format!("its token ended {ago} ago"))
            .hint("start the agent once outside of a cell: it renews the token. A cell never gets what renews it"));
    }
    let account = match &login.account {
        Some(keys) if login.wants_account() => {
            let account = text(keys)?;
            // It goes into a file that the agent parses.
            if !account.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@".contains(c)) {
                return Err(Error::new(use_it(), format!("`{}` is no name of an account", keys.show()))
                    .hint("log in with the agent itself"));
            }
            Some(account.to_owned())
        }
        _ => None,
    };
    let secret = Secret::copy(token.as_bytes(), &format!("token of login file {}", path.display()))?;
    Ok((secret, Told { account, expires }))
}

/// The end that a JSON Web Token claims. Its middle part without the signature is worth nothing, but is wiped too.
fn claimed_end(token: &str) -> Option<SystemTime> {
    let claims = Zeroizing::new(BASE64URL_NOPAD.decode(token.split('.').nth(1)?.as_bytes()).ok()?);
    let exp = Keys::try_from(vec!["exp".to_owned()]).ok()?;
    match find(&claims, &exp)? {
        Found::Number(seconds) => UNIX_EPOCH.checked_add(Duration::from_secs(seconds)),
        Found::Text(_) => None,
    }
}

/// A value of a JSON text, which lies where the text lies: nothing of a secret is copied.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Found<'a> {
    Text(&'a str),
    Number(u64),
}

fn find<'a>(json: &'a [u8], keys: &Keys) -> Option<Found<'a>> {
    let mut from = serde_json::Deserializer::from_slice(json);
    let found = At(keys.get()).deserialize(&mut from).ok()?;
    from.end().ok().and(found)
}

/// Looks for the value to which the keys lead.
#[derive(Clone, Copy)]
struct At<'k>(&'k [String]);

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = Option<Found<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = Option<Found<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without escapes")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut found = None;
        while let Some(wanted) = map.next_key_seed(Is(self.0.first()))? {
            match (wanted, self.0.split_first()) {
                (true, Some((_, rest))) => found = map.next_value_seed(At(rest))?,
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(found)
    }

    // No token has escapes. A text with one is not borrowed but copied, and an error.
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(self.0.is_empty().then_some(Found::Text(text)))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(self.0.is_empty().then_some(Found::Number(number)))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// Whether a key is this one.
struct Is<'k>(Option<&'k String>);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(self.0.is_some_and(|wanted| wanted == key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(path: &str) -> Keys {
        Keys::try_from(path.split('.').map(str::to_owned).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_value_is_found_by_its_keys_and_by_nothing_else() {
        let json = br#"{"a":{"b":"wrong","token":"right","end":4102444800000},"token":"outer","n":null,"esc":"a\"b"}"#;
        assert_eq!(find(json, &keys("a.token")), Some(Found::Text("right")));
        assert_eq!(find(json, &keys("a.end")), Some(Found::Number(4_102_444_800_000)));
        assert_eq!(find(json, &keys("token")), Some(Found::Text("outer")));
        for absent in ["a", "n", "a.token.x", "b", "a.c", "esc"] {
            assert_eq!(find(json, &keys(absent)), None, "{absent}");
        }
        for broken in ["", "[]", "{\"token\":\"x\"", "{\"token\":\"x\"} more", "\"token\"", "{\"token\":[\"x\"]}"] {
            assert_eq!(find(broken.as_bytes(), &keys("token")), None, "{broken}");
        }
    }

    #[test]
    fn a_web_token_claims_its_end() {
        let token = |claims: &str| format!("e30.{}.c2ln", BASE64URL_NOPAD.encode(claims.as_bytes()));
        let end = UNIX_EPOCH + Duration::from_secs(4_102_444_800);
        assert_eq!(claimed_end(&token(r#"{"iat":1,"exp":4102444800}"#)), Some(end));
        for without in [token("{}"), token("no JSON"), token(r#"{"exp":"soon"}"#), "plain".into(), "a.b".into()] {
            assert_eq!(claimed_end(&without), None, "{without}");
        }
    }
}
