//! A user's plugin: inbound HTTP requests of a service are limited to what a label of its namespace says.
//!
//! ```text
//! Namespace shop, label example.trysail.dev/rate-limit: "50"
//!     └─ hook point http-filters (inbound, shop/cart.shop.svc.cluster.local, 8080)
//!            └─ envoy.filters.http.local_ratelimit: 50 tokens, 50 more each second, on every proxy by itself
//! ```
//!
//! A label that is no number of requests is reported, and nothing is inserted: the service stays reachable.
//!
//! Built in two steps, the plain module and the component around it:
//!
//! ```text
//! cargo build -p local-rate-limit --profile guest --target wasm32-unknown-unknown
//! trysail component target/wasm32-unknown-unknown/guest/local_rate_limit.wasm --out plugins/local-rate-limit.wasm
//! ```
//!
//! Put into the folder that `trysail` takes plugins from, it is in force at once. Changing the label then changes the
//! listeners of that namespace's workloads and of no other, because the question for the namespace is recorded.

use trysail_sdk::proto::any::pack;
use trysail_sdk::proto::envoy::config::core::v3::{HeaderValue, HeaderValueOption, RuntimeFractionalPercent};
use trysail_sdk::proto::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use trysail_sdk::proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use trysail_sdk::proto::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use trysail_sdk::proto::envoy::r#type::v3::{FractionalPercent, TokenBucket};
use trysail_sdk::{Ctx, Failure, Item, Message, Outcome, Output, Severity};

/// The hook points that the plugin is called at.
pub const POINTS: [&str; 1] = ["http-filters"];
/// The label of a namespace that says how many requests a second each of its proxies lets in.
pub const LABEL: &str = "example.trysail.dev/rate-limit";
/// Name of the filter, under which Envoy knows it.
const FILTER: &str = "envoy.filters.http.local_ratelimit";
/// What a response bears whose request was over the limit.
const HEADER: &str = "x-local-rate-limit";

/// Inserts the filter.
///
/// # Errors
/// Another hook point, missing arguments, an undecodable answer.
pub fn apply(ctx: &Ctx<'_>, point: &str, args: &[String], _items: &[(String, Vec<u8>)]) -> Result<Outcome, Failure> {
    if point != POINTS[0] {
        return Err(Failure::UnknownFunction(point.to_owned()));
    }
    let [direction, service, _port] = args else {
        return Err(Failure::BadArguments(format!("{point} has direction, service and port, not {args:?}")));
    };
    let Some((namespace, _host)) = service.split_once('/').filter(|_| direction == "inbound") else {
        return Ok(Outcome::Unchanged);
    };
    let labels = ctx.namespace(namespace)?.unwrap_or_default().labels;
    let Some(text) = labels.get(LABEL) else { return Ok(Outcome::Unchanged) };
    let mut output = Output::empty();
    // Envoy wants at least one token.
    match text.parse::<u32>() {
        Ok(per_second) if per_second > 0 => output.item(Item::new(FILTER, Message::of(&filter(per_second)))),
        _ => output.diagnose(
            Severity::Error,
            format!("Namespace {namespace}"),
            format!("metadata.labels[{LABEL}]"),
            format!("{text:?} is not a number of requests per second (1 to {}), so they are not limited", u32::MAX),
        ),
    }
    Ok(Outcome::Replaced(output))
}

fn filter(per_second: u32) -> HttpFilter {
    let always = || {
        let percent = FractionalPercent { numerator: 100, ..Default::default() };
        Some(RuntimeFractionalPercent { default_value: Some(percent), ..Default::default() })
    };
    let config = LocalRateLimit {
        stat_prefix: "http_local_rate_limiter".into(),
        token_bucket: Some(TokenBucket {
            max_tokens: per_second,
            tokens_per_fill: Some(per_second),
            fill_interval: Some(trysail_sdk::prost_types::Duration { seconds: 1, nanos: 0 }),
        }),
        filter_enabled: always(),
        filter_enforced: always(),
        response_headers_to_add: vec![HeaderValueOption {
            header: Some(HeaderValue { key: HEADER.into(), value: "true".into(), ..Default::default() }),
            ..Default::default()
        }],
        ..Default::default()
    };
    HttpFilter { name: FILTER.into(), config_type: Some(ConfigType::TypedConfig(pack(&config))), ..Default::default() }
}

#[cfg(target_family = "wasm")]
trysail_sdk::export_plugin!(POINTS, apply);

#[cfg(test)]
mod tests;
