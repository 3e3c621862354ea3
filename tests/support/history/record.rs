//! One record of the log, and the log.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;

use tower_realm_lock::FencingToken;

/// What a handler did, at the store that it wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It is inside: from here on it reads what it will replace.
    Enter,
    /// It has replaced what it read.
    Write,
    /// It is done; what follows is its answer.
    Leave,
    /// The store refused it, because of its fencing token, or it found that it had lost its lock:
    /// at the door if it has not entered, and later otherwise.
    Refused,
}

/// One line of the log. Names hold no white space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub event: Event,
    pub realm: String,
    pub request: String,
    pub replica: String,
    pub token: Option<FencingToken>,
}

/// The log that handlers append to.
#[derive(Debug)]
pub struct Log(File);

impl Log {
    /// Opens the log, which may already be there.
    pub fn append_to(path: &Path) -> io::Result<Self> {
        let file = File::options().append(true).create(true).open(path)?;
        Ok(Self(file))
    }

    /// Appends a record: one call of the system, so that no other one's record gets into it.
    pub fn append(&self, record: &Record) -> io::Result<()> {
        self.line(&record.to_string())
    }

    /// Appends a remark for the reader, such as a fault; the checker does not see it.
    pub fn remark(&self, text: &str) -> io::Result<()> {
        self.line(&format!("{REMARK}{text}"))
    }

    fn line(&self, text: &str) -> io::Result<()> {
        let line = format!("{text}\n");
        let written = (&self.0).write(line.as_bytes())?;
        if written == line.len() {
            return Ok(());
        }
        Err(io::Error::other(format!("half a record: {text}")))
    }
}

const REMARK: &str = "# ";

/// Reads a log.
///
/// # Panics
/// When it cannot be read, or a line is no record.
pub fn read(log: &Path) -> Vec<Record> {
    let text = fs::read_to_string(log)
        .unwrap_or_else(|error| panic!("no history in {}: {error}", log.display()));
    text.lines()
        .filter(|line| !line.starts_with(REMARK))
        .map(|line| line.parse().unwrap_or_else(|error| panic!("{error}")))
        .collect()
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            event,
            realm,
            request,
            replica,
            token,
        } = self;
        write!(f, "{event} {realm} {request} {replica} ")?;
        match token {
            Some(token) => token.fmt(f),
            None => f.write_str("-"),
        }
    }
}

impl FromStr for Record {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let refuse = || format!("not a record of a history: '{line}'");
        let words: Vec<&str> = line.split(' ').collect();
        let [event, realm, request, replica, token] = words[..] else {
            return Err(refuse());
        };
        let event = match event {
            "enter" => Event::Enter,
            "write" => Event::Write,
            "leave" => Event::Leave,
            "refused" => Event::Refused,
            _ => return Err(refuse()),
        };
        let token = match token {
            "-" => None,
            token => Some(token.parse().map_err(|_| refuse())?),
        };
        Ok(Self {
            event,
            realm: realm.into(),
            request: request.into(),
            replica: replica.into(),
            token,
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enter => "enter",
            Self::Write => "write",
            Self::Leave => "leave",
            Self::Refused => "refused",
        })
    }
}
