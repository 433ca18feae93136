//! Names of resources: what a resource is called on the wire is what it calls itself.
//!
//! Envoy refuses a whole response in which two resources call themselves the same, and so everything that its proxy was to get: one
//! plugin would keep all others' changes from it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::hooks::Items;

/// The messages that are resources, and the field with their name.
const NAMED: [(&str, &str); 3] = [
    ("envoy.config.cluster.v3.Cluster", "name"),
    ("envoy.config.endpoint.v3.ClusterLoadAssignment", "cluster_name"),
    ("envoy.config.listener.v3.Listener", "name"),
];

/// What is wrong with the name of an item that changed, in words.
pub fn mistaken(message: &str, before: &Items, after: &Items) -> Option<String> {
    let (_, field) = NAMED.iter().find(|(named, _)| *named == message)?;
    let name = |value: &Value| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let by_key: BTreeMap<&String, &Value> = before.iter().map(|(key, value)| (key, value)).collect();
    after.iter().find_map(|(key, value)| {
        let own = name(value);
        // Where it was otherwise before, that is not the plugin's doing.
        let was_other = by_key.get(key).is_some_and(|old| name(old) != *key);
        (own != *key && !was_other)
            .then(|| format!("item {key:?} calls itself {own:?} in {field}; it must be the same"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_resource_is_called_what_it_calls_itself() {
        const CLUSTER: &str = NAMED[0].0;
        let items = |name: &str| vec![("a".to_owned(), json!({ "name": name }))];
        assert_eq!(mistaken(CLUSTER, &items("a"), &items("a")), None);
        assert!(mistaken(CLUSTER, &items("a"), &items("b")).is_some_and(|why| why.contains("\"b\"")));
        assert!(mistaken(CLUSTER, &Items::new(), &items("b")).is_some());
        assert_eq!(mistaken(CLUSTER, &items("b"), &items("b")), None, "it was so before");
        assert_eq!(mistaken("envoy.config.route.v3.Route", &items("a"), &items("b")), None);
    }
}
