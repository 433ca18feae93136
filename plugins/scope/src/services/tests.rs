use proptest::prelude::*;
use trysail_sdk::facts::{ServiceSummaries, Strings};

use crate::testing::{World, words};

fn key(world: &World, host: &str) -> Option<String> {
    world.call::<Strings>("service-key", &[host]).0.map(|strings| strings.values[0].clone())
}

#[test]
fn private_services_come_first_and_only_where_they_are_seen() {
    let world = World::new("a")
        .service("b", "public", &[80], "*")
        .service("b", "for-a", &[80], "a c")
        .service("a", "own", &[80], ".")
        .service("a", "hidden", &[80], "~");
    assert_eq!(
        world.services_of("0"),
        ["b/for-a.b.svc.cluster.local:80", "a/own.a.svc.cluster.local:80", "b/public.b.svc.cluster.local:80"]
    );
    let elsewhere = world.from("d");
    assert_eq!(elsewhere.services_of("all"), ["b/public.b.svc.cluster.local:80"]);
    assert!(elsewhere.asked.borrow().iter().all(|asked| asked == "proxy-in-namespaces a,c"));
    assert_eq!(key(&world, "for-a.b.svc.cluster.local").as_deref(), Some("b/for-a.b.svc.cluster.local"));
    assert_eq!(key(&elsewhere, "for-a.b.svc.cluster.local"), None);
}

