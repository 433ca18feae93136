//! Debug types of the streams: the same pages, and the two forms that `istioctl` reads.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};
use tonic::Status;
use trysail_codec::json::{Options, from_json};
use trysail_model::Identity;
use trysail_xds::debug::{Answer, CONFIG_DUMP, Debug, PAGE, Question, SYNC};
use trysail_xds::status::{ProxyStatus, TypeStatus};
use trysail_xds::{Server, status};

use super::access::Viewer;
use super::config_dump;
use super::connections::{sent_time, sorted};
use super::debug::{Asked, Pages, Query};
use super::page::Page;

const CLIENT_CONFIG: &str = "type.googleapis.com/envoy.service.status.v3.ClientConfig";

impl Debug for Pages {
    fn answer(&self, xds: &Server, caller: Option<&Identity>, question: &Question) -> Result<Vec<Answer>, Status> {
        let unknown = || Status::unauthenticated("authentication required");
        let viewer = match caller {
            Some(identity) => self.viewer(Some(identity)),
            None if !self.access.tells_namespaces_apart && question.type_url != PAGE => Viewer::All,
            None => return Err(unknown()),
        };
        let name = question.names.first().map(String::as_str).unwrap_or_default();
        match question.type_url.as_str() {
            PAGE => {
                let identity = caller.ok_or_else(unknown)?;
                let body = self.page_for(xds, identity, viewer, name)?.body;
                Ok(vec![Answer { name: name.to_owned(), type_url: PAGE.to_owned(), body }])
            }
            SYNC => Ok(sync(xds, &viewer)),
            CONFIG_DUMP if question.names.len() == 1 => {
                let viewer = if self.access.across_namespaces { Viewer::All } else { viewer };
                let query = Query::default();
                let asked = Asked { pages: self, xds, viewer: &viewer, query: &query };
                Ok(asked.find(name).map(|proxy| dump(&asked, &proxy)).unwrap_or_default())
            }
            // Events of connections, and what there is no more: answered with nothing, as in istiod.
            _ => Ok(Vec::new()),
        }
    }

    fn identifier(&self) -> String {
        self.identifier.clone()
    }
}

impl Pages {
    /// A page by path and query. Who may not see it hears so; a page that is not there is a page.
    fn page_for(&self, xds: &Server, identity: &Identity, viewer: Viewer, wanted: &str) -> Result<Page, Status> {
        let (path, query) = wanted.split_once('?').unwrap_or((wanted, ""));
        let viewer = self.access.admit(viewer, path).map_err(|_| {
            let text = format!("the debug info is not available for current identity: \"{identity}\"");
            Status::permission_denied(text)
        })?;
        Ok(match self.find(path) {
            Some(entry) => self.make(entry, xds, &viewer, &Query::parse(query)),
            None => Page::not_found(),
        })
    }
}

/// One `ClientConfig` a proxy. Those who only ask (istioctl) are no proxies.
fn sync(xds: &Server, viewer: &Viewer) -> Vec<Answer> {
    let is_proxy = |status: &ProxyStatus| {
        &*status.proxy.proxy_type == "ztunnel"
            || status.proxy.metadata.get("PROXY_CONFIG").is_some_and(|config| config.is_object())
    };
    let shown = |status: &ProxyStatus| is_proxy(status) && viewer.sees(&status.proxy);
    sorted(xds).into_iter().filter(shown).map(|status| client_config(&status)).collect()
}

fn client_config(proxy: &ProxyStatus) -> Answer {
    let metadata: BTreeMap<&str, Value> = ["CLUSTER_ID", "ISTIO_VERSION", "NAMESPACE"]
        .into_iter()
        .filter_map(|key| Some((key, proxy.proxy.metadata.get(key)?.clone())))
        .collect();
    let types: BTreeMap<&str, &TypeStatus> =
        proxy.types.iter().filter(|(_, of)| of.watched.is_some()).map(|(url, of)| (url.as_str(), of)).collect();
    let configs: Vec<Value> = types.into_iter().map(|(type_url, of)| generic_config(type_url, of)).collect();
    let json = json!({"node": {"id": &*proxy.proxy.id, "metadata": metadata}, "genericXdsConfigs": configs});
    Answer { name: proxy.proxy.id.to_string(), type_url: CLIENT_CONFIG.to_owned(), body: encode(CLIENT_CONFIG, &json) }
}

fn generic_config(type_url: &str, of: &status::TypeStatus) -> Value {
    let state = match of {
        TypeStatus { last_error: Some(_), .. } => "ERROR",
        TypeStatus { sent_nonce, .. } if sent_nonce.is_empty() => "NOT_SENT",
        TypeStatus { sent_nonce, acked_nonce, .. } if sent_nonce == acked_nonce => "SYNCED",
        _ => "STALE",
    };
    let at = sent_time(of);
    let mut config = json!({"typeUrl": type_url, "lastUpdated": at, "configStatus": state});
    if let Some(error) = &of.last_error {
        config["errorState"] = json!({"lastUpdateAttempt": at, "details": error});
    }
    config
}

/// The parts of a config dump as messages.
fn dump(asked: &Asked<'_>, proxy: &ProxyStatus) -> Vec<Answer> {
    let parts = config_dump::parts(asked, proxy, false);
    let answer = |mut part: Value| {
        let fields = part.as_object_mut()?;
        let type_url = fields.remove("@type")?.as_str()?.to_owned();
        Some(Answer { name: String::new(), body: encode(&type_url, &part), type_url })
    };
    parts.into_iter().filter_map(answer).collect()
}

/// A message from its JSON, made here; what does not fit would be a bug of ours and is logged.
fn encode(type_url: &str, json: &Value) -> Bytes {
    let name = type_url.rsplit('/').next().unwrap_or(type_url);
    let encoded = from_json(name, json, Options::default());
    encoded
        .inspect_err(|error| tracing::error!(%error, name, "a dump does not fit its message"))
        .unwrap_or_default()
        .into()
}
