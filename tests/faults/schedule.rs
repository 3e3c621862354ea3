//! Which faults happen when: all of it follows from the seed.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::LEASE;
use crate::random::Random;

/// What is done to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Ends the sessions of some lock connections; `choice` says which.
    KillBackends {
        count: usize,
        choice: u64,
    },
    /// Ends the sessions of all lock connections that are idle.
    CloseIdle,
    RestartFast,
    RestartImmediate,
    /// `SIGKILL`, and a new process.
    KillReplica {
        replica: usize,
    },
    /// `SIGSTOP`, and `SIGCONT` later.
    Freeze {
        replica: usize,
        duration: Duration,
    },
    /// Breaks the replica's connections to the database.
    Cut {
        replica: usize,
    },
    /// Nothing goes through between the replica and the database for a while.
    BlackHole {
        replica: usize,
        duration: Duration,
    },
    /// The same, and the server ends the replica's sessions at once: the next holder is let in while the one before does
    /// not know.
    GiveUp {
        replica: usize,
        duration: Duration,
    },
    /// What the open connections of the replica send and are sent vanishes, and the server ends its
    /// side of them after a while, as its keepalives do.
    Forget {
        replica: usize,
        duration: Duration,
    },
    /// Whatever the replica and the database send each other comes `delay` later, for a while.
    Delay {
        replica: usize,
        delay: Duration,
        duration: Duration,
    },
    /// The replica's cancel requests go nowhere for a while.
    DropCancels {
        replica: usize,
        duration: Duration,
    },
    /// The replica's connections break, and for a while it gets no new ones.
    RefuseLogins {
        replica: usize,
        duration: Duration,
    },
    /// For a while all new sessions begin with time limits of their role that are this short.
    LimitRole {
        limit: Duration,
        duration: Duration,
    },
    /// All clients leave that wait for an answer of the replica.
    ClientsLeave {
        replica: usize,
    },
}

/// A fault and its time, counted from the start of the run.
pub type Schedule = Vec<(Duration, Fault)>;

/// How often each kind is drawn before all start again.
const DECK: [(Kind, usize); 17] = [
    (Kind::KillBackends, 20),
    (Kind::CloseIdle, 8),
    (Kind::RestartFast, 2),
    (Kind::RestartImmediate, 2),
    (Kind::KillReplica, 5),
    (Kind::FreezeShort, 5),
    (Kind::FreezeLong, 5),
    (Kind::Cut, 10),
    (Kind::BlackHoleShort, 4),
    (Kind::BlackHoleLong, 4),
    (Kind::GiveUp, 8),
    (Kind::Forget, 6),
    (Kind::Delay, 4),
    (Kind::DropCancels, 6),
    (Kind::RefuseLogins, 6),
    (Kind::LimitRole, 4),
    (Kind::ClientsLeave, 8),
];

#[derive(Clone, Copy)]
enum Kind {
    KillBackends,
    CloseIdle,
    RestartFast,
    RestartImmediate,
    KillReplica,
    FreezeShort,
    FreezeLong,
    Cut,
    BlackHoleShort,
    BlackHoleLong,
    GiveUp,
    Forget,
    Delay,
    DropCancels,
    RefuseLogins,
    LimitRole,
    ClientsLeave,
}

/// The time between two faults, in milliseconds.
const INTERVALS: RangeInclusive<u64> = 50..=700;

/// Every kind of fault, again and again until `end`.
pub fn all_kinds(random: &mut Random, replicas: usize, end: Duration) -> Schedule {
    let mut schedule = Schedule::new();
    let mut deck = Vec::new();
    let mut now = random.milliseconds(&INTERVALS);
    while now < end {
        let kind = deck.pop().unwrap_or_else(|| {
            deck = shuffled(random);
            deck.pop().expect("a deck is not empty")
        });
        schedule.push((now, kind.fault(random, replicas)));
        now += random.milliseconds(&INTERVALS);
    }
    schedule
}

/// One kind alone: sessions that end under their holders.
pub fn killed_backends(random: &mut Random, end: Duration) -> Schedule {
    let mut schedule = Schedule::new();
    let mut now = random.milliseconds(&INTERVALS);
    while now < end {
        let choice = random.next();
        schedule.push((now, Fault::KillBackends { count: 8, choice }));
        now += random.milliseconds(&(20..=200));
    }
    schedule
}

