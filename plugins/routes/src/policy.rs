//! What a route does besides choosing a destination: retries, faults, CORS, percentages.
//!
//! Only kinds of faults that Envoy cannot do warn (`fault` leaves them out); nothing rejects.

use trysail_sdk::prost_types::{Any, Duration};
use trysail_sdk::proto::any::pack;
use trysail_sdk::proto::envoy::config::core::v3::RuntimeFractionalPercent;
use trysail_sdk::proto::envoy::config::route::v3::{
    RetryPolicy,
    retry_policy::{RetryBackOff, RetryHostPredicate, RetryPriority, retry_host_predicate, retry_priority},
};
use trysail_sdk::proto::envoy::extensions::filters::common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier};
use trysail_sdk::proto::envoy::extensions::filters::http::{
    cors::v3::CorsPolicy as XdsCorsPolicy,
    fault::v3::{FaultAbort, HttpFault, fault_abort},
};
use trysail_sdk::proto::envoy::extensions::retry::{
    host::previous_hosts::v3::PreviousHostsPredicate, priority::previous_priorities::v3::PreviousPrioritiesConfig,
};
use trysail_sdk::proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use trysail_sdk::proto::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use trysail_sdk::proto::istio::networking::v1alpha3::{
    CorsPolicy, HttpFaultInjection, HttpRetry, Percent,
    cors_policy::UnmatchedPreflights,
    http_fault_injection::{abort, delay},
};

use crate::matching::string_matcher;

/// What is retried when nobody says: connections that failed and answers that promise that nothing was done.
const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
/// Condition that makes Envoy look at the listed status codes.
const STATUS_CODES: &str = "retriable-status-codes";

/// Retries of a route; none when they are switched off. `pinned` routes (by a hash policy) may try the same host again.
pub fn retries(retry: Option<&HttpRetry>, pinned: bool) -> Option<RetryPolicy> {
    let mut out = RetryPolicy {
        retry_on: RETRY_ON.to_owned(),
        num_retries: Some(2),
        host_selection_retry_max_attempts: 5,
        retry_host_predicate: if pinned { Vec::new() } else { vec![other_hosts()] },
        ..Default::default()
    };
    let Some(retry) = retry else { return Some(out) };
    let attempts = u32::try_from(retry.attempts).ok().filter(|attempts| *attempts > 0)?;
    out.num_retries = Some(attempts);
    if !retry.retry_on.is_empty() {
        (out.retry_on, out.retriable_status_codes) = conditions(&retry.retry_on);
    }
    out.per_try_timeout = retry.per_try_timeout;
    match retry.retry_ignore_previous_hosts {
        Some(true) => out.retry_host_predicate = vec![other_hosts()],
        Some(false) => out.retry_host_predicate.clear(),
        None => {}
    }
    if retry.retry_remote_localities == Some(true) {
        out.retry_priority = Some(RetryPriority {
            name: "envoy.retry_priorities.previous_priorities".to_owned(),
            config_type: Some(retry_priority::ConfigType::TypedConfig(pack(&PreviousPrioritiesConfig {
                update_frequency: 2,
            }))),
        });
    }
    out.retry_back_off = retry.backoff.map(|base| RetryBackOff { base_interval: Some(base), max_interval: None });
    Some(out)
}

fn other_hosts() -> RetryHostPredicate {
    RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(pack(&PreviousHostsPredicate {}))),
    }
}

/// Separates named conditions from HTTP status codes, which a VirtualService mixes.
fn conditions(text: &str) -> (String, Vec<u32>) {
    let (mut names, mut codes) = (Vec::new(), Vec::new());
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part.parse() {
            Ok(code) if is_status_code(code) => codes.push(code),
            _ => names.push(part),
        }
    }
    let mut names = names.join(",");
    if !codes.is_empty() && !names.contains(STATUS_CODES) {
        names.push(',');
        names.push_str(STATUS_CODES);
    }
    (names, codes)
}

/// The status codes that are registered (and known to Go's library, which is what decided it so far).
fn is_status_code(code: u32) -> bool {
    matches!(
        code,
        100..=103 | 200..=208 | 226 | 300..=305 | 307 | 308 | 400..=418 | 421..=426 | 428 | 429 | 431 | 451 | 500..=508 | 510 | 511
    )
}