#[test]
fn hosts_of_a_sidecar() {
    let world = World::new("a")
        .service("a", "one", &[80], "*")
        .service("a", "two", &[80], "*")
        .service("b", "one", &[80], "*")
        .entry("b", "api.example.com", &[443], "*")
        .entry("c", "*.example.com", &[443], "*");
    let seen = |hosts: &[&str]| {
        let listed = world.clone().sidecar("a", "x", None, &[(0, hosts)]).services_of("0");
        listed.iter().map(|s| s.split(['.', ':']).next().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(seen(&["./*"]), "a/one a/two");
    assert_eq!(seen(&["./*", "~./two.a.svc.cluster.local"]), "a/one");
    assert_eq!(seen(&["b/one.b.svc.cluster.local", "./two.a.svc.cluster.local"]), "a/two b/one");
    assert_eq!(seen(&["*/*.example.com"]), "b/api c/*");
    assert_eq!(seen(&["*/*", "~/*.example.com", "~b/*"]), "a/one a/two");
    assert_eq!(seen(&["~/*"]), "");
    assert_eq!(seen(&["*/api.example.com"]), "b/api");
    assert_eq!(seen(&["c/*.shop.example.com"]), "");
}

#[test]
fn exact_hosts_ask_for_single_services_and_dots_for_the_namespace() {
    let world = World::new("a").service("a", "one", &[80], ".").sidecar(
        "root",
        "x",
        None,
        &[(0, &["b/one.b.svc.cluster.local"])],
    );
    world.services_of("0");
    assert_eq!(*world.asked.borrow(), ["proxy-in-namespaces root", "proxy type"]);
}

#[test]
fn a_listener_with_a_port_imports_that_port_and_the_union_joins_them() {
    let world = World::new("a").service("a", "one", &[80, 81, 82], "*").service("a", "two", &[90], "*").sidecar(
        "a",
        "x",
        None,
        &[(82, &["./*"]), (80, &["./*"]), (90, &["./one.a.svc.cluster.local"])],
    );
    assert_eq!(world.services_of("0"), ["a/one.a.svc.cluster.local:82"]);
    assert_eq!(world.services_of("2"), Vec::<String>::new());
    assert_eq!(world.services_of("all"), ["a/one.a.svc.cluster.local:82,80"]);
}

#[test]
fn aliases_must_be_imported_too() {
    let mut world = World::new("a").service("a", "one", &[80], "*");
    world.services[0].aliases = words("a/alias.a.svc.cluster.local b/other.b.svc.cluster.local");
    let aliases =
        |world: &World| world.call::<ServiceSummaries>("services", &["0"]).0.unwrap().services[0].aliases.clone();
    assert_eq!(aliases(&world).len(), 2);
    let narrow = world.sidecar("a", "x", None, &[(0, &["a/*.a.svc.cluster.local"])]);
    assert_eq!(aliases(&narrow), ["a/alias.a.svc.cluster.local"]);
}

#[test]
fn one_namespace_for_a_host() {
    let host = "api.example.com";
    let world = World::new("c").entry("a", host, &[80], "*").entry("b", host, &[81], "*").entry("c", host, &[82], "*");
    assert_eq!(world.services_of("0"), ["c/api.example.com:82"]);
    assert_eq!(world.from("z").services_of("0"), ["a/api.example.com:80"]);
    for namespace in ["a", "b", "c", "z"] {
        let world = world.from(namespace);
        assert_eq!(world.services_of("all")[0].split(':').next().unwrap(), key(&world, host).unwrap());
    }
}

#[test]
fn kubernetes_takes_its_host_from_an_older_service_entry() {
    let world = World::new("z").entry("a", "one.b.svc.cluster.local", &[80], "*").service("b", "one", &[81], "*");
    assert_eq!(world.services_of("0"), ["b/one.b.svc.cluster.local:81"]);
    assert_eq!(world.from("a").services_of("0"), ["a/one.b.svc.cluster.local:80"]);
    let mut legacy = world.clone();
    legacy.flags.insert("PILOT_UNIFIED_SIDECAR_SCOPE", "false");
    assert_eq!(legacy.services_of("0"), ["a/one.b.svc.cluster.local:80"]);
}

#[test]
fn both_services_of_a_host_in_one_namespace_are_listed_and_become_one() {
    let world = World::new("z").entry("b", "one.b.svc.cluster.local", &[80], "*").service("b", "one", &[81], "*");
    assert_eq!(world.services_of("0").len(), 2);
    assert_eq!(world.services_of("all"), ["b/one.b.svc.cluster.local:81"]);
    let entries =
        World::new("z").entry("b", "api.example.com", &[80], "*").entry("b", "api.example.com", &[81, 80], "*");
    assert_eq!(entries.services_of("all"), ["b/api.example.com:80,81"]);
}

#[test]
fn destinations_of_virtual_services_are_inferred() {
    let far = "far.b.svc.cluster.local";
    let world = World::new("a")
        .service("a", "one", &[80], "*")
        .service("b", "far", &[80, 81], "*")
        .routes("a", "v", &["one.a.svc.cluster.local"], "*", &[(far, 81), ("nowhere", 0)])
        .sidecar("a", "x", None, &[(0, &["./*"])]);
    assert_eq!(world.services_of("0"), ["a/one.a.svc.cluster.local:80"]);
    assert_eq!(world.services_of("all"), ["a/one.a.svc.cluster.local:80", "b/far.b.svc.cluster.local:81"]);
    assert_eq!(key(&world, far).as_deref(), Some("b/far.b.svc.cluster.local"));

    let wrong_port = World { virtual_services: Vec::new(), ..world.clone() }.routes(
        "a",
        "v",
        &["one.a.svc.cluster.local"],
        "*",
        &[(far, 9)],
    );
    let (found, diagnostics) = wrong_port.call::<ServiceSummaries>("services", &["all"]);
    assert_eq!((found.unwrap().services.len(), diagnostics.len()), (1, 1));
    assert_eq!(key(&wrong_port, far), None);

    let mut elsewhere = world;
    elsewhere.virtual_services[0].destinations[0].source_namespaces = words("b");
    assert_eq!(elsewhere.services_of("all").len(), 1);
}

#[test]
fn an_own_service_that_is_exported_to_nobody_is_still_inferred() {
    let hidden = "hidden.a.svc.cluster.local";
    let world =
        World::new("a").service("a", "hidden", &[80], "~").routes("b", "v", &["shop.example"], "*", &[(hidden, 0)]);
    assert_eq!(world.services_of("all"), ["a/hidden.a.svc.cluster.local:80"]);
    assert_eq!(key(&world, hidden).as_deref(), Some("a/hidden.a.svc.cluster.local"));
    assert_eq!(key(&world.from("b"), hidden), None);
    assert!(world.from("b").services_of("all").is_empty());
}

#[test]
fn the_best_namespace_of_an_inferred_host() {
    let host = "api.example.com";
    let mut world = World::new("z")
        .entry("b", host, &[80], "*")
        .entry("a", host, &[80], "*")
        .service("z", "one", &[80], "*")
        .routes("z", "v", &["one.z.svc.cluster.local"], "*", &[(host, 0)])
        .sidecar("z", "x", None, &[(0, &["./*"])]);
    assert_eq!(key(&world, host).as_deref(), Some("b/api.example.com"));
    world.flags.insert("PILOT_SIDECAR_PICK_BEST_SERVICE_NAMESPACE", "false");
    assert_eq!(key(&world, host).as_deref(), Some("a/api.example.com"));
}

/// A few namespaces and names, so that they collide often.
fn worlds() -> impl Strategy<Value = World> {
    let namespace = || prop::sample::select(vec!["a", "b", "root"]);
    let export_to = || prop::sample::select(vec!["*", "*", ".", "a", "b root", "~"]);
    let host = || {
        prop::sample::select(vec![
            "one.a.svc.cluster.local",
            "api.example.com",
            "*.example.com",
            "two.b.svc.cluster.local",
        ])
    };
    let ports = || prop::sample::subsequence(vec![80u32, 81, 90], 1..=3);
    let kubernetes = (namespace(), prop::sample::select(vec!["one", "two"]), ports(), export_to());
    let entry = (namespace(), host(), ports(), export_to());
    let routes = (
        namespace(),
        prop::collection::vec(host(), 1..2),
        export_to(),
        prop::collection::vec((host(), prop::sample::select(vec![0u32, 80, 81])), 0..3),
    );
    let imports = || {
        prop::sample::select(vec![
            "./*",
            "*/*",
            "a/*",
            "b/two.b.svc.cluster.local",
            "*/api.example.com",
            "*/*.example.com",
            "~a/*",
            "~/*.example.com",
            "./one.a.svc.cluster.local",
        ])
    };
    let listener = (prop::sample::select(vec![0u32, 80, 81]), prop::collection::vec(imports(), 1..4));
    let sidecar = (namespace(), prop::collection::vec(listener, 0..3));
    (
        prop::collection::vec(kubernetes, 0..4),
        prop::collection::vec(entry, 0..4),
        prop::collection::vec(routes, 0..3),
        prop::collection::vec(sidecar, 0..2),
        prop::sample::select(vec!["a", "b", "root", "z"]),
    )
        .prop_map(|(kubernetes, entries, routes, sidecars, namespace)| {
            let mut world = World::new(namespace);
            let mut names = std::collections::BTreeSet::new();
            for (namespace, name, ports, export_to) in kubernetes {
                if names.insert((namespace, format!("{name}.{namespace}.svc.cluster.local"))) {
                    world = world.service(namespace, name, &ports, export_to);
                }
            }
            for (namespace, host, ports, export_to) in entries {
                // Several sources of one key are the host's to join, so a key has one here.
                if names.insert((namespace, host.to_owned())) {
                    world = world.entry(namespace, host, &ports, export_to);
                }
            }
            for (n, (namespace, hosts, export_to, destinations)) in routes.into_iter().enumerate() {
                world = world.routes(namespace, &format!("v{n}"), &hosts, export_to, &destinations);
            }
            for (n, (namespace, listeners)) in sidecars.into_iter().enumerate() {
                let listeners: Vec<(u32, &[&str])> =
                    listeners.iter().map(|(port, hosts)| (*port, hosts.as_slice())).collect();
                world = world.sidecar(namespace, &format!("s{n}"), None, &listeners);
            }
            world
        })
}

proptest! {
    /// The narrow question and the whole list agree on what a host means.
    #[test]
    fn a_host_means_what_the_list_says(world in worlds()) {
        let listed = world.call::<ServiceSummaries>("services", &["all"]).0.unwrap().services;
        for host in ["one.a.svc.cluster.local", "two.b.svc.cluster.local", "api.example.com", "*.example.com"] {
            let expected = listed.iter().find(|s| s.host == host).map(|s| format!("{}/{}", s.namespace, s.host));
            prop_assert_eq!(key(&world, host), expected, "{}", host);
        }
    }

    /// Each host is listed once, and never without a port.
    #[test]
    fn the_union_has_each_host_once(world in worlds()) {
        let listed = world.call::<ServiceSummaries>("services", &["all"]).0.unwrap().services;
        let hosts: std::collections::BTreeSet<_> = listed.iter().map(|s| &s.host).collect();
        prop_assert_eq!(hosts.len(), listed.len());
        prop_assert!(listed.iter().all(|s| !s.ports.is_empty()));
    }

    /// All services that a listener imports are in the union, if not of another namespace then of this one.
    #[test]
    fn listeners_are_part_of_the_union(world in worlds()) {
        let listed = world.services_of("all");
        for service in world.services_of("0") {
            let host = service.split_once('/').unwrap().1.split(':').next().unwrap().to_owned();
            prop_assert!(listed.iter().any(|s| s.split_once('/').unwrap().1.starts_with(&host)));
        }
    }
}
