use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::found::Found;
use crate::config::ConfigError;
use crate::realm::error::{RealmError, shown};
use crate::realm::path::{ParsedPath, PathProblem, push_segment};
use crate::realm::url::RealmUrl;

/// Finds a request's realm in a list of mounted realms: the one whose path is the longest beginning
/// of the request's.
///
/// Beginnings are compared by whole segments, decoded: `/luke/` is not a beginning of
/// `/lukes/card`. The list can be changed while the layer is in use, through any clone: all of them
/// share it. A realm at `/` takes what no other one does.
///
/// The path of a realm URL must be the one that requests have. All replicas must mount a realm
/// before the first of them serves a write to it. A write that is under way, or waits, keeps the
/// realm that it was found to be for: a realm that is mounted below another one begins to be
/// written when the writes that came before have ended.
///
/// ```
/// use tower_realm_lock::{RealmMounts, RealmUrl};
///
/// let base: RealmUrl = "https://realms.example.com/base/".parse()?;
/// let skills: RealmUrl = "https://realms.example.com/base/skills/".parse()?;
/// let mounts = RealmMounts::new([base.clone()])?;
/// assert_eq!(mounts.resolve("/base/skills/1")?, base);
///
/// mounts.insert(&skills)?;
/// assert_eq!(mounts.resolve("/base/skills/1")?, skills);
/// # Ok::<(), tower_realm_lock::ConfigError>(())
/// ```
#[derive(Clone, Default)]
pub struct RealmMounts(Arc<RwLock<Mounted>>);

/// By their canonical paths, which end in `/`.
type Mounted = BTreeMap<Box<str>, RealmUrl>;

impl RealmMounts {
    /// These realms; the list may be empty.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert).
    pub fn new(realms: impl IntoIterator<Item = RealmUrl>) -> Result<Self, ConfigError> {
        let mounts = Self::default();
        mounts.set(realms)?;
        Ok(mounts)
    }

    /// Mounts a realm; whether it was not mounted before.
    ///
    /// # Errors
    ///
    /// [`ConfigError::MountTaken`] if a realm of another origin is mounted at the same path.
    pub fn insert(&self, realm: &RealmUrl) -> Result<bool, ConfigError> {
        insert(&mut self.write(), realm)
    }

    /// Takes a realm off the list; whether it was on it.
    #[expect(
        clippy::must_use_candidate,
        reason = "who removes it need not ask whether it was there"
    )]
    pub fn remove(&self, realm: &RealmUrl) -> bool {
        let mut mounted = self.write();
        let there = mounted.get(realm.path()) == Some(realm);
        if there {
            mounted.remove(realm.path());
        }
        there
    }

    /// Replaces the whole list at once: no request sees a part of it.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert); the list is then as it was.
    pub fn set(&self, realms: impl IntoIterator<Item = RealmUrl>) -> Result<(), ConfigError> {
        let mut mounted = Mounted::new();
        for realm in realms {
            insert(&mut mounted, &realm)?;
        }
        *self.write() = mounted;
        Ok(())
    }

    /// The mounted realms, sorted by their paths.
    #[must_use]
    pub fn list(&self) -> Vec<RealmUrl> {
        self.read().values().cloned().collect()
    }

    /// The realm that a request path belongs to. `path` is the raw path of a request, still
    /// percent-encoded.
    ///
    /// # Errors
    ///
    /// [`RealmError::NotMounted`] if it is in none, [`RealmError::AmbiguousPath`] if it could be
    /// read as another path.
    pub fn resolve(&self, path: &str) -> Result<RealmUrl, RealmError> {
        self.find(&ParsedPath::new(path)).map(|found| found.realm)
    }

    pub(in crate::realm) fn find(&self, path: &ParsedPath<'_>) -> Result<Found, RealmError> {
        let ambiguous = |problem: PathProblem| RealmError::AmbiguousPath {
            path: shown(path.raw()),
            problem,
        };
        let segments = path.segments().map_err(ambiguous)?;
        let mounted = self.read();
        let found = longest(&mounted, segments);
        if path.has_separators() {
            // A server that splits such a segment may find a longer one.
            let split = longest(&mounted, path.split_segments());
            if split.as_ref().map(|it| &it.realm) != found.as_ref().map(|it| &it.realm) {
                return Err(ambiguous(PathProblem::Separator));
            }
        }
        let path = || shown(path.raw());
        found.ok_or_else(|| RealmError::NotMounted { path: path() })
    }

    fn read(&self) -> RwLockReadGuard<'_, Mounted> {
        // Nothing panics in the middle of a change.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Mounted> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn insert(mounted: &mut Mounted, realm: &RealmUrl) -> Result<bool, ConfigError> {
    match mounted.get(realm.path()) {
        Some(there) if there == realm => Ok(false),
        Some(there) => Err(ConfigError::MountTaken {
            url: shown(realm.as_str()),
            mounted: shown(there.as_str()),
        }),
        None => {
            mounted.insert(realm.path().into(), realm.clone());
            Ok(true)
        }
    }
}

/// The mounted realm with the longest path that these segments begin with, and how many of them are
/// in it.
fn longest<'a>(mounted: &Mounted, segments: impl Iterator<Item = &'a str>) -> Option<Found> {
    let mut path = String::from("/");
    let mut found = mounted.get(&*path).map(|realm| (realm, 0));
    for (index, segment) in segments.enumerate() {
        push_segment(&mut path, segment);
        if let Some(realm) = mounted.get(&*path) {
            found = Some((realm, index + 1));
        }
    }
    found.map(|(realm, depth)| Found::at(realm.clone(), depth))
}

impl fmt::Debug for RealmMounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RealmMounts")?;
        f.debug_list().entries(self.read().values()).finish()
    }
}
