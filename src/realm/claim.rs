use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::slice;
use std::sync::Arc;

use super::error::RealmError;
use super::key::LockKey;
use super::url::RealmUrl;

/// Above so many resources a realm is taken whole, as cardstack/boxel's realm servers do.
pub(in crate::realm) const MAX_RESOURCES: usize = 256;

/// What one caller must hold: a sorted set of lock keys, each exclusive or shared.
///
/// All of it is granted or nothing, in one round trip. Keys are always taken in one order, so that
/// callers whose claims overlap do not deadlock: those of realms and of spaces before those of
/// resources, and each of the two in the order of the numbers written out, character by character,
/// as cardstack/boxel's realm servers take them. Cheap to clone; two claims are equal if their keys
/// and modes are.
///
/// ```
/// use tower_realm_lock::{Claim, LockKey, RealmUrl};
///
/// let source = RealmUrl::parse("https://realms.example.com/luke/draft/")?;
/// let target = RealmUrl::parse("https://realms.example.com/luke/site/")?;
/// // Both realms whole, for a publish.
/// let publish = Claim::realm(&source).and(&Claim::realm(&target));
/// assert_eq!(publish, Claim::realm(&target).and(&Claim::realm(&source)));
/// // Two cards of one realm: the writers of its other cards go on meanwhile.
/// let cards = Claim::resources(&source, ["cards/1", "cards/2"]);
/// // Something that is no realm: the budget of a user.
/// let budget = Claim::from(LockKey::in_space("user-cost", "42")?);
/// # let _ = (cards, budget);
/// # Ok::<(), tower_realm_lock::RealmError>(())
/// ```
#[derive(Clone)]
pub struct Claim(Arc<Parts>);

struct Parts {
    /// In the [order](Lock::order) in which they are taken, each key once.
    locks: List<Lock>,
    /// In the order in which they were named.
    realms: List<RealmUrl>,
    /// The key of each realm.
    keys: List<LockKey>,
    /// The keys that are not made of URLs: they live as long as a claim that has them.
    own_keys: Box<[Arc<LockKey>]>,
    /// In the order in which they were named, without those of a realm that is taken whole.
    resources: Box<[Resource]>,
}

/// One item is kept in place: most claims have one lock and one realm.
enum List<T> {
    One(T),
    Many(Box<[T]>),
}

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::One(one) => slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

impl<T> From<Vec<T>> for List<T> {
    fn from(items: Vec<T>) -> Self {
        Self::Many(items.into())
    }
}

/// One key of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Lock {
    pub(crate) key: LockKey,
    pub(crate) mode: LockMode,
    /// The realm's key, for a resource: whoever has that exclusively has this too.
    realm: Option<LockKey>,
}

/// Who else may have the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum LockMode {
    /// All who want it shared.
    Shared,
    /// Nobody.
    Exclusive,
}

/// A part of a realm that is locked by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Resource {
    realm: RealmUrl,
    path: Box<str>,
}

impl Claim {
    /// A realm as a whole: exclusive.
    #[must_use]
    pub fn realm(realm: &RealmUrl) -> Self {
        let key = LockKey::of(realm);
        Self::whole(key, List::One(realm.clone()), List::One(key))
    }

    /// One key exclusively. Nothing to sort or to leave out: the claim of most requests takes no
    /// detour.
    fn whole(key: LockKey, realms: List<RealmUrl>, keys: List<LockKey>) -> Self {
        let lock = Lock {
            key,
            mode: LockMode::Exclusive,
            realm: None,
        };
        Self(Arc::new(Parts {
            locks: List::One(lock),
            realms,
            keys,
            own_keys: Box::default(),
            resources: Box::default(),
        }))
    }

