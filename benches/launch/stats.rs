//! The numbers of a row and how they are compared.

/// Samples of one row in nanoseconds, or why there are none.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    values: Vec<u64>,
    /// The first failure.
    pub failed: Option<String>,
}

impl Samples {
    /// Takes one measurement.
    pub fn push(&mut self, result: Result<u64, String>) {
        match result {
            Ok(value) => self.values.push(value),
            Err(why) => self.failed = Some(why),
        }
    }

    /// The value below which this share (in percent) of the samples lies, in microseconds.
    pub fn percentile(&self, percent: usize) -> Option<f64> {
        if self.failed.is_some() || self.values.is_empty() {
            return None;
        }
        let mut sorted = self.values.clone();
        sorted.sort_unstable();
        let value = sorted[(sorted.len() - 1) * percent / 100];
        Some(value as f64 / 1000.0)
    }
}

/// What a bar came to.
pub enum Verdict {
    /// The measured value and the bar.
    Measured {
        /// What was measured.
        value: f64,
        /// At most this, or at least this.
        bar: f64,
        /// More is better.
        at_least: bool,
    },
    /// There is nothing to compare.
    Skipped(String),
}

impl Verdict {
    /// The ratio of two rows against a bar.
    pub fn ratio(value: Option<f64>, base: Option<f64>, bar: f64, at_least: bool) -> Verdict {
        match (value, base) {
            (Some(value), Some(base)) if base > 0.0 => Verdict::Measured { value: value / base, bar, at_least },
            (None, _) => Verdict::Skipped("oubliette's row is missing".into()),
            _ => Verdict::Skipped("the row to compare with is missing".into()),
        }
    }

    /// A value of its own against a bar.
    pub fn value(value: Option<f64>, bar: f64) -> Verdict {
        match value {
            Some(value) => Verdict::Measured { value, bar, at_least: false },
            None => Verdict::Skipped("oubliette's row is missing".into()),
        }
    }

    /// The verdict as a line, with the unit of value and bar.
    pub fn line(&self, what: &str, unit: &str) -> String {
        match self {
            Verdict::Skipped(why) => format!("skipped  {what}: {why}"),
            Verdict::Measured { value, bar, at_least } => {
                let met = if *at_least { value >= bar } else { value <= bar };
                let sign = if *at_least { '≥' } else { '≤' };
                let missed = 100.0 * (value / bar - 1.0).abs();
                let word = if met { "met    ".to_owned() } else { format!("missed by {missed:.0} %") };
                format!("{word}  {what}: {value:.2}{unit} (bar {sign} {bar}{unit})")
            }
        }
    }

    /// The bar was measured and missed.
    pub fn missed(&self) -> bool {
        match self {
            Verdict::Measured { value, bar, at_least: true } => value < bar,
            Verdict::Measured { value, bar, at_least: false } => value > bar,
            Verdict::Skipped(_) => false,
        }
    }
}

/// A table for people, or for a page.
#[derive(Debug)]
pub struct Table {
    /// What is in it; the first column names the rows.
    pub title: String,
    /// The other columns.
    pub columns: Vec<&'static str>,
    /// Name and values; a row without values is a heading.
    pub rows: Vec<(String, Vec<String>)>,
}

impl Table {
    /// For a terminal.
    pub fn text(&self) -> String {
        let line = |name: &str, values: &mut dyn Iterator<Item = &str>| {
            values.fold(format!("{name:<50}"), |line, value| format!("{line}{value:>12}")) + "\n"
        };
        let mut text = line(&self.title, &mut self.columns.iter().copied());
        for (name, values) in &self.rows {
            text += &line(&format!("  {name}"), &mut values.iter().map(String::as_str));
        }
        text
    }

    /// For a page.
    pub fn markdown(&self) -> String {
        let row = |name: &str, values: &[String]| format!("| {name} | {} |\n", values.join(" | "));
        let columns: Vec<String> = self.columns.iter().map(|&column| column.to_owned()).collect();
        let mut text = row(&self.title, &columns) + "|---|" + &"---:|".repeat(columns.len()) + "\n";
        for (name, values) in &self.rows {
            let mut values = values.clone();
            values.resize(columns.len(), String::new());
            text += &row(name, &values);
        }
        text
    }
}
