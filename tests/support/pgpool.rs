//! A throwaway pgpool-II in front of test clusters.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tokio_postgres::Config;

use super::cluster::{PORT_TRIES, free_port};
use super::database::try_connect;
use super::installed;
use super::wait::{PATIENCE, wait_for, wait_until};

/// How many clients it serves at the same time: each has a process of its own.
const CLIENTS: u32 = 12;

/// A running pgpool-II on 127.0.0.1 in streaming replication mode, which asks no one for a password. Dropping it stops
/// it; so does the end of the test process.
pub struct Pgpool {
    keeper: Child,
    dir: PathBuf,
    port: u16,
}

impl Pgpool {
    /// Starts one in front of the servers on these ports of 127.0.0.1, with lines of its own in its configuration, and
    /// waits until it answers. The weights say how many of the balanced statements a server gets.
    ///
    /// # Panics
    /// When pgpool-II is not installed or does not start; its log is in the message.
    pub async fn to(servers: &[(u16, u32)], more: &str) -> Self {
        let mut log = String::new();
        for _ in 0..PORT_TRIES {
            let port = free_port();
            let mut pgpool = Self::spawn(port, &(settings(port, servers) + more));
            if pgpool.answers().await {
                return pgpool;
            }
            log = pgpool.log();
        }
        panic!("pgpool ended {PORT_TRIES} times, each time on another port, the last:\n{log}")
    }

    fn spawn(port: u16, settings: &str) -> Self {
        let mut command = Command::new("sh");
        command
            .args(["-c", include_str!("pgpool.sh"), "pgpool"])
            .arg(installed::pgpool_program())
            .arg(settings)
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if let Some((user, group)) = installed::server_user() {
            command.uid(user).gid(group);
        }
        let mut keeper = command.spawn().expect("`sh` starts");
        let mut dir = String::new();
        BufReader::new(keeper.stdout.as_mut().expect("piped"))
            .read_line(&mut dir)
            .expect("the directory's name is text");
        let dir = PathBuf::from(dir.trim_end());
        assert!(dir.is_absolute(), "no directory for pgpool");
        Self { keeper, dir, port }
    }

    /// The same database through pgpool.
    pub fn url(&self, url: &str) -> String {
        let server: Config = url.parse().expect("a database URL");
        self.database_url(server.get_dbname().expect("a database"))
    }

    fn database_url(&self, name: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.port)
    }

    /// Waits until it knows which server is the primary.
    pub async fn knows_its_primary(&self) {
        wait_until("pgpool to find the primary", async || {
            self.log().contains("successfully started")
        })
        .await;
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Whether it answers, or else has ended.
    async fn answers(&mut self) -> bool {
        let url = self.database_url("postgres");
        wait_for("pgpool to answer", PATIENCE, async || {
            let log = self.log();
            if log.contains("FATAL") {
                return Ok(false);
            }
            let client = try_connect(&url)
                .await
                .map_err(|error| error + "\n" + &log)?;
            let answer = client.simple_query("SELECT 1").await;
            answer.map(|_| true).map_err(|error| error.to_string())
        })
        .await
    }
}

impl Drop for Pgpool {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        drop(self.keeper.wait());
    }
}

fn settings(port: u16, servers: &[(u16, u32)]) -> String {
    let mut settings = format!(
        "backend_clustering_mode = 'streaming_replication'\n\
         listen_addresses = '127.0.0.1'\n\
         port = {port}\n\
         socket_dir = '@dir@'\n\
         pcp_listen_addresses = ''\n\
         pcp_socket_dir = '@dir@'\n\
         wd_ipc_socket_dir = '@dir@'\n\
         pid_file_name = '@dir@/pid'\n\
         logdir = '@dir@'\n\
         num_init_children = {CLIENTS}\n\
         sr_check_user = 'postgres'\n\
         sr_check_period = 1\n"
    );
    for (index, (server, weight)) in servers.iter().enumerate() {
        // Writing to a `String` does not fail.
        let _ = write!(
            settings,
            "backend_hostname{index} = '127.0.0.1'\n\
             backend_port{index} = {server}\n\
             backend_weight{index} = {weight}\n\
             backend_flag{index} = 'DISALLOW_TO_FAILOVER'\n"
        );
    }
    settings
}
