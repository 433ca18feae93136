use proptest::prelude::*;
use trysail_sdk::facts::{DestinationRuleSummary, Object};
use trysail_sdk::prost::Message as _;
use trysail_sdk::proto::istio::networking::v1alpha3::{ClientTlsSettings, DestinationRule, Subset, TrafficPolicy};
use trysail_sdk::proto::istio::r#type::v1beta1::WorkloadSelector;

use super::lookup::{Lookup, Rule};
use crate::testing::{World, words};

const HOST: &str = "one.b.svc.cluster.local";
const KEY: &str = "b/one.b.svc.cluster.local";

/// A rule whose traffic policy names it (as SNI), with subsets.
fn rule(host: &str, export_to: &str, name: &str, subsets: &str) -> DestinationRule {
    DestinationRule {
        host: host.into(),
        traffic_policy: (!name.is_empty()).then(|| TrafficPolicy {
            tls: Some(ClientTlsSettings { sni: name.into(), ..Default::default() }),
            ..Default::default()
        }),
        subsets: words(subsets).into_iter().map(|name| Subset { name, ..Default::default() }).collect(),
        export_to: words(export_to),
        ..Default::default()
    }
}

fn selecting(rule: DestinationRule, app: &str) -> DestinationRule {
    let match_labels = [("app".to_owned(), app.to_owned())].into_iter().collect();
    DestinationRule { workload_selector: Some(WorkloadSelector { match_labels }), ..rule }
}

fn decoded(world: &World, args: &[&str]) -> Option<DestinationRule> {
    let (object, _) = world.call::<Object>("destination-rule", args);
    object.map(|object| DestinationRule::decode(object.spec.as_slice()).unwrap())
}

/// `policy:subset,subset` of the effective rule.
fn effective(world: &World) -> String {
    let Some(rule) = decoded(world, &[KEY]) else { return "none".into() };
    let subsets: Vec<_> = rule.subsets.iter().map(|subset| subset.name.as_str()).collect();
    let policy = rule.traffic_policy.and_then(|policy| policy.tls).map(|tls| tls.sni).unwrap_or_default();
    format!("{policy}:{}", subsets.join(","))
}

#[test]
fn nothing_is_asked_for_public_rules_of_the_service_and_the_root_namespace() {
    let world =
        World::new("a").rule("b", "x", rule(HOST, "", "b", "")).rule("root", "y", rule("*.local", "", "root", ""));
    assert_eq!(effective(&world), "b:");
    // A proxy of the root namespace gets the same; nobody needs to tell.
    assert_eq!(effective(&world.from("root")), "b:");
    assert!(world.asked.borrow().is_empty());
    assert_eq!(effective(&World::new("a")), "none");
}

#[test]
fn client_then_service_then_root() {
    let world = World::new("a")
        .rule("a", "client", rule("*.svc.cluster.local", ".", "a", ""))
        .rule("b", "service", rule(HOST, "*", "b", ""))
        .rule("root", "mesh", rule("*.local", "*", "root", ""))
        .rule("root", "own", rule("*.local", ".", "root-only", ""));
    assert_eq!(effective(&world), "a:");
    assert_eq!(effective(&world.from("c")), "b:");
    assert_eq!(*world.from("c").asked.borrow(), Vec::<String>::new());
    assert_eq!(effective(&world.from("b")), "b:");
    assert_eq!(effective(&world.from("root")), "root-only:");
    let elsewhere = world.from("c");
    effective(&elsewhere);
    assert_eq!(*elsewhere.asked.borrow(), ["proxy-in-namespaces a,root"]);
}

#[test]
fn the_most_specific_host_hides_others_even_when_it_is_not_exported_here() {
    let world = World::new("a").rule("b", "exact", rule(HOST, "c", "exact", "")).rule(
        "b",
        "wide",
        rule("*.local", "*", "wide", ""),
    );
    assert_eq!(effective(&world), "none");
    assert_eq!(effective(&world.from("c")), "exact:");
    assert_eq!(effective(&world.from("b")), "wide:");
    let private = World::new("a").rule("b", "exact", rule(HOST, ".", "exact", "")).rule(
        "b",
        "wide",
        rule("*.local", "*", "wide", ""),
    );
    assert_eq!(effective(&private), "wide:");
    assert_eq!(effective(&private.from("b")), "exact:");
}

