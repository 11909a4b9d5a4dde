//! A file of MCP servers, which may hold tokens: an error says where it is wrong, and nothing that it says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oubliette::policy::agents::mcp::Servers;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Servers::parse(text.to_owned(), "use it") {
        Ok(servers) => assert_eq!(servers.text, text),
        Err(error) => {
            let error = error.to_string();
            let known = [
                "cannot use it: it has another form (line N column N)",
                "cannot use it: it is no JSON (line N column N)",
            ];
            let numbers = error.split(|c: char| c.is_ascii_digit()).filter(|part| !part.is_empty()).collect::<Vec<_>>();
            let name = error
                .strip_prefix("cannot use it: `")
                .and_then(|rest| rest.strip_suffix("` cannot be the name of a server"));
            assert!(name.is_some() || known.contains(&numbers.join("N").as_str()), "{error}");
            assert!(!name.unwrap_or_default().contains(char::is_control), "{error:?}");
        }
    }
});
