//! The Helm chart: what it makes of values, which values it refuses, whether its rights are those that the code needs, and how
//! Trysail stands beside an istiod and in its place, on a real API server.
//!
//! Helm is built with Go on first use; where it cannot be had, the suite says so and is skipped.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};
use trysail::duties::{CONDITIONS_WRITTEN, LOCKS, PUBLISHED, STATUS_WRITTEN};
use trysail::source::cluster_kinds;
use trysail_ca::roots::{PLUGGED_NAME, SECRET_NAME};
use trysail_discovery::kinds;
use trysail_kube::trust_bundle;
use trysail_tests::ads::{CLUSTER, Proxy, differences};
use trysail_tests::agent::{self, Certified};
use trysail_tests::cluster::{self, ApiServer, Cluster, Helm};
use trysail_tests::replica::Replica;
use trysail_tests::sds::Authority;
use trysail_tests::{aloud, control_plane, eventually, quiet, workspace};

#[path = "support/definitions.rs"]
mod definitions;
#[path = "support/pod.rs"]
mod pod;

use pod::{items, text};

const NAMESPACE: &str = "istio-system";
const PATIENCE: Duration = Duration::from_secs(60);
const QUIET: Duration = Duration::from_millis(700);

fn helm(test: &str) -> Option<&'static Helm> {
    static HELM: OnceLock<Result<Helm, String>> = OnceLock::new();
    match HELM.get_or_init(|| Helm::find(aloud).map_err(|error| format!("{error:#}"))) {
        Ok(helm) => Some(helm),
        Err(error) => {
            eprintln!("{test}: skipped: {error}");
            None
        }
    }
}

fn chart() -> PathBuf {
    workspace().join("examples/helm/trysail")
}

/// Values with what every installation has to say.
fn values(more: Value) -> Value {
    let mut values = json!({"hub": "example.org/mesh"});
    values.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    values
}

fn rendered(helm: &Helm, more: Value) -> Vec<Value> {
    helm.template(&chart(), NAMESPACE, &values(more)).unwrap()
}

fn names(objects: &[Value]) -> BTreeSet<String> {
    objects.iter().map(|object| format!("{} {}", text(object, "/kind"), text(object, "/metadata/name"))).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind} in {:?}", names(objects)))
}

