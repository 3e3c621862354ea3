use std::pin::pin;
use std::sync::Arc;

use futures_util::future::{BoxFuture, try_join};
use futures_util::{FutureExt, TryStreamExt};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, SimpleQueryMessage, Statement};

use crate::lock::postgres::answer::values;
use crate::lock::postgres::call::call;
use crate::lock::token;
use crate::realm::claim::Lock;

/// What a session asks again and again, prepared.
pub(super) struct Statements {
    client: Arc<Client>,
    try_lock: Statement,
    unlock: Statement,
}

/// What the server answers to one message, or to several that belong together.
#[derive(Default)]
pub(super) struct Answer {
    /// What was done for each key, in their order.
    pub(super) done: Vec<bool>,
    pub(super) rows: Vec<SimpleQueryMessage>,
}

/// Sends its messages when it is polled for the first time.
pub(super) type Answered = BoxFuture<'static, Result<Answer, Error>>;

impl Statements {
    pub(super) async fn prepare(client: &Arc<Client>) -> Result<Self, Error> {
        let (try_lock, unlock) = (for_each(TRY_LOCK), for_each(UNLOCK));
        let (try_lock, unlock) =
            try_join(client.prepare(&try_lock), client.prepare(&unlock)).await?;
        let client = Arc::clone(client);
        Ok(Self {
            client,
            try_lock,
            unlock,
        })
    }

    /// Takes each lock that nobody else holds, and waits for none. A token is asked for after the
    /// locks, so that the holders before have theirs already.
    pub(super) fn try_lock<'a>(
        &self,
        locks: impl IntoIterator<Item = &'a Lock>,
        fencing: bool,
    ) -> Answered {
        let locked = self.execute(TRY_LOCK, &self.try_lock, locks);
        if fencing {
            let token = self.simple(token::ASK.to_owned());
            let both = try_join(locked, token);
            both.map(|answer| {
                answer.map(|(Answer { done, .. }, Answer { rows, .. })| Answer { done, rows })
            })
            .boxed()
        } else {
            locked
        }
    }

    /// Gives locks back.
    pub(super) fn unlock<'a>(&self, locks: impl IntoIterator<Item = &'a Lock>) -> Answered {
        self.execute(UNLOCK, &self.unlock, locks)
    }

    /// Sends text, of any number of statements.
    pub(super) fn simple(&self, text: String) -> Answered {
        let client = Arc::clone(&self.client);
        async move {
            let rows = client.simple_query(&text).await?;
            let done = Vec::new();
            Ok(Answer { done, rows })
        }
        .boxed()
    }

    fn execute<'a>(
        &self,
        function: &str,
        statement: &Statement,
        locks: impl IntoIterator<Item = &'a Lock>,
    ) -> Answered {
        let (client, statement) = (Arc::clone(&self.client), statement.clone());
        let locks: Vec<&Lock> = locks.into_iter().collect();
        let numbers = locks
            .iter()
            .map(|lock| Some((lock.key.value()?, lock.is_shared())));
        let Some((keys, shared)): Option<(Vec<i64>, Vec<bool>)> = numbers.collect() else {
            return self.spelled_out(function, &locks);
        };
        async move {
            let parameters: [&(dyn ToSql + Sync); 2] = [&keys, &shared];
            let rows = client.query_raw(&statement, parameters).await?;
            let mut rows = pin!(rows);
            let mut answer = Answer::default();
            while let Some(row) = rows.try_next().await? {
                // What is no flag is missing: the number of answers shows it.
                answer.done.extend(row.try_get::<_, bool>(0).ok());
            }
            Ok(answer)
        }
        .boxed()
    }

    /// A statement for each of the locks: pairs, which few use, are not worth prepared ones.
    fn spelled_out(&self, function: &str, locks: &[&Lock]) -> Answered {
        let asked = |lock: &&Lock| format!("SELECT {} AS done", call(function, lock));
        let calls: Vec<String> = locks.iter().map(asked).collect();
        let asked = self.simple(calls.join("; "));
        async move {
            let rows = asked.await?.rows;
            let done = values(&rows, "done").map(|done| done == "t").collect();
            Ok(Answer { done, rows })
        }
        .boxed()
    }
}

const TRY_LOCK: &str = "pg_try_advisory_lock";
const UNLOCK: &str = "pg_advisory_unlock";

/// One statement for any number of keys: to `pg_stat_statements` it is always the same.
fn for_each(function: &str) -> String {
    format!(
        "SELECT CASE WHEN shared THEN {function}_shared(key) ELSE {function}(key) END FROM \
         (SELECT unnest($1::bigint[]), unnest($2::boolean[])) AS lock (key, shared)"
    )
}
