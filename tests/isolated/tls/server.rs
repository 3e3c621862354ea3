//! A PostgreSQL that has TLS, and users who may come in this way or that.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use tokio::sync::OnceCell;
use tokio_postgres::Client;

use super::authority::{Authority, Certified};
use crate::support::cluster::Cluster;
use crate::support::database::{TestDatabase, database_on, try_connect};
use crate::support::wait::{PATIENCE, wait_for};

/// Who may come in: `postgres` either way, `sealed` encrypted, `bare` in clear text, `certified` with a certificate of its own, and
/// `bound` with a password.
const RULES: &str = "\
    local all all trust\n\
    host all postgres 127.0.0.1/32 trust\n\
    hostssl all sealed 127.0.0.1/32 trust\n\
    hostnossl all bare 127.0.0.1/32 trust\n\
    hostssl all certified 127.0.0.1/32 trust clientcert=verify-full\n\
    host all bound 127.0.0.1/32 scram-sha-256\n";

/// The password of `bound`.
pub const PASSWORD: &str = "open sesame";

/// What a client asks a server for TLS with.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// The server of this test process, with a certificate for `localhost`. It is never dropped: its keeper removes it when the process ends.
static SHARED: OnceCell<TlsServer> = OnceCell::const_new();

/// A running server. Its files are in the cluster's directory and go with it.
pub struct TlsServer {
    pub cluster: Cluster,
    pub authority: Authority,
}

impl TlsServer {
    /// The one that all tests of this process share, and a database of the test's own.
    pub async fn shared() -> (&'static Self, TestDatabase) {
        let server = SHARED.get_or_init(Self::start).await;
        (server, database_on(&server.cluster).await)
    }

    /// One of the test's own.
    pub async fn start() -> Self {
        let server = Self {
            cluster: Cluster::create().await,
            authority: Authority::new(),
        };
        let admin = server.admin().await;
        let roles = "CREATE ROLE sealed LOGIN; CREATE ROLE bare LOGIN; CREATE ROLE certified LOGIN";
        admin.batch_execute(roles).await.unwrap();
        let bound = format!("CREATE ROLE bound LOGIN PASSWORD '{PASSWORD}'");
        admin.batch_execute(&bound).await.unwrap();
        server.give("data/pg_hba.conf", RULES);
        server.give("ca.pem", &server.authority.pem());
        let settings = format!(
            "ssl = on\nssl_ca_file = '{}'\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.key'\n",
            server.ca()
        );
        let file = server.cluster.dir().join("data/postgresql.conf");
        let before = fs::read_to_string(file).unwrap();
        server.give("data/postgresql.conf", &(before + &settings));
        let first = server.authority.server(&["localhost"]);
        server.present(&first).await;
        server
    }

    /// Has it show another certificate from now on.
    pub async fn present(&self, certified: &Certified) {
        self.give("data/server.pem", &certified.certificate);
        self.give("data/server.key", &certified.key);
        let loaded = "SELECT pg_conf_load_time()::text, pg_reload_conf()";
        let before: String = self
            .admin()
            .await
            .query_one(loaded, &[])
            .await
            .unwrap()
            .get(0);
        wait_for("the server to read its files", PATIENCE, async || {
            let now = "SELECT pg_conf_load_time()::text, current_setting('ssl')";
            let now = self.admin().await.query_one(now, &[]).await.unwrap();
            if now.get::<_, String>(0) == before {
                return Err("it has not".to_owned());
            }
            assert_eq!(now.get::<_, String>(1), "on", "see its log");
            Ok(())
        })
        .await;
    }

    /// The file of its authority's certificate.
    pub fn ca(&self) -> String {
        self.path("ca.pem").display().to_string()
    }

    /// A file of the test's own with this text.
    pub fn file(&self, name: &str, text: &str) -> String {
        self.give(name, text);
        self.path(name).display().to_string()
    }

    /// The database's URL for a user, by a host name and with options.
    pub fn url(&self, database: &TestDatabase, user: &str, host: &str, options: &str) -> String {
        let (port, name) = (self.cluster.port(), database.name());
        format!("postgres://{user}@{host}:{port}/{name}?{options}")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cluster.dir().join(name)
    }

    /// Writes a file as the server's user would, who alone may read it.
    fn give(&self, name: &str, text: &str) {
        let file = self.path(name);
        fs::write(&file, text).unwrap();
        let owner = fs::metadata(self.cluster.dir().join("data")).unwrap();
        chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
        fs::set_permissions(Path::new(&file), Permissions::from_mode(0o600)).unwrap();
    }

    async fn admin(&self) -> Client {
        try_connect(&self.cluster.url()).await.unwrap()
    }
}

/// Whether the connections of a user to this database are encrypted, one by one.
pub async fn encrypted(database: &TestDatabase, user: &str) -> Vec<bool> {
    let rows = database
        .connect()
        .await
        .query(
            "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
             WHERE datname = current_database() AND usename = $1 AND pid <> pg_backend_pid() \
             AND application_name = 'tower-realm-lock'",
            &[&user],
        )
        .await
        .unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}