/// Does a selector choose what has these labels?
fn chooses(selector: &Value, labels: &Value) -> bool {
    selector.as_object().unwrap().iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[test]
fn contradictions_and_unknown_values_are_refused() {
    let Some(helm) = helm("contradictions_and_unknown_values_are_refused") else { return };
    let folder = chart().display().to_string();
    let lint = helm.with_values(&["lint", &folder, "--strict"], NAMESPACE, &values(json!({"revision": "canary"})));
    helm.run(None, &lint.unwrap()).unwrap();
    // An istiod's values, and one of each mistake, with what the message must name.
    for (mistake, named) in [
        (json!({}), "revision: must be set"),
        (json!({"revision": "canary", "hub": ""}), "hub: must be set"),
        (json!({"revision": "canary", "takeOver": true}), "revision: canary and takeOver exclude each other"),
        (json!({"takeOver": true, "alone": true}), "takeOver and alone"),
        (json!({"revision": "default"}), "default is the name of the revision without a name"),
        (json!({"revision": "canary", "replicaCuont": 3}), "'replicaCuont' not allowed"),
        (json!({"revision": "canary", "replicaCount": "3"}), "/replicaCount"),
        (json!({"revision": "canary", "global": {"proxy": {"image": "x"}}}), "/global/proxy"),
        (json!({"revision": "canary", "sidecarInjectorWebhook": {}}), "'sidecarInjectorWebhook' not allowed"),
        (json!({"revision": "canary", "env": {"A": ["x"]}}), "/env/A"),
    ] {
        let refused = helm.template(&chart(), NAMESPACE, &values(mistake.clone()));
        let error = format!("{:#}", refused.expect_err(&mistake.to_string()));
        assert!(error.contains(named), "{mistake}: {error}");
    }
}

#[test]
fn a_revision_has_names_of_its_own() {
    let Some(helm) = helm("a_revision_has_names_of_its_own") else { return };
    let objects = rendered(helm, json!({"revision": "canary", "autoscaleMin": 2, "revisionTags": ["prod"]}));
    let wanted = [
        "ClusterRole istiod-clusterrole-canary-istio-system",
        "ClusterRoleBinding istiod-clusterrole-canary-istio-system",
        "ConfigMap istio-canary",
        "Deployment istiod-canary",
        "HorizontalPodAutoscaler istiod-canary",
        "PodDisruptionBudget istiod-canary",
        "Role istiod-canary",
        "RoleBinding istiod-canary",
        "Service istiod-canary",
        "Service istiod-revision-tag-prod",
        "ServiceAccount istiod-canary",
    ];
    assert_eq!(names(&objects), wanted.map(str::to_owned).into());
    let labels = of_kind(&objects, "Deployment").pointer("/spec/template/metadata/labels").unwrap();
    let istiods = json!({"app": "istiod", "istio": "pilot", "istio.io/rev": "default"});
    for pointer in ["/spec/selector", "/spec/selector/matchLabels"] {
        for selector in objects.iter().filter_map(|object| object.pointer(pointer)) {
            if selector.get("matchLabels").is_none() {
                assert!(chooses(selector, labels) && !chooses(selector, &istiods), "{selector}");
            }
        }
    }
    let ports = |service: &Value| -> Vec<(u64, Option<u64>)> {
        items(service, "/spec/ports")
            .iter()
            .map(|port| (port["port"].as_u64().unwrap(), port["targetPort"].as_u64()))
            .collect()
    };
    for service in objects.iter().filter(|object| object["kind"] == "Service") {
        assert_eq!(ports(service), [(15010, None), (15012, None), (443, Some(15017)), (15014, None)]);
    }

    let container = of_kind(&objects, "Deployment").pointer("/spec/template/spec/containers/0").unwrap();
    for (probe, path) in [("livenessProbe", "/healthz/live"), ("readinessProbe", "/healthz/ready")] {
        let wanted = json!({"httpGet": {"path": path, "port": 8080},
            "initialDelaySeconds": 5, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3});
        assert_eq!(container[probe], wanted);
    }
    let wanted = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
        "capabilities": {"drop": ["ALL"]}});
    assert_eq!(container["securityContext"], wanted);
    assert_eq!(text(container, "/image"), format!("example.org/mesh/trysail:{}", env!("CARGO_PKG_VERSION")));

    // One replica needs no budget: nodes could not be drained.
    let single = rendered(helm, json!({"revision": "canary"}));
    assert!(!names(&single).iter().any(|name| name.starts_with("PodDisruptionBudget")));
    // Without an istiod it has istiod's names.
    let alone = names(&rendered(helm, json!({"alone": true})));
    assert!(alone.is_superset(&["Deployment istiod", "Service istiod", "ConfigMap istio"].map(str::to_owned).into()));
    // In its place it has none of them.
    let beside = rendered(helm, json!({"takeOver": true, "autoscaleMin": 2}));
    assert!(names(&beside).is_disjoint(&alone), "{:?}", names(&beside));
    assert!(!beside.iter().any(|object| matches!(text(object, "/kind"), "Service" | "ConfigMap" | "Secret")));
    for (scope, wide) in [("cluster", true), ("namespace", false)] {
        let part = rendered(helm, json!({"revision": "canary", "global": {"resourceScope": scope}}));
        let is_wide = |object: &Value| object["metadata"].get("namespace").is_none();
        assert!(!part.is_empty() && part.iter().all(|object| is_wide(object) == wide), "{scope}: {:?}", names(&part));
    }
}

