use std::convert::Infallible;

use http::{Request, Response, StatusCode};
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{HeldLock, RealmBodyLockLayer, Rejection, RequestBody};

/// What a request locks, as its handler sees it: a claim, `none`, or `refused: ` and the reason.
pub async fn decided(layer: &RealmBodyLockLayer, request: Request<String>) -> String {
    let handler = service_fn(async |request: Request<RequestBody<String>>| {
        let held: Option<&HeldLock> = request.extensions().get();
        let claim = held.map_or("none".to_owned(), |held| held.claim().to_string());
        let mut response = Response::new(String::new());
        response.extensions_mut().insert(claim);
        Ok::<_, Infallible>(response)
    });
    let mut response = layer.layer(handler).oneshot(request).await.unwrap();
    if let Some(claim) = response.extensions_mut().remove::<String>() {
        return claim;
    }
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let rejection: &Rejection = response.extensions().get().expect("a rejection");
    format!("refused: {rejection}")
}
