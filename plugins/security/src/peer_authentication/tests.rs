use proptest::prelude::*;
use trysail_sdk::facts::MtlsMode;
use trysail_sdk::proto::istio::security::v1beta1::peer_authentication::mutual_tls::Mode;

use crate::testing::World;

#[test]
fn permissive_without_policies_and_without_questions() {
    let world = World::new("a").policy("root", "other", Some("x"), Some(Mode::Strict), &[]);
    assert_eq!(world.own(), MtlsMode::MtlsPermissive);
    assert!(world.asked.borrow().is_empty());
}

#[test]
fn workload_over_namespace_over_mesh() {
    let world = World::new("a")
        .policy("root", "mesh", None, Some(Mode::Strict), &[])
        .policy("a", "namespace", None, Some(Mode::Disable), &[])
        .policy("a", "x", Some("x"), Some(Mode::Permissive), &[])
        .policy("a", "later", Some("x"), Some(Mode::Strict), &[])
        .policy("b", "inherits", None, None, &[])
        .policy("b", "unset", Some("x"), Some(Mode::Unset), &[]);
    assert_eq!(world.own(), MtlsMode::MtlsDisable);
    assert_eq!(world.labelled("x").own(), MtlsMode::MtlsPermissive);
    assert_eq!(world.labelled("x").from("b").own(), MtlsMode::MtlsStrict);
    assert_eq!(world.from("c").own(), MtlsMode::MtlsStrict);
    assert_eq!(world.from("root").own(), MtlsMode::MtlsStrict);
    let elsewhere = world.from("c");
    elsewhere.own();
    assert_eq!(*elsewhere.asked.borrow(), ["proxy-in-namespaces a,b"]);
}

#[test]
fn policies_for_workloads_of_the_root_namespace_do_not_count() {
    let world =
        World::new("root").labelled("x").policy("root", "x", Some("x"), Some(Mode::Strict), &[(80, Mode::Strict)]);
    let (policy, _) = world.call("peer-authentication", &[]);
    assert_eq!((policy.mode(), policy.ports.len()), (MtlsMode::MtlsPermissive, 0));
}

#[test]
fn ports_inherit_from_the_workload() {
    let world = World::new("a")
        .labelled("x")
        .policy("a", "namespace", None, Some(Mode::Strict), &[(70, Mode::Disable)])
        .policy("a", "x", Some("x"), None, &[(80, Mode::Disable), (81, Mode::Unset)]);
    let (policy, diagnostics) = world.call("peer-authentication", &[]);
    assert_eq!(policy.mode(), MtlsMode::MtlsStrict);
    let ports: Vec<_> = policy.ports.into_iter().collect();
    assert_eq!(ports, [(80, MtlsMode::MtlsDisable as i32), (81, MtlsMode::MtlsStrict as i32)]);
    assert_eq!(diagnostics[0].field, "spec.portLevelMtls");
}

#[test]
fn the_oldest_of_a_namespace_counts() {
    let world = World::new("a").policy("a", "old", None, Some(Mode::Strict), &[]).policy(
        "a",
        "new",
        None,
        Some(Mode::Disable),
        &[],
    );
    let (policy, diagnostics) = world.call("peer-authentication", &[]);
    assert_eq!(policy.mode(), MtlsMode::MtlsStrict);
    assert_eq!(diagnostics[0].object, "PeerAuthentication a/new");
}

proptest! {
    /// Proxies that no policy selects get what clients expect of services in their namespace.
    #[test]
    fn clients_expect_what_unselected_workloads_have(
        policies in prop::collection::vec((prop::sample::select(vec!["a", "b", "root"]), any::<bool>(), 0..4i32), 0..6),
        namespace in prop::sample::select(vec!["a", "b", "root", "z"]),
    ) {
        let world = policies.iter().enumerate().fold(World::new(namespace), |world, (n, (namespace, selects, mode))| {
            world.policy(namespace, &format!("p{n}"), selects.then_some("x"), Mode::try_from(*mode).ok(), &[])
        });
        let world = world.service(namespace, Default::default(), false, &[]);
        let (expected, _) = world.call("service-mtls-mode", &[&format!("{namespace}/host"), "80"]);
        prop_assert_eq!(world.own(), expected.mode());
    }
}
