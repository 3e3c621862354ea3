//! Whether what is compared excludes: a lock that does not can be fast.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use http::{Request, Response};
use tokio::task::yield_now;
use tower::service_fn;

use crate::contenders::{BARE, Contender, IN_POSTGRES};
use crate::guard::{Guard, Handler};
use crate::support::gate::key;

/// Its key is not negative, so that distributed-lock-postgres can take it too.
const PATH: &str = "/luke/exclusive/card";

/// Sees that every contender excludes itself, and those in PostgreSQL each other, as they take the same key.
///
/// # Panics
/// When two calls meet that must not, or when calls that nothing guards do not, and the check shows nothing.
pub async fn check(contenders: &[Contender]) {
    assert!(key(PATH) >= 0);
    let mut in_postgres = Vec::new();
    for Contender { name, guard, .. } in contenders {
        assert_eq!(calls_meet(&[guard]).await, *name == BARE, "{name}");
        if IN_POSTGRES.contains(name) {
            in_postgres.push(guard);
        }
    }
    assert!(!calls_meet(&in_postgres).await);
}

/// Whether any two of a few concurrent writes of one realm are in the handler at the same time.
async fn calls_meet(guards: &[&Guard]) -> bool {
    const WRITES_EACH: usize = 10;
    let lookout = Lookout::default();
    let guarded: Vec<_> = guards
        .iter()
        .map(|guard| guard.around(lookout.handler()))
        .collect();
    let turns = guarded.iter().cycle().take(guarded.len() * WRITES_EACH);
    join_all(turns.map(|guarded| guarded.patch(PATH))).await;
    lookout.saw_calls_meet()
}

/// Watches a handler for calls that are in it at the same time.
#[derive(Clone, Default)]
pub struct Lookout {
    inside: Arc<AtomicBool>,
    met: Arc<AtomicBool>,
}

impl Lookout {
    /// A handler that answers 200 and gives others the chance to come in meanwhile.
    pub fn handler(&self) -> impl Handler + use<> {
        let lookout = self.clone();
        service_fn(move |_: Request<String>| {
            let lookout = lookout.clone();
            async move {
                if lookout.inside.swap(true, Ordering::SeqCst) {
                    lookout.met.store(true, Ordering::SeqCst);
                }
                yield_now().await;
                lookout.inside.store(false, Ordering::SeqCst);
                Ok::<_, Infallible>(Response::new(String::new()))
            }
        })
    }

    pub fn saw_calls_meet(&self) -> bool {
        self.met.load(Ordering::SeqCst)
    }
}
