//! Lengths of time as people write them: `500ms`, `2s`, `10min`, `1.5h`, `2d`.

/// What [`parse`] accepts, for an error message.
pub(super) const EXPECTED: &str = "a length of time such as \"500ms\", \"2s\", \"10min\", \"1.5h\" or \"2d\"";

const UNITS: [(&str, f64); 5] = [("ms", 0.001), ("s", 1.0), ("min", 60.0), ("h", 3600.0), ("d", 86400.0)];

/// Seconds; `None` for anything but a non-negative decimal number and a unit.
pub(super) fn parse(text: &str) -> Option<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(end);
    let (_, seconds) = UNITS.into_iter().find(|(name, _)| *name == unit.trim())?;
    let value: f64 = number.parse().ok()?;
    // dividing gives 0.5 for 500ms where multiplying by 0.001 might not
    let value = if unit.trim() == "ms" { value / 1000.0 } else { value * seconds };
    value.is_finite().then_some(value)
}

/// The shortest text that [`parse`] reads as exactly these seconds.
pub(super) fn format(seconds: f64) -> String {
    let exact = |name: &str, unit: f64| {
        let count = seconds / unit;
        let text = format!("{count}{name}");
        (count >= 1.0 && parse(&text) == Some(seconds)).then_some(text)
    };
    let whole = UNITS.into_iter().rev().filter(|(_, unit)| seconds % unit == 0.0).find_map(|(n, u)| exact(n, u));
    whole.unwrap_or_else(|| format!("{seconds}s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        for (text, seconds) in [
            ("500ms", 0.5),
            ("2s", 2.0),
            ("10min", 600.0),
            ("1.5h", 5400.0),
            ("2d", 172_800.0),
            ("0s", 0.0),
            ("3 s", 3.0),
        ] {
            assert_eq!(parse(text), Some(seconds), "{text}");
        }
        for text in ["", "s", "2", "-2s", "2 weeks", "1e3s", "..s", "2ss", "é", "9".repeat(400).as_str()] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_largest_unit_that_divides() {
        let written = [0.5, 2.0, 600.0, 3600.0, 5400.0, 172_800.0].map(format);
        assert_eq!(written, ["0.5s", "2s", "10min", "1h", "90min", "2d"]);
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read_back_exactly(seconds in 0.0f64..1e9) {
            proptest::prop_assert_eq!(parse(&format(seconds)), Some(seconds));
            proptest::prop_assert_eq!(parse(&format(seconds.round())), Some(seconds.round()));
        }

        #[test]
        fn nothing_panics(text: String) {
            parse(&text);
        }
    }
}
