use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::PoisonError;
#[cfg(not(shuttle))]
use std::sync::{Mutex, MutexGuard};

// The model checker chooses which thread runs next wherever a mutex is taken.
#[cfg(shuttle)]
use shuttle::sync::{Mutex, MutexGuard};

use super::Baton;
use super::lane::Lane;
use crate::realm::claim::Claim;
use crate::realm::key::LockKey;

/// So many that callers of distinct realms rarely meet, and few enough to visit all of them.
const SHARDS: usize = 32;

/// The lanes of all keys, in shards with a mutex of their own.
pub(super) struct Shards<B: Baton> {
    hashing: Hashing,
    shards: Box<[Shard<B>]>,
}

/// On cache lines of its own: neighbors belong to other callers.
#[repr(align(128))]
struct Shard<B: Baton>(Mutex<Lanes<B>>);

/// Some keys' lanes.
pub(super) struct Lanes<B: Baton> {
    by_key: HashMap<LockKey, Lane<B>, Hashing>,
    /// A closed lane, whose memory the next one takes over.
    spare: Option<Lane<B>>,
}

/// The lanes of a claim's keys. A claim of several keys takes the mutexes in their order.
pub(super) struct Locked<'a, B: Baton> {
    hashing: Hashing,
    first: (usize, MutexGuard<'a, Lanes<B>>),
    others: Vec<(usize, MutexGuard<'a, Lanes<B>>)>,
}

impl<B: Baton> Shards<B> {
    /// The lanes of the claim's keys.
    pub(super) fn lock(&self, claim: &Claim) -> Locked<'_, B> {
        let hashing = self.hashing;
        let lock = |shard: usize| (shard, self.shards[shard].lanes());
        let of_keys = || claim.locks().iter().map(|lock| hashing.shard(lock.key));
        let first = of_keys().min().unwrap_or_default();
        let mut locked = Locked {
            hashing,
            first: lock(first),
            others: Vec::new(),
        };
        if claim.locks().len() > 1 {
            let mut others: Vec<usize> = of_keys().filter(|shard| *shard != first).collect();
            others.sort_unstable();
            others.dedup();
            locked.others.extend(others.into_iter().map(lock));
        }
        locked
    }

    /// The lanes of all keys, at one moment.
    pub(super) fn lock_all(&self) -> Vec<MutexGuard<'_, Lanes<B>>> {
        self.shards.iter().map(Shard::lanes).collect()
    }
}

impl<B: Baton> Shard<B> {
    fn lanes(&self) -> MutexGuard<'_, Lanes<B>> {
        // No code that can panic runs under this mutex, so a poisoned one is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Baton> Lanes<B> {
    pub(super) fn all(&self) -> impl Iterator<Item = &Lane<B>> {
        self.by_key.values()
    }

    pub(super) fn get_mut(&mut self, key: LockKey) -> Option<&mut Lane<B>> {
        self.by_key.get_mut(&key)
    }

    /// The key's lane, which is made if there is none.
    pub(super) fn open(&mut self, key: LockKey) -> &mut Lane<B> {
        let spare = &mut self.spare;
        let lane = self.by_key.entry(key);
        lane.or_insert_with(|| spare.take().unwrap_or_default())
    }

    /// Removes a lane in which nobody is.
    pub(super) fn close(&mut self, key: LockKey) {
        let closed = self.by_key.remove(&key);
        self.spare = closed.and_then(Lane::reset);
    }
}

impl<B: Baton> Locked<'_, B> {
    /// The lanes among which the key's is, if it has one.
    pub(super) fn lanes_of(&mut self, key: LockKey) -> &mut Lanes<B> {
        if self.others.is_empty() {
            return &mut self.first.1;
        }
        let shard = self.hashing.shard(key);
        let other = self.others.iter_mut().find(|(of, _)| *of == shard);
        let (_, lanes) = other.unwrap_or(&mut self.first);
        lanes
    }

    pub(super) fn lane(&mut self, key: LockKey) -> Option<&mut Lane<B>> {
        self.lanes_of(key).get_mut(key)
    }
}

impl<B: Baton> Default for Shards<B> {
    fn default() -> Self {
        let hashing = Hashing::default();
        let lanes = || Lanes {
            by_key: HashMap::with_hasher(hashing),
            spare: None,
        };
        let shard = |_| Shard(Mutex::new(lanes()));
        Self {
            hashing,
            shards: (0..SHARDS).map(shard).collect(),
        }
    }
}

/// Hashes a key by one multiplication. Clients may choose keys, so it is seeded: each queue has
/// multiplier and mask of its own, which nobody outside of the process learns.
#[derive(Clone, Copy)]
pub(super) struct Hashing {
    multiplier: u64,
    mask: u64,
}

pub(super) struct Folded {
    hashing: Hashing,
    hash: u64,
}

impl Hashing {
    fn shard(self, key: LockKey) -> usize {
        // Not the bits by which a map places a key among its own.
        usize::try_from(self.hash_one(key) >> 32).unwrap_or_default() % SHARDS
    }
}

impl Default for Hashing {
    fn default() -> Self {
        let random = RandomState::new();
        Self {
            multiplier: random.hash_one(1) | 1,
            mask: random.hash_one(2),
        }
    }
}

impl BuildHasher for Hashing {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded {
            hashing: *self,
            hash: self.mask,
        }
    }
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.hash ^ number) * u128::from(self.hashing.multiplier);
        let (low, high) = (product & u128::from(u64::MAX), product >> 64);
        // Both halves, as each alone ignores some bits of the key.
        self.hash = u64::try_from(low ^ high).unwrap_or_default();
    }

    fn write_i64(&mut self, number: i64) {
        self.write_u64(number.cast_unsigned());
    }

    fn finish(&self) -> u64 {
        self.hash
    }
}
