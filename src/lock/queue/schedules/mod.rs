//! Each test runs under shuttle, which takes the threads apart at every use of the queue's mutex. A
//! deadlock (a lost wake-up) fails the test, and so does a double grant. `scripts/test schedules`
//! compiles them, with `--cfg shuttle`.

mod overlapping;

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

impl super::Baton for Baton {
    fn orphan(self, turn: Turn) {
        if let Err((turn, baton)) = turn.hand_on(self) {
            drop(baton);
            drop(turn);
        }
    }
}

impl Queue {
    fn add(
        self: &Arc<Self>,
        claim: &Claim,
        max_waiters: usize,
        bound: Option<Duration>,
    ) -> Result<Entry, Refused> {
        self.enter(claim, max_waiters, Instant::now(), bound)
    }
}

impl Entry {
    fn take_baton(&self) -> Option<Baton> {
        self.slot().unwrap().with(|baton| baton.take()).unwrap()
    }

    fn is_awaited(&self) -> bool {
        let mut turn = self.slot().unwrap().turn();
        let is_awaited = turn.is_awaited();
        turn.slot = None;
        is_awaited
    }

    /// Ends a turn, with a baton for the next waiter that wants the same.
    fn hand_on(self, baton: Baton) {
        super::Baton::orphan(baton, take(&self));
    }
}

/// Ends a slot, whatever it has.
fn take(entry: &Entry) -> Turn {
    let taken = entry.slot().unwrap().look_or_take(|_| None::<()>);
    taken.unwrap().unwrap_err().0
}

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
    queue
        .shards
        .lock_all()
        .iter()
        .all(|lanes| lanes.all().next().is_none())
}

fn arrived(place: &Entry) -> bool {
    place.turn().now_or_never().unwrap_or(false)
}

fn arrive(place: Entry) -> Entry {
    assert!(arrived(&place), "the turn was passed on");
    place
}

fn turn(entry: Result<Entry, Refused>) -> Entry {
    let entry = entry.ok().unwrap();
    assert!(arrived(&entry), "the lane was taken");
    entry
}

fn waiting(entry: Result<Entry, Refused>) -> Entry {
    let entry = entry.ok().unwrap();
    assert!(!arrived(&entry), "the lane was free");
    entry
}

/// What becomes of a turn at the end of a hold: its lock is handed on or given back.
fn end(turn: Entry, baton: Baton) {
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
        let first = turn(queue.add(&realm("a"), 9, None));
        let second = waiting(queue.add(&realm("a"), 9, None));
        let third = waiting(queue.add(&realm("a"), 9, None));
        assert!(!arrived(&second));

        drop(first);
        assert!(!arrived(&third));
        let second = arrive(second);
        assert!(!arrived(&third));
        drop(second);
        drop(arrive(third));
        assert!(is_empty(&queue));
    });
}

#[test]
fn keys_do_not_wait_for_each_other() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let _a = turn(queue.add(&realm("a"), 9, None));
        turn(queue.add(&realm("b"), 9, None));
    });
}

#[test]
fn a_waiter_that_leaves_gives_up_its_place_at_once() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let first = turn(queue.add(&realm("a"), 1, None));
        let second = waiting(queue.add(&realm("a"), 1, None));
        assert!(queue.add(&realm("a"), 1, None).is_err());
        drop(second);
        let third = waiting(queue.add(&realm("a"), 1, None));
        drop(first);
        assert!(arrived(&third));
    });
}

#[test]
fn a_turn_on_its_way_to_a_waiter_that_left_reaches_the_next() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let first = turn(queue.add(&realm("a"), 9, None));
        let second = waiting(queue.add(&realm("a"), 9, None));
        let third = waiting(queue.add(&realm("a"), 9, None));
        drop(first);
        drop(second);
        drop(arrive(third));
        assert!(is_empty(&queue));
    });
}

#[test]
fn a_late_leaver_takes_nobodys_place() {
    alone(|| {
        let queue = Arc::new(Queue::default());
        let first = turn(queue.add(&realm("a"), 9, None));
        let late = waiting(queue.add(&realm("a"), 9, None));
        drop(first);
        drop(take(&late));
        // The lane was closed and opened again in the meantime.
        let again = turn(queue.add(&realm("a"), 9, None));
        let next = waiting(queue.add(&realm("a"), 9, None));
        drop(late);
        drop(again);
        assert!(arrived(&next));
    });
}

