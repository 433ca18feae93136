//! `ProxyConfig.connectionSettings`: limits and time-outs of what clients open, for HTTP connection managers and for the
//! listeners of gateways.
//!
//! Nothing here warns or rejects: negative numbers count as unset.

use trysail_sdk::proto::envoy::config::core::v3::http_protocol_options;
use trysail_sdk::proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager as hcm,
};
use trysail_sdk::proto::istio::mesh::v1alpha1::proxy_config::ConnectionSettings;
use trysail_sdk::proto::istio::mesh::v1alpha1::proxy_config::connection_settings::{
    HeadersWithUnderscoresAction as Underscores, PathWithEscapedSlashesAction as Slashes, Profile,
};
use trysail_sdk::{Ctx, Failure};

use crate::parts::seconds;

/// The proxy's connection settings; those of the mesh if its own configuration has none.
pub fn settings(ctx: &Ctx<'_>) -> Result<Option<ConnectionSettings>, Failure> {
    if let Some(own) = ctx.proxy_config(&["connection_settings"])?.connection_settings {
        return Ok(Some(own));
    }
    Ok(ctx.mesh_config(&["default_config"])?.default_config.and_then(|c| c.connection_settings))
}

/// The same for a gateway, where the profile `EDGE` has defaults of its own: those that Envoy advises for strangers.
pub fn edge_settings(ctx: &Ctx<'_>) -> Result<Option<ConnectionSettings>, Failure> {
    Ok(settings(ctx)?.map(with_edge_defaults))
}

/// Bytes that a connection may keep in a buffer.
pub fn buffer_limit(settings: Option<&ConnectionSettings>) -> Option<u32> {
    settings.and_then(|s| s.listener_per_connection_buffer_limit_bytes).and_then(|bytes| u32::try_from(bytes).ok())
}

fn with_edge_defaults(mut s: ConnectionSettings) -> ConnectionSettings {
    if s.profile() != Profile::Edge {
        return s;
    }
    s.listener_per_connection_buffer_limit_bytes.get_or_insert(32 << 10);
    s.http_idle_timeout.get_or_insert(seconds(3600));
    s.http_stream_idle_timeout.get_or_insert(seconds(300));
    s.http_request_timeout.get_or_insert(seconds(300));
    s.http_request_headers_timeout.get_or_insert(seconds(60));
    s.http_max_concurrent_streams.get_or_insert(100);
    s.http2_initial_stream_window_size.get_or_insert(64 << 10);
    s.http2_initial_connection_window_size.get_or_insert(1 << 20);
    s.http_merge_slashes.get_or_insert(true);
    if s.http_headers_with_underscores_action() == Underscores::HeadersWithUnderscoresUnspecified {
        s.set_http_headers_with_underscores_action(Underscores::HeadersWithUnderscoresRejectRequest);
    }
    if s.http_path_with_escaped_slashes_action() == Slashes::PathWithEscapedSlashesUnspecified {
        s.set_http_path_with_escaped_slashes_action(Slashes::UnescapeAndRedirect);
    }
    s
}

