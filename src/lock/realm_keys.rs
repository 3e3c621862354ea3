use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::future::{BoxFuture, FutureExt, TryFutureExt, try_join_all};
use tokio::time::timeout_at;

use super::error::LockError;
use super::request::LockRequest;
use crate::realm::claim::Claim;
use crate::realm::key::LockKey;
use crate::realm::url::RealmUrl;

/// Gives realms keys of the application's own, and sees that a realm has one at a time.
#[derive(Clone)]
pub(super) struct RealmKeys {
    derive: Arc<Derive>,
    live: Arc<Mutex<Live>>,
}

type Derive = dyn Fn(RealmUrl) -> BoxFuture<'static, Result<LockKey, Problem>> + Send + Sync;
type Problem = Box<dyn Error + Send + Sync>;

/// The keys of realms. A claim keeps those that it was made with.
#[derive(Default)]
struct Live {
    keys: HashMap<RealmUrl, Weak<LockKey>>,
    /// How many may stay until those are dropped that no claim has any more.
    most: usize,
}

impl RealmKeys {
    pub(super) fn new<F, R, E>(derive: F) -> Self
    where
        F: Fn(RealmUrl) -> R + Send + Sync + 'static,
        R: Future<Output = Result<LockKey, E>> + Send + 'static,
        E: Into<Problem> + 'static,
    {
        Self {
            derive: Arc::new(move |realm| derive(realm).map_err(Into::into).boxed()),
            live: Arc::default(),
        }
    }

    /// The claim with these keys for its realms.
    ///
    /// # Errors
    ///
    /// [`LockError::RealmKey`] and [`LockError::TwoKeys`].
    pub(super) async fn of(&self, request: &LockRequest<'_>) -> Result<Claim, LockError> {
        let LockRequest {
            claim,
            deadline,
            timeout,
            ..
        } = *request;
        let keys = claim.realms().iter().map(async |realm| {
            let derived = timeout_at(deadline, (self.derive)(realm.clone())).await;
            let derived =
                derived.unwrap_or_else(|_| Err(format!("no key within {timeout:?}").into()));
            let key = derived.map_err(|problem| LockError::RealmKey {
                realm: realm.clone(),
                source: problem.into(),
            })?;
            self.noted(realm, key)
        });
        Ok(claim.with_realm_keys(try_join_all(keys).await?))
    }

    /// The key as claims keep it, if no claim has another one for this realm.
    fn noted(&self, realm: &RealmUrl, key: LockKey) -> Result<Arc<LockKey>, LockError> {
        // Nothing that can panic runs under this mutex.
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        match live.keys.get(realm).and_then(Weak::upgrade) {
            Some(noted) if *noted == key => Ok(noted),
            Some(noted) => Err(LockError::TwoKeys {
                realm: realm.clone(),
                keys: [*noted, key],
            }),
            None => {
                let noted = Arc::new(key);
                live.keys.insert(realm.clone(), Arc::downgrade(&noted));
                if live.keys.len() > live.most {
                    live.keys.retain(|_, key| key.strong_count() > 0);
                    live.most = 2 * live.keys.len();
                }
                Ok(noted)
            }
        }
    }
}

impl fmt::Debug for RealmKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RealmKeys").finish_non_exhaustive()
    }
}
