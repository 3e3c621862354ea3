//! Changes to whole realms: their directories are made, swapped and removed, and a change that does not come to its end is
//! undone, also after a crash.
//!
//! A change prepares the new files beside the realm, writes a journal, and swaps by renaming. The journal says that the
//! realm is between two states, and is removed when it is known which one stands:
//!
//! ```text
//! DIR/luke/r/                the realm
//! DIR/luke/.r.<change>.new/  what it shall be
//! DIR/luke/.r.<change>.old/  what it was, until the change stands
//! DIR/luke/.r.pending        the journal: {"change":"<uuid>","old":…,"new":…,"rows":…}
//! ```
//!
//! Without a database the removal of the journal is what makes a change stand. With one it is the commit of the rows: they
//! name the change, and whoever finds a journal asks them ([`crate::realms`]). All of this runs under the realm's lock.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Value, json};
use uuid::Uuid;

use super::fault::Step;
use super::{Permit, Store, StoreError, fence, files};
use crate::path::RealmPath;

/// In the directory of a published realm; the name of a card never starts with a dot.
const PUBLISHED: &str = ".published";

/// What becomes of a realm.
#[derive(Clone, Debug)]
pub enum RealmChange {
    Create,
    Delete,
    /// A copy of this realm takes its place.
    Publish(RealmPath),
    Unpublish,
}

/// A change whose new files, if any, lie beside the realm.
#[derive(Debug)]
pub struct Prepared {
    pub change: Uuid,
    realm: RealmPath,
    /// Whether there was a realm, and whether there shall be one.
    pub old: bool,
    new: bool,
}

/// A change that has begun to swap.
#[derive(Debug)]
pub struct Journal {
    pub change: Uuid,
    /// Whether its rows tell if it stands.
    pub rows: bool,
    old: bool,
    new: bool,
}

impl Store {
    /// Checks that the change can be made, and prepares its files.
    pub fn prepare(&self, realm: &RealmPath, change: &RealmChange) -> Result<Prepared, StoreError> {
        let directory = realm.directory(&self.root);
        let old = directory.is_dir();
        let published = directory.join(PUBLISHED).is_file();
        let id = Uuid::new_v4();
        match change {
            RealmChange::Create if old => return Err(StoreError::RealmExists(realm.clone())),
            RealmChange::Publish(_) if old && !published => {
                return Err(StoreError::RealmExists(realm.clone()));
            }
            RealmChange::Publish(source) if !source.directory(&self.root).is_dir() => {
                return Err(StoreError::RealmMissing(source.clone()));
            }
            RealmChange::Delete | RealmChange::Unpublish if !old => {
                return Err(StoreError::RealmMissing(realm.clone()));
            }
            RealmChange::Unpublish if !published => {
                return Err(StoreError::NotPublished(realm.clone()));
            }
            _ => {}
        }
        thread::sleep(self.write_delay);
        let new = new_of(&directory, id);
        let made = match change {
            RealmChange::Create => make(&new),
            RealmChange::Publish(source) => make(&new)
                .and_then(|()| fs::write(new.join(PUBLISHED), b""))
                .and_then(|()| copy(&source.directory(&self.root), &new)),
            RealmChange::Delete | RealmChange::Unpublish => Ok(()),
        };
        made.map_err(|source| StoreError::io(&new, source))?;
        self.fault.at(Step::Prepared)?;
        Ok(Prepared {
            change: id,
            realm: realm.clone(),
            old,
            new: matches!(change, RealmChange::Create | RealmChange::Publish(_)),
        })
    }

    /// Writes the journal, and swaps. A change that fails here is undone by [`Store::finish`].
    pub fn swap(&self, prepared: &Prepared, rows: bool, permit: &Permit) -> Result<(), StoreError> {
        let directory = prepared.realm.directory(&self.root);
        let failed = |source| StoreError::io(&directory, source);
        let permit = permit.checked(self.fencing)?;
        permit.ensure()?;
        if let Some(token) = permit.token {
            // From here on no card of the realm takes a write of an older hold, nor does the realm a change.
            fence::Fence::stage(&directory, token)?.raise(&directory)?;
        }
        let journal = json!({
            "change": prepared.change.to_string(), "rows": rows, "old": prepared.old, "new": prepared.new,
        });
        let pending = pending_of(&directory);
        let staged = files::stage(&pending, journal.to_string().as_bytes()).map_err(failed)?;
        permit.ensure()?;
        // That of another change tells what its files are, and must stay.
        staged
            .persist_noclobber(&pending)
            .map_err(|error| match error.error.kind() {
                ErrorKind::AlreadyExists => StoreError::Unsettled(prepared.realm.clone()),
                _ => failed(error.error),
            })?;
        files::sync_directory_of(&pending).map_err(failed)?;
        self.fault.at(Step::Journal)?;
        if prepared.old {
            permit.ensure()?;
            fs::rename(&directory, old_of(&directory, prepared.change)).map_err(failed)?;
        }
        self.fault.at(Step::Aside)?;
        if prepared.new {
            permit.ensure()?;
            fs::rename(new_of(&directory, prepared.change), &directory).map_err(failed)?;
        }
        files::sync_directory_of(&directory).map_err(failed)?;
        self.fault.at(Step::Swapped)
    }

    /// Whether a change to this realm has neither come to its end nor been undone.
    pub fn is_pending(&self, realm: &RealmPath) -> bool {
        pending_of(&realm.directory(&self.root)).exists()
    }

