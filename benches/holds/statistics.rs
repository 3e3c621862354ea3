//! Medians and quartiles of what was measured, and how they are written.

/// Measurements of one contender: seconds, or whatever else is counted.
#[derive(Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn add(&mut self, sample: f64) {
        self.0.push(sample);
    }

    pub fn median(&self) -> f64 {
        self.quarter(2)
    }

    /// The lower and the upper quartile: half of the measurements lie between them.
    pub fn quartiles(&self) -> [f64; 2] {
        [1, 3].map(|quarters| self.quarter(quarters))
    }

    fn quarter(&self, quarters: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[(sorted.len() - 1) * quarters / 4]
    }
}

/// Three digits that matter.
pub fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let mut decimals = 0;
    let mut magnitude = value.abs();
    while magnitude < 100.0 && decimals < 9 {
        magnitude *= 10.0;
        decimals += 1;
    }
    format!("{value:.decimals$}")
}

/// A whole number with commas between its thousands.
pub fn whole(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
