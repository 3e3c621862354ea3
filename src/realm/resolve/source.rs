use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;

use super::mounts::RealmMounts;
use super::paths::RealmPaths;
use super::pointers::RealmPointers;
use crate::realm::body::ReadsBodies;
use crate::realm::error::RealmError;
use crate::realm::url::RealmUrl;

pub(in crate::realm) type Resolving =
    Pin<Box<dyn Future<Output = Result<Vec<RealmUrl>, RealmError>> + Send>>;
pub(in crate::realm) type ClosureFn = dyn Fn(Arc<Parts>) -> Resolving + Send + Sync;
pub(in crate::realm) type BodyClosureFn = dyn Fn(Arc<Parts>, Bytes) -> Resolving + Send + Sync;

/// One way to find realms.
///
/// With `B = Infallible` there are only those that need no body; with `B = ReadsBodies` there are
/// all. Cheap to clone.
#[derive(Clone)]
pub(in crate::realm) enum Source<B> {
    Paths(RealmPaths),
    Mounts(RealmMounts),
    Closure(Arc<ClosureFn>),
    Pointers(RealmPointers, B),
    BodyClosure(Arc<BodyClosureFn>, B),
}

impl Source<Infallible> {
    /// The same for a layer that reads bodies.
    pub(in crate::realm) fn with_bodies(self) -> Source<ReadsBodies> {
        match self {
            Self::Paths(paths) => Source::Paths(paths),
            Self::Mounts(mounts) => Source::Mounts(mounts),
            Self::Closure(find) => Source::Closure(find),
            Self::Pointers(_, never) | Self::BodyClosure(_, never) => match never {},
        }
    }
}

impl<B> fmt::Debug for Source<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paths(paths) => paths.fmt(f),
            Self::Mounts(mounts) => mounts.fmt(f),
            Self::Closure(_) => f.write_str("from_fn"),
            Self::Pointers(pointers, _) => pointers.fmt(f),
            Self::BodyClosure(..) => f.write_str("from_body_fn"),
        }
    }
}
