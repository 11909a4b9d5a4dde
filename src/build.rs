//! Turns the policies and agent files that are compiled in from TOML into JSON: that saves a quarter of the
//! launcher's instructions. What they say is checked by the crate's own types, in its tests and when it runs.
#![forbid(unsafe_code)]

use std::path::Path;

fn main() {
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    for name in [
        "paranoid",
        "balanced",
        "developer",
        "agents/claude",
        "agents/codex",
        "agents/gemini",
        "agents/kimi",
        "agents/kiro",
        "agents/none",
        "agents/opencode",
        "agents/qwen",
        "agents/doctor",
    ] {
        let source = format!("policies/{name}.toml");
        println!("cargo::rerun-if-changed={source}");
        let text = std::fs::read_to_string(&source).unwrap_or_else(|error| panic!("{source}: {error}"));
        let value: toml::Value = toml::from_str(&text).unwrap_or_else(|error| panic!("{source}: {error}"));
        let json = serde_json::to_string(&value).unwrap_or_else(|error| panic!("{source}: {error}"));
        let file = Path::new(&out).join(format!("{name}.json"));
        std::fs::create_dir_all(file.parent().unwrap_or(&file)).expect("make a directory in OUT_DIR");
        std::fs::write(&file, json).expect("write to OUT_DIR");
    }
    // The launcher starts for every run and reads what its caller wrote: a fixed address saves it 20,000 relocations. The
    // broker reads what an agent wrote, and stays as .cargo/config.toml has it. The later word counts for the linker.
    if std::env::var("CARGO_CFG_TARGET_FEATURE")
        .is_ok_and(|features| features.split(',').any(|one| one == "crt-static"))
    {
        println!("cargo::rustc-link-arg-bin=oubliette=-no-pie");
        println!("cargo::rustc-link-arg-bin=oubliette=-static");
    }
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rustc-env=OUBLIETTE_BUILD={:016x}", sum(Path::new("src")));
}

/// A sum of the source (FNV-1a), by which a launcher and a broker of one build know each other.
fn sum(dir: &Path) -> u64 {
    let mut entries: Vec<_> = std::fs::read_dir(dir).expect("read src").map(|entry| entry.expect("an entry")).collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    entries.iter().map(std::fs::DirEntry::path).fold(0xcbf2_9ce4_8422_2325, |so_far, path| {
        let bytes = if path.is_dir() {
            sum(&path).to_le_bytes().to_vec()
        } else {
            std::fs::read(&path).expect("read a source file")
        };
        bytes.iter().fold(so_far, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
    })
}
