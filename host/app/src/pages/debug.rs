//! The debug pages: which there are, and how one is made.

use std::sync::Arc;

use arc_swap::ArcSwap;
use hyper::StatusCode;
use parking_lot::Mutex;
use serde_json::Value;
use trysail_ca::sds::SecretStore;
use trysail_facts::FactsSnapshot;
use trysail_facts::dump::Problems;
use trysail_model::{Identity, Snapshot as _};
use trysail_stages::{Engine, EngineTranslator};
use trysail_xds::Server;
use trysail_xds::status::ProxyStatus;

use super::access::{Access, Viewer};
use super::page::Page;
use super::{config_dump, connections, mesh, own};
use crate::omission::Guard;
use crate::server::Report;

/// What pages are made from.
pub struct Pages {
    /// Who may ask what.
    pub access: Access,
    /// The facts served.
    pub facts: Arc<ArcSwap<FactsSnapshot>>,
    /// The engine.
    pub engine: Arc<Engine>,
    /// Secrets, of which pages show public parts.
    pub secrets: Arc<SecretStore>,
    /// State of the sources.
    pub report: Arc<Mutex<Report>>,
    /// Which proxies are held back.
    pub guard: Arc<Guard<EngineTranslator>>,
    /// Which control plane this is, as JSON.
    pub identifier: String,
    /// What is odd, and at which revision.
    pub problems: Mutex<Option<(u64, Arc<Problems>)>>,
}

/// A request for a page.
pub struct Asked<'a> {
    pub pages: &'a Pages,
    pub xds: &'a Server,
    pub viewer: &'a Viewer,
    pub query: &'a Query,
}

/// How a page is made. What cannot be answered is a page too.
type Make = fn(&Asked<'_>) -> Result<Page, Page>;

/// A page of the table.
pub struct Entry {
    name: &'static str,
    help: &'static str,
    make: Make,
}

/// Pages under `/debug/`, by name. A name with a query is for the list: it is the same page.
#[rustfmt::skip]
const TABLE: &[Entry] = &[
    Entry { name: "adsz", help: "Connected proxies with what they watch", make: connections::adsz },
    Entry { name: "adsz?push=true", help: "Pushes everything to all connected proxies", make: connections::adsz },
    Entry { name: "ambientz", help: "What ztunnels are told", make: mesh::ambientz },
    Entry { name: "authorizationz", help: "Authorization policies", make: mesh::authorizationz },
    Entry { name: "cachez", help: "Resources that connected proxies share", make: connections::cachez },
    Entry { name: "cachez?clear=true", help: "Forgets what no connected proxy uses", make: connections::cachez },
    Entry { name: "cachez?sizes=true", help: "Bytes of the resources that connected proxies share", make: connections::cachez },
    Entry { name: "clusterz", help: "Clusters that endpoints are read from", make: mesh::clusterz },
    Entry { name: "config_dump", help: "What a proxy was sent (?proxyID=), in the form of Envoy's own dump", make: config_dump::all },
    Entry { name: "configz", help: "Configuration objects", make: mesh::configz },
    Entry { name: "connections", help: "Connected proxies", make: connections::connections },
    Entry { name: "diagnostics", help: "What there is to say about what a proxy is sent (?proxyID=)", make: own::diagnostics },
    Entry { name: "ecdsz", help: "Extension configurations that a proxy was sent (?proxyID=)", make: config_dump::ecds },
    Entry { name: "edsz", help: "Endpoints that a proxy was sent (?proxyID=)", make: config_dump::eds },
    Entry { name: "endpointShardz", help: "Endpoints by host and source", make: mesh::shards },
    Entry { name: "endpointz", help: "The same as endpointShardz", make: mesh::shards },
    Entry { name: "inject", help: "Templates of the injector", make: mesh::inject },
    Entry { name: "instancesz", help: "Service ports of the connected proxies' workloads", make: connections::instancesz },
    Entry { name: "krtz", help: "Configuration objects by kind", make: mesh::krtz },
    Entry { name: "mcsz", help: "Multi-cluster services", make: mesh::mcsz },
    Entry { name: "mesh", help: "Effective mesh configuration", make: mesh::mesh },
    Entry { name: "ndsz", help: "Name table that a proxy was sent (?proxyID=)", make: config_dump::nds },
    Entry { name: "networkz", help: "Gateways to other networks", make: mesh::networkz },
    Entry { name: "push_status", help: "What is odd about the present state", make: mesh::push_status },
    Entry { name: "pushcontext", help: "Policies and network gateways in force", make: mesh::push_context },
    Entry { name: "registryz", help: "Services", make: mesh::registryz },
    Entry { name: "resourcesz", help: "Kinds of configuration that there are objects of", make: mesh::resourcesz },
    Entry { name: "sidecarz", help: "Services that a proxy sees (?proxyID=)", make: connections::sidecarz },
    Entry { name: "status", help: "Sources, refused objects, plugins", make: own::status },
    Entry { name: "syncz", help: "How far connected proxies are", make: connections::syncz },
    Entry { name: "telemetryz", help: "Telemetry objects", make: mesh::telemetryz },
    Entry { name: "list", help: "Names of these pages", make: |asked| Ok(asked.json(&asked.pages.list())) },
    Entry { name: "unused", help: "Configuration objects that nothing takes up", make: own::unused },
];

/// Pages that change things and are off unless switched on.
const ADMIN: &[Entry] =
    &[Entry { name: "force_disconnect", help: "Ends a proxy's stream (?proxyID=)", make: connections::disconnect }];

impl Pages {
    /// The page of a name.
    pub fn find(&self, name: &str) -> Option<&'static Entry> {
        self.table().find(|entry| entry.name == name)
    }

    fn table(&self) -> impl Iterator<Item = &'static Entry> {
        TABLE.iter().chain(ADMIN.iter().filter(|_| self.access.is_admin))
    }

    /// What a caller may see; everything from the own machine.
    pub fn viewer(&self, caller: Option<&Identity>) -> Viewer {
        match caller {
            Some(identity) => self.access.of(identity, self.facts.load().root_namespace()),
            None => Viewer::All,
        }
    }

    /// Makes a page.
    pub fn make(&self, entry: &Entry, xds: &Server, viewer: &Viewer, query: &Query) -> Page {
        let asked = Asked { pages: self, xds, viewer, query };
        (entry.make)(&asked).unwrap_or_else(|page| page)
    }

    /// All names but the list's own.
    pub fn list(&self) -> Value {
        let mut names: Vec<&str> = self.table().map(|entry| entry.name).filter(|name| *name != "list").collect();
        names.sort_unstable();
        names.into()
    }

    /// Links to all pages.
    pub fn index(&self) -> Page {
        let mut entries: Vec<&Entry> = self.table().collect();
        entries.sort_by_key(|entry| entry.name);
        let row = |entry: &&Entry| {
            let Entry { name, help, .. } = entry;
            format!("<tr><td><a href=\"/debug/{name}\">{name}</a></td><td>{help}</td></tr>\n")
        };
        let rows: String = entries.iter().map(row).collect();
        let html = format!(
            "<!doctype html>\n<html><head><title>Trysail debug pages</title></head><body>\n\
             <p>Add <b>?pretty</b> to indent.</p>\n<table>\n{rows}</table>\n</body></html>\n"
        );
        Page::of("text/html; charset=utf-8", html)
    }

    /// What is odd about the present state; looked for once a revision.
    pub fn problems(&self) -> Arc<Problems> {
        let facts = self.facts.load_full();
        let mut known = self.problems.lock();
        match &*known {
            Some((revision, problems)) if *revision == facts.revision() => problems.clone(),
            _ => {
                let problems = Arc::new(facts.problems());
                *known = Some((facts.revision(), problems.clone()));
                problems
            }
        }
    }
}

