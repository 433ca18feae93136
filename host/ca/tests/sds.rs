//! Who gets which secret, in which form.

#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use serde_json::{Map, Value, json};
use trysail_ca::sds::SecretStore;
use trysail_model::{Identity, Object, ObjectRef, Proxy, Secrets as _};
use trysail_proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};

fn object(kind: &str, namespace: &str, name: &str, body: Value) -> Arc<Object> {
    Arc::new(Object {
        reference: ObjectRef::new(kind, namespace, name),
        api_version: "v1".into(),
        creation_nanos: 0,
        labels: Arc::default(),
        annotations: Arc::default(),
        body: body.into(),
        origin: "test".into(),
    })
}

fn secret(namespace: &str, name: &str, data: &[(&str, &str)]) -> Arc<Object> {
    let data: Map<String, Value> = data.iter().map(|(k, v)| ((*k).to_owned(), STANDARD.encode(v).into())).collect();
    object("Secret", namespace, name, json!({"data": data}))
}

fn apply(store: &SecretStore, objects: &[Arc<Object>]) -> bool {
    store.apply(objects.iter().map(|object| (&object.reference, Some(object))))
}

fn proxy(namespace: &str, metadata: Value) -> Proxy {
    let id = format!("router~10.0.0.1~gw.{namespace}~{namespace}.svc.cluster.local");
    Proxy::from_node(&id, metadata.as_object().cloned().unwrap_or_default(), Default::default()).unwrap()
}

fn ask(store: &SecretStore, identity: &Identity, proxy: &Proxy, name: &str) -> Option<secret::Type> {
    let names = [name.into()].into();
    let visible = store.visible(identity, proxy, &names);
    let [(name, version)] = &visible[..] else { return None };
    let body = store.body(identity, proxy, name, *version).unwrap();
    let secret = Secret::decode(body).unwrap();
    assert_eq!(secret.name, name.as_str());
    secret.r#type
}

