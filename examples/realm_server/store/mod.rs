//! Cards as files: `DIR/<owner>/<realm>/<path>.json`.
//!
//! Plain blocking code, with no lock of its own: between its read and its write another replica may write the same
//! card. That is the race that the lock layer closes, and `--lock off` shows.

mod batch;
mod error;
mod fence;
mod files;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use tower_realm_lock::FencingToken;

use crate::card::{Card, Expect};
use crate::path::CardPath;
use batch::Replacement;
pub use error::StoreError;

/// The cards of all realms below one directory.
pub struct Store {
    pub root: PathBuf,
    /// How long a write waits after it has read what it changes.
    pub write_delay: Duration,
    /// Whether a write needs a fencing token that is not older than the card's last one.
    pub fencing: bool,
}

/// One change to one card.
#[derive(Debug)]
pub struct Operation {
    pub card: CardPath,
    pub change: Change,
}

#[derive(Debug)]
pub enum Change {
    Add(Card),
    /// Merges this patch into the card.
    Update(Card),
    Remove,
}

/// A card as it lies on disk, and as it shall be.
struct State {
    before: Option<Vec<u8>>,
    now: Option<Card>,
}

impl Store {
    /// Reads a card; `None` if there is none.
    pub fn read(&self, card: &CardPath) -> Result<Option<Card>, StoreError> {
        Ok(self.load(card)?.now)
    }

    /// Applies the operations in order, all or none, and gives the card as each of them left it.
    pub fn write(
        &self,
        operations: &[Operation],
        token: Option<FencingToken>,
    ) -> Result<Vec<Option<Card>>, StoreError> {
        let token = match (self.fencing, token) {
            (false, _) => None,
            (true, Some(token)) => Some(token),
            (true, None) => return Err(StoreError::NoFencingToken),
        };
        let (states, results) = self.plan(operations)?;
        thread::sleep(self.write_delay);
        let replacements: Vec<_> = states
            .into_iter()
            .map(|(card, state)| Replacement {
                file: card.file(&self.root),
                before: state.before,
                after: state.now.map(|card| card.to_document()),
            })
            // Added and removed again: nothing to do.
            .filter(|it| it.before.is_some() || it.after.is_some())
            .collect();
        batch::replace_all(&replacements, token)?;
        Ok(results)
    }

    /// Applies the operations in memory, each to what the ones before it left.
    #[expect(
        clippy::type_complexity,
        reason = "two plain collections, taken apart at once"
    )]
    fn plan<'a>(
        &self,
        operations: &'a [Operation],
    ) -> Result<(BTreeMap<&'a CardPath, State>, Vec<Option<Card>>), StoreError> {
        let mut states = BTreeMap::new();
        let mut results = Vec::with_capacity(operations.len());
        for (operation, Operation { card, change }) in operations.iter().enumerate() {
            let state = match states.entry(card) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(self.load(card)?),
            };
            state.now = match (change, state.now.take()) {
                (Change::Add(card), None) => Some(card.clone()),
                (Change::Update(patch), Some(mut card)) => {
                    card.merge(patch);
                    Some(card)
                }
                (Change::Remove, Some(_)) => None,
                (Change::Add(_), Some(_)) => {
                    let card = card.clone();
                    return Err(StoreError::Exists { operation, card });
                }
                (Change::Update(_) | Change::Remove, None) => {
                    let card = card.clone();
                    return Err(StoreError::Missing { operation, card });
                }
            };
            results.push(state.now.clone());
        }
        Ok((states, results))
    }

    fn load(&self, card: &CardPath) -> Result<State, StoreError> {
        let file = card.file(&self.root);
        let before =
            files::read_if_present(&file).map_err(|source| StoreError::io(&file, source))?;
        let now = before
            .as_deref()
            .map(|bytes| Card::from_document(bytes, Expect::Whole))
            .transpose()
            .map_err(|source| StoreError::Damaged { file, source })?;
        Ok(State { before, now })
    }
}

#[cfg(test)]
mod tests;
