//! What a broker costs an agent's requests: streams and a large answer through it, against the same client in the same
//! cell that asks the server itself, in one run and interleaved.
//!
//! `cargo bench --bench stream`; `-- --quick` only shows that everything can be measured, `-- --strict` ends with status 1
//! when a bar is missed, `-- --markdown` prints for a page. The server is this process, on the loopback.

mod client;
mod server;
#[path = "../launch/stats.rs"]
mod stats;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;

use nix::time::{ClockId, clock_gettime};
use server::Server;
use stats::{Samples, Table, Verdict};

/// In a cell it says what this program is to ask for.
const TASK: &str = "BENCH_TASK";

/// CLOCK_MONOTONIC in nanoseconds: one clock for the server and all cells.
fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap_or_else(|_| unreachable!("every kernel has it"));
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// What one client asks for.
#[derive(Debug, Clone, Copy, Default)]
struct Task {
    streams: usize,
    chunks: usize,
    /// Between two events, in microseconds.
    gap: u64,
    bytes: u64,
}

impl Task {
    fn text(self) -> String {
        format!("{} {} {} {}", self.streams, self.chunks, self.gap, self.bytes)
    }

    fn parse(text: &str) -> Result<Task, String> {
        let numbers: Vec<u64> = text.split(' ').map_while(|word| word.parse().ok()).collect();
        let [streams, chunks, gap, bytes] = numbers[..] else { return Err(format!("`{text}` is no task")) };
        Ok(Task { streams: streams as usize, chunks: chunks as usize, gap, bytes })
    }
}

/// A way from the client to the server.
struct Way {
    label: &'static str,
    network: &'static str,
    tls: bool,
    first: Samples,
    chunk: Samples,
    bulk: Samples,
}

impl Way {
    fn new(label: &'static str, network: &'static str, tls: bool) -> Way {
        Way { label, network, tls, first: Samples::default(), chunk: Samples::default(), bulk: Samples::default() }
    }
}

struct Options {
    rounds: usize,
    bulks: usize,
    streams: usize,
    bytes: u64,
    strict: bool,
    markdown: bool,
}

