use super::*;

fn read(text: &str) -> FileInput {
    read_file("a.yaml", text, &Config::default())
}

fn refusals(input: &FileInput) -> Vec<String> {
    input.claims.iter().flat_map(|claim| &claim.refusals).map(ToString::to_string).collect()
}

#[test]
fn metadata_becomes_the_reference() {
    let input = read(
        "apiVersion: networking.istio.io/v1beta1\nkind: Sidecar\nmetadata:\n  name: s\n  labels: {app: web}\n  \
         annotations: {a: b}\n  creationTimestamp: 1970-01-01T00:00:02Z\nspec: {}\n",
    );
    assert_eq!(refusals(&input), Vec::<String>::new());
    let object = input.claims[0].object.as_ref().expect("is taken");
    assert_eq!(object.reference.to_string(), "Sidecar default/s");
    assert_eq!(object.creation_nanos, 2_000_000_000);
    assert_eq!(object.labels["app"], "web");
    assert_eq!(object.annotations["a"], "b");
    assert_eq!(&*object.api_version, "networking.istio.io/v1beta1");
    assert_eq!(&*object.origin, "a.yaml (document 1)");
    assert_eq!(object.body.part("metadata")["namespace"], "default");
}

#[test]
fn what_has_no_name_is_refused_with_its_place() {
    let input = read(
        "kind: Service\n---\napiVersion: v1\n---\n- a\n---\napiVersion: v1\nkind: Service\nmetadata: {name: yes}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {generateName: x}\n",
    );
    assert_eq!(
        refusals(&input),
        [
            "a.yaml (document 1): apiVersion: required value: every object has an apiVersion and a kind",
            "a.yaml (document 2): kind: required value: every object has an apiVersion and a kind",
            "a.yaml (document 3): an object must be a mapping, this is a list",
            "a.yaml (document 4): metadata.name: must be a string that is not empty",
            "a.yaml (document 5): metadata.name: required value: Service has no name",
        ]
    );
}

#[test]
fn labels_must_be_text() {
    let input =
        read("apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: {x: on}}\nspec: {ports: [{port: 1}]}\n");
    let reasons = refusals(&input);
    assert_eq!(reasons.len(), 1);
    assert!(
        reasons[0]
            .starts_with("a.yaml (document 1): Service default/a: metadata.labels[x]: must be a string, is a boolean")
    );
}

#[test]
fn lists_are_taken_apart() {
    let input = read(
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n\
         - {apiVersion: v1, kind: Service}\n---\napiVersion: v1\nkind: ConfigMapList\nitems: [{metadata: {name: c}}]\n",
    );
    let names: Vec<_> =
        input.claims.iter().filter_map(|claim| claim.reference.clone()).map(|r| r.to_string()).collect();
    assert_eq!(names, ["Namespace a", "ConfigMap default/c"]);
    assert_eq!(refusals(&input), ["a.yaml (document 1): items[1].metadata.name: required value: Service has no name"]);
}

#[test]
fn unknown_kinds_are_named_and_unserved_versions_refused() {
    let input = read(
        "apiVersion: example.com/v1\nkind: Thing\n---\napiVersion: example.com/v1\nkind: Thing\n---\n\
         apiVersion: networking.istio.io/v9\nkind: Sidecar\nmetadata: {name: a}\n",
    );
    assert_eq!(input.unknown_kinds.iter().collect::<Vec<_>>(), ["example.com/v1/Thing"]);
    assert!(refusals(&input)[0].contains("apiVersion: version of Sidecar is not served"), "{:?}", refusals(&input));
}

#[test]
fn settings_come_from_files_and_the_config_map() {
    let config = Config::default();
    let setting = |path: &str, text: &str| {
        let input = read_file(path, text, &config);
        let claims =
            input.claims.iter().map(|claim| (claim.reference.clone().map(|r| r.to_string()), claim.refusals.len()));
        claims.collect::<Vec<_>>()
    };
    assert_eq!(setting("deep/mesh.yaml", "rootNamespace: x\n"), [(Some("MeshConfig file".to_owned()), 0)]);
    assert_eq!(setting("networks.yml", "- a\n"), [(Some("MeshNetworks file".to_owned()), 1)]);
    assert_eq!(setting("proxies.yaml", "- name: a\n"), [(Some("Proxies file".to_owned()), 0)]);
    let object = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    a: 1\n  \
                  meshNetworks: '{'\n";
    assert_eq!(
        setting("mesh.yaml", object),
        [
            (Some("MeshConfig istio-system/istio".to_owned()), 0),
            (Some("MeshNetworks istio-system/istio".to_owned()), 1),
            (Some("ConfigMap istio-system/istio".to_owned()), 0),
        ]
    );
}

#[test]
fn checks_of_the_caller_refuse() {
    let check: crate::Check = Arc::new(|object| match &*object.reference.kind {
        "Sidecar" => vec![Violation::new("spec.egress", "must not be empty")],
        _ => Vec::new(),
    });
    let config = Config { checks: vec![check], ..Config::default() };
    let input =
        read_file("a.yaml", "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: a}\n", &config);
    assert_eq!(refusals(&input), ["a.yaml (document 1): Sidecar default/a: spec.egress: must not be empty"]);
}

#[test]
fn a_duplicate_key_names_the_object_it_spoils() {
    let input = read("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  k: x\n  k: z\n");
    assert_eq!(refusals(&input), ["a.yaml (document 1): ConfigMap default/a: line 6: duplicate key \"k\""]);
    // `render` goes on with the last one, as istiod does.
    let object = input.claims[0].object.as_ref().expect("is converted");
    assert_eq!(*object.body.part("data"), json!({"k": "z"}));
}
