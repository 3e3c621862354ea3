use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

/// A number that only grows from one hold of a realm to the next, on every replica.
///
/// A store that keeps the greatest token it has seen beside each document, and refuses a smaller one, is safe from a writer
/// that was frozen, lost its lock and goes on. It is the transaction id (`pg_current_xact_id()`, 64 bits) of the hold, so it
/// grows within one PostgreSQL cluster; a cluster restored from a dump starts again from a smaller one.
///
/// Compare with `<`; print and parse it to keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(u64);

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for FencingToken {
    type Err = ParseIntError;

    fn from_str(token: &str) -> Result<Self, Self::Err> {
        token.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_ordered_by_number_and_survives_printing() {
        let [small, great]: [FencingToken; 2] = ["9", "10"].map(|token| token.parse().unwrap());
        assert!(small < great);
        assert_eq!(great.to_string().parse(), Ok(great));
        assert!("10.x".parse::<FencingToken>().is_err());
    }
}
