//! What EnvoyFilters of a proxy do not do: made when somebody asks for diagnostics, since it looks at everything at once.
//!
//! Each patch is tried on all that it could match. It is reported when its value could not be read, when it matched nothing
//! (with the nearest thing it could have matched), when an earlier patch took away what it matches, and when it matched
//! and changed nothing. A patch for other proxies or contexts is not this proxy's business.

use std::collections::BTreeMap;

use trysail_sdk::facts::{EnvoyFilterPatch, Strings};
use trysail_sdk::patching::{Context, Patched, ROUTE_CONFIGURATIONS, Through};
use trysail_sdk::prost::Message as _;
use trysail_sdk::proto::istio::networking::v1alpha3::envoy_filter::{
    ApplyTo, EnvoyConfigObjectMatch, envoy_config_object_match::ObjectTypes, patch::Operation,
};
use trysail_sdk::{CallRef, Ctx, Failure, Output, Severity};

use crate::nearest::{self, Candidate};
use crate::patch::{Effect, Notes, Patch, group};
use crate::{Subject, select};

/// Object and place of a patch.
type Key = (String, u32);

/// `envoyfilter/report`: diagnostics only.
pub fn report(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let everything = select::everything(ctx)?;
    if everything.is_empty() {
        return Ok(output);
    }
    let contexts = Context::of_proxy(ctx.proxy("type").as_deref());
    let mut outcomes: BTreeMap<Key, Outcome> = BTreeMap::new();
    for patched in Patched::ALL {
        for context in contexts {
            try_all(ctx, patched, *context, &mut outcomes)?;
        }
    }
    for patch in &everything {
        let matching = EnvoyConfigObjectMatch::decode(patch.r#match.as_slice())
            .map_err(|e| Failure::BadAnswer(format!("match of EnvoyFilter {}: {e}", patch.object)))?;
        if contexts.iter().any(|context| Patch::matches_context(&matching, *context)) {
            if let Some(path) = beside_the_point(patch, &matching) {
                let what = ApplyTo::try_from(patch.apply_to).unwrap_or_default().as_str_name();
                let field = format!("spec.configPatches[{}].{path}", patch.index);
                let message = format!("does not count for {what}: the patch applies to all of these");
                output.diagnose(Severity::Warning, format!("EnvoyFilter {}", patch.object), field, message);
            }
            say(patch, outcomes.get(&(patch.object.clone(), patch.index)), &mut output);
        }
    }
    Ok(output)
}

/// The part of a match that is about something else than the patch.
fn beside_the_point(patch: &EnvoyFilterPatch, matching: &EnvoyConfigObjectMatch) -> Option<&'static str> {
    let of = group(ApplyTo::try_from(patch.apply_to).unwrap_or_default())?;
    let (path, about) = match matching.object_types.as_ref()? {
        ObjectTypes::Listener(_) => ("match.listener", Some(Patched::Listeners)),
        ObjectTypes::RouteConfiguration(_) => ("match.routeConfiguration", Some(Patched::Routes)),
        ObjectTypes::Cluster(_) => ("match.cluster", Some(Patched::Clusters)),
        ObjectTypes::Waypoint(_) => ("match.waypoint", None),
    };
    (about != Some(of)).then_some(path)
}

/// What became of a patch in all contexts.
#[derive(Default)]
struct Outcome {
    effect: Effect,
    /// It would have matched without those before it.
    shadowed: bool,
    /// What came nearest to its match.
    nearest: Option<nearest::Nearest>,
}

/// A message that patches can touch.
struct Tried {
    hosts: Vec<String>,
    message: Vec<u8>,
}

fn try_all(
    ctx: &Ctx<'_>,
    patched: Patched,
    context: Context,
    outcomes: &mut BTreeMap<Key, Outcome>,
) -> Result<(), Failure> {
    let found = select::selected(ctx, patched, context)?;
    if found.is_empty() {
        return Ok(());
    }
    let patches = Patch::all(&found)?;
    let subject = Subject::ask(ctx, patched, context)?;
    let tried = tried(ctx, patched, context)?;
    let mut notes = Notes::default();
    for Tried { hosts, message } in &tried {
        subject.apply(&patches, hosts, message, &mut notes);
    }
    for patch in &patches {
        if patch.adds_whole(patched, context) {
            notes.applied(patch, true);
        }
        let outcome = outcomes.entry((patch.made.object.clone(), patch.made.index)).or_default();
        let effect = notes.0.remove(&patch.at).unwrap_or_default();
        if !effect.matched {
            let mut alone = Notes::default();
            for Tried { hosts, message } in &tried {
                subject.apply(std::slice::from_ref(patch), hosts, message, &mut alone);
            }
            outcome.shadowed |= alone.0.get(&patch.at).is_some_and(|effect| effect.matched);
            let candidates = tried
                .iter()
                .flat_map(|t| Candidate::all(patch.apply_to, context, &subject.ports, &t.hosts, &t.message));
            outcome.nearest = nearest::better(outcome.nearest.take(), nearest::find(patch, candidates));
        }
        outcome.effect.matched |= effect.matched;
        outcome.effect.changed |= effect.changed;
        outcome.effect.reasons.extend(effect.reasons);
    }
    Ok(())
}

