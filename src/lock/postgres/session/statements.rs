use std::pin::pin;
use std::sync::Arc;

use futures_util::future::{BoxFuture, try_join};
use futures_util::{FutureExt, TryStreamExt};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, RowStream, SimpleQueryMessage, Statement};

use crate::lock::postgres::answer::values;
use crate::lock::postgres::call::LockCall;
use crate::lock::token;
use crate::realm::claim::Lock;

/// What a session asks again and again, prepared.
pub(super) struct Statements {
    client: Arc<Client>,
    try_lock: Call,
    unlock: Call,
}

/// A function that is called for keys.
struct Call {
    function: &'static str,
    /// For any number of them. To `pg_stat_statements` it is always the same.
    each: Statement,
    /// For one exclusive key, which is what a session is mostly asked for: it costs the server a
    /// quarter less.
    lone: Statement,
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
        let (try_lock, unlock) = try_join(
            Call::prepare(client, "pg_try_advisory_lock"),
            Call::prepare(client, "pg_advisory_unlock"),
        )
        .await?;
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
        let locked = self.execute(&self.try_lock, locks);
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
        self.execute(&self.unlock, locks)
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

    fn execute<'a>(&self, call: &Call, locks: impl IntoIterator<Item = &'a Lock>) -> Answered {
        let client = Arc::clone(&self.client);
        let locks: Vec<&Lock> = locks.into_iter().collect();
        let numbers = locks
            .iter()
            .map(|it| Some((it.key.value()?, it.is_shared())));
        let Some((keys, shared)): Option<(Vec<i64>, Vec<bool>)> = numbers.collect() else {
            return self.spelled_out(call, &locks);
        };
        if let ([key], [false]) = (&*keys, &*shared) {
            let (statement, key) = (call.lone.clone(), *key);
            return async move { answer(client.query_raw(&statement, [key]).await?).await }.boxed();
        }
        let statement = call.each.clone();
        async move {
            let parameters: [&(dyn ToSql + Sync); 2] = [&keys, &shared];
            answer(client.query_raw(&statement, parameters).await?).await
        }
        .boxed()
    }

    /// A statement for each of the locks: pairs, which few use, are not worth prepared ones.
    fn spelled_out(&self, call: &Call, locks: &[&Lock]) -> Answered {
        let asked = |lock: &&Lock| format!("SELECT {} AS done", LockCall(call.function, lock));
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

impl Call {
    async fn prepare(client: &Client, function: &'static str) -> Result<Self, Error> {
        let each = format!(
            "SELECT CASE WHEN shared THEN {function}_shared(key) ELSE {function}(key) END FROM \
             (SELECT unnest($1::bigint[]), unnest($2::boolean[])) AS lock (key, shared)"
        );
        let lone = format!("SELECT {function}($1::bigint)");
        let (each, lone) = try_join(client.prepare(&each), client.prepare(&lone)).await?;
        Ok(Self {
            function,
            each,
            lone,
        })
    }
}

/// What was done for each key.
async fn answer(rows: RowStream) -> Result<Answer, Error> {
    let mut rows = pin!(rows);
    let mut answer = Answer::default();
    while let Some(row) = rows.try_next().await? {
        // What is no flag is missing: the number of answers shows it.
        answer.done.extend(row.try_get::<_, bool>(0).ok());
    }
    Ok(answer)
}
