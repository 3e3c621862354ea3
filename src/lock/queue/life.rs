use std::sync::atomic::{AtomicUsize, Ordering};

/// Whether the owner of a turn still polls its call, as a watchdog sees it.
///
/// A call that is neither polled nor dropped would keep its turn for ever. The watchdog visits
/// every turn twice per bound, and revokes one that was not polled in between. A revoked call is
/// never polled again, and a call is never revoked in the middle of a poll: both are decided by one
/// atomic exchange.
#[derive(Debug)]
pub(super) struct Life(AtomicUsize);

/// Polled since the last visit.
const POLLED: usize = 1;
/// One poll in progress; the holds that share one turn can be polled on several threads.
const POLL: usize = 2;
const REVOKED: usize = usize::MAX;

impl Life {
    pub(super) fn new() -> Self {
        Self(AtomicUsize::new(POLLED))
    }

    /// Notes a sign of life.
    pub(super) fn note(&self) {
        let _ = self.change(|state| Some(state | POLLED));
    }

    /// Begins a poll; `false` if the turn was revoked. Every `true` is followed by one
    /// [`end`](Self::end).
    pub(super) fn begin(&self) -> bool {
        self.change(|state| Some(state + POLL))
    }

    pub(super) fn end(&self) {
        self.change(|state| Some((state - POLL) | POLLED));
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.0.load(Ordering::Acquire) == REVOKED
    }

    /// The watchdog's visit; whether the turn is revoked by it.
    pub(super) fn visit(&self) -> bool {
        if self.change(|state| (state == 0).then_some(REVOKED)) {
            return true;
        }
        self.change(|state| Some(state & !POLLED));
        false
    }

    fn change(&self, to: impl Fn(usize) -> Option<usize>) -> bool {
        let living = |state| (state != REVOKED).then(|| to(state)).flatten();
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, living)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_was_not_polled_between_two_visits_is_revoked_for_ever() {
        let life = Life::new();
        assert!(!life.visit(), "it is new");
        life.note();
        assert!(!life.visit() && life.visit());
        life.note();
        assert!(life.is_revoked() && !life.begin() && !life.visit());
    }

    #[test]
    fn a_call_is_not_revoked_while_it_is_polled() {
        let life = Life::new();
        assert!(life.begin() && life.begin());
        for _ in 0..3 {
            assert!(!life.visit());
        }
        life.end();
        assert!(!life.visit() && !life.visit(), "the other poll goes on");
        life.end();
        assert!(!life.visit() && life.visit());
    }
}
