//! What a launch costs, against fork+exec and against bwrap, in one run and interleaved.
//!
//! `cargo bench --bench launch` measures for about a minute; `-- --quick` only shows that everything can be measured;
//! `-- --strict` ends with status 1 when a bar is missed; `-- --binary FILE` measures another build; `-- --markdown`
//! prints for a page.
//! Root is needed for the rows of a root launcher, bwrap for the rows to compare with, strace to count directory reads;
//! what is absent is said at the end. Other load on the machine disturbs: compare ratios, and p10 before the median.

mod cells;
mod measure;
mod stats;

use std::io::{Read, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use cells::{Cell, Launcher, Stage};
use measure::{Job, Start, Worker};
use stats::{Samples, Table, Verdict};

/// A UID that owns nothing.
const PLAIN_USER: u32 = 50001;
const FILES: u32 = 20_000;
/// The only row without an agent.
const VERSION: &str = "oubliette --version";

struct Options {
    rounds: usize,
    wipes: usize,
    burst: u32,
    bursts: usize,
    strict: bool,
    markdown: bool,
    binary: PathBuf,
}

impl Options {
    fn parse() -> Result<Options, String> {
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_oubliette"));
        let mut options =
            Options { rounds: 150, wipes: 7, burst: 60, bursts: 5, strict: false, markdown: false, binary };
        let mut arguments = std::env::args_os().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.to_str() {
                // Cargo adds this one.
                Some("--bench") => {}
                Some("--quick") => {
                    (options.rounds, options.wipes, options.burst, options.bursts) = (10, 1, 5, 1);
                }
                Some("--strict") => options.strict = true,
                Some("--markdown") => options.markdown = true,
                Some("--binary") => options.binary = arguments.next().ok_or("--binary needs a file")?.into(),
                _ => {
                    return Err(format!(
                        "unknown option {argument:?}; known: --quick, --strict, --markdown, --binary FILE"
                    ));
                }
            }
        }
        Ok(options)
    }
}

/// What a row measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Whole,
    ToMain,
    AfterAgent(u32),
    AfterKill(u32),
    Doctor,
    Probe,
}

/// One line of a table.
struct Row {
    label: String,
    launcher: usize,
    what: What,
    job: Job,
    samples: Samples,
}

struct Bench {
    options: Options,
    stage: Stage,
    launchers: Vec<Launcher>,
    rows: Vec<Row>,
    /// What could not be measured, and why.
    skipped: Vec<String>,
    verdicts: Vec<(String, &'static str, Verdict)>,
}

fn main() -> ExitCode {
    match Options::parse().and_then(run) {
        Ok(missed) if missed => ExitCode::FAILURE,
        Ok(_) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("launch: {why}");
            ExitCode::from(2)
        }
    }
}

/// Measures, prints, and says whether `--strict` is to fail.
fn run(options: Options) -> Result<bool, String> {
    let stage = Stage::set_up(&options.binary).map_err(|error| format!("cannot set up: {error}"))?;
    let mut bench = Bench { options, stage, launchers: vec![], rows: vec![], skipped: vec![], verdicts: vec![] };
    let outcome = bench.measure();
    bench.stage.remove(&bench.launchers);
    outcome?;
    let item = if bench.options.markdown { "-" } else { " " };
    println!("\nVerdicts (p10 of one interleaved run)\n");
    for (what, unit, verdict) in &bench.verdicts {
        println!("{item} {}", verdict.line(what, unit));
    }
    for why in &bench.skipped {
        println!("{item} skipped  {why}");
    }
    Ok(bench.options.strict && bench.verdicts.iter().any(|(_, _, verdict)| verdict.missed()))
}

impl Bench {
    fn measure(&mut self) -> Result<(), String> {
        let root = nix::unistd::geteuid().is_root();
        let mut wanted = vec![("user", root.then_some(PLAIN_USER))];
        if root {
            wanted.insert(0, ("root", None));
        } else {
            self.skipped.push("rows of a root launcher: the bench does not run as root".into());
        }
        for (name, uid) in wanted {
            self.launchers.push(self.stage.launcher(name, uid).map_err(|error| error.to_string())?);
        }
        self.collect_rows();
        self.sample(&[What::Whole, What::ToMain], self.options.rounds)?;
        self.print_launches();
        self.sample(&[What::AfterAgent(0), What::AfterAgent(FILES), What::AfterKill(FILES)], self.options.wipes)?;
        self.print_wipes();
        self.sample(&[What::Doctor, What::Probe], self.options.rounds)?;
        self.print_looks();
        self.count_directory_reads();
        self.print_rates();
        self.print_memory();
        self.print_size();
        Ok(())
    }

