use std::sync::Arc;

use http::Request;

use super::read_body::RequestBody;
use super::{RealmWriteLockLayer, Rejection};
use crate::lock::Claim;
use crate::realm::{Extent, Found, Head, RealmError};

/// What becomes of a request, as far as its head tells at once.
pub(super) enum Verdict {
    /// Nothing is locked.
    Pass,
    Lock(Claim),
    Reject(Rejection),
    /// Its realms or resources are in its body, or must be looked up.
    Ask,
}

impl RealmWriteLockLayer {
    /// What becomes of a request. Allocates nothing for one that passes.
    pub(super) fn judge<A>(&self, request: &Request<A>) -> Verdict {
        let head = Head::of(request);
        let path = head.path();
        let methods = self.rules.methods(head);
        if !self.rules.lock_any(&methods, path) {
            return Verdict::Pass;
        }
        let (scope, most) = self.rules.scope_of(&methods, path);
        let found = self.realms.source(&methods, path);
        let found = found.map(|source| source.find_now(head));
        match found {
            Ok(Some(Ok(found))) if scope.is_of_path() => {
                let extent = scope.extent_of_path(path, &found, most);
                Verdict::Lock(claim(&found, &[], &extent))
            }
            Ok(Some(Ok(_)) | None) => Verdict::Ask,
            Ok(Some(Err(error))) | Err(error) => Verdict::Reject(error.into()),
        }
    }

    /// The claim of a request that [`judge`](Self::judge) cannot tell, and the request with its body as it was, or as it was
    /// read.
    ///
    /// # Cancel safety
    ///
    /// Nothing is held: dropped, it leaves nothing behind.
    pub(super) async fn ask<A: 'static>(
        &self,
        request: Request<A>,
    ) -> Result<(Claim, Request<A>), Rejection> {
        let (parts, body) = request.into_parts();
        let parts = Arc::new(parts);
        let mut body = RequestBody::Unread(body);
        let head = Head::of_parts(&parts);
        let methods = self.rules.methods(head);
        let source = self.realms.source(&methods, head.path())?;
        if source.needs_body() {
            body = body.read(&self.bodies).await?;
        }
        let found = source.find(&parts, &body.bytes()).await?;
        let (scope, most) = self.rules.scope_of(&methods, head.path());
        let Some((first, others)) = found.split_first() else {
            return Err(RealmError::unresolved("the resolver found none").into());
        };
        let extent = if scope.is_realm() || !others.is_empty() {
            Extent::Whole
        } else {
            if scope.needs_body(&parts.headers) {
                body = body.read(&self.bodies).await?;
            }
            scope.extent_of(&parts, head.path(), &body.bytes(), first, most)
        };
        let claim = claim(first, others, &extent);
        // A closure may have kept it.
        let parts = Arc::unwrap_or_clone(parts);
        Ok((claim, Request::from_parts(parts, body.handed_on())))
    }
}

/// The claim on what was found: each realm as a whole, or resources of the only one.
fn claim(first: &Found, others: &[Found], extent: &Extent) -> Claim {
    match extent {
        Extent::Resources(names) => Claim::resources(&first.realm, names),
        Extent::Whole => others.iter().fold(Claim::realm(&first.realm), |all, next| {
            all.and(&Claim::realm(&next.realm))
        }),
    }
}
