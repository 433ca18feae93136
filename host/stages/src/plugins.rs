//! Hook points.

/// Full name of the message that plugins insert at a hook point; `None` for points at which they transform.
pub fn inserted_message(point: &str) -> Option<&'static str> {
    match point {
        "http-filters" => Some("envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter"),
        "network-filters" => Some("envoy.config.listener.v3.Filter"),
        _ => None,
    }
}