    fn add(&mut self, label: &str, launcher: usize, what: What, job: Job) {
        let label = format!("{label}, {}", self.launchers[launcher].name);
        self.rows.push(Row { label, launcher, what, job, samples: Samples::default() });
    }

    /// Every row that works here; a first try says which do.
    fn collect_rows(&mut self) {
        for index in 0..self.launchers.len() {
            let who = self.launchers[index].clone();
            self.add("fork+exec", index, What::Whole, self.stage.bare(&who, Start::Fork));
            self.add("posix_spawn", index, What::Whole, self.stage.bare(&who, Start::Spawn));
            self.add(VERSION, index, What::Whole, self.stage.version(&who));
            self.add("doctor", index, What::Doctor, self.stage.doctor(&who));
            self.add("probing in a run", index, What::Probe, self.stage.reported(&who));
            for (label, cell) in [
                ("permission-only", Cell::PermissionOnly),
                ("all layers, host network", Cell::HostNetwork),
                ("all layers", Cell::All),
                ("all layers, broker", Cell::Broker),
            ] {
                let job = self.stage.cell(&who, cell, 0);
                self.add(label, index, What::Whole, job.clone());
                self.add(label, index, What::ToMain, job.clone());
                if cell == Cell::PermissionOnly || cell == Cell::All {
                    for what in [What::AfterAgent(0), What::AfterAgent(FILES), What::AfterKill(FILES)] {
                        self.add(label, index, what, job.clone());
                    }
                }
            }
            if who.uid.is_none() && nix::unistd::geteuid().is_root() {
                self.add("the kernel alone", index, What::AfterAgent(FILES), self.stage.kernel_alone(&who));
            }
            let mounts = cells::count_mounts(&who, &self.stage.cell(&who, Cell::All, 0));
            match mounts.and_then(|count| Ok((count, self.stage.bwrap(&who, count)?))) {
                Ok((count, job)) => {
                    println!("{}: oubliette's root has {count} mounts, bwrap gets as many", who.name);
                    self.add("bwrap --unshare-all", index, What::Whole, job.clone());
                    self.add("bwrap --unshare-all", index, What::ToMain, job);
                }
                Err(why) => self.skipped.push(format!("bwrap, {}: {why}", who.name)),
            }
        }
        let launchers = &self.launchers;
        let skipped = &mut self.skipped;
        self.rows.retain(|row| {
            // Their own first sample says whether they work.
            if matches!(row.what, What::Doctor | What::Probe) {
                return true;
            }
            let tried = try_job(&launchers[row.launcher], &row.job, !row.label.starts_with(VERSION));
            if let Err(why) = &tried
                && row.what == What::Whole
            {
                skipped.push(format!("{}: {why}", row.label));
            }
            tried.is_ok()
        });
    }

    /// Takes `rounds` samples of every row of these kinds: one of each row in turn, from the start again every round.
    fn sample(&mut self, kinds: &[What], rounds: usize) -> Result<(), String> {
        let mut workers = Vec::new();
        for who in &self.launchers {
            let rows = &self.rows;
            let worker = Worker::start(who.uid, |from, to| {
                let mut index = [0u8; 4];
                while from.read_exact(&mut index).is_ok() {
                    // An index past the end says stop: the end of the pipe does not, later workers hold it open too.
                    let Some(row) = rows.get(u32::from_ne_bytes(index) as usize) else { return };
                    let answer = once(row).map_err(|error| error.to_string());
                    let line = answer.map_or_else(|why| format!("-{}", why.replace('\n', " ")), |n| n.to_string());
                    let _ = to.write_all(format!("{line}\n").as_bytes());
                }
            });
            workers.push(worker.map_err(|error| error.to_string())?);
        }
        // The first round warms caches and is not counted.
        for round in 0..=rounds {
            for (index, row) in self.rows.iter_mut().enumerate() {
                if !kinds.contains(&row.what) || row.samples.failed.is_some() {
                    continue;
                }
                let worker = &mut workers[row.launcher];
                let number = u32::try_from(index).map_err(|error| error.to_string())?;
                worker.input.write_all(&number.to_ne_bytes()).map_err(|error| error.to_string())?;
                let line = read_line(&mut worker.output);
                let result = line.parse::<u64>().map_err(|_| line.trim_start_matches('-').to_owned());
                if round > 0 || result.is_err() {
                    row.samples.push(result);
                }
            }
        }
        for mut worker in workers {
            worker.input.write_all(&u32::MAX.to_ne_bytes()).map_err(|error| error.to_string())?;
            worker.end();
        }
        for row in &self.rows {
            if let Some(why) = row.samples.failed.as_ref().filter(|_| kinds.contains(&row.what)) {
                self.skipped.push(format!("{} ({:?}): {why}", row.label, row.what));
            }
        }
        Ok(())
    }

