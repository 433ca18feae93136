//! Security invariants: what no plugin may do without the express right to weaken security.
//!
//! - Mutual TLS and authorization stay: every transport socket with TLS, its validation and its certificates, every filter that
//!   authenticates or authorizes, with its configuration and in its order.
//! - No new plaintext listener, and no new chain without TLS beside chains that demand it.
//! - No per-route setting that switches such a filter off, or adds to it.
//! - No identity header other than before: how client certificates are forwarded.
//! - No secret in the output.
//!
//! They are judged on a fragment before and after each plugin, so after all of them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::hooks::Items;

/// Ends of the type URLs of filters that authenticate or authorize.
const GUARDS: [&str; 9] = [
    "filters.http.rbac.v3.RBAC",
    "filters.network.rbac.v3.RBAC",
    "filters.http.jwt_authn.v3.JwtAuthentication",
    "filters.http.ext_authz.v3.ExtAuthz",
    "filters.network.ext_authz.v3.ExtAuthz",
    "istio.security.v1.Config",
    "filters.http.oauth2.v3.OAuth2",
    "filters.http.basic_auth.v3.BasicAuth",
    "filters.http.api_key_auth.v3.ApiKeyAuth",
];

/// Ends of the names and type URLs of per-route settings of these.
const GUARDS_PER_ROUTE: [&str; 10] = [
    "RBACPerRoute",
    "rbac.v3.RBAC",
    "jwt_authn.v3.PerRouteConfig",
    "ExtAuthzPerRoute",
    "BasicAuthPerRoute",
    "ApiKeyAuthPerRoute",
    "envoy.filters.http.rbac",
    "envoy.filters.http.jwt_authn",
    "envoy.filters.http.ext_authz",
    "istio_authn",
];

/// Fields that say how client certificates are forwarded.
const IDENTITY_HEADERS: [&str; 2] = ["forward_client_cert_details", "set_current_client_cert_details"];

/// Parts of a TLS context that decide who is at the other end, and with which keys.
const IDENTITY: [&str; 4] = [
    "validation_context",
    "combined_validation_context",
    "validation_context_sds_secret_config",
    "require_client_certificate",
];

/// What a change of a fragment would weaken; the first thing found, in words. `message` is the name of the items' message.
pub fn weakened(message: &str, before: &Items, after: &Items) -> Option<String> {
    let by_key: BTreeMap<&String, &Value> = before.iter().map(|(key, value)| (key, value)).collect();
    for (key, new) in after {
        let old = by_key.get(key).copied();
        if old == Some(new) {
            continue;
        }
        let found = match message.rsplit('.').next() {
            Some("Listener") => listener(old, new),
            Some("HttpFilter" | "Filter") => inserted_filter(new),
            _ => None,
        };
        let found = found.or_else(|| guards(old, new)).or_else(|| sockets(old, new));
        let found = found.or_else(|| per_route(old, new)).or_else(|| headers(old, new)).or_else(|| secret(new));
        if let Some(why) = found {
            return Some(format!("{key:?}: {why}"));
        }
    }
    None
}

/// A value with all below it, and the field that it stands in.
fn each<'a>(value: &'a Value, field: &'a str, visit: &mut dyn FnMut(&'a str, &'a Value)) {
    visit(field, value);
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, inner)| each(inner, name, visit)),
        Value::Array(elements) => elements.iter().for_each(|inner| each(inner, field, visit)),
        _ => {}
    }
}

fn type_of(value: &Value) -> &str {
    value.get("@type").and_then(Value::as_str).unwrap_or_default()
}

fn is_guard(config: &Value) -> bool {
    GUARDS.iter().any(|guard| type_of(config).ends_with(guard))
}

/// The guards of a list of filters, in order.
fn guards_of(filters: &[Value]) -> Vec<&Value> {
    filters.iter().filter(|filter| filter.get("typed_config").is_some_and(is_guard)).collect()
}

/// Lists of filters with guards, wherever they stand: each must be a list of the same guards afterwards.
fn guards(old: Option<&Value>, new: &Value) -> Option<String> {
    let lists = |value: &Value| {
        let mut found: Vec<Vec<Value>> = Vec::new();
        each(value, "", &mut |field, value| {
            if let ("filters" | "http_filters", Value::Array(filters)) = (field, value) {
                let guards = guards_of(filters);
                if !guards.is_empty() {
                    found.push(guards.into_iter().cloned().collect());
                }
            }
        });
        found
    };
    let (before, mut after) = (lists(old?), lists(new));
    for guards in before {
        // What is there besides is more of a guard, not less.
        let same = |list: &Vec<Value>| is_within(&guards, list);
        match after.iter().position(same) {
            Some(number) => drop(after.remove(number)),
            None => {
                let names: Vec<&str> = guards.iter().filter_map(|guard| guard.get("name")?.as_str()).collect();
                return Some(format!(
                    "takes away, changes or moves what authenticates or authorizes ({})",
                    names.join(", ")
                ));
            }
        }
    }
    None
}

/// Is one list contained in another in this order?
fn is_within(part: &[Value], whole: &[Value]) -> bool {
    let mut rest = whole.iter();
    part.iter().all(|wanted| rest.any(|there| there == wanted))
}

