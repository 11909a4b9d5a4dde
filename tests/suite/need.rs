//! A test that needs something of the host says so by name; OUBLIETTE_TEST_MUST_ENFORCE makes its skip a failure.

/// Whether `OUBLIETTE_TEST_MUST_ENFORCE` (comma-separated names, or `all`) names this need.
fn must(name: &str) -> bool {
    let list = std::env::var("OUBLIETTE_TEST_MUST_ENFORCE").unwrap_or_default();
    list.split(',').any(|word| word == name || word == "all")
}

/// Whether the test may go on.
pub fn root() -> bool {
    let there = nix::unistd::geteuid().is_root();
    assert!(there || !must("root"), "this test needs root, and OUBLIETTE_TEST_MUST_ENFORCE names it");
    if !there {
        eprintln!("skipped: needs root");
    }
    there
}
