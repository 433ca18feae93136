//! Debug types of the streams, and who may ask what, there and over HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Endpoint;
use trysail::pages::{Access, Viewer};
use trysail_ca::authenticate::{Authenticator, Authenticators, Oidc};
use trysail_ca::trust::Trust;
use trysail_proto::envoy::config::core::v3::Node;
use trysail_proto::envoy::service::discovery::v3::DiscoveryRequest;
use trysail_tests::agent::Issuer;

use crate::mesh::{ENDPOINT, LISTENER, PAGE, SYNC, asker, json_page, mesh, paths, question, recorded, with};
use crate::support::{CLUSTER, Stream, ask};

/// `ads/debug-types`, and what `istioctl/` asks: proxy-status, version, x internal-debug.
#[tokio::test(flavor = "multi_thread")]
async fn streams_answer_debug_types() {
    let mesh = mesh(&[]).await;
    let admin = |name: &'static str| question(&mesh, "istio-system", "ztunnel", name);
    for page in ["registryz", "mesh", "config_dump?proxyID=reviews-v1.shop", "edsz?proxyID=reviews-v1.shop", "list"] {
        let over_http = json_page(&mesh.server, &format!("/debug/{page}"));
        let over_xds: Value = serde_json::from_str(&admin(page).await.unwrap()).unwrap();
        assert_eq!(over_xds, over_http, "{page}");
    }
    assert_eq!(admin("nosuch").await.unwrap(), "404 page not found\n");
    let ghost = "Proxy not connected to this Pilot instance. It may be connected to another instance.\n";
    assert_eq!(admin("config_dump?proxyID=nothere.shop").await.unwrap(), ghost);
    let connections: Value = serde_json::from_str(&admin("connections").await.unwrap()).unwrap();
    assert_eq!(connections["totalClients"], 4, "whoever asks is a client too");

    // Names.
    let token = mesh.issuer.token("istio-system", "ztunnel").unwrap();
    for names in [&[][..], &["syncz", "adsz"]] {
        let request = ask(asker("istio-system", "ztunnel"), PAGE, names);
        let mut stream = Stream::open(&mesh.channel, Some(&token), request).await.unwrap();
        let status = stream.next().await.unwrap_err();
        let words = "exactly one debug request is required";
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, words));
    }

    // proxy-status and version.
    let request = ask(asker("istio-system", "ztunnel"), SYNC, &[]);
    let mut stream = Stream::open(&mesh.channel, Some(&token), request).await.unwrap();
    let answer = stream.next().await.unwrap();
    let identifier: Value = serde_json::from_str(&answer.control_plane.clone().unwrap().identifier).unwrap();
    assert_eq!((&identifier["Component"], &identifier["Info"]["version"]), (&json!("istiod"), &json!("1.31.0")));
    let configs: Vec<Value> = answer.resources.iter().map(client_config).collect();
    let ids: Vec<&str> = configs.iter().map(|config| config["node"]["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["ingressgateway-1.istio-system", "productpage-v1.shop", "reviews-v1.shop"]);
    let reviews = &configs[2];
    let metadata = json!({"CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": "1.31.0", "NAMESPACE": "shop"});
    assert_eq!(reviews["node"]["metadata"], metadata);
    let states: Vec<(&str, &str)> = reviews["genericXdsConfigs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| (of["typeUrl"].as_str().unwrap(), of["configStatus"].as_str().unwrap()))
        .collect();
    assert_eq!(states, [(CLUSTER, "SYNCED"), (ENDPOINT, "SYNCED"), (LISTENER, "SYNCED")]);
    if let Some(recorded) = recorded("ads/debug-types/debug-old-syncz.json") {
        let answer = recorded["events"].as_array().unwrap().iter().find(|event| event["dir"] == "<-").unwrap();
        let istiods = &answer["resources"].as_array().unwrap()[0]["resource"];
        let shape = |config: &Value| {
            let mut found = BTreeSet::new();
            paths(config, "", &mut found);
            found.remove(".@type");
            found
        };
        assert_eq!(shape(reviews), shape(istiods));
    }
    // An ACK is answered too, as in istiod; and what does not exist is answered with nothing.
    stream.acknowledge(&answer, &[]).await;
    assert_eq!(stream.next().await.unwrap().resources.len(), 3);
    let dump = DiscoveryRequest {
        type_url: "istio.io/debug/config_dump".into(),
        resource_names: vec!["reviews-v1.shop".into()],
        ..Default::default()
    };
    stream.requests.send(dump).await.unwrap();
    let dump = stream.next().await.unwrap();
    let types: Vec<&str> = dump.resources.iter().map(|any| any.type_url.rsplit('.').next().unwrap()).collect();
    assert_eq!((types.len(), types[0], types[1]), (7, "BootstrapConfigDump", "ClustersConfigDump"));
    assert!(dump.resources[1].value.len() > 1000, "the clusters are in it");
    for other in ["istio.io/connect", "istio.io/debug/registryz"] {
        stream.requests.send(DiscoveryRequest { type_url: other.into(), ..Default::default() }).await.unwrap();
        let answer = stream.next().await.unwrap();
        assert_eq!((answer.type_url.as_str(), answer.resources.len()), (other, 0));
    }
    drop(mesh.proxies);
}

/// A `ClientConfig` as JSON with protobuf's JSON names.
fn client_config(any: &trysail_proto::prost_types::Any) -> Value {
    assert_eq!(any.type_url, "type.googleapis.com/envoy.service.status.v3.ClientConfig");
    trysail_codec::json::to_json_named(&any.type_url, &any.value, trysail_codec::json::Names::Json).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_31838_other_namespaces_see_their_own_proxies() {
    let mesh = mesh(&[]).await;
    let shop = |name: &'static str| question(&mesh, "shop", "productpage", name);
    for page in ["syncz", "adsz", "registryz", "mesh", "connections", "nosuch", "list"] {
        let words =
            "the debug info is not available for current identity: \"spiffe://cluster.local/ns/shop/sa/productpage\"";
        assert_eq!(shop(page).await.unwrap_err(), (Code::PermissionDenied, words.to_owned()), "{page}");
    }
    let own = shop("config_dump?proxyID=reviews-v1.shop").await.unwrap();
    assert!(own.contains("ClustersConfigDump"));
    assert!(shop("edsz?proxyID=reviews-v1.shop").await.unwrap().contains("10.244.0.11"));
    // istiod shows any proxy's.
    let other = shop("config_dump?proxyID=ingressgateway-1").await.unwrap();
    assert!(other.starts_with("Proxy not connected"), "{other}");
    let token = mesh.issuer.token("shop", "productpage").unwrap();
    let request = ask(asker("shop", "productpage"), SYNC, &[]);
    let mut stream = Stream::open(&mesh.channel, Some(&token), request).await.unwrap();
    let ids: Vec<Value> =
        stream.next().await.unwrap().resources.iter().map(|any| client_config(any)["node"]["id"].clone()).collect();
    assert_eq!(ids, ["productpage-v1.shop", "reviews-v1.shop"]);

    // Over plaintext nobody is known.
    let plain = Endpoint::from_shared(format!("http://{}", mesh.server.plain)).unwrap().connect().await.unwrap();
    for type_url in [PAGE, SYNC, "istio.io/connect"] {
        let request = ask(asker("istio-system", "ztunnel"), type_url, &["syncz"]);
        let mut stream = Stream::open(&plain, None, request).await.unwrap();
        let status = stream.next().await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "authentication required"));
    }
    // Who does not say which account it is may ask, and gets no configuration.
    let nameless = with(Node { metadata: None, ..asker("shop", "") }, &[("NAMESPACE", json!("shop"))]);
    let mut stream = Stream::open(&mesh.channel, Some(&token), ask(nameless, SYNC, &[])).await.unwrap();
    assert_eq!(stream.next().await.unwrap().resources.len(), 2);
    stream.requests.send(DiscoveryRequest { type_url: CLUSTER.into(), ..Default::default() }).await.unwrap();
    assert_eq!(stream.next().await.unwrap_err().code(), Code::PermissionDenied);
    drop(mesh.proxies);
}

/// `15014 from a non-loopback address`: who may read what over HTTP.
#[tokio::test]
async fn cve_2026_31838_http_asks_for_an_identity() {
    let issuer = Issuer::new().unwrap();
    let oidc = Oidc::new(&issuer.rule(), &["istio-ca".to_owned()], Trust::of("cluster.local").fixed()).unwrap();
    let authenticators =
        Authenticators { list: vec![std::sync::Arc::new(oidc) as std::sync::Arc<dyn Authenticator>], trust: None };
    let access = Access::read(&BTreeMap::new(), "istio-system");
    let peer: SocketAddr = "10.244.0.12:4711".parse().unwrap();
    let judge = async |token: Option<String>, page: &str| {
        let mut headers = HeaderMap::new();
        headers.extend(token.map(|token| (AUTHORIZATION, HeaderValue::try_from(format!("Bearer {token}")).unwrap())));
        match access.caller(&authenticators, peer, &headers).await {
            Ok(caller) => {
                let viewer = caller.map_or(Viewer::All, |identity| access.of(&identity, "istio-system"));
                access.admit(viewer, page).err().unwrap_or(StatusCode::OK)
            }
            Err(status) => status,
        }
        .as_u16()
    };
    let token = |caller: &str| match caller {
        "no token" => None,
        "garbage token" => Some("garbage".to_owned()),
        _ => {
            let (namespace, account) = caller.rsplit(' ').next().unwrap().split_once('/').unwrap();
            Some(issuer.token(namespace, account).unwrap())
        }
    };
    let mut n = 0;
    let own = [
        ("no token", "syncz", 401),
        ("garbage token", "edsz", 401),
        ("token of shop/productpage", "syncz", 403),
        ("token of shop/productpage", "edsz", 200),
        ("token of istio-system/ztunnel", "registryz", 200),
    ];
    for (caller, page, expected) in own {
        assert_eq!(judge(token(caller), page).await, expected, "{caller} {page}");
    }
    let recordings = recorded("ports/endpoints.json").map(|all| all["15014 from a non-loopback address"].clone());
    for request in recordings.iter().flat_map(|list| list.as_array().unwrap()) {
        let (caller, path) = (request["caller"].as_str().unwrap(), request["path"].as_str().unwrap());
        let Some(page) = path.strip_prefix("/debug/").map(|page| page.split('?').next().unwrap()) else { continue };
        // Go's profiles are not here; what is not there is not found, whoever asks.
        if page.starts_with("pprof") || page == "nosuch" {
            continue;
        }
        assert_eq!(u64::from(judge(token(caller), page).await), request["status"].as_u64().unwrap(), "{caller} {path}");
        n += 1;
    }
    assert!(recordings.is_none() || n >= 20, "{n} requests compared");
}
