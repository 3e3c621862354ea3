use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use super::found::Found;
use super::mounts::RealmMounts;
use super::paths::{RealmPaths, Sought};
use super::pointers::RealmPointers;
use crate::realm::body::ReadsBodies;
use crate::realm::claim::Claim;
use crate::realm::error::RealmError;
use crate::realm::head::Head;
use crate::realm::path::ParsedPath;
use crate::realm::request_head::RequestHead;
use crate::realm::url::RealmUrl;

/// Finds a claim in the head of a request; `None` if a router sends the request to a route that
/// names none.
pub(in crate::realm) type HeadFn =
    dyn Fn(&Head<'_>) -> Result<Option<Claim>, RealmError> + Send + Sync;
pub(in crate::realm) type Resolving =
    Pin<Box<dyn Future<Output = Result<Claim, RealmError>> + Send>>;
pub(in crate::realm) type ClosureFn = dyn Fn(RequestHead) -> Resolving + Send + Sync;
pub(in crate::realm) type BodyClosureFn = dyn Fn(RequestHead, Bytes) -> Resolving + Send + Sync;

/// One way to find realms.
///
/// With `B = Infallible` there are only those that need no body; with `B = ReadsBodies` there are
/// all. Cheap to clone.
#[derive(Clone)]
pub(in crate::realm) enum Source<B> {
    Path(PathSource),
    Head {
        find: Arc<HeadFn>,
        /// Where it looks.
        place: Arc<str>,
    },
    Closure(Arc<ClosureFn>),
    Pointers(RealmPointers, B),
    BodyClosure(Arc<BodyClosureFn>, B),
}

/// A way to find realms in paths.
#[derive(Clone)]
pub(in crate::realm) enum PathSource {
    Template(RealmPaths),
    Mounts(RealmMounts),
}

impl PathSource {
    /// The target of a request.
    pub(in crate::realm) fn find(&self, head: &Head<'_>) -> Result<Sought, RealmError> {
        match self {
            Self::Template(paths) => paths.find(head),
            Self::Mounts(mounts) => mounts.find(head.path()).map(Sought::Realm),
        }
    }

    /// The realm that the path of a request's `Destination` names, and a URL of the origin that it
    /// is at.
    pub(in crate::realm) fn find_at(
        &self,
        head: &Head<'_>,
        path: &ParsedPath<'_>,
    ) -> Result<(Found, RealmUrl), RealmError> {
        match self {
            Self::Template(paths) => paths.find_at(head, path),
            Self::Mounts(mounts) => {
                let found = mounts.find(path)?;
                let origin = found.realm.clone();
                Ok((found, origin))
            }
        }
    }

    /// The URL whose path a proxy removes from the paths of requests, if one does.
    pub(in crate::realm) fn stripped(
        &self,
        head: &Head<'_>,
    ) -> Result<Option<RealmUrl>, RealmError> {
        match self {
            Self::Template(paths) => paths.stripped(head),
            Self::Mounts(_) => Ok(None),
        }
    }
}

impl Source<Infallible> {
    /// The same for a layer that reads bodies.
    pub(in crate::realm) fn with_bodies(self) -> Source<ReadsBodies> {
        match self {
            Self::Path(source) => Source::Path(source),
            Self::Head { find, place } => Source::Head { find, place },
            Self::Closure(find) => Source::Closure(find),
            Self::Pointers(_, never) | Self::BodyClosure(_, never) => match never {},
        }
    }
}

impl<B> Source<B> {
    /// The settings that all replicas must have in common. Mounts change while replicas run, so
    /// they are not a part of it.
    pub(super) fn fingerprint(&self) -> String {
        match self {
            Self::Path(PathSource::Mounts(_)) => "RealmMounts".into(),
            Self::Path(PathSource::Template(paths)) => paths.fingerprint(),
            other => format!("{other:?}"),
        }
    }
}

impl<B> fmt::Debug for Source<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(PathSource::Template(paths)) => paths.fmt(f),
            Self::Path(PathSource::Mounts(mounts)) => mounts.fmt(f),
            Self::Head { place, .. } => f.write_str(place),
            Self::Closure(_) => f.write_str("from_fn"),
            Self::Pointers(pointers, _) => pointers.fmt(f),
            Self::BodyClosure(..) => f.write_str("from_body_fn"),
        }
    }
}
