use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::error::LockError;

/// A number that only grows from one hold of a realm to the next, on every replica.
///
/// A store that keeps the greatest token it has seen beside each document, and refuses a smaller one,
/// is safe from a writer that was frozen, lost its lock and goes on. Compare with `<`; print it to
/// keep it, and parse it back. It prints as 48 hexadecimal digits, so its texts are in the same order
/// as the tokens.
///
/// It is made of the server's timeline, the place of its last checkpoint, the transaction id
/// (`pg_current_xact_id`) under which the lock was taken, and the number of hand-offs since. The id
/// is not enough: after a crash PostgreSQL gives ids again that no flushed WAL knew of. A token grows
/// within one PostgreSQL cluster and through its crashes and promotions; a cluster restored from a
/// dump starts again.
///
/// A hold in process has one too, made of the time at which the process took its first lock and of
/// a count of all its holds. It grows for as long as the process runs, and through a restart unless
/// the system's clock has gone back. Every token of PostgreSQL is greater, so a store can move from
/// locks in process to locks in PostgreSQL; on the way back it must forget its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken {
    // The derived order compares the fields in this order.
    timeline: u32,
    checkpoint: u64,
    transaction: u64,
    hand_offs: u32,
}

/// Asks for a token in a transaction that holds its lock.
///
/// After a crash the server makes a checkpoint before it lets anyone in, and a promotion begins a new
/// timeline: so one of the first two grows whenever transaction ids may come again.
pub(super) const ASK: &str = "; SELECT concat_ws(' ', \
     substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8), \
     checkpoint_lsn - '0/0', \
     pg_current_xact_id()) AS fencing_token FROM pg_control_checkpoint()";

/// The column that [`ASK`] answers with.
pub(super) const COLUMN: &str = "fencing_token";

/// The most digits that a token has.
const DIGITS: usize = 48;

impl FencingToken {
    /// Reads the answer to [`ASK`].
    pub(super) fn from_answer(answer: &str) -> Option<Self> {
        let mut parts = answer.split(' ');
        let token = Self {
            timeline: u32::from_str_radix(parts.next()?, 16).ok()?,
            checkpoint: parts.next()?.parse().ok()?,
            transaction: parts.next()?.parse().ok()?,
            hand_offs: 0,
        };
        parts.next().is_none().then_some(token)
    }

    /// A token greater than all that this process has made before.
    pub(super) fn in_process() -> Self {
        static STARTED: LazyLock<u64> = LazyLock::new(nanos_since_1970);
        static HOLDS: AtomicU64 = AtomicU64::new(0);
        Self {
            // PostgreSQL's timelines begin with 1.
            timeline: 0,
            checkpoint: *STARTED,
            transaction: HOLDS.fetch_add(1, Ordering::Relaxed),
            hand_offs: 0,
        }
    }

    /// The token of the hold that the lock is handed on to.
    pub(super) fn next(self) -> Self {
        Self {
            hand_offs: self.hand_offs + 1,
            ..self
        }
    }
}

fn nanos_since_1970() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    // 584 years of nanoseconds fit.
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            timeline,
            checkpoint,
            transaction,
            hand_offs,
        } = self;
        write!(
            f,
            "{timeline:08x}{checkpoint:016x}{transaction:016x}{hand_offs:08x}"
        )
    }
}

/// Reads what a token prints. Leading zeros may be left out.
impl FromStr for FencingToken {
    type Err = LockError;

    fn from_str(token: &str) -> Result<Self, LockError> {
        let invalid = || LockError::InvalidFencingToken {
            token: token.escape_debug().to_string(),
        };
        let digits = token.bytes().all(|byte| byte.is_ascii_hexdigit());
        if token.is_empty() || token.len() > DIGITS || !digits {
            return Err(invalid());
        }
        let padded = format!("{token:0>DIGITS$}");
        let number = |from, to| u64::from_str_radix(&padded[from..to], 16).map_err(|_| invalid());
        Ok(Self {
            timeline: number(0, 8)?.try_into().map_err(|_| invalid())?,
            checkpoint: number(8, 24)?,
            transaction: number(24, 40)?,
            hand_offs: number(40, DIGITS)?.try_into().map_err(|_| invalid())?,
        })
    }
}

/// As the text that it prints.
#[cfg(feature = "serde")]
impl serde::Serialize for FencingToken {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for FencingToken {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let token = String::deserialize(deserializer)?;
        token.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(answer: &str) -> FencingToken {
        FencingToken::from_answer(answer).unwrap()
    }

    #[test]
    fn tokens_and_their_texts_are_in_the_order_of_the_holds() {
        let in_order = [
            "00000001 22021912 734",
            "00000001 22021912 1000",
            // A crash: ids come again, after another checkpoint.
            "00000001 22025200 735",
            // A promotion: a standby that was behind.
            "00000002 22021912 700",
            "0000000A 1 1",
        ]
        .map(token)
        .map(|token| [token, token.next(), token.next().next()])
        .concat();
        assert!(in_order.is_sorted_by(|one, next| one < next));
        assert!(
            in_order
                .iter()
                .map(FencingToken::to_string)
                .is_sorted_by(|one, next| one < next)
        );
    }

    #[test]
    fn tokens_in_process_grow_and_stay_below_those_of_postgresql() {
        let [one, next] = [FencingToken::in_process(), FencingToken::in_process()];
        assert!(one < next && next < token("00000001 0 0"));
        assert!(one.to_string() < next.to_string());
        // So that a restart goes on from here.
        assert!(next.checkpoint > 1_700_000_000_000_000_000, "{next:?}");
    }

    #[test]
    fn a_token_survives_printing() {
        let token = token("00000001 22021912 18446744073709551615").next();
        assert_eq!(token.to_string().parse::<FencingToken>().unwrap(), token);
        assert_eq!(
            "0".parse::<FencingToken>().unwrap().to_string(),
            "0".repeat(DIGITS)
        );
    }

    #[test]
    fn what_is_no_token_is_refused_by_name() {
        for text in [
            "",
            "x",
            "+1",
            "-1",
            "1 ",
            "1\n",
            &"1".repeat(DIGITS + 1),
            "٣",
        ] {
            let error = text.parse::<FencingToken>().unwrap_err().to_string();
            assert!(error.contains(&*text.escape_debug().to_string()), "{error}");
        }
        for answer in ["", "1", "00000001 2", "00000001 2 3 4", "00000001 x 3"] {
            assert_eq!(FencingToken::from_answer(answer), None, "{answer}");
        }
    }
}
