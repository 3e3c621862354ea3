//! What this machine has to run a PostgreSQL, a pooler and a browser with: their programs and a user that may run them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names the directory of the server's programs, instead of an installed PostgreSQL's.
const SERVER_VARIABLE: &str = "POSTGRES_BIN";

/// The directory that holds `initdb`, `pg_ctl` and `postgres`: the one that `POSTGRES_BIN` names, or else that of the
/// installed PostgreSQL.
///
/// # Panics
/// When there is none, saying what to install.
pub fn server_programs() -> PathBuf {
    let is_complete = |dir: &PathBuf| {
        ["initdb", "pg_ctl", "postgres"]
            .iter()
            .all(|program| dir.join(program).is_file())
    };
    if let Some(dir) = env::var_os(SERVER_VARIABLE).map(PathBuf::from) {
        assert!(
            is_complete(&dir),
            "{SERVER_VARIABLE}: no initdb, pg_ctl and postgres in {}",
            dir.display()
        );
        return dir;
    }
    on_the_path()
        .into_iter()
        .chain(named_by_pg_config())
        .chain(newest_first("/usr/lib/postgresql", ""))
        .chain(newest_first("/usr", "pgsql-"))
        .find(is_complete)
        .unwrap_or_else(|| {
            panic!(
                "no PostgreSQL server programs (initdb, pg_ctl, postgres) in PATH, in `pg_config --bindir`, in \
                 /usr/lib/postgresql/*/bin or in /usr/pgsql-*/bin: run scripts/setup or `apt-get install postgresql`, \
                 name their directory in {SERVER_VARIABLE}, or set TEST_DATABASE_URL to a server for the tests that \
                 can share one"
            )
        })
}

/// The program `pgbouncer`.
///
/// # Panics
/// When there is none, saying what to install.
pub fn bouncer_program() -> PathBuf {
    pooler_program("pgbouncer", "pgbouncer")
}

/// The program `pgpool` of pgpool-II.
///
/// # Panics
/// When there is none, saying what to install.
pub fn pgpool_program() -> PathBuf {
    pooler_program("pgpool", "pgpool2")
}

fn pooler_program(name: &str, package: &str) -> PathBuf {
    on_the_path()
        .into_iter()
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
        .unwrap_or_else(|| {
            panic!(
                "no {name} in PATH, in /usr/sbin or in /usr/local/sbin: run scripts/setup or \
                 `apt-get install {package}`"
            )
        })
}

/// The program `chromedriver`, which starts a Chromium of its own version.
///
/// # Panics
/// When there is none, saying what to install.
pub fn browser_driver() -> PathBuf {
    on_the_path()
        .into_iter()
        .map(|dir| dir.join("chromedriver"))
        .find(|program| program.is_file())
        .unwrap_or_else(|| {
            panic!(
                "no chromedriver in PATH: run scripts/setup or `apt-get install chromium chromium-driver`"
            )
        })
}

fn on_the_path() -> Vec<PathBuf> {
    env::var_os("PATH")
        .map(|path| env::split_paths(&path).collect())
        .unwrap_or_default()
}

fn named_by_pg_config() -> Option<PathBuf> {
    output_of("pg_config", &["--bindir"]).map(PathBuf::from)
}

/// `PARENT/PREFIX<version>/bin` for each version there, the highest first.
fn newest_first(parent: &str, prefix: &str) -> Vec<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.strip_prefix(prefix)?.parse();
            Some((version.ok()?, entry.path().join("bin")))
        })
        .collect();
    versions.sort_by(|a, b| b.cmp(a));
    versions.into_iter().map(|(_, dir)| dir).collect()
}

/// The user and group to run the server as, when it cannot be this process's own: PostgreSQL and PgBouncer
/// refuse to run as root.
///
/// # Panics
/// When this process is root's and the machine has neither a user `postgres` nor `nobody`.
pub fn server_user() -> Option<(u32, u32)> {
    if id_of(&["-u"]) != Some(0) {
        return None;
    }
    let user = ["postgres", "nobody"]
        .iter()
        .find_map(|name| Some((id_of(&["-u", name])?, id_of(&["-g", name])?)));
    assert!(
        user.is_some(),
        "PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody` to run it as"
    );
    user
}

fn id_of(arguments: &[&str]) -> Option<u32> {
    output_of("id", arguments)?.parse().ok()
}

/// What `program` prints, if it is there and succeeds.
fn output_of(program: impl AsRef<Path>, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program.as_ref())
        .args(arguments)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