fn role(namespace: &str, account: &str) -> Vec<Arc<Object>> {
    let rules = json!({"rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "watch", "list"]}]});
    let binding = json!({
        "roleRef": {"kind": "Role", "name": "sds"},
        "subjects": [{"kind": "ServiceAccount", "name": account}],
    });
    vec![object("Role", namespace, "sds", rules), object("RoleBinding", namespace, "sds", binding)]
}

fn store() -> SecretStore {
    let store = SecretStore::new(None);
    apply(&store, &role("edge", "gateway"));
    apply(
        &store,
        &[
            secret("edge", "tls", &[("tls.crt", "C"), ("tls.key", "K"), ("ca.crt", "R"), ("ca.crl", "L")]),
            secret("edge", "generic", &[("cert", "C2"), ("key", "K2"), ("cacert", "R2"), ("crl", "L2")]),
            secret("edge", "split", &[("tls.crt", "C3"), ("tls.key", "K3"), ("tls.ocsp-staple", "S3")]),
            secret("edge", "split-cacert", &[("cacert", "R3")]),
            secret("edge", "empty", &[("tls.crt", ""), ("tls.key", "")]),
            secret("edge", "other", &[("username", "CANARY-NAME"), ("password", "CANARY-PASSWORD")]),
            secret("shop", "tls", &[("tls.crt", "C4"), ("tls.key", "K4")]),
            object("ConfigMap", "shop", "roots", json!({"data": {"ca.crt": "R5"}})),
        ],
    );
    store
}

fn parts(secret: &secret::Type) -> Vec<String> {
    use trysail_proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
    let text = |source: &Option<DataSource>| match source.as_ref().and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes.clone()).unwrap(),
        _ => String::new(),
    };
    match secret {
        secret::Type::TlsCertificate(tls) => {
            vec![text(&tls.certificate_chain), text(&tls.private_key), text(&tls.ocsp_staple)]
        }
        secret::Type::ValidationContext(ca) => vec![text(&ca.trusted_ca), text(&ca.crl)],
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_shape_is_taken() {
    let (store, identity) = (store(), Identity::new("td", "edge", "gateway"));
    let proxy = proxy("edge", json!({}));
    let ask = |name: &str| ask(&store, &identity, &proxy, name).map(|secret| parts(&secret));
    let is = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
    assert_eq!(ask("kubernetes://tls"), is(&["C", "K", ""]));
    assert_eq!(ask("kubernetes://edge/tls"), is(&["C", "K", ""]));
    assert_eq!(ask("kubernetes://tls-cacert"), is(&["R", "L"]));
    assert_eq!(ask("kubernetes://generic"), is(&["C2", "K2", ""]));
    assert_eq!(ask("kubernetes://generic-cacert"), is(&["R2", "L2"]));
    assert_eq!(ask("kubernetes://split"), is(&["C3", "K3", "S3"]));
    assert_eq!(ask("kubernetes://split-cacert"), is(&["R3", ""]));
    assert_eq!(ask("configmap://shop/roots"), is(&["R5", ""]));
    assert_eq!(ask("configmap://shop/roots-cacert"), is(&["R5", ""]));
    for nothing in ["kubernetes://empty", "kubernetes://other", "kubernetes://missing", "invalid://", "default", "tls"]
    {
        assert_eq!(ask(nothing), None, "{nothing}");
    }
}

/// Release notes "verify-sa-for-gateway-secrets": the namespace alone is no reason to hand out a key.
#[test]
fn namespace_and_service_account_must_fit() {
    let store = store();
    let gateway = proxy("edge", json!({}));
    let other = Identity::new("td", "edge", "shop-keeper");
    assert!(ask(&store, &other, &gateway, "kubernetes://tls").is_none());
    assert!(ask(&store, &other, &gateway, "kubernetes://tls-cacert").is_some(), "roots are public");
    let identity = Identity::new("td", "edge", "gateway");
    assert!(ask(&store, &identity, &gateway, "kubernetes://shop/tls").is_none());
    assert!(ask(&store, &identity, &gateway, "kubernetes://shop/tls-cacert").is_none());
    // The same account name elsewhere is another account.
    let namesake = Identity::new("td", "shop", "gateway");
    assert!(ask(&store, &namesake, &proxy("shop", json!({})), "kubernetes://tls").is_none());
    // A proxy that says it is elsewhere is judged by its identity.
    assert!(ask(&store, &namesake, &gateway, "kubernetes://tls").is_none());
    // The binding goes, and with it the right, also for what was listed before.
    let names = ["kubernetes://tls".into()].into();
    let before = store.visible(&identity, &gateway, &names);
    let binding = ObjectRef::new("RoleBinding", "edge", "sds");
    assert!(store.apply([(&binding, None)]));
    assert!(store.body(&identity, &gateway, &before[0].0, before[0].1).is_none());
}

#[test]
fn rules_for_single_secrets_or_other_things_are_not_enough() {
    let identity = Identity::new("td", "edge", "gateway");
    let gateway = proxy("edge", json!({}));
    for rule in [
        json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}),
        json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}),
        json!({"apiGroups": ["apps"], "resources": ["secrets"], "verbs": ["list"]}),
        json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"], "resourceNames": ["tls"]}),
    ] {
        let store = store();
        apply(&store, &[object("Role", "edge", "sds", json!({"rules": [rule]}))]);
        assert!(ask(&store, &identity, &gateway, "kubernetes://tls").is_none(), "{rule}");
    }
}

#[test]
fn gateway_names_need_a_gateway_that_refers() {
    let store = store();
    let identity = Identity::new("td", "edge", "edge-istio");
    let made = proxy("edge", json!({"LABELS": {"gateway.networking.k8s.io/gateway-name": "edge"}}));
    let ask = |proxy: &Proxy, name: &str| ask(&store, &identity, proxy, name).is_some();
    assert!(!ask(&made, "kubernetes-gateway://edge/tls"));
    let listener = |namespace: &str, name: &str| json!({"spec": {"listeners": [{"tls": {"certificateRefs": [{"namespace": namespace, "name": name}]}}]}});
    apply(&store, &[object("KubernetesGateway", "edge", "edge", listener("edge", "tls"))]);
    assert!(ask(&made, "kubernetes-gateway://edge/tls"));
    assert!(!ask(&made, "kubernetes-gateway://edge/generic"), "nobody refers to it");
    assert!(!ask(
        &proxy("edge", json!({"LABELS": {"gateway.networking.k8s.io/gateway-name": "x"}})),
        "kubernetes-gateway://edge/tls"
    ));
    assert!(!ask(&proxy("edge", json!({})), "kubernetes-gateway://edge/tls"), "any pod of the namespace");

    apply(&store, &[object("KubernetesGateway", "edge", "edge", listener("shop", "tls"))]);
    assert!(!ask(&made, "kubernetes-gateway://shop/tls"), "another namespace has to allow it");
    let grant = |namespace: &str, name: Value| {
        object(
            "ReferenceGrant",
            "shop",
            "g",
            json!({"spec": {
                "from": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": namespace}],
                "to": [{"group": "", "kind": "Secret", "name": name}],
            }}),
        )
    };
    for (grant, allowed) in [
        (grant("edge", Value::Null), true),
        (grant("x", Value::Null), false),
        (grant("edge", "y".into()), false),
        (grant("edge", "tls".into()), true),
    ] {
        apply(&store, &[grant]);
        assert_eq!(ask(&made, "kubernetes-gateway://shop/tls"), allowed);
    }
}