/// Everything of a kind and context, as it is before patches.
fn tried(ctx: &Ctx<'_>, patched: Patched, context: Context) -> Result<Vec<Tried>, Failure> {
    let subjects = match (patched, context) {
        (Patched::Routes, Context::Inbound) => subjects(ctx, "listeners", "inbound-routes", &[])?,
        (Patched::Routes, _) => discovered_routes(ctx, context)?,
        (Patched::Clusters, _) => subjects(ctx, "clusters", "subjects", &[context.text()])?,
        (Patched::Listeners, _) => subjects(ctx, "listeners", "subjects", &[context.text()])?,
    };
    let mut tried = Vec::new();
    for Through { hosts, call, .. } in subjects {
        let items = ctx.derived_items(&call)?;
        tried.extend(items.into_iter().map(|item| Tried { hosts: hosts.clone(), message: item.message }));
    }
    Ok(tried)
}

/// The calls that a stage says patches can touch.
fn subjects(ctx: &Ctx<'_>, stage: &str, function: &str, args: &[&str]) -> Result<Vec<Through>, Failure> {
    let items = ctx.derived_items(&CallRef::new(stage, function, args.iter().copied()))?;
    let through = |bytes: &[u8]| {
        let args = Strings::decode(bytes).map_err(|e| Failure::BadAnswer(format!("{stage}/{function}: {e}")))?;
        Through::parse(&args.values).ok_or_else(|| Failure::BadAnswer(format!("{stage}/{function}: no subject")))
    };
    items.iter().map(|item| through(&item.message)).collect()
}

/// The route configurations that listeners name.
fn discovered_routes(ctx: &Ctx<'_>, context: Context) -> Result<Vec<Through>, Failure> {
    let mut names = std::collections::BTreeSet::new();
    for Through { call, .. } in subjects(ctx, "listeners", "subjects", &[context.text()])? {
        let items = ctx.derived_items(&call)?;
        let refs = items.iter().flat_map(|item| &item.refs);
        names.extend(refs.filter_map(|reference| reference.strip_prefix("rds:")).map(str::to_owned));
    }
    let call = |name| CallRef::new("routes", "unpatched", [name]).hooked(ROUTE_CONFIGURATIONS);
    let through = |name| Through { context, hosts: Vec::new(), call: call(name) };
    Ok(names.into_iter().map(through).collect())
}

