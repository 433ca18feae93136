//! DestinationRules by host.

use bytes::Bytes;
use trysail_model::{Object, ObjectRef};
use trysail_proto::istio::networking::v1alpha3::DestinationRule;
use trysail_proto::trysail::facts::v1::DestinationRuleSummary;

use crate::documents;
use crate::inputs::Base;
use crate::services::{age, creation};
use crate::table::key;
use crate::wire;

/// A DestinationRule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its object.
    pub reference: ObjectRef,
    /// Host, fully qualified; may be a wildcard.
    pub host: String,
    /// Oldest first, then name and namespace.
    pub order: String,
    /// Its entry in `facts.v1.DestinationRuleSummaries`.
    pub summary: Bytes,
}

impl Rule {
    /// Reads a DestinationRule from its document.
    pub fn new(object: &Object, document: &[u8], base: &Base) -> Rule {
        let rule: DestinationRule = documents::decode(document).unwrap_or_default();
        let has_selector = rule.workload_selector.is_some();
        let mut export_to = rule.export_to;
        export_to.sort();
        export_to.dedup();
        if has_selector {
            // Rules for some workloads hold in their own namespace alone.
            export_to = vec![".".to_owned()];
        } else if export_to.is_empty() {
            // Of the mesh's default only `.` and `*` count.
            let private = base.mesh.config.default_destination_rule_export_to.iter().any(|export| export == ".");
            export_to = vec![if private { "." } else { "*" }.to_owned()];
        }
        let reference = object.reference.clone();
        let (creation_seconds, _) = creation(object.creation_nanos);
        let entry = DestinationRuleSummary {
            namespace: reference.namespace.to_string(),
            name: reference.name.to_string(),
            creation_seconds,
            host: rule.host.clone(),
            export_to,
            has_selector,
            selector: rule.workload_selector.map(|s| s.match_labels).unwrap_or_default(),
            api_version: object.api_version.to_string(),
        };
        let mut summary = Vec::new();
        wire::put_message(&mut summary, 1, &entry);
        let order = key(&[&age(object.creation_nanos), &reference.name, &reference.namespace]);
        Rule { reference, host: rule.host, order, summary: summary.into() }
    }
}

/// Is `outer` the host itself, or a wildcard that covers all that `host` stands for?
pub fn covers(outer: &str, host: &str) -> bool {
    match outer.strip_prefix('*') {
        Some(suffix) => host.strip_prefix('*').unwrap_or(host).ends_with(suffix),
        None => outer == host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_cover() {
        assert!(
            covers("*", "a.com") && covers("*.com", "a.com") && covers("a.com", "a.com") && covers("*.com", "*.b.com")
        );
        assert!(!covers("a.com", "*.com") && !covers("*.b.com", "*.com") && covers("*.com", "*.com"));
    }
}
