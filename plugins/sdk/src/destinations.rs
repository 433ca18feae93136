//! What is wrong with a destination of a route, of whatever kind the route is.
//!
//! istiod says nothing of any of it: requests are answered with 503, and connections end.

use crate::facts::{Resolution, Service};
use crate::proto::istio::networking::v1alpha3::{Destination, DestinationRule};
use crate::{Ctx, Severity};

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The field of the destination.
    pub part: &'static str,
    /// What it is.
    pub message: String,
}

/// The service that a destination means to a proxy.
#[derive(Clone, Copy, Debug)]
pub struct Meant<'a> {
    /// Key of the service.
    pub key: &'a str,
    /// The service; none if the proxy sees none of that host.
    pub service: Option<&'a Service>,
    /// Its effective rule.
    pub rule: Option<&'a DestinationRule>,
}

/// What keeps a destination from being reached. `port` is the one meant where the destination names none.
pub fn problems(ctx: &Ctx<'_>, destination: &Destination, meant: Meant<'_>, port: Option<u32>) -> Vec<Problem> {
    let problem = |severity, part, message| vec![Problem { severity, part, message }];
    let host = destination.host.as_str();
    let Some(service) = meant.service else {
        return problem(Severity::Error, "host", format!("no service {host:?} is visible to the proxies"));
    };
    let named = destination.port.as_ref().map(|port| port.number);
    let has = |port: u32| service.ports.iter().any(|p| p.port == port);
    let mut found = Vec::new();
    if let Some(port) = named.filter(|port| !has(*port)) {
        found.extend(problem(Severity::Error, "port.number", format!("service {host} has no port {port}")));
    }
    let subset = destination.subset.as_str();
    let defined = meant.rule.iter().flat_map(|rule| &rule.subsets).find(|s| s.name == subset);
    if !subset.is_empty() && defined.is_none() {
        found.extend(problem(
            Severity::Error,
            "subset",
            format!("subset {subset:?} of {host} is in no DestinationRule"),
        ));
        return found;
    }
    // Others need no endpoints, or find them by themselves.
    let balanced = service.resolution() == Resolution::ClientSideLb;
    let Some(port) = named.or(port).filter(|port| balanced && has(*port)) else { return found };
    let labels = defined.into_iter().flat_map(|subset| &subset.labels);
    if !ctx.has_ready_endpoints(meant.key, port, labels) {
        let (part, of) =
            if subset.is_empty() { ("host", String::new()) } else { ("subset", format!(" in {subset:?}")) };
        let message = format!("no endpoint of {host} on port {port} is ready{of}: requests get 503, connections end");
        found.extend(problem(Severity::Warning, part, message));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Port;
    use crate::proto::istio::networking::v1alpha3::{PortSelector, Subset};
    use crate::{Host, Level};

    /// Says which endpoints are ready.
    struct Ready(Vec<Vec<&'static str>>);

    impl Host for Ready {
        fn ask(&self, query: &'static str, args: &[&str]) -> Option<Vec<u8>> {
            assert_eq!(query, "has-ready-endpoints");
            self.0.iter().any(|ready| ready == args).then(Vec::new)
        }

        fn report(&self, _: Level, _: &str) {}
    }

    fn found(ready: Vec<Vec<&'static str>>, destination: &Destination, resolution: Resolution) -> Vec<&'static str> {
        let service = Service {
            ports: vec![Port { port: 80, ..Default::default() }],
            resolution: resolution.into(),
            ..Default::default()
        };
        let v1 = Subset { name: "v1".into(), labels: [("version".into(), "v1".into())].into(), ..Default::default() };
        let rule = DestinationRule { subsets: vec![v1], ..Default::default() };
        let meant = Meant { key: "shop/web", service: Some(&service), rule: Some(&rule) };
        let ready = Ready(ready);
        problems(&Ctx::new(&ready), destination, meant, Some(80)).into_iter().map(|problem| problem.part).collect()
    }

    #[test]
    fn each_problem_has_its_field() {
        let to = |subset: &str, port: u32| Destination {
            host: "web".into(),
            subset: subset.into(),
            port: (port > 0).then_some(PortSelector { number: port }),
        };
        let all = vec!["shop/web", "80"];
        let v1 = vec!["shop/web", "80", "version=v1"];
        let eds = Resolution::ClientSideLb;
        assert!(found(vec![all.clone(), v1], &to("v1", 80), eds).is_empty());
        assert_eq!(found(vec![all.clone()], &to("v1", 0), eds), ["subset"]);
        assert_eq!(found(vec![all.clone()], &to("v2", 0), eds), ["subset"]);
        assert_eq!(found(vec![all], &to("", 81), eds), ["port.number"]);
        assert_eq!(found(vec![], &to("", 0), eds), ["host"]);
        assert!(found(vec![], &to("", 0), Resolution::Passthrough).is_empty());
        let nobody = Ready(vec![]);
        let meant = Meant { key: "", service: None, rule: None };
        assert_eq!(problems(&Ctx::new(&nobody), &to("", 0), meant, None)[0].part, "host");
    }
}
