//! The store that the handlers write to: for each realm a list of the requests that wrote it, in a file that is read
//! and replaced as a whole. Two that do so at the same time lose a write.
//!
//! A visit has three steps: enter (and read), write, leave. Each is one section under a lock of the
//! file system on the realm's fence: the fencing token is compared, the deed is done, and its
//! record appended to the history. So records have the order of the deeds. A replica that is frozen
//! within a section keeps all others out of the realm's sections until it goes on, and one that is
//! killed there frees it. One that is overtaken *between* two steps finds a greater token at its
//! next step, and is refused. So is one that finds its lock lost. Without either nobody is refused,
//! and a visit is no safer than its lock.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tower_realm_lock::{FencingToken, HeldLock};

use crate::support::history::record::{Event, Log, Record};

/// The history of a store, in its directory.
const HISTORY: &str = "history.log";

pub struct Store {
    directory: PathBuf,
    log: Log,
    replica: String,
}

/// One request at one realm.
pub struct Visit {
    pub store: Arc<Store>,
    pub realm: String,
    pub request: String,
    pub held: Option<HeldLock>,
    /// Whether the store refuses old tokens. If not, only the visit itself can find out that it has
    /// lost its lock.
    pub is_fenced: bool,
}

/// The list that a visit has read.
pub struct Seen(Vec<u8>);

/// A section under the realm's lock, which ends when it is dropped.
struct Section {
    fence: File,
    greatest: Option<FencingToken>,
}

impl Store {
    pub fn open(directory: &Path, replica: &str) -> io::Result<Self> {
        Ok(Self {
            directory: directory.to_owned(),
            log: Log::append_to(&history(directory))?,
            replica: replica.to_owned(),
        })
    }

    fn list(&self, realm: &str) -> PathBuf {
        list(&self.directory, realm)
    }
}

/// Where the history of a store is.
pub fn history(directory: &Path) -> PathBuf {
    directory.join(HISTORY)
}

/// The requests in a realm's list.
pub fn stored(directory: &Path, realm: &str) -> io::Result<Vec<String>> {
    let bytes = read_if_present(&list(directory, realm))?;
    let text = String::from_utf8(bytes).map_err(io::Error::other)?;
    Ok(text.lines().map(ToOwned::to_owned).collect())
}

fn list(directory: &Path, realm: &str) -> PathBuf {
    directory.join(realm.replace('/', "-"))
}

fn read_if_present(file: &Path) -> io::Result<Vec<u8>> {
    match fs::read(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

/// Every step is `None` if it was refused.
impl Visit {
    /// From here on the store takes no older token.
    pub async fn enter(&self) -> io::Result<Option<Seen>> {
        let mut section = self.section().await?;
        if self.checked_token().is_some() && self.checked_token() <= section.greatest {
            return self.refused();
        }
        if self.has_lost_its_lock() {
            return self.refused();
        }
        section.raise(self.checked_token())?;
        self.record(Event::Enter)?;
        let seen = read_if_present(&self.store.list(&self.realm))?;
        Ok(Some(Seen(seen)))
    }

    /// Puts the request behind what was seen.
    pub async fn write(&self, seen: Seen) -> io::Result<Option<()>> {
        let section = self.section().await?;
        if section.greatest > self.checked_token() || self.has_lost_its_lock() {
            return self.refused();
        }
        let Seen(mut bytes) = seen;
        writeln!(bytes, "{}", self.request)?;
        let list = self.store.list(&self.realm);
        let new = list.with_extension("new");
        fs::write(&new, bytes)?;
        fs::rename(&new, &list)?;
        self.record(Event::Write)?;
        Ok(Some(()))
    }

    pub async fn leave(&self) -> io::Result<Option<()>> {
        let section = self.section().await?;
        if section.greatest > self.checked_token() || self.has_lost_its_lock() {
            return self.refused();
        }
        self.record(Event::Leave)?;
        Ok(Some(()))
    }

    fn token(&self) -> Option<FencingToken> {
        self.held.as_ref().and_then(HeldLock::fencing_token)
    }

    fn checked_token(&self) -> Option<FencingToken> {
        self.token().filter(|_| self.is_fenced)
    }

    fn has_lost_its_lock(&self) -> bool {
        let ensured = self.held.as_ref().map(HeldLock::ensure_held);
        ensured.is_some_and(|ensured| ensured.is_err())
    }

    /// Waits without a thread: whoever is in a section may be frozen.
    async fn section(&self) -> io::Result<Section> {
        let path = self.store.list(&self.realm).with_extension("fence");
        let fence = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        loop {
            match fence.try_lock() {
                Ok(()) => return Section::begin(fence),
                Err(TryLockError::WouldBlock) => sleep(Duration::from_millis(1)).await,
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    fn refused<T>(&self) -> io::Result<Option<T>> {
        self.record(Event::Refused)?;
        Ok(None)
    }

    fn record(&self, event: Event) -> io::Result<()> {
        self.store.log.append(&Record {
            event,
            realm: self.realm.clone(),
            request: self.request.clone(),
            replica: self.store.replica.clone(),
            token: self.token(),
        })
    }
}

impl Section {
    fn begin(mut fence: File) -> io::Result<Self> {
        let mut text = String::new();
        fence.read_to_string(&mut text)?;
        let greatest = match &*text {
            "" => None,
            text => Some(
                text.trim_start_matches('0')
                    .parse()
                    .map_err(io::Error::other)?,
            ),
        };
        Ok(Self { fence, greatest })
    }

    /// One write of always the same length: a replica that is killed leaves the old token or the new one.
    fn raise(&mut self, token: Option<FencingToken>) -> io::Result<()> {
        if let Some(token) = token {
            self.fence.rewind()?;
            self.fence.write_all(token.to_string().as_bytes())?;
        }
        Ok(())
    }
}
