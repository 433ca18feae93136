//! What a proxy was sent, in the form of Envoy's admin page `config_dump`.
//!
//! istiod generates anew what it would send; here it is what was sent: the very views that the stream holds.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use trysail_codec::json::{Names, to_json_named};
use trysail_model::ids::type_urls;
use trysail_model::{Identity, Resource, Secrets as _};
use trysail_xds::status::ProxyStatus;

use super::debug::Asked;
use super::page::Page;
use crate::render::typed;

const ADMIN: &str = "type.googleapis.com/envoy.admin.v3.";

/// The whole dump, or with `?types=cds,lds` the resources of these types; `?include_eds` adds endpoints.
pub fn all(asked: &Asked<'_>) -> Result<Page, Page> {
    let proxy = asked.proxy()?;
    match asked.query.get("types").filter(|types| !types.is_empty()) {
        Some(types) => Ok(resources_page(asked, &proxy, types)),
        None if &*proxy.proxy.proxy_type == "ztunnel" => Ok(resources_page(asked, &proxy, "wds")),
        None => Ok(configs(asked, parts(asked, &proxy, asked.query.has("include_eds")))),
    }
}

/// Endpoints.
pub fn eds(asked: &Asked<'_>) -> Result<Page, Page> {
    Ok(resources_page(asked, &asked.proxy()?, "eds"))
}

/// The name table.
pub fn nds(asked: &Asked<'_>) -> Result<Page, Page> {
    Ok(resources_page(asked, &asked.proxy()?, "nds"))
}

/// Extension configurations.
pub fn ecds(asked: &Asked<'_>) -> Result<Page, Page> {
    Ok(resources_page(asked, &asked.proxy()?, "ecds"))
}

fn resources_page(asked: &Asked<'_>, proxy: &ProxyStatus, types: &str) -> Page {
    let wanted: Vec<&str> = types.split(',').map(str::trim).collect();
    let is_wanted = |url: &str| wanted.contains(&url) || type_urls::short(url).is_some_and(|s| wanted.contains(&s));
    let urls = type_urls::PUSH_ORDER.into_iter().filter(|url| is_wanted(url));
    configs(asked, urls.flat_map(|url| resources(asked, proxy, url)).map(|(_, shown)| shown).collect())
}

fn configs(asked: &Asked<'_>, configs: Vec<Value>) -> Page {
    asked.json(&if configs.is_empty() { json!({}) } else { json!({"configs": configs}) })
}

/// The parts of a dump, in Envoy's order.
pub fn parts(asked: &Asked<'_>, proxy: &ProxyStatus, include_eds: bool) -> Vec<Value> {
    let version = |url: &str| {
        let of = proxy.types.iter().find(|(known, _)| known.as_str() == url);
        of.map(|(_, of)| of.sent_version.clone()).unwrap_or_default()
    };
    let part = |name: &str, fields: Value| typed(&format!("{ADMIN}{name}"), fields);
    let each = |url: &'static str, entry: &dyn Fn(&str, Value, &str) -> Value| -> Vec<Value> {
        let version = version(url);
        resources(asked, proxy, url).into_iter().map(|(name, shown)| entry(&name, shown, &version)).collect()
    };
    let clusters = each(type_urls::CLUSTER, &|_, cluster, _| json!({"cluster": cluster}));
    let endpoints = || {
        each(type_urls::ENDPOINT, &|_, endpoints, version| json!({"versionInfo": version, "endpointConfig": endpoints}))
    };
    let listeners = each(
        type_urls::LISTENER,
        &|name, listener, version| json!({"name": name, "activeState": {"versionInfo": version, "listener": listener}}),
    );
    let routes = each(type_urls::ROUTE, &|_, route, version| json!({"versionInfo": version, "routeConfig": route}));
    let secrets = each(type_urls::SECRET, &|_, secret, version| json!({"versionInfo": version, "secret": secret}));
    let extensions =
        each(type_urls::EXTENSION, &|_, filter, version| json!({"versionInfo": version, "ecdsFilter": filter}));

    let of = |version: Option<String>, field: &str, list: Vec<Value>| {
        let mut fields = Map::new();
        fields.extend(version.filter(|v| !v.is_empty()).map(|version| ("versionInfo".to_owned(), version.into())));
        if !list.is_empty() {
            fields.insert(field.to_owned(), list.into());
        }
        Value::Object(fields)
    };
    let mut parts = vec![
        part("BootstrapConfigDump", json!({})),
        part("ClustersConfigDump", of(Some(version(type_urls::CLUSTER)), "dynamicActiveClusters", clusters)),
    ];
    if include_eds {
        parts.push(part("EndpointsConfigDump", of(None, "dynamicEndpointConfigs", endpoints())));
    }
    parts.extend([
        part("ListenersConfigDump", of(Some(version(type_urls::LISTENER)), "dynamicListeners", listeners)),
        part("ScopedRoutesConfigDump", json!({})),
        part("RoutesConfigDump", of(None, "dynamicRouteConfigs", routes)),
        part("SecretsConfigDump", of(None, "dynamicActiveSecrets", secrets)),
        part("EcdsConfigDump", of(None, "ecdsFilters", extensions)),
    ]);
    parts
}