#[test]
fn rules_of_one_host_are_merged() {
    let world = World::new("a")
        .rule("b", "one", rule(HOST, "", "", "v1"))
        .rule("b", "two", rule(HOST, "", "two", "v1 v2"))
        .rule("b", "three", rule(HOST, "", "three", "v3"));
    assert_eq!(effective(&world), "two:v1,v2,v3");
    let (_, diagnostics) = world.call::<Object>("destination-rule", &[KEY]);
    let fields: Vec<_> = diagnostics.iter().map(|d| (d.object.as_str(), d.field.as_str())).collect();
    assert_eq!(
        fields,
        [("DestinationRule b/two", "spec.subsets[0].name"), ("DestinationRule b/three", "spec.trafficPolicy")]
    );
}

#[test]
fn rules_with_different_export_to_are_not_merged() {
    let world =
        World::new("c").rule("b", "one", rule(HOST, "c", "one", "v1")).rule("b", "two", rule(HOST, "a", "two", "v2"));
    assert_eq!(effective(&world), "one:v1");
    assert_eq!(effective(&world.from("a")), "two:v2");
    assert_eq!(effective(&world.from("d")), "none");
    // A wider one is merged into a narrower one that is older, and is not seen by itself.
    let wider =
        World::new("c").rule("b", "one", rule(HOST, "c", "one", "v1")).rule("b", "two", rule(HOST, "c a", "two", "v2"));
    assert_eq!(effective(&wider), "one:v1,v2");
    assert_eq!(effective(&wider.from("a")), "none");
    let mut plain = wider.from("c");
    plain.flags.insert("ENABLE_ENHANCED_DESTINATIONRULE_MERGE", "false");
    assert_eq!(effective(&plain), "one:v1,v2");
}

#[test]
fn selecting_rules_hold_for_their_workloads_in_their_namespace() {
    let mut world = World::new("a").rule("a", "general", rule(HOST, "", "general", "v1")).rule(
        "a",
        "x",
        selecting(rule(HOST, "", "x", "v2"), "x"),
    );
    assert_eq!(effective(&world), "general:v1");
    world.labels.insert("app".into(), "x".into());
    assert_eq!(effective(&world), "x:v2");
    assert_eq!(decoded(&world, &[KEY, "inbound"]).unwrap().subsets[0].name, "v1");
    assert_eq!(effective(&world.from("c")), "none");
}

#[test]
fn a_private_rule_is_merged_into_a_selecting_one() {
    // As istiod does it: both have exportTo `.`, so the general rule is not there for other workloads.
    let mut world = World::new("a").rule("a", "general", rule(HOST, ".", "general", "v1")).rule(
        "a",
        "x",
        selecting(rule(HOST, "", "x", "v2"), "x"),
    );
    assert_eq!(effective(&world), "none");
    world.labels.insert("app".into(), "x".into());
    assert_eq!(effective(&world), "x:v2,v1");
}

#[test]
fn backend_policies_fill_the_gaps_of_users_rules() {
    let mut world =
        World::new("a").rule("b", "policy", rule(HOST, "", "policy", "")).rule("b", "user", rule(HOST, "", "", "v1"));
    world.destination_rules[1].1.traffic_policy =
        Some(TrafficPolicy { connection_pool: Some(Default::default()), ..Default::default() });
    world.destination_rules[1].0.spec = world.destination_rules[1].1.encode_to_vec();
    world.destination_rules[0].0.annotations.insert("internal.istio.io/parents".into(), "x".into());
    let policy = decoded(&world, &[KEY]).unwrap().traffic_policy.unwrap();
    assert!(policy.connection_pool.is_some());
    assert_eq!(policy.tls.unwrap().sni, "policy");
}

