//! `coordinator report`: where a run's time went, from its `ledger.jsonl`, wherever that is stored.
//!
//! Text and JSON are pure functions of the ledger.

use crate::display::line;
use crate::failure::Failure;
use crate::records;
use crate::s3_args::S3Args;
use clap::Args;
use common::exit::Exit;
use common::ids::ImagesSeen;
use common::ledger::{Class, Entry, Ledger, Line, Spent};
use serde_json::{Value, json};
use std::fmt::Write;
use storage::{StorageError, Store, resolve_run_url};

/// Largest `ledger.jsonl` that is read.
const LEDGER_BYTES_MAX: u64 = 256 << 20;

/// Which run.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// URL or path of a run
    pub url: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// How the store is reached.
    #[command(flatten)]
    pub s3: S3Args,
}

/// Prints where the time of a run went.
///
/// # Errors
/// The store's trouble, or a run without a ledger.
pub async fn report(args: &ReportArgs) -> Result<(), Failure> {
    let url = resolve_run_url(&args.url)?;
    let run = Store::open_existing(&url.root, &args.s3.resolve()?)?.run(&url.run)?;
    let bytes = match run.get_file(records::LEDGER, LEDGER_BYTES_MAX).await {
        Err(StorageError::NotFound { .. }) => {
            let why = format!("{} has no {}: nothing is known of its time", run.url(), records::LEDGER);
            return Err(Failure::new(Exit::Config, why));
        }
        other => other?,
    };
    let (lines, ledger) = records::sum(&String::from_utf8_lossy(&bytes));
    if args.json {
        line(&json(&ledger).to_string());
    } else {
        line(text(run.name(), &lines, &ledger).trim_end());
    }
    Ok(())
}

/// One line: how much of the time was good for something, and where all of it went.
#[must_use]
pub fn goodput(ledger: &Ledger) -> String {
    let mut text = format!("goodput {}", percent(ledger.goodput().unwrap_or_default()));
    let mut sign = ':';
    for class in Class::ALL {
        let share = ledger.spent.get(&class).copied().unwrap_or_default() / ledger.seconds().max(f64::MIN_POSITIVE);
        if share >= 0.0005 {
            let _ = write!(text, "{sign} {} {}", class.name(), percent(share));
            sign = ',';
        }
    }
    text
}

/// The same for machines.
#[must_use]
pub fn json(ledger: &Ledger) -> Value {
    let changes = ledger.changes.iter().map(|(generation, spent)| json!({"generation": generation, "seconds": spent}));
    json!({
        "event": "goodput", "goodput": ledger.goodput(), "seconds": ledger.spent, "steps": ledger.reached.steps,
        "images": ledger.reached.images, "generations": ledger.generations(), "steps_taken_again": ledger.again,
        "steps_missing": ledger.missing, "changes": changes.collect::<Vec<_>>(),
    })
}

fn text(run: &str, lines: &str, ledger: &Ledger) -> String {
    let mut text = format!(
        "run {run}: {} steps, {}, {} generation{}, {:.1} s\nsteps taken again {}, missing {}\n{}\n",
        ledger.reached.steps,
        ImagesSeen(ledger.reached.images),
        ledger.generations(),
        if ledger.generations() == 1 { "" } else { "s" },
        ledger.seconds(),
        ledger.again,
        ledger.missing,
        goodput(ledger),
    );
    for entry in lines.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()).map(|line| line.entry) {
        match entry {
            Entry::Formed { generation, workers } => {
                let cost: f64 = ledger
                    .changes
                    .get(&generation)
                    .map_or(0.0, |spent: &Spent| spent.values().fold(0.0, |sum, more| sum + more));
                let _ = writeln!(text, "{generation}: {}, after {:.0} ms", workers.join(" "), cost * 1e3);
            }
            Entry::Broken { generation, why } => _ = writeln!(text, "{generation} is over: {why}"),
            Entry::Span(_) => {}
        }
    }
    text
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::ids::Generation;
    use common::ledger::{Mark, Span};

    fn ledger() -> (String, Ledger) {
        let mark = |steps| Mark { steps, images: steps * 100 };
        let formed = |g, workers: &[&str]| Entry::Formed {
            generation: Generation(g),
            workers: workers.iter().map(|w| (*w).to_owned()).collect(),
        };
        let span = |g, from, to, spent: &[(Class, f64)]| {
            let spent = spent.iter().copied().collect();
            Entry::Span(Span { generation: Generation(g), world: 2, from: mark(from), to: mark(to), spent })
        };
        let entries = [
            formed(1, &["w0", "w1"]),
            span(1, 0, 10, &[(Class::Compute, 8.0), (Class::Communication, 1.0)]),
            Entry::Broken { generation: Generation(1), why: "worker w1 is gone".into() },
            formed(2, &["w0"]),
            span(2, 10, 12, &[(Class::Compute, 0.75), (Class::Reforming, 0.25)]),
        ];
        let line = |entry| serde_json::to_string(&Line { at: 1.0, entry }).unwrap();
        let text = entries.map(line).join("\n") + "\n{\"at\":1.0,\"entry\":\"sp";
        records::sum(&text)
    }

    #[test]
    fn a_report_says_where_the_time_went_and_what_each_fault_cost() {
        let (lines, ledger) = ledger();
        assert_eq!(
            text("toy", &lines, &ledger),
            "\
run toy: 12 steps, 1.2 kimg, 2 generations, 10.0 s
steps taken again 0, missing 0
goodput 97.5 %: compute 87.5 %, communication wait 10.0 %, re-forming 2.5 %
g1: w0 w1, after 0 ms
g1 is over: worker w1 is gone
g2: w0, after 250 ms
"
        );
        let json = json(&ledger);
        assert_eq!((&json["goodput"], &json["seconds"]["reforming"]), (&0.975.into(), &0.25.into()));
        assert_eq!(json["changes"][1]["seconds"]["reforming"], 0.25);
    }
}
