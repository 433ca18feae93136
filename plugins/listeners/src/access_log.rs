//! Access logs from the mesh configuration (`accessLogFile` and its companions). Logs of Telemetry objects are the
//! business of the telemetry stage.
//!
//! A JSON format that does not parse is replaced by the default one, as istiod does; nothing is rejected.

use trysail_sdk::prost_types::Struct;
use trysail_sdk::proto::any::pack;
use trysail_sdk::proto::envoy::config::accesslog::v3::{
    AccessLog, AccessLogFilter, ResponseFlagFilter, access_log, access_log_filter,
};
use trysail_sdk::proto::envoy::config::core::v3::{
    self as core, DataSource, GrpcService, JsonFormatOptions, SubstitutionFormatString, TypedExtensionConfig,
    data_source, grpc_service, substitution_format_string,
};
use trysail_sdk::proto::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log};
use trysail_sdk::proto::envoy::extensions::access_loggers::grpc::v3::{
    CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig,
};
use trysail_sdk::proto::envoy::extensions::formatter::req_without_query::v3::ReqWithoutQuery;
use trysail_sdk::proto::istio::mesh::v1alpha1::{MeshConfig, mesh_config::AccessLogEncoding};
use trysail_sdk::{Ctx, Failure};

use crate::json;
use crate::parts::text;

const FIELDS: [&str; 5] = [
    "access_log_file",
    "access_log_format",
    "access_log_encoding",
    "enable_envoy_access_log_service",
    "disable_envoy_listener_log",
];

/// The text format that Istio's users know.
const TEXT_FORMAT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% ",
    "%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% ",
    "%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% ",
    "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n",
);

/// The same as JSON: name of a field and what it holds.
const JSON_FORMAT: &[(&str, &str)] = &[
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
];

/// Logs of an HTTP connection manager.
pub fn of_http(ctx: &Ctx<'_>) -> Result<Vec<AccessLog>, Failure> {
    let mesh = ctx.mesh_config(&FIELDS)?;
    let mut logs: Vec<AccessLog> = file(&mesh, None).into_iter().collect();
    if mesh.enable_envoy_access_log_service {
        let config =
            HttpGrpcAccessLogConfig { common_config: Some(service("http_envoy_accesslog")), ..Default::default() };
        logs.push(log("envoy.access_loggers.http_grpc", pack(&config), None));
    }
    Ok(logs)
}

/// Logs of a TCP proxy.
pub fn of_tcp(ctx: &Ctx<'_>) -> Result<Vec<AccessLog>, Failure> {
    let mesh = ctx.mesh_config(&FIELDS)?;
    let mut logs: Vec<AccessLog> = file(&mesh, None).into_iter().collect();
    if mesh.enable_envoy_access_log_service {
        let config = TcpGrpcAccessLogConfig { common_config: Some(service("tcp_envoy_accesslog")) };
        logs.push(log("envoy.tcp_grpc_access_log", pack(&config), None));
    }
    Ok(logs)
}

/// Logs of a listener itself: only connections that no filter chain takes, as all others are logged further in.
pub fn of_listener(ctx: &Ctx<'_>) -> Result<Vec<AccessLog>, Failure> {
    let mesh = ctx.mesh_config(&FIELDS)?;
    if mesh.disable_envoy_listener_log {
        return Ok(Vec::new());
    }
    let mut logs: Vec<AccessLog> = file(&mesh, Some(flagged("NR"))).into_iter().collect();
    if mesh.enable_envoy_access_log_service {
        let config = TcpGrpcAccessLogConfig { common_config: Some(service("listener_envoy_accesslog")) };
        logs.push(log("envoy.tcp_grpc_access_log", pack(&config), Some(flagged("NR"))));
    }
    Ok(logs)
}

/// Logs of a tunnel's origin: only connections that could not be made.
pub fn of_tunnel(ctx: &Ctx<'_>) -> Result<Vec<AccessLog>, Failure> {
    let mesh = ctx.mesh_config(&FIELDS)?;
    Ok(file(&mesh, Some(flagged("UF"))).into_iter().collect())
}