/// Says what is to be said of one patch.
fn say(patch: &EnvoyFilterPatch, outcome: Option<&Outcome>, output: &mut Output) {
    let object = format!("EnvoyFilter {}", patch.object);
    let at =
        |path: &str| format!("spec.configPatches[{}]{}{path}", patch.index, if path.is_empty() { "" } else { "." });
    let mut diagnose = |severity, path: &str, message: String| {
        output.diagnose(severity, object.clone(), at(path), message);
    };
    if let Some((path, why)) = patch.error.split_once(": ") {
        return diagnose(Severity::Error, path, format!("does nothing: {why}"));
    }
    for path in &patch.unknown_fields {
        diagnose(Severity::Warning, path, "is skipped: Envoy's message has no such field".into());
    }
    let apply_to = ApplyTo::try_from(patch.apply_to).unwrap_or_default();
    let operation = Operation::try_from(patch.operation).unwrap_or_default();
    if apply_to == ApplyTo::ExtensionConfig && operation != Operation::Add {
        let why = format!("{} does nothing for {}", operation.as_str_name(), apply_to.as_str_name());
        diagnose(Severity::Warning, "patch.operation", why);
    }
    if group(apply_to).is_none() {
        return;
    }
    let Some(Outcome { effect, shadowed, nearest }) = outcome else { return };
    if !effect.matched {
        let (path, message) = match nearest {
            _ if *shadowed => {
                ("match".to_owned(), "does nothing: earlier patches took away what it matches".to_owned())
            }
            Some(nearest) => (nearest.path(), format!("matches nothing of this proxy; nearest is {nearest}")),
            None => ("match".to_owned(), format!("matches nothing: this proxy has no {}", nearest::words(apply_to))),
        };
        return diagnose(Severity::Warning, &path, message);
    }
    let severity = if effect.changed { Severity::Info } else { Severity::Warning };
    for reason in &effect.reasons {
        let lead = if effect.changed { "does not apply everywhere: " } else { "does nothing: " };
        diagnose(severity, "patch", format!("{lead}{reason}"));
    }
    if !effect.changed && effect.reasons.is_empty() {
        diagnose(Severity::Warning, "patch.value", "changes nothing of what it matches".into());
    }
    if matches!(operation, Operation::Merge | Operation::MergeAndReplaceList) {
        for path in &patch.empty_wrappers {
            let why = "a merge does not set false, 0 or an empty text where there is a value already";
            diagnose(Severity::Info, path, why.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, matching, patch, service};
    use trysail_sdk::facts::{EnvoyFilter, Items, SelectorSummaries, SelectorSummary, items::Item};
    use trysail_sdk::proto::envoy::config::cluster::v3::Cluster;

    /// What is said of patches by a sidecar that has one cluster.
    fn said(patches: Vec<EnvoyFilterPatch>) -> Vec<(String, String)> {
        let strings = |values: &[&str]| Strings { values: values.iter().map(|value| (*value).to_owned()).collect() };
        let items = |message: Vec<u8>| Items { items: vec![Item { message, ..Default::default() }] };
        let summary = SelectorSummary { namespace: "own".into(), name: "o".into(), ..Default::default() };
        let subject = strings(&["SIDECAR_OUTBOUND", "", "", "clusters", "service", "own/a"]);
        let cluster = Cluster { name: "outbound|80||a.example".into(), ..Default::default() };
        let world = World::default()
            .answer("selector-namespaces EnvoyFilter", &strings(&["own"]))
            .bytes("proxy-in-namespaces own", "own")
            .bytes("proxy type", "sidecar")
            .answer("selectors EnvoyFilter own", &SelectorSummaries { entries: vec![summary] })
            .answer("envoy-filter own/o", &EnvoyFilter { patches, ..Default::default() })
            .answer("derived-items  clusters subjects SIDECAR_OUTBOUND", &items(subject.encode_to_vec()))
            .answer("derived-items  clusters service own/a", &items(cluster.encode_to_vec()));
        world.call("report", &[]).diagnostics.into_iter().map(|d| (d.field, d.message)).collect()
    }

    fn merge() -> EnvoyFilterPatch {
        let value = Cluster { alt_stat_name: "x".into(), ..Default::default() };
        patch(ApplyTo::Cluster, Operation::Merge, &value)
    }

    #[test]
    fn what_works_is_not_spoken_of() {
        assert_eq!(said(vec![merge(), matching(service("a.example"), merge())]), []);
    }

    #[test]
    fn the_nearest_thing_is_named() {
        let [(field, message)] = &said(vec![matching(service("b.example"), merge())])[..] else { panic!("one") };
        assert_eq!(field, "spec.configPatches[0].match.cluster.service");
        assert!(message.contains("nearest is cluster outbound|80||a.example"), "{message}");
        assert!(message.contains("cluster.service is a.example and not b.example"), "{message}");
    }

    #[test]
    fn a_patch_that_comes_too_late_is_told_so() {
        let late = EnvoyFilterPatch { index: 1, ..merge() };
        let said = said(vec![patch(ApplyTo::Cluster, Operation::Remove, &()), late]);
        assert_eq!(said.len(), 1);
        assert!(said[0].0 == "spec.configPatches[1].match" && said[0].1.contains("earlier patches"), "{said:?}");
    }

    #[test]
    fn values_that_do_not_fit_are_told_with_their_path() {
        let broken = EnvoyFilterPatch { error: "patch.value.name: expected text, found 1".into(), ..merge() };
        let skipping = EnvoyFilterPatch { unknown_fields: vec!["patch.value.no".into()], ..merge() };
        let said = said(vec![broken, EnvoyFilterPatch { index: 1, ..skipping }]);
        let fields: Vec<&str> = said.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(fields, ["spec.configPatches[0].patch.value.name", "spec.configPatches[1].patch.value.no"]);
    }
}
