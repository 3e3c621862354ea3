//! Whose host name counts: the origin of a request, forwarded headers, and trusted proxies.

pub(super) mod forwarded;
pub(super) mod proxies;
pub(super) mod request;
