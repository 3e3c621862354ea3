//! What a session sends to its server, message by message. Time is paused: it goes on when nobody has
//! anything to do, so an empty query where none was asked for is a heartbeat, and shows that nothing
//! else was sent.

mod server;

use std::pin::pin;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::task::JoinHandle;
use tokio::time::{advance, timeout};

use self::server::{End, LEASE, Server, statement};
use super::lock::{Session, SessionLock};
use crate::lock::token;
use crate::realm::claim::{Claim, Lock};

fn claim(realm: &str) -> Claim {
    Claim::realm(&format!("http://h/{realm}/").parse().unwrap())
}

fn try_lock<'a>(locks: impl IntoIterator<Item = &'a Lock>) -> String {
    let locks = locks.into_iter();
    statement(false, locks.map(|it| (it.key.bits(), it.is_shared())))
}

fn unlock<'a>(locks: impl IntoIterator<Item = &'a Lock>) -> String {
    let locks = locks.into_iter();
    statement(true, locks.map(|it| (it.key.bits(), it.is_shared())))
}

fn locking<const N: usize>(realms: [&str; N]) -> String {
    try_lock(realms.map(claim).iter().flat_map(Claim::locks))
}

fn unlocking<const N: usize>(realms: [&str; N]) -> String {
    unlock(realms.map(claim).iter().flat_map(Claim::locks))
}

/// Asks on a task of its own; the command is sent when this returns.
async fn ask(session: &Session, realm: &str) -> JoinHandle<Option<SessionLock>> {
    ask_for(session, claim(realm)).await
}

async fn ask_for(session: &Session, claim: Claim) -> JoinHandle<Option<SessionLock>> {
    let session = session.clone();
    let mut asked = tokio::spawn(async move { session.try_lock(&claim).await });
    assert!((&mut asked).now_or_never().is_none());
    tokio::task::yield_now().await;
    asked
}

/// The server gets this query next, and answers with a flag for each key.
async fn exchange(server: &mut Server, query: String, flags: &str) {
    assert_eq!(server.query().await, query);
    server.done(flags).await;
}

async fn granted(session: &Session, server: &mut Server, realm: &str) -> SessionLock {
    let asked = ask(session, realm).await;
    exchange(server, locking([realm]), "{t}").await;
    asked.await.unwrap().expect("granted")
}

