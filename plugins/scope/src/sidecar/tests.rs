use trysail_sdk::facts::{EgressListeners, Object};
use trysail_sdk::proto::istio::mesh::v1alpha1::mesh_config;
use trysail_sdk::proto::istio::networking::v1alpha3::OutboundTrafficPolicy;
use trysail_sdk::proto::istio::networking::v1alpha3::outbound_traffic_policy::Mode;

use crate::testing::World;

const ANY: &[(u32, &[&str])] = &[(0, &["*/*"])];

fn applies(world: &World) -> Option<String> {
    let (object, _) = world.call::<Object>("sidecar", &[]);
    object.map(|object| object.r#ref.map(|r| format!("{}/{}", r.namespace, r.name)).unwrap_or_default())
}

#[test]
fn own_selected_then_own_general_then_root() {
    let world = World::new("a")
        .sidecar("root", "selecting", Some(("app", "x")), ANY)
        .sidecar("root", "default", None, ANY)
        .sidecar("a", "general", None, ANY)
        .sidecar("a", "x", Some(("app", "x")), ANY)
        .sidecar("b", "y", Some(("app", "y")), ANY);
    assert_eq!(applies(&world).as_deref(), Some("a/general"));
    let mut selected = world.clone();
    selected.labels.insert("app".into(), "x".into());
    assert_eq!(applies(&selected).as_deref(), Some("a/x"));
    assert_eq!(applies(&selected.from("b")).as_deref(), Some("root/default"));
    assert_eq!(applies(&selected.from("c")).as_deref(), Some("root/default"));
    assert_eq!(applies(&selected.from("root")).as_deref(), Some("root/selecting"));
}

#[test]
fn gateways_have_none() {
    let mut world = World::new("a").sidecar("a", "x", None, ANY);
    world.proxy_type = "router".into();
    assert_eq!(applies(&world), None);
}

#[test]
fn without_sidecars_nothing_is_asked_of_the_proxy() {
    let world = World::new("a").service("b", "s", &[80], "*").routes("b", "v", &["s.b.svc.cluster.local"], "*", &[]);
    let (egress, _) = world.call::<EgressListeners>("egress", &[]);
    let egress = egress.unwrap();
    assert!(!egress.from_sidecar);
    assert_eq!(egress.listeners[0].hosts, ["*/*"]);
    assert_eq!(world.services_of("all"), ["b/s.b.svc.cluster.local:80"]);
    assert!(world.asked.borrow().is_empty(), "{:?}", world.asked);
}

#[test]
fn hosts_of_another_form_are_reported() {
    let world = World::new("a").sidecar("a", "x", None, &[(9000, &["./*", "shop.example", "a/b/c"])]);
    let (egress, diagnostics) = world.call::<EgressListeners>("egress", &[]);
    let listener = &egress.unwrap().listeners[0];
    assert!(listener.has_port && listener.port == 9000);
    let fields: Vec<_> = diagnostics.iter().map(|d| d.field.as_str()).collect();
    assert_eq!(fields, ["spec.egress[0].hosts[1]", "spec.egress[0].hosts[2]"]);
}

#[test]
fn outbound_policy_of_sidecar_then_mesh() {
    let mode = |world: &World| world.call::<OutboundTrafficPolicy>("outbound-policy", &[]).0.unwrap().mode();
    let mut world = World::new("a");
    assert_eq!(mode(&world), Mode::AllowAny);
    world.mesh.outbound_traffic_policy =
        Some(mesh_config::OutboundTrafficPolicy { mode: Mode::RegistryOnly as i32, ..Default::default() });
    assert_eq!(mode(&world), Mode::RegistryOnly);
    world = world.sidecar("a", "x", None, ANY);
    assert_eq!(mode(&world), Mode::RegistryOnly);
    world.sidecars[0].1.outbound_traffic_policy =
        Some(OutboundTrafficPolicy { mode: Mode::AllowAny as i32, ..Default::default() });
    assert_eq!(mode(&world), Mode::AllowAny);
}
