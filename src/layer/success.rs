use http::StatusCode;

/// Whether a response announces to its client that a write happened.
pub(super) fn is_success(status: StatusCode) -> bool {
    !status.is_client_error() && !status.is_server_error()
}
