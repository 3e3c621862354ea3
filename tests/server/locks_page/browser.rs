//! A headless Chromium of a test's own, driven by its chromedriver.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use fantoccini::actions::{InputSource, KeyAction, KeyActions};
use fantoccini::key::Key;
use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, Locator};
use http::Method;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use url::{ParseError, Url};

use crate::support::installed::browser_driver;
use crate::support::process::{Process, Watchdog};
use crate::support::wait::wait_for;

/// How long a driver may take to listen, and a browser to show what it has been told.
const BROWSER_PATIENCE: Duration = Duration::from_secs(20);

/// No test of ours needs a sandbox, which root has not, nor anything that a browser asks its maker for.
const FLAGS: [&str; 11] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    // A page in the background would be shown seldom.
    "--disable-renderer-backgrounding",
    "--window-size=1200,900",
];

/// A browser with one page. Dropping it kills it, and its files go.
pub struct Browser {
    client: Client,
    driver: Process,
    /// The driver starts the browser in a process group of its own, where it would live on.
    pid: u32,
    watchdog: Watchdog,
    files: TempDir,
}

impl Browser {
    /// Starts a browser that shows nothing yet.
    ///
    /// # Panics
    /// When there is none, or it does not start; the driver's output is printed.
    pub async fn start() -> Self {
        let files = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(browser_driver());
        command
            .arg("--port=0")
            .env("HOME", files.path())
            .env("TMPDIR", files.path());
        let mut driver = Process::spawn(&mut command);
        let port = wait_for("chromedriver to listen", BROWSER_PATIENCE, async || {
            if let Some(status) = driver.ended() {
                panic!("chromedriver ended with {status}");
            }
            listening(&driver.stdout()).ok_or_else(|| driver.stdout())
        })
        .await;
        let client = Client::with_capabilities_and_connector(
            &format!("http://127.0.0.1:{port}"),
            &capabilities(&files),
            HttpConnector::new(),
        )
        .await
        .unwrap_or_else(|error| panic!("Chromium does not start: {error}"));
        let pid = client
            .capabilities()
            .and_then(|known| known.get("goog:processID")?.as_u64())
            .and_then(|pid| u32::try_from(pid).ok())
            .expect("chromedriver tells the browser's process id");
        Self {
            client,
            driver,
            pid,
            watchdog: Watchdog::over(pid),
            files,
        }
    }

    /// Loads a page, up to the end of its own scripts.
    pub async fn open(&self, url: &str) {
        let opened = self.client.goto(url).await;
        opened.unwrap_or_else(|error| panic!("{url}: {error}"));
    }

    /// The value of an expression in the page, where `find` gives the element with an id. It works where the page's own
    /// scripts are off.
    pub async fn eval(&self, expression: &str) -> Value {
        let script =
            format!("const find = (id) => document.getElementById(id); return ({expression})");
        let value = self.client.execute(&script, vec![]).await;
        value.unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    /// Waits until an expression in the page is true.
    ///
    /// # Panics
    /// When it is not within 20 s, with what the page says.
    pub async fn wait_until(&self, expression: &str) {
        wait_for(expression, BROWSER_PATIENCE, async || {
            if self.eval(expression).await == true {
                return Ok(());
            }
            let page = self.eval("document.body.innerText").await;
            Err(page.as_str().unwrap_or_default().to_owned())
        })
        .await;
    }

    /// The text of the first element that a CSS selector finds, seen or not.
    pub async fn text(&self, selector: &str) -> String {
        let selected = format!("document.querySelector({})?.textContent", json!(selector));
        let text = self.eval(&selected).await;
        let text = text.as_str();
        text.unwrap_or_else(|| panic!("the page has no {selector}"))
            .to_owned()
    }

    /// Clicks the element, and waits for the page that this may load.
    pub async fn click(&self, selector: &str) {
        let clicked = async {
            self.client
                .find(Locator::Css(selector))
                .await?
                .click()
                .await
        };
        let clicked = clicked.await;
        clicked.unwrap_or_else(|error| panic!("{selector}: {error}"));
    }

    /// Presses a key and lets it go.
    pub async fn press(&self, key: Key) {
        let value = char::from(key);
        let actions = KeyActions::new("keyboard".to_owned())
            .then(KeyAction::Down { value })
            .then(KeyAction::Up { value });
        let pressed = self.client.perform_actions(actions).await;
        pressed.unwrap_or_else(|error| panic!("{value:?}: {error}"));
    }

    /// Sends a command of Chromium's own protocol for developers.
    pub async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({"cmd": command, "params": parameters});
        self.ask("goog/cdp/execute", body).await
    }