    /// A percentile of a row in microseconds.
    fn micros(&self, label: &str, launcher: usize, what: What, percent: usize) -> Option<f64> {
        let label = format!("{label}, {}", self.launchers[launcher].name);
        self.rows.iter().find(|row| row.label == label && row.what == what)?.samples.percentile(percent)
    }

    fn print(&self, title: String, columns: &[&'static str], rows: Vec<(String, Vec<String>)>) {
        let table = Table { title, columns: columns.to_vec(), rows };
        println!("\n{}", if self.options.markdown { table.markdown() } else { table.text() });
    }

    fn print_launches(&mut self) {
        let title = format!("Launch of a static `true`, {} rounds, µs", self.options.rounds);
        let mut rows = Vec::new();
        for what in [What::Whole, What::ToMain] {
            let heading = if what == What::Whole { "*whole, wipe included*" } else { "*until the agent's main*" };
            rows.push((heading.to_owned(), Vec::new()));
            for row in self.rows.iter().filter(|row| row.what == what) {
                let ratio = |base: &str, base_what: What| {
                    let base = self.micros(base, row.launcher, base_what, 10);
                    row.samples.percentile(10).zip(base).map_or("-".into(), |(a, b)| format!("{:.2}", a / b))
                };
                let micros =
                    |percent| row.samples.percentile(percent).map_or("-".into(), |value| format!("{value:.0}"));
                let mut values: Vec<String> = [0, 10, 50].map(micros).to_vec();
                values.extend([ratio("fork+exec", What::Whole), ratio("bwrap --unshare-all", what)]);
                rows.push((row.label.clone(), values));
            }
        }
        self.print(title, &["min", "p10", "median", "÷ fork+exec", "÷ bwrap"], rows);
        for index in 0..self.launchers.len() {
            let name = self.launchers[index].name;
            let p10 = |label: &str| self.micros(label, index, What::Whole, 10);
            let all = Verdict::ratio(p10("all layers"), p10("bwrap --unshare-all"), 0.6, false);
            let bare = Verdict::ratio(p10("permission-only"), p10("fork+exec"), 2.5, false);
            let broker = p10("all layers, broker").zip(p10("all layers")).map(|(with, without)| (with - without) / 1e3);
            let start = Verdict::value(p10(VERSION).map(|micros| micros / 1000.0), 1.0);
            self.verdicts.push((format!("all layers ÷ bwrap, {name}"), "", all));
            self.verdicts.push((format!("permission-only ÷ fork+exec, {name}"), "", bare));
            self.verdicts.push((format!("start of the program, {name}"), " ms", start));
            self.verdicts.push((format!("broker over no network, {name}"), " ms", Verdict::value(broker, 1.5)));
        }
    }

    fn print_wipes(&mut self) {
        let title = format!("From the agent's end to the launcher's, {} rounds, ms", self.options.wipes);
        let mut rows = Vec::new();
        for row in &self.rows {
            let what = match row.what {
                What::AfterAgent(files) => format!("{files} files, agent ends"),
                What::AfterKill(files) => format!("{files} files, TERM"),
                What::Whole | What::ToMain | What::Doctor | What::Probe => continue,
            };
            let value = |percent| row.samples.percentile(percent).map_or("-".into(), |n| format!("{:.1}", n / 1000.0));
            rows.push((format!("{}: {what}", row.label), vec![value(0), value(50)]));
        }
        self.print(title, &["min", "median"], rows);
        for index in 0..self.launchers.len() {
            for (what, how) in [(What::AfterAgent(FILES), "wipe"), (What::AfterKill(FILES), "kill and wipe")] {
                let millis = self.micros("all layers", index, what, 50).map(|micros| micros / 1000.0);
                let label = format!("{how} of {FILES} files, {} (median)", self.launchers[index].name);
                self.verdicts.push((label, " ms", Verdict::value(millis, 50.0)));
            }
        }
    }

    fn print_looks(&mut self) {
        let title = format!("Looking at the host, {} rounds, µs", self.options.rounds);
        let looks = self.rows.iter().filter(|row| matches!(row.what, What::Doctor | What::Probe));
        let value = |row: &Row, percent| row.samples.percentile(percent).map_or("-".into(), |n| format!("{n:.0}"));
        let rows = looks.map(|row| (row.label.clone(), [0, 10, 50].map(|percent| value(row, percent)).to_vec()));
        let rows = rows.collect();
        self.print(title, &["min", "p10", "median"], rows);
        for index in 0..self.launchers.len() {
            for (label, what, bar) in [("doctor", What::Doctor, 50.0), ("probing in a run", What::Probe, 1.0)] {
                let millis = self.micros(label, index, what, 50).map(|micros| micros / 1000.0);
                let label = format!("{label}, {} (median)", self.launchers[index].name);
                self.verdicts.push((label, " ms", Verdict::value(millis, bar)));
            }
        }
    }

    /// Shows with strace that nobody walks the workspace: as many directory reads with files as without.
    fn count_directory_reads(&mut self) {
        let who = self.launchers[0].clone();
        if !self.works("all layers", &who) {
            return;
        }
        let job = self.stage.cell(&who, Cell::All, 0);
        let reads = |files: &str| -> Result<usize, String> {
            let mut traced = job.clone();
            traced.argv.splice(0..0, ["strace", "-f", "-qq", "-e", "trace=getdents64"].map(str::to_owned));
            let mut command = traced.command(&["files", files]);
            let output = command.stderr(std::process::Stdio::piped()).output();
            let output = output.map_err(|error| format!("needs strace: {error}"))?;
            if !output.status.success() {
                return Err(format!("strace: {}", output.status));
            }
            Ok(String::from_utf8_lossy(&output.stderr).matches("getdents64(").count())
        };
        match ask_pair(&who, || Ok((reads("0")?, reads(&FILES.to_string())?))) {
            Ok((none, many)) => {
                println!("\nDirectory reads of a run, {}: {none} without files, {many} with {FILES}", who.name);
                let extra = many.saturating_sub(none) as f64;
                self.verdicts.push((
                    "no directory walk: reads more with files".into(),
                    "",
                    Verdict::value(Some(extra), 0.0),
                ));
            }
            Err(why) => self.skipped.push(format!("directory reads: {why}")),
        }
    }

    /// Whether this row passed its first try; why not is said where it is told.
    fn works(&self, label: &str, who: &Launcher) -> bool {
        let label = format!("{label}, {}", who.name);
        self.rows.iter().any(|row| row.label == label && row.what == What::Whole)
    }

    fn print_rates(&mut self) {
        let mut rows = Vec::new();
        for index in 0..self.launchers.len() {
            let who = self.launchers[index].clone();
            let mut variants: Vec<(&str, Vec<Job>)> = vec![("fork+exec", vec![self.stage.bare(&who, Start::Fork); 8])];
            for (label, cell) in [("permission-only", Cell::PermissionOnly), ("all layers", Cell::All)] {
                if !self.works(label, &who) {
                    continue;
                }
                variants.push((label, (0..8).map(|tenant| self.stage.cell(&who, cell, tenant)).collect()));
            }
            let bwrap = format!("bwrap --unshare-all, {}", who.name);
            if let Some(row) = self.rows.iter().find(|row| row.label == bwrap) {
                variants.push(("bwrap --unshare-all", vec![row.job.clone(); 8]));
            }
            let mut medians = Vec::new();
            for (label, rates) in self.bursts(&who, &variants) {
                let value = |at_once: usize| match &rates[at_once] {
                    Ok(values) => values.get(values.len() / 2).copied(),
                    Err(_) => None,
                };
                if let Some(why) = rates.iter().find_map(|rate| rate.as_ref().err()) {
                    self.skipped.push(format!("launches per second, {label}, {}: {why}", who.name));
                }
                let show = |value: Option<f64>| value.map_or("-".into(), |rate| format!("{rate:.0}"));
                rows.push((format!("{label}, {}", who.name), vec![show(value(0)), show(value(1))]));
                medians.push((label, value(1)));
            }
            let of = |name: &str| medians.iter().find(|(label, _)| *label == name).and_then(|(_, value)| *value);
            let verdict = Verdict::ratio(of("all layers"), of("bwrap --unshare-all"), 2.0, true);
            self.verdicts.push((
                format!("8 at once, launches per second ÷ bwrap's, {} (median)", who.name),
                "",
                verdict,
            ));
        }
        self.print(format!("Launches per second, {} rounds", self.options.bursts), &["1 at a time", "8 at once"], rows);
    }

    /// For every variant the sorted rates of one and of eight at once.
    fn bursts<'a>(&self, who: &Launcher, variants: &[(&'a str, Vec<Job>)]) -> Vec<(&'a str, [Rates; 2])> {
        let mut all: Vec<(&str, [Rates; 2])> =
            variants.iter().map(|(label, _)| (*label, [Ok(vec![]), Ok(vec![])])).collect();
        for _ in 0..self.options.bursts {
            for ((_, jobs), (_, rates)) in variants.iter().zip(&mut all) {
                for (rate, at_once) in rates.iter_mut().zip([1, 8]) {
                    let Ok(values) = rate else { continue };
                    match measure::rate(who.uid, &jobs[..at_once], self.options.burst) {
                        Ok(value) => values.push(value),
                        Err(why) => *rate = Err(why),
                    }
                }
            }
        }
        for values in all.iter_mut().flat_map(|(_, rates)| rates).flatten() {
            values.sort_by(f64::total_cmp);
        }
        all
    }

    fn print_memory(&mut self) {
        let mut rows = Vec::new();
        for index in 0..self.launchers.len() {
            let who = self.launchers[index].clone();
            for (label, cell) in [("permission-only", Cell::PermissionOnly), ("all layers", Cell::All)] {
                if !self.works(label, &who) {
                    continue;
                }
                let label = format!("{label}, {}", who.name);
                let sum = match measure::memory(who.uid, &self.stage.cell(&who, cell, 0)) {
                    Ok(memory) => {
                        let values = [memory.launcher, memory.init, memory.private].map(|value| value.to_string());
                        rows.push((label, values.to_vec()));
                        Some((memory.launcher + memory.init) as f64 / 1024.0)
                    }
                    Err(why) => {
                        self.skipped.push(format!("memory, {label}: {why}"));
                        None
                    }
                };
                let second = if cell == Cell::All { "init" } else { "keeper" };
                self.verdicts.push((
                    format!("memory of launcher and {second}, {}", who.name),
                    " MiB",
                    Verdict::value(sum, 6.0),
                ));
            }
        }
        self.print("Memory while the agent waits, KiB (PSS)".into(), &["launcher", "init or keeper", "private"], rows);
    }

    fn print_size(&mut self) {
        let size = self.stage.size().ok().map(|bytes| bytes as f64 / 1024.0 / 1024.0);
        self.verdicts.push(("size of the program".into(), " MiB", Verdict::value(size, 8.0)));
    }
}

