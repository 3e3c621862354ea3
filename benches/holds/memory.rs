//! What a waiter takes in memory, seen from outside: by how much a process grows while very many wait.
//!
//! A counting allocator would slow down everything else that is measured here, and unevenly. A process of its own has no
//! freed memory that it could use instead of growing.

use std::env;
use std::fs;
use std::future::pending;
use std::process::Stdio;

use http::Request;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::PATIENCE;
use crate::contenders::{CONNECTIONS, Contender, IN_PROCESS, Name, STRATEGIES};
use crate::waiters::Line;

/// Bytes that one of so many waiters takes over its own request; `None` where the system does not tell.
pub async fn of_a_waiter(name: Name, url: &str, waiters: u32) -> Option<f64> {
    let program = env::current_exe().expect("this program has a name");
    let child = Command::new(program)
        .args(["--memory-of", name, "--url", url])
        .args(["--waiters", &waiters.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, child).await.expect("it ends");
    let output = output.expect("it starts");
    assert!(output.status.success(), "{name}: {}", output.status);
    let answer = String::from_utf8(output.stdout).expect("a number");
    answer.trim().parse().ok()
}

/// Measures it in this process, and prints it; nothing where the system does not tell.
pub async fn print_of_a_waiter(name: &str, url: &str, waiters: u32) {
    let names = [&[IN_PROCESS], STRATEGIES].concat();
    let name = names.into_iter().find(|known| *known == name);
    let contender = Contender::start(name.expect("a contender"), url, CONNECTIONS).await;
    // Opens connections, and makes what is made once.
    let line = Line::form(&contender.guard, CONNECTIONS * 2).await;
    line.dissolve().await;

    let before = resident();
    let requests = requests(waiters).await;
    let between = resident();
    let line = Line::form(&contender.guard, waiters).await;
    let after = resident();
    line.dissolve().await;
    drop(requests);
    if let [Some(before), Some(between), Some(after)] = [before, between, after] {
        println!("{}", (after + before - 2.0 * between) / f64::from(waiters));
    }
}

/// As many tasks that have only a request, for as long as the set is there. Returns once all have it.
async fn requests(count: u32) -> JoinSet<()> {
    let made = watch::Sender::new(0);
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let made = made.clone();
        tasks.spawn(async move {
            let _request = Request::patch("/luke/awaited/card").body(String::new());
            made.send_modify(|made| *made += 1);
            pending::<()>().await;
        });
    }
    let mut all = made.subscribe();
    let all = all.wait_for(|made| *made == count).await;
    all.expect("it is counted here");
    tasks
}

/// Bytes of this process in memory that no file backs.
fn resident() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kibibytes: f64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}