    /// Whether the page's scripts run, from the next page on.
    pub async fn run_scripts(&self, run: bool) {
        let off = json!({"value": !run});
        self.devtools("Emulation.setScriptExecutionDisabled", off)
            .await;
    }

    /// Shows pages as on a screen of this size, in the `light` or `dark` theme.
    pub async fn show_as(&self, width: u32, height: u32, theme: &str) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", size)
            .await;
        let theme = json!({"features": [{"name": "prefers-color-scheme", "value": theme}]});
        self.devtools("Emulation.setEmulatedMedia", theme).await;
    }

    /// The URLs that pages have asked for since the last call, loaded or not.
    pub async fn requests(&self) -> Vec<String> {
        let entries = self.ask("se/log", json!({"type": "performance"})).await;
        let entries = entries.as_array().cloned().unwrap_or_default();
        entries
            .iter()
            .filter_map(|entry| serde_json::from_str::<Value>(entry["message"].as_str()?).ok())
            .filter(|event| event["message"]["method"] == "Network.requestWillBeSent")
            .filter_map(|event| {
                let url = &event["message"]["params"]["request"]["url"];
                url.as_str().map(str::to_owned)
            })
            .collect()
    }

    async fn ask(&self, path: &'static str, body: Value) -> Value {
        let answer = self.client.issue_cmd(Extension { path, body }).await;
        answer.unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It takes its other processes with it, if it is let.
        self.signal("TERM");
        until_so(|| !self.runs());
        self.signal("KILL");
        self.watchdog.dismiss();
        self.driver.kill();
        // Whatever is left of it writes for a moment still.
        until_so(|| {
            let removed = fs::remove_dir_all(self.files.path());
            removed.is_ok_and(|()| !self.files.path().exists())
        });
    }
}

impl Browser {
    fn signal(&self, name: &str) {
        let mut kill = Command::new("sh");
        kill.args(["-c", "kill -s \"$1\" \"$2\"", "sh", name]);
        // Not an error when it has ended already.
        drop(kill.arg(self.pid.to_string()).output());
    }

    fn runs(&self) -> bool {
        // A driver that is slow to look leaves it in the state Z.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }
}

/// Waits up to 2 s, on a thread that a test that is over can spare.
fn until_so(so: impl Fn() -> bool) {
    for _ in 0..200 {
        if so() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A command that only Chromium's driver has.
#[derive(Debug)]
struct Extension {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Extension {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        let session = session.unwrap_or_default();
        base.join(&format!("session/{session}/{}", self.path))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.body.to_string()))
    }
}

fn capabilities(files: &TempDir) -> Capabilities {
    let profile = format!("--user-data-dir={}", files.path().display());
    let mut flags: Vec<&str> = FLAGS.to_vec();
    flags.push(&profile);
    let capabilities = json!({
        "browserName": "chrome",
        "goog:chromeOptions": { "args": flags },
        "goog:loggingPrefs": { "performance": "ALL" },
    });
    match capabilities {
        Value::Object(capabilities) => capabilities,
        _ => unreachable!("an object was written"),
    }
}

/// The port in the complete line `ChromeDriver was started successfully on port PORT.`
fn listening(stdout: &str) -> Option<u16> {
    let (_, rest) = stdout.split_once("started successfully on port ")?;
    let (port, _) = rest.split_once('.')?;
    port.parse().ok()
}
