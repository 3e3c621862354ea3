//! Keeps client and server on one core.
//!
//! An uncontended hold is a conversation between two processes. Whether they share a core decides what it takes more than
//! what they do, and the system's choice lasts for a while.

use crate::server::Server;

/// Client and server, on one core until they are released.
///
/// Threads and backends that start meanwhile inherit it.
pub struct OneCore<'a> {
    server: &'a Server,
    before: linux::CpuSet,
    core: usize,
}

impl<'a> OneCore<'a> {
    /// Takes the last core that this process may use. `None` where the system does not allow it.
    pub async fn take(server: &'a Server) -> Option<Self> {
        let before = linux::allowed()?;
        let (core, only) = linux::last(&before)?;
        let taken = linux::set(server, &only).await;
        taken.then_some(Self {
            server,
            before,
            core,
        })
    }

    pub fn number(&self) -> usize {
        self.core
    }

    /// Lets them use all cores again.
    pub async fn release(self) {
        linux::set(self.server, &self.before).await;
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;

    use nix::sched::{sched_getaffinity, sched_setaffinity};
    use nix::unistd::Pid;

    use crate::server::Server;

    pub use nix::sched::CpuSet;

    /// The cores that this thread may use.
    pub fn allowed() -> Option<CpuSet> {
        sched_getaffinity(Pid::from_raw(0)).ok()
    }

    /// The last core of a set, and the set of only that one.
    pub fn last(set: &CpuSet) -> Option<(usize, CpuSet)> {
        let is_set = |core: &usize| set.is_set(*core).unwrap_or(false);
        let core = (0..CpuSet::count()).rev().find(is_set)?;
        let mut only = CpuSet::new();
        only.set(core).ok()?;
        Some((core, only))
    }

    /// Whether all could be moved: the threads of this process, the server, and its backends.
    pub async fn set(server: &Server, cores: &CpuSet) -> bool {
        let move_to = |id| sched_setaffinity(Pid::from_raw(id), cores);
        // The server first: what it starts from now on inherits its cores.
        let mut moved = move_to(server.pid()).is_ok();
        for id in server.backends().await {
            // It may have ended since.
            let _ = move_to(id);
        }
        let threads = fs::read_dir("/proc/self/task").into_iter().flatten();
        for thread in threads.flatten() {
            let id = thread.file_name().to_string_lossy().parse();
            // A thread, too, may have ended; this one has not.
            moved &= id.is_ok_and(|id| move_to(id).is_ok() || id != nix::unistd::gettid().as_raw());
        }
        moved
    }
}

/// Where nothing can be kept on a core.
#[cfg(not(target_os = "linux"))]
mod linux {
    use crate::server::Server;

    pub enum CpuSet {}

    pub fn allowed() -> Option<CpuSet> {
        None
    }

    pub fn last(set: &CpuSet) -> Option<(usize, CpuSet)> {
        match *set {}
    }

    pub async fn set(_: &Server, set: &CpuSet) -> bool {
        match *set {}
    }
}
