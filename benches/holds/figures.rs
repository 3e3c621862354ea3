//! What the run came to: one number for each figure and contender, of which the targets are made.

use std::collections::HashMap;

use crate::contenders::Name;
use crate::statistics::Lines;

/// What a number counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Figure {
    /// Seconds that the lock adds to an uncontended write, with client and server on one core.
    Added,
    /// The same on all cores.
    AddedAnywhere,
    /// The same with a far database.
    AddedFar,
    /// Seconds of the server's processor for such a hold.
    UncontendedServer,
    /// Holds of one realm in a second.
    HotRate,
    HotServer,
    /// Holds of distinct realms in a second.
    DistinctRate,
    DistinctServer,
    /// The same with more writers, where sessions lock for many of them at once.
    FewSessionsRate,
    ManySessionsRate,
    /// Seconds of a hold in process, of the only writer.
    InProcessAlone,
    /// How many times as many holds writers of distinct realms get done in process.
    InProcessGain,
    /// Holds of one realm in process in a second.
    InProcessHot,
    /// Holds of one realm in a second, each published or not: of one writer, and of many.
    PublishingAlone,
    PublishingHot,
    /// Seconds until thousands of realms were held once.
    Thousands,
    /// Seconds that one in a hundred lone writes takes at least.
    Lone,
    /// Bytes that one waiter takes.
    WaiterBytes,
    /// Holds in a second of one realm that two replicas write.
    ReplicasRate,
    /// Percent of them that the one gets which gets less.
    Share,
}

#[derive(Default)]
pub struct Figures(HashMap<(Figure, Name), f64>);

impl Figures {
    pub fn set(&mut self, figure: Figure, name: Name, value: f64) {
        self.0.insert((figure, name), value);
    }

    pub fn set_medians(&mut self, figure: Figure, lines: &Lines) {
        for (name, samples) in lines.iter() {
            self.set(figure, name, samples.median());
        }
    }

    /// None for what was not measured.
    pub fn get(&self, figure: Figure, name: Name) -> Option<f64> {
        self.0.get(&(figure, name)).copied()
    }

    pub fn ratio(&self, figure: Figure, name: Name, to: Name) -> Option<f64> {
        Some(self.get(figure, name)? / self.get(figure, to)?)
    }
}
