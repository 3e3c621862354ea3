use crate::realm::claim::Lock;

/// The call of a function of advisory locks for a key of a claim.
pub(super) fn call(function: &str, lock: &Lock) -> String {
    let shared = if lock.is_shared() { "_shared" } else { "" };
    match lock.key.pair() {
        Some((first, second)) => format!("{function}{shared}({first}, {second})"),
        None => format!("{function}{shared}({})", lock.key),
    }
}
