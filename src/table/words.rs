//! What errors say of a file's own words.

/// No key and no name is so long; what is longer is cut off in errors, and like none.
const LONGEST: usize = 64;

/// A text of the file, short and in one line. What may be a URL, or has a password in it otherwise, is not shown.
pub(crate) fn shown(text: &str) -> String {
    if text.contains("://") || text.contains('@') || text.contains('=') {
        return "(not shown: it may hold a password)".to_owned();
    }
    let mut start: String = text.chars().take(LONGEST).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    format!("`{}`", start.escape_debug())
}

/// A problem with the word `given`, and which of the `right` ones may have been meant.
pub(crate) fn unlisted<'a>(
    problem: &str,
    given: &str,
    right: impl Iterator<Item = &'a &'static str> + Clone,
) -> String {
    match nearest(given, right.clone()) {
        Some(nearest) => format!("{problem}: did you mean `{nearest}`?"),
        None => format!("{problem}: write {}", listed(right)),
    }
}

/// The right word that is so near that it must have been meant: one letter in three may be another one.
fn nearest<'a>(given: &str, right: impl Iterator<Item = &'a &'static str>) -> Option<&'static str> {
    if given.len() > LONGEST {
        return None;
    }
    // `acquireTimeout` and `ACQUIRE-TIMEOUT` are near as well.
    let given = given.to_ascii_lowercase();
    let distance = |word: &str| strsim::damerau_levenshtein(&given, word);
    let nearest = right.min_by_key(|word| distance(word))?;
    (distance(nearest) <= nearest.len().div_ceil(3)).then_some(nearest)
}

/// `a`, `b` or `c`.
pub(crate) fn listed<'a>(words: impl Iterator<Item = &'a &'static str>) -> String {
    let words: Vec<String> = words.map(|word| format!("`{word}`")).collect();
    match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: [&str; 4] = ["acquire_timeout", "max_hold", "url", "lease"];

    #[test]
    fn a_near_word_is_named_and_for_a_far_one_all_are() {
        for (given, meant) in [
            ("aquire_timeout", Some("acquire_timeout")),
            ("acquireTimeout", Some("acquire_timeout")),
            ("ACQUIRE-TIMEOUT", Some("acquire_timeout")),
            ("max-hold", Some("max_hold")),
            ("hold", None),
            ("ulr", Some("url")),
            ("", None),
            ("frobnicate", None),
            ("x\u{1b}[31m", None),
        ] {
            assert_eq!(nearest(given, RIGHT.iter()), meant, "{given}");
        }
        let all = unlisted("it is wrong", "x", RIGHT.iter());
        let listed = "`acquire_timeout`, `max_hold`, `url` or `lease`";
        assert_eq!(all, format!("it is wrong: write {listed}"));
        let near = unlisted("it is wrong", "leas", RIGHT.iter());
        assert_eq!(near, "it is wrong: did you mean `lease`?");
    }

    #[test]
    fn a_hostile_word_is_shown_short_and_in_plain_letters() {
        assert_eq!(shown("a\u{1b}[2J\n\u{202e}b"), r"`a\u{1b}[2J\n\u{202e}b`");
        assert_eq!(shown(&"é".repeat(65)), format!("`{}…`", "é".repeat(64)));
        let long = "lease".repeat(1_000_000);
        assert!(shown(&long).len() < 80 && nearest(&long, RIGHT.iter()).is_none());
    }

    #[test]
    fn what_may_hold_a_password_is_not_shown() {
        for text in [
            "postgres://u:secret@h/d",
            "u:secret@h",
            "host=h password=secret",
        ] {
            assert!(!shown(text).contains("secret"), "{text}");
        }
    }
}
