//! What worker processes write, line by line: bounded, harmless to a terminal, with its level recognised.
//!
//! Pure. Whatever bytes a process writes, memory stays bounded and no escape sequence reaches a screen.

use serde::Serialize;

/// Longest line that is kept; the rest of a longer one is cut off.
pub const LINE_BYTES_MAX: usize = 16 << 10;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// For the log only.
    Info,
    /// Somebody should look.
    Warn,
    /// Something failed.
    Error,
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub struct Splitter {
    partial: Vec<u8>,
    cut: bool,
}

impl Splitter {
    /// Takes bytes and returns the lines that end in them.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            let room = LINE_BYTES_MAX - self.partial.len();
            self.cut |= text.len() > room;
            self.partial.extend_from_slice(&text[..text.len().min(room)]);
            if ends {
                lines.extend(self.finish());
            }
        }
        lines
    }

    /// The last line, if it did not end.
    pub fn finish(&mut self) -> Option<String> {
        let mut line = printable(&String::from_utf8_lossy(&std::mem::take(&mut self.partial)));
        if std::mem::take(&mut self.cut) {
            line.push_str(" [cut]");
        }
        (!line.trim().is_empty()).then_some(line)
    }
}

/// Without escape sequences and other control characters.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            // colours and cursor movements end at a letter
            '\u{1b}' => {
                if characters.next() == Some('[') {
                    characters.by_ref().find(char::is_ascii_alphabetic);
                }
            }
            '\t' => out.push(' '),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out.truncate(out.trim_end().len());
    out
}

/// Level of a line as `tracing` writes it, for people or as JSON, and of a panic. Any other line is for the log only.
#[must_use]
pub fn level(line: &str) -> Level {
    written_level(line).unwrap_or(Level::Info)
}

/// The level that a line names; `None` for a line that no logger wrote.
#[must_use]
pub fn written_level(line: &str) -> Option<Level> {
    if let Some(level) = json_field(line, "level") {
        return by_name(&level);
    }
    if line.contains("panicked at") || line.starts_with("fatal runtime error") || line.starts_with("error:") {
        return Some(Level::Error);
    }
    line.split_whitespace().take(2).find_map(by_name)
}

/// Where the stack begins that libtorch writes into its errors, as `Debug` writes it on one line.
const STACKS: [&str; 2] = ["\\nframe #", "\\nException raised from"];

/// What a line says, for a person: the message of a JSON line, the text after time and level of a plain one; of an error of libtorch's,
/// what comes before its stack.
#[must_use]
pub fn message(line: &str) -> String {
    let parsed: Option<serde_json::Value> = line.starts_with('{').then(|| serde_json::from_str(line).ok()).flatten();
    if let Some(message) = parsed.as_ref().and_then(|value| value["fields"]["message"].as_str()) {
        return message.to_owned();
    }
    let mut words = line.split_whitespace();
    match words.by_ref().take(2).find(|word| by_name(word).is_some()) {
        // the word is a slice of the line, and so is what follows it
        Some(word) => line.split_once(word).map_or(line, |(_, rest)| rest.trim_start()).to_owned(),
        None => {
            let ends = STACKS.iter().filter_map(|stack| line.find(stack));
            line[..ends.min().unwrap_or(line.len())].to_owned()
        }
    }
}

fn json_field(line: &str, key: &str) -> Option<String> {
    let value: serde_json::Value = line.starts_with('{').then(|| serde_json::from_str(line).ok()).flatten()?;
    value.get(key)?.as_str().map(str::to_owned)
}

fn by_name(word: &str) -> Option<Level> {
    match word {
        "ERROR" => Some(Level::Error),
        "WARN" => Some(Level::Warn),
        "INFO" | "DEBUG" | "TRACE" => Some(Level::Info),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_out_of_any_pieces() {
        let mut splitter = Splitter::default();
        assert_eq!(splitter.push(b"one\ntw"), ["one"]);
        assert_eq!(splitter.push(b"o\r\n\n\xff!"), ["two"]);
        assert_eq!(splitter.finish().as_deref(), Some("\u{fffd}!"));
        assert_eq!(splitter.finish(), None);
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let mut splitter = Splitter::default();
        for _ in 0..100 {
            assert!(splitter.push(&[b'x'; 1000]).is_empty());
        }
        let line = splitter.push(b"\nnext\n");
        assert_eq!((line[0].len(), line[1].as_str()), (LINE_BYTES_MAX + " [cut]".len(), "next"));
        assert!(line[0].ends_with("x [cut]"));
    }

    #[test]
    fn escape_sequences_do_not_pass() {
        assert_eq!(printable("\u{1b}[31mred\u{1b}[0m\u{7}\tx\u{1b}[2J"), "red x");
    }

    #[test]
    fn stacks_of_libtorch_are_not_for_people() {
        let error = |stack: &str| format!("called `Result::unwrap()` on an `Err` value: Torch(\"no memory{stack}\")");
        for stack in ["\\nframe #0: c10::alloc", "\\nException raised from malloc at x.cpp:1\\nframe #0: c10"] {
            assert_eq!(message(&error(stack)), "called `Result::unwrap()` on an `Err` value: Torch(\"no memory");
        }
        assert_eq!(message(&error("")), error(""));
    }

    #[test]
    fn levels_are_recognised() {
        for (line, expected) in [
            ("2026-01-01T00:00:00.0Z  WARN worker: slow", Level::Warn),
            ("ERROR worker: bad", Level::Error),
            ("2026-01-01T00:00:00.0Z  INFO worker: an ERROR was avoided", Level::Info),
            (r#"{"timestamp":"t","level":"ERROR","fields":{"message":"bad"}}"#, Level::Error),
            (r#"{"level":"INFO","fields":{"message":"ERROR"}}"#, Level::Info),
            ("thread 'main' (7) panicked at src/main.rs:1:1:", Level::Error),
            ("just words", Level::Info),
        ] {
            assert_eq!(level(line), expected, "{line}");
        }
        assert_eq!(message(r#"{"level":"ERROR","fields":{"message":"bad"}}"#), "bad");
        assert_eq!(message("{not json"), "{not json");
        assert_eq!(message("2026-01-01T00:00:00.0Z ERROR  rank 1 was  lost"), "rank 1 was  lost");
        assert_eq!(message("WARN slow: an ERROR"), "slow: an ERROR");
        assert_eq!(written_level("terminate called"), None);
    }
}