#[test]
fn istiods_values_mean_what_they_mean() {
    let Some(helm) = helm("istiods_values_mean_what_they_mean") else { return };
    let spread = json!([{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]);
    let objects = rendered(
        helm,
        json!({
            "revision": "canary", "hub": "", "tag": "2", "replicaCount": 3, "autoscaleEnabled": false,
            "resources": {"limits": {"memory": "4Gi"}}, "nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}}, "topologySpreadConstraints": spread, "podAnnotations": {"a": "b"}, "podLabels": {"c": "d"},
            "serviceAnnotations": {"e": "f"}, "env": {"PILOT_HTTP10": true, "PILOT_MAX_REQUESTS_PER_SECOND": 1_000_000, "ROOT_CA_DIR": "/elsewhere"},
            "traceSampling": 2.5, "extraContainerArgs": ["--plugins=/plugins"], "volumes": [{"name": "p", "emptyDir": {}}],
            "volumeMounts": [{"name": "p", "mountPath": "/plugins"}], "pdb": {"maxUnavailable": "50%"}, "seccompProfile": {"type": "RuntimeDefault"},
            "meshConfig": {"trustDomain": "td.example", "accessLogFile": "/dev/stdout"}, "telemetry": {"enabled": false},
            "global": {"hub": "global.example", "imagePullPolicy": "Always", "imagePullSecrets": ["pull"], "priorityClassName": "critical",
                "logging": {"level": "ads:debug"}, "logAsJson": true, "meshID": "mesh1", "meshNetworks": {"net": {}},
                "multiCluster": {"clusterName": "c1"}, "proxy": {"clusterDomain": "x.local"}, "networkPolicy": {"enabled": true}},
        }),
    );
    let deployment = of_kind(&objects, "Deployment");
    assert_eq!(deployment["spec"]["replicas"], 3);
    assert!(!names(&objects).iter().any(|name| name.starts_with("HorizontalPodAutoscaler")));
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["nodeSelector"], json!({"disk": "ssd"}));
    assert_eq!(pod["tolerations"][1], json!({"key": "gpu", "operator": "Exists"}));
    assert_eq!((&pod["affinity"], &pod["topologySpreadConstraints"]), (&json!({"nodeAffinity": {}}), &spread));
    assert_eq!(pod["priorityClassName"], "critical");
    assert_eq!(text(deployment, "/spec/template/metadata/annotations/a"), "b");
    assert_eq!(text(deployment, "/spec/template/metadata/labels/c"), "d");
    let container = &pod["containers"][0];
    assert_eq!(
        (&container["image"], &container["imagePullPolicy"]),
        (&json!("global.example/trysail:2"), &json!("Always"))
    );
    assert_eq!(
        container["args"],
        json!(["discovery", "--log_output_level=ads:debug", "--log_as_json", "--domain=x.local", "--plugins=/plugins"])
    );
    let env: BTreeMap<&str, &str> =
        items(container, "/env").iter().map(|v| (text(v, "/name"), text(v, "/value"))).collect();
    assert_eq!(env.len(), items(container, "/env").len(), "no variable twice: {env:?}");
    for (name, value) in [
        ("PILOT_HTTP10", "true"),
        ("PILOT_MAX_REQUESTS_PER_SECOND", "1000000"),
        ("ROOT_CA_DIR", "/elsewhere"),
        ("PILOT_TRACE_SAMPLING", "2.5"),
        ("CLUSTER_ID", "c1"),
        ("REVISION", "canary"),
    ] {
        assert_eq!(env.get(name), Some(&value), "{name}");
    }
    assert_eq!(container["resources"]["limits"], json!({"memory": "4Gi"}));
    assert_eq!(text(container, "/securityContext/seccompProfile/type"), "RuntimeDefault");
    assert!(items(container, "/volumeMounts").iter().any(|mount| mount["mountPath"] == "/plugins"));
    assert_eq!(text(of_kind(&objects, "Service"), "/metadata/annotations/e"), "f");
    let budget = of_kind(&objects, "PodDisruptionBudget");
    assert_eq!((&budget["spec"]["maxUnavailable"], budget["spec"].get("minAvailable")), (&json!("50%"), None));
    assert_eq!(of_kind(&objects, "ServiceAccount")["imagePullSecrets"], json!([{"name": "pull"}]));
    assert!(names(&objects).contains("NetworkPolicy istiod-canary"));
    let yaml = |name: &str| -> Value {
        serde_yaml_ng::from_str(text(of_kind(&objects, "ConfigMap"), &format!("/data/{name}"))).unwrap()
    };
    let wanted = json!({"trustDomain": "td.example", "rootNamespace": "istio-system", "enablePrometheusMerge": true,
        "accessLogFile": "/dev/stdout", "defaultConfig": {"meshId": "mesh1", "discoveryAddress": "istiod-canary.istio-system.svc:15012"}});
    assert_eq!((yaml("mesh"), yaml("meshNetworks")), (wanted, json!({"networks": {"net": {}}})));
}