/// Fault injection, and what of it Envoy cannot do.
pub fn fault(fault: &HttpFaultInjection) -> (Any, Vec<(&'static str, &'static str)>) {
    let mut out = HttpFault::default();
    let mut left_out = Vec::new();
    if let Some(delay) = &fault.delay {
        match &delay.http_delay_type {
            Some(delay::HttpDelayType::FixedDelay(fixed)) => {
                #[allow(deprecated)]
                let percentage = delay.percentage.as_ref().map_or_else(|| hundredths(delay.percent), millionths);
                out.delay = Some(FaultDelay {
                    percentage: Some(percentage),
                    fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(*fixed)),
                });
            }
            _ => left_out.push(("delay", "only fixed delays are supported")),
        }
    }
    if let Some(abort) = &fault.abort {
        let error = match &abort.error_type {
            Some(abort::ErrorType::HttpStatus(status)) => {
                Some(fault_abort::ErrorType::HttpStatus(u32::from_ne_bytes(status.to_ne_bytes())))
            }
            Some(abort::ErrorType::GrpcStatus(name)) => Some(fault_abort::ErrorType::GrpcStatus(grpc_status(name))),
            _ => None,
        };
        if error.is_some() {
            let percentage = abort.percentage.as_ref().map(millionths);
            out.abort = Some(FaultAbort { percentage, error_type: error, ..Default::default() });
        } else {
            left_out.push(("abort", "only HTTP and gRPC statuses are supported"));
        }
    }
    (pack(&out), left_out)
}

/// Number of a gRPC status by name; unknown ones are OK (0), as validation lets none through.
fn grpc_status(name: &str) -> u32 {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    (0..).zip(NAMES).find(|(_, known)| *known == name).map_or(0, |(number, _)| number)
}

/// CORS policy of a route.
#[allow(deprecated)]
pub fn cors(cors: &CorsPolicy) -> Any {
    let origins = if cors.allow_origins.is_empty() {
        let exact = |origin: &String| StringMatcher {
            match_pattern: Some(MatchPattern::Exact(origin.clone())),
            ..Default::default()
        };
        cors.allow_origin.iter().map(exact).collect()
    } else {
        cors.allow_origins.iter().filter_map(string_matcher).collect()
    };
    pack(&XdsCorsPolicy {
        allow_origin_string_match: origins,
        allow_methods: cors.allow_methods.join(","),
        allow_headers: cors.allow_headers.join(","),
        expose_headers: cors.expose_headers.join(","),
        max_age: cors.max_age.map_or_else(String::new, |age: Duration| age.seconds.to_string()),
        allow_credentials: cors.allow_credentials,
        filter_enabled: Some(always()),
        // Preflights of unknown origins go to the service unless they are to be ignored.
        forward_not_matching_preflights: Some(cors.unmatched_preflights() != UnmatchedPreflights::Ignore),
        ..Default::default()
    })
}

/// One hundred per cent.
pub fn always() -> RuntimeFractionalPercent {
    RuntimeFractionalPercent { default_value: Some(hundredths(100)), ..Default::default() }
}

/// A whole number of per cent.
pub fn hundredths(percent: i32) -> FractionalPercent {
    let numerator = u32::from_ne_bytes(percent.to_ne_bytes());
    FractionalPercent { numerator, denominator: DenominatorType::Hundred.into() }
}

/// A fraction of per cent, to four decimals.
pub fn millionths(percent: &Percent) -> FractionalPercent {
    // Cut, not rounded; `as` saturates, and validation keeps it within 0 to 100.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let numerator = (percent.value * 10_000.0) as u32;
    FractionalPercent { numerator, denominator: DenominatorType::Million.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_by_default() {
        let default = retries(None, false).expect("on by default");
        assert_eq!((default.num_retries, default.retry_host_predicate.len()), (Some(2), 1));
        assert!(retries(None, true).expect("on").retry_host_predicate.is_empty());
        assert!(retries(Some(&HttpRetry::default()), false).is_none());
    }

    #[test]
    fn status_codes_are_taken_out_of_conditions() {
        assert_eq!(
            conditions("5xx, 503,999,gateway-error"),
            ("5xx,999,gateway-error,retriable-status-codes".into(), vec![503])
        );
        assert_eq!(conditions("retriable-status-codes,503"), ("retriable-status-codes".into(), vec![503]));
        assert_eq!(conditions("503"), (",retriable-status-codes".into(), vec![503]));
    }

    #[test]
    fn explicit_choice_of_hosts_beats_the_hash_policy() {
        let retry = HttpRetry { attempts: 3, retry_ignore_previous_hosts: Some(true), ..Default::default() };
        assert_eq!(retries(Some(&retry), true).expect("on").retry_host_predicate.len(), 1);
        let retry = HttpRetry { attempts: 3, retry_ignore_previous_hosts: Some(false), ..Default::default() };
        assert!(retries(Some(&retry), false).expect("on").retry_host_predicate.is_empty());
    }

    #[test]
    fn grpc_statuses_by_name() {
        assert_eq!((grpc_status("UNAVAILABLE"), grpc_status("CANCELLED"), grpc_status("nonsense")), (14, 1, 0));
    }
}
