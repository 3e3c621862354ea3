use super::commands::{Asked, Confirm, Publication, Release};
use super::statements::{answers, try_lock, unlock};
use crate::lock::error::chain;
use crate::lock::postgres::answer::Answer;
use crate::lock::postgres::confirmation::Unconfirmed;
use crate::lock::token;

/// What is sent to the server at once, and answered at once.
pub(super) enum Message {
    Lock(Vec<Asked>),
    Unlock(Vec<Release>),
    Publish(Vec<Publication>),
    /// The smallest message that the server answers: an empty query.
    Empty,
}

/// The session is lost, and all its locks.
pub(super) struct Lost;

impl Message {
    pub(super) fn statement(&self, fencing: bool) -> String {
        match self {
            Self::Lock(asked) => {
                let mut statement = try_lock(asked.iter().flat_map(|ask| ask.claim.locks()));
                if fencing {
                    // After the locks, so that the holders before have their tokens already.
                    statement += token::ASK;
                }
                statement
            }
            Self::Unlock(releases) => unlock(releases.iter().flat_map(|release| &release.locks)),
            Self::Publish(publications) => {
                let statements: Vec<&str> = publications.iter().map(|it| &*it.statement).collect();
                // One transaction: PostgreSQL commits them one at a time.
                statements.join("; ")
            }
            Self::Empty => String::new(),
        }
    }
}

pub(super) fn settle_unlocks(releases: Vec<Release>, answer: Answer) -> Result<(), Lost> {
    let rows = answer.map_err(|_| Lost)?;
    let count = releases.iter().map(|release| release.locks.len()).sum();
    let mut unlocked = answers(&rows, count).ok_or(Lost)?.into_iter();
    for Release { locks, confirm } in releases {
        // As many answers as keys, in their order. All are taken, whatever the first is.
        let all = unlocked
            .by_ref()
            .take(locks.len())
            .fold(true, |all, one| all & one);
        match confirm {
            Confirm::Nobody => {}
            Confirm::Holder(confirmer) => confirmer.publish(proof(all)),
            Confirm::Publication(unlocked) => {
                let _ = unlocked.send(all);
            }
        }
    }
    Ok(())
}

pub(super) fn settle_publications(publications: Vec<Publication>, answer: &Answer) {
    if let Err(error) = answer {
        tracing::warn!(error = %chain(error), "writes could not be published to the other replicas");
    }
    for mut publication in publications {
        // The unlock was sent, and so answered, before.
        let unlocked = publication.unlocked.try_recv().unwrap_or(false);
        let confirmer = publication.confirmer;
        confirmer.publish(proof(unlocked && answer.is_ok()));
    }
}

fn proof(is_positive: bool) -> Result<(), Unconfirmed> {
    is_positive.then_some(()).ok_or(Unconfirmed::Lost)
}
