//! Each test runs under shuttle, which takes the threads apart at every use of the queue's mutex. A deadlock (a lost
//! wake-up) fails the test, and so does a double grant.

use futures_util::FutureExt;
use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::{check_dfs, check_pct, check_random, thread};

use super::*;

fn realm(name: &str) -> Claim {
    Claim::realm(&format!("http://h/{name}/").parse().unwrap())
}

/// A lock that is handed on, as a server that has only one of it sees it.
#[derive(Debug)]
struct Baton(Arc<AtomicUsize>);

type Queue = super::Queue<Baton>;
type Turn = super::Turn<Baton>;
type Entry = super::Entry<Baton>;
type Waiting = super::Waiting<Baton>;

impl Baton {
    /// Takes the lock once the last one has given it back.
    fn take(open: &Arc<AtomicUsize>) -> Self {
        while open.swap(1, Ordering::SeqCst) == 1 {
            thread::yield_now();
        }
        Self(Arc::clone(open))
    }
}

impl Drop for Baton {
    fn drop(&mut self) {
        assert_eq!(self.0.swap(0, Ordering::SeqCst), 1);
    }
}

fn is_empty(queue: &Queue) -> bool {
    let places = queue.places();
    places.lanes.is_empty() && places.claims.is_empty()
}

fn turn(entry: Result<Entry, Full>) -> Turn {
    match entry.unwrap() {
        Entry::Turn(turn) => turn,
        Entry::Wait(_) => panic!("the lane was taken"),
    }
}

fn waiting(entry: Result<Entry, Full>) -> Waiting {
    match entry.unwrap() {
        Entry::Wait(waiting) => waiting,
        Entry::Turn(_) => panic!("the lane was free"),
    }
}

/// What becomes of a turn at the end of a hold: its lock is handed on or given back.
fn end(turn: Turn, baton: Baton) {
    if thread_rng().gen_bool(0.5) {
        turn.hand_on(baton);
    } else {
        drop(turn);
        drop(baton);
    }
}

/// One run of what needs no second thread.
fn alone(test: impl Fn() + Send + Sync + 'static) {
    check_random(test, 1);
}

#[test]
fn turns_pass_in_order_of_arrival() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let first = turn(queue.enter(&realm("a"), 9));
        let mut second = waiting(queue.enter(&realm("a"), 9));
        let mut third = waiting(queue.enter(&realm("a"), 9));
        assert!((&mut second).now_or_never().is_none());

        drop(first);
        assert!((&mut third).now_or_never().is_none());
        let second = second.now_or_never().expect("the turn was passed on");
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        drop(third.now_or_never().expect("the turn was passed on"));
        assert!(is_empty(&queue));
    });
}

#[test]
fn keys_do_not_wait_for_each_other() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let _a = turn(queue.enter(&realm("a"), 9));
        turn(queue.enter(&realm("b"), 9));
    });
}

#[test]
fn a_waiter_that_leaves_gives_up_its_place_at_once() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let first = turn(queue.enter(&realm("a"), 1));
        let second = waiting(queue.enter(&realm("a"), 1));
        assert!(queue.enter(&realm("a"), 1).is_err());
        drop(second);
        let third = waiting(queue.enter(&realm("a"), 1));
        drop(first);
        assert!(third.now_or_never().is_some());
    });
}

#[test]
fn a_turn_on_its_way_to_a_waiter_that_left_reaches_the_next() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let first = turn(queue.enter(&realm("a"), 9));
        let second = waiting(queue.enter(&realm("a"), 9));
        let third = waiting(queue.enter(&realm("a"), 9));
        drop(first);
        drop(second);
        assert!(third.now_or_never().is_some());
        assert!(is_empty(&queue));
    });
}