    /// Some resources of a realm: each exclusive, and the realm shared.
    ///
    /// Claims on other resources of the realm go on meanwhile; a claim on the [realm](Self::realm)
    /// excludes them all. Without any resource it is the realm shared; above 256, the realm as a
    /// whole.
    ///
    /// A path has its extension, if it is that of a file: `Widget/one.json`. It names one resource
    /// in one way only; the key is that of [cardstack/boxel's servers](LockKey).
    #[must_use]
    pub fn resources<P: AsRef<str>>(realm: &RealmUrl, paths: impl IntoIterator<Item = P>) -> Self {
        let whole = LockKey::of(realm);
        let mut locks = vec![Lock {
            key: whole,
            mode: LockMode::Shared,
            realm: None,
        }];
        let mut resources = Vec::new();
        for path in paths {
            let path = path.as_ref();
            locks.push(Lock {
                key: LockKey::of_resource(realm, path),
                mode: LockMode::Exclusive,
                realm: Some(whole),
            });
            resources.push(Resource {
                realm: realm.clone(),
                path: path.into(),
            });
        }
        let claim = Self::new(Parts {
            locks: locks.into(),
            realms: List::One(realm.clone()),
            keys: List::One(whole),
            own_keys: Box::default(),
            resources: resources.into(),
        });
        if claim.locks().len() > 1 + MAX_RESOURCES {
            return Self::realm(realm);
        }
        claim
    }

    /// Several realms, each as a whole: exclusive.
    ///
    /// ```
    /// use tower_realm_lock::{Claim, RealmUrl};
    ///
    /// let base = RealmUrl::parse("https://realms.example.com/")?;
    /// let realms = [base.join(["luke", "draft"])?, base.join(["luke", "site"])?];
    /// assert_eq!(Claim::of_realms(&realms)?.realms(), realms);
    /// assert!(Claim::of_realms::<RealmUrl>([]).is_err());
    /// # Ok::<(), tower_realm_lock::RealmError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`RealmError::Unresolved`] if there is no realm: a claim on nothing would protect nothing.
    pub fn of_realms<R: Borrow<RealmUrl>>(
        realms: impl IntoIterator<Item = R>,
    ) -> Result<Self, RealmError> {
        let claims = realms.into_iter().map(|realm| Self::realm(realm.borrow()));
        let all = claims.reduce(|all, one| all.and(&one));
        all.ok_or_else(|| RealmError::unresolved("the list of its realms is empty"))
    }

