//! Claims of several keys, and keys that are shared.

use super::*;

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
        let x = turn(queue.enter(&card("x"), 9));
        let y = turn(queue.enter(&card("y"), 9));
        let mut whole = waiting(queue.enter(&realm("a"), 9));
        drop(x);
        assert!((&mut whole).now_or_never().is_none());
        drop(y);
        let whole = whole.now_or_never().expect("nobody shares it any more");
        let [x, y] = ["x", "y"].map(|path| waiting(queue.enter(&card(path), 9)));
        drop(whole);
        let _both = [x, y].map(|card| card.now_or_never().expect("both go in"));
    });
}

#[test]
fn a_stream_of_sharers_does_not_starve_who_wants_it_alone() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let mut sharer = turn(queue.enter(&card("0"), 9));
        let mut whole = waiting(queue.enter(&realm("a"), 9));
        let mut later = waiting(queue.enter(&card("1"), 9));
        assert!((&mut later).now_or_never().is_none());
        assert!(sharer.take_baton().is_none());
        drop(sharer);
        assert!((&mut later).now_or_never().is_none());
        drop((&mut whole).now_or_never().expect("it was first"));
        assert!(later.now_or_never().is_some());
    });
}

#[test]
fn who_wants_it_alone_and_leaves_lets_the_sharers_behind_it_in() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let _x = turn(queue.enter(&card("x"), 9));
        let whole = waiting(queue.enter(&realm("a"), 9));
        let y = waiting(queue.enter(&card("y"), 9));
        drop(whole);
        assert!(y.now_or_never().is_some());
    });
}

#[test]
fn a_claim_of_two_realms_waits_for_both_and_keeps_its_place_in_each() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let a = turn(queue.enter(&realm("a"), 9));
        let b = turn(queue.enter(&realm("b"), 9));
        let mut two = waiting(queue.enter(&both(), 9));
        let mut late = waiting(queue.enter(&realm("b"), 9));
        drop(b);
        assert!((&mut two).now_or_never().is_none());
        assert!((&mut late).now_or_never().is_none(), "it would overtake");
        drop(a);
        drop(two.now_or_never().expect("both are free"));
        drop(late.now_or_never().expect("and now again"));
        assert!(is_empty(&queue));
    });
}

#[test]
fn a_claim_that_leaves_is_out_of_all_its_lanes() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let a = turn(queue.enter(&realm("a"), 9));
        let two = waiting(queue.enter(&both(), 9));
        let b = waiting(queue.enter(&realm("b"), 9));
        drop(two);
        drop(b.now_or_never().expect("nobody else wants it"));
        drop(a);
        assert!(is_empty(&queue));
    });
}

#[test]
fn a_full_lane_refuses_a_claim_and_leaves_no_trace_of_it() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let _b = turn(queue.enter(&realm("b"), 1));
        let _waits = waiting(queue.enter(&realm("b"), 1));
        assert!(queue.enter(&both(), 1).is_err());
        turn(queue.enter(&realm("a"), 0));
    });
}

#[test]
fn a_baton_goes_to_the_same_claim_only_and_ends_before_others_go_on() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let server = Arc::default();
        let first = turn(queue.enter(&both(), 9));
        let same = waiting(queue.enter(&both(), 9));
        let other = waiting(queue.enter(&realm("a"), 9));
        assert!(first.is_awaited());
        first.hand_on(Baton::take(&server));
        let mut same = same.now_or_never().expect("it is next");
        let baton = same.take_baton().expect("handed on");
        assert!(!same.is_awaited(), "the next one wants less");
        same.hand_on(baton);
        assert_eq!(server.load(Ordering::SeqCst), 0, "given back");
        let mut other = other.now_or_never().expect("it is next");
        assert!(other.take_baton().is_none());
    });
}

#[test]
fn a_card_is_handed_on_to_its_next_writer() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let server = Arc::default();
        let first = turn(queue.enter(&card("x"), 9));
        let _other = turn(queue.enter(&card("y"), 9));
        let next = waiting(queue.enter(&card("x"), 9));
        assert!(first.is_awaited());
        first.hand_on(Baton::take(&server));
        let mut next = next.now_or_never().expect("it is next");
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
                    let turn = match queue.enter(claim, 2) {
                        Ok(Entry::Turn(turn)) => Some(turn),
                        Ok(Entry::Wait(place)) => wait_or_leave(place),
                        Err(Full) => None,
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
