//! Cards as files: `DIR/<owner>/<realm>/<path>.json`.
//!
//! Plain blocking code, with no lock of its own: between its read and its write another replica may
//! write the same card. That is the race that the lock layer closes, and `--lock off` shows. Every
//! step that others can see is preceded by [`Permit::ensure`], so that a writer which has lost its
//! lock meanwhile changes nothing.

mod batch;
mod error;
mod fault;
mod fence;
mod files;
mod permit;
mod realm;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::card::{Card, Expect};
use crate::path::CardPath;
use crate::precondition::{ETag, Precondition};
use batch::Replacement;
pub use error::StoreError;
pub use fault::{Fault, Step};
pub use permit::Permit;
pub use realm::RealmChange;

/// The cards of all realms below one directory.
pub struct Store {
    pub root: PathBuf,
    /// How long a write waits after it has read what it changes.
    pub write_delay: Duration,
    /// Whether a write needs a fencing token that is not older than the card's last one.
    pub fencing: bool,
    /// What goes wrong on purpose.
    pub fault: Fault,
}

/// One change to one card.
#[derive(Debug)]
pub struct Operation {
    pub card: CardPath,
    pub change: Change,
    /// What the card must be before it: checked between the read and the write, and so under the lock.
    pub only_if: Precondition,
}

/// A card as an operation left it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub card: Card,
    pub etag: ETag,
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
    now: Option<Stored>,
}

impl Stored {
    fn of(card: Card) -> Self {
        let etag = ETag::of(&card.to_document());
        Self { card, etag }
    }
}

impl Store {
    /// Reads a card; `None` if there is none.
    pub fn read(&self, card: &CardPath) -> Result<Option<Stored>, StoreError> {
        Ok(self.load(card)?.now)
    }

    /// Applies the operations in order, all or none, and gives the card as each of them left it.
    pub fn write(
        &self,
        operations: &[Operation],
        permit: &Permit,
    ) -> Result<Vec<Option<Stored>>, StoreError> {
        let permit = permit.checked(self.fencing)?;
        for realm in operations.iter().map(|it| it.card.realm()) {
            if self.is_pending(realm) {
                return Err(StoreError::Unsettled(realm.clone()));
            }
            if let Some(token) = permit.token {
                fence::check(&realm.directory(&self.root), token)?;
            }
        }
        let (states, results) = self.plan(operations)?;
        thread::sleep(self.write_delay);
        let replacements: Vec<_> = states
            .into_iter()
            .map(|(card, state)| Replacement {
                file: card.file(&self.root),
                before: state.before,
                after: state.now.map(|it| it.card.to_document()),
            })
            // Added and removed again: nothing to do.
            .filter(|it| it.before.is_some() || it.after.is_some())
            .collect();
        batch::replace_all(&replacements, &permit)?;
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
    ) -> Result<(BTreeMap<&'a CardPath, State>, Vec<Option<Stored>>), StoreError> {
        let mut states = BTreeMap::new();
        let mut results = Vec::with_capacity(operations.len());
        for (operation, it) in operations.iter().enumerate() {
            let Operation {
                card,
                change,
                only_if,
            } = it;
            let state = match states.entry(card) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(self.load(card)?),
            };
            if !only_if.allows_write(state.now.as_ref().map(|it| &it.etag)) {
                let card = card.clone();
                return Err(StoreError::Precondition { card });
            }
            state.now = match (change, state.now.take()) {
                (Change::Add(card), None) => Some(Stored::of(card.clone())),
                (Change::Update(patch), Some(Stored { mut card, .. })) => {
                    card.merge(patch);
                    Some(Stored::of(card))
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
            .map(|bytes| {
                let card = Card::from_document(bytes, Expect::Whole)?;
                let etag = ETag::of(bytes);
                Ok(Stored { card, etag })
            })
            .transpose()
            .map_err(|source| StoreError::Damaged { file, source })?;
        Ok(State { before, now })
    }
}

#[cfg(test)]
mod tests;
