//! Rights: what a plugin may ask, and which fields it may change.

use crate::path::Path;

/// The rights of one plugin. The default is everything but what weakens security.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// What it may ask; none for everything.
    pub reads: Option<Vec<Read>>,
    /// What it may change; none for everything that its hooks show.
    pub writes: Option<Vec<Write>>,
    /// It may do what [`invariants`](crate::invariants) forbid.
    pub may_weaken_security: bool,
    /// The namespace whose plugin it is, outside of which it reaches nothing; none for one of the whole mesh.
    pub tenant: Option<String>,
}

/// Something that may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Name of the question, or `*`.
    pub question: String,
    /// Of questions about objects of a kind: the kinds; empty for all.
    pub kinds: Vec<String>,
}

/// Something that may be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The hook point, or `*`.
    pub hook: String,
    /// The fields, as patterns; empty for all.
    pub fields: Vec<Path>,
}

/// Questions that are about the mesh as a whole, or about the proxy, and hold nothing of any namespace's.
const OF_ALL: [&str; 11] = [
    "mesh-config",
    "features",
    "setting",
    "proxy",
    "proxy-in-namespaces",
    "proxy-labels-match",
    "proxy-has-address",
    "proxy-version-at-least",
    "proxy-version-matches",
    "proxy-metadata-match",
    "proxy-config",
];

/// Questions whose first argument is a namespace, or begins with it (`namespace/host`).
const BY_FIRST: [&str; 6] =
    ["service", "services-in-namespace", "endpoints", "has-ready-endpoints", "service-accounts", "namespace"];

/// Questions about objects: kind, then namespace or `namespace/name`.
const BY_SECOND: [&str; 2] = ["object", "selectors"];

const NOT_ITS_RIGHT: &str = "which its rights do not hold (nothing in spec.rights.writes covers it)";

impl Rights {
    /// May it ask this?
    ///
    /// # Errors
    /// Why not.
    pub fn may_ask(&self, question: &str, args: &[String]) -> Result<(), String> {
        let arg = |number: usize| args.get(number).map_or("", String::as_str);
        if let Some(tenant) = &self.tenant {
            let of = |text: &str| text.split('/').next() == Some(tenant);
            let allowed = OF_ALL.contains(&question)
                || BY_FIRST.contains(&question) && of(arg(0))
                || BY_SECOND.contains(&question) && of(arg(1));
            if !allowed {
                let asked = args.join(", ");
                return Err(format!("asked {question}({asked}), and is of namespace {tenant} and sees no other"));
            }
        }
        let Some(reads) = &self.reads else { return Ok(()) };
        let allowed = reads.iter().any(|read| {
            let kind_fits =
                !BY_SECOND.contains(&question) || read.kinds.is_empty() || read.kinds.iter().any(|kind| kind == arg(0));
            (read.question == "*" || read.question == question) && kind_fits
        });
        if allowed {
            Ok(())
        } else {
            Err(format!(
                "asked {question}({}), which its rights do not hold (nothing in spec.rights.reads covers it)",
                args.join(", ")
            ))
        }
    }

    /// May it change this field of this item?
    ///
    /// # Errors
    /// Why not, in words.
    pub fn may_change(&self, hook: &str, item: &str, path: &str) -> Result<(), String> {
        let Some(writes) = &self.writes else { return Ok(()) };
        let is_allowed = writes.iter().any(|write| {
            (write.hook == "*" || write.hook == hook)
                && (write.fields.is_empty() || write.fields.iter().any(|field| field.covers(path)))
        });
        match path {
            _ if is_allowed => Ok(()),
            "" => Err(format!("changed all of {item:?} at {hook}, {NOT_ITS_RIGHT}")),
            _ => Err(format!("changed {path} of {item:?} at {hook}, {NOT_ITS_RIGHT}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(rights: &Rights, question: &str, args: &[&str]) -> bool {
        rights.may_ask(question, &args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>()).is_ok()
    }

    #[test]
    fn a_tenant_sees_its_namespace_and_no_other() {
        let tenant = Rights { tenant: Some("shop".into()), ..Rights::default() };
        assert!(asks(&tenant, "service", &["shop/cart.x"]) && !asks(&tenant, "service", &["bank/safe.x"]));
        assert!(asks(&tenant, "namespace", &["shop"]) && !asks(&tenant, "namespace", &["shopping"]));
        assert!(asks(&tenant, "object", &["VirtualService", "shop/v"]));
        assert!(!asks(&tenant, "object", &["shop", "bank/v"]), "the kind is no namespace");
        assert!(
            !asks(&tenant, "selectors", &["Sidecar", "bank"]) && !asks(&tenant, "selector-namespaces", &["Sidecar"])
        );
        assert!(asks(&tenant, "proxy", &["labels"]) && asks(&tenant, "mesh-config", &["trust_domain"]));
        for elsewhere in ["services-of-host", "workload-at", "targets-at", "derived", "network-gateways"] {
            assert!(!asks(&tenant, elsewhere, &["shop"]), "{elsewhere}");
        }
        assert!(asks(&Rights::default(), "service", &["bank/safe.x"]));
    }

    #[test]
    fn what_may_be_asked_is_listed() {
        let read = |question: &str, kinds: &[&str]| Read {
            question: question.into(),
            kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
        };
        let rights =
            Rights { reads: Some(vec![read("object", &["VirtualService"]), read("proxy", &[])]), ..Rights::default() };
        assert!(asks(&rights, "object", &["VirtualService", "n/v"]) && asks(&rights, "proxy", &["labels"]));
        assert!(!asks(&rights, "object", &["Sidecar", "n/s"]) && !asks(&rights, "service", &["n/s"]));
    }

    #[test]
    fn what_may_be_changed_is_a_set_of_fields() {
        let write = Write {
            hook: "clusters".into(),
            fields: vec![Path::parse("connect_timeout"), Path::parse("circuit_breakers/**")],
        };
        let rights = Rights { writes: Some(vec![write]), ..Rights::default() };
        let change = |hook: &str, path: &str| rights.may_change(hook, "c", path);
        assert_eq!(change("clusters", "connect_timeout"), Ok(()));
        assert_eq!(change("clusters", "circuit_breakers/thresholds/0"), Ok(()));
        assert!(change("clusters", "type").is_err_and(|why| why.contains("type of \"c\" at clusters")));
        assert!(change("clusters", "").is_err_and(|why| why.contains("all of \"c\"")));
        assert!(change("listeners", "connect_timeout").is_err());
    }
}
