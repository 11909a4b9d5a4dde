//! Descriptors, environment, mounts, and what can be reached by a path.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs;

use serde_json::{Map, Value, json};

use crate::doctor::posture::kernel::word;
use crate::sys::fds;

fn text(name: impl AsRef<OsStr>) -> String {
    name.as_ref().to_string_lossy().into_owned()
}

/// Every open descriptor up to 4095: number, what it is, status flags.
pub(super) fn descriptors() -> Value {
    let open = |number: i32| -> Option<Value> {
        let flags = fds::flags(number)?;
        let target = fs::read_link(format!("/proc/self/fd/{number}")).map(text).ok();
        Some(
            json!({ "fd": number, "target": target, "flags": format!("{flags:?}"), "octal": format!("{:o}", flags.bits()) }),
        )
    };
    (0..4096).filter_map(open).collect()
}

/// Names and values.
pub(super) fn environ() -> Value {
    std::env::vars_os().map(|(name, value)| (text(name), json!(text(value)))).collect::<Map<_, _>>().into()
}

/// The working directory, or the errno.
pub(super) fn cwd() -> String {
    nix::unistd::getcwd().map_or_else(|errno| format!("{errno:?}"), text)
}

/// Names in a directory, sorted, or the errno.
pub(super) fn list(dir: &str) -> Value {
    match fs::read_dir(dir) {
        Ok(entries) => {
            let mut names: Vec<_> = entries.flatten().map(|entry| text(entry.file_name())).collect();
            names.sort();
            json!(names)
        }
        Err(error) => json!(word::<()>(Err(error))),
    }
}

/// How the kernel answers for paths that are no agent's: EACCES is Landlock or a mode, ENOENT an empty root.
pub(super) fn outside() -> Value {
    let paths = [
        "/",
        "/root",
        "/home",
        "/etc/shadow",
        "/etc/passwd",
        "/var/lib",
        "/var/tmp",
        "/run",
        "/sys/kernel",
        "/boot",
        "/tmp",
        "/dev/shm",
        "/dev/mem",
        "/proc",
        "/proc/1/environ",
        "/proc/kcore",
        "/proc/keys",
    ];
    paths.iter().map(|path| ((*path).to_owned(), json!(word(fs::File::open(path))))).collect::<Map<_, _>>().into()
}

/// Mount point, type and both sets of options of every mount.
pub(super) fn mounts() -> Value {
    let Ok(table) = fs::read_to_string("/proc/self/mountinfo") else { return Value::Null };
    let parse = |line: &str| -> Option<Value> {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        Some(json!({
            "at": left.get(4)?, "root": left.get(3)?, "options": left.get(5)?, "propagation": left.get(6..)?.join(" "),
            "type": right.first()?, "source": right.get(1)?, "super": right.get(2)?,
        }))
    };
    table.lines().filter_map(parse).collect()
}

/// The lines of a file.
pub(super) fn lines(path: &str) -> Value {
    fs::read_to_string(path).map_or(Value::Null, |text| text.lines().map(str::to_owned).collect())
}

/// Whether there is a controlling terminal, and which of 0, 1, 2 are terminals.
pub(super) fn terminal() -> Value {
    use std::io::IsTerminal;
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let number =
        stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(4)).and_then(|word| word.parse::<i32>().ok());
    json!({
        "open": word(fs::OpenOptions::new().read(true).write(true).open("/dev/tty")),
        "device": number,
        "stdio": [std::io::stdin().is_terminal(), std::io::stdout().is_terminal(), std::io::stderr().is_terminal()],
    })
}

/// Network interfaces with their addresses, or the errno.
pub(super) fn interfaces() -> Value {
    match nix::ifaddrs::getifaddrs() {
        Ok(all) => {
            let mut found: Map<String, Value> = Map::new();
            for interface in all {
                let addresses = found.entry(interface.interface_name).or_insert_with(|| json!([]));
                let address = interface.address.map(|address| address.to_string());
                if let (Some(list), Some(address)) = (addresses.as_array_mut(), address) {
                    list.push(json!(address));
                }
            }
            found.into()
        }
        Err(errno) => json!(format!("{errno:?}")),
    }
}