#[test]
fn the_image_is_built_with_what_the_workspace_names() {
    let text = |path: &str| std::fs::read_to_string(workspace().join(path)).unwrap();
    let (recipe, toolchain) = (text("examples/container/Containerfile"), text("rust-toolchain.toml"));
    let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    assert!(recipe.contains(&format!("rust:{channel}-alpine\n")), "the builder has Rust {channel}");
    let lines = || recipe.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    // Stages are named before they are used, and the last one starts from nothing and runs as nobody in particular.
    let mut stages = BTreeSet::new();
    for line in lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["FROM", from, "AS", stage] => {
                assert!(from.starts_with("${") || stages.contains(from), "{line}");
                stages.insert(stage);
            }
            ["COPY", from, ..] if from.starts_with("--from=") => {
                assert!(stages.contains(&from["--from=".len()..]), "{line}");
            }
            _ => {}
        }
    }
    let last: Vec<&str> = lines().skip_while(|line| *line != "FROM scratch").collect();
    assert!(last.contains(&"USER 1337:1337") && last.contains(&r#"ENTRYPOINT ["/usr/local/bin/trysail"]"#), "{last:?}");
    // What is installed or compiled is what a lock file or a version names.
    for line in lines().filter(|line| line.contains("cargo build") || line.contains("cargo install")) {
        assert!(line.contains("--locked") && (line.contains("cargo build") || line.contains("--version ")), "{line}");
    }
}

/// `GROUP/RESOURCE VERB`, or `GROUP/RESOURCE/NAME VERB`, of every rule.
fn rights(role: &Value) -> BTreeSet<String> {
    let list = |rule: &Value, field: &str| -> Vec<String> {
        items(rule, field).iter().map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    let mut rights = BTreeSet::new();
    for rule in items(role, "/rules") {
        let mut names: Vec<String> = list(rule, "/resourceNames").iter().map(|name| format!("/{name}")).collect();
        if names.is_empty() {
            names.push(String::new());
        }
        for (group, resource) in list(rule, "/apiGroups")
            .iter()
            .flat_map(|g| list(rule, "/resources").into_iter().map(move |r| (g.clone(), r)))
        {
            for verb in list(rule, "/verbs") {
                rights.extend(names.iter().map(|name| format!("{group}/{resource}{name} {verb}")));
            }
        }
    }
    rights
}

#[test]
fn rights_are_those_that_the_code_needs() {
    let Some(helm) = helm("rights_are_those_that_the_code_needs") else { return };
    let mut everywhere: BTreeSet<String> = BTreeSet::new();
    for kind in cluster_kinds().iter().copied().chain(["CustomResourceDefinition"]) {
        let kind = kinds::named(kind).unwrap();
        everywhere.extend(["list", "watch"].map(|verb| format!("{}/{} {verb}", kind.group, kind.plural())));
    }
    // What is asked (host/kube/src/reviews.rs) and published (publish.rs).
    everywhere.insert("authentication.k8s.io/tokenreviews create".into());
    everywhere.insert("authorization.k8s.io/subjectaccessreviews create".into());
    everywhere.insert("/configmaps create".into());
    everywhere.extend(PUBLISHED.map(|name| format!("/configmaps/{name} patch")));
    // Whose status is written (addresses.rs).
    everywhere.extend(STATUS_WRITTEN.map(|(group, plural)| format!("{group}/{plural}/status patch")));
    for (group, plural) in CONDITIONS_WRITTEN {
        everywhere.extend(["get", "patch"].map(|verb| format!("{group}/{plural}/status {verb}")));
    }
    // Locks (election.rs) and the key (kept.rs).
    let mut here: BTreeSet<String> = BTreeSet::from(["/secrets create".into()]);
    here.extend(["get", "update"].map(|verb| format!("/secrets/{SECRET_NAME} {verb}")));
    here.extend(LOCKS.iter().flat_map(|lock| ["get", "update"].map(|verb| format!("/configmaps/{lock} {verb}"))));
    for mode in [json!({"revision": "canary"}), json!({"takeOver": true}), json!({"alone": true})] {
        let objects = rendered(helm, mode);
        for (kind, needed) in [("ClusterRole", &everywhere), ("Role", &here)] {
            let given = rights(of_kind(&objects, kind));
            let [missing, too_much] = [needed - &given, &given - needed];
            assert!(
                missing.is_empty() && too_much.is_empty(),
                "examples/helm/trysail/templates/rbac.yaml, {kind}: missing {missing:?}, not needed {too_much:?}"
            );
        }
    }
    let named = rendered(helm, json!({"revision": "canary", "global": {"trustBundleName": "roots"}}));
    assert!(rights(of_kind(&named, "ClusterRole")).contains("/configmaps/roots patch"));

    // What else is asked for by variables (host/kube/src/signing.rs, trust_bundle.rs; host/app/src/ca_secret.rs).
    let env = json!({"EXTERNAL_CA": "ISTIOD_RA_KUBERNETES_API", "K8S_SIGNER": "a.example/b", "CERT_SIGNER_DOMAIN": "c.example",
        "ENABLE_CLUSTER_TRUST_BUNDLE_API": "true", "USE_CACERTS_FOR_SELF_SIGNED_CA": true});
    let more = rendered(helm, json!({"revision": "canary", "env": env}));
    let group = "certificates.k8s.io";
    let bundles = [
        format!("clustertrustbundles/{} get", trust_bundle::NAME),
        format!("clustertrustbundles/{} update", trust_bundle::NAME),
    ];
    let needed = ["create", "list", "watch"].map(|verb| format!("clustertrustbundles {verb}"));
    let requests = ["create", "delete", "list", "watch"].map(|verb| format!("certificatesigningrequests {verb}"));
    let signers = [
        format!("signers/{} attest", trust_bundle::SIGNER),
        "signers/a.example/b approve".into(),
        "signers/c.example/* approve".into(),
    ];
    let all = bundles.into_iter().chain(needed).chain(requests).chain(signers);
    let all =
        all.chain(["certificatesigningrequests/approval update".to_owned()]).map(|right| format!("{group}/{right}"));
    assert_eq!(&rights(of_kind(&more, "ClusterRole")) - &everywhere, all.collect());
    let keys = ["get", "update"].map(|verb| format!("/secrets/{PLUGGED_NAME} {verb}"));
    assert_eq!(&rights(of_kind(&more, "Role")) - &here, keys.into());
}

/// What an installation of istiod has written, and has to find again.
fn istiod(authority: &Authority) -> Vec<Value> {
    let labels = json!({"app": "istiod", "istio": "pilot", "istio.io/rev": "default"});
    let metadata =
        |name: &str| json!({"namespace": NAMESPACE, "name": name, "labels": {"app.kubernetes.io/managed-by": "Helm"}});
    let webhook = json!({"name": "injector.istio.io", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": {"service": {"namespace": NAMESPACE, "name": "istiod", "path": "/inject"}},
        "namespaceSelector": {"matchLabels": {"istio-injection": "enabled"}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}]});
    let mesh =
        "accessLogFile: /dev/the-istiod-before\ndefaultConfig:\n  discoveryAddress: istiod.istio-system.svc:15012\n";
    vec![
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("istio"), "data": {"mesh": mesh, "meshNetworks": "networks: {}"}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("istio-ca-root-cert"), "data": {"root-cert.pem": authority.root_pem()}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("istio-sidecar-injector"), "data": {"config": "{}", "values": "{}"}}),
        json!({"apiVersion": "v1", "kind": "Secret", "type": "istio.io/ca-root", "metadata": metadata("istio-ca-secret"), "stringData": {
            "ca-cert.pem": authority.root_pem(), "ca-key.pem": authority.key_pem(), "root-cert.pem": authority.root_pem(), "cert-chain.pem": "", "key.pem": ""}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata("istiod")}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata("istiod"), "spec": {"selector": {"app": "istiod", "istio": "pilot"},
            "ports": [{"name": "https-dns", "port": 15012}, {"name": "https-webhook", "port": 443, "targetPort": 15017}]}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata("istiod"), "spec": {"replicas": 1,
            "selector": {"matchLabels": {"istio": "pilot"}}, "template": {"metadata": {"labels": labels},
            "spec": {"serviceAccountName": "istiod", "containers": [{"name": "discovery", "image": "example.org/pilot"}]}}}}),
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata("istiod"),
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "istiod", "istio": "pilot"}}}}),
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "istio-sidecar-injector", "labels": {"istio.io/rev": "default"}}, "webhooks": [webhook]}),
    ]
}

