use trysail_sdk::facts::VirtualServiceSummaries;

use crate::testing::{World, words};

fn names(world: &World) -> Vec<String> {
    let (found, _) = world.call::<VirtualServiceSummaries>("virtual-services", &["0"]);
    found.unwrap().virtual_services.into_iter().map(|v| v.name).collect()
}

#[test]
fn private_then_exported_then_public() {
    let mut world = World::new("a")
        .routes("b", "public", &["x.example"], "*", &[])
        .routes("b", "exported", &["x.example"], "a", &[])
        .routes("a", "private", &["x.example"], ".", &[])
        .routes("b", "hidden", &["x.example"], ".", &[])
        .routes("b", "of-a-gateway", &["x.example"], "*", &[]);
    world.virtual_services[4].gateways = words("b/gateway");
    assert_eq!(names(&world), ["private", "exported", "public"]);
    assert_eq!(names(&world.from("b")), ["hidden", "public"]);
}

#[test]
fn imported_when_hosts_overlap() {
    let world = World::new("a")
        .routes("b", "exact", &["shop.example.com"], "*", &[])
        .routes("b", "wildcard", &["*.example.com"], "*", &[])
        .routes("b", "other", &["shop.example.org"], "*", &[])
        .routes("c", "elsewhere", &["shop.example.com"], "*", &[]);
    let with = |hosts: &[&str]| names(&world.clone().sidecar("a", "x", None, &[(0, hosts)])).join(" ");
    assert_eq!(with(&["b/shop.example.com"]), "exact wildcard");
    assert_eq!(with(&["b/*.example.com"]), "exact wildcard");
    assert_eq!(with(&["*/shop.example.com", "~c/*"]), "exact wildcard");
    assert_eq!(with(&["*/*", "~/shop.example.com"]), "wildcard other");
    let mut from_gateway_api = world.clone();
    from_gateway_api.virtual_services[1].gateway_semantics = true;
    assert_eq!(names(&from_gateway_api.sidecar("a", "x", None, &[(0, &["b/shop.example.com"])])), ["exact"]);
}

#[test]
fn consumers_routes_override() {
    let mut world =
        World::new("b").routes("a", "producer", &["x.a"], "*", &[]).routes("b", "consumer", &["x.a"], "*", &[]);
    for found in &mut world.virtual_services {
        found.gateway_semantics = true;
    }
    assert_eq!(names(&world), ["consumer", "producer"]);
    assert_eq!(names(&world.from("c")), ["producer", "consumer"]);
    world.flags.insert("PILOT_UNIFIED_SIDECAR_SCOPE", "false");
    assert_eq!(names(&world), ["producer", "consumer"]);
}
