//! Defaults of the Kubernetes kinds that depend on other fields; the constant ones stand in the schemas.
//!
//! What an allocator or a controller of a cluster would add (cluster addresses, node ports, status) is not made up.

use base64::Engine;
use serde_json::{Map, Value, json};
use trysail_model::ObjectRef;

use crate::kinds::Kind;

/// Completes a body whose schema has been applied.
pub(crate) fn apply(kind: &Kind, reference: &ObjectRef, body: &mut Value) {
    let Some(body) = body.as_object_mut() else {
        return;
    };
    match kind.name {
        "Namespace" => namespace(reference, body),
        "Service" => service(body),
        "Pod" => pod(body),
        "Secret" => secret(body),
        _ => {}
    }
}

fn section<'a>(body: &'a mut Map<String, Value>, name: &str) -> Option<&'a mut Map<String, Value>> {
    body.entry(name).or_insert_with(|| json!({})).as_object_mut()
}

/// Every namespace carries its name as a label, so that selectors can pick it.
fn namespace(reference: &ObjectRef, body: &mut Map<String, Value>) {
    let labels = section(body, "metadata").and_then(|metadata| section(metadata, "labels"));
    if let Some(labels) = labels {
        labels.insert("kubernetes.io/metadata.name".to_owned(), json!(&*reference.name));
    }
}

fn service(body: &mut Map<String, Value>) {
    let Some(spec) = section(body, "spec") else {
        return;
    };
    spec.entry("type").or_insert_with(|| json!("ClusterIP"));
    spec.entry("sessionAffinity").or_insert_with(|| json!("None"));
    if spec.get("sessionAffinity") == Some(&json!("ClientIP")) {
        spec.entry("sessionAffinityConfig").or_insert_with(|| json!({"clientIP": {"timeoutSeconds": 10_800}}));
    }
    let type_ = spec.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    if type_ != "ExternalName" {
        spec.entry("internalTrafficPolicy").or_insert_with(|| json!("Cluster"));
    }
    if matches!(type_.as_str(), "NodePort" | "LoadBalancer") {
        spec.entry("externalTrafficPolicy").or_insert_with(|| json!("Cluster"));
    }
    if type_ == "LoadBalancer" {
        spec.entry("allocateLoadBalancerNodePorts").or_insert_with(|| json!(true));
    }
    pair(spec, "clusterIP", "clusterIPs", |ip| ip.clone(), |ips| ips.first().cloned());
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(port) = port.as_object_mut() else {
            continue;
        };
        let unset = port.get("targetPort").is_none_or(|target| *target == json!(0) || *target == json!(""));
        if let Some(number) = port.get("port").cloned().filter(|_| unset) {
            port.insert("targetPort".to_owned(), number);
        }
    }
}

fn pod(body: &mut Map<String, Value>) {
    if let Some(spec) = section(body, "spec") {
        // `serviceAccount` is the old name of the field; an API server keeps both equal.
        let account = ["serviceAccountName", "serviceAccount"]
            .into_iter()
            .find_map(|name| spec.get(name).and_then(Value::as_str).filter(|account| !account.is_empty()))
            .unwrap_or("default")
            .to_owned();
        spec.insert("serviceAccountName".to_owned(), json!(account));
        let on_host = spec.get("hostNetwork") == Some(&json!(true));
        for container in spec.get_mut("containers").and_then(Value::as_array_mut).into_iter().flatten() {
            for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
                let Some(port) = port.as_object_mut().filter(|_| on_host) else {
                    continue;
                };
                if let Some(number) = port.get("containerPort").cloned() {
                    port.entry("hostPort").or_insert(number);
                }
            }
        }
    }
    if let Some(status) = body.get_mut("status").and_then(Value::as_object_mut) {
        pair(status, "podIP", "podIPs", |ip| json!({"ip": ip}), |ips| ips.first()?.get("ip").cloned());
    }
}

/// `stringData` is a way to write `data`, and wins over it.
fn secret(body: &mut Map<String, Value>) {
    let Some(Value::Object(texts)) = body.shift_remove("stringData") else {
        return;
    };
    let Some(data) = section(body, "data") else {
        return;
    };
    for (key, text) in texts {
        if let Value::String(text) = text {
            data.insert(key, json!(base64::engine::general_purpose::STANDARD.encode(text)));
        }
    }
}

/// Fills whichever of a field and its plural is missing from the other.
fn pair(
    map: &mut Map<String, Value>,
    one: &str,
    many: &str,
    wrap: impl Fn(&Value) -> Value,
    first: impl Fn(&[Value]) -> Option<Value>,
) {
    let is_set = |value: Option<&Value>| match value {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(_) => true,
    };
    match (is_set(map.get(one)), is_set(map.get(many))) {
        (true, false) => {
            let wrapped = wrap(&map[one]);
            map.insert(many.to_owned(), json!([wrapped]));
        }
        (false, true) => {
            if let Some(single) = map.get(many).and_then(Value::as_array).and_then(|items| first(items)) {
                map.insert(one.to_owned(), single);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{Config, convert};

    fn read(text: &str) -> Value {
        let input = convert::read_file("a.yaml", text, &Config::default());
        assert_eq!(input.claims[0].refusals, []);
        let object = input.claims[0].object.as_ref().expect("is taken");
        object.body.read().into_owned()
    }

    #[test]
    fn service_defaults() {
        let body = read(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  clusterIP: 10.0.0.1\n  ports:\n  - {port: 80, name: http}\n  \
             - {port: 53, name: dns, protocol: UDP, targetPort: dns}\n",
        );
        let want = json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "type": "ClusterIP", "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster", "ports": [
                {"port": 80, "name": "http", "protocol": "TCP", "targetPort": 80},
                {"port": 53, "name": "dns", "protocol": "UDP", "targetPort": "dns"}]});
        assert_eq!(body["spec"], want);
        let body = read(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIPs: [None], type: LoadBalancer}\n",
        );
        assert_eq!(body["spec"]["clusterIP"], "None");
        assert_eq!(body["spec"]["externalTrafficPolicy"], "Cluster");
        let body =
            read("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {externalName: a.b, type: ExternalName}\n");
        assert_eq!(body["spec"].get("internalTrafficPolicy"), None);
    }

    #[test]
    fn pod_slice_namespace_and_secret_defaults() {
        let body = read(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  serviceAccount: sa\n  hostNetwork: true\n  containers:\n  \
             - name: c\n    ports: [{containerPort: 80}]\n    readinessProbe: {httpGet: {port: 80}}\nstatus: {podIP: 1.2.3.4}\n",
        );
        assert_eq!(body["spec"]["serviceAccountName"], "sa");
        let container = &body["spec"]["containers"][0];
        assert_eq!(container["ports"][0], json!({"containerPort": 80, "protocol": "TCP", "hostPort": 80}));
        assert_eq!(container["readinessProbe"]["httpGet"]["scheme"], "HTTP");
        assert_eq!(body["status"]["podIPs"], json!([{"ip": "1.2.3.4"}]));

        let body = read(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\nendpoints: [{addresses: [1.1.1.1]}]\n\
             ports: [{port: 1}]\n",
        );
        assert_eq!(body["endpoints"][0]["conditions"], json!({}));
        assert_eq!(body["ports"][0], json!({"port": 1, "name": "", "protocol": "TCP"}));

        let body = read("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n");
        assert_eq!(body["metadata"]["labels"]["kubernetes.io/metadata.name"], "a");

        let body = read("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData: {k: v}\n");
        assert_eq!((&body["type"], &body["data"]), (&json!("Opaque"), &json!({"k": "dg=="})));
    }
}
