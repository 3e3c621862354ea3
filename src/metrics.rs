//! The numbers that the feature `metrics` gives; without it nothing is counted and nothing is paid.
//!
//! They are about this process. `docs/operations.md` lists them.

use std::time::Duration;

#[cfg(feature = "metrics")]
use tokio::time::Instant;

/// A caller that has asked for a lock, until it is granted or refused.
pub(crate) struct Waiting(());

/// A lock that is held.
#[derive(Debug)]
pub(crate) struct Held {
    #[cfg(feature = "metrics")]
    since: Instant,
}

impl Waiting {
    pub(crate) fn begin() -> Self {
        #[cfg(feature = "metrics")]
        metrics::gauge!("realm_lock_waiting").increment(1.0);
        Self(())
    }

    /// The lock is granted.
    pub(crate) fn granted(self, waited: Duration) -> Held {
        drop(self);
        #[cfg(feature = "metrics")]
        {
            metrics::histogram!("realm_lock_wait_seconds").record(waited);
            metrics::gauge!("realm_lock_held").increment(1.0);
        }
        #[cfg(not(feature = "metrics"))]
        let _ = waited;
        Held {
            #[cfg(feature = "metrics")]
            since: Instant::now(),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        #[cfg(feature = "metrics")]
        metrics::gauge!("realm_lock_waiting").decrement(1.0);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        #[cfg(feature = "metrics")]
        {
            metrics::histogram!("realm_lock_hold_seconds").record(self.since.elapsed());
            metrics::gauge!("realm_lock_held").decrement(1.0);
        }
    }
}

pub(crate) fn handed_on() {
    #[cfg(feature = "metrics")]
    metrics::counter!("realm_lock_hand_offs_total").increment(1);
}

pub(crate) fn lost() {
    #[cfg(feature = "metrics")]
    metrics::counter!("realm_lock_losses_total").increment(1);
}

/// Another replica of a fleet has another text for this component.
pub(crate) fn disagreed(component: &'static str) {
    #[cfg(feature = "metrics")]
    metrics::counter!("realm_lock_fleet_differences_total", "component" => component).increment(1);
    #[cfg(not(feature = "metrics"))]
    let _ = component;
}

/// `code` is that of the rejection.
pub(crate) fn rejected(code: &'static str) {
    #[cfg(feature = "metrics")]
    metrics::counter!("realm_lock_rejections_total", "code" => code).increment(1);
    #[cfg(not(feature = "metrics"))]
    let _ = code;
}
