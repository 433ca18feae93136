//! What people write.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use trysail_sdk::hooks::fits;
use trysail_sdk::{Ctx, Edit, Failure, Position, Target};

/// The configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// Applied in order.
    pub patches: Vec<Patch>,
}

/// One patch: which fragments, and what becomes of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Patch {
    /// The hook point.
    pub hook: String,
    /// `inbound`, `outbound`, `gateway`; any when left out.
    #[serde(default)]
    pub direction: Option<String>,
    /// Key of the service, `namespace/host`; `*` at its end or beginning stands for anything.
    #[serde(default)]
    pub service: Option<String>,
    /// Port of the service or listener.
    #[serde(default)]
    pub port: Option<u32>,
    /// Name of what the fragment is; `*` as above.
    #[serde(default)]
    pub name: Option<String>,
    /// Type of the proxy, `sidecar`, `router` (a gateway) or `waypoint`.
    #[serde(default, rename = "proxyType")]
    pub proxy_type: Option<String>,
    /// Attributes that it must have, by name; `*` as above.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// Key of the item; all when left out.
    #[serde(default)]
    pub item: String,
    /// A JSON Patch (RFC 6902).
    #[serde(default)]
    pub operations: Option<Value>,
    /// A value that is merged into a field.
    #[serde(default)]
    pub merge: Option<Field>,
    /// A value that a field gets.
    #[serde(default)]
    pub set: Option<Field>,
    /// An element for a list.
    #[serde(default)]
    pub insert: Option<Insert>,
    /// Path of a field or element that goes.
    #[serde(default)]
    pub remove: Option<String>,
    /// A whole message: where filters or resources are inserted.
    #[serde(default)]
    pub put: Option<Put>,
}

/// A field and its value.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// Path; the message itself when left out.
    #[serde(default)]
    pub path: String,
    /// The value.
    pub value: Value,
}

/// An element and where it goes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Insert {
    /// Path of the list.
    pub path: String,
    /// `first`, `last` (the default), `before NAME`, `after NAME`.
    #[serde(default)]
    pub at: Option<String>,
    /// The element.
    pub value: Value,
}

/// A whole message.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Put {
    /// Its key; its `name` when left out.
    #[serde(default)]
    pub key: Option<String>,
    /// The message.
    pub message: Value,
}

impl Patch {
    /// Is it a patch at all?
    pub(crate) fn check(&self, number: usize) -> Result<(), Failure> {
        let bad = |why: String| Err(Failure::BadConfiguration(format!("patches[{number}]: {why}")));
        if !crate::HOOKS.contains(&self.hook.as_str()) {
            return bad(format!("hook: there is no {:?}; there are {}", self.hook, crate::HOOKS.join(", ")));
        }
        let n_actions = [
            self.operations.is_some(),
            self.merge.is_some(),
            self.set.is_some(),
            self.insert.is_some(),
            self.remove.is_some(),
            self.put.is_some(),
        ];
        if n_actions.iter().filter(|is_there| **is_there).count() != 1 {
            return bad("one of operations, merge, set, insert, remove, put is needed, and one only".to_owned());
        }
        if let Some(at) = self.insert.as_ref().and_then(|insert| insert.at.as_deref())
            && position(at).is_none()
        {
            return bad(format!("insert.at: {at:?} is none of first, last, before NAME, after NAME"));
        }
        Ok(())
    }

    /// Is the fragment among those it is about? Asks for the proxy's type only where it is told one.
    pub(crate) fn selects(&self, ctx: &Ctx<'_>, target: &Target) -> bool {
        self.is_about(target) && self.proxy_type.as_ref().is_none_or(|of| ctx.proxy("type").as_ref() == Some(of))
    }

    fn is_about(&self, target: &Target) -> bool {
        let matches = |pattern: &Option<String>, text: &str| pattern.as_ref().is_none_or(|pattern| fits(pattern, text));
        self.direction.as_ref().is_none_or(|direction| *direction == target.direction)
            && matches(&self.service, &target.service)
            && matches(&self.name, &target.name)
            && self.port.is_none_or(|port| port == target.port)
            && self.attributes.iter().all(|(name, pattern)| fits(pattern, target.attribute(name)))
    }