fn app(authority: &Authority) -> (Vec<Value>, Proxy, Certified) {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "app-1", "labels": {"app": "app"}},
        "spec": {"serviceAccountName": "default"},
        "status": {"phase": "Running", "podIP": "10.200.9.1", "podIPs": [{"ip": "10.200.9.1"}], "conditions": [{"type": "Ready", "status": "True"}]}});
    let objects = vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": "shop", "name": "default"}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "app"},
            "spec": {"selector": {"app": "app"}, "ports": [{"name": "http", "port": 80}]}}),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"namespace": "shop", "name": "app"},
            "spec": {"hosts": ["app"], "http": [{"timeout": "3s", "route": [{"destination": {"host": "app"}}]}]}}),
        pod,
    ];
    let own = authority.identity("shop", "default").unwrap();
    let certified = Certified {
        chain_pem: own.chain_pem().to_owned(),
        key_pem: own.key_pem().to_owned(),
        root_pem: own.root_pem().to_owned(),
    };
    (objects, Proxy::sidecar("app-1", "shop", "10.200.9.1", &json!({"app": "app"})), certified)
}

/// An installation of the chart on a server.
struct Installer<'a> {
    helm: &'a Helm,
    server: &'a ApiServer,
    client: &'a Cluster,
    namespace: &'static str,
}

