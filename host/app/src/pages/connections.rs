//! Connected proxies: `syncz`, `adsz`, `connections`, `instancesz`, `cachez`, `sidecarz`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use serde_json::{Map, Value, json};
use trysail_model::ids::type_urls;
use trysail_model::{Proxy, Watched};
use trysail_proto::prost::Message as _;
use trysail_proto::prost_types::Timestamp;
use trysail_proto::trysail::facts::v1::ServiceSummaries;
use trysail_xds::Server;
use trysail_xds::status::{ProxyStatus, TypeStatus};

use super::debug::Asked;
use super::page::Page;

/// Connected proxies by cluster, namespace and name.
pub fn sorted(xds: &Server) -> Vec<ProxyStatus> {
    let mut all = xds.status();
    all.sort_by_cached_key(|status| {
        let proxy = &status.proxy;
        (proxy.metadata_text("CLUSTER_ID").unwrap_or_default(), proxy.namespace.clone(), proxy.id.clone())
    });
    all
}

/// When a type was last sent, as Go prints it: its zero time for never.
pub fn sent_time(of: &TypeStatus) -> String {
    of.sent_at.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), time)
}

fn time(at: SystemTime) -> String {
    Timestamp::from(at).to_string()
}

/// Puts a text into a map unless it is empty, as Go's `omitempty`.
fn put(map: &mut Map<String, Value>, key: impl Into<String>, text: &str) {
    if !text.is_empty() {
        map.insert(key.into(), text.into());
    }
}

/// How far proxies are; `?namespace=` for some.
pub fn syncz(asked: &Asked<'_>) -> Result<Page, Page> {
    let wanted = asked.query.get("namespace").filter(|namespace| !namespace.is_empty());
    let all = sorted(asked.xds);
    let shown = all.iter().filter(|status| wanted.is_none_or(|wanted| wanted == &*status.proxy.namespace));
    Ok(asked.json(&shown.map(sync_status).collect()))
}

/// Types that have fields of their own, by the field's beginning.
const FIELDS: [(&str, &str); 5] = [
    ("cluster", type_urls::CLUSTER),
    ("listener", type_urls::LISTENER),
    ("route", type_urls::ROUTE),
    ("endpoint", type_urls::ENDPOINT),
    ("extensionconfig", type_urls::EXTENSION),
];

fn sync_status(status: &ProxyStatus) -> Value {
    let mut shown = Map::new();
    let proxy = &status.proxy;
    put(&mut shown, "cluster_id", &proxy.metadata_text("CLUSTER_ID").unwrap_or_default());
    put(&mut shown, "proxy", &proxy.id);
    put(&mut shown, "proxy_type", &proxy.proxy_type);
    put(&mut shown, "istio_version", &proxy.metadata_text("ISTIO_VERSION").unwrap_or_default());
    for (field, url) in FIELDS {
        if let Some((_, of)) = status.types.iter().find(|(known, _)| known.as_str() == url) {
            put(&mut shown, format!("{field}_sent"), &of.sent_nonce);
            put(&mut shown, format!("{field}_acked"), &of.acked_nonce);
        }
    }
    let resources: Map<String, Value> = status
        .types
        .iter()
        .filter(|(_, of)| of.watched.is_some())
        .map(|(url, of)| {
            let mut shown = Map::new();
            put(&mut shown, "sent", &of.sent_nonce);
            put(&mut shown, "acked", &of.acked_nonce);
            shown.insert("sentTime".into(), sent_time(of).into());
            put(&mut shown, "lastError", of.last_error.as_deref().unwrap_or_default());
            (url.to_string(), Value::Object(shown))
        })
        .collect();
    if !resources.is_empty() {
        shown.insert("resources".into(), Value::Object(resources));
    }
    Value::Object(shown)
}

/// Proxies with what they watch; `?push=true` pushes to all of them.
pub fn adsz(asked: &Asked<'_>) -> Result<Page, Page> {
    if asked.query.get("push").is_some_and(|push| !push.is_empty()) {
        let n = asked.xds.push_all();
        return Ok(Page::text(StatusCode::OK, format!("Pushed to {n} servers\n")));
    }
    let shown = if asked.query.get("proxyID").is_some_and(|id| !id.is_empty()) {
        vec![asked.proxy()?]
    } else {
        sorted(asked.xds)
    };
    let client = |status: &ProxyStatus| {
        let proxy = &status.proxy;
        let mut client = client(status);
        if !proxy.labels.is_empty() {
            client.insert("labels".into(), json!(&*proxy.labels));
        }
        client.insert("metadata".into(), Value::Object((*proxy.metadata).clone()));
        client.insert("locality".into(), locality(proxy));
        let watches: Map<String, Value> = status
            .types
            .iter()
            .filter_map(|(url, of)| {
                let names = match of.watched.as_ref()? {
                    Watched::Wildcard => json!([]),
                    Watched::Names(names) => names.iter().map(|name| name.as_str()).collect(),
                };
                Some((url.to_string(), names))
            })
            .collect();
        if !watches.is_empty() {
            client.insert("watches".into(), Value::Object(watches));
        }
        client
    };
    Ok(asked.json(&clients(&shown, client)))
}

/// Proxies, with nothing about them.
pub fn connections(asked: &Asked<'_>) -> Result<Page, Page> {
    Ok(asked.json(&clients(&sorted(asked.xds), client)))
}

