//! Claims of several keys, and keys that are shared.

use std::collections::HashMap;

use super::*;
use crate::realm::key::LockKey;

fn both() -> Claim {
    realm("a").and(&realm("b"))
}

/// A card of realm `a`: the realm is shared.
fn card(path: &str) -> Claim {
    Claim::resources(&"http://h/a/".parse().unwrap(), [path])
}

#[test]
fn who_shares_goes_in_together_and_who_does_not_waits_for_all() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let x = turn(queue.add(&card("x"), 9, None));
        let y = turn(queue.add(&card("y"), 9, None));
        let whole = waiting(queue.add(&realm("a"), 9, None));
        drop(x);
        assert!(!arrived(&whole));
        drop(y);
        let whole = arrive(whole);
        let [x, y] = ["x", "y"].map(|path| waiting(queue.add(&card(path), 9, None)));
        drop(whole);
        let _both = [x, y].map(arrive);
    });
}

#[test]
fn a_stream_of_sharers_does_not_starve_who_wants_it_alone() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let sharer = turn(queue.add(&card("0"), 9, None));
        let whole = waiting(queue.add(&realm("a"), 9, None));
        let later = waiting(queue.add(&card("1"), 9, None));
        assert!(!arrived(&later));
        assert!(sharer.take_baton().is_none());
        drop(sharer);
        assert!(!arrived(&later));
        drop(arrive(whole));
        assert!(arrived(&later));
    });
}

#[test]
fn who_wants_it_alone_and_leaves_lets_the_sharers_behind_it_in() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let _x = turn(queue.add(&card("x"), 9, None));
        let whole = waiting(queue.add(&realm("a"), 9, None));
        let y = waiting(queue.add(&card("y"), 9, None));
        drop(whole);
        assert!(arrived(&y));
    });
}

#[test]
fn a_claim_of_two_realms_waits_for_both_and_keeps_its_place_in_each() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let a = turn(queue.add(&realm("a"), 9, None));
        let b = turn(queue.add(&realm("b"), 9, None));
        let two = waiting(queue.add(&both(), 9, None));
        let late = waiting(queue.add(&realm("b"), 9, None));
        drop(b);
        assert!(!arrived(&two));
        assert!(!arrived(&late), "it would overtake");
        drop(a);
        drop(arrive(two));
        drop(arrive(late));
        assert!(is_empty(&queue));
    });
}

#[test]
fn a_claim_that_leaves_is_out_of_all_its_lanes() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let a = turn(queue.add(&realm("a"), 9, None));
        let two = waiting(queue.add(&both(), 9, None));
        let b = waiting(queue.add(&realm("b"), 9, None));
        drop(two);
        drop(arrive(b));
        drop(a);
        assert!(is_empty(&queue));
    });
}

#[test]
fn a_full_lane_refuses_a_claim_and_leaves_no_trace_of_it() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let _b = turn(queue.add(&realm("b"), 1, None));
        let _waits = waiting(queue.add(&realm("b"), 1, None));
        assert!(queue.add(&both(), 1, None).is_err());
        turn(queue.add(&realm("a"), 0, None));
    });
}

#[test]
fn a_baton_goes_to_the_same_claim_only_and_ends_before_others_go_on() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let server = Arc::default();
        let first = turn(queue.add(&both(), 9, None));
        let same = waiting(queue.add(&both(), 9, None));
        let other = waiting(queue.add(&realm("a"), 9, None));
        assert!(first.is_awaited());
        first.hand_on(Baton::take(&server));
        let same = arrive(same);
        let baton = same.take_baton().expect("handed on");
        assert!(!same.is_awaited(), "the next one wants less");
        same.hand_on(baton);
        assert_eq!(server.load(Ordering::SeqCst), 0, "given back");
        let other = arrive(other);
        assert!(other.take_baton().is_none());
    });
}

#[test]
fn a_baton_does_not_go_to_a_claim_of_more() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let server = Arc::default();
        let first = turn(queue.add(&realm("a"), 9, None));
        let more = waiting(queue.add(&both(), 9, None));
        assert!(!first.is_awaited());
        first.hand_on(Baton::take(&server));
        assert!(arrive(more).take_baton().is_none());
        assert_eq!(server.load(Ordering::SeqCst), 0, "given back");
    });
}

#[test]
fn a_card_is_handed_on_to_its_next_writer() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let server = Arc::default();
        let first = turn(queue.add(&card("x"), 9, None));
        let _other = turn(queue.add(&card("y"), 9, None));
        let next = waiting(queue.add(&card("x"), 9, None));
        assert!(first.is_awaited());
        first.hand_on(Baton::take(&server));
        let next = arrive(next);
        assert!(next.take_baton().is_some());
    });
}

/// Threads enter with claims that overlap in all ways, and wait or leave. Nobody has what another one has but to share, and
/// nobody is forgotten.
fn overlap_and_leave() {
    let claims = [
        realm("a"),
        realm("b"),
        both(),
        card("x"),
        card("y"),
        card("x").and(&realm("b")),
    ];
    let queue = Arc::new(Queue::default());
    // For each key how many share it, and 100 for who has it alone.
    let inside = Arc::new(Mutex::new(HashMap::<LockKey, usize>::new()));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (queue, inside, claims) = (Arc::clone(&queue), Arc::clone(&inside), claims.clone());
            thread::spawn(move || {
                for _ in 0..2 {
                    let claim = &claims[thread_rng().gen_range(0..claims.len())];
                    let turn = match queue.add(claim, 2, None) {
                        Ok(place) => wait_or_leave(place),
                        Err(_) => None,
                    };
                    let Some(turn) = turn else { continue };
                    for lock in claim.locks() {
                        let mut inside = inside.lock().unwrap();
                        let count = inside.entry(lock.key).or_default();
                        assert!(*count == 0 || (lock.is_shared() && *count < 100));
                        *count += if lock.is_shared() { 1 } else { 100 };
                    }
                    thread::yield_now();
                    for lock in claim.locks() {
                        let mut inside = inside.lock().unwrap();
                        *inside.entry(lock.key).or_default() -=
                            if lock.is_shared() { 1 } else { 100 };
                    }
                    drop(turn);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(is_empty(&queue));
}

#[test]
fn no_schedule_lets_overlapping_claims_meet_or_wait_for_each_other() {
    check_random(overlap_and_leave, 2_000);
    check_pct(overlap_and_leave, 2_000, 3);
}
