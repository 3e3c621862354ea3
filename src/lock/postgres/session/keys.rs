use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::realm::claim::Lock;
use crate::realm::key::LockKey;

/// The keys that a session has asked for, granted or not.
///
/// Locks of one session do not exclude each other, so it must not ask twice except to share: a
/// caller may have left, and its turn gone on, while its grant is still on the way.
pub(super) struct Keys {
    kept: HashMap<LockKey, Kept>,
    /// How long after its first holder a key may be shared anew.
    share_time: Duration,
}

/// A key that this session has asked for.
struct Kept {
    /// How many have it: one, or several who share it.
    count: usize,
    shared: bool,
    since: Instant,
    /// How many have left it of whom nobody knows whether the server had granted it to them. They
    /// are unlocked with the last one: one unlock too many would be that of somebody who is still
    /// inside.
    doubtful: usize,
}

impl Keys {
    pub(super) fn new(share_time: Duration) -> Self {
        Self {
            kept: HashMap::new(),
            share_time,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Notes the keys of a claim that is to be asked for; `false` if that cannot be on this session.
    pub(super) fn note(&mut self, locks: &[Lock]) -> bool {
        let may_be_asked = |lock: &Lock| {
            self.kept.get(&lock.key).is_none_or(|kept| {
                lock.is_shared() && kept.shared && kept.since.elapsed() < self.share_time
            })
        };
        if !locks.iter().all(may_be_asked) {
            return false;
        }
        for lock in locks {
            let kept = self.kept.entry(lock.key).or_insert_with(|| Kept {
                count: 0,
                shared: lock.is_shared(),
                since: Instant::now(),
                doubtful: 0,
            });
            kept.count += 1;
        }
        true
    }

    /// Takes a holder's keys off the list; what is then to be unlocked besides.
    pub(super) fn forget(&mut self, locks: &[Lock]) -> Vec<Lock> {
        let mut doubtful = Vec::new();
        for lock in locks {
            if let Some(kept) = self.kept.get_mut(&lock.key) {
                kept.count -= 1;
                if kept.count == 0 {
                    doubtful.extend(std::iter::repeat_n(*lock, kept.doubtful));
                    self.kept.remove(&lock.key);
                }
            }
        }
        doubtful
    }

    /// What of the keys of a claim, which the server may have granted or not, can be unlocked at
    /// once. Others share the rest.
    pub(super) fn in_doubt(&mut self, locks: &[Lock]) -> Vec<Lock> {
        let mut alone = Vec::new();
        for lock in locks {
            match self.kept.get_mut(&lock.key) {
                Some(kept) if kept.count > 1 => kept.doubtful += 1,
                _ => alone.push(*lock),
            }
        }
        alone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::realm::claim::Claim;

    const SHARE_TIME: Duration = Duration::from_millis(100);

    fn card(path: &str) -> Claim {
        Claim::resources(&"http://h/a/".parse().unwrap(), [path])
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_asked_for_once_but_to_share_and_not_for_ever() {
        let mut keys = Keys::new(SHARE_TIME);
        let [x, y, z] = ["x", "y", "z"].map(card);
        assert!(keys.note(x.locks()));
        assert!(!keys.note(x.locks()), "the card is taken");
        assert!(keys.note(y.locks()), "the realm is shared");
        tokio::time::advance(SHARE_TIME).await;
        assert!(!keys.note(z.locks()), "others wait for the realm by now");
        let whole = Claim::realm(&"http://h/a/".parse().unwrap());
        assert!(!keys.note(whole.locks()), "a session never excludes itself");
        for claim in [&x, &y] {
            assert!(keys.forget(claim.locks()).is_empty());
        }
        assert_eq!(keys.len(), 0);
        assert!(keys.note(whole.locks()) && !keys.note(z.locks()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_doubt_is_unlocked_with_the_last_who_shares_it() {
        let mut keys = Keys::new(SHARE_TIME);
        let [x, y] = ["x", "y"].map(card);
        assert!(keys.note(x.locks()) && keys.note(y.locks()));
        let at_once = keys.in_doubt(y.locks());
        assert_eq!(at_once.len(), 1, "the card, and not the shared realm");
        assert!(!at_once[0].is_shared());
        assert!(keys.forget(y.locks()).is_empty(), "x is still inside");
        let besides = keys.forget(x.locks());
        assert_eq!(besides.len(), 1);
        assert!(besides[0].is_shared());
        assert_eq!(keys.len(), 0);
    }
}
