//! A child process whose output is kept for the message of a test that fails, and which does not outlive the test.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::wait::wait_for;

/// A running child process. Dropping it kills it; so does a watchdog when the test process itself is killed.
pub struct Process {
    child: Child,
    watchdog: Watchdog,
    stdout: Output,
    stderr: Output,
}

impl Process {
    /// Starts `command` with no input and its output kept.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        Self {
            watchdog: Watchdog::over(child.id()),
            stdout: Output::of(child.stdout.take().expect("piped")),
            stderr: Output::of(child.stderr.take().expect("piped")),
            child,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to its standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has written to its standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Its exit status, once it has ended; all its output has been read then.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().expect("the child is ours");
        if status.is_some() {
            self.watchdog.dismiss();
            self.stdout.finish();
            self.stderr.finish();
        }
        status
    }

    /// Waits until it ends.
    ///
    /// # Panics
    /// After `patience`.
    pub async fn end(&mut self, patience: Duration) -> ExitStatus {
        let what = format!("process {} to end", self.pid());
        wait_for(&what, patience, async || {
            self.ended().ok_or_else(|| "it runs".to_owned())
        })
        .await
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("sh")
            .args(["-c", "kill -s \"$1\" \"$2\"", "sh", name])
            .arg(self.pid().to_string())
            .status()
            .expect("`sh` starts");
        assert!(status.success(), "no process {} for {name}", self.pid());
    }

    /// Ends it with `SIGKILL`, if it has not ended yet.
    pub fn kill(&mut self) {
        // Not an error when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        self.ended();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let (stdout, stderr) = (self.stdout(), self.stderr());
            eprintln!("--- process {} wrote\n{stdout}{stderr}---", self.pid());
        }
    }
}

/// One output stream, read by a thread so that the child never waits for a reader.
struct Output {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Output {
    fn of(mut stream: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&bytes);
        let reader = thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut chunk) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&chunk[..count]);
            }
        });
        Self {
            bytes,
            reader: Some(reader),
        }
    }

    fn text(&self) -> String {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
    }
}

/// Kills a process when this one ends without having done so, be it by `SIGKILL`.
pub struct Watchdog(Child);

impl Watchdog {
    /// Watches the process with this id.
    pub fn over(pid: u32) -> Self {
        let child = Command::new("sh")
            // A line dismisses it; the end of its input, without a line, is the death of the test process.
            .args(["-c", "read -r _ || kill -s KILL \"$1\"", "watchdog"])
            .arg(pid.to_string())
            // A Ctrl-C is for the tests.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("`sh` starts");
        Self(child)
    }

    /// To be called once the process is gone: its id may be another's from then on.
    pub fn dismiss(&mut self) {
        if let Some(mut input) = self.0.stdin.take() {
            drop(input.write_all(b"\n"));
            drop(input);
            drop(self.0.wait());
        }
    }
}
