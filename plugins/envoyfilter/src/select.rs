//! Which patches a proxy has, and in which order.
//!
//! EnvoyFilters of the root namespace hold for all proxies, others for those of their namespace; a selector or target
//! narrows that. The order is by priority, then the root namespace first, then age, then name.

use trysail_sdk::facts::{EnvoyFilterPatch, EnvoyFilterPatches, PatchScope, SelectorSummary, Strings};
use trysail_sdk::patching::{Context, Patched, STAGE};
use trysail_sdk::prost::Message as _;
use trysail_sdk::proto::istio::networking::v1alpha3::envoy_filter::{
    ApplyTo, EnvoyConfigObjectMatch, ProxyMatch, patch::Operation,
};
use trysail_sdk::{Ctx, Failure, Item, Output};

use crate::patch::{Patch, group};
use crate::{clusters, message, routes, wire};

/// The kind of the objects.
const KIND: &str = "EnvoyFilter";
/// Label that says which Gateway of the Gateway API a proxy is deployed for.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// A longer expression for versions is not tried: it costs more than any version is long.
const MAX_VERSION_PATTERN: usize = 1024;

/// `envoyfilter/filters`: keys of the EnvoyFilters of the proxy in the order in which they apply.
pub fn filters(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let namespaces = ctx.selector_namespaces(KIND)?;
    if namespaces.is_empty() {
        return Ok(Output::empty());
    }
    let root = ctx.mesh_config(&["root_namespace"])?.root_namespace;
    let others: Vec<&str> = namespaces.iter().map(String::as_str).filter(|namespace| *namespace != root).collect();
    let mut found = Vec::new();
    if namespaces.contains(&root) {
        found.extend(ctx.selectors(KIND, &root)?);
    }
    if let Some(own) = ctx.proxy_in_namespaces(&others) {
        found.extend(ctx.selectors(KIND, &own)?);
    }
    if found.is_empty() {
        return Ok(Output::empty());
    }
    let gateway = ctx.proxy(&format!("label:{GATEWAY_NAME}"));
    let [by_label] = match gateway {
        Some(_) => ctx.flags(["ENABLE_SELECTOR_BASED_K8S_GATEWAY_POLICY"])?,
        None => [true],
    };
    found.retain(|filter| match &gateway {
        Some(name) if !filter.target_refs.is_empty() => targets(ctx, filter, name),
        Some(_) => by_label && ctx.proxy_labels_match(&filter.selector),
        // Only gateways of the Gateway API can be targets.
        None => filter.target_refs.is_empty() && ctx.proxy_labels_match(&filter.selector),
    });
    // Of one second istiod sorts by the name with the namespace, so that `a-b` comes before `a`.
    let name = |filter: &SelectorSummary| format!("{}.{}", filter.name, filter.namespace);
    found.sort_by_cached_key(|f| (f.priority, f.namespace != root, f.creation_seconds, name(f)));
    let values: Vec<String> = found.iter().map(|filter| format!("{}/{}", filter.namespace, filter.name)).collect();
    Ok(if values.is_empty() { Output::empty() } else { Output::value(&Strings { values }) })
}

/// Does an EnvoyFilter name the Gateway that the proxy is deployed for?
fn targets(ctx: &Ctx<'_>, filter: &SelectorSummary, gateway: &str) -> bool {
    let names_it = filter.target_refs.iter().any(|target| {
        (target.group.as_str(), target.kind.as_str()) == ("gateway.networking.k8s.io", "Gateway")
            && target.name == gateway
            && (target.namespace.is_empty() || target.namespace == filter.namespace)
    });
    names_it && ctx.proxy_in_namespaces(&[filter.namespace.as_str()]).is_some()
}

