//! What the layer adds to a request that it lets pass.

use std::hint::black_box;

use http::{Request, StatusCode, Uri};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_realm_lock::{RealmLocks, RealmWriteLockLayer};

use crate::statistics::{Samples, range, short};
use crate::support::gate::{at_once, realms};
use crate::table::Table;
use crate::{Bench, Findings};

pub async fn measure(bench: &Bench, findings: &mut Findings) {
    let sizes = &bench.sizes;
    let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms());
    let mut bare_service = service_fn(at_once);
    let mut layered_service = layer.layer(bare_service);
    let [mut bare, mut layered] = [Samples::default(), Samples::default()];
    for _ in 0..sizes.rounds {
        bare.add(seconds_for_a_get(&mut bare_service, sizes.passing).await);
        layered.add(seconds_for_a_get(&mut layered_service, sizes.passing).await);
    }

    let mut table = Table::new(
        "One GET, handler empty.",
        ["", "median, ns", "middle half, ns", "added, ns"],
    );
    for (name, seconds) in [("bare service", &bare), ("layer", &layered)] {
        table.row([
            name.to_owned(),
            short(seconds.median() * 1e9),
            range(seconds.quartiles().map(|seconds| short(seconds * 1e9))),
            short((seconds.median() - bare.median()) * 1e9),
        ]);
    }
    findings.add("passing", table);
}

async fn seconds_for_a_get<S, B>(service: &mut S, requests: u32) -> f64
where
    S: Service<Request<String>, Response = http::Response<B>, Error: std::fmt::Debug>,
{
    let uri = Uri::from_static("/luke/my-realm/card");
    let start = Instant::now();
    for _ in 0..requests {
        // A new request is a GET. Parsing its path would take longer than what is measured.
        let mut request = Request::new(String::new());
        *request.uri_mut() = uri.clone();
        let service = service.ready().await.expect("always ready");
        let response = service.call(black_box(request)).await;
        assert_eq!(response.expect("an answer").status(), StatusCode::OK);
    }
    start.elapsed().as_secs_f64() / f64::from(requests)
}