    pub(crate) fn edits(&self) -> Option<Edit> {
        let item = || self.item.clone();
        if let Some(operations) = &self.operations {
            return Some(Edit::Patch { item: item(), operations: operations.to_string() });
        }
        if let Some(Field { path, value }) = &self.merge {
            return Some(Edit::Merge { item: item(), path: path.clone(), value: value.to_string() });
        }
        if let Some(Field { path, value }) = &self.set {
            return Some(Edit::Set { item: item(), path: path.clone(), value: value.to_string() });
        }
        if let Some(Insert { path, at, value }) = &self.insert {
            let at = at.as_deref().map_or(Some(Position::Last), position)?;
            return Some(Edit::Insert { item: item(), path: path.clone(), at, value: value.to_string() });
        }
        if let Some(path) = &self.remove {
            return Some(Edit::Remove { item: item(), path: path.clone() });
        }
        let Put { key, message } = self.put.as_ref()?;
        let name = message.get("name").and_then(Value::as_str).unwrap_or_default();
        let key = key.as_deref().unwrap_or(name).to_owned();
        Some(Edit::PutJson { key, message: message.to_string() })
    }
}

fn position(text: &str) -> Option<Position> {
    match text.split_once(' ') {
        None if text == "first" => Some(Position::First),
        None if text == "last" => Some(Position::Last),
        Some(("before", name)) => Some(Position::Before(name.to_owned())),
        Some(("after", name)) => Some(Position::After(name.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patch(value: Value) -> Patch {
        serde_json::from_value(value).expect("it is a patch")
    }

    fn service(key: &str) -> Target {
        Target { direction: "outbound".into(), service: key.into(), port: 80, ..Target::default() }
    }

    #[test]
    fn a_selector_says_what_a_fragment_is_about() {
        let of = |service: &str| patch(json!({"hook": "clusters", "service": service, "remove": "a"}));
        let cart = service("shop/cart.shop.svc.cluster.local");
        assert!(of("shop/*").is_about(&cart) && of("*.cluster.local").is_about(&cart) && of("*").is_about(&cart));
        assert!(of("*cart*").is_about(&cart) && of("shop/cart.shop.svc.cluster.local").is_about(&cart));
        assert!(!of("shop/car").is_about(&cart) && !of("bank/*").is_about(&cart) && !of("*.local.").is_about(&cart));
        let port = patch(json!({"hook": "clusters", "port": 81, "remove": "a"}));
        let inbound = patch(json!({"hook": "clusters", "direction": "inbound", "remove": "a"}));
        assert!(!port.is_about(&cart) && !inbound.is_about(&cart));
        let at = patch(json!({"hook": "routes", "attributes": {"gateway": "istio-system/*"}, "remove": "a"}));
        assert!(at.is_about(&Target::default().with("gateway", "istio-system/edge")) && !at.is_about(&cart));
    }

    #[test]
    fn each_action_is_one_edit() {
        let edit = |action: Value| {
            let mut whole = json!({"hook": "clusters", "item": "i"});
            whole.as_object_mut().expect("it is one").extend(action.as_object().expect("it is one").clone());
            let patch = patch(whole);
            patch.check(0).expect("it is well-formed");
            patch.edits().expect("there is one")
        };
        let (item, path) = (|| "i".to_owned(), || "a/b".to_owned());
        assert_eq!(
            edit(json!({"merge": {"path": "a/b", "value": {"c": 1}}})),
            Edit::Merge { item: item(), path: path(), value: r#"{"c":1}"#.into() }
        );
        assert_eq!(
            edit(json!({"set": {"path": "a/b", "value": "1s"}})),
            Edit::Set { item: item(), path: path(), value: r#""1s""#.into() }
        );
        assert_eq!(
            edit(json!({"insert": {"path": "a/b", "at": "before x.y", "value": {}}})),
            Edit::Insert { item: item(), path: path(), at: Position::Before("x.y".into()), value: "{}".into() }
        );
        assert_eq!(edit(json!({"remove": "a/b"})), Edit::Remove { item: item(), path: path() });
        assert_eq!(
            edit(json!({"operations": [{"op": "remove", "path": "/a"}]})),
            Edit::Patch { item: item(), operations: r#"[{"op":"remove","path":"/a"}]"#.into() }
        );
        assert_eq!(
            edit(json!({"put": {"message": {"name": "n"}}})),
            Edit::PutJson { key: "n".into(), message: r#"{"name":"n"}"#.into() }
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let fault = |value: Value| patch(value).check(2).expect_err("it is refused").to_string();
        let none = fault(json!({"hook": "clusters"}));
        assert!(none.contains("patches[2]") && none.contains("one of operations, merge"), "{none}");
        let two = fault(json!({"hook": "clusters", "remove": "a", "merge": {"value": {}}}));
        assert!(two.contains("one only"), "{two}");
        let hook = fault(json!({"hook": "cluster", "remove": "a"}));
        assert!(hook.contains("\"cluster\"") && hook.contains("transport-sockets"), "{hook}");
        let at = fault(json!({"hook": "clusters", "insert": {"path": "a", "at": "beside b", "value": 1}}));
        assert!(at.contains("insert.at"), "{at}");
    }
}
