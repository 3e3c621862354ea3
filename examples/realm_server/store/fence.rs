//! Fencing: a hidden file beside each card keeps the fencing token of its last write, and outlives the card, so that a
//! write that comes late, from a hold that ended long ago, is refused.

use std::path::{Path, PathBuf};

use tempfile::TempPath;
use tower_realm_lock::FencingToken;

use super::{StoreError, files};

/// A fencing token on its way to its place beside a card.
pub struct Fence {
    token: FencingToken,
    staged: TempPath,
}

impl Fence {
    pub fn stage(card: &Path, token: FencingToken) -> Result<Self, StoreError> {
        let file = fence_of(card);
        let staged = files::stage(&file, token.to_string().as_bytes())
            .map_err(|source| StoreError::io(&file, source))?;
        Ok(Self { token, staged })
    }

    /// Puts the token in its place, unless a newer one has come there since [`check`].
    pub fn raise(self, card: &Path) -> Result<(), StoreError> {
        check(card, self.token)?;
        let file = fence_of(card);
        self.staged
            .persist(&file)
            .map_err(|error| error.error)
            .and_then(|()| files::sync_directory_of(&file))
            .map_err(|source| StoreError::io(&file, source))
    }
}

/// Refuses a token that is older than the stored one.
pub fn check(card: &Path, offered: FencingToken) -> Result<(), StoreError> {
    let file = fence_of(card);
    let stored = files::read_if_present(&file).map_err(|source| StoreError::io(&file, source))?;
    let Some(stored) = stored else {
        return Ok(());
    };
    let stored = std::str::from_utf8(&stored)
        .ok()
        .and_then(|text| text.trim_end().parse::<FencingToken>().ok())
        // Whatever it means, it must not be overwritten: it could be newer.
        .ok_or(StoreError::DamagedFence { file })?;
    if offered < stored {
        return Err(StoreError::StaleFencingToken { offered, stored });
    }
    Ok(())
}

fn fence_of(card: &Path) -> PathBuf {
    card.with_file_name(files::hidden(card) + "fence")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn token(text: &str) -> FencingToken {
        text.parse().unwrap()
    }

    #[test]
    fn the_fence_lies_hidden_beside_the_card() {
        assert_eq!(
            fence_of(Path::new("/d/x.json")),
            Path::new("/d/.x.json.fence")
        );
    }

    #[test]
    fn only_an_older_token_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let card = directory.path().join("x.json");
        check(&card, token("7")).unwrap();
        Fence::stage(&card, token("7"))
            .unwrap()
            .raise(&card)
            .unwrap();
        check(&card, token("7")).unwrap();
        check(&card, token("10")).unwrap();
        assert!(matches!(
            check(&card, token("6")),
            Err(StoreError::StaleFencingToken { .. })
        ));
    }

    #[test]
    fn a_token_that_came_between_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let card = directory.path().join("x.json");
        let late = Fence::stage(&card, token("6")).unwrap();
        Fence::stage(&card, token("7"))
            .unwrap()
            .raise(&card)
            .unwrap();
        assert!(late.raise(&card).is_err());
        let stored = fs::read_to_string(fence_of(&card)).unwrap();
        assert_eq!(stored, token("7").to_string());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_fence_that_cannot_be_read_stops_the_write() {
        let directory = tempfile::tempdir().unwrap();
        let card = directory.path().join("x.json");
        for content in [&b""[..], b"seven", b"\xff"] {
            fs::write(fence_of(&card), content).unwrap();
            assert!(matches!(
                check(&card, token("8")),
                Err(StoreError::DamagedFence { .. })
            ));
        }
    }
}