#[test]
fn an_owner_that_is_not_polled_between_two_visits_loses_its_turn() {
    alone(|| {
        let bound = Duration::from_secs(8);
        let queue = Arc::new(Queue::default());
        let owner = turn(queue.add(&realm("a"), 9, Some(bound)));
        let next = waiting(queue.add(&realm("a"), 9, Some(bound)));
        let mut now = Instant::now();
        assert_eq!(queue.visit(now).map(|next| next > now), Some(true));
        let mut visit = |after: u64| {
            now += Duration::from_secs(after);
            queue.visit(now)
        };
        visit(4);
        owner.slot().unwrap().note_life();
        visit(4);
        // The process stood still.
        visit(7);
        assert!(!owner.slot().unwrap().is_revoked() && !arrived(&next));
        visit(4);
        assert!(owner.slot().unwrap().is_revoked());
        drop(arrive(next));
        drop(owner);
        assert!(is_empty(&queue));
        assert_eq!(visit(4), None);
    });
}

/// Waits for a place's turn, or leaves it after it was looked at a few times: at each of the points where a caller can be
/// dropped.
fn wait_or_leave(place: Entry) -> Option<Entry> {
    let patience = thread_rng().gen_range(0..6);
    if patience == 5 {
        assert!(block_on(place.turn()));
        return Some(place);
    }
    for _ in 0..patience {
        if arrived(&place) {
            return Some(place);
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
                    let turn = match queue.add(&realm(["a", "b"][lane]), 2, None) {
                        Ok(place) => wait_or_leave(place),
                        Err(_) => None,
                    };
                    if let Some(turn) = turn {
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
    let first = turn(queue.add(&realm("a"), 9, None));
    let served = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (1..5)
        .map(|number| {
            let place = waiting(queue.add(&realm("a"), 9, None));
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

/// A turn, its baton and a waiter that leaves can miss each other; another one takes what is left.
fn pass_on_while_leaving() {
    let queue = Arc::new(Queue::default());
    let server = Arc::default();
    let baton = Baton::take(&server);
    let first = turn(queue.add(&realm("a"), 9, None));
    let leaving = waiting(queue.add(&realm("a"), 9, None));
    let staying = waiting(queue.add(&realm("a"), 9, None));
    let threads = [
        thread::spawn(move || first.hand_on(baton)),
        thread::spawn(move || drop(leaving)),
        thread::spawn(move || {
            assert!(block_on(staying.turn()));
            assert!(staying.take_baton().is_some());
        }),
    ];
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(is_empty(&queue));
    assert_eq!(server.load(Ordering::SeqCst), 0);
}

/// The same with the fewest steps, in every schedule there is.
fn pass_on_to_one_that_leaves() {
    let queue = Arc::new(Queue::default());
    let server = Arc::default();
    let baton = Baton::take(&server);
    let first = turn(queue.add(&realm("a"), 9, None));
    let leaving = waiting(queue.add(&realm("a"), 9, None));
    let staying = waiting(queue.add(&realm("a"), 9, None));
    let leaves = thread::spawn(move || drop(leaving));
    first.hand_on(baton);
    leaves.join().unwrap();
    assert!(arrive(staying).take_baton().is_some());
    assert!(is_empty(&queue));
    assert_eq!(server.load(Ordering::SeqCst), 0);
}

/// Callers that enter while the queue closes are refused, or get a turn, or stop waiting.
fn close_while_entering() {
    let queue = Arc::new(Queue::default());
    let first = turn(queue.add(&realm("a"), 9, None));
    let threads: Vec<_> = ["a", "a", "b"]
        .into_iter()
        .map(|name| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let entry = queue.add(&realm(name), 9, None);
                // Nobody else ends the wait for the first one.
                let has_turn = entry.is_ok_and(|entry| block_on(entry.turn()));
                assert!(!has_turn || name == "b");
            })
        })
        .collect();
    queue.close();
    assert!(matches!(
        queue.add(&realm("c"), 9, None),
        Err(Refused::Closed)
    ));
    for thread in threads {
        thread.join().unwrap();
    }
    drop(first);
    assert!(is_empty(&queue));
}

#[test]
fn no_schedule_forgets_a_waiter_of_a_queue_that_closes() {
    check_random(close_while_entering, 2_000);
    check_pct(close_while_entering, 2_000, 3);
}

#[test]
fn no_schedule_grants_twice_or_forgets_a_waiter() {
    check_random(enter_and_leave, 2_000);
    check_pct(enter_and_leave, 2_000, 3);
    check_random(pass_on_while_leaving, 2_000);
    check_pct(pass_on_while_leaving, 2_000, 3);
    check_dfs(pass_on_to_one_that_leaves, None);
}

#[test]
fn no_schedule_changes_the_order() {
    check_random(keep_the_order, 2_000);
    check_pct(keep_the_order, 2_000, 3);
}
