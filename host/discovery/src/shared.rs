//! Mesh configuration in two parts: one that several control planes share, and the own one over it.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Fields whose own fields are laid over each other one by one.
const BY_FIELD: [&str; 2] = ["defaultConfig", "defaultProviders"];

/// The shared configuration with the own one over it, as istiod lays them: field by field, where `defaultConfig` and
/// `defaultProviders` are laid over field by field again, providers by their name, and trust domain aliases add up.
pub fn overlay(shared: &Value, own: &Value) -> Value {
    let (Value::Object(shared), Value::Object(own)) = (shared, own) else {
        return if own.is_null() { shared.clone() } else { own.clone() };
    };
    let mut all = shared.clone();
    for (field, value) in own {
        let merged = match (all.get(field), &**field) {
            (Some(Value::Object(below)), name) if BY_FIELD.contains(&name) => match value {
                Value::Object(above) => Value::Object(fields(below, above)),
                _ => value.clone(),
            },
            (Some(Value::Array(below)), "extensionProviders") => providers(below, value),
            (Some(Value::Array(below)), "trustDomainAliases") => union(below, value),
            _ => value.clone(),
        };
        all.insert(field.clone(), merged);
    }
    Value::Object(all)
}

fn fields(below: &Map<String, Value>, above: &Map<String, Value>) -> Map<String, Value> {
    let mut all = below.clone();
    all.extend(above.iter().map(|(field, value)| (field.clone(), value.clone())));
    all
}

fn providers(below: &[Value], above: &Value) -> Value {
    let Value::Array(above) = above else { return above.clone() };
    let mut all = below.to_vec();
    for provider in above {
        match all.iter_mut().find(|known| known.get("name") == provider.get("name")) {
            Some(known) => *known = provider.clone(),
            None => all.push(provider.clone()),
        }
    }
    Value::Array(all)
}

fn union(below: &[Value], above: &Value) -> Value {
    let Value::Array(above) = above else { return above.clone() };
    let all: BTreeSet<&str> = below.iter().chain(above).filter_map(Value::as_str).collect();
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_own_part_lies_over_the_shared_one() {
        let shared = json!({
            "rootNamespace": "root", "trustDomain": "shared", "trustDomainAliases": ["b", "a"],
            "defaultConfig": {"concurrency": 2, "proxyMetadata": {"A": "1"}},
            "extensionProviders": [{"name": "x", "zipkin": {}}, {"name": "y"}],
        });
        let own = json!({
            "trustDomain": "own", "trustDomainAliases": ["c"],
            "defaultConfig": {"proxyMetadata": {"B": "2"}, "drainDuration": "1s"},
            "extensionProviders": [{"name": "x", "opentelemetry": {}}, {"name": "z"}],
        });
        let want = json!({
            "rootNamespace": "root", "trustDomain": "own", "trustDomainAliases": ["a", "b", "c"],
            "defaultConfig": {"concurrency": 2, "proxyMetadata": {"B": "2"}, "drainDuration": "1s"},
            "extensionProviders": [{"name": "x", "opentelemetry": {}}, {"name": "y"}, {"name": "z"}],
        });
        assert_eq!(overlay(&shared, &own), want);
        assert_eq!(overlay(&Value::Null, &own), own);
        assert_eq!(overlay(&shared, &Value::Null), shared);
    }
}