#[test]
fn changes_move_versions() {
    let (store, identity) = (store(), Identity::new("td", "edge", "gateway"));
    let proxy = proxy("edge", json!({}));
    let names = ["kubernetes://tls".into(), "kubernetes://tls-cacert".into()].into();
    let before = store.visible(&identity, &proxy, &names);
    assert_eq!(before.len(), 2);
    let rotated = secret("edge", "tls", &[("tls.crt", "C9"), ("tls.key", "K9"), ("ca.crt", "R"), ("ca.crl", "L")]);
    assert!(apply(&store, std::slice::from_ref(&rotated)));
    assert!(!apply(&store, &[rotated]), "nothing moved");
    let after = store.visible(&identity, &proxy, &names);
    assert_ne!(before[0], after[0]);
    assert_eq!(before[1], after[1], "the roots did not move");
    assert!(store.body(&identity, &proxy, &before[0].0, before[0].1).is_none(), "a version that is no more");
}

#[test]
fn accelerators_get_the_key_in_their_own_way() {
    let (store, identity) = (store(), Identity::new("td", "edge", "gateway"));
    let tls = |metadata: Value| match ask(&store, &identity, &proxy("edge", metadata), "kubernetes://tls") {
        Some(secret::Type::TlsCertificate(tls)) => tls,
        other => panic!("{other:?}"),
    };
    let own = json!({"PROXY_CONFIG": {"privateKeyProvider": {"cryptomb": {"pollDelay": "0.010s", "fallback": true}}}});
    let provider = tls(own.clone()).private_key_provider.unwrap();
    assert_eq!((provider.provider_name.as_str(), provider.fallback), ("cryptomb", true));
    assert!(tls(own).private_key.is_none());
    assert!(store.configure(&json!({"defaultConfig": {"privateKeyProvider": {"qat": {}}}})));
    assert_eq!(tls(json!({})).private_key_provider.unwrap().provider_name, "qat");
    assert!(tls(json!({"PROXY_CONFIG": {"concurrency": 1}})).private_key.is_some(), "the proxy's own goes before it");
}

/// What a dump shows is the public part alone, wherever the key would stand.
#[test]
fn dumps_have_no_keys() {
    let (store, identity) = (store(), Identity::new("td", "edge", "gateway"));
    let provider = json!({"PROXY_CONFIG": {"privateKeyProvider": {"cryptomb": {"pollDelay": "0.01s"}}}});
    apply(&store, &[secret("edge", "canary", &[("tls.crt", "C"), ("tls.key", "CANARY-KEY")])]);
    for metadata in [json!({}), provider] {
        let proxy = proxy("edge", metadata);
        let shown = store.redacted(&identity, &proxy, &"kubernetes://canary".into()).unwrap();
        assert!(!String::from_utf8_lossy(&shown).contains("CANARY"), "{shown:?}");
        let shown = Secret::decode(shown).unwrap();
        assert_eq!(parts(&shown.r#type.unwrap()), ["C", "[redacted]", ""]);
    }
    let roots = store.redacted(&identity, &proxy("edge", json!({})), &"kubernetes://tls-cacert".into()).unwrap();
    assert_eq!(parts(&Secret::decode(roots).unwrap().r#type.unwrap()), ["R", "L"]);
    let stranger = Identity::new("td", "edge", "shop-keeper");
    assert!(store.redacted(&stranger, &proxy("edge", json!({})), &"kubernetes://tls".into()).is_none());
}