/// The resources of a type that a proxy has, by name, as JSON without anything secret.
fn resources(asked: &Asked<'_>, proxy: &ProxyStatus, url: &'static str) -> Vec<(String, Value)> {
    let of = proxy.types.iter().find(|(known, _)| known.as_str() == url).map(|(_, of)| of);
    let Some(view) = of.filter(|of| of.watched.is_some()).and_then(|of| of.view.as_ref()) else { return Vec::new() };
    let show = |resource: &Arc<Resource>| {
        let body = match url {
            // Views of secrets have names alone.
            type_urls::SECRET => {
                let identity: Identity = proxy.proxy.identity.as_ref()?.parse().ok()?;
                asked.pages.secrets.redacted(&identity, &proxy.proxy, &resource.name)?
            }
            _ => resource.body.to_bytes(),
        };
        let mut shown = match to_json_named(url, &body, Names::Json) {
            Ok(shown) => typed(url, shown),
            // A type that the descriptors lack is shown as it is.
            Err(error) => json!({"@type": url, "error": error.to_string(), "value": STANDARD.encode(&body)}),
        };
        redact(&mut shown);
        Some((resource.name.as_str().to_owned(), shown))
    };
    view.resources.iter().filter_map(show).collect()
}

/// Fields that hold a key, a password or the like when they are written in.
const PRIVATE: [&str; 4] = ["privateKey", "password", "tokenSecret", "hmacSecret"];
/// Variable of Wasm modules with the secret to fetch them.
const PULL_SECRET: &str = "ISTIO_META_WASM_IMAGE_PULL_SECRET";

/// Takes out what is private wherever it stands: objects can carry keys inline, by an EnvoyFilter say.
fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::Object(source) if PRIVATE.contains(&key.as_str()) => {
                        for (form, hidden) in
                            [("inlineString", "[redacted]".to_owned()), ("inlineBytes", STANDARD.encode("[redacted]"))]
                        {
                            if let Some(value) = source.get_mut(form) {
                                *value = hidden.into();
                            }
                        }
                    }
                    Value::String(text) if key == PULL_SECRET => "<Redacted>".clone_into(text),
                    value => redact(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inline_secrets_are_hidden_and_files_are_not() {
        let mut shown = json!({
            "tlsCertificates": [{
                "certificateChain": {"inlineString": "C"},
                "privateKey": {"inlineString": "CANARY"},
                "password": {"inlineBytes": "Q0FOQVJZ"},
            }, {"privateKey": {"filename": "/etc/key.pem"}}],
            "environmentVariables": {"keyValues": {"ISTIO_META_WASM_IMAGE_PULL_SECRET": "CANARY", "A": "b"}},
        });
        redact(&mut shown);
        assert_eq!(
            shown,
            json!({
                "tlsCertificates": [{
                    "certificateChain": {"inlineString": "C"},
                    "privateKey": {"inlineString": "[redacted]"},
                    "password": {"inlineBytes": "W3JlZGFjdGVkXQ=="},
                }, {"privateKey": {"filename": "/etc/key.pem"}}],
                "environmentVariables": {"keyValues": {"ISTIO_META_WASM_IMAGE_PULL_SECRET": "<Redacted>", "A": "b"}},
            })
        );
    }
}
