//! Pages over HTTP.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::mesh::{ENDPOINT, entry, get, json_page, mesh, paths, recorded_page};
use crate::support::CLUSTER;

#[tokio::test(flavor = "multi_thread")]
async fn pages_look_as_in_istiod() {
    let mesh = mesh(&[]).await;
    let server = &mesh.server;
    let expected = json!([
        "adsz",
        "adsz?push=true",
        "ambientz",
        "authorizationz",
        "cachez",
        "cachez?clear=true",
        "cachez?sizes=true",
        "clusterz",
        "config_dump",
        "configz",
        "connections",
        "diagnostics",
        "ecdsz",
        "edsz",
        "endpointShardz",
        "endpointz",
        "inject",
        "instancesz",
        "krtz",
        "mcsz",
        "mesh",
        "ndsz",
        "networkz",
        "push_status",
        "pushcontext",
        "registryz",
        "resourcesz",
        "sidecarz",
        "status",
        "syncz",
        "telemetryz",
        "unused",
    ]);
    assert_eq!(json_page(server, "/debug/list"), expected);

    // Without ambient mode, and without an injector.
    assert_eq!(json_page(server, "/debug/ambientz"), json!({"workloads": null, "services": null, "policies": null}));
    assert_eq!(get(server.http, "/debug/inject").0, 404);
    let collections = json_page(server, "/debug/krtz");
    let (key, rule) =
        entry(&collections, "name", "DestinationRule")["state"]["outputs"].as_object().unwrap().iter().next().unwrap();
    assert_eq!(
        *key,
        format!("{}/{}", rule["metadata"]["namespace"].as_str().unwrap(), rule["metadata"]["name"].as_str().unwrap())
    );

    // Codes and words.
    let not_found = (404, Some("text/plain; charset=utf-8".to_owned()), "404 page not found\n".to_owned());
    for path in ["/", "/debug/nosuch", "/debug/pushStatus", "/debug/force_disconnect?proxyID=ghost"] {
        assert_eq!(get(server.monitoring, path), not_found, "{path}");
        assert_eq!(get(server.http, path), not_found, "{path}");
    }
    for path in ["/metrics", "/version"] {
        assert_eq!((get(server.monitoring, path).0, get(server.http, path).0), (200, 404), "{path}");
    }
    for page in ["config_dump", "edsz", "ndsz", "ecdsz", "sidecarz"] {
        let (status, _, body) = get(server.http, &format!("/debug/{page}"));
        assert_eq!((status, &*body), (400, "You must provide a proxyID in the query string\n"));
    }
    let (status, _, body) = get(server.http, "/debug/config_dump?proxyID=ghost.shop");
    let ghost = "Proxy not connected to this Pilot instance. It may be connected to another instance.\n";
    assert_eq!((status, &*body), (404, ghost));
    assert_eq!(get(server.monitoring, "/version").2, "1.31.0-trysail.0.1.0-Clean");

    // What there is in this mesh, with istiod's values where the recordings have the same objects.
    let services = json_page(server, "/debug/registryz");
    assert_eq!(entry(&services, "hostname", "reviews.shop.svc.cluster.local")["Attributes"]["Name"], "reviews");
    if let Some(recorded) = recorded_page("/debug/registryz") {
        for host in ["reviews.shop.svc.cluster.local", "productpage.shop.svc.cluster.local"] {
            let [mut ours, mut istiods] = [&services, &recorded].map(|list| entry(list, "hostname", host).clone());
            for own in ["creationTime", "ResourceVersion"] {
                for service in [&mut ours, &mut istiods] {
                    assert!(service[own].is_string());
                    service[own] = Value::Null;
                }
            }
            assert_eq!(ours, istiods, "{host}");
        }
    }
    let shards = json_page(server, "/debug/endpointz");
    assert_eq!(shards, json_page(server, "/debug/endpointShardz"));
    let shard = "/reviews.shop.svc.cluster.local/shop/Shards/Kubernetes~1Kubernetes/0";
    assert_eq!(shards.pointer(shard).unwrap()["Addresses"], json!(["10.244.0.11"]));
    if let Some(recorded) = recorded_page("/debug/endpointz") {
        let fields = |shards: &Value| -> Vec<String> {
            shards.pointer(shard).unwrap().as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(fields(&shards), fields(&recorded));
    }
    let instances = json_page(server, "/debug/instancesz");
    let port = json!({"name": "http", "port": 9080, "protocol": "HTTP", "TargetPort": 8080});
    assert_eq!(instances["reviews-v1.shop"][0]["Port"], port);
    assert_eq!(instances["ingressgateway-1.istio-system"], json!([]), "no service selects it");
    let sidecar = json_page(server, "/debug/sidecarz?proxyID=reviews-v1.shop");
    assert_eq!(sidecar["services"].as_array().unwrap().len(), 2, "{sidecar}");
    assert!(sidecar["servicesByHostname"]["reviews.shop.svc.cluster.local"].is_object());
    let status = json_page(server, "/debug/push_status");
    assert!(
        status["pilot_eds_no_instances"]["outbound|9080|v2|reviews.shop.svc.cluster.local"].is_object(),
        "{status}"
    );
    let policies = json_page(server, "/debug/authorizationz");
    let policies = &policies["authorization_policies"];
    assert_eq!(policies["namespace_to_policies"]["shop"][0]["name"], "reviews-allow");
    assert_eq!(policies["root_namespace"], "istio-system");
    assert_eq!(json_page(server, "/debug/clusterz")[0]["syncStatus"], "synced");
    assert_eq!(json_page(server, "/debug/mesh")["proxyInboundListenPort"], 15006);
    let configs = json_page(server, "/debug/configz");
    let kinds: Vec<&str> = configs.as_array().unwrap().iter().map(|c| c["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["AuthorizationPolicy", "DestinationRule"], "secrets are no configuration");
    for (path, nothing) in [("/debug/networkz", Value::Null), ("/debug/mcsz", Value::Null)] {
        assert_eq!(json_page(server, path), nothing, "{path}");
    }
    assert_eq!(json_page(server, "/debug/connections")["totalClients"], 3);
    let clients = json_page(server, "/debug/adsz");
    let watches = &clients["clients"][1]["watches"];
    assert_eq!(clients["clients"][1]["metadata"]["NAMESPACE"], "shop", "sorted by namespace");
    assert_eq!(watches[ENDPOINT], json!(["outbound|9080||reviews.shop.svc.cluster.local"]));
    assert_eq!(json_page(server, "/debug/adsz?proxyID=reviews")["totalClients"], 1);
    let sizes = json_page(server, "/debug/cachez?sizes=true");
    assert!(sizes["total"].as_str().unwrap().ends_with("kB"), "{sizes}");
    assert!(json_page(server, "/debug/cachez")[CLUSTER].as_array().unwrap().len() > 3);
    assert_eq!(get(server.http, "/debug/cachez?clear=true").2, "Cache cleared\n");

    // Every field of istiod's about a proxy is there.
    if let Some(recorded) = recorded_page("/debug/syncz") {
        let ours = json_page(server, "/debug/syncz");
        let fields = |page: &Value| -> BTreeSet<String> {
            let proxy = entry(page, "proxy", "reviews-v1.shop").as_object().unwrap();
            proxy.keys().filter(|key| !key.starts_with("route")).cloned().collect()
        };
        assert_eq!(fields(&ours), fields(&recorded));
        let cluster = &entry(&ours, "proxy", "reviews-v1.shop")["resources"][CLUSTER];
        let keys: Vec<&String> = cluster.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["sent", "acked", "sentTime"]);
    }
    let pushed = get(server.http, "/debug/adsz?push=true").2;
    assert_eq!(pushed, "Pushed to 3 servers\n");
    drop(mesh.proxies);
}

#[tokio::test(flavor = "multi_thread")]
async fn config_dumps_are_envoys_and_hold_no_key() {
    let mesh = mesh(&[]).await;
    let server = &mesh.server;
    let types = |dump: &Value| -> Vec<String> {
        let configs = dump["configs"].as_array().unwrap().iter();
        configs.map(|config| config["@type"].as_str().unwrap().rsplit('.').next().unwrap().to_owned()).collect()
    };
    let sidecar = json_page(server, "/debug/config_dump?proxyID=reviews-v1.shop");
    let parts = [
        "BootstrapConfigDump",
        "ClustersConfigDump",
        "ListenersConfigDump",
        "ScopedRoutesConfigDump",
        "RoutesConfigDump",
        "SecretsConfigDump",
        "EcdsConfigDump",
    ];
    assert_eq!(types(&sidecar), parts);
    let with_eds = json_page(server, "/debug/config_dump?proxyID=reviews-v1.shop&include_eds");
    assert_eq!(types(&with_eds)[2], "EndpointsConfigDump");
    let endpoints = &with_eds["configs"][2]["dynamicEndpointConfigs"][0]["endpointConfig"];
    assert_eq!(endpoints["clusterName"], "outbound|9080||reviews.shop.svc.cluster.local");
    let clusters = json_page(server, "/debug/config_dump?proxyID=reviews-v1.shop&types=cds");
    assert!(types(&clusters).iter().all(|of| of == "Cluster") && types(&clusters).len() > 3);
    let nothing = json_page(server, "/debug/config_dump?proxyID=reviews-v1.shop&types=nope");
    assert_eq!((nothing, json_page(server, "/debug/ndsz?proxyID=reviews-v1.shop")), (json!({}), json!({})));
    assert_eq!(types(&json_page(server, "/debug/edsz?proxyID=reviews-v1.shop")), ["ClusterLoadAssignment"]);
    if let Some(recorded) = recorded_page("/debug/config_dump?proxyID=reviews-v1.shop&include_eds") {
        // The frame is istiod's; what Envoy is configured with is compared elsewhere.
        let frame = |dump: &Value| -> BTreeSet<String> {
            let mut found = BTreeSet::new();
            paths(dump, "", &mut found);
            let depth = |path: &String| path.matches('.').count() <= 3 && !path.contains("..");
            let inside = [".cluster.", ".listener.", ".routeConfig.", ".endpointConfig.", "dynamicRouteConfigs"];
            found.retain(|path| depth(path) && !inside.iter().any(|part| path.contains(part)));
            found
        };
        let (ours, istiods) = (frame(&with_eds), frame(&recorded));
        assert!(ours.is_subset(&istiods) || !istiods.contains(".configs[].dynamicListeners"), "{ours:?} {istiods:?}");
    }

    let gateway = get(server.monitoring, "/debug/config_dump?proxyID=ingressgateway-1").2;
    let secrets = serde_json::from_str::<Value>(&gateway).unwrap()["configs"][5]["dynamicActiveSecrets"].clone();
    assert_eq!(secrets[0]["secret"]["name"], "kubernetes://shop-cert");
    let certificate = &secrets[0]["secret"]["tlsCertificate"];
    assert_eq!(certificate["privateKey"]["inlineBytes"], "W3JlZGFjdGVkXQ==");
    assert!(certificate["certificateChain"]["inlineBytes"].is_string(), "what is public is shown");
    // In no form, on no page.
    let list = json_page(server, "/debug/list");
    for name in list.as_array().unwrap().iter().map(|name| name.as_str().unwrap()) {
        let separator = if name.contains('?') { '&' } else { '?' };
        let (_, _, body) = get(server.monitoring, &format!("/debug/{name}{separator}proxyID=ingressgateway-1"));
        // Base64 of the key, at each of the three places where it may begin.
        for canary in ["CANARY", "Q0FOQVJZ", "NBTkFSW", "DQU5BUl"] {
            assert!(!body.contains(canary), "{name} shows a key");
        }
    }
    drop(mesh.proxies);
}