    /// This claim and another one together. What one of them wants exclusively is exclusive.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let (mut realms, mut keys) = (self.0.realms.to_vec(), self.0.keys.to_vec());
        for (realm, key) in other.realms().iter().zip(&*other.0.keys) {
            if !realms.contains(realm) {
                realms.push(realm.clone());
                keys.push(*key);
            }
        }
        Self::new(Parts {
            locks: [&*self.0.locks, &*other.0.locks].concat().into(),
            realms: realms.into(),
            keys: keys.into(),
            own_keys: [&*self.0.own_keys, &*other.0.own_keys].concat().into(),
            resources: [&*self.0.resources, &*other.0.resources].concat().into(),
        })
    }

    /// Sorts the locks, and leaves out what is there twice or in a realm that is taken whole.
    fn new(mut parts: Parts) -> Self {
        let mut locks = parts.locks.to_vec();
        // Of the same key the exclusive one comes first, and stays. A realm's key of one's own may
        // be that of a resource: then it is taken among the realms'.
        locks.sort_unstable_by(|a, b| a.key.cmp(&b.key).then(b.mode.cmp(&a.mode)));
        locks.dedup_by(|later, kept| {
            let same = later.key == kept.key;
            if same {
                kept.realm = kept.realm.and(later.realm);
            }
            same
        });
        locks.sort_by_cached_key(Lock::order);
        parts.locks = locks.into();
        let mut kept: Vec<Resource> = Vec::with_capacity(parts.resources.len());
        for resource in std::mem::take(&mut parts.resources) {
            if !parts.takes_whole(&resource.realm) && !kept.contains(&resource) {
                kept.push(resource);
            }
        }
        // Taken with their realm already.
        let whole = |lock: &&Lock| lock.realm.is_some_and(|realm| parts.has_whole(realm));
        let locks: Vec<Lock> = parts
            .locks
            .iter()
            .filter(|it| !whole(it))
            .copied()
            .collect();
        parts.locks = locks.into();
        parts.resources = kept.into();
        Self(Arc::new(parts))
    }

    /// The realms that it is about, whole or in part.
    #[must_use]
    pub fn realms(&self) -> &[RealmUrl] {
        &self.0.realms
    }

    /// The resources of a realm that it is about: `None` if it takes that realm whole, or names no
    /// resource of it.
    #[must_use]
    pub fn resources_of(&self, realm: &RealmUrl) -> Option<Vec<&str>> {
        let of_realm = self.0.resources.iter().filter(|it| it.realm == *realm);
        let paths: Vec<&str> = of_realm.map(|resource| &*resource.path).collect();
        (!paths.is_empty()).then_some(paths)
    }

    /// The realm, if this is the claim on one realm as a whole and on nothing else.
    pub(in crate::realm) fn as_realm(&self) -> Option<&RealmUrl> {
        match (self.locks(), self.realms()) {
            // The key of each realm is among the keys.
            ([lock], [realm]) if !lock.is_shared() => Some(realm),
            _ => None,
        }
    }

    /// The same with each realm shared that is taken whole here.
    pub(in crate::realm) fn with_shared_realms(&self) -> Self {
        let mut locks = self.locks().to_vec();
        for lock in &mut locks {
            if self.0.keys.contains(&lock.key) {
                lock.mode = LockMode::Shared;
            }
        }
        self.with(locks, self.0.keys.to_vec(), self.0.own_keys.clone())
    }

    /// The same where the realms have these keys, in the order of [`realms`](Self::realms).
    pub(crate) fn with_realm_keys(&self, keys: Vec<Arc<LockKey>>) -> Self {
        self.renamed(keys.iter().map(|key| **key).collect(), keys.into())
    }

    /// The same where the realms have the keys of their URLs; `None` if they have those already.
    pub(crate) fn with_default_keys(&self) -> Option<Self> {
        let has_own = !self.0.own_keys.is_empty();
        has_own.then(|| self.renamed(self.realms().iter().map(LockKey::of).collect(), [].into()))
    }

    fn renamed(&self, keys: Vec<LockKey>, own_keys: Box<[Arc<LockKey>]>) -> Self {
        let renamed = |lock: &Lock| {
            let before = lock.realm.unwrap_or(lock.key);
            // Realms that had one key may have several now.
            let pairs = self.0.keys.iter().zip(&keys);
            let after = pairs.filter(|(it, _)| **it == before);
            let mut all: Vec<Lock> = after
                .map(|(_, after)| match lock.realm {
                    Some(_) => Lock {
                        realm: Some(*after),
                        ..*lock
                    },
                    None => Lock {
                        key: *after,
                        ..*lock
                    },
                })
                .collect();
            if all.is_empty() {
                all.push(*lock);
            }
            all
        };
        let locks = self.locks().iter().flat_map(renamed).collect();
        self.with(locks, keys, own_keys)
    }

    fn with(&self, locks: Vec<Lock>, keys: Vec<LockKey>, own_keys: Box<[Arc<LockKey>]>) -> Self {
        Self::new(Parts {
            locks: locks.into(),
            realms: self.realms().to_vec().into(),
            keys: keys.into(),
            own_keys,
            resources: self.0.resources.clone(),
        })
    }

    /// Each realm that it is about, and its key.
    pub(crate) fn keyed_realms(&self) -> impl Iterator<Item = (&RealmUrl, LockKey)> {
        self.realms().iter().zip(self.0.keys.iter().copied())
    }

    /// Its keys, in their order.
    pub(crate) fn locks(&self) -> &[Lock] {
        &self.0.locks
    }

    /// A claim on the keys that it shares, each for one caller; `None` if it shares none.
    pub(crate) fn shared_keys(&self) -> Option<Self> {
        let shared = self.locks().iter().filter(|lock| lock.is_shared());
        let claims = shared.map(|lock| Self::from(lock.key));
        claims.reduce(|all, one| all.and(&one))
    }

    /// The key by which it is found among others of the same realm.
    pub(crate) fn anchor(&self) -> Option<LockKey> {
        let own = |lock: &&Lock| lock.realm.is_none();
        self.locks().iter().find(own).map(|lock| lock.key)
    }

    /// Whether its holder needs nothing more for the `wanted` key.
    pub(crate) fn has(&self, wanted: &Lock) -> bool {
        let same = self.locks().iter().find(|lock| lock.key == wanted.key);
        same.is_some_and(|lock| lock.mode >= wanted.mode)
            || wanted.realm.is_some_and(|realm| self.0.has_whole(realm))
    }

    /// Whether both have a key, in whatever mode.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        let has = |key| self.locks().iter().any(|lock| lock.key == key);
        other.locks().iter().any(|lock| has(lock.key))
    }
}

