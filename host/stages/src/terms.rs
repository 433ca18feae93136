//! The terms on which a plugin works: where it stands, what it sees, and what becomes of what it returns.
//!
//! The engine knows the moments; what is decided in them (scopes, rights, edits, invariants) is handed in, since it is about
//! Envoy's messages, which the engine knows nothing of.

use bytes::Bytes;
use trysail_sdk::{Diagnostic, Entry, Outcome, Target};

use crate::fault::FaultKind;
use crate::guest::Limits;

/// A place where a plugin works.
#[derive(Clone, Debug)]
pub struct Place {
    /// The hook point as the plugin knows it.
    pub hook: std::sync::Arc<str>,
    /// The hook point at which stages hand out the fragment.
    pub point: std::sync::Arc<str>,
    /// What the fragment is about.
    pub target: Target,
}

/// What a plugin changed: a field of an item.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Effect {
    /// Key of the item.
    pub item: String,
    /// Path of the field; empty for the whole item.
    pub path: String,
    /// What was there, as JSON, shortened; none when nothing was.
    pub before: Option<String>,
    /// What is there now.
    pub after: Option<String>,
}

/// What a plugin changed of a fragment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// The fields, sorted.
    pub list: Vec<Effect>,
    /// It is only watched: it would have changed them.
    pub is_shadow: bool,
}

/// What a plugin's outcome comes to.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// What takes the place of the fragment; none leaves it as it was.
    pub entries: Option<Vec<Entry>>,
    /// What the plugin has to say.
    pub diagnostics: Vec<Diagnostic>,
    /// What it changed, or would have changed.
    pub effects: Effects,
}

/// Asks a question whose answer is recorded.
pub type Ask<'a> = dyn FnMut(&'static str, Vec<String>) -> Option<Bytes> + 'a;

