use std::cell::OnceCell;
use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use percent_encoding::percent_decode_str;
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{
    Claim, HeldLock, RealmBodyLockLayer, RealmBodyResolver, RealmLocks, RealmPaths, RequestBody,
};

use super::problems;

/// The origin of the realms.
pub const ORIGIN: &str = "https://realms.test";
/// One of them.
pub const REALM: &str = "https://realms.test/luke/a/";

/// The body of a request, which can fail.
pub type Body = BoxBody<Bytes, String>;

/// Realms of the template `/{owner}/{realm}` at [`ORIGIN`].
pub fn realms() -> RealmPaths {
    RealmPaths::new(ORIGIN, "/{owner}/{realm}").expect("the template is right")
}

/// A layer without a database, which reads bodies.
pub fn layer(realms: impl Into<RealmBodyResolver>) -> RealmBodyLockLayer {
    RealmBodyLockLayer::new(RealmLocks::in_process(), realms, 1 << 20)
}

/// A body of these bytes.
pub fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

/// A POST without a body; none if no HTTP server lets such a target in.
pub fn post(target: &str) -> Option<Request<Body>> {
    Request::post(target).body(body("")).ok()
}

/// What the handler of a request runs under; none if the request is refused, with a problem body that is as it must be.
pub fn claim(layer: &RealmBodyLockLayer, request: Request<Body>) -> Option<Claim> {
    let handler = service_fn(async |request: Request<RequestBody<Body>>| {
        let held: Option<&HeldLock> = request.extensions().get();
        let mut response = Response::new(Full::new(Bytes::new()));
        let claim = held.expect("it is locked").claim().clone();
        response.extensions_mut().insert(claim);
        Ok::<_, Infallible>(response)
    });
    let service = layer.layer(handler);
    run(async move {
        let mut response = service.oneshot(request).await.expect("infallible");
        let claim = response.extensions_mut().remove();
        if claim.is_none() {
            let (head, body) = response.into_parts();
            let body = body.collect().await.expect("it ends well").to_bytes();
            problems::check(&Response::from_parts(head, body));
        }
        claim
    })
}

/// The percent-decoded segments of a path, as a handler reads them; none if they are not UTF-8.
pub fn decoded(path: &str) -> Option<Vec<String>> {
    let segments = path.trim_matches('/').split('/');
    let decoded = |segment| Some(percent_decode_str(segment).decode_utf8().ok()?.into_owned());
    segments.map(decoded).collect()
}

fn run<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() };
    }
    RUNTIME.with(|runtime| {
        let runtime = runtime.get_or_init(|| {
            let mut builder = Builder::new_current_thread();
            builder.enable_time().build().expect("a runtime")
        });
        runtime.block_on(work)
    })
}
