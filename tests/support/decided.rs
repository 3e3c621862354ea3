use std::convert::Infallible;
use std::error::Error;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{HeldLock, RealmBodyLockLayer, Rejection, RequestBody};

/// What a request locks, as its handler sees it: a claim, `none`, or `refused: ` and the reason.
pub async fn decided<B>(layer: &RealmBodyLockLayer, request: Request<B>) -> String
where
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let handler = service_fn(async |request: Request<RequestBody<B>>| {
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
