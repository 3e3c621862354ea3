//! What the page shows, at one moment: as JSON for scripts and other programs, and in words for the template.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::database::DatabaseLock;
use super::status::{Standing, Subject};

/// How many realms are listed. The longest known come first; a page of thousands would help nobody.
const REALMS: usize = 100;

/// How many holders of one realm are listed: those that share it may be many.
const HOLDERS: usize = 10;

/// A time in whole milliseconds: a number in JSON, words on the page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl From<Duration> for Millis {
    fn from(time: Duration) -> Self {
        Self(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Millis {
    /// The script's `duration` says it in the same words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            millis @ 0..1_000 => write!(f, "{millis} ms"),
            millis @ 1_000..60_000 => write!(f, "{}.{} s", millis / 1_000, millis % 1_000 / 100),
            millis => write!(f, "{} min {} s", millis / 60_000, millis % 60_000 / 1_000),
        }
    }
}

/// The locks as one replica sees them.
#[derive(Debug, Serialize)]
pub struct Snapshot {
    /// The address that it listens on.
    pub replica: String,
    /// How it locks: the value of `--lock`.
    pub lock: String,
    /// When: milliseconds since 1970.
    pub at_ms: u64,
    /// How many claims are held, and how many wait, listed or not.
    pub held: usize,
    pub waiting: usize,
    pub longest_wait_ms: Millis,
    pub realms: Vec<Realm>,
    /// How many realms are not listed.
    pub more_realms: usize,
    /// The samples that the receiver does not have yet, oldest first.
    pub waits: Vec<Sample>,
    /// What PostgreSQL says of all replicas; `None` if the locks are not there, or it does not answer.
    pub database: Option<Vec<DatabaseLock>>,
    /// Why `database` is missing though the locks are there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database_problem: Option<&'static str>,
}

/// A realm that is held or waited for.
#[derive(Debug, Serialize)]
pub struct Realm {
    #[serde(rename = "realm")]
    pub url: String,
    pub holders: Vec<Holder>,
    /// How many holders are not listed.
    pub more_holders: usize,
    pub waiting: usize,
    pub longest_wait_ms: Millis,
}

#[derive(Debug, Serialize)]
pub struct Holder {
    pub claim: String,
    /// How much of the realm is held.
    pub extent: String,
    pub held_ms: Millis,
}

/// The queue at one moment.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    pub at_ms: u64,
    pub waiting: usize,
    pub longest_wait_ms: Millis,
}

/// The claims of one moment, told by realm.
#[derive(Debug, Default)]
pub struct Standings {
    pub held: usize,
    pub waiting: usize,
    pub longest_wait_ms: Millis,
    pub realms: Vec<Realm>,
    pub more_realms: usize,
}

impl Standings {
    /// Tells claims by realm; a claim of several realms stands at each.
    pub fn by_realm(claims: &[Standing]) -> Self {
        let mut told = Self::default();
        let mut places: HashMap<&str, usize> = HashMap::new();
        for claim in claims {
            let since = Millis::from(claim.since);
            if claim.held {
                told.held += 1;
            } else {
                told.waiting += 1;
                told.longest_wait_ms = told.longest_wait_ms.max(since);
            }
            for subject in &claim.subjects {
                let place = *places.entry(&subject.realm).or_insert_with(|| {
                    told.realms.push(Realm::new(&subject.realm));
                    told.realms.len() - 1
                });
                told.realms[place].add(claim, subject, since);
            }
        }
        told.more_realms = told.realms.len().saturating_sub(REALMS);
        told.realms.truncate(REALMS);
        told
    }

    pub fn sample(&self) -> Sample {
        Sample {
            at_ms: now_ms(),
            waiting: self.waiting,
            longest_wait_ms: self.longest_wait_ms,
        }
    }
}

impl Snapshot {
    pub fn database_locks(&self) -> &[DatabaseLock] {
        self.database.as_deref().unwrap_or_default()
    }
}