type Given = (&'static str, &'static str, &'static str, bool, Vec<&'static str>);

fn rules() -> impl Strategy<Value = Vec<Given>> {
    let namespace = prop::sample::select(vec!["a", "b", "root"]);
    let host = prop::sample::select(vec![HOST, "*.local", "*.svc.cluster.local", "*"]);
    let export_to = prop::sample::select(vec!["", "*", ".", "a", "a c", ". a", "b", "~"]);
    let subsets = prop::sample::subsequence(vec!["v1", "v2", "v3"], 0..=3);
    prop::collection::vec((namespace, host, export_to, prop::bool::weighted(0.2), subsets), 0..6)
}

fn world(rules: &[Given], namespace: &str) -> World {
    rules.iter().enumerate().fold(
        World::new(namespace),
        |world, (n, (namespace, host, export_to, selects, subsets))| {
            let name = format!("r{n}");
            let rule = rule(host, export_to, &name, &subsets.join(" "));
            world.rule(namespace, &name, if *selects { selecting(rule, "x") } else { rule })
        },
    )
}

proptest! {
    /// Namespaces that no rule names all get what "elsewhere" gets, so leaving them unasked loses nothing.
    #[test]
    fn unnamed_namespaces_are_elsewhere(given in rules(), enhanced: bool) {
        let summaries: Vec<DestinationRuleSummary> = given.iter().map(|(namespace, host, export_to, selects, _)| DestinationRuleSummary {
            namespace: namespace.to_string(),
            host: host.to_string(),
            export_to: words(if export_to.is_empty() { "*" } else { export_to }),
            has_selector: *selects,
            ..Default::default()
        }).collect();
        let rules: Vec<Rule> = summaries.iter().enumerate().map(|(n, s)| Rule::new(n, s, Some(words(given[n].2)))).collect();
        let lookup = Lookup { rules: &rules, host: HOST, service_namespace: "b", root: "root", enhanced };
        prop_assert_eq!(lookup.for_client(Some("z")), lookup.for_client(None));
        if !given.iter().any(|(namespace, ..)| *namespace == "root") && !rules.iter().any(|r| r.named_namespaces().any(|n| n == "root")) {
            prop_assert_eq!(lookup.for_client(Some("root")), lookup.for_client(None));
        }
    }

    /// Proxies of two namespaces that were asked the same and answered the same got the same.
    #[test]
    fn equal_answers_give_equal_rules(given in rules()) {
        let mut by_answers = std::collections::BTreeMap::new();
        for namespace in ["a", "b", "c", "root", "y", "z"] {
            let world = world(&given, namespace);
            let found = effective(&world);
            let asked = world.asked.borrow().clone();
            let is_in = asked.first().is_some_and(|q| q.split([' ', ',']).any(|n| n == namespace)).then_some(namespace);
            let before = by_answers.insert((asked, is_in), found.clone());
            prop_assert!(before.is_none_or(|before| before == found));
        }
    }

    /// A merged rule has each subset once, and those of its first rule first.
    #[test]
    fn subsets_are_unique(given in rules(), namespace in prop::sample::select(vec!["a", "b", "root", "z"])) {
        let world = world(&given, namespace);
        if let Some(rule) = decoded(&world, &[KEY]) {
            let names: Vec<_> = rule.subsets.iter().map(|subset| subset.name.clone()).collect();
            let unique: std::collections::BTreeSet<_> = names.iter().collect();
            prop_assert_eq!(unique.len(), names.len());
            let (object, _) = world.call::<Object>("destination-rule", &[KEY]);
            let first = world.destination_rules.iter().find(|(o, _)| o.r#ref == object.as_ref().unwrap().r#ref).unwrap();
            prop_assert!(names.starts_with(&first.1.subsets.iter().map(|s| s.name.clone()).collect::<Vec<_>>()));
            prop_assert!(first.1.traffic_policy.is_none() || rule.traffic_policy == first.1.traffic_policy);
        }
    }
}
