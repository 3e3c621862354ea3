//! The task that drives a connection.
//!
//! Whatever is sent or read there on behalf of others runs on this task too: the
//! [`Reader`] of confirmations, the [`Watchman`], and a *companion*, which is the work of a session.
//! They hear from each other all the time, and none of that may cost a wake-up: a task that wakes
//! itself goes to the end of the runtime's queue, and the runtime wakes another thread to take it
//! from there. So they are polled with a [`Bell`] as their waker, and polled again as long as it has
//! been rung.

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
const ROUNDS: usize = 16;

/// Work that is polled together with a connection.
pub(super) type Companion = BoxFuture<'static, ()>;

/// Drives a connection until it ends, and its companion.
pub(super) struct Drive<C> {
    /// `None` once it has ended.
    line: Option<Line<C>>,
    awaited: Option<oneshot::Receiver<Companion>>,
    companion: Option<Companion>,
    bell: Arc<Bell>,
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
            awaited: Some(companion),
            companion: None,
            bell: Arc::default(),
        }
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.line.take_if(|line| line.poll(cx).is_ready());
        if let Some(awaited) = &mut self.awaited
            && let Poll::Ready(companion) = awaited.poll_unpin(cx)
        {
            self.awaited = None;
            self.companion = companion.ok();
        }
        self.companion
            .take_if(|companion| companion.as_mut().poll(cx).is_ready());
        if self.line.is_none() && self.companion.is_none() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
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
        let bell = Arc::clone(&self.bell);
        bell.poll(cx, |cx| self.step(cx))
    }
}

/// A waker of futures that one task polls. While they are polled it does not wake the task: that
/// polls them again then.
#[derive(Default)]
struct Bell {
    state: AtomicU8,
    task: AtomicWaker,
}

/// Everything was polled since it was last rung. The next ring wakes the task.
const SILENT: u8 = 0;
/// The futures are being polled, and it was not rung since that began.
const POLLING: u8 = 1;
/// The futures are to be polled, and the task knows it.
const RUNG: u8 = 2;

impl Bell {
    /// Polls the futures with `step`, until they are ready or nobody has rung meanwhile.
    fn poll<T>(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        mut step: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.task.register(cx.waker());
        let waker = Waker::from(Arc::clone(self));
        for _ in 0..ROUNDS {
            // A swap, to see what whoever rang has done before.
            self.state.swap(POLLING, Ordering::AcqRel);
            let polled = step(&mut Context::from_waker(&waker));
            if polled.is_ready() || self.falls_silent() {
                return polled;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Falls silent after the futures were polled, unless it was rung meanwhile.
    fn falls_silent(&self) -> bool {
        let (order, failed) = (Ordering::AcqRel, Ordering::Acquire);
        let silenced = (self.state).compare_exchange(POLLING, SILENT, order, failed);
        silenced.is_ok()
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(RUNG, Ordering::AcqRel) == SILENT {
            self.task.wake();
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
            let bell = Arc::new(Bell::default());
            // With a ring missed this waits for ever, which is a deadlock to the model checker.
            block_on(poll_fn(|cx| {
                bell.poll(cx, |cx| {
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
