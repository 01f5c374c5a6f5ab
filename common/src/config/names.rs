//! The name that was probably meant.

/// Names longer than this are compared with nothing: they are no typing error.
const LONGEST: usize = 64;

/// The candidate nearest to `name`, if it is near enough to be a typing error of it.
pub(super) fn closest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > LONGEST {
        return None;
    }
    let name = name.to_lowercase().replace('-', "_");
    let distance = |candidate: &str| strsim::damerau_levenshtein(&name, &candidate.replace('-', "_"));
    let allowed = (name.chars().count() / 3).max(1);
    let near = candidates.into_iter().map(|candidate| (distance(candidate), candidate));
    near.filter(|(distance, _)| *distance <= allowed).min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// What to say after the unknown `name` in the table `prefix`, whose own keys are `siblings`: a near name beside it, the
/// same name elsewhere in the file, or the names that are valid here.
pub(super) fn advice<'a>(prefix: &str, name: &str, siblings: &[&str], all: impl Iterator<Item = &'a str>) -> String {
    let here = |name: &str| super::schema::join(prefix, name);
    if let Some(sibling) = closest(name, siblings.iter().copied()) {
        return format!("did you mean `{}`?", here(sibling));
    }
    let all: Vec<_> = all.collect();
    let last = |key: &'a str| key.rsplit('.').next().unwrap_or(key);
    let worded = all.iter().copied().filter(|key| last(key).len() > 2 && last(key).parse::<u32>().is_err());
    let found = closest(name, worded.clone().map(last)).and_then(|near| worded.clone().find(|key| last(key) == near));
    match found {
        Some(elsewhere) => format!("did you mean `{elsewhere}`?"),
        None if siblings.is_empty() => "this key holds a single value".to_owned(),
        None => format!("valid here: {}", siblings.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_means_a_typing_error() {
        let names = ["total_kimg", "precision", "threads"];
        assert_eq!(closest("total_kimgs", names), Some("total_kimg"));
        assert_eq!(closest("Total-KImg", names), Some("total_kimg"));
        assert_eq!(closest("percision", names), Some("precision"));
        assert_eq!(closest("banana", names), None);
        assert_eq!(closest("", names), None);
        assert_eq!(closest(&"x".repeat(100_000), names), None);
    }

    #[test]
    fn a_sibling_first_then_elsewhere_then_the_list() {
        let all = ["name", "train.total_kimg", "samples.every_kimg", "train.minibatch.4"];
        let say = |prefix: &str, name: &str, siblings: &[&str]| advice(prefix, name, siblings, all.into_iter());
        assert_eq!(say("samples", "every_kmg", &["every_kimg", "grid"]), "did you mean `samples.every_kimg`?");
        assert_eq!(say("", "total_kimg", &["name"]), "did you mean `train.total_kimg`?");
        assert_eq!(say("samples", "zebra", &["every_kimg", "grid"]), "valid here: every_kimg, grid");
    }
}