impl Realm {
    fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            holders: Vec::new(),
            more_holders: 0,
            waiting: 0,
            longest_wait_ms: Millis(0),
        }
    }

    fn add(&mut self, claim: &Standing, subject: &Subject, since: Millis) {
        if !claim.held {
            self.waiting += 1;
            self.longest_wait_ms = self.longest_wait_ms.max(since);
        } else if self.holders.len() < HOLDERS {
            self.holders.push(Holder {
                claim: claim.claim.clone(),
                extent: subject.extent.clone(),
                held_ms: since,
            });
        } else {
            self.more_holders += 1;
        }
    }

    pub fn origin(&self) -> &str {
        parts(&self.url).0
    }

    pub fn path(&self) -> &str {
        parts(&self.url).1
    }
}

/// A URL up to its path, which is the same for all realms of a server, and the path. The script's `parts` does the same.
pub fn parts(url: &str) -> (&str, &str) {
    let path = url
        .split_once("://")
        .and_then(|(_, rest)| rest.split_once('/'));
    let length = path.map_or(0, |(_, path)| path.len() + 1);
    url.split_at(url.len() - length)
}

/// The time of day as scripts count it.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Millis::from(since.unwrap_or_default()).0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(realms: &[&str], held: bool, millis: u64) -> Standing {
        Standing {
            claim: "a claim".to_owned(),
            subjects: realms
                .iter()
                .map(|&realm| Subject {
                    realm: realm.to_owned(),
                    extent: "all".to_owned(),
                })
                .collect(),
            held,
            since: Duration::from_millis(millis),
        }
    }

    #[test]
    fn claims_are_told_by_realm_in_order_of_arrival() {
        let told = Standings::by_realm(&[
            standing(&["https://h/b/"], true, 90),
            standing(&["https://h/b/"], false, 40),
            standing(&["https://h/a/", "https://h/b/"], false, 30),
        ]);
        assert_eq!((told.held, told.waiting), (1, 2));
        assert_eq!(told.longest_wait_ms, Millis(40));
        let seen: Vec<_> = told
            .realms
            .iter()
            .map(|it| {
                (
                    it.url.as_str(),
                    it.holders.len(),
                    it.waiting,
                    it.longest_wait_ms.0,
                )
            })
            .collect();
        assert_eq!(
            seen,
            [("https://h/b/", 1, 2, 40), ("https://h/a/", 0, 1, 30)]
        );
    }

    #[test]
    fn what_is_not_listed_is_counted() {
        let names: Vec<_> = (0..REALMS + 3).map(|n| format!("https://h/{n}/")).collect();
        let mut claims: Vec<_> = names
            .iter()
            .map(|name| standing(&[name], true, 1))
            .collect();
        claims.extend((0..HOLDERS).map(|_| standing(&["https://h/0/"], true, 1)));
        let told = Standings::by_realm(&claims);
        assert_eq!((told.realms.len(), told.more_realms), (REALMS, 3));
        assert_eq!(
            (told.realms[0].holders.len(), told.realms[0].more_holders),
            (HOLDERS, 1)
        );
        assert_eq!(told.held, claims.len());
    }

    #[test]
    fn a_url_is_its_origin_and_its_path() {
        for (url, origin, path) in [
            ("https://h:1/a/b/", "https://h:1", "/a/b/"),
            ("https://h", "https://h", ""),
            ("odd/", "odd/", ""),
            ("", "", ""),
        ] {
            assert_eq!(parts(url), (origin, path));
        }
    }

    #[test]
    fn a_time_is_a_number_in_json_and_words_on_the_page() {
        for (millis, words) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1.0 s"),
            (59_999, "59.9 s"),
            (61_000, "1 min 1 s"),
        ] {
            assert_eq!(Millis(millis).to_string(), words);
            assert_eq!(
                serde_json::to_string(&Millis(millis)).unwrap(),
                millis.to_string()
            );
        }
    }
}
