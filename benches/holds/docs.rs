//! Writes what was measured into `docs/`: each table between its markers, and the chart beside it.

use std::fs;
use std::path::PathBuf;

use crate::table::Table;

/// A table and the name of its place: `<!-- NAME -->`, up to the next `<!-- end -->`.
pub struct Section {
    pub name: &'static str,
    pub table: Table,
}

const END: &str = "<!-- end -->";

/// The document with its tables replaced. What is around them is written by hand.
///
/// # Panics
/// When a table has no place.
pub fn filled(sections: &[Section]) -> String {
    let mut text = fs::read_to_string(path("benchmarks.md")).expect("the document is there");
    for Section { name, table } in sections {
        let begin = format!("<!-- {name} -->\n");
        let place = text.find(&begin).map(|found| found + begin.len());
        let place = place.unwrap_or_else(|| panic!("docs/benchmarks.md has no {begin}"));
        let length = text[place..].find(END);
        let length = length.unwrap_or_else(|| panic!("{begin} has no end"));
        text.replace_range(place..place + length, &format!("\n{table}\n"));
    }
    text
}

/// Writes the document and the chart.
pub fn write(document: &str, chart: &str) {
    for (name, text) in [("benchmarks.md", document), ("benchmarks.svg", chart)] {
        fs::write(path(name), text).expect("docs/ can be written to");
    }
}

fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "docs", name]
        .iter()
        .collect()
}
