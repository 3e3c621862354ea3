use crate::realm::url::RealmUrl;

/// A realm that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::realm) struct Found {
    pub(in crate::realm) realm: RealmUrl,
    /// How many segments of the request's path name it, where it was found in the path.
    pub(in crate::realm) depth: Option<usize>,
    /// The resource of the realm that the `Destination` of a MOVE or COPY names.
    pub(in crate::realm) destination: Option<String>,
}

impl Found {
    /// A realm that the first `depth` segments of the path name.
    pub(in crate::realm) fn at(realm: RealmUrl, depth: usize) -> Self {
        Self {
            depth: Some(depth),
            ..Self::elsewhere(realm)
        }
    }

    /// A realm that was found elsewhere than in the path.
    pub(in crate::realm) fn elsewhere(realm: RealmUrl) -> Self {
        Self {
            realm,
            depth: None,
            destination: None,
        }
    }
}
