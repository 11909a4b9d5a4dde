//! The command lines that are compared. Change them here when oubliette's own change.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use oubliette::types::layer::Layer;

use crate::measure::{Job, Start, ask};

/// Who launches.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// In the table: `root` or `user`.
    pub name: &'static str,
    /// The UID to take, where the bench runs as root and the launcher must not.
    pub uid: Option<u32>,
    home: PathBuf,
    state: PathBuf,
    credential: PathBuf,
}

/// Programs and files that everybody may read, whatever the mode of the directory that this repository lies in.
pub struct Stage {
    dir: PathBuf,
    oubliette: String,
    agent: String,
    off: String,
}

/// Which layers oubliette uses in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// What remains when a policy file switches every layer off.
    PermissionOnly,
    /// Every layer, the network namespace included.
    All,
    /// Every layer, on the host's network.
    HostNetwork,
    /// Every layer, with a broker that the agent does not ask for anything.
    Broker,
}

impl Stage {
    /// Copies the programs, compiles the agent and writes the policy.
    pub fn set_up(oubliette: &Path) -> io::Result<Stage> {
        let dir = std::env::temp_dir().join(format!("oubliette-bench-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o755).create(&dir)?;
        let stage = Stage {
            oubliette: text(&dir.join("oubliette")),
            // By this name oubliette knows the agent.
            agent: text(&dir.join("claude")),
            off: text(&dir.join("off.toml")),
            dir,
        };
        fs::copy(oubliette, &stage.oubliette)?;
        // A build of before has none.
        let broker = oubliette.with_file_name("oubliette-broker");
        if broker.exists() {
            fs::copy(broker, stage.dir.join("oubliette-broker"))?;
        }
        fs::set_permissions(&stage.oubliette, fs::Permissions::from_mode(0o755))?;
        compile_agent(&stage.agent)?;
        let mut policy = String::from("description = \"every layer off\"\ndeny = []\ncommands = \"any\"\n\n[layers]\n");
        for layer in Layer::ALL {
            policy += &format!("{layer} = \"off\"\n");
        }
        fs::write(&stage.off, policy)?;
        fs::set_permissions(&stage.off, fs::Permissions::from_mode(0o644))?;
        Ok(stage)
    }

    /// A launcher with a HOME, a state directory and a credential of its own.
    pub fn launcher(&self, name: &'static str, uid: Option<u32>) -> io::Result<Launcher> {
        let home = self.dir.join(name);
        let base = in_memory().unwrap_or(&self.dir);
        let state = base.join(format!("oubliette-bench-{}-{name}", std::process::id()));
        let credential = home.join("credential");
        for dir in [&home, &state] {
            fs::DirBuilder::new().mode(0o700).create(dir)?;
        }
        fs::write(&credential, "bench-credential")?;
        fs::set_permissions(&credential, fs::Permissions::from_mode(0o600))?;
        for path in [&home, &state, &credential] {
            chown(path, uid, uid)?;
        }
        Ok(Launcher { name, uid, home, state, credential })
    }

    /// A bare start of the agent.
    pub fn bare(&self, who: &Launcher, start: Start) -> Job {
        Job { start, argv: vec![self.agent.clone()], home: who.home.clone() }
    }

    /// A start of the launcher that does nothing.
    pub fn version(&self, who: &Launcher) -> Job {
        self.job(who, vec![self.oubliette.clone(), "--version".into()])
    }

    /// A run of oubliette; `tenant` tells users apart, so that no limit per user is met by many runs at once.
    pub fn cell(&self, who: &Launcher, cell: Cell, tenant: usize) -> Job {
        let mut argv = words(&[&self.oubliette, "run", "--quiet", "--user", &format!("bench-{tenant}")]);
        argv.extend(words(&["--state-dir", &text(&who.state), "--credential-file", &text(&who.credential)]));
        match cell {
            Cell::PermissionOnly => argv.extend(words(&["--policy", &self.off, "--network", "host"])),
            Cell::All => argv.extend(words(&["--level", "developer", "--network", "none"])),
            Cell::HostNetwork => argv.extend(words(&["--level", "developer", "--network", "host"])),
            Cell::Broker => {
                let upstream = ["--upstream", "http://127.0.0.1:9"];
                argv.extend(words(&["--level", "developer", "--network", "broker"]));
                argv.extend(words(&upstream));
            }
        }
        argv.extend(words(&["--setenv", "BENCH_CELL=1", "--agent", "claude", "--", &self.agent]));
        self.job(who, argv)
    }

    /// What the host offers, for every level.
    pub fn doctor(&self, who: &Launcher) -> Job {
        self.job(who, words(&[&self.oubliette, "doctor", "--state-dir", &text(&who.state)]))
    }

    /// A run of every layer with its report on standard output.
    pub fn reported(&self, who: &Launcher) -> Job {
        let mut job = self.cell(who, Cell::All, 0);
        job.argv.splice(2..2, words(&["--report-fd", "1"]));
        job
    }

    /// bwrap with every namespace it has and a new root of `mounts` mounts.
    ///
    /// # Errors
    /// bwrap is absent or fails, or a new root of that size cannot be made.
    pub fn bwrap(&self, who: &Launcher, mounts: usize) -> Result<Job, String> {
        let options = [
            "--proc /proc",
            "--tmpfs /tmp",
            "--ro-bind /usr /usr",
            "--dev-bind /dev/null /dev/null",
            "--dev-bind /dev/zero /dev/zero",
            "--dev-bind /dev/full /dev/full",
            "--dev-bind /dev/random /dev/random",
            "--dev-bind /dev/urandom /dev/urandom",
            "--dev-bind /dev/tty /dev/tty",
            "--tmpfs /home",
            "--tmpfs /dev/shm",
            "--ro-bind /etc /etc",
        ];
        let mut options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        // More mounts than these are more of the same.
        options.extend((0..mounts).map(|number| format!("--ro-bind /usr/bin /m{number}")));
        let job = |count: usize| {
            let mut argv = words(&["bwrap", "--unshare-all", "--new-session", "--die-with-parent"]);
            argv.extend(words(&["--ro-bind", &self.agent, "/agent"]));
            argv.extend(options[..count].iter().flat_map(|option| option.split(' ').map(str::to_owned)));
            argv.extend(words(&["--", "/agent"]));
            self.job(who, argv)
        };
        let base = count_mounts(who, &job(1))?;
        let wanted = (mounts + 1).saturating_sub(base).clamp(1, options.len());
        if mounts == 0 {
            return Err("oubliette's cell has no /proc/self/mountinfo to count".into());
        }
        let job = job(wanted);
        let count = count_mounts(who, &job)?;
        if count == mounts { Ok(job) } else { Err(format!("its new root has {count} mounts, not {mounts}")) }
    }

    /// No launcher at all: the agent in a tmpfs of its own mount namespace, which the kernel frees when it ends.
    pub fn kernel_alone(&self, who: &Launcher) -> Job {
        self.job(who, vec![self.agent.clone(), "private".into()])
    }

    fn job(&self, who: &Launcher, argv: Vec<String>) -> Job {
        Job { start: Start::Spawn, argv, home: who.home.clone() }
    }

    /// Removes what the bench made.
    pub fn remove(&self, launchers: &[Launcher]) {
        for dir in launchers.iter().map(|who| &who.state).chain([&self.dir]) {
            if let Err(error) = fs::remove_dir_all(dir) {
                eprintln!("launch: cannot remove {}: {error}", dir.display());
            }
        }
    }

    /// Size of oubliette's file in bytes.
    pub fn size(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.oubliette)?.len())
    }
}

/// Where a state directory usually is: on a tmpfs that this user can write to.
fn in_memory() -> Option<&'static Path> {
    let tmpfs = |path: &Path| {
        use nix::sys::statfs::{TMPFS_MAGIC, statfs};
        statfs(path).is_ok_and(|stat| stat.filesystem_type() == TMPFS_MAGIC)
            && nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok()
    };
    ["/run", "/dev/shm"].map(Path::new).into_iter().find(|path| tmpfs(path))
}

/// How many mounts the agent sees.
///
/// # Errors
/// What the launcher said when it failed.
pub fn count_mounts(who: &Launcher, job: &Job) -> Result<usize, String> {
    ask(who.uid, || job.output(&["mounts"])).map(|text| text.lines().count())
}

/// A static program as a C compiler would make it; only what building this crate needed anyway is used.
fn compile_agent(to: &str) -> io::Result<()> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/launch/agent.rs");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let mut command = std::process::Command::new(rustc);
    command.args(["--edition=2024", "-Copt-level=2", "-Cpanic=abort", "-Cstrip=symbols"]);
    command.args(["-Ctarget-feature=+crt-static", "-Crelocation-model=static", "-o", to, source]);
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
