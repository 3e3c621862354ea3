//! Markdown tables.

use std::fmt;

/// A table under a sentence that says what it shows.
pub struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const COLUMNS: usize>(title: impl Into<String>, head: [&str; COLUMNS]) -> Self {
        Self::with_head(title, head.map(str::to_owned).into())
    }

    pub fn with_head(title: impl Into<String>, head: Vec<String>) -> Self {
        Self {
            title: title.into(),
            rows: vec![head],
        }
    }

    /// # Panics
    /// When it has not as many cells as the head.
    pub fn row(&mut self, cells: impl Into<Vec<String>>) {
        let cells = cells.into();
        assert_eq!(cells.len(), self.rows[0].len());
        self.rows.push(cells);
    }

    pub fn title(&self) -> &str {
        &self.title
    }

    /// Whether it has nothing but its head.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    fn width(&self, column: usize) -> usize {
        let widths = self.rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or_default()
    }
}

/// Without its title.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, row) in self.rows.iter().enumerate() {
            for (column, cell) in row.iter().enumerate() {
                let width = self.width(column);
                match column {
                    0 => write!(f, "| {cell:width$} ")?,
                    _ => write!(f, "| {cell:>width$} ")?,
                }
            }
            writeln!(f, "|")?;
            if index == 0 {
                writeln!(f, "| --- {}|", "| ---: ".repeat(row.len() - 1))?;
            }
        }
        Ok(())
    }
}
