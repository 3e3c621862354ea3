//! A throwaway PgBouncer in front of a test's database.

use std::fmt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use tokio_postgres::config::Host;
use tokio_postgres::{Config, SimpleQueryMessage};

use super::cluster::{PORT_TRIES, free_port};
use super::database::try_connect;
use super::installed;
use super::process::Process;
use super::wait::{PATIENCE, wait_for};

/// Becomes PgBouncer. Arguments: the program and its configuration, in a file that is already removed when it starts, so
/// that no end of it or of the test leaves one behind. Its log is its standard error.
const SCRIPT: &str = r#"
file=$(mktemp 2>/dev/null || mktemp /tmp/trl-bouncer.XXXXXX) &&
    printf '%s' "$2" >"$file" && exec 3<"$file" && rm "$file" && exec "$1" /dev/fd/3
"#;

/// When a client's server connection goes back to the others: PgBouncer's `pool_mode`.
#[derive(Clone, Copy)]
pub enum Pooling {
    Transaction,
    Session,
    Statement,
}

/// A running PgBouncer on 127.0.0.1, which asks no one for a password. Dropping it kills it, as with every [`Process`].
pub struct Bouncer {
    process: Process,
    port: u16,
}

impl Bouncer {
    /// Starts one that opens at most `pool_size` connections to the server of a database URL, and waits until it answers
    /// for that database.
    ///
    /// # Panics
    /// When PgBouncer is not installed or does not start; its log is printed.
    pub async fn to(url: &str, pooling: Pooling, pool_size: u32) -> Self {
        Self::with(url, pooling, pool_size, "").await
    }

    /// The same with lines of its own in its configuration.
    pub async fn with(url: &str, pooling: Pooling, pool_size: u32, more: &str) -> Self {
        let server: Config = url.parse().expect("a database URL");
        for _ in 0..PORT_TRIES {
            let port = free_port();
            let settings = settings(&server, port, pooling, pool_size) + more;
            let mut bouncer = Self {
                process: Process::spawn(&mut command(&settings)),
                port,
            };
            if bouncer.answers(url).await {
                return bouncer;
            }
        }
        panic!("PgBouncer ended {PORT_TRIES} times, each time on another port")
    }

    /// The same database through PgBouncer.
    pub fn url(&self, url: &str) -> String {
        let server: Config = url.parse().expect("a database URL");
        self.database_url(server.get_dbname().expect("a database"))
    }

    /// The port on 127.0.0.1 that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits until its log has this text.
    pub async fn wait_for_log(&self, text: &str) {
        wait_for(text, PATIENCE, async || {
            let log = self.process.stderr();
            log.contains(text).then_some(()).ok_or(log)
        })
        .await;
    }

    fn database_url(&self, name: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.port)
    }

    /// Waits until exactly `count` clients wait for a server connection.
    pub async fn wait_for_waiting(&self, count: u32) {
        let console = try_connect(&self.database_url("pgbouncer"))
            .await
            .unwrap_or_else(|error| panic!("PgBouncer's console: {error}"));
        let what = format!("{count} clients to wait in PgBouncer");
        wait_for(&what, PATIENCE, async || {
            let pools = console.simple_query("SHOW POOLS").await;
            let waiting = waiting(&pools.expect("the console answers"));
            if waiting == count {
                Ok(())
            } else {
                Err(format!("{waiting} wait"))
            }
        })
        .await;
    }

    /// Whether it answers, or else has ended.
    async fn answers(&mut self, url: &str) -> bool {
        let url = self.url(url);
        wait_for("PgBouncer to answer", PATIENCE, async || {
            if self.process.ended().is_some() {
                eprintln!("{}", self.process.stderr());
                return Ok(false);
            }
            let client = try_connect(&url).await?;
            let answer = client.simple_query("SELECT 1").await;
            answer.map(|_| true).map_err(|error| error.to_string())
        })
        .await
    }
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transaction => "transaction",
            Self::Session => "session",
            Self::Statement => "statement",
        })
    }
}

/// The sum over all pools.
fn waiting(pools: &[SimpleQueryMessage]) -> u32 {
    let counts = pools.iter().filter_map(|pool| match pool {
        SimpleQueryMessage::Row(pool) => pool.get("cl_waiting"),
        _ => None,
    });
    counts
        .map(|count| count.parse::<u32>().expect("a number of clients"))
        .sum()
}

fn command(settings: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", SCRIPT, "bouncer"])
        .arg(installed::bouncer_program())
        .arg(settings)
        .current_dir("/");
    if let Some((user, group)) = installed::server_user() {
        command.uid(user).gid(group);
    }
    command
}

fn settings(server: &Config, port: u16, pooling: Pooling, pool_size: u32) -> String {
    let host = match server.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        Some(Host::Unix(path)) => path.display().to_string(),
        None => "127.0.0.1".to_owned(),
    };
    let behind = server.get_ports().first().copied().unwrap_or(5432);
    let host = quoted(&host);
    let user = quoted(server.get_user().unwrap_or("postgres"));
    // An empty one would be a syntax error.
    let password = server.get_password().map_or_else(String::new, |password| {
        format!("password={}", quoted(&String::from_utf8_lossy(password)))
    });
    format!(
        "[databases]\n\
         * = host={host} port={behind} user={user} {password}\n\
         [pgbouncer]\n\
         listen_addr = 127.0.0.1\n\
         listen_port = {port}\n\
         unix_socket_dir =\n\
         auth_type = any\n\
         pool_mode = {pooling}\n\
         default_pool_size = {pool_size}\n"
    )
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}
