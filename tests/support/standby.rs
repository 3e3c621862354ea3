//! A standby: it follows a throwaway cluster by streaming replication, and can take its place.

use super::cluster::Cluster;
use super::database::{rows, try_connect};
use super::wait::{PATIENCE, wait_for};

/// A hot standby on a port and with a directory of its own. Dropping it removes it, as with a [`Cluster`].
pub struct Standby(Cluster);

impl Standby {
    /// Makes one of a cluster made by [`Cluster::create_primary`], with all its databases, and waits until it follows.
    pub async fn of(primary: &Cluster) -> Self {
        let follow = format!("follow {} {}", primary.port(), primary.dir().display());
        let standby = Self(Cluster::made_by(vec![follow]).await);
        standby.has_replayed(primary).await;
        standby
    }

    /// Waits until it has all that the primary has now.
    pub async fn has_replayed(&self, primary: &Cluster) {
        let leader = try_connect(&primary.url()).await.expect("a primary");
        let now = rows(&leader, "SELECT pg_current_wal_lsn() AS now").await;
        let now = now[0].get("now").expect("a place in the WAL");
        let status = format!(
            "SELECT FROM pg_stat_wal_receiver \
             WHERE status = 'streaming' AND pg_last_wal_replay_lsn() >= '{now}'"
        );
        wait_for("the standby to follow", PATIENCE, async || {
            let client = try_connect(&self.url()).await?;
            let streaming = client.query_opt(&status, &[]).await;
            match streaming.map_err(|error| error.to_string())? {
                Some(_) => Ok(()),
                None => Err("it has not replayed all".to_owned()),
            }
        })
        .await;
    }

    /// The URL of its `postgres` database.
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// The port on 127.0.0.1: the same for its whole life.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// Makes it a primary, and waits until it is one.
    pub async fn promote(&self) {
        self.0.ask(&["promote"]).await;
    }
}