fn clients(shown: &[ProxyStatus], client: impl Fn(&ProxyStatus) -> Map<String, Value>) -> Value {
    let mut all = json!({"totalClients": shown.len()});
    if !shown.is_empty() {
        all["clients"] = shown.iter().map(|status| Value::Object(client(status))).collect();
    }
    all
}

fn client(status: &ProxyStatus) -> Map<String, Value> {
    let mut shown = Map::new();
    shown.insert("connectionId".into(), (&*status.connection).into());
    shown.insert("connectedAt".into(), time(status.connected_at).into());
    shown.insert("address".into(), status.address.as_deref().unwrap_or_default().into());
    shown
}

fn locality(proxy: &Proxy) -> Value {
    let mut shown = Map::new();
    for (field, part) in ["region", "zone", "sub_zone"].into_iter().zip(&proxy.locality) {
        put(&mut shown, field, part);
    }
    Value::Object(shown)
}

/// The service ports of the proxies' workloads.
pub fn instancesz(asked: &Asked<'_>) -> Result<Page, Page> {
    let facts = asked.pages.facts.load();
    let all = sorted(asked.xds);
    let shown: Map<String, Value> =
        all.iter().map(|status| (status.proxy.id.to_string(), facts.dump_targets(&status.proxy))).collect();
    Ok(asked.json(&Value::Object(shown)))
}

/// The services that a proxy sees.
pub fn sidecarz(asked: &Asked<'_>) -> Result<Page, Page> {
    let status = asked.proxy()?;
    let engine = &asked.pages.engine;
    let recorded = engine.record(&status.proxy, "scope", "services", &["all"]);
    let summaries = recorded.and_then(|recorded| {
        let bytes = recorded.output.pointer("/entries/0/parts/0/bytes")?.as_str()?;
        ServiceSummaries::decode(STANDARD.decode(bytes).ok()?.as_slice()).ok()
    });
    let Some(summaries) = summaries else {
        let text = "the services of this proxy could not be found out\n";
        return Err(Page::text(StatusCode::INTERNAL_SERVER_ERROR, text));
    };
    let keys: BTreeSet<String> =
        summaries.services.iter().map(|service| format!("{}/{}", service.namespace, service.host)).collect();
    let facts = asked.pages.facts.load();
    let services = facts.dump_services_of(&keys);
    let hosts: Map<String, Value> = services
        .iter()
        .filter_map(|service| Some((service.get("hostname")?.as_str()?.to_owned(), service.clone())))
        .collect();
    Ok(asked.json(&json!({
        "namespace": &*status.proxy.namespace,
        "services": services,
        "servicesByHostname": hosts,
    })))
}

/// What proxies share: names by type, or with `?sizes=` bytes; `?clear=` forgets what nobody uses.
pub fn cachez(asked: &Asked<'_>) -> Result<Page, Page> {
    let is_set = |name: &str| asked.query.get(name).is_some_and(|value| !value.is_empty());
    if is_set("clear") {
        asked.pages.engine.collect(0);
        return Ok(Page::text(StatusCode::OK, "Cache cleared\n"));
    }
    // Views and resources are shared: each is counted once.
    let (mut views, mut resources) = (BTreeSet::new(), BTreeSet::new());
    let mut names: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
    for status in asked.xds.status() {
        for (url, of) in &status.types {
            let Some(view) = of.view.as_ref().filter(|view| views.insert(view.id)) else { continue };
            for resource in &view.resources {
                if resources.insert(std::sync::Arc::as_ptr(resource) as usize) {
                    names.entry(url.to_string()).or_default().push(resource.name.as_str().into());
                    *sizes.entry(url.to_string()).or_default() += resource.body.len();
                }
            }
        }
    }
    if !is_set("sizes") {
        return Ok(asked.json(&json!(names)));
    }
    let mut shown: Map<String, Value> = Map::new();
    shown.insert("total".into(), bytes(sizes.values().sum()).into());
    shown.extend(sizes.into_iter().map(|(url, size)| (url, bytes(size).into())));
    Ok(asked.json(&Value::Object(shown)))
}

/// Ends a proxy's stream.
pub fn disconnect(asked: &Asked<'_>) -> Result<Page, Page> {
    let status = asked.proxy()?;
    asked.xds.disconnect(&status.connection);
    Ok(Page::text(StatusCode::OK, "OK"))
}

/// Bytes as people read them: `36.3kB`.
fn bytes(n: usize) -> String {
    if n < 1000 {
        return format!("{n}B");
    }
    let (mut value, mut unit) = (n as f64 / 1000.0, 0);
    while value >= 1000.0 {
        value /= 1000.0;
        unit += 1;
    }
    // More than exabytes there are not in a word.
    let unit = ["k", "M", "G", "T", "P", "E"].get(unit).unwrap_or(&"E");
    format!("{value:.1}{unit}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        assert_eq!([0, 999, 1000, 36_345, 48_800_000].map(bytes), ["0B", "999B", "1.0kB", "36.3kB", "48.8MB"]);
    }

    #[test]
    fn what_was_never_sent_has_gos_zero_time() {
        assert_eq!(sent_time(&TypeStatus::default()), "0001-01-01T00:00:00Z");
    }
}
