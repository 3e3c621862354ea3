//! The file that `--config` names.
//!
//! Its `[rules]` are for requests of cards. The server sees to it that they cannot make it wrong
//! unnoticed: a resource has the name of its card, whole realms and their changes are always
//! locked, writes that pass are logged when it starts, and a header that overrides the method is
//! refused, as no handler here honors one. A scope that writers share is refused too: each of them
//! reads a card and writes it back.

use std::fs;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};
use tower_realm_lock::{Limits, LockRules, PostgresBuilder};
use url::Url;

use super::{LockKind, address, origin};

/// The values of a file; those that it leaves out are `None`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    #[serde(deserialize_with = "listen")]
    pub listen: Option<SocketAddr>,
    #[serde(deserialize_with = "base_url")]
    pub base_url: Option<Url>,
    pub data_dir: Option<PathBuf>,
    pub lock: Option<LockKind>,
    #[serde(with = "humantime_serde")]
    pub write_delay: Option<Duration>,
    pub cache_cards: Option<usize>,
    pub server_timing: bool,
    pub limits: Limits,
    pub rules: LockRules,
    pub postgres: Option<PostgresBuilder>,
    /// The `url` of `postgres`, for what is not a lock.
    #[serde(skip)]
    pub database_url: Option<String>,
    /// The `fencing` of `postgres`, for the store.
    #[serde(skip)]
    pub fencing: bool,
}

impl File {
    /// Reads a file. Errors say file, line, what is wrong and what would be right, and quote no line: one may hold a password.
    pub fn read(path: &Path) -> Result<Self, String> {
        let name = path.display();
        let text = fs::read_to_string(path).map_err(|cause| {
            format!("cannot read --config {name}: {cause}; give a TOML file that can be read")
        })?;
        Self::parse(&text).map_err(|(span, problem)| match span {
            Some(span) => format!("{name}:{}: {problem}", place(&text, span.start)),
            None => format!("{name}: {problem}"),
        })
    }

    /// Reads its text, or says where it is wrong.
    fn parse(text: &str) -> Result<Self, (Option<Range<usize>>, String)> {
        let tell = |error: toml::de::Error| (error.span(), without_secrets(error.message()));
        let root = DeTable::parse(text).map_err(tell)?;
        let of = |table, key| entry(root.get_ref(), table, key);
        let overrides = of("rules", "method_override").map(|(key, _)| key.span());
        let shared = of("rules", "scopes").and_then(|(_, scopes)| shared(scopes.get_ref()));
        let url = of("postgres", "url").and_then(|(_, url)| url.get_ref().as_str());
        let database_url = url.filter(|url| !url.is_empty()).map(str::to_owned);
        let fencing =
            of("postgres", "fencing").and_then(|(_, fencing)| fencing.get_ref().as_bool());
        let file = Self::deserialize(toml::Deserializer::from(root)).map_err(tell)?;
        if overrides.is_some() {
            let problem = "`method_override` is not for this server: its handlers mind no such header, and a write would pass for a read; leave it out";
            return Err((overrides, problem.to_owned()));
        }
        if shared.is_some() {
            let problem = "`shared` is not for this server: two writers of one card would lose updates; write `resource`";
            return Err((shared, problem.to_owned()));
        }
        Ok(Self {
            database_url,
            fencing: fencing.unwrap_or_default(),
            ..file
        })
    }
}

/// A key of a table, and its value.
fn entry<'a, 'i>(
    root: &'a DeTable<'i>,
    table: &str,
    key: &str,
) -> Option<(&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>)> {
    let find = |table: &'a DeTable<'i>, key| table.iter().find(|(it, _)| it.get_ref() == key);
    let (_, table) = find(root, table)?;
    find(table.get_ref().as_table()?, key)
}

/// Where the first scope is that writers share.
fn shared(scopes: &DeValue<'_>) -> Option<Range<usize>> {
    let scopes = scopes.as_array()?.iter();
    let mut scopes = scopes.filter_map(|route| route.get_ref().as_table()?.get("scope"));
    let shared = scopes.find(|scope| scope.get_ref().as_str() == Some("shared"));
    shared.map(Spanned::span)
}

/// Line and column, as an editor counts them.
fn place(text: &str, offset: usize) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    let line = before.matches('\n').count() + 1;
    let column = before[line_start..].chars().count() + 1;
    format!("{line}:{column}")
}

/// What is wrong, without the key or the value where a password may be: serde quotes both before it lists what it expects.
fn without_secrets(message: &str) -> String {
    match message.rsplit_once(", expected ") {
        Some((quoted, expected)) if quoted.contains(['@', '=']) || quoted.contains("://") => {
            format!(
                "what is here is not shown, because it may hold a password; expected {expected}"
            )
        }
        _ => message.to_owned(),
    }
}

fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    flag(deserializer, address)
}

fn base_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Url>, D::Error> {
    flag(deserializer, origin)
}

/// Reads a value of the file as the flag of that name is read.
fn flag<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    read: fn(&str) -> Result<T, String>,
) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(deserializer)?;
    read(&text).map(Some).map_err(D::Error::custom)
}
