//! The crate's examples as programs: built, started, and found where they listen.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::process::Process;
use super::wait::wait_for;

/// How long an example may take to listen, and to end.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until an example says where it listens: its origin.
///
/// # Panics
/// When it ends instead, or does not listen within 20 s; `name` says what.
pub async fn listening(process: &mut Process, name: &str) -> String {
    let what = format!("{name} to listen");
    wait_for(&what, PATIENCE, async || {
        if let Some(status) = process.ended() {
            panic!("{name} ended with {status}");
        }
        announced(&process.stdout()).ok_or_else(|| "it runs".to_owned())
    })
    .await
}

/// Builds an example beside the running test: in its target directory, with its profile. Its program.
pub fn build(name: &str) -> PathBuf {
    let test = env::current_exe().expect("the test's own path is known");
    // <target directory>/<profile>/deps/<test>
    let profile_dir = test
        .parent()
        .and_then(Path::parent)
        .expect("cargo puts tests into <profile>/deps");
    let target_dir = profile_dir.parent().expect("<profile> is in a directory");
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => panic!("no profile in {}", test.display()),
    };
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--example", name])
        // As the test script builds, so that nothing is built twice.
        .args(["--all-features", "--profile", profile, "--target-dir"])
        .arg(target_dir)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo starts");
    assert!(
        output.status.success(),
        "the example {name} does not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    profile_dir.join("examples").join(name)
}

/// The origin in the complete line `… listening on http://127.0.0.1:PORT …`.
fn announced(stdout: &str) -> Option<String> {
    let (_, rest) = stdout.split_once("listening on http://")?;
    let (line, _) = rest.split_once('\n')?;
    let authority = line.split_whitespace().next()?.trim_end_matches('/');
    Some(format!("http://{authority}"))
}
