//! The HTML page. Its template escapes what it is given; only the style and the script go in as they are.

use askama::Template;
use axum::response::{Html, IntoResponse, Response};
use http::header::CONTENT_SECURITY_POLICY;
use http::{HeaderValue, StatusCode};
use uuid::Uuid;

use super::race::{Fate, Outcome, Tally};
use super::snapshot::Snapshot;
use crate::error::ApiError;

const STYLE: &str = include_str!("page/page.css");

/// One module: what the later files use, the earlier ones define.
const SCRIPT: &str = concat!(
    include_str!("page/words.js"),
    include_str!("page/chart.js"),
    include_str!("page/tables.js"),
    include_str!("page/race.js"),
    include_str!("page/stream.js"),
);

/// The page, with the locks as they are now: all there is for a browser that runs no scripts.
#[derive(Template)]
#[template(
    path = "page.html",
    config = "examples/realm_server/locks_page/askama.toml"
)]
pub struct Page {
    pub now: Snapshot,
    /// What the race has brought that the page was asked for.
    pub race: Option<Result<Outcome, ApiError>>,
    nonce: String,
    style: &'static str,
    script: &'static str,
}

impl Page {
    pub fn new(now: Snapshot, race: Option<Result<Outcome, ApiError>>) -> Self {
        Self {
            now,
            race,
            nonce: Uuid::new_v4().simple().to_string(),
            style: STYLE,
            script: SCRIPT,
        }
    }

    /// The outcome of the race, if there is one.
    fn outcome(&self) -> Option<&Outcome> {
        self.race.as_ref()?.as_ref().ok()
    }

    fn race_problem(&self) -> Option<&str> {
        self.race.as_ref()?.as_ref().err().map(ApiError::detail)
    }

    /// Nothing is loaded from anywhere, no script or style runs but the page's own, and it asks this server only.
    fn policy(&self) -> String {
        let nonce = &self.nonce;
        format!(
            "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; \
             connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
    }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let policy = HeaderValue::from_str(&self.policy());
        match (self.render(), policy) {
            (Ok(html), Ok(policy)) => {
                ([(CONTENT_SECURITY_POLICY, policy)], Html(html)).into_response()
            }
            (html, policy) => {
                let cause = html.err().map(|cause| cause.to_string());
                tracing::error!(?cause, policy = policy.is_ok(), "the page cannot be made");
                let detail = "The fault is the server's; its log has the cause.";
                ApiError::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "page-failed",
                    "No page",
                    detail,
                )
                .into_response()
            }
        }
    }
}

impl Outcome {
    /// Both kinds of writes in the order of their rows: name for the style, name, lock in words, and numbers.
    fn kinds(&self) -> [(&'static str, &'static str, &str, &Tally); 2] {
        [
            (
                "without",
                "Without the lock",
                "as --lock off",
                &self.without_lock,
            ),
            ("with", "With the lock", &self.lock, &self.with_lock),
        ]
    }
}

impl Tally {
    /// Each writer's writes in order, as the squares of the picture: column, row and fate.
    fn squares(&self) -> impl Iterator<Item = (usize, usize, &'static str)> {
        let writers = self.writers.iter().enumerate();
        writers.flat_map(|(row, fates)| {
            let fates = fates.iter().enumerate();
            fates.map(move |(column, fate)| (column, row, fate.word()))
        })
    }
}

impl Fate {
    /// The name of its class in the style.
    fn word(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Lost => "lost",
            Self::Refused => "refused",
        }
    }
}

#[cfg(test)]
mod tests;
