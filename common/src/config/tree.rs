//! TOML text as a plain tree that remembers the line of every key. Knows nothing of which keys there are.

use serde_json::Value as Json;
use toml_edit::{Document, Item, TableLike, Value};

/// A value of any TOML type.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tree {
    Table(Vec<Entry>),
    List(Vec<Tree>),
    Bool(bool),
    Whole(i64),
    Number(f64),
    Text(String),
    Date,
}

/// A key, its line (from 1; 0 where there are no lines) and its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub key: String,
    pub line: usize,
    pub value: Tree,
}

/// Why text is not TOML.
#[derive(Debug, PartialEq)]
pub(super) struct SyntaxError {
    pub line: usize,
    pub message: String,
}

impl Tree {
    /// Reads a whole file.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let lines = Lines::new(text);
        // a mark that some editors put before the text; TOML has none
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        match Document::parse(text) {
            Ok(document) => Ok(Self::table(document.as_table(), &lines)),
            Err(error) => {
                let line = error.span().map_or(1, |span| lines.at(span.start));
                Err(SyntaxError { line, message: error.message().replace('\n', "; ") })
            }
        }
    }

    /// Reads one value, as it stands after `=`. `None` if it is no TOML.
    pub fn parse_value(text: &str) -> Option<Self> {
        text.trim().parse::<Value>().ok().map(|value| Self::value(&value, &Lines::default()))
    }

    /// `value` under the keys of `path`, outermost first.
    pub fn nested(path: &[&str], value: Self) -> Self {
        path.iter().rev().fold(value, |value, key| Self::Table(vec![Entry { key: (*key).to_owned(), line: 0, value }]))
    }

    /// The value under the keys of `path`.
    pub fn get(&self, path: &[&str]) -> Option<&Self> {
        let Some((first, rest)) = path.split_first() else { return Some(self) };
        let Self::Table(entries) = self else { return None };
        entries.iter().find(|entry| entry.key == *first)?.value.get(rest)
    }

    /// The table without its entry `key`.
    pub fn without(self, key: &str) -> Self {
        match self {
            Self::Table(entries) => Self::Table(entries.into_iter().filter(|entry| entry.key != key).collect()),
            other => other,
        }
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The whole number, if it is one.
    pub fn whole(&self) -> Option<i64> {
        if let Self::Whole(whole) = self { Some(*whole) } else { None }
    }

    fn table(table: &dyn TableLike, lines: &Lines) -> Self {
        let entry = |(name, item): (&str, &Item)| {
            let key = table.key(name).and_then(toml_edit::Key::span);
            let line = key.or_else(|| item.span()).map_or(0, |span| lines.at(span.start));
            Entry { key: name.to_owned(), line, value: Self::item(item, lines) }
        };
        Self::Table(table.iter().map(entry).collect())
    }

    fn item(item: &Item, lines: &Lines) -> Self {
        match item {
            Item::None => Self::Table(Vec::new()),
            Item::Value(value) => Self::value(value, lines),
            Item::Table(table) => Self::table(table, lines),
            Item::ArrayOfTables(array) => Self::List(array.iter().map(|table| Self::table(table, lines)).collect()),
        }
    }

    fn value(value: &Value, lines: &Lines) -> Self {
        match value {
            Value::String(text) => Self::Text(text.value().clone()),
            Value::Integer(whole) => Self::Whole(*whole.value()),
            Value::Float(number) => Self::Number(*number.value()),
            Value::Boolean(bool) => Self::Bool(*bool.value()),
            Value::Datetime(_) => Self::Date,
            Value::Array(array) => Self::List(array.iter().map(|value| Self::value(value, lines)).collect()),
            Value::InlineTable(table) => Self::table(table, lines),
        }
    }
}

impl From<&Json> for Tree {
    fn from(json: &Json) -> Self {
        match json {
            Json::Null => Self::Table(Vec::new()),
            Json::Bool(bool) => Self::Bool(*bool),
            Json::Number(number) => match number.as_i64() {
                Some(whole) => Self::Whole(whole),
                None => Self::Number(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::Text(text.clone()),
            Json::Array(items) => Self::List(items.iter().map(Self::from).collect()),
            Json::Object(map) => {
                let entry = |(key, value): (&String, &Json)| Entry { key: key.clone(), line: 0, value: value.into() };
                // TOML has no null: a key is there or it is not
                Self::Table(map.iter().filter(|(_, value)| !value.is_null()).map(entry).collect())
            }
        }
    }
}

/// Offsets at which lines begin, so that a line number costs a binary search.
#[derive(Default)]
struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|newline| *newline < offset) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_know_their_lines() {
        let tree = Tree::parse("a = 1\n\n[b]\nc.d = { e = 2,\n f = 3 }\n").unwrap();
        let Tree::Table(top) = &tree else { panic!("{tree:?}") };
        assert_eq!(top.iter().map(|e| (e.key.as_str(), e.line)).collect::<Vec<_>>(), [("a", 1), ("b", 3)]);
        let Some(Tree::Table(inner)) = tree.get(&["b", "c", "d"]) else { panic!("{tree:?}") };
        assert_eq!(inner.iter().map(|e| (e.key.as_str(), e.line)).collect::<Vec<_>>(), [("e", 4), ("f", 5)]);
    }

    #[test]
    fn broken_text_names_its_line() {
        assert_eq!(Tree::parse("a = 1\nb = \n").unwrap_err().line, 2);
        assert_eq!(Tree::parse("a = 1\n\na = 2").unwrap_err().line, 3);
    }

    #[test]
    fn a_value_cannot_smuggle_in_a_second_key() {
        assert_eq!(Tree::parse_value(" 10 "), Some(Tree::Whole(10)));
        assert_eq!(Tree::parse_value("1\nb = 2"), None);
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        assert!(Tree::parse(&format!("a = {}", "[".repeat(100_000))).is_err());
        assert!(Tree::parse(&format!("{}a = 1", "a.".repeat(100_000))).is_err());
        assert_eq!(Tree::parse_value(&"[".repeat(100_000)), None);
    }
}
