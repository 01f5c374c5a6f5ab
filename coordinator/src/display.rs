//! Where news go: a progress bar with lines above it, plain lines, or JSON lines.
//!
//! What is said is [`crate::render`]'s business. A terminal or pipe that is gone is no reason to end a run: its errors are
//! passed over.

use crate::render::{self, News};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How news are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A progress bar on a terminal, plain lines elsewhere.
    Auto,
    /// One line for each tick and decision.
    Plain,
    /// One JSON object on each line.
    Json,
}

/// Least time between two progress events of the JSON output.
const PROGRESS_PAUSE: Duration = Duration::from_secs(5);

/// The operator's screen.
pub struct Display {
    style: Style,
    bar: Option<ProgressBar>,
    last_progress: Option<Instant>,
}

impl Display {
    /// A display in the given style.
    #[must_use]
    pub fn new(style: Style) -> Self {
        let bar = (style == Style::Auto && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(8));
            // the template is ours and constant; should it not parse, the default bar is no reason to fail
            if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} {bar:24} {percent:>3} %  {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { style, bar, last_progress: None }
    }

    /// Shows one thing.
    pub fn show(&mut self, news: &News) {
        if self.style == Style::Json {
            if let News::Progress(_) = news {
                self.last_progress = Some(Instant::now());
            }
            line(&render::json(news).to_string());
            return;
        }
        if let Some(bar) = &self.bar {
            match news {
                News::Preparing { done, total } => {
                    bar.set_length(*total);
                    bar.set_position(*done);
                    bar.set_message("preparing the data set");
                }
                News::Progress(status) => {
                    bar.set_length(status.total_images);
                    bar.set_position(status.images);
                    bar.set_message(render::bar(status));
                }
                // the bar says the same
                News::Tick(_) => return,
                News::Ended { .. } | News::Failed { .. } => bar.finish_and_clear(),
                _ => {}
            }
        }
        if let Some(text) = render::plain(news) {
            match &self.bar {
                Some(bar) if !bar.is_finished() => bar.println(text),
                _ => line(&text),
            }
        }
    }

    /// Whether anybody looks at how the run gets on, and it is time to say it again.
    #[must_use]
    pub fn wants_progress(&self) -> bool {
        match self.style {
            Style::Json => self.last_progress.is_none_or(|last| last.elapsed() >= PROGRESS_PAUSE),
            Style::Auto | Style::Plain => self.bar.is_some(),
        }
    }
}

/// Writes a line to standard output, which may be a pipe that nobody reads any more.
pub fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Tells whoever waits, on standard error, what is waited for.
pub fn aside(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