impl Parts {
    fn takes_whole(&self, realm: &RealmUrl) -> bool {
        let at = self.realms.iter().position(|it| it == realm);
        at.is_some_and(|at| self.has_whole(self.keys[at]))
    }

    fn has_whole(&self, key: LockKey) -> bool {
        self.locks
            .iter()
            .any(|lock| lock.key == key && lock.mode == LockMode::Exclusive)
    }
}

impl Lock {
    /// By this all locks are taken, here and by cardstack/boxel's realm servers: resources after
    /// realms, and each by the number as text.
    fn order(&self) -> (bool, String) {
        (self.realm.is_some(), self.key.to_string())
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.mode == LockMode::Shared
    }
}

impl PartialEq for Claim {
    fn eq(&self, other: &Self) -> bool {
        self.locks() == other.locks()
    }
}

impl Eq for Claim {}

impl Hash for Claim {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.locks().hash(state);
    }
}

impl From<&RealmUrl> for Claim {
    fn from(realm: &RealmUrl) -> Self {
        Self::realm(realm)
    }
}

impl From<RealmUrl> for Claim {
    fn from(realm: RealmUrl) -> Self {
        Self::realm(&realm)
    }
}

/// A key exclusively: for what is no realm.
impl From<LockKey> for Claim {
    fn from(key: LockKey) -> Self {
        Self::whole(key, Vec::new().into(), Vec::new().into())
    }
}

impl From<&Self> for Claim {
    fn from(claim: &Self) -> Self {
        claim.clone()
    }
}

/// How many resources of a realm, and how many keys of no realm, a message names, and how many
/// characters of each resource: clients choose them.
const MOST_NAMES: usize = 8;
const LONGEST_PATH: usize = 100;
/// As many characters of a realm.
const LONGEST_REALM: usize = 500;

