//! Replacing several files: all of them, or none.
//!
//! A reader may see the first file before the last one, and a crash between two renames leaves a part: there is no
//! journal. Within those limits a failure at any point puts back what was there.

use std::io::ErrorKind;
use std::path::PathBuf;

use tempfile::TempPath;
use tracing::error;

use super::fence::{self, Fence};
use super::{Permit, StoreError, files};

/// The content of one file, before and after; `None` where there is no file.
pub struct Replacement {
    pub file: PathBuf,
    pub before: Option<Vec<u8>>,
    pub after: Option<Vec<u8>>,
}

/// A replacement with all its bytes on disk: what is left to do is renaming.
struct Staged<'a> {
    replacement: &'a Replacement,
    content: Option<TempPath>,
    fence: Option<Fence>,
}

/// Makes all replacements, for as long as the permit lasts.
pub fn replace_all(replacements: &[Replacement], permit: &Permit) -> Result<(), StoreError> {
    permit.ensure()?;
    if let Some(token) = permit.token {
        for replacement in replacements {
            fence::check(&replacement.file, token)?;
        }
    }
    let mut made = Vec::new();
    let mut replaced = Vec::new();
    let result = stage(replacements, permit, &mut made)
        .and_then(|staged| publish(staged, permit, &mut replaced));
    if result.is_err() {
        undo(&replaced, permit);
        if permit.excludes_others() {
            for directory in made.iter().rev() {
                // One that is not empty is in use by now.
                let _ = std::fs::remove_dir(directory);
            }
        }
    }
    result
}

fn stage<'a>(
    replacements: &'a [Replacement],
    permit: &Permit,
    made: &mut Vec<PathBuf>,
) -> Result<Vec<Staged<'a>>, StoreError> {
    let mut staged = Vec::with_capacity(replacements.len());
    for replacement in replacements {
        let file = &replacement.file;
        let failed = |source| StoreError::io(file, source);
        // Only what is new may need a directory.
        if replacement.before.is_none() {
            files::make_directory(files::directory_of(file), made).map_err(failed)?;
        }
        let content = replacement.after.as_deref();
        staged.push(Staged {
            replacement,
            content: content
                .map(|bytes| files::stage(file, bytes))
                .transpose()
                .map_err(failed)?,
            fence: permit
                .token
                .map(|token| Fence::stage(file, token))
                .transpose()?,
        });
    }
    Ok(staged)
}

/// Renames everything into its place, and notes what it has replaced, also when it fails half way.
fn publish<'a>(
    staged: Vec<Staged<'a>>,
    permit: &Permit,
    replaced: &mut Vec<&'a Replacement>,
) -> Result<(), StoreError> {
    for Staged {
        replacement,
        content,
        fence,
    } in staged
    {
        let file = &replacement.file;
        let failed = |source| StoreError::io(file, source);
        permit.ensure()?;
        // The fence first: with the card first, an older write could still get in between the two.
        if let Some(fence) = fence {
            fence.raise(file)?;
            permit.ensure()?;
        }
        match content {
            // The lock keeps other writers out, and so a file that is there was overlooked: a network
            // file system may remember for a while that there was none.
            Some(content) if replacement.before.is_none() && permit.is_of_a_hold() => {
                content
                    .persist_noclobber(file)
                    .map_err(|error| match error.error {
                        error if error.kind() == ErrorKind::AlreadyExists && file.is_file() => {
                            StoreError::Overlooked { file: file.clone() }
                        }
                        error => failed(error),
                    })?;
            }
            Some(content) => content.persist(file).map_err(|error| failed(error.error))?,
            None => files::remove(file).map_err(failed)?,
        }
        replaced.push(replacement);
        files::sync_directory_of(file).map_err(failed)?;
    }
    Ok(())
}

/// Puts back what was there. Fences stay raised: they refuse only writes that are older than this one.
fn undo(replaced: &[&Replacement], permit: &Permit) {
    for Replacement { file, before, .. } in replaced.iter().rev() {
        if let Some(token) = permit.token
            && fence::check(file, token).is_err()
        {
            // A later hold has written the card since: it is not this write's to put back.
            continue;
        }
        let staged = before.as_ref().map(|bytes| files::stage(file, bytes));
        // A later hold may have written anything since, and been answered that it stands.
        if !permit.excludes_others() {
            return;
        }
        let put_back = match staged {
            Some(staged) => {
                staged.and_then(|staged| staged.persist(file).map_err(|error| error.error))
            }
            None => files::remove(file),
        };
        if let Err(cause) = put_back.and_then(|()| files::sync_directory_of(file)) {
            error!(%cause, file = %file.display(), "a write that failed half way could not be undone");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tower_realm_lock::{LockError, RealmLocks, RealmUrl};

    use super::*;

    #[tokio::test]
    async fn a_writer_that_has_lost_its_lock_undoes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.json");
        let write = |before: &[u8]| Replacement {
            file: file.clone(),
            before: Some(before.to_vec()),
            after: Some(b"after".to_vec()),
        };
        let early = write(b"before");
        replace_all(std::slice::from_ref(&early), &Permit::default()).unwrap();
        // Between two files of the early write a later hold makes the same change, and succeeds.
        replace_all(&[write(b"after")], &Permit::default()).unwrap();

        let realm: RealmUrl = "http://h/luke/r/".parse().unwrap();
        let work = |held| async move { Ok::<_, LockError>(Permit::of(Some(&held))) };
        let locks = RealmLocks::in_process();
        let lost = locks.with_write_lock(&realm, work).await.unwrap();
        undo(&[&early], &lost);
        assert_eq!(fs::read(&file).unwrap(), b"after");
        undo(&[&early], &Permit::default());
        assert_eq!(fs::read(&file).unwrap(), b"before");
    }

    #[tokio::test]
    async fn a_card_that_was_overlooked_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.json");
        fs::write(&file, b"theirs").unwrap();
        let add = Replacement {
            file: file.clone(),
            before: None,
            after: Some(b"ours".to_vec()),
        };
        let realm: RealmUrl = "http://h/luke/r/".parse().unwrap();
        let work =
            |held| async move { Ok::<_, LockError>(replace_all(&[add], &Permit::of(Some(&held)))) };
        let locks = RealmLocks::in_process();
        let added = locks.with_write_lock(&realm, work).await.unwrap();
        let error = added.unwrap_err();
        assert!(matches!(error, StoreError::Overlooked { .. }), "{error}");
        assert_eq!(fs::read(&file).unwrap(), b"theirs");
    }

    #[test]
    fn a_write_of_a_later_hold_is_not_undone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.json");
        let write = |before: Option<&[u8]>, after: &[u8], token: &str| {
            let replacement = Replacement {
                file: file.clone(),
                before: before.map(Vec::from),
                after: Some(after.to_vec()),
            };
            let permit = token.parse().ok().into();
            replace_all(std::slice::from_ref(&replacement), &permit).unwrap();
            replacement
        };
        let early = write(None, b"early", "7");
        let late = write(Some(b"early"), b"late", "8");

        undo(&[&early], &"7".parse().ok().into());
        assert_eq!(fs::read(&file).unwrap(), b"late");
        undo(&[&late], &"8".parse().ok().into());
        assert_eq!(fs::read(&file).unwrap(), b"early");
    }
}