/// All patches of the proxy that `wanted` takes, in order. Where they can be applied is not looked at.
fn all(
    ctx: &Ctx<'_>,
    wanted: impl Fn(&EnvoyFilterPatch, &EnvoyConfigObjectMatch) -> bool,
) -> Result<Vec<EnvoyFilterPatch>, Failure> {
    let filters: Strings = ctx.derived(STAGE, "filters", &[])?.unwrap_or_default();
    let mut found = Vec::new();
    for key in &filters.values {
        for patch in ctx.envoy_filter(key)?.unwrap_or_default().patches {
            let matching = EnvoyConfigObjectMatch::decode(patch.r#match.as_slice())
                .map_err(|e| Failure::BadAnswer(format!("match of EnvoyFilter {key}: {e}")))?;
            if wanted(&patch, &matching) && matching.proxy.as_ref().is_none_or(|proxy| is_for(ctx, proxy)) {
                found.push(patch);
            }
        }
    }
    Ok(found)
}

fn is_for(ctx: &Ctx<'_>, proxy: &ProxyMatch) -> bool {
    let pattern = &proxy.proxy_version;
    (pattern.is_empty() || (pattern.len() <= MAX_VERSION_PATTERN && ctx.proxy_version_matches(pattern)))
        && ctx.proxy_metadata_match(&proxy.metadata)
}

/// Every patch of the proxy, for the report: those of other contexts, and those that cannot be applied, too.
pub fn everything(ctx: &Ctx<'_>) -> Result<Vec<EnvoyFilterPatch>, Failure> {
    all(ctx, |_, _| true)
}

/// `envoyfilter/patches KIND CONTEXT`: [`EnvoyFilterPatches`] that can be applied, in order.
pub fn patches(ctx: &Ctx<'_>, patched: Patched, context: Context) -> Result<Output, Failure> {
    let patches = all(ctx, |patch, matching| {
        let apply_to = ApplyTo::try_from(patch.apply_to).unwrap_or_default();
        patch.error.is_empty() && group(apply_to) == Some(patched) && Patch::matches_context(matching, context)
    })?;
    // What is only for people would make two equal patches differ.
    let bare = |patch| EnvoyFilterPatch { unknown_fields: Vec::new(), empty_wrappers: Vec::new(), ..patch };
    let patches: Vec<_> = patches.into_iter().map(bare).collect();
    Ok(if patches.is_empty() { Output::empty() } else { Output::value(&EnvoyFilterPatches { patches }) })
}

/// The answer of [`patches`].
pub fn selected(ctx: &Ctx<'_>, patched: Patched, context: Context) -> Result<Vec<EnvoyFilterPatch>, Failure> {
    let found: Option<EnvoyFilterPatches> = ctx.derived(STAGE, "patches", &[patched.text(), context.text()])?;
    Ok(found.unwrap_or_default().patches)
}

/// `envoyfilter/scope KIND CONTEXT`: [`PatchScope`], or none when there is no patch.
pub fn scope(ctx: &Ctx<'_>, patched: Patched, context: Context) -> Result<Output, Failure> {
    let found = selected(ctx, patched, context)?;
    if found.is_empty() {
        return Ok(Output::empty());
    }
    let mut scope = PatchScope::default();
    for patch in Patch::all(&found)? {
        if patch.operation == Operation::Add && matches!(patch.apply_to, ApplyTo::Cluster | ApplyTo::Listener) {
            scope.adds |= patch.adds_whole(patched, context);
            continue;
        }
        let covered = match patched {
            Patched::Clusters => clusters::cover(&patch, &mut scope),
            Patched::Listeners => cover_listener(&patch, &mut scope),
            Patched::Routes => routes::cover(&patch, context, &mut scope),
        };
        scope.all |= !covered;
    }
    for list in [&mut scope.names, &mut scope.hosts] {
        list.sort();
        list.dedup();
    }
    scope.ports.sort_unstable();
    scope.ports.dedup();
    Ok(Output::value(&scope))
}

/// Notes the listeners that a patch matches; false if that can be any.
fn cover_listener(patch: &Patch<'_>, scope: &mut PatchScope) -> bool {
    let Some(listener) = patch.listener() else { return false };
    if !listener.name.is_empty() {
        scope.names.push(listener.name.clone());
    } else if listener.port_number != 0 {
        scope.ports.push(listener.port_number);
    } else {
        return false;
    }
    true
}

/// `envoyfilter/referenced-services`: services that the proxy's EnvoyFilters say they send to: `host` or `namespace/host`.
pub fn referenced_services(ctx: &Ctx<'_>) -> Result<Output, Failure> {
    let filters: Strings = ctx.derived(STAGE, "filters", &[])?.unwrap_or_default();
    let mut values = Vec::new();
    for key in &filters.values {
        values.extend(ctx.envoy_filter(key)?.unwrap_or_default().referenced_services);
    }
    Ok(if values.is_empty() { Output::empty() } else { Output::value(&Strings { values }) })
}

/// `envoyfilter/extension-config NAME`: the configuration that patches add under a name. Contexts do not count.
pub fn extension_config(ctx: &Ctx<'_>, name: &str) -> Result<Output, Failure> {
    let found = all(ctx, |patch, _| {
        patch.apply_to == i32::from(ApplyTo::ExtensionConfig)
            && patch.operation == i32::from(Operation::Add)
            && patch.error.is_empty()
    })?;
    let mut output = Output::empty();
    // Envoy takes one of a name. istiod sends all of them; the first one is the one of the highest rank here.
    let bytes = found.into_iter().filter_map(|patch| patch.value).find(|bytes| wire::name_of(bytes) == name);
    bytes.into_iter().for_each(|bytes| output.item(Item::new(name, message(bytes))));
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, matching, patch, service};
    use trysail_sdk::facts::{EnvoyFilter, SelectorSummaries, selector_summary::TargetRef};
    use trysail_sdk::proto::envoy::config::cluster::v3::Cluster;
    use trysail_sdk::proto::envoy::config::core::v3::TypedExtensionConfig;
    use trysail_sdk::proto::istio::mesh::v1alpha1::MeshConfig;

    fn summary(namespace: &str, name: &str) -> SelectorSummary {
        SelectorSummary { namespace: namespace.into(), name: name.into(), ..Default::default() }
    }

    fn world(root: Vec<SelectorSummary>, own: Vec<SelectorSummary>) -> World {
        let mesh = MeshConfig { root_namespace: "root".into(), ..Default::default() };
        World::default()
            .answer("selector-namespaces EnvoyFilter", &Strings { values: vec!["own".into(), "root".into()] })
            .answer("mesh-config root_namespace", &mesh)
            .bytes("proxy-in-namespaces own", "own")
            .answer("selectors EnvoyFilter root", &SelectorSummaries { entries: root })
            .answer("selectors EnvoyFilter own", &SelectorSummaries { entries: own })
    }

    fn selected_of(world: &World) -> Vec<String> {
        let items = world.items("filters", &[]);
        items.first().map(|(_, bytes)| Strings::decode(bytes.as_slice()).expect("keys").values).unwrap_or_default()
    }

    #[test]
    fn priority_then_the_root_namespace() {
        let first = SelectorSummary { priority: -1, ..summary("own", "first") };
        let found = selected_of(&world(vec![summary("root", "r")], vec![summary("own", "o"), first]));
        assert_eq!(found, ["own/first", "root/r", "own/o"]);
        let found = selected_of(&world(vec![summary("root", "a"), summary("root", "a-b")], Vec::new()));
        assert_eq!(found, ["root/a-b", "root/a"]);
        assert!(selected_of(&World::default()).is_empty());
    }

    #[test]
    fn selectors_and_targets() {
        let labels = [("app".to_owned(), "x".to_owned())].into();
        let selecting = SelectorSummary { has_selector: true, selector: labels, ..summary("own", "s") };
        let target = TargetRef {
            group: "gateway.networking.k8s.io".into(),
            kind: "Gateway".into(),
            name: "gw".into(),
            ..Default::default()
        };
        let targeting = SelectorSummary { target_refs: vec![target], ..summary("own", "t") };
        let both = || world(Vec::new(), vec![selecting.clone(), targeting.clone()]);
        assert!(selected_of(&both()).is_empty());
        assert_eq!(selected_of(&both().bytes("proxy-labels-match app=x", "")), ["own/s"]);
        let features = Strings { values: vec!["true".into()] };
        let gateway = |name: &str| {
            both()
                .bytes("proxy label:gateway.networking.k8s.io/gateway-name", name)
                .answer("features ENABLE_SELECTOR_BASED_K8S_GATEWAY_POLICY", &features)
        };
        assert_eq!((selected_of(&gateway("gw")), selected_of(&gateway("other"))), (vec!["own/t".into()], vec![]));
    }

    fn with(patches: Vec<EnvoyFilterPatch>) -> World {
        world(Vec::new(), vec![summary("own", "o")])
            .answer("envoy-filter own/o", &EnvoyFilter { patches, ..Default::default() })
    }

    #[test]
    fn a_patch_may_be_for_some_proxies_only() {
        let of = |version: &str| {
            let proxy = ProxyMatch { proxy_version: version.into(), ..Default::default() };
            let matching = EnvoyConfigObjectMatch { proxy: Some(proxy), ..Default::default() };
            let patch = patch(ApplyTo::Cluster, Operation::Merge, &Cluster::default());
            with(vec![EnvoyFilterPatch { r#match: matching.encode_to_vec(), ..patch }])
        };
        let n = |world: &World| world.items("patches", &["clusters", "GATEWAY"]).len();
        assert_eq!(n(&of("^1")), 0);
        assert_eq!(n(&of("^1").bytes("proxy-version-matches ^1", "")), 1);
        let long = "1".repeat(1025);
        assert_eq!(n(&of(&long).bytes(&format!("proxy-version-matches {long}"), "")), 0);
        assert_eq!(n(&of("")), 1);
    }

    #[test]
    fn the_scope_is_what_patches_name() {
        let scope = |patch: EnvoyFilterPatch, context: &str| {
            let items = with(vec![patch]).items("scope", &["clusters", context]);
            items.first().map(|(_, bytes)| PatchScope::decode(bytes.as_slice()).expect("a scope"))
        };
        let merge = || patch(ApplyTo::Cluster, Operation::Merge, &Cluster::default());
        assert!(scope(merge(), "GATEWAY").expect("some").all);
        assert_eq!(scope(matching(service("h"), merge()), "GATEWAY").expect("some").hosts, ["h"]);
        let add = || patch(ApplyTo::Cluster, Operation::Add, &Cluster { name: "n".into(), ..Default::default() });
        let adds = |context: &str| scope(add(), context).map(|scope| (scope.adds, scope.all));
        assert_eq!((adds("GATEWAY"), adds("SIDECAR_INBOUND")), (Some((true, false)), Some((false, false))));
        let broken = EnvoyFilterPatch { error: "patch.value: is missing".into(), ..add() };
        assert_eq!(scope(broken, "GATEWAY"), None);
    }

    #[test]
    fn extension_configurations_by_name() {
        let of = |name: &str| TypedExtensionConfig { name: name.into(), ..Default::default() };
        let add = |name: &str| patch(ApplyTo::ExtensionConfig, Operation::Add, &of(name));
        let world = with(vec![add("a"), add("b"), add("b")]);
        assert_eq!(world.items("extension-config", &["b"]).len(), 1);
        assert!(world.items("extension-config", &["c"]).is_empty());
    }
}