/// Only connections with this response flag.
fn flagged(flag: &str) -> AccessLogFilter {
    let flags = ResponseFlagFilter { flags: vec![flag.into()] };
    AccessLogFilter { filter_specifier: Some(access_log_filter::FilterSpecifier::ResponseFlagFilter(flags)) }
}

fn log(name: &str, config: trysail_sdk::prost_types::Any, filter: Option<AccessLogFilter>) -> AccessLog {
    AccessLog { name: name.into(), filter, config_type: Some(access_log::ConfigType::TypedConfig(config)) }
}

/// The access log service that the proxy's bootstrap knows.
fn service(name: &str) -> CommonGrpcAccessLogConfig {
    CommonGrpcAccessLogConfig {
        log_name: name.into(),
        grpc_service: Some(GrpcService {
            target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(grpc_service::EnvoyGrpc {
                cluster_name: "envoy_accesslog_service".into(),
                ..Default::default()
            })),
            ..Default::default()
        }),
        transport_api_version: core::ApiVersion::V3 as i32,
        // What the metadata exchange filter learned, under its present and its former names.
        filter_state_objects_to_log: [
            "upstream_peer",
            "downstream_peer",
            "wasm.upstream_peer",
            "wasm.upstream_peer_id",
            "wasm.downstream_peer",
            "wasm.downstream_peer_id",
        ]
        .map(str::to_owned)
        .to_vec(),
        ..Default::default()
    }
}

#[allow(deprecated)] // Unsorted properties are Envoy's default now; istiod still says so.
fn file(mesh: &MeshConfig, filter: Option<AccessLogFilter>) -> Option<AccessLog> {
    if mesh.access_log_file.is_empty() {
        return None;
    }
    let json = mesh.access_log_encoding == AccessLogEncoding::Json as i32;
    let mut format = SubstitutionFormatString::default();
    let without_query = if json {
        let fields = json::parse_object(&mesh.access_log_format).unwrap_or_else(default_json);
        let found = fields.fields.values().any(|v| match &v.kind {
            Some(trysail_sdk::prost_types::value::Kind::StringValue(s)) => s.contains("%REQ_WITHOUT_QUERY"),
            _ => false,
        });
        format.format = Some(substitution_format_string::Format::JsonFormat(fields));
        format.json_format_options = Some(JsonFormatOptions { sort_properties: false });
        found
    } else {
        let mut line = mesh.access_log_format.clone();
        if line.is_empty() {
            line = TEXT_FORMAT.into();
        } else if !line.ends_with('\n') {
            line.push('\n');
        }
        let found = line.contains("%REQ_WITHOUT_QUERY");
        let source = DataSource { specifier: Some(data_source::Specifier::InlineString(line)), ..Default::default() };
        format.format = Some(substitution_format_string::Format::TextFormatSource(source));
        found
    };
    if without_query {
        format.formatters = vec![TypedExtensionConfig {
            name: "envoy.formatter.req_without_query".into(),
            typed_config: Some(pack(&ReqWithoutQuery::default())),
        }];
    }
    let config = FileAccessLog {
        path: mesh.access_log_file.clone(),
        access_log_format: Some(file_access_log::AccessLogFormat::LogFormat(format)),
    };
    Some(log("envoy.access_loggers.file", pack(&config), filter))
}

fn default_json() -> Struct {
    Struct { fields: JSON_FORMAT.iter().map(|(name, value)| ((*name).to_owned(), text(value))).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Answers;

    #[test]
    fn logs_are_off_unless_the_mesh_names_a_file_or_the_service() {
        assert!(of_http(&Ctx::new(&Answers::default())).expect("logs").is_empty());
        let mesh = MeshConfig {
            access_log_file: "/dev/stdout".into(),
            enable_envoy_access_log_service: true,
            ..Default::default()
        };
        let host = Answers::default().message("mesh-config", &[], &mesh);
        let ctx = Ctx::new(&host);
        assert_eq!(of_tcp(&ctx).expect("logs").len(), 2);
        assert!(of_listener(&ctx).expect("logs").iter().all(|l| l.filter.is_some()));
    }
}