#[tokio::test(start_paused = true)]
async fn an_unlock_goes_before_the_next_lock_of_the_same_key() {
    let (session, mut server) = Server::start(false).await;
    let lock = granted(&session, &mut server, "a").await;
    drop(lock);
    // In the same batch: the session's task has not run meanwhile.
    let claim = claim("a");
    let mut next = pin!(session.try_lock(&claim));
    assert!((&mut next).now_or_never().is_none());
    assert_eq!(server.query().await, unlocking(["a"]));
    exchange(&mut server, locking(["a"]), "{t}").await;
    server.done("{t}").await;
    assert!(next.await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_key_is_not_asked_for_twice_while_its_grant_is_on_the_way() {
    let (session, mut server) = Server::start(false).await;
    let left = ask(&session, "a").await;
    assert_eq!(server.query().await, locking(["a"]));
    left.abort();
    // The local turn has gone on to another caller.
    assert!(ask(&session, "a").await.await.unwrap().is_none());
    server.done("{t}").await;
    // Once: a second unlock could hit the key's next holder.
    exchange(&mut server, unlocking(["a"]), "{t}").await;
    assert_eq!(server.query().await, "");
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_meanwhile_goes_in_one_message() {
    let (session, mut server) = Server::start(false).await;
    let mut asked = Vec::new();
    for realm in ["1", "2", "3", "4", "5", "6", "7"] {
        asked.push(ask(&session, realm).await);
    }
    for realm in ["1", "2", "3", "4"] {
        assert_eq!(server.query().await, locking([realm]));
    }
    server.done("{t}").await;
    assert_eq!(server.query().await, locking(["5", "6", "7"]));
    for _ in 0..3 {
        server.done("{t}").await;
    }
    server.done("{t,f,t}").await;
    let mut granted = Vec::new();
    for asked in asked {
        granted.push(asked.await.unwrap().is_some());
    }
    assert_eq!(granted, [true, true, true, true, true, false, true]);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_fails_is_taken_back_and_costs_no_other_lock() {
    let (session, mut server) = Server::start(false).await;
    let held = granted(&session, &mut server, "a").await;
    let asked = ask(&session, "b").await;
    assert_eq!(server.query().await, locking(["b"]));
    server.fail().await;
    assert_eq!(server.query().await, unlocking(["b"]));
    assert!(asked.await.unwrap().is_none());
    server.done("{f}").await;
    assert!(held.lease().is_current());
    let unlocked = held.unlock(None);
    exchange(&mut server, unlocking(["a"]), "{t}").await;
    assert!(unlocked.is_positive().await);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_makes_no_sense_is_a_failure() {
    for flags in ["{}", "{NULL}", "{tt}", "{t,t}"] {
        let (session, mut server) = Server::start(false).await;
        let asked = ask(&session, "a").await;
        server.query().await;
        server.done(flags).await;
        assert_eq!(server.query().await, unlocking(["a"]), "{flags}");
        assert!(asked.await.unwrap().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_without_its_token_is_taken_back() {
    let (session, mut server) = Server::start(true).await;
    let asked = ask(&session, "a").await;
    assert_eq!(server.query().await, locking(["a"]));
    server.done("{t}").await;
    assert_eq!(server.query().await, token::ASK);
    server.answer(&[("fencing_token", "x")]).await;
    assert_eq!(server.query().await, unlocking(["a"]));
    server.done("{t}").await;
    assert!(asked.await.unwrap().is_none());

    let asked = ask(&session, "b").await;
    assert_eq!(server.query().await, locking(["b"]));
    server.done("{t}").await;
    assert_eq!(server.query().await, token::ASK);
    let token = ("fencing_token", "00000001 22021912 734");
    server.answer(&[token]).await;
    assert!(asked.await.unwrap().expect("granted").token().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_was_not_held_any_more_is_lost_alone() {
    let (session, mut server) = Server::start(false).await;
    let one = granted(&session, &mut server, "a").await;
    let other = granted(&session, &mut server, "b").await;
    let unlocked = [one.unlock(None), other.unlock(None)];
    exchange(&mut server, unlocking(["a", "b"]), "{f,t}").await;
    let [one, other] = unlocked;
    assert_eq!(
        (one.is_positive().await, other.is_positive().await),
        (false, true)
    );
    assert!(session.is_open());
}

#[tokio::test(start_paused = true)]
async fn an_unlock_that_fails_ends_the_session() {
    let (session, mut server) = Server::start(false).await;
    let one = granted(&session, &mut server, "a").await;
    let other = granted(&session, &mut server, "b").await;
    let unlocked = one.unlock(None);
    server.query().await;
    server.fail().await;
    assert!(!unlocked.is_positive().await);
    timeout(LEASE / 10, other.lease().lost())
        .await
        .expect("told at once");
    assert!(!session.is_open());
}

#[tokio::test(start_paused = true)]
async fn many_confirmations_share_one_answer_to_a_later_message() {
    let (session, mut server) = Server::start(false).await;
    let lock = granted(&session, &mut server, "a").await;
    let earlier = ask(&session, "b").await;
    assert_eq!(server.query().await, locking(["b"]));

    let confirmations = [lock.confirm(None), lock.confirm(None)];
    drop(lock);
    exchange(&mut server, unlocking(["a"]), "{f}").await;
    assert!(earlier.await.unwrap().is_none());
    for confirmation in &confirmations {
        assert!(confirmation.answered().now_or_never().is_none());
    }
    server.done("{t}").await;
    for confirmation in confirmations {
        assert!(confirmation.is_positive().await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_confirmation_asks_at_once_where_nothing_else_is_to_say() {
    let (session, mut server) = Server::start(false).await;
    let lock = granted(&session, &mut server, "a").await;
    let asked = tokio::time::Instant::now();
    let confirmation = lock.confirm(None);
    assert_eq!(server.query().await, "");
    assert_eq!(asked.elapsed().as_secs(), 0, "it is a heartbeat");
    server.answer(&[]).await;
    assert!(confirmation.is_positive().await);

    let confirmation = lock.confirm(None);
    drop(server);
    assert!(!confirmation.is_positive().await);
}

#[tokio::test(start_paused = true)]
async fn silence_ends_the_session_at_two_thirds_of_the_lease() {
    let (session, mut server) = Server::start(false).await;
    let lock = granted(&session, &mut server, "a").await;
    let lease = Arc::clone(lock.lease());
    let mut lost = pin!(lease.lost());
    assert_eq!(server.query().await, "");
    advance(LEASE * 33 / 100).await;
    assert!((&mut lost).now_or_never().is_none());
    lost.await;
    assert!(!session.is_open());
    assert!(!lock.unlock(None).is_positive().await);
    // Although an answer is due, and the handle is still there.
    assert_eq!(server.end().await, End::BrokenOff);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_nobody_uses_any_more_ends_in_order_after_its_last_lock() {
    let (session, mut server) = Server::start(false).await;
    let lock = granted(&session, &mut server, "a").await;
    drop(session);
    assert_eq!(server.query().await, "", "a heartbeat");
    server.answer(&[]).await;
    let unlocked = lock.unlock(None);
    exchange(&mut server, unlocking(["a"]), "{t}").await;
    assert!(unlocked.is_positive().await);
    assert_eq!(server.end().await, End::InOrder);
}

#[tokio::test(start_paused = true)]
async fn a_message_has_a_bounded_number_of_keys() {
    let (session, mut server) = Server::start(false).await;
    let realms: Vec<String> = (0..1200).map(|n| n.to_string()).collect();
    let claims: Vec<Claim> = realms.iter().map(|realm| claim(realm)).collect();
    let asks = claims.iter().map(|claim| session.try_lock(claim));
    let asks = futures_util::future::join_all(asks);
    let server = async {
        let mut sizes = Vec::new();
        while sizes.iter().sum::<usize>() < realms.len() {
            let query = server.query().await;
            let keys = query.matches(',').count() + 1;
            let granted = format!("{{t{}}}", ",t".repeat(keys - 1));
            server.done(&granted).await;
            sizes.push(keys);
        }
        sizes
    };
    let (granted, sizes) = tokio::join!(asks, server);
    assert!(granted.iter().all(Option::is_some));
    assert_eq!(sizes, [500, 500, 200]);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_is_as_old_as_its_lease_is_none() {
    let (session, mut server) = Server::start(false).await;
    let asked = ask(&session, "a").await;
    server.query().await;
    // The process was frozen: the answer and the heartbeat's time come together.
    server.done("{t}").await;
    advance(LEASE * 2 / 3).await;
    assert!(asked.await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_granted_in_part_is_unlocked_and_refused() {
    let (session, mut server) = Server::start(false).await;
    let both = claim("a").and(&claim("b"));
    let asked = ask_for(&session, both.clone()).await;
    exchange(&mut server, try_lock(both.locks()), "{f,t}").await;
    assert_eq!(server.query().await, unlock(&both.locks()[1..]));
    assert!(asked.await.unwrap().is_none());
    server.done("{t}").await;
    let again = ask_for(&session, both.clone()).await;
    exchange(&mut server, try_lock(both.locks()), "{t,t}").await;
    assert!(again.await.unwrap().is_some());
}
