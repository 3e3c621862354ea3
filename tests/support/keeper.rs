//! The process that owns a throwaway PostgreSQL, so that the server ends with the test process, however that ends.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::installed;

/// A running `keeper.sh`. Dropping it stops the server and removes its directory.
pub struct Keeper {
    process: Child,
    /// `None` only while dropping: closing it is what tells the keeper to end.
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    dir: PathBuf,
}

impl Keeper {
    /// Starts a keeper, which has no server yet.
    pub fn spawn() -> Self {
        let mut command = Command::new("sh");
        command
            .args(["-c", include_str!("keeper.sh"), "keeper"])
            .arg(installed::server_programs())
            // A Ctrl-C goes to the test run's process group: it must end the tests and not their keeper.
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if let Some((user, group)) = installed::server_user() {
            command.uid(user).gid(group);
        }
        let mut process = command.spawn().expect("`sh` starts");
        let requests = process.stdin.take();
        let answers = process.stdout.take().expect("the keeper's output is piped");
        let mut keeper = Self {
            process,
            requests,
            answers: BufReader::new(answers),
            dir: PathBuf::new(),
        };
        keeper.dir = PathBuf::from(keeper.answer());
        assert!(
            keeper.dir.is_absolute(),
            "no directory for a PostgreSQL cluster: neither TMPDIR nor /tmp can be written"
        );
        keeper
    }

    /// The directory that holds the server's data, socket and logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Has the keeper carry out one request of `keeper.sh`. The error holds the end of the logs.
    pub fn ask(&mut self, request: &str) -> Result<(), String> {
        let requests = self.requests.as_mut().expect("open until dropped");
        let sent = writeln!(requests, "{request}");
        let status = self.answer();
        if sent.is_ok() && status == "0" {
            return Ok(());
        }
        Err(format!(
            "PostgreSQL in {}: `{request}` ended with status `{status}`\n{}{}",
            self.dir.display(),
            self.end_of("keeper.log"),
            self.end_of("server.log")
        ))
    }

    /// One line of the keeper's output; empty when it has ended.
    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .expect("the keeper's answers are text");
        line.trim_end().to_owned()
    }

    fn end_of(&self, log: &str) -> String {
        let text = fs::read_to_string(self.dir.join(log)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(20)..].join("\n");
        format!("--- the end of {log}\n{end}\n")
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Err(error) = self.process.wait() {
            eprintln!("the keeper of {} is lost: {error}", self.dir.display());
        }
    }
}
