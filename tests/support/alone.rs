//! Tests that other tests of their program must not disturb: each runs in a process of its own.

use std::env;
use std::process::Command;

use super::process::Process;
use super::wait::PATIENCE;

/// Set in the process of such a test, to its name.
const VARIABLE: &str = "TRL_ALONE";

/// The name by which the test program knows a test: what `--exact` takes.
///
/// `module` is the test's `module_path!()`.
pub fn name_of(module: &str, test: &str) -> String {
    match module.split_once("::") {
        Some((_, module)) => format!("{module}::{test}"),
        None => test.to_owned(),
    }
}

/// Whether this process is the one that runs only this test. If not, runs the test in such a process
/// first: the caller has nothing left to do.
///
/// For what the whole process shares: the allocator's counts, a global subscriber or recorder.
///
/// # Panics
/// When the test fails there.
pub fn is_alone(module: &str, test: &str) -> bool {
    let name = name_of(module, test);
    if env::var_os(VARIABLE).is_some_and(|value| value == *name) {
        return true;
    }
    let output = Command::new(env::current_exe().expect("the test's own path is known"))
        .args(["--exact", &name, "--nocapture"])
        .env(VARIABLE, &name)
        .output()
        .expect("the test's own program starts");
    let stdout = String::from_utf8_lossy(&output.stdout);
    print!("{stdout}");
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}: {}", output.status);
    assert!(stdout.contains("1 passed"), "{name} is no test");
    false
}

/// Runs a test in a process with Linux namespaces of its own: `flags` are those of `unshare`. `script`
/// prepares them, with `argument` as `$0`. The test finds `value` in the environment's `variable`.
///
/// # Panics
/// When the test fails there, or namespaces are not allowed here.
pub async fn with_namespaces(
    flags: &str,
    (script, argument): (&str, &str),
    (module, test): (&str, &str),
    (variable, value): (&str, &str),
) {
    let may = Command::new("unshare").args([flags, "true"]).status();
    assert!(
        may.is_ok_and(|status| status.success()),
        "`unshare {flags}` is not allowed here: run the tests as root, or allow user namespaces"
    );
    let mut child = Command::new("unshare");
    let script = format!("{script} && exec \"$@\"");
    child.args([flags, "sh", "-c", &script, argument]);
    child.arg(env::current_exe().expect("the test's own path is known"));
    child.args(["--exact", &name_of(module, test), "--nocapture"]);
    child.env(variable, value);
    let mut child = Process::spawn(&mut child);
    let ended = child.end(6 * PATIENCE).await;
    let said = child.stdout() + &child.stderr();
    assert!(ended.success() && said.contains("1 passed"), "{said}");
}