impl Options {
    fn parse() -> Result<Options, String> {
        let mut options = Options { rounds: 10, bulks: 5, streams: 5, bytes: 1 << 30, strict: false, markdown: false };
        for argument in std::env::args().skip(1) {
            match argument.as_str() {
                // Cargo adds this one.
                "--bench" => {}
                "--quick" => (options.rounds, options.bulks, options.streams, options.bytes) = (1, 1, 1, 64 << 20),
                "--strict" => options.strict = true,
                "--markdown" => options.markdown = true,
                _ => return Err(format!("unknown option {argument}; known: --quick, --strict, --markdown")),
            }
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    if std::env::var_os(TASK).is_some() {
        return report("client", client::run().map(|()| false));
    }
    report("stream", Options::parse().and_then(|options| run(&options)))
}

fn report(who: &str, done: Result<bool, String>) -> ExitCode {
    match done {
        Ok(missed) => u8::from(missed).into(),
        Err(why) => {
            eprintln!("{who}: {why}");
            ExitCode::from(2)
        }
    }
}

/// Measures, prints, and says whether `--strict` is to fail.
fn run(options: &Options) -> Result<bool, String> {
    let bench = Bench::set_up().map_err(|error| format!("cannot set up: {error}"))?;
    let done = measure(options, &bench);
    fs::remove_dir_all(&bench.dir).map_err(|error| format!("cannot remove {}: {error}", bench.dir.display()))?;
    let verdicts = done?;
    println!("\nVerdicts\n");
    for (what, unit, verdict) in &verdicts {
        println!("{} {}", if options.markdown { "-" } else { " " }, verdict.line(what, unit));
    }
    Ok(options.strict && verdicts.iter().any(|(_, _, verdict)| verdict.missed()))
}

type Verdicts = Vec<(&'static str, &'static str, Verdict)>;

fn measure(options: &Options, bench: &Bench) -> Result<Verdicts, String> {
    let mut ways = [
        Way::new("direct", "host", false),
        Way::new("broker", "broker", false),
        Way::new("direct, TLS", "host", true),
        Way::new("broker, TLS to upstream", "broker", true),
    ];
    let streams = Task { streams: options.streams, chunks: 200, gap: 1000, bytes: 0 };
    for _ in 0..options.rounds {
        for way in &mut ways {
            for (word, value) in bench.client(way, streams)?.wait()? {
                if word == "first" { &mut way.first } else { &mut way.chunk }.push(Ok(value));
            }
        }
    }
    let bulk = Task { bytes: options.bytes, ..Task::default() };
    for _ in 0..options.bulks {
        for way in &mut ways {
            for (_, value) in bench.client(way, bulk)?.wait()? {
                way.bulk.push(Ok(value));
            }
        }
    }
    print_ways(options, &ways);
    let memory = bench.memory(&ways[3], bulk)?;
    let mib = |kib: u64| kib as f64 / 1024.0;
    let rows = [("idle, after a request", memory.idle), ("at most, in a large answer", memory.peak)];
    let rows = rows.map(|(name, kib)| (name.to_owned(), vec![format!("{:.1}", mib(kib))]));
    let title = "Memory of launcher and broker, TLS to upstream (RSS)".to_owned();
    print_table(options, Table { title, columns: vec!["MiB"], rows: rows.to_vec() });
    let ratio =
        |a: usize, b: usize| Verdict::ratio(ways[a].bulk.percentile(50), ways[b].bulk.percentile(50), 2.0, false);
    Ok(vec![
        ("time of a large answer through the broker ÷ direct", "", ratio(1, 0)),
        ("the same, TLS", "", ratio(3, 2)),
        ("memory of launcher and broker, idle", " MiB", Verdict::value(Some(mib(memory.idle)), 12.0)),
        ("more of it in a large answer", " MiB", Verdict::value(Some(mib(memory.peak - memory.idle)), 1.0)),
    ])
}

fn print_ways(options: &Options, ways: &[Way]) {
    let micros = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.0}"));
    let row = |way: &Way| {
        let [first, chunk] = [&way.first, &way.chunk];
        let samples = [(first, 50), (first, 99), (chunk, 50), (chunk, 99)];
        let mut values: Vec<String> = samples.map(|(samples, percent)| micros(samples.percentile(percent))).to_vec();
        let rate = way.bulk.percentile(50).map(|micros| options.bytes as f64 / micros);
        values.push(micros(rate));
        (way.label.to_owned(), values)
    };
    let title = format!("{} streams of 200 events, {} MiB", options.rounds * options.streams, options.bytes >> 20);
    let columns = vec!["first byte, µs", "p99", "each event, µs", "p99", "MB/s"];
    print_table(options, Table { title, columns, rows: ways.iter().map(row).collect() });
}

fn print_table(options: &Options, table: Table) {
    println!("\n{}", if options.markdown { table.markdown() } else { table.text() });
}

/// Resident memory of the launcher and its broker, in KiB.
struct Memory {
    idle: u64,
    peak: u64,
}

/// Programs, files and the server.
struct Bench {
    dir: PathBuf,
    server: Server,
}

impl Bench {
    fn set_up() -> Result<Bench, String> {
        let dir = std::env::temp_dir().join(format!("oubliette-stream-{}", std::process::id()));
        let text = |error: std::io::Error| error.to_string();
        fs::DirBuilder::new().mode(0o755).create(&dir).map_err(text)?;
        let bench = Bench { dir, server: Server::start()? };
        // By this name oubliette knows the agent.
        fs::copy(std::env::current_exe().map_err(text)?, bench.path("claude")).map_err(text)?;
        for (name, content) in [("credential", "bench-credential"), ("ca.pem", &bench.server.authority_pem)] {
            fs::write(bench.path(name), content).map_err(text)?;
            fs::set_permissions(bench.path(name), fs::Permissions::from_mode(0o600)).map_err(text)?;
        }
        Ok(bench)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Starts a client in a cell.
    fn client(&self, way: &Way, task: Task) -> Result<Client, String> {
        let upstream = if way.tls { &self.server.tls } else { &self.server.clear };
        let mut command = Command::new(env!("CARGO_BIN_EXE_oubliette"));
        command.args(["run", "--quiet", "--user", "bench", "--level", "developer", "--network", way.network]);
        command.args(["--upstream", upstream, "--setenv", &format!("{TASK}={}", task.text())]);
        if way.tls && way.network == "broker" {
            command.arg("--ca").arg(self.path("ca.pem"));
        } else if way.tls {
            command.args(["--setenv", &format!("{}={}", client::AUTHORITY, self.server.authority_hex)]);
        }
        command.arg("--state-dir").arg(self.path("state")).arg("--credential-file").arg(self.path("credential"));
        command.args(["--agent", "claude", "--"]).arg(self.path("claude"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        command.spawn().map(|child| Client { label: way.label, child }).map_err(|error| error.to_string())
    }

    /// Reads the memory before and during a large answer.
    fn memory(&self, way: &Way, task: Task) -> Result<Memory, String> {
        let mut client = self.client(way, task)?;
        let launcher = client.child.id();
        let out = client.child.stdout.take().ok_or("there is no output")?;
        let mut lines = BufReader::new(out).lines().map_while(Result::ok);
        if !lines.any(|line| line == "rest") {
            return Err(format!("{}: no large answer was asked for", way.label));
        }
        thread::sleep(client::REST / 2);
        let broker = broker_of(launcher)?;
        let idle = resident(launcher, "VmRSS")? + resident(broker, "VmRSS")?;
        if !lines.any(|line| line == "done") {
            return Err(format!("{}: the large answer did not come", way.label));
        }
        let peak = resident(launcher, "VmHWM")? + resident(broker, "VmHWM")?;
        client.wait()?;
        // The launcher's own start can have taken more than it has now.
        Ok(Memory { idle, peak: peak.max(idle) })
    }
}

struct Client {
    label: &'static str,
    child: Child,
}

impl Client {
    /// What it measured, by name.
    fn wait(self) -> Result<Vec<(String, u64)>, String> {
        let output = self.child.wait_with_output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(format!("{}: the run ended with {}", self.label, output.status));
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        Ok(pairs.filter_map(|(word, number)| Some((word.to_owned(), number.parse().ok()?))).collect())
    }
}

/// The child of a launcher's that is its broker.
fn broker_of(launcher: u32) -> Result<u32, String> {
    let processes = fs::read_dir("/proc").map_err(|error| format!("/proc: {error}"))?;
    let numbers = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_it = |&number: &u32| {
        let text = |name: &str| fs::read_to_string(format!("/proc/{number}/{name}")).unwrap_or_default();
        text("cmdline").starts_with("oubliette-broker") && text("status").contains(&format!("\nPPid:\t{launcher}\n"))
    };
    numbers.into_iter().find(is_it).ok_or_else(|| "there is no broker's process".into())
}

/// A size from /proc/PID/status, in KiB.
fn resident(process: u32, name: &str) -> Result<u64, String> {
    let path = format!("/proc/{process}/status");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok());
    number.ok_or_else(|| format!("{path} has no {name}"))
}
