//! What the library logs, read by the test that caused it.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, Once};

use tracing::subscriber::DefaultGuard;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::LevelFilter;

/// The lines that this thread logs while this is there, with their levels, fields and targets.
pub struct Log {
    text: Text,
    _guard: DefaultGuard,
}

#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Collects what this thread logs from now on, down to DEBUG.
    pub fn collect() -> Self {
        // With a single subscriber in the process, an event that another thread, which has none, comes
        // to first would be switched off for all threads: this one is always there.
        static INTERESTED: Once = Once::new();
        INTERESTED.call_once(|| {
            let _ = tracing::subscriber::set_global_default(Registry::default());
        });
        let text = Text::default();
        let writer = text.clone();
        let guard = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::DEBUG)
            .with_ansi(false)
            .without_time()
            .with_writer(move || writer.clone())
            .finish();
        Self {
            text,
            _guard: tracing::subscriber::set_default(guard),
        }
    }

    /// The library's lines since the last call, each with its level at the beginning.
    pub fn take(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.text.0.lock().expect("no writer panics"));
        let text = String::from_utf8(bytes).expect("it is UTF-8");
        let lines = text.lines().map(str::trim_start);
        let lines = lines.filter(|line| line.contains("tower_realm_lock::"));
        lines.map(str::to_owned).collect()
    }

    /// Those of them at this level.
    pub fn take_at(&self, level: &str) -> Vec<String> {
        let mut lines = self.take();
        lines.retain(|line| line.starts_with(level));
        lines
    }
}

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut text = self.0.lock().expect("no writer panics");
        text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
