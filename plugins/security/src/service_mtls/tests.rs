use trysail_sdk::facts::{MtlsMode, Resolution};
use trysail_sdk::proto::istio::security::v1beta1::peer_authentication::mutual_tls::Mode;

use crate::testing::World;

fn mode(world: &World, args: &[&str]) -> MtlsMode {
    world.call("service-mtls-mode", args).0.mode()
}

#[test]
fn only_policies_of_namespace_and_mesh_count() {
    let world = World::new("z")
        .service("a", Resolution::ClientSideLb, false, &[])
        .policy("a", "x", Some("x"), Some(Mode::Disable), &[(80, Mode::Disable)])
        .policy("root", "mesh", None, Some(Mode::Strict), &[]);
    assert_eq!(mode(&world, &["a/host", "80"]), MtlsMode::MtlsStrict);
    assert!(world.asked.borrow().is_empty());
    let own = world.policy("a", "own", None, Some(Mode::Permissive), &[]);
    assert_eq!(mode(&own, &["a/host", "80"]), MtlsMode::MtlsPermissive);
}

#[test]
fn unknown_outside_the_mesh() {
    let world = World::new("z").service("a", Resolution::DnsLb, true, &[]).policy(
        "root",
        "mesh",
        None,
        Some(Mode::Strict),
        &[],
    );
    assert_eq!(mode(&world, &["a/host", "80"]), MtlsMode::MtlsUnknown);
    assert_eq!(mode(&world, &["nowhere/host", "80"]), MtlsMode::MtlsUnknown);
}

#[test]
fn endpoints_decide_where_clients_choose_them_directly() {
    let headless = |modes: &[&str]| World::new("z").service("a", Resolution::Passthrough, false, modes);
    assert_eq!(mode(&headless(&[]), &["a/host", "80"]), MtlsMode::MtlsDisable);
    assert_eq!(mode(&headless(&["istio", ""]), &["a/host", "80"]), MtlsMode::MtlsDisable);
    assert_eq!(mode(&headless(&["istio", "disabled"]), &["a/host", "80"]), MtlsMode::MtlsDisable);
    assert_eq!(mode(&headless(&["istio"]), &["a/host", "80"]), MtlsMode::MtlsPermissive);
    let balanced = World::new("z").service("a", Resolution::ClientSideLb, false, &[""]);
    assert_eq!(mode(&balanced, &["a/host", "80"]), MtlsMode::MtlsPermissive);
    assert_eq!(mode(&balanced, &["a/host", "80", "passthrough"]), MtlsMode::MtlsDisable);
}

#[test]
fn arguments_are_checked() {
    let ask = |args: &[&str]| {
        let world = World::new("z");
        let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
        crate::translate(&trysail_sdk::Ctx::new(&world), "service-mtls-mode", &args).is_err()
    };
    assert!(ask(&["a/host"]) && ask(&["a/host", "http"]) && ask(&["a/host", "80", "no"]));
}
