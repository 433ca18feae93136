//! A pod of a Deployment without a kubelet: the program with the arguments, variables, files and rights that the pod would have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde_json::Value;
use trysail_tests::cluster::{ApiServer, Cluster};
use trysail_tests::replica::Replica;

/// A running one.
pub struct Pod {
    /// Its one container.
    pub replica: Replica,
    _files: tempfile::TempDir,
}

/// The objects of a list.
pub fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A text, empty where there is none.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Starts the pod of a Deployment as it stands in the cluster, with this name.
pub async fn start(server: &ApiServer, client: &Cluster, binary: &Path, deployment: &Value, name: &str) -> Pod {
    let namespace = text(deployment, "/metadata/namespace");
    let spec = &deployment["spec"]["template"]["spec"];
    let account = text(spec, "/serviceAccountName");
    let container = &spec["containers"][0];
    let files = tempfile::tempdir().unwrap();
    let mounts = mounts(client, namespace, spec, container, files.path()).await;

    let token = client.token(namespace, account, "https://kubernetes.default.svc").await.unwrap();
    let kubeconfig = server.kubeconfig_file(name, &token).unwrap().display().to_string();
    let (first, args) = items(container, "/args").split_first().expect("arguments");
    assert_eq!(first, "discovery");
    let mut args: Vec<&str> = args.iter().map(|arg| arg.as_str().unwrap()).collect();
    args.extend(["--kubeconfig", &kubeconfig]);

    let variables: Vec<(&str, String)> = items(container, "/env")
        .iter()
        .map(|variable| {
            let value = match text(variable, "/valueFrom/fieldRef/fieldPath") {
                "" => below(&mounts, text(variable, "/value")),
                "metadata.name" => name.to_owned(),
                "metadata.namespace" => namespace.to_owned(),
                "spec.serviceAccountName" => account.to_owned(),
                other => panic!("no pod has a field {other}"),
            };
            (text(variable, "/name"), value)
        })
        .collect();
    let mut variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    variables.push(("PILOT_DEBOUNCE_AFTER", "20ms"));
    // The harness would keep the key in memory otherwise.
    variables.push(("TRYSAIL_CA_DIR", ""));
    Pod { replica: Replica::start(binary, &args, &variables).unwrap(), _files: files }
}

/// What is mounted where, by the path in the container.
async fn mounts(
    client: &Cluster,
    namespace: &str,
    spec: &Value,
    container: &Value,
    folder: &Path,
) -> BTreeMap<String, PathBuf> {
    let mut mounts = BTreeMap::new();
    for mount in items(container, "/volumeMounts") {
        let name = text(mount, "/name");
        let volume = items(spec, "/volumes").iter().find(|volume| volume["name"] == name).expect("a volume of the pod");
        let place = folder.join(name);
        std::fs::create_dir(&place).unwrap();
        if let Some(secret) = volume["secret"]["secretName"].as_str() {
            let found = client.get(["v1", "Secret", namespace, secret]).await.unwrap();
            assert!(found.is_some() || volume["secret"]["optional"] == true, "the pod would wait for {secret}");
            let found = found.unwrap_or_default();
            for (key, value) in found["data"].as_object().into_iter().flatten() {
                let value = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or_default());
                std::fs::write(place.join(key), value.unwrap()).unwrap();
            }
        } else {
            assert!(volume["emptyDir"].is_object(), "a volume that no test needed so far: {volume}");
        }
        mounts.insert(text(mount, "/mountPath").to_owned(), place);
    }
    mounts
}

/// A path of the container as it is outside; other values as they are.
fn below(mounts: &BTreeMap<String, PathBuf>, value: &str) -> String {
    let mounted = mounts.iter().find_map(|(path, place)| Some(place.join(Path::new(value).strip_prefix(path).ok()?)));
    mounted.map_or_else(|| value.to_owned(), |path| path.display().to_string())
}
