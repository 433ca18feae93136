//! Patches of filter chains, their network filters, and the HTTP filters in those.

use trysail_sdk::proto::istio::networking::v1alpha3::envoy_filter::{ApplyTo, patch::Operation};

use crate::edit;
use crate::listeners::{DEFAULT_FILTER_CHAIN, FILTER_CHAINS, Seen};
use crate::patch::{Notes, Patch};
use crate::wire::{self, Fields};

/// FilterChain.filter_chain_match.
const MATCH: u32 = 1;
/// FilterChain.filters.
pub const FILTERS: u32 = 3;
/// FilterChain.transport_socket.
const TRANSPORT_SOCKET: u32 = 6;
/// FilterChain.name.
const CHAIN_NAME: u32 = 7;
/// Filter.typed_config.
const CONFIG: u32 = 4;
/// HttpConnectionManager.http_filters.
const HTTP_FILTERS: u32 = 5;

/// Name of the filter whose HTTP filters can be patched.
const HTTP_MANAGER: &str = "envoy.filters.network.http_connection_manager";
/// Its configuration.
const HTTP_MANAGER_CONFIG: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// What of a filter chain patches can match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenChain {
    /// Its name.
    pub name: String,
    /// Port of the connections that it takes, or 0.
    pub destination_port: u32,
    /// SNI.
    pub server_names: Vec<String>,
    /// `tls`, `raw_buffer` or nothing.
    pub transport_protocol: String,
    /// ALPN.
    pub application_protocols: Vec<String>,
}

impl SeenChain {
    /// Looks at a filter chain.
    pub fn of(chain: &Fields<'_>) -> Self {
        let found = chain.message(MATCH).unwrap_or_default();
        let found = Fields::parse(&found);
        let port = found.message(8).map(|wrapped| Fields::parse(&wrapped).number(1));
        SeenChain {
            name: chain.text(CHAIN_NAME),
            destination_port: port.and_then(|port| u32::try_from(port).ok()).unwrap_or_default(),
            server_names: found.texts(11),
            transport_protocol: found.text(9),
            application_protocols: found.texts(10),
        }
    }

    fn matches(&self, listener: &Seen, patch: &Patch<'_>) -> bool {
        let port = patch.listener().map_or(0, |wanted| wanted.port_number);
        if listener.is_virtual() && port != 0 && port != self.destination_port {
            return false;
        }
        let Some(wanted) = patch.chain() else { return true };
        let is = |wanted: &str, own: &str| wanted.is_empty() || wanted == own;
        let protocols = wanted.application_protocols.split(',');
        is(&wanted.name, &self.name)
            && (wanted.sni.is_empty() || self.server_names.contains(&wanted.sni))
            && is(&wanted.transport_protocol, &self.transport_protocol)
            && (wanted.application_protocols.is_empty()
                || protocols.clone().all(|protocol| self.application_protocols.iter().any(|own| own == protocol)))
            && (wanted.destination_port == 0 || wanted.destination_port == self.destination_port)
    }
}