/// The terms of one plugin.
pub trait Terms: Send + Sync {
    /// Does the plugin work there for the proxy that is asked about? What is asked decides for whom the answer holds.
    fn admits(&self, place: &Place, ask: &mut Ask<'_>) -> bool;

    /// The items as the plugin sees them.
    ///
    /// # Errors
    /// When they are not the messages that they should be.
    fn shows(&self, place: &Place, items: &[(String, Bytes)]) -> Result<Vec<(String, Bytes)>, String>;

    /// An item that the plugin sees, as JSON.
    ///
    /// # Errors
    /// When it is no such message.
    fn item_json(&self, place: &Place, message: &[u8]) -> Result<String, String>;

    /// The query of that name, if plugins have it.
    fn query(&self, name: &str) -> Option<&'static str>;

    /// An answer as JSON: none where there is none, but that something does not hold is an answer, too.
    ///
    /// # Errors
    /// When there is no such question, or the answer is not what it should be.
    fn answer_json(&self, query: &str, args: &[String], answer: Option<&[u8]>) -> Result<Option<String>, String>;

    /// The plugin's configuration as JSON.
    fn configuration(&self) -> &str;

    /// May it ask this?
    ///
    /// # Errors
    /// Why not.
    fn may_ask(&self, query: &str, args: &[String]) -> Result<(), String>;

    /// What becomes of what it returned about these items (as they were before [`shows`](Terms::shows)).
    ///
    /// # Errors
    /// When it went beyond its rights, or what it wants cannot be done.
    fn settle(&self, place: &Place, before: &[(String, Bytes)], outcome: Outcome) -> Result<Settled, FaultKind>;

    /// Its limits, given those of all.
    fn limits(&self, of_all: Limits) -> Limits;

    /// The namespace whose plugin it is; none for one of the whole mesh.
    fn tenant(&self) -> Option<&str> {
        None
    }

    /// Does every call get an instance of its own?
    fn is_fresh(&self) -> bool;
}

/// Attribute of targets whose direction is inbound.
const WORKLOAD_PORT: &str = "workload-port";

/// What a fragment is about, from the arguments that stages give at a hook point. `function` made the fragment.
pub fn target(point: &str, function: Option<&str>, args: &[String]) -> Target {
    let text = |at: usize| args.get(at).cloned().unwrap_or_default();
    let host = |key: &str| key.split_once('/').map_or(key, |(_, host)| host).to_owned();
    let port = |text: &str| text.parse().unwrap_or_default();
    match point {
        "clusters" => {
            Target { direction: "outbound".into(), name: host(&text(0)), service: text(0), ..Target::default() }
        }
        "inbound-clusters" => {
            // A service that has the port: its key, port, and the port's name.
            let service = text(1).split('|').next().unwrap_or_default().to_owned();
            let name = format!("inbound|{}||", text(0));
            let target =
                Target { direction: "inbound".into(), service, port: port(&text(0)), name, ..Target::default() };
            target.with(WORKLOAD_PORT, text(0))
        }
        "endpoints" => {
            let name = text(0);
            let mut parts = name.split('|');
            let direction = parts.next().unwrap_or_default().to_owned();
            Target { direction, port: parts.next().map_or(0, port), name, ..Target::default() }
        }
        "routes" if function == Some("service-default") => {
            let direction = "outbound".into();
            Target { direction, name: host(&text(0)), service: text(0), port: port(&text(1)), ..Target::default() }
        }
        "routes" => {
            let target = Target { name: text(0), port: port(&text(1)), ..Target::default() };
            match function {
                Some("gateway-routes") => Target { direction: "gateway".into(), ..target }.with("gateway", text(2)),
                _ => Target { direction: "outbound".into(), ..target },
            }
        }
        "route-configuration" if function == Some("inbound") => {
            let service = if text(0).contains('/') { text(0) } else { String::new() };
            let name = format!("inbound|{}||", text(1));
            let target =
                Target { direction: "inbound".into(), service, port: port(&text(2)), name, ..Target::default() };
            target.with(WORKLOAD_PORT, text(1))
        }
        "route-configuration" => {
            let name = text(0);
            // `80`, `host:80`, and of a gateway `http.80` or `https.443.NAME.GATEWAY.NAMESPACE`.
            let at_gateway = name.strip_prefix("http.").or_else(|| name.strip_prefix("https."));
            let at_gateway = at_gateway.and_then(|rest| rest.split('.').next()?.parse().ok());
            let direction = if at_gateway.is_some() { "gateway" } else { "outbound" };
            let number = at_gateway.unwrap_or_else(|| name.rsplit(':').next().map_or(0, port));
            Target { direction: direction.into(), name, port: number, ..Target::default() }
        }
        "virtual-host" if function == Some("inbound-host") => {
            let service = if text(1).contains('/') { text(1) } else { String::new() };
            let direction = "inbound".into();
            let target = Target { direction, service, port: port(&text(3)), name: text(0), ..Target::default() };
            target.with(WORKLOAD_PORT, text(2))
        }
        "virtual-host" => {
            let name = text(0);
            let direction = if function == Some("gateway-host") { "gateway" } else { "outbound" };
            let number = name.rsplit(':').next().map_or(0, port);
            Target { direction: direction.into(), name, port: number, ..Target::default() }
        }
        "listener" => {
            let name = text(0);
            let number = name.rsplit_once('_').map_or(0, |(_, number)| port(number));
            let direction = match (&*name, function) {
                (_, Some("gateway-listener")) => "gateway",
                ("virtualInbound", _) => "inbound",
                _ => "outbound",
            };
            Target { direction: direction.into(), name, port: number, ..Target::default() }
        }
        _ => {
            let target = Target { direction: text(0), service: text(1), port: port(&text(2)), ..Target::default() };
            if args.len() > 3 { target.with(WORKLOAD_PORT, text(3)) } else { target }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(point: &str, function: Option<&str>, args: &[&str]) -> (String, String, u32, String) {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let Target { direction, service, port, name, attributes: _ } = target(point, function, &args);
        (direction, service, port, name)
    }

    fn about(direction: &str, service: &str, port: u32, name: &str) -> (String, String, u32, String) {
        (direction.into(), service.into(), port, name.into())
    }

    #[test]
    fn arguments_say_what_a_fragment_is_about() {
        assert_eq!(of("clusters", Some("service"), &["n/h.x"]), about("outbound", "n/h.x", 0, "h.x"));
        let inbound = of("inbound-clusters", Some("inbound-port"), &["8080", "n/h.x|80|http"]);
        assert_eq!(inbound, about("inbound", "n/h.x", 8080, "inbound|8080||"));
        assert_eq!(of("endpoints", None, &["outbound|80|v1|h.x"]), about("outbound", "", 80, "outbound|80|v1|h.x"));
        assert_eq!(of("routes", Some("virtual-service"), &["n/v", "80"]), about("outbound", "", 80, "n/v"));
        assert_eq!(of("routes", Some("service-default"), &["n/h.x", "80"]), about("outbound", "n/h.x", 80, "h.x"));
        assert_eq!(of("routes", Some("gateway-routes"), &["n/v", "80", "n/g"]), about("gateway", "", 80, "n/v"));
        let attributes = |point: &str, function: &str, args: &[&str]| {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            target(point, Some(function), &args).attributes
        };
        let one = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        assert_eq!(attributes("routes", "gateway-routes", &["n/v", "80", "n/g"]), one("gateway", "n/g"));
        assert_eq!(attributes("http-filters", "", &["inbound", "n/h", "80", "8080"]), one("workload-port", "8080"));
        assert_eq!(
            attributes("virtual-host", "inbound-host", &["x", "n/h", "8080", "80"]),
            one("workload-port", "8080")
        );
        assert_eq!(attributes("inbound-clusters", "inbound-port", &["8080"]), one("workload-port", "8080"));
        assert_eq!(attributes("route-configuration", "inbound", &["n/h", "8080", "80"]), one("workload-port", "8080"));
        let inbound = of("virtual-host", Some("inbound-host"), &["inbound|http|80", "n/h.x", "8080", "80", "HTTP"]);
        assert_eq!(inbound, about("inbound", "n/h.x", 80, "inbound|http|80"));
        assert_eq!(of("virtual-host", None, &["h.x:80"]), about("outbound", "", 80, "h.x:80"));
        let routes = |name: &str| of("route-configuration", Some("unpatched"), &[name]);
        assert_eq!(routes("80"), about("outbound", "", 80, "80"));
        assert_eq!(routes("h.x:81"), about("outbound", "", 81, "h.x:81"));
        assert_eq!(routes("http.x:81"), about("outbound", "", 81, "http.x:81"));
        assert_eq!(routes("http.8080"), about("gateway", "", 8080, "http.8080"));
        assert_eq!(routes("https.443.https.g.n"), about("gateway", "", 443, "https.443.https.g.n"));
        let inbound = of("route-configuration", Some("inbound"), &["n/h.x", "8080", "80", "HTTP"]);
        assert_eq!(inbound, about("inbound", "n/h.x", 80, "inbound|8080||"));
        assert_eq!(of("listener", None, &["0.0.0.0_80"]), about("outbound", "", 80, "0.0.0.0_80"));
        assert_eq!(of("listener", None, &["virtualInbound"]), about("inbound", "", 0, "virtualInbound"));
        assert_eq!(of("http-filters", None, &["inbound", "n/h.x", "80"]), about("inbound", "n/h.x", 80, ""));
    }
}
