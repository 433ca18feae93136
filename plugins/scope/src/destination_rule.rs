//! The effective DestinationRule of a service for a proxy.
//!
//! Rules of the proxy's namespace come before exported ones of the service's namespace, and these before those of the
//! root namespace; within a namespace the most specific host wins, and rules of one host are merged. So for most
//! services the answer is the same for proxies everywhere, and for the others it differs in a few namespaces. [`lookup`]
//! decides this for any namespace from summaries alone; only if some namespace would get another answer is the proxy
//! asked whether it is there.
//!
//! A subset that was defined by a rule merged before is left out with a diagnostic; so is a second traffic policy.

mod lookup;
mod merge;

use std::collections::{BTreeMap, BTreeSet};

use trysail_sdk::facts::{DestinationRuleSummary, Object};
use trysail_sdk::prost::Message as _;
use trysail_sdk::proto::istio::networking::v1alpha3::DestinationRule;
use trysail_sdk::{Ctx, Failure, Output};

use crate::client::Client;
use lookup::{Lookup, Merged, Rule};

/// The kind of the objects.
const KIND: &str = "DestinationRule";

/// What the rule is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Clusters of the service: rules that select workloads hold for those.
    Outbound,
    /// The service's own ports of the proxy: rules that select workloads do not count.
    Inbound,
}

/// `scope/destination-rule KEY [inbound]`: the rule for the service, or none.
pub fn effective(ctx: &Ctx, key: &str, direction: Direction) -> Result<Output, Failure> {
    let (namespace, host) = key.split_once('/').ok_or_else(|| Failure::BadArguments(format!("service key {key:?}")))?;
    let found = ctx.destination_rules_matching(host)?;
    if found.is_empty() {
        return Ok(Output::empty());
    }
    let mut bodies = Bodies::new(ctx);
    if let [only] = found.as_slice()
        && only.namespace == namespace
        && !only.has_selector
        && only.export_to.iter().any(|to| to == "*")
    {
        return bodies.output(&found, &[0]);
    }
    let mut rules = Vec::with_capacity(found.len());
    let several = has_several_of_one_host(&found);
    for (index, summary) in found.iter().enumerate() {
        // Whether rules are merged depends on their exportTo as written; one alone is judged by the effective one.
        let written = match several.contains(&(summary.namespace.as_str(), summary.host.as_str())) {
            true => bodies.get(summary)?.map(|(_, rule)| rule.export_to.clone()),
            false => None,
        };
        rules.push(Rule::new(index, summary, written));
    }
    let enhanced = !several.is_empty() && ctx.flags(["ENABLE_ENHANCED_DESTINATIONRULE_MERGE"])?[0];
    let root = ctx.mesh_config(&["root_namespace"])?.root_namespace;
    let lookup = Lookup { rules: &rules, host, service_namespace: namespace, root: &root, enhanced };

    let client = Client::new(ctx);
    let elsewhere = lookup.for_client(None);
    let special = rules.iter().flat_map(Rule::named_namespaces).collect::<BTreeSet<_>>();
    let special = special.into_iter().filter(|namespace| lookup.for_client(Some(namespace)) != elsewhere);
    let own = client.among(special);
    let merged = match own {
        Some(_) => lookup.for_client(own),
        None => elsewhere,
    };
    match select(ctx, direction, own, &merged) {
        Some(chosen) => bodies.output(&found, &chosen.from),
        None => Ok(Output::empty()),
    }
}

/// The first rule that selects the proxy's workload, else the last one that selects none.
fn select<'m>(ctx: &Ctx, direction: Direction, own: Option<&str>, merged: &'m [Merged]) -> Option<&'m Merged> {
    let selects = |rule: &&Merged| match &rule.selector {
        Some(selector) => {
            direction == Direction::Outbound && own == Some(&*rule.namespace) && ctx.proxy_labels_match(selector)
        }
        None => false,
    };
    merged.iter().find(selects).or_else(|| merged.iter().rfind(|rule| rule.selector.is_none()))
}

/// Namespaces and hosts that more than one rule is for.
fn has_several_of_one_host(found: &[DestinationRuleSummary]) -> BTreeSet<(&str, &str)> {
    let mut seen = BTreeSet::new();
    let pairs = found.iter().map(|rule| (rule.namespace.as_str(), rule.host.as_str()));
    pairs.filter(|pair| !seen.insert(*pair)).collect()
}

/// The documents, each asked for once.
struct Bodies<'c> {
    ctx: &'c Ctx<'c>,
    known: BTreeMap<String, Option<(Object, DestinationRule)>>,
}

impl<'c> Bodies<'c> {
    fn new(ctx: &'c Ctx<'c>) -> Self {
        Bodies { ctx, known: BTreeMap::new() }
    }

    fn get(&mut self, rule: &DestinationRuleSummary) -> Result<Option<&(Object, DestinationRule)>, Failure> {
        let key = format!("{}/{}", rule.namespace, rule.name);
        if !self.known.contains_key(&key) {
            let body = self.ctx.object(KIND, &key)?;
            self.known.insert(key.clone(), body);
        }
        Ok(self.known.get(&key).and_then(Option::as_ref))
    }

    /// The rule made of these, the first giving its name.
    fn output(&mut self, found: &[DestinationRuleSummary], from: &[usize]) -> Result<Output, Failure> {
        let mut output = Output::empty();
        let Some((first, rest)) = from.split_first() else { return Ok(output) };
        let Some((object, rule)) = self.get(&found[*first])?.cloned() else { return Ok(output) };
        let mut merged = merge::Merge::new(&object, rule);
        for index in rest {
            if let Some((object, rule)) = self.get(&found[*index])? {
                merged.add(object, rule, &mut output);
            }
        }
        let spec = if rest.is_empty() { object.spec } else { merged.into_rule().encode_to_vec() };
        // Neither labels nor annotations nor age: none of them shows in what is made of the rule.
        let value = Object { r#ref: object.r#ref, api_version: object.api_version, spec, ..Default::default() };
        output.entries = Output::value(&value).entries;
        Ok(output)
    }
}

#[cfg(test)]
mod tests;
