//! `GET /metrics`: the numbers of the locks, in Prometheus' text format.

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http::header::CONTENT_TYPE;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// What a scraper takes the text for.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// From a wait that nobody notices to the longest that a lock is waited for by default.
const SECONDS: [f64; 12] = [
    0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// How often what was recorded is put into the histograms, whether or not somebody asks for them.
const UPKEEP: Duration = Duration::from_secs(5);

/// Counts from now on, for as long as the process lives. Must be called within a runtime.
pub fn routes() -> Result<Router, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?
        .install_recorder()?;
    tokio::spawn(keep_up(handle.clone()));
    let metrics = move || {
        let text = handle.render();
        async { ([(CONTENT_TYPE, TEXT_FORMAT)], text) }
    };
    Ok(Router::new().route("/metrics", get(metrics)))
}

async fn keep_up(handle: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        handle.run_upkeep();
    }
}