    /// The journal of a realm between two states.
    pub fn journal(&self, realm: &RealmPath) -> Result<Option<Journal>, StoreError> {
        let file = pending_of(&realm.directory(&self.root));
        let bytes =
            files::read_if_present(&file).map_err(|source| StoreError::io(&file, source))?;
        let Some(bytes) = bytes else {
            return Ok(None);
        };
        let journal = serde_json::from_slice(&bytes).ok().and_then(|it: Value| {
            Some(Journal {
                change: it["change"].as_str()?.parse().ok()?,
                rows: it["rows"].as_bool()?,
                old: it["old"].as_bool()?,
                new: it["new"].as_bool()?,
            })
        });
        journal.ok_or(StoreError::DamagedJournal { file }).map(Some)
    }

    /// Ends the change that the realm's journal tells of, if there is one: it stands, or is undone. Then removes what is left
    /// of it. Can be done again if it fails half way.
    pub fn finish(
        &self,
        realm: &RealmPath,
        stands: bool,
        permit: &Permit,
    ) -> Result<(), StoreError> {
        let journal = self.journal(realm)?;
        let directory = realm.directory(&self.root);
        let failed = |source| StoreError::io(&directory, source);
        if journal.is_some() {
            self.fault.at(Step::Settle)?;
        }
        permit.ensure()?;
        if let Some(journal) = &journal
            && !stands
        {
            restore(&directory, journal).map_err(failed)?;
        }
        if journal.is_some() {
            let pending = pending_of(&directory);
            permit.ensure()?;
            files::remove(&pending)
                .and_then(|()| files::sync_directory_of(&pending))
                .map_err(failed)?;
        }
        permit.ensure()?;
        sweep(&directory).map_err(failed)?;
        if !stands {
            // Made for this realm alone, if it is empty; and no harm is done if it was there before.
            let _ = fs::remove_dir(files::directory_of(&directory));
        }
        Ok(())
    }

    /// The realms of which a change has left something: after a crash, or because it is under way.
    pub fn unsettled(&self) -> Result<Vec<RealmPath>, StoreError> {
        let failed = |source| StoreError::io(&self.root, source);
        let mut realms = Vec::new();
        for owner in names_in(&self.root).map_err(failed)? {
            // A name that is no owner's holds no realms.
            let Ok(names) = names_in(&self.root.join(&owner)) else {
                continue;
            };
            let left = names.iter().filter_map(|name| realm_of_leftover(name));
            realms.extend(left.filter_map(|realm| RealmPath::named(&owner, realm).ok()));
        }
        realms.sort();
        realms.dedup();
        Ok(realms)
    }
}

/// Puts back what was there. Each state that a crash can leave is one of: not begun, the old aside, swapped, or in the midst
/// of this.
fn restore(directory: &Path, journal: &Journal) -> io::Result<()> {
    let (old, new) = (
        old_of(directory, journal.change),
        new_of(directory, journal.change),
    );
    let swapped = journal.new && !new.exists() && directory.exists();
    if swapped && (!journal.old || old.exists()) {
        fs::rename(directory, &new)?;
    }
    if old.exists() {
        fs::rename(&old, directory)?;
    }
    files::sync_directory_of(directory)
}

/// Removes the hidden directories of all changes to this realm. None of them is under way: they need its lock.
fn sweep(directory: &Path) -> io::Result<()> {
    let parent = files::directory_of(directory);
    let Some(realm) = directory.file_name().and_then(|name| name.to_str()) else {
        return Ok(());
    };
    for name in names_in(parent)? {
        if name != format!(".{realm}.pending") && realm_of_leftover(&name) == Some(realm) {
            fs::remove_dir_all(parent.join(name)).or_else(absent)?;
        }
    }
    Ok(())
}

/// The realm whose change has left a file or directory of this name: `.r.pending`, `.r.<uuid>.new` or `.r.<uuid>.old`.
fn realm_of_leftover(name: &str) -> Option<&str> {
    let (rest, suffix) = name.strip_prefix('.')?.rsplit_once('.')?;
    if suffix == "pending" {
        return Some(rest);
    }
    let (realm, change) = rest.rsplit_once('.')?;
    (matches!(suffix, "new" | "old") && Uuid::try_parse(change).is_ok()).then_some(realm)
}

fn new_of(directory: &Path, change: Uuid) -> PathBuf {
    directory.with_file_name(format!("{}{change}.new", files::hidden(directory)))
}

fn old_of(directory: &Path, change: Uuid) -> PathBuf {
    directory.with_file_name(format!("{}{change}.old", files::hidden(directory)))
}

fn pending_of(directory: &Path) -> PathBuf {
    directory.with_file_name(files::hidden(directory) + "pending")
}

fn names_in(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    // A name that is no text is not one of ours.
    entries
        .filter_map(|entry| {
            entry
                .map(|it| it.file_name().into_string().ok())
                .transpose()
        })
        .collect()
}

fn make(directory: &Path) -> io::Result<()> {
    files::make_directory(directory, &mut Vec::new())
}

/// Copies the cards of a realm, with every byte on disk when it returns. Hidden files are the store's own, and stay.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let (from, to) = (entry.path(), to.join(name));
        if kind.is_dir() {
            fs::create_dir(&to)?;
            copy(&from, &to)?;
        } else {
            io::copy(&mut File::open(from)?, &mut File::create_new(&to)?)?;
            File::open(&to)?.sync_all()?;
        }
    }
    files::sync_directory(to)
}

fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == ErrorKind::NotFound {
        Ok(())
    } else {
        Err(error)
    }
}

#[cfg(test)]
mod tests;
