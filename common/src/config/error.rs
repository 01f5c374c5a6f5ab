//! Where a value came from, and what is wrong with it: written for the person who has to change the file.
//!
//! Values are shown only where they cannot be a secret; text from outside is escaped before it reaches a terminal.

use serde::Serialize;
use std::fmt;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Origin {
    /// The built-in defaults (`coordinator config default`).
    Default,
    /// The preset that `train.schedule` names, in its table for this many workers at launch.
    Preset {
        /// Name of the preset.
        name: String,
        /// Workers at launch.
        workers: u32,
    },
    /// The experiment file.
    File {
        /// Path as it was given.
        path: String,
        /// Line, counted from 1.
        line: usize,
    },
    /// The configuration in a checkpoint.
    Checkpoint,
    /// An environment variable.
    Env {
        /// Name of the variable.
        name: String,
    },
    /// `--set` on the command line.
    Set,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Preset { name, workers } => write!(f, "preset {name}, {workers} worker{}", plural(*workers)),
            Self::File { path, line } => write!(f, "{}:{line}", printable(path)),
            Self::Checkpoint => f.write_str("checkpoint"),
            Self::Env { name } => write!(f, "environment {}", printable(name)),
            Self::Set => f.write_str("--set"),
        }
    }
}

fn plural(count: u32) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Who says it; `None` where nothing does and something has to.
    pub origin: Option<Origin>,
    /// Dotted key; empty where the text as a whole cannot be read.
    pub key: String,
    /// What is wrong and what was expected.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", printable(&self.key))?;
        }
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n    {hint}")?;
        }
        Ok(())
    }
}

/// Everything that is wrong with an experiment, in one go. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// What is wrong: file first, in the order of its lines.
    pub problems: Vec<Problem>,
}

/// Problems that are printed before the rest is only counted.
const SHOWN: usize = 50;

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => f.write_str("the experiment has a problem:")?,
            n => write!(f, "the experiment has {n} problems:")?,
        }
        for problem in self.problems.iter().take(SHOWN) {
            write!(f, "\n  {problem}")?;
        }
        if let Some(more @ 1..) = self.problems.len().checked_sub(SHOWN) {
            write!(f, "\n  and {more} more")?;
        }
        Ok(())
    }
}

/// Text from outside, without control characters and cut to a line's length.
pub(super) fn printable(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut out: String = text.chars().take(LONGEST).flat_map(escape).collect();
    if text.chars().nth(LONGEST).is_some() {
        out.push('…');
    }
    out
}

/// Control characters, and those that turn the direction of writing, as their escapes.
fn escape(c: char) -> Box<dyn Iterator<Item = char>> {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if c.is_control() || turns { Box::new(c.escape_unicode()) } else { Box::new(std::iter::once(c)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_control_characters_and_no_endless_line() {
        let shown = printable(&format!("a\u{1b}[31m\u{202e}{}", "x".repeat(1000)));
        assert!(shown.starts_with("a\\u{1b}[31m\\u{202e}xxx"), "{shown}");
        assert!(shown.chars().count() < 230 && shown.ends_with('…'), "{shown}");
    }

    #[test]
    fn many_problems_are_counted_not_listed() {
        let problem = Problem { origin: None, key: "a".into(), message: "wrong".into(), hint: Some("do that".into()) };
        let error = ConfigError { problems: vec![problem; 60] };
        let text = error.to_string();
        assert!(text.starts_with("the experiment has 60 problems:\n  a: wrong\n    do that\n"), "{text}");
        assert!(text.ends_with("and 10 more"), "{text}");
        assert_eq!(text.matches("wrong").count(), SHOWN);
    }
}