/// Puts settings on an HTTP connection manager, over what is there.
pub fn apply(manager: &mut HttpConnectionManager, s: &ConnectionSettings) {
    if s.http_idle_timeout.is_some() || s.http_max_connection_duration.is_some() || s.http_max_stream_duration.is_some()
    {
        let options = manager.common_http_protocol_options.get_or_insert_default();
        overwrite(&mut options.idle_timeout, s.http_idle_timeout);
        overwrite(&mut options.max_connection_duration, s.http_max_connection_duration);
        overwrite(&mut options.max_stream_duration, s.http_max_stream_duration);
    }
    overwrite(&mut manager.stream_idle_timeout, s.http_stream_idle_timeout);
    overwrite(&mut manager.request_timeout, s.http_request_timeout);
    overwrite(&mut manager.request_headers_timeout, s.http_request_headers_timeout);
    overwrite(&mut manager.drain_timeout, s.http_drain_timeout);

    let (streams, stream, connection) =
        (s.http_max_concurrent_streams, s.http2_initial_stream_window_size, s.http2_initial_connection_window_size);
    if streams.is_some() || stream.is_some() || connection.is_some() {
        let options = manager.http2_protocol_options.get_or_insert_default();
        // Negative values would become enormous ones.
        let positive = |value: Option<i32>| value.and_then(|v| u32::try_from(v).ok());
        overwrite(&mut options.max_concurrent_streams, positive(streams));
        overwrite(&mut options.initial_stream_window_size, positive(stream));
        overwrite(&mut options.initial_connection_window_size, positive(connection));
    }

    use http_protocol_options::HeadersWithUnderscoresAction as Action;
    let action = match Underscores::try_from(s.http_headers_with_underscores_action) {
        Ok(Underscores::HeadersWithUnderscoresAllow) => Some(Action::Allow),
        Ok(Underscores::HeadersWithUnderscoresRejectRequest) => Some(Action::RejectRequest),
        Ok(Underscores::HeadersWithUnderscoresDropHeader) => Some(Action::DropHeader),
        Ok(Underscores::HeadersWithUnderscoresUnspecified) | Err(_) => None,
    };
    if let Some(action) = action {
        manager.common_http_protocol_options.get_or_insert_default().headers_with_underscores_action = action as i32;
    }
    if let Some(merge) = s.http_merge_slashes {
        manager.merge_slashes = merge;
    }
    let slashes = match Slashes::try_from(s.http_path_with_escaped_slashes_action) {
        Ok(Slashes::KeepUnchanged) => Some(hcm::PathWithEscapedSlashesAction::KeepUnchanged),
        Ok(Slashes::RejectRequest) => Some(hcm::PathWithEscapedSlashesAction::RejectRequest),
        Ok(Slashes::UnescapeAndRedirect) => Some(hcm::PathWithEscapedSlashesAction::UnescapeAndRedirect),
        Ok(Slashes::UnescapeAndForward) => Some(hcm::PathWithEscapedSlashesAction::UnescapeAndForward),
        Ok(Slashes::PathWithEscapedSlashesUnspecified) | Err(_) => None,
    };
    if let Some(slashes) = slashes {
        manager.path_with_escaped_slashes_action = slashes as i32;
    }
}

fn overwrite<T: Copy>(target: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *target = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_connections_override_and_ignore_negative_values() {
        let mut manager = HttpConnectionManager { stream_idle_timeout: Some(seconds(0)), ..Default::default() };
        let settings = ConnectionSettings {
            http_stream_idle_timeout: Some(seconds(7)),
            http_max_concurrent_streams: Some(-1),
            http2_initial_stream_window_size: Some(65536),
            http_headers_with_underscores_action: 3,
            http_merge_slashes: Some(true),
            ..Default::default()
        };
        apply(&mut manager, &settings);
        assert_eq!(manager.stream_idle_timeout, Some(seconds(7)));
        let h2 = manager.http2_protocol_options.expect("set");
        assert_eq!((h2.max_concurrent_streams, h2.initial_stream_window_size), (None, Some(65536)));
        let common = manager.common_http_protocol_options.expect("set");
        assert_eq!(
            common.headers_with_underscores_action,
            http_protocol_options::HeadersWithUnderscoresAction::DropHeader as i32
        );
        assert!(manager.merge_slashes);
    }

    #[test]
    fn the_edge_has_defaults_of_its_own() {
        let edge = ConnectionSettings { profile: Profile::Edge.into(), ..Default::default() };
        let found = with_edge_defaults(ConnectionSettings { http_idle_timeout: Some(seconds(1)), ..edge });
        assert_eq!((found.http_idle_timeout, buffer_limit(Some(&found))), (Some(seconds(1)), Some(32768)));
        assert_eq!(with_edge_defaults(ConnectionSettings::default()), ConnectionSettings::default());
        let negative =
            ConnectionSettings { listener_per_connection_buffer_limit_bytes: Some(-1), ..Default::default() };
        assert_eq!(buffer_limit(Some(&negative)), None);
    }
}
