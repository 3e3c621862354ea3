//! The task that drives a connection.
//!
//! Whatever is sent or read there on behalf of others runs on this task too: the
//! [`Reader`] of confirmations, the [`Watchman`], and a *companion*, which is the work of a session.
//! They hear from each other all the time, and none of that may cost a wake-up: a task that wakes
//! itself goes to the end of the runtime's queue, and the runtime wakes another thread to take it
//! from there. So each is polled with a [`Bell`] as its waker, and again while that is rung.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
#[cfg(not(shuttle))]
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::task::AtomicWaker;
#[cfg(shuttle)]
use shuttle::sync::atomic::{AtomicU8, Ordering};
use tokio::sync::oneshot;
use tokio_util::sync::DropGuard;

use super::confirmation::Reader;
use super::traffic::Watchman;

/// How often they are polled before the other tasks of the thread have their turn.
#[cfg(not(shuttle))]
const ROUNDS: usize = 16;
/// So that the schedules see a task that gives others their turn.
#[cfg(shuttle)]
const ROUNDS: usize = 1;

/// Work that is polled together with a connection.
pub(super) type Companion = BoxFuture<'static, ()>;

/// Drives a connection until it ends, and its companion.
pub(super) struct Drive<C> {
    /// `None` once it has ended.
    line: Option<Line<C>>,
    side: Side,
    bells: Bells,
}

/// A companion that may still come, or that is there.
struct Side {
    awaited: Option<oneshot::Receiver<Companion>>,
    companion: Option<Companion>,
}

/// A connection, and what is done there for others.
struct Line<C> {
    connection: Pin<Box<C>>,
    reader: Reader,
    watchman: Watchman,
    /// Tells everybody when the connection has ended.
    _closed: DropGuard,
}

impl<C, E> Drive<C>
where
    C: Future<Output = Result<(), E>>,
    E: std::error::Error,
{
    /// The companion may come later, or never. It goes on when the connection has ended, which
    /// `closed` tells everybody.
    pub(super) fn new(
        connection: C,
        reader: Reader,
        watchman: Watchman,
        companion: oneshot::Receiver<Companion>,
        closed: DropGuard,
    ) -> Self {
        let line = Line {
            connection: Box::pin(connection),
            reader,
            watchman,
            _closed: closed,
        };
        Self {
            line: Some(line),
            side: Side {
                awaited: Some(companion),
                companion: None,
            },
            bells: Bells::default(),
        }
    }
}

impl Side {
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Some(awaited) = &mut self.awaited
            && let Poll::Ready(companion) = awaited.poll_unpin(cx)
        {
            self.awaited = None;
            self.companion = companion.ok();
        }
        self.companion
            .take_if(|companion| companion.as_mut().poll(cx).is_ready());
    }
}

impl<C, E> Line<C>
where
    C: Future<Output = Result<(), E>>,
    E: std::error::Error,
{
    /// Resolves when the connection has ended, or is to be given up.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.watchman.begin_poll();
            if let Poll::Ready(ended) = self.connection.as_mut().poll(cx) {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a lock connection ended");
                }
                // What was answered before is a proof.
                while self.reader.poll(cx) == Poll::Ready(true) {}
                return Poll::Ready(());
            }
            match self.reader.poll(cx) {
                Poll::Ready(true) => continue,
                Poll::Ready(false) => {
                    tracing::debug!("a lock connection was silent for too long, or failed");
                    return Poll::Ready(());
                }
                Poll::Pending => {}
            }
            if self.watchman.poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl<C, E> Future for Drive<C>
where
    C: Future<Output = Result<(), E>>,
    E: std::error::Error,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { line, side, bells } = &mut *self;
        bells.poll(cx, |part, cx| {
            match part {
                Part::Line => drop(line.take_if(|line| line.poll(cx).is_ready())),
                Part::Companion => side.poll(cx),
            }
            if line.is_none() && side.companion.is_none() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
    }
}

/// What a drive polls, each for itself.
#[derive(Clone, Copy)]
enum Part {
    Line = 1,
    Companion = 2,
}

/// The wakers of both parts.
struct Bells {
    shared: Arc<Shared>,
    line: Waker,
    companion: Waker,
}

/// The waker of one part. It wakes the task only if that is asleep: a task that is polling looks at
/// what was rung.
struct Bell {
    part: Part,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Which parts are to be polled, and whether the task is polling.
    state: AtomicU8,
    task: AtomicWaker,
}

const POLLING: u8 = 4;

impl Bells {
    /// Polls each part that was rung, until `poll_part` is ready or nobody has rung meanwhile.
    fn poll(
        &self,
        cx: &mut Context<'_>,
        mut poll_part: impl FnMut(Part, &mut Context<'_>) -> Poll<()>,
    ) -> Poll<()> {
        let Shared { state, task } = &*self.shared;
        task.register(cx.waker());
        for _ in 0..ROUNDS {
            let rung = state.swap(POLLING, Ordering::AcqRel);
            for (part, waker) in [(Part::Line, &self.line), (Part::Companion, &self.companion)] {
                if rung & part as u8 != 0
                    && poll_part(part, &mut Context::from_waker(waker)).is_ready()
                {
                    return Poll::Ready(());
                }
            }
            let (order, failed) = (Ordering::AcqRel, Ordering::Acquire);
            if (state.compare_exchange(POLLING, 0, order, failed)).is_ok() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Default for Bells {
    fn default() -> Self {
        let shared = Arc::new(Shared::default());
        let both = Part::Line as u8 | Part::Companion as u8;
        shared.state.store(both, Ordering::Release);
        let bell = |part| {
            let shared = Arc::clone(&shared);
            Waker::from(Arc::new(Bell { part, shared }))
        };
        Self {
            line: bell(Part::Line),
            companion: bell(Part::Companion),
            shared,
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let Shared { state, task } = &*self.shared;
        if state.fetch_or(self.part as u8, Ordering::AcqRel) == 0 {
            task.wake();
        }
    }
}

#[cfg(all(test, shuttle))]
mod schedules {
    use std::future::poll_fn;

    use shuttle::future::block_on;
    use shuttle::sync::Mutex;
    use shuttle::sync::atomic::AtomicUsize;
    use shuttle::{check_dfs, thread};

    use super::*;

    /// What the futures of a task wait for: what others have done, and whom they wake then.
    #[derive(Default)]
    struct Source {
        done: AtomicUsize,
        waker: Mutex<Option<Waker>>,
    }

    #[test]
    fn a_ring_is_never_missed() {
        let run = || {
            let source = Arc::new(Source::default());
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let source = Arc::clone(&source);
                    thread::spawn(move || {
                        source.done.fetch_add(1, Ordering::SeqCst);
                        let waker = source.waker.lock().unwrap().take();
                        waker.inspect(Waker::wake_by_ref);
                    })
                })
                .collect();
            let bells = Bells::default();
            // With a ring missed this waits for ever, which is a deadlock to the model checker.
            block_on(poll_fn(|cx| {
                bells.poll(cx, |part, cx| {
                    if matches!(part, Part::Companion) {
                        return Poll::Pending;
                    }
                    *source.waker.lock().unwrap() = Some(cx.waker().clone());
                    if source.done.load(Ordering::SeqCst) == threads.len() {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    }
                })
            }));
            for thread in threads {
                thread.join().unwrap();
            }
        };
        check_dfs(run, Some(20_000));
    }
}