#[test]
fn a_late_leaver_takes_nobodys_place() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let first = turn(queue.enter(&realm("a"), 9));
        let mut late = waiting(queue.enter(&realm("a"), 9));
        drop(first);
        drop((&mut late).now_or_never());
        // The lane was closed and opened again in the meantime.
        let again = turn(queue.enter(&realm("a"), 9));
        let next = waiting(queue.enter(&realm("a"), 9));
        drop(late);
        drop(again);
        assert!(next.now_or_never().is_some());
    });
}

/// Waits for a place's turn, or leaves it after it was looked at a few times: at each of the points where a caller can be
/// dropped.
fn wait_or_leave(mut place: Waiting) -> Option<Turn> {
    let patience = thread_rng().gen_range(0..6);
    if patience == 5 {
        return Some(block_on(place));
    }
    for _ in 0..patience {
        if let Some(turn) = (&mut place).now_or_never() {
            return Some(turn);
        }
        thread::yield_now();
    }
    None
}

/// Four threads enter the lanes of two keys, and wait or leave. Never two have one key's turn or its lock, nobody is forgotten,
/// and no lock is left behind, whether it is handed on or given back.
fn enter_and_leave() {
    let queue = Arc::new(Queue::default());
    let inside = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let servers: [Arc<AtomicUsize>; 2] = Default::default();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (queue, inside) = (Arc::clone(&queue), Arc::clone(&inside));
            let servers = servers.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    let lane = thread_rng().gen_range(0..2);
                    let turn = match queue.enter(&realm(["a", "b"][lane]), 2) {
                        Ok(Entry::Turn(turn)) => Some(turn),
                        Ok(Entry::Wait(place)) => wait_or_leave(place),
                        Err(Full) => None,
                    };
                    if let Some(mut turn) = turn {
                        let baton = turn.take_baton();
                        let baton = baton.unwrap_or_else(|| Baton::take(&servers[lane]));
                        assert_eq!(inside[lane].fetch_add(1, Ordering::SeqCst), 0);
                        thread::yield_now();
                        assert_eq!(inside[lane].fetch_sub(1, Ordering::SeqCst), 1);
                        end(turn, baton);
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(is_empty(&queue));
    assert!(servers.iter().all(|open| open.load(Ordering::SeqCst) == 0));
}

/// Waiters that stand in one lane in a known order get their turns in that order, whoever leaves.
fn keep_the_order() {
    let queue = Arc::new(Queue::default());
    let first = turn(queue.enter(&realm("a"), 9));
    let served = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (1..5)
        .map(|number| {
            let place = waiting(queue.enter(&realm("a"), 9));
            let served = Arc::clone(&served);
            thread::spawn(move || {
                if let Some(turn) = wait_or_leave(place) {
                    assert!(served.swap(number, Ordering::SeqCst) < number);
                    drop(turn);
                }
            })
        })
        .collect();
    drop(first);
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(is_empty(&queue));
}

/// The smallest case in which a turn, its lock and its waiter can miss each other, in every schedule there is.
fn pass_on_while_leaving() {
    let queue = Arc::new(Queue::default());
    let server = Arc::default();
    let baton = Baton::take(&server);
    let first = turn(queue.enter(&realm("a"), 9));
    let leaving = waiting(queue.enter(&realm("a"), 9));
    let staying = waiting(queue.enter(&realm("a"), 9));
    let threads = [
        thread::spawn(move || first.hand_on(baton)),
        thread::spawn(move || drop(leaving)),
        thread::spawn(move || assert!(block_on(staying).take_baton().is_some())),
    ];
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(is_empty(&queue));
    assert_eq!(server.load(Ordering::SeqCst), 0);
}

#[test]
fn no_schedule_grants_twice_or_forgets_a_waiter() {
    check_random(enter_and_leave, 2_000);
    check_pct(enter_and_leave, 2_000, 3);
    check_dfs(pass_on_while_leaving, None);
}

#[test]
fn no_schedule_changes_the_order() {
    check_random(keep_the_order, 2_000);
    check_pct(keep_the_order, 2_000, 3);
}

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
