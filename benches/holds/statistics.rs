//! Medians and quartiles of what was measured, and how they are written.

use crate::contenders::Name;

/// Measurements of one contender: seconds, or whatever else is counted.
#[derive(Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn add(&mut self, sample: f64) {
        self.0.push(sample);
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// The lower and the upper quartile: half of the measurements lie between them.
    pub fn quartiles(&self) -> [f64; 2] {
        [25, 75].map(|percent| self.percentile(percent))
    }

    pub fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[(sorted.len() - 1) * percent / 100]
    }
}

/// The samples of all contenders, in the order in which they came first.
#[derive(Clone, Default)]
pub struct Lines(Vec<(Name, Samples)>);

impl Lines {
    pub fn add(&mut self, name: Name, sample: f64) {
        self.of(name).add(sample);
    }

    /// None for who was not measured.
    pub fn get(&self, name: Name) -> Option<&Samples> {
        let found = self.iter().find(|(of, _)| *of == name);
        found.map(|(_, samples)| samples)
    }

    pub fn median(&self, name: Name) -> Option<f64> {
        self.get(name).map(Samples::median)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Name, &Samples)> {
        self.0.iter().map(|(name, samples)| (*name, samples))
    }

    fn of(&mut self, name: Name) -> &mut Samples {
        let index = self.0.iter().position(|(of, _)| *of == name);
        let index = index.unwrap_or_else(|| {
            self.0.push((name, Samples::default()));
            self.0.len() - 1
        });
        &mut self.0[index].1
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

/// From one to the other.
pub fn range([low, high]: [String; 2]) -> String {
    format!("{low} to {high}")
}

/// What is not there is a dash.
pub fn short_or_dash(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), short)
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