fn shuffled(random: &mut Random) -> Vec<Kind> {
    let mut deck: Vec<Kind> = DECK
        .iter()
        .flat_map(|(kind, count)| std::iter::repeat_n(*kind, *count))
        .collect();
    random.shuffle(&mut deck);
    deck
}

impl Kind {
    fn fault(self, random: &mut Random, replicas: usize) -> Fault {
        let lease = u64::try_from(LEASE.as_millis()).expect("a short lease");
        let short = lease / 10..=lease * 6 / 10;
        let long = lease * 11 / 10..=lease * 16 / 10;
        let replica = random.index(replicas);
        match self {
            Self::KillBackends => Fault::KillBackends {
                count: 1 + random.index(3),
                choice: random.next(),
            },
            Self::CloseIdle => Fault::CloseIdle,
            Self::RestartFast => Fault::RestartFast,
            Self::RestartImmediate => Fault::RestartImmediate,
            Self::KillReplica => Fault::KillReplica { replica },
            Self::FreezeShort => Fault::Freeze {
                replica,
                duration: random.milliseconds(&short),
            },
            Self::FreezeLong => Fault::Freeze {
                replica,
                duration: random.milliseconds(&long),
            },
            Self::Cut => Fault::Cut { replica },
            Self::BlackHoleShort => Fault::BlackHole {
                replica,
                duration: random.milliseconds(&short),
            },
            Self::BlackHoleLong => Fault::BlackHole {
                replica,
                duration: random.milliseconds(&long),
            },
            Self::GiveUp => Fault::GiveUp {
                replica,
                duration: random.milliseconds(&short),
            },
            Self::Forget => Fault::Forget {
                replica,
                duration: random.milliseconds(&long),
            },
            Self::Delay => Fault::Delay {
                replica,
                delay: random.milliseconds(&(2..=40)),
                duration: random.milliseconds(&long),
            },
            Self::DropCancels => Fault::DropCancels {
                replica,
                duration: random.milliseconds(&long),
            },
            Self::RefuseLogins => Fault::RefuseLogins {
                replica,
                duration: random.milliseconds(&short),
            },
            Self::LimitRole => Fault::LimitRole {
                limit: random.milliseconds(&(20..=200)),
                duration: random.milliseconds(&long),
            },
            Self::ClientsLeave => Fault::ClientsLeave { replica },
        }
    }
}

impl Fault {
    /// The kind, for counting.
    pub fn kind(self) -> &'static str {
        match self {
            Self::KillBackends { .. } => "lock connections terminated",
            Self::CloseIdle => "idle connections closed",
            Self::RestartFast => "PostgreSQL restarted",
            Self::RestartImmediate => "PostgreSQL crashed",
            Self::KillReplica { .. } => "replica killed",
            Self::Freeze { duration, .. } if duration < LEASE => {
                "replica frozen, less than a lease"
            }
            Self::Freeze { .. } => "replica frozen, more than a lease",
            Self::Cut { .. } => "connections cut",
            Self::BlackHole { duration, .. } if duration < LEASE => {
                "network silent, less than a lease"
            }
            Self::BlackHole { .. } => "network silent, more than a lease",
            Self::GiveUp { .. } => "network silent and sessions ended",
            Self::Forget { .. } => "open connections forgotten",
            Self::Delay { .. } => "network slow",
            Self::DropCancels { .. } => "cancel requests dropped for a while",
            Self::RefuseLogins { .. } => "connections cut and logins refused",
            Self::LimitRole { .. } => "time limits of the role changed",
            Self::ClientsLeave { .. } => "clients left together",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match self {
            Self::KillBackends { count, .. } => write!(f, ": up to {count}"),
            Self::Freeze { replica, duration }
            | Self::BlackHole { replica, duration }
            | Self::GiveUp { replica, duration }
            | Self::Forget { replica, duration }
            | Self::DropCancels { replica, duration }
            | Self::RefuseLogins { replica, duration } => {
                write!(f, ": r{replica} for {duration:?}")
            }
            Self::Delay {
                replica,
                delay,
                duration,
            } => write!(f, ": r{replica} by {delay:?} for {duration:?}"),
            Self::LimitRole { limit, duration } => write!(f, ": {limit:?} for {duration:?}"),
            Self::KillReplica { replica }
            | Self::Cut { replica }
            | Self::ClientsLeave { replica } => write!(f, ": r{replica}"),
            Self::CloseIdle | Self::RestartFast | Self::RestartImmediate => Ok(()),
        }
    }
}