impl Installer<'_> {
    fn install(&self, more: Value) -> anyhow::Result<()> {
        let folder = chart().display().to_string();
        let args = self.helm.with_values(&["install", "trysail", &folder], self.namespace, &values(more))?;
        self.helm.run(Some(&self.server.kubeconfig()), &args).map(drop)
    }

    fn uninstall(&self) {
        let args = ["uninstall", "trysail", "--namespace", self.namespace];
        self.helm.run(Some(&self.server.kubeconfig()), &args).unwrap();
    }

    /// The objects that the release made, as Helm knows them.
    fn made(&self) -> Vec<Value> {
        let args = ["get", "manifest", "trysail", "--namespace", self.namespace];
        let text = self.helm.run(Some(&self.server.kubeconfig()), &args).unwrap();
        let documents = text.split("\n---\n").map(|document| serde_yaml_ng::from_str::<Value>(document).unwrap());
        documents.filter(|document| !document.is_null()).collect()
    }

    /// Another number of pods for istiod's own Deployment, as `kubectl scale` does it.
    async fn scale_istiod(&self, replicas: u32) {
        let key = ["apps/v1", "Deployment", self.namespace, "istiod"];
        self.client.merge(key, &json!({"spec": {"replicas": replicas}})).await.unwrap();
    }

    /// These objects as they are now; versions too, so that an object that was written again differs. Of istiod's Deployment,
    /// which is scaled, what it is to be.
    async fn state(&self, objects: &[Value]) -> BTreeMap<String, Option<Value>> {
        let mut state = BTreeMap::new();
        for object in objects {
            let [kind, namespace, name] = ["/kind", "/metadata/namespace", "/metadata/name"].map(|p| text(object, p));
            let mut found = self.client.get([text(object, "/apiVersion"), kind, namespace, name]).await.unwrap();
            if let Some(found) = found.as_mut().filter(|_| (kind, name) == ("Deployment", "istiod")) {
                *found = found["spec"].take();
            }
            state.insert(format!("{kind} {name}"), found);
        }
        state
    }

    async fn deployment(&self, name: &str) -> Value {
        self.client.get(["apps/v1", "Deployment", self.namespace, name]).await.unwrap().expect("it was installed")
    }

    /// A pod of a Deployment, ready by its own probes.
    async fn pod(&self, deployment: &Value, name: &str) -> pod::Pod {
        let binary = control_plane::binary(quiet).unwrap();
        let mut pod = pod::start(self.server, self.client, &binary, deployment, name).await;
        pod.replica.ready().await.unwrap();
        for probe in ["livenessProbe", "readinessProbe"] {
            let path = text(deployment, &format!("/spec/template/spec/containers/0/{probe}/httpGet/path")).to_owned();
            assert_eq!(Replica::page(pod.replica.http, &path).await.unwrap().0, 200, "{probe}");
        }
        let refused: Vec<String> = pod.replica.lines().into_iter().filter(|line| line.contains("refused")).collect();
        assert_eq!(refused, [""; 0]);
        pod
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_an_istiod_in_its_place_and_back() {
    let Some(helm) = helm("beside_an_istiod_in_its_place_and_back") else { return };
    let server = match ApiServer::start(cluster::Config::default(), aloud).await {
        Ok(server) => server,
        Err(error) => return eprintln!("beside_an_istiod_in_its_place_and_back: skipped: {error:#}"),
    };
    let client = server.client().await.unwrap();
    client.define(&definitions::all()).await.unwrap();
    let authority = Authority::new().unwrap();
    let istiod = istiod(&authority);
    let (app, proxy, certified) = app(&authority);
    client.apply(&istiod).await.unwrap();
    client.apply(&app).await.unwrap();
    let installer = Installer { helm, server: &server, client: &client, namespace: NAMESPACE };
    let before = installer.state(&istiod).await;
    assert!(before.values().all(Option::is_some));

    // What belongs to somebody else is not taken.
    let refused = installer.install(json!({"alone": true})).unwrap_err();
    assert!(format!("{refused:#}").contains("cannot be imported into the current release"), "{refused:#}");
    assert_eq!(installer.state(&istiod).await, before);

    a_revision_beside(&installer, &istiod, &before).await;
    in_its_place(&installer, &istiod, &before, (proxy, certified)).await;
    assert_eq!(installer.state(&istiod).await, before, "and back: nothing of istiod's is gone or another");
    alone_in_a_namespace(&installer).await;
}

type State = BTreeMap<String, Option<Value>>;

async fn a_revision_beside(installer: &Installer<'_>, istiod: &[Value], before: &State) {
    let values = json!({"revision": "canary", "autoscaleMin": 3, "global": {"networkPolicy": {"enabled": true}}});
    installer.install(values).unwrap();
    assert_eq!(&installer.state(istiod).await, before);
    let made = installer.made();
    assert!(made.len() >= 9, "{:?}", names(&made));
    assert!(installer.state(&made).await.values().all(Option::is_some));
    let deployment = installer.deployment("istiod-canary").await;
    let mut pod = installer.pod(&deployment, "istiod-canary-1").await;
    // Its own mesh configuration, and the service of its own name.
    let (_, mesh) = Replica::page(pod.replica.http, "/debug/mesh").await.unwrap();
    assert!(mesh.contains("istiod-canary.istio-system.svc:15012") && !mesh.contains("the-istiod-before"), "{mesh}");
    // Asked to, so that it gives its lock back.
    pod.replica.terminate().unwrap();
    pod.replica.ended(PATIENCE).unwrap();
    installer.uninstall();
    assert!(installer.state(&made).await.values().all(Option::is_none), "it leaves nothing");
    assert_eq!(&installer.state(istiod).await, before);
}

async fn in_its_place(
    installer: &Installer<'_>,
    istiod: &[Value],
    before: &State,
    (mut proxy, issued): (Proxy, Certified),
) {
    installer.install(json!({"takeOver": true, "autoscaleEnabled": false, "replicaCount": 3})).unwrap();
    let made = installer.made();
    let budgets = names(&made).into_iter().filter(|name| name.starts_with("PodDisruptionBudget"));
    assert_eq!(budgets.count(), 0, "istiod's is for these pods, too");
    let deployment = installer.deployment("istiod-trysail").await;
    let labels = deployment.pointer("/spec/template/metadata/labels").unwrap();
    let selector = |kind: &str, pointer: &str| {
        istiod.iter().find(|object| object["kind"] == kind).and_then(|object| object.pointer(pointer)).unwrap()
    };
    assert!(chooses(selector("Service", "/spec/selector"), labels), "istiod's Service leads to them");
    assert!(chooses(selector("PodDisruptionBudget", "/spec/selector/matchLabels"), labels));
    let own = deployment.pointer("/spec/selector/matchLabels").unwrap();
    assert!(!chooses(own, selector("Deployment", "/spec/template/metadata/labels")), "istiod's pods are not ours");

    let mut pods = Vec::new();
    for n in 0..deployment["spec"]["replicas"].as_u64().unwrap() {
        pods.push(installer.pod(&deployment, &format!("istiod-trysail-{n}")).await);
    }
    assert_eq!(pods.len(), 3);
    installer.scale_istiod(0).await;
    let (_, mesh) = Replica::page(pods[0].replica.http, "/debug/mesh").await.unwrap();
    assert!(mesh.contains("/dev/the-istiod-before"), "istiod's mesh configuration: {mesh}");

    // A proxy with the certificate that istiod gave it goes from one to the next and is sent what it needs once.
    let mut first = None;
    for (n, pod) in pods.iter_mut().enumerate() {
        let address = pod.replica.secure().unwrap();
        let channel = agent::connect(address, &issued.root_pem, Some(&issued)).await.unwrap();
        proxy.connect_over(channel, None).await.unwrap();
        let received = proxy.settle(QUIET).await.unwrap();
        assert_eq!(received.is_empty(), n > 0, "replica {n}: {received:?}");
        assert!(proxy.config[CLUSTER].contains_key("outbound|80||app.shop.svc.cluster.local"));
        let config = first.get_or_insert_with(|| proxy.config.clone());
        assert_eq!(differences(config, &proxy.config), [""; 0]);
        proxy.disconnect();
    }
    // Who renews gets a certificate below the root that everybody has, good for every replica.
    let token = installer.client.token("shop", "default", agent::AUDIENCE).await.unwrap();
    for n in 0..pods.len() {
        let address = pods[n].replica.secure().unwrap();
        let renewed = agent::certify(&agent::connect(address, &issued.root_pem, None).await.unwrap(), &token).await;
        let renewed = renewed.unwrap();
        assert_eq!(renewed.root_pem.trim(), issued.root_pem.trim());
        let next = pods[(n + 1) % 3].replica.secure().unwrap();
        let channel = agent::connect(next, &issued.root_pem, Some(&renewed)).await.unwrap();
        proxy.connect_over(channel, None).await.unwrap();
        assert!(proxy.settle(QUIET).await.unwrap().is_empty());
        proxy.disconnect();
    }

    // The leader gives the root to namespaces that lack it, where istiod's leader would have.
    let published = eventually("the root", PATIENCE, || async {
        let found = installer.client.get(["v1", "ConfigMap", "shop", "istio-ca-root-cert"]).await?;
        found.ok_or_else(|| anyhow::anyhow!("not there"))
    });
    assert_eq!(text(&published.await.unwrap(), "/data/root-cert.pem").trim(), issued.root_pem.trim());

    // And back.
    installer.scale_istiod(1).await;
    assert_eq!(&installer.state(istiod).await, before, "nothing of istiod's was written");
    drop(pods);
    installer.uninstall();
    assert!(installer.state(&made).await.values().all(Option::is_none));
}

/// A first installation: no istiod, no key.
async fn alone_in_a_namespace(others: &Installer<'_>) {
    let installer = Installer { namespace: "mesh", ..*others };
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mesh", "labels": {"mesh": "own"}}});
    installer.client.apply(&[namespace]).await.unwrap();
    let only = json!({"discoverySelectors": [{"matchLabels": {"mesh": "own"}}]});
    let name = json!({"ISTIOD_CUSTOM_HOST": agent::SERVER_NAME});
    installer.install(json!({"alone": true, "meshConfig": only, "env": name})).unwrap();
    let deployment = installer.deployment("istiod").await;
    let first = installer.pod(&deployment, "istiod-1").await;
    let key =
        || async { installer.client.get(["v1", "Secret", "mesh", SECRET_NAME]).await.unwrap().expect("it was made") };
    let made = key().await;
    assert_eq!(text(&made, "/type"), "istio.io/ca-root");
    let second = installer.pod(&deployment, "istiod-2").await;
    assert_eq!(key().await, made, "and used by the next");
    // A plugged-in key goes before it.
    let plugged = Authority::new().unwrap();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "mesh", "name": "cacerts"}, "stringData": {
        "ca-cert.pem": plugged.root_pem(), "ca-key.pem": plugged.key_pem(), "root-cert.pem": plugged.root_pem(), "cert-chain.pem": plugged.root_pem()}});
    installer.client.apply(&[secret]).await.unwrap();
    let mut third = installer.pod(&deployment, "istiod-3").await;
    agent::connect(third.replica.secure().unwrap(), plugged.root_pem(), None).await.unwrap();
    drop((first, second, third));
    installer.uninstall();
    assert_eq!(key().await, made, "the key outlives the installation, as istiod's does");
}
