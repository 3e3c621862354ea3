//! Without a file, authorities that the system trusts are trusted.

use std::env;
use std::process::Command;

use tower_realm_lock::RealmLocks;

use super::authority::Authority;
use super::server::TlsServer;
use crate::support::alone::name_of;
use crate::support::process::Process;
use crate::support::wait::PATIENCE;

/// Tells a child process of this very test where to connect.
const URL: &str = "TLS_TEST_URL";

#[tokio::test]
async fn the_systems_authorities_are_trusted_where_no_file_is_named() {
    if let Ok(url) = env::var(URL) {
        RealmLocks::postgres(&url).await.unwrap();
        return;
    }
    let (server, database) = TlsServer::shared().await;
    let other = server.file("unknown.pem", &Authority::new().pem());
    for options in [
        "sslmode=verify-ca",
        "sslmode=verify-full",
        "sslrootcert=system",
    ] {
        for (trusted, right) in [(server.ca(), true), (other.clone(), false)] {
            let url = server.url(&database, "sealed", "localhost", options);
            let test = "the_systems_authorities_are_trusted_where_no_file_is_named";
            let name = name_of(module_path!(), test);
            let mut child = Command::new(env::current_exe().unwrap());
            child.args(["--exact", &name, "--nocapture"]);
            child.env(URL, url).env("SSL_CERT_FILE", trusted);
            let mut child = Process::spawn(&mut child);
            let ended = child.end(PATIENCE).await;
            let said = child.stdout() + &child.stderr();
            assert_eq!(ended.success(), right, "{options}: {said}");
            assert!(right || said.contains("signed by nobody"), "{said}");
        }
    }
}
