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

use serde::de::{Deserialize, Deserializer, MapAccess};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};
use tower_realm_lock::{Limits, LockRules, PostgresBuilder};
use url::Url;

use super::{LockKind, address, origin};
use crate::table::value::Value;
use crate::table::words::shown;
use crate::table::{self, Table};

/// What a file says; what it leaves out is none.
#[derive(Default)]
pub struct File {
    pub listen: Option<SocketAddr>,
    pub base_url: Option<Url>,
    pub data_dir: Option<PathBuf>,
    pub lock: Option<LockKind>,
    pub write_delay: Option<Duration>,
    pub cache_cards: Option<usize>,
    pub server_timing: bool,
    pub limits: Limits,
    pub rules: LockRules,
    pub postgres: Option<PostgresBuilder>,
    /// The `url` of `postgres`, for what is not a lock.
    pub database_url: Option<String>,
    /// The `fencing` of `postgres`, for the store.
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
        let tell = |error: toml::de::Error| (error.span(), error.message().to_owned());
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

impl<'de> Deserialize<'de> for File {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        table::read(Self::default(), deserializer)
    }
}

impl Table for File {
    type Made = Self;

    const NAME: &'static str = "the file";
    const KEYS: &'static [&'static str] = &[
        "listen",
        "base_url",
        "data_dir",
        "lock",
        "write_delay",
        "cache_cards",
        "server_timing",
        "limits",
        "rules",
        "postgres",
    ];

    fn set<'de, A: MapAccess<'de>>(mut self, value: Value<'_, A>) -> Result<Self, A::Error> {
        let locks = [LockKind::Postgres, LockKind::InProcess, LockKind::Off];
        match value.key {
            "listen" => self.listen = Some(value.text("an address", flag(address))?),
            "base_url" => self.base_url = Some(value.text("an origin", flag(origin))?),
            "data_dir" => self.data_dir = Some(value.text("a directory", |it| Ok(it.into()))?),
            "lock" => self.lock = Some(value.one_of(&locks.map(|it| (it.name(), it)))?),
            "write_delay" => self.write_delay = Some(value.time(Ok)?),
            "cache_cards" => self.cache_cards = Some(value.whole(|cards| Ok(cards as usize))?),
            "server_timing" => self.server_timing = value.flag(Ok)?,
            "limits" => self.limits = value.map.next_value()?,
            "rules" => self.rules = value.map.next_value()?,
            _ => self.postgres = Some(value.map.next_value()?),
        }
        Ok(self)
    }

    fn made(self) -> Option<Self> {
        Some(self)
    }
}

/// What a flag's value is read with, for a file's, which is not repeated by anybody else.
fn flag<T>(read: fn(&str) -> Result<T, String>) -> impl Fn(&str) -> Result<T, String> {
    move |text| read(text).map_err(|problem| format!("{} cannot be used: {problem}", shown(text)))
}
