//! Publishes a layer's fingerprint, so that replicas which disagree find out.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::lock::locks::RealmLocks;
use crate::realm::classify::{RULES, Realms};

/// The fleet that a layer and its clones belong to.
#[derive(Clone)]
pub(super) struct Fleet {
    name: Arc<str>,
    /// The fingerprints that were published already: a router makes many services of one layer, and
    /// clones can have other rules.
    published: Arc<Mutex<BTreeSet<Fingerprint>>>,
}

/// Each component's name and text.
type Fingerprint = Vec<(&'static str, String)>;

impl Fleet {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            published: Arc::default(),
        }
    }

    /// Publishes a layer's fingerprint, the first time that a service is made of it.
    pub(super) fn join<B>(&self, locks: &RealmLocks, realms: &Realms<B>, enabled: bool) {
        let mut fingerprint = realms.fingerprint();
        if !enabled {
            for (component, text) in &mut fingerprint {
                if *component == RULES {
                    "enabled(false): nothing is locked".clone_into(text);
                }
            }
        }
        // A set that is only added to is never half changed.
        let published = self.published.lock();
        let mut published = published.unwrap_or_else(PoisonError::into_inner);
        if published.insert(fingerprint.clone()) {
            locks.join_fleet(&self.name, fingerprint);
        }
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}
