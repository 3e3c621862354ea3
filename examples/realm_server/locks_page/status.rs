//! What this process holds and waits for, as the library tells it: the page's one look into the locks.

use std::time::Duration;

use tower_realm_lock::{Claim, ClaimStatus, RealmLocks, RealmUrl};

/// One claim that is held or waits.
pub struct Standing {
    /// The claim in words.
    pub claim: String,
    /// What it is about, one or more: usually a realm.
    pub subjects: Vec<Subject>,
    pub held: bool,
    /// For how long it has been held, or has waited.
    pub since: Duration,
}

/// A part of a claim.
pub struct Subject {
    /// The realm's URL; for a claim that has no realm, the claim itself.
    pub realm: String,
    /// How much of the realm, in words.
    pub extent: String,
}

/// All claims of this process, in order of arrival; none without locks.
pub fn standings(locks: Option<&RealmLocks>) -> Vec<Standing> {
    let status = locks.map(RealmLocks::status).unwrap_or_default();
    status.iter().map(Standing::from).collect()
}

impl From<&ClaimStatus> for Standing {
    fn from(status: &ClaimStatus) -> Self {
        let claim = status.claim();
        let mut subjects: Vec<_> = claim
            .realms()
            .iter()
            .map(|realm| Subject {
                realm: realm.to_string(),
                extent: extent(claim, realm),
            })
            .collect();
        if subjects.is_empty() {
            subjects.push(Subject {
                realm: claim.to_string(),
                extent: "the key".to_owned(),
            });
        }
        Self {
            claim: claim.to_string(),
            subjects,
            held: status.is_held(),
            since: status.since(),
        }
    }
}

fn extent(claim: &Claim, realm: &RealmUrl) -> String {
    let mut extent = match claim.resources_of(realm) {
        Some(paths) => paths.join(", ").escape_debug().to_string(),
        // The realm as a whole would add nothing to it.
        None if claim.and(&Claim::realm(realm)) == *claim => "the whole realm".to_owned(),
        None => "the realm, shared".to_owned(),
    };
    for other in claim.realms().iter().filter(|other| *other != realm) {
        extent += ", with ";
        extent += other.as_str();
    }
    extent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extent_of_a_claim_is_told_for_each_realm() {
        let [a, b] = ["https://h/a/", "https://h/b/"].map(|url| RealmUrl::parse(url).unwrap());
        let cards = Claim::resources(&a, ["x", "y\u{202e}"]);
        for (claim, realm, words) in [
            (Claim::realm(&a), &a, "the whole realm"),
            (cards.clone(), &a, "x, y\\u{202e}"),
            (Claim::resources::<&str>(&a, []), &a, "the realm, shared"),
            (
                cards.and(&Claim::realm(&b)),
                &b,
                "the whole realm, with https://h/a/",
            ),
        ] {
            assert_eq!(extent(&claim, realm), words);
        }
    }
}