/// Names it in messages: its realms, with their resources in brackets, and its keys of no realm.
/// Untrusted text in it is escaped.
impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (realm, key) in self.keyed_realms() {
            // It is ASCII.
            match realm.as_str().get(..LONGEST_REALM) {
                Some(start) => write!(f, "{separator}{start}...")?,
                None => write!(f, "{separator}{realm}")?,
            }
            separator = " and ";
            if let Some(paths) = self.resources_of(realm) {
                let mut bracket = " (";
                for path in paths.iter().take(MOST_NAMES) {
                    let (start, cut) = match path.char_indices().nth(LONGEST_PATH) {
                        Some((end, _)) => (&path[..end], "..."),
                        None => (*path, ""),
                    };
                    write!(f, "{bracket}{}{cut}", start.escape_debug())?;
                    bracket = ", ";
                }
                match paths.len().saturating_sub(MOST_NAMES) {
                    0 => f.write_str(")")?,
                    more => write!(f, " and {more} more)")?,
                }
            } else if !self.0.has_whole(key) {
                f.write_str(" (shared)")?;
            }
        }
        let of_none = |lock: &&Lock| lock.realm.is_none() && !self.0.keys.contains(&lock.key);
        let mut keys = self.locks().iter().filter(of_none);
        for (at, lock) in keys.by_ref().take(MOST_NAMES).enumerate() {
            match at {
                0 => write!(f, "{separator}lock key {}", lock.key)?,
                _ => write!(f, ", {}", lock.key)?,
            }
        }
        match keys.count() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("locks", &self.locks())
            .field("realms", &self.realms())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn realm(name: &str) -> RealmUrl {
        format!("http://h/{name}/").parse().unwrap()
    }

    #[test]
    fn keys_are_sorted_and_each_is_there_once() {
        let names = ["a", "b", "c", "d", "a", "c"];
        let claims = names.map(|name| Claim::realm(&realm(name)));
        let all = claims
            .iter()
            .fold(claims[0].clone(), |all, claim| all.and(claim));
        assert_eq!(all.locks().len(), 4);
        let keys = all.locks().iter().map(|lock| lock.key.to_string());
        assert!(keys.is_sorted());
        assert_eq!(all.realms(), ["a", "b", "c", "d"].map(realm));
    }

    #[test]
    fn resources_are_taken_as_upstream_takes_files() {
        let a = realm("a");
        let paths = ["x.json", "y.json", "z.json", "x.json"];
        let claim = Claim::resources(&a, paths).and(&Claim::from(LockKey::of(&realm("b"))));
        let order: Vec<(bool, String)> = claim.locks().iter().map(Lock::order).collect();
        // Of the numbers some are negative, and shorter than others.
        let numbers: Vec<LockKey> = claim.locks().iter().map(|lock| lock.key).collect();
        assert!(order.is_sorted() && !numbers.is_sorted(), "{order:?}");
        assert_eq!(claim.locks().len(), 2 + 3);

        let many = |count: usize| Claim::resources(&a, (0..count).map(|it| it.to_string()));
        assert_eq!(many(MAX_RESOURCES).locks().len(), 1 + MAX_RESOURCES);
        assert_eq!(many(MAX_RESOURCES + 1), Claim::realm(&a));
        let none = many(0);
        assert!(none.locks().len() == 1 && none.locks()[0].is_shared());
    }

    #[test]
    fn realms_that_had_one_key_are_all_locked_by_keys_of_their_own() {
        let realms =
            ["a", "b"].map(|name| Claim::realm(&format!("http://h/{name}/").parse().unwrap()));
        let claim = realms[0].and(&realms[1]);
        let one = Arc::new(LockKey::from_raw(9));
        let merged = claim.with_realm_keys(vec![Arc::clone(&one), one]);
        assert_eq!(merged.locks().len(), 1);
        assert_eq!(merged.with_default_keys().as_ref(), Some(&claim));
    }

    #[test]
    fn other_keys_of_realms_are_sorted_and_known_as_theirs() {
        let (a, b) = (realm("a"), realm("b"));
        let claim = Claim::realm(&b).and(&Claim::resources(&a, ["x", "y"]));
        let keys = [LockKey::from_raw(9), LockKey::from_pair(1, 2)].map(Arc::new);
        let own = claim.with_realm_keys(keys.to_vec());
        let locks: Vec<String> = own
            .locks()
            .iter()
            .map(|lock| lock.key.to_string())
            .collect();
        assert_eq!(locks[..2], ["(1, 2)", "9"]);
        assert_eq!(own.to_string(), claim.to_string());
        assert_eq!(own.with_default_keys().as_ref(), Some(&claim));
        assert!(claim.with_default_keys().is_none());
        // With the realm whole, its resources are.
        let whole = own.and(&LockKey::from_pair(1, 2).into());
        assert_eq!(whole.locks().len(), 2);
        assert!(whole.resources_of(&a).is_none());
        assert!(Arc::strong_count(&keys[0]) > 1);
        // One that is a resource's is taken among the realms' all the same.
        let x = Arc::new(LockKey::of_resource(&a, "x"));
        let odd = Claim::resources(&a, ["x"]).with_realm_keys(vec![x]);
        assert!(odd.locks().len() == 1 && !odd.locks()[0].is_shared());
        assert!(odd.anchor().is_some());
    }

    #[test]
    fn a_claim_covers_what_its_holder_need_not_wait_for() {
        let a = realm("a");
        let whole = Claim::realm(&a);
        let x = Claim::resources(&a, ["x"]);
        let both = Claim::resources(&a, ["x", "y"]);
        let covers = |held: &Claim, other: &Claim| other.locks().iter().all(|lock| held.has(lock));
        assert!(covers(&whole, &whole) && covers(&whole, &x) && covers(&whole, &both));
        assert!(covers(&both, &x) && !covers(&x, &both) && !covers(&x, &whole));
        assert!(x.meets(&whole) && x.meets(&both) && !x.meets(&Claim::realm(&realm("b"))));
        assert!(!covers(&whole, &whole.and(&Claim::realm(&realm("b")))));
    }
}