impl Asked<'_> {
    /// A page of JSON.
    pub fn json(&self, value: &Value) -> Page {
        Page::json(value, self.query.has("pretty"))
    }

    /// The proxy that `proxyID` names, by a part of its connection id.
    ///
    /// # Errors
    /// The page that says what is wrong.
    pub fn proxy(&self) -> Result<ProxyStatus, Page> {
        let wanted = self.query.get("proxyID").filter(|id| !id.is_empty());
        let wanted = wanted
            .ok_or_else(|| Page::text(StatusCode::BAD_REQUEST, "You must provide a proxyID in the query string\n"))?;
        self.find(wanted)
    }

    /// The proxy with this part in its connection id, among those that the viewer may see.
    ///
    /// # Errors
    /// The page that says that there is none.
    pub fn find(&self, wanted: &str) -> Result<ProxyStatus, Page> {
        let found = self.xds.find(wanted, |proxy| self.viewer.sees(proxy));
        found.ok_or_else(|| {
            let text = "Proxy not connected to this Pilot instance. It may be connected to another instance.\n";
            Page::text(StatusCode::NOT_FOUND, text)
        })
    }
}

/// A query string.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the part after the question mark.
    pub fn parse(text: &str) -> Query {
        Query(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The first value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Is the name there, with whatever value?
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("proxyID=a-1.ns%2F2&pretty&types=");
        assert_eq!(query.get("proxyID"), Some("a-1.ns/2"));
        assert!(query.has("pretty") && query.has("types") && !query.has("push"));
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = TABLE.iter().chain(ADMIN).map(|entry| entry.name).collect();
        names.sort_unstable();
        let n = names.len();
        names.dedup();
        assert_eq!(names.len(), n);
    }
}