/// Patches the chains of a listener. The patches match the listener.
pub fn apply(patches: &[&Patch<'_>], seen: &Seen, listener: &mut Fields<'_>, notes: &mut Notes) {
    let before = listener.list(FILTER_CHAINS);
    let mut chains: Vec<Vec<u8>> =
        before.iter().filter_map(|chain| patched_chain(patches, seen, chain, notes)).collect();
    if let Some(default) = listener.message(DEFAULT_FILTER_CHAIN).map(|chain| chain.into_owned())
        && Fields::parse(&default).has(FILTERS)
    {
        match patched_chain(patches, seen, &default, notes) {
            Some(chain) if chain == default => {}
            Some(chain) => listener.set(DEFAULT_FILTER_CHAIN, chain),
            None => listener.remove(DEFAULT_FILTER_CHAIN),
        }
    }
    for patch in of(patches, ApplyTo::FilterChain).filter(|patch| patch.operation == Operation::Add) {
        if Fields::parse(patch.value()).has(FILTERS) {
            chains.push(patch.value().to_vec());
            notes.applied(patch, true);
        } else {
            notes.refused(patch, "a filter chain without filters is left out");
        }
    }
    if chains != before {
        listener.set_list(FILTER_CHAINS, chains);
    }
}

fn of<'a, 'p>(patches: &'a [&'a Patch<'p>], apply_to: ApplyTo) -> impl Iterator<Item = &'a Patch<'p>> {
    patches.iter().copied().filter(move |patch| patch.apply_to == apply_to)
}

/// The chain after the patches; none if one removes it, or nothing is in it.
fn patched_chain(patches: &[&Patch<'_>], listener: &Seen, chain: &[u8], notes: &mut Notes) -> Option<Vec<u8>> {
    if !Fields::parse(chain).has(FILTERS) {
        return None;
    }
    let matches = |patch: &Patch<'_>, chain: &[u8]| SeenChain::of(&Fields::parse(chain)).matches(listener, patch);
    let chain = edit::edited(of(patches, ApplyTo::FilterChain), chain, matches, merge_chain, notes)?;
    let mut fields = Fields::parse(&chain);
    let seen = SeenChain::of(&fields);
    let concerned: Vec<&Patch<'_>> = patches.iter().copied().filter(|patch| seen.matches(listener, patch)).collect();
    let before = fields.list(FILTERS);
    let mut filters = before.clone();
    for patch in of(&concerned, ApplyTo::NetworkFilter) {
        edit::arrange(patch, &mut filters, patch.filter().is_some(), |filter| is_named(patch, filter), notes);
    }
    for filter in &mut filters {
        *filter = patched_filter(&concerned, filter, notes);
    }
    if filters != before {
        fields.set_list(FILTERS, filters);
        return Some(fields.encode());
    }
    Some(chain)
}

/// A patch with a transport socket of the name that the chain's has concerns that socket's configuration alone.
fn merge_chain(patch: &Patch<'_>, chain: &[u8], notes: &mut Notes) -> Vec<u8> {
    let value = Fields::parse(patch.value());
    let mut fields = Fields::parse(chain);
    let own = fields.message(TRANSPORT_SOCKET).map(|own| own.into_owned());
    match (value.message(TRANSPORT_SOCKET), own) {
        (Some(socket), Some(own)) if wire::name_of(&socket) == wire::name_of(&own) => {
            let Some(merged) = edit::merge_socket(patch, &own, &socket, notes) else { return chain.to_vec() };
            fields.set(TRANSPORT_SOCKET, merged);
            fields.encode()
        }
        _ => patch.merged(chain),
    }
}

fn is_named(patch: &Patch<'_>, filter: &[u8]) -> bool {
    patch.filter().is_none_or(|wanted| wanted.name == wire::name_of(filter))
}

/// The network filter after merges, and after patches of the HTTP filters in it.
fn patched_filter(patches: &[&Patch<'_>], filter: &[u8], notes: &mut Notes) -> Vec<u8> {
    let mut filter = filter.to_vec();
    for patch in of(patches, ApplyTo::NetworkFilter).filter(|patch| patch.operation == Operation::Merge) {
        if is_named(patch, &filter) {
            filter = edit::merge_filter(patch, &filter, edit::FILTER, notes);
        }
    }
    if wire::name_of(&filter) != HTTP_MANAGER {
        return filter;
    }
    let concerned: Vec<&Patch<'_>> =
        of(patches, ApplyTo::HttpFilter).filter(|patch| is_named(patch, &filter)).collect();
    if concerned.is_empty() {
        return filter;
    }
    patch_http(&concerned, &filter, notes).unwrap_or(filter)
}

/// Takes a network filter apart: its configuration as an `Any`, and that one's value, if it is an HTTP connection manager's.
pub fn http_filters(filter: &[u8]) -> Option<Vec<Vec<u8>>> {
    let any = http_manager(filter)?;
    Some(Fields::parse(Fields::parse(&any).bytes(2)).list(HTTP_FILTERS))
}

fn http_manager(filter: &[u8]) -> Option<Vec<u8>> {
    let any = Fields::parse(filter).message(CONFIG)?.into_owned();
    let type_url = Fields::parse(&any).text(1);
    (type_url.rsplit('/').next() == Some(HTTP_MANAGER_CONFIG)).then_some(any)
}

/// The network filter with its HTTP filters patched; none if nothing changes.
fn patch_http(patches: &[&Patch<'_>], filter: &[u8], notes: &mut Notes) -> Option<Vec<u8>> {
    let any = http_manager(filter)?;
    let any = Fields::parse(&any);
    let mut manager = Fields::parse(any.bytes(2));
    let before = manager.list(HTTP_FILTERS);
    let mut filters = before.clone();
    let matches =
        |patch: &Patch<'_>, filter: &[u8]| patch.sub_filter().is_none_or(|wanted| wanted == wire::name_of(filter));
    for patch in patches {
        let named = patch.sub_filter().is_some();
        edit::arrange(patch, &mut filters, named, |filter| matches(patch, filter), notes);
    }
    for filter in &mut filters {
        for patch in patches.iter().filter(|patch| patch.operation == Operation::Merge) {
            if matches(patch, filter) {
                *filter = edit::merge_filter(patch, filter, edit::FILTER, notes);
            }
        }
    }
    if filters == before {
        return None;
    }
    manager.set_list(HTTP_FILTERS, filters);
    let mut made = any.clone();
    made.set(2, manager.encode());
    let mut changed = Fields::parse(filter);
    changed.set(CONFIG, made.encode());
    Some(changed.encode())
}

#[cfg(test)]
mod tests {
    use crate::listeners::apply;
    use crate::patch::{Notes, Patch};
    use crate::testing::{configured, filter, matching, patch};
    use trysail_sdk::facts::EnvoyFilterPatch;
    use trysail_sdk::prost::Message as _;
    use trysail_sdk::proto::any::{pack, unpack};
    use trysail_sdk::proto::envoy::config::listener::v3::{self as envoy, FilterChain, Listener};
    use trysail_sdk::proto::envoy::extensions::filters::http::fault::v3::HttpFault;
    use trysail_sdk::proto::envoy::extensions::filters::http::router::v3::Router;
    use trysail_sdk::proto::envoy::extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager, HttpFilter, http_filter,
    };
    use trysail_sdk::proto::istio::networking::v1alpha3::envoy_filter::{ApplyTo, patch::Operation};

    use super::HTTP_MANAGER;

    fn http(name: &str) -> HttpFilter {
        HttpFilter { name: name.into(), ..Default::default() }
    }

    fn network(name: &str) -> envoy::Filter {
        envoy::Filter { name: name.into(), ..Default::default() }
    }

    fn listener(http_filters: Vec<HttpFilter>) -> Listener {
        let manager = HttpConnectionManager { stat_prefix: "p".into(), http_filters, ..Default::default() };
        let config = envoy::filter::ConfigType::TypedConfig(pack(&manager));
        let manager = envoy::Filter { name: HTTP_MANAGER.into(), config_type: Some(config) };
        let chain = FilterChain { name: "c".into(), filters: vec![network("first"), manager], ..Default::default() };
        Listener { name: "l".into(), filter_chains: vec![chain], ..Default::default() }
    }

    fn run(patches: &[EnvoyFilterPatch], listener: &Listener) -> (Listener, Notes) {
        let mut notes = Notes::default();
        let patches = Patch::all(patches).expect("patches");
        let made = apply(&patches, &listener.encode_to_vec(), &mut notes).expect("kept");
        (Listener::decode(made.as_slice()).expect("a listener"), notes)
    }

    fn manager(listener: &Listener) -> HttpConnectionManager {
        let filters = listener.filter_chains[0].filters.iter().filter(|filter| filter.name == HTTP_MANAGER);
        let mut configs = filters.map(|filter| match &filter.config_type {
            Some(envoy::filter::ConfigType::TypedConfig(config)) => {
                unpack(config).expect("a manager").expect("it decodes")
            }
            other => panic!("{other:?}"),
        });
        configs.next_back().expect("a manager")
    }

    fn names(listener: &Listener) -> String {
        manager(listener).http_filters.iter().map(|filter| filter.name.as_str()).collect()
    }

    #[test]
    fn http_filters_are_arranged() {
        let at = |operation, sub: Option<&str>| {
            let patch = patch(ApplyTo::HttpFilter, operation, &http("x"));
            let named = matching(filter(HTTP_MANAGER, sub), patch);
            names(&run(&[named], &listener(vec![http("a"), http("b")])).0)
        };
        let b = Some("b");
        assert_eq!((at(Operation::InsertBefore, b), at(Operation::InsertAfter, b)), ("axb".into(), "abx".into()));
        assert_eq!((at(Operation::InsertBefore, None), at(Operation::InsertAfter, None)), ("xab".into(), "abx".into()));
        assert_eq!((at(Operation::InsertFirst, b), at(Operation::Add, b)), ("xab".into(), "abx".into()));
        assert_eq!((at(Operation::Replace, b), at(Operation::Remove, b)), ("ax".into(), "a".into()));
        assert_eq!((at(Operation::InsertBefore, Some("z")), at(Operation::Remove, None)), ("ab".into(), "ab".into()));
    }

    #[test]
    fn what_matches_nothing_leaves_every_byte() {
        let before = listener(vec![http("a")]);
        let other = matching(filter("other", None), patch(ApplyTo::HttpFilter, Operation::Add, &http("x")));
        let (made, notes) = run(&[other], &before);
        assert_eq!(made.encode_to_vec(), before.encode_to_vec());
        assert_eq!(notes, Notes::default());
    }

    #[test]
    fn typed_configuration_merges_with_its_own_type_only() {
        let typed = |name: &str, config| HttpFilter {
            name: name.into(),
            config_type: Some(http_filter::ConfigType::TypedConfig(config)),
            ..Default::default()
        };
        let router = pack(&Router { respect_expected_rq_timeout: true, ..Default::default() });
        let before = listener(vec![typed("r", pack(&Router { suppress_envoy_headers: true, ..Default::default() }))]);
        let merge = |config: &trysail_sdk::prost_types::Any| {
            let patch = patch(ApplyTo::HttpFilter, Operation::Merge, &typed("renamed", config.clone()));
            run(&[configured(config, patch)], &before)
        };
        let (made, _) = merge(&router);
        let merged = manager(&made).http_filters.remove(0);
        let Some(http_filter::ConfigType::TypedConfig(config)) = &merged.config_type else { panic!("set") };
        let config: Router = unpack(config).expect("a router").expect("it decodes");
        assert!(config.respect_expected_rq_timeout && config.suppress_envoy_headers && merged.name == "renamed");

        let (made, notes) = merge(&pack(&HttpFault::default()));
        let kept = manager(&made).http_filters.remove(0);
        assert_eq!(kept.config_type, manager(&before).http_filters.remove(0).config_type);
        assert!(notes.0[&0].reasons[0].contains("does not merge into"), "{notes:?}");
    }

    #[test]
    fn chains_come_and_go() {
        let added = FilterChain { name: "n".into(), filters: vec![network("f")], ..Default::default() };
        let add = patch(ApplyTo::FilterChain, Operation::Add, &added);
        let remove = patch(ApplyTo::FilterChain, Operation::Remove, &());
        let names = |patches: &[EnvoyFilterPatch]| {
            let chains = run(patches, &listener(Vec::new())).0.filter_chains;
            chains.iter().map(|chain| chain.name.clone()).collect::<String>()
        };
        assert_eq!((names(std::slice::from_ref(&add)), names(&[add, remove])), ("cn".into(), "n".into()));
        let empty = patch(ApplyTo::FilterChain, Operation::Add, &FilterChain::default());
        assert_eq!(names(&[empty]), "c");
    }

    #[test]
    fn network_filters_are_arranged_before_http_ones() {
        let first = patch(ApplyTo::NetworkFilter, Operation::Remove, &());
        let made = run(&[matching(filter("first", None), first)], &listener(Vec::new())).0;
        assert_eq!(made.filter_chains[0].filters.len(), 1);
        let all = run(&[patch(ApplyTo::NetworkFilter, Operation::Add, &network("z"))], &listener(Vec::new())).0;
        assert_eq!(all.filter_chains[0].filters[2].name, "z");
    }
}
