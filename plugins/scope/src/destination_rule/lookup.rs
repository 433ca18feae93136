//! Which rules hold in which namespace, from summaries alone.

use std::collections::{BTreeMap, BTreeSet};

use trysail_sdk::facts::DestinationRuleSummary;
use trysail_sdk::hosts;

/// What the lookup knows of a rule.
pub struct Rule<'r> {
    index: usize,
    summary: &'r DestinationRuleSummary,
    /// `exportTo` as written where that was needed, else the effective one.
    export_to: BTreeSet<String>,
    /// Only proxies of its own namespace see it.
    private: bool,
}

/// Rules of one namespace and host that became one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Namespace of the rules.
    pub namespace: String,
    /// Labels of the workloads that it is for; none for all.
    pub selector: Option<BTreeMap<String, String>>,
    /// Positions of the rules among those found, in the order in which they are merged.
    pub from: Vec<usize>,
    export_to: BTreeSet<String>,
}

/// All rules that cover a service's host.
pub struct Lookup<'r> {
    /// The rules, oldest first.
    pub rules: &'r [Rule<'r>],
    /// The service's host.
    pub host: &'r str,
    /// The service's namespace.
    pub service_namespace: &'r str,
    /// The mesh's root namespace.
    pub root: &'r str,
    /// Rules are merged only when their `exportTo` agree (`ENABLE_ENHANCED_DESTINATIONRULE_MERGE`).
    pub enhanced: bool,
}

impl<'r> Rule<'r> {
    /// A rule, with its `exportTo` as written if that is known.
    pub fn new(index: usize, summary: &'r DestinationRuleSummary, written: Option<Vec<String>>) -> Self {
        let own = |to: &String| to == "." || *to == summary.namespace;
        let is_private = |export_to: &[String]| matches!(export_to, [to] if own(to));
        if summary.has_selector {
            // A rule for some workloads is never exported.
            return Rule { index, summary, export_to: BTreeSet::from([".".to_owned()]), private: true };
        }
        let private = match &written {
            Some(written) if !written.is_empty() => is_private(written),
            _ => is_private(&summary.export_to),
        };
        let export_to = written.unwrap_or_else(|| summary.export_to.clone());
        Rule { index, summary, export_to: export_to.into_iter().collect(), private }
    }

    /// Namespaces in which the rule may make a difference.
    pub fn named_namespaces(&self) -> impl Iterator<Item = &str> {
        let named = self.export_to.iter().map(String::as_str).filter(|to| !["*", ".", "~"].contains(to));
        named.chain([self.summary.namespace.as_str()])
    }

    /// Do proxies of its own namespace use it?
    fn is_local(&self) -> bool {
        let to = |name: &str| self.export_to.contains(name);
        self.export_to.is_empty() || to("*") || to(".") || to(&self.summary.namespace)
    }
}

impl<'r> Lookup<'r> {
    /// The rules for a proxy of a namespace, or of one that no rule names.
    pub fn for_client(&self, client: Option<&str>) -> Vec<Merged> {
        // Rules of the root namespace are meant for the mesh: of these a proxy there prefers only private ones to those
        // of the service's namespace.
        let own = client.map(|client| match client == self.root {
            true => self.merged(client, |rule| rule.private),
            false => self.merged(client, Rule::is_local),
        });
        if let Some(own) = own.filter(|own| !own.is_empty()) {
            return own;
        }
        let exported = self.exported(self.service_namespace, client);
        if !exported.is_empty() {
            return exported;
        }
        self.exported(self.root, client)
    }

    /// Rules that a namespace exports to the client. The most specific host is looked for before it is known whether
    /// its rules are for this client, so a more general one does not step in.
    fn exported(&self, namespace: &str, client: Option<&str>) -> Vec<Merged> {
        let mut merged = self.merged(namespace, |rule| !rule.private);
        merged.retain(|rule| {
            let to = |name: &str| rule.export_to.contains(name);
            rule.export_to.is_empty() || to("*") || client.is_some_and(to)
        });
        merged
    }

    /// The merged rules of the most specific host among those of a namespace that `counts`.
    fn merged(&self, namespace: &str, counts: impl Fn(&Rule<'r>) -> bool) -> Vec<Merged> {
        let rules = || self.rules.iter().filter(|rule| rule.summary.namespace == namespace && counts(rule));
        let Some(host) = rules().map(|rule| rule.summary.host.as_str()).min_by(|a, b| self.order(a, b)) else {
            return Vec::new();
        };
        let of_host = || rules().filter(|rule| rule.summary.host == host);
        // Rules for some workloads come first, whatever their age.
        let selecting = of_host().filter(|rule| rule.summary.has_selector);
        let general = of_host().filter(|rule| !rule.summary.has_selector);
        let mut merged: Vec<Merged> = Vec::new();
        for rule in selecting.chain(general) {
            self.merge(&mut merged, rule);
        }
        merged
    }

    /// The service's own host first, then the more specific.
    fn order(&self, a: &str, b: &str) -> std::cmp::Ordering {
        (a != self.host).cmp(&(b != self.host)).then_with(|| hosts::more_specific_first(a, b))
    }

    /// Merges a rule into those of the same namespace and host that came before, and adds it if it stands alone.
    fn merge(&self, merged: &mut Vec<Merged>, rule: &Rule<'r>) {
        let selector = rule.summary.has_selector.then_some(&rule.summary.selector);
        // What the last of those before says decides: as istiod does it, though it need not be what one means when
        // several stand alone already.
        let mut alone = true;
        for held in merged.iter_mut() {
            if self.enhanced {
                if rule.export_to == held.export_to {
                    alone = false;
                } else {
                    alone = true;
                    let widens = !held.export_to.is_empty() && rule.export_to.is_superset(&held.export_to);
                    if !widens {
                        continue;
                    }
                }
            }
            match (&held.selector, selector) {
                (Some(a), Some(b)) if a != b => {
                    alone = true;
                    continue;
                }
                (Some(_), Some(_)) | (None, None) => alone = false,
                _ => {}
            }
            held.from.push(rule.index);
        }
        if alone {
            merged.push(Merged {
                namespace: rule.summary.namespace.clone(),
                selector: selector.cloned(),
                from: vec![rule.index],
                export_to: rule.export_to.clone(),
            });
        }
    }
}