/// Transport sockets with TLS: they stay, and so does who must be at the other end.
fn sockets(old: Option<&Value>, new: &Value) -> Option<String> {
    let identities = |value: &Value| {
        let mut found = Vec::new();
        each(value, "", &mut |field, value| {
            if field == "transport_socket" && value.is_object() {
                let mut identity = Map::new();
                each(value, "", &mut |name, inner| {
                    if IDENTITY.contains(&name) || name.starts_with("tls_certificate") {
                        identity.insert(name.to_owned(), inner.clone());
                    }
                });
                if type_of(value.get("typed_config").unwrap_or(&Value::Null)).contains("Tls")
                    || type_of(value.get("typed_config").unwrap_or(&Value::Null)).contains("Quic")
                {
                    found.push(identity);
                }
            }
        });
        found
    };
    let (before, mut after) = (identities(old?), identities(new));
    for identity in before {
        match after.iter().position(|now| *now == identity) {
            Some(number) => drop(after.remove(number)),
            None => return Some("takes away TLS, or changes who must be at its other end".to_owned()),
        }
    }
    // A chain or match beside those with TLS that has none.
    let plain = |value: &Value| {
        let mut n_plain = 0;
        each(value, "", &mut |field, value| {
            if let ("filter_chains" | "transport_socket_matches", Value::Array(chains)) = (field, value) {
                n_plain += chains.iter().filter(|chain| !has_tls(chain)).count();
            }
        });
        n_plain
    };
    let demands = |value: &Value| {
        let mut demanded = false;
        each(value, "", &mut |field, value| demanded |= field == "require_client_certificate" && value == true);
        demanded
    };
    let old = old?;
    if (demands(old) || new.get("transport_socket_matches").is_some()) && plain(new) > plain(old) {
        return Some("adds a way in or out without TLS beside those with it".to_owned());
    }
    None
}

fn has_tls(chain: &Value) -> bool {
    let config = chain.pointer("/transport_socket/typed_config").unwrap_or(&Value::Null);
    ["Tls", "Quic"].iter().any(|kind| type_of(config).contains(kind))
}

/// A listener that is new, or listens elsewhere than before, has TLS in every chain.
fn listener(old: Option<&Value>, new: &Value) -> Option<String> {
    let listens = |value: &Value| [value.get("address").cloned(), value.get("additional_addresses").cloned()];
    if old.is_some_and(|old| listens(old) == listens(new)) {
        return None;
    }
    let mut chains: Vec<&Value> = new.get("filter_chains").and_then(Value::as_array).into_iter().flatten().collect();
    chains.extend(new.get("default_filter_chain"));
    let encrypted = !chains.is_empty() && chains.iter().all(|chain| has_tls(chain));
    (!encrypted).then(|| "opens a listener without TLS".to_owned())
}

/// A filter that is inserted is none that ends the chain, nor one that passes for ours.
fn inserted_filter(new: &Value) -> Option<String> {
    let name = new.get("name").and_then(Value::as_str).unwrap_or_default();
    let kind = type_of(new.get("typed_config").unwrap_or(&Value::Null));
    if kind.ends_with("router.v3.Router") || kind.ends_with("HttpConnectionManager") || kind.ends_with("TcpProxy") {
        return Some(format!("inserts {name}, which ends the chain before what comes after it"));
    }
    let taken = ["envoy.filters.http.router", "envoy.filters.http.rbac", "envoy.filters.http.jwt_authn", "istio.stats"];
    taken.contains(&name).then(|| format!("inserts a filter under the name {name}, which is taken"))
}

/// Per-route settings of guards.
fn per_route(old: Option<&Value>, new: &Value) -> Option<String> {
    let settings = |value: &Value| {
        let mut found = Vec::new();
        each(value, "", &mut |field, value| {
            if let ("typed_per_filter_config", Value::Object(configs)) = (field, value) {
                for (name, config) in configs {
                    let inner = config.get("config").unwrap_or(config);
                    let of_guard = |end: &&str| {
                        name.ends_with(*end) || type_of(config).ends_with(*end) || type_of(inner).ends_with(*end)
                    };
                    if GUARDS_PER_ROUTE.iter().any(of_guard) {
                        found.push((name.clone(), config.clone()));
                    }
                }
            }
        });
        found
    };
    let before = old.map(settings).unwrap_or_default();
    let after = settings(new);
    (before != after).then(|| "changes what authenticates or authorizes for some routes".to_owned())
}

/// How client certificates are forwarded.
fn headers(old: Option<&Value>, new: &Value) -> Option<String> {
    let said = |value: &Value| {
        let mut found = Vec::new();
        each(value, "", &mut |field, value| {
            if IDENTITY_HEADERS.contains(&field) {
                found.push((field.to_owned(), value.clone()));
            }
        });
        found
    };
    (said(old?) != said(new)).then(|| "changes how the identity of callers is passed on".to_owned())
}

/// Keys and the like in the clear.
fn secret(new: &Value) -> Option<String> {
    const SECRET: [&str; 6] =
        ["private_key", "password", "token_secret", "hmac_secret", "session_ticket_keys", "generic_secret"];
    let mut found = None;
    each(new, "", &mut |field, value| {
        if !SECRET.contains(&field) {
            return;
        }
        each(value, field, &mut |name, _| {
            if name == "inline_bytes" || name == "inline_string" {
                found = Some(format!("holds a secret in the clear ({field})"));
            }
        });
    });
    let mut pem = false;
    each(new, "", &mut |_, value| pem |= value.as_str().is_some_and(|text| text.contains("PRIVATE KEY-----")));
    found.or_else(|| pem.then(|| "holds a private key in the clear".to_owned()))
}

#[cfg(test)]
mod tests;