/// Sorted rates, or the first failure.
type Rates = Result<Vec<f64>, String>;

fn once(row: &Row) -> std::io::Result<u64> {
    match row.what {
        What::Whole => row.job.whole(),
        What::ToMain => row.job.to_main(),
        What::AfterAgent(files) => row.job.after_agent(files),
        What::AfterKill(files) => row.job.after_kill(files),
        What::Doctor => row.job.doctor(),
        What::Probe => row.job.probe(),
    }
}

/// Whether the job works at all, and what it says when it does not.
///
/// Ending well is not enough: a launcher that starts nothing is the quickest.
fn try_job(who: &Launcher, job: &Job, has_agent: bool) -> Result<(), String> {
    let tried = measure::ask(who.uid, || {
        job.output(&[])?;
        if has_agent { job.to_main().map(|_| String::new()) } else { Ok(String::new()) }
    });
    tried.map(|_| ())
}

fn ask_pair(who: &Launcher, body: impl FnOnce() -> Result<(usize, usize), String>) -> Result<(usize, usize), String> {
    let text = measure::ask(who.uid, || body().map(|(a, b)| format!("{a} {b}")).map_err(std::io::Error::other))?;
    let pair = text.split_once(' ').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    pair.ok_or_else(|| text.clone())
}

fn read_line(from: &mut std::fs::File) -> String {
    let mut line = String::new();
    let mut byte = [0u8; 1];
    while from.read_exact(&mut byte).is_ok() && byte[0] != b'\n' {
        line.push(char::from(byte[0]));
    }
    line
}
