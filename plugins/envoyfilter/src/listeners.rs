//! Patches of listeners and what is in them. The order is Istio's: the listener itself, its listener filters, each filter chain
//! (see [`chains`]), and last filter chains that are added.

use trysail_sdk::proto::istio::networking::v1alpha3::envoy_filter::{ApplyTo, patch::Operation};

use crate::patch::{Notes, Patch};
use crate::wire::{self, Fields};
use crate::{chains, edit};

/// Listener.address, its socket address, and the port in there.
const ADDRESS: u32 = 2;
const SOCKET_ADDRESS: u32 = 1;
const PORT_VALUE: u32 = 3;
/// Listener.filter_chains.
pub const FILTER_CHAINS: u32 = 3;
/// Listener.listener_filters.
pub const LISTENER_FILTERS: u32 = 9;
/// Listener.default_filter_chain.
pub const DEFAULT_FILTER_CHAIN: u32 = 25;

/// What of a listener patches can match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Its port, if it is at a socket.
    pub port: u32,
}

impl Seen {
    /// Looks at a listener.
    pub fn of(listener: &Fields<'_>) -> Self {
        let port = listener.message(ADDRESS).and_then(|address| {
            let socket = Fields::parse(&address).message(SOCKET_ADDRESS)?.into_owned();
            Some(Fields::parse(&socket).number(PORT_VALUE))
        });
        Seen { name: listener.text(1), port: port.and_then(|port| u32::try_from(port).ok()).unwrap_or_default() }
    }

    /// One of the two listeners that redirected connections come to. What a patch says of ports is about its chains.
    pub fn is_virtual(&self) -> bool {
        matches!(self.name.as_str(), "virtualInbound" | "virtualOutbound")
    }

    /// Does a patch match the listener? Of what is in it nothing is said.
    pub fn matches(&self, patch: &Patch<'_>) -> bool {
        let Some(wanted) = patch.listener() else { return true };
        let by_name = wanted.name.is_empty() || wanted.name == self.name;
        let ports_are_chains = patch.apply_to != ApplyTo::Listener && self.is_virtual();
        by_name && (ports_are_chains || wanted.port_number == 0 || wanted.port_number == self.port)
    }
}

/// The listener after the patches; none if one removes it.
pub fn apply(patches: &[Patch<'_>], listener: &[u8], notes: &mut Notes) -> Option<Vec<u8>> {
    let matches = |patch: &Patch<'_>, listener: &[u8]| Seen::of(&Fields::parse(listener)).matches(patch);
    let merge = |patch: &Patch<'_>, listener: &[u8], _: &mut Notes| patch.merged(listener);
    let listener = edit::edited(of(patches, ApplyTo::Listener), listener, matches, merge, notes)?;
    let mut fields = Fields::parse(&listener);
    let seen = Seen::of(&fields);
    if seen.name.is_empty() {
        return None;
    }
    let concerned: Vec<&Patch<'_>> = patches.iter().filter(|patch| seen.matches(patch)).collect();
    if concerned.iter().all(|patch| patch.apply_to == ApplyTo::Listener) {
        return Some(listener);
    }
    listener_filters(&concerned, &mut fields, notes);
    chains::apply(&concerned, &seen, &mut fields, notes);
    Some(fields.encode())
}

/// The patches that apply to something.
pub fn of<'a, 'p>(patches: &'a [Patch<'p>], apply_to: ApplyTo) -> impl Iterator<Item = &'a Patch<'p>> {
    patches.iter().filter(move |patch| patch.apply_to == apply_to)
}

fn listener_filters(patches: &[&Patch<'_>], listener: &mut Fields<'_>, notes: &mut Notes) {
    let mut filters = listener.list(LISTENER_FILTERS);
    for patch in patches.iter().filter(|patch| patch.apply_to == ApplyTo::ListenerFilter) {
        let wanted = patch.listener_filter();
        let matches = |filter: &[u8]| wanted.is_none_or(|name| wire::name_of(filter) == name);
        if patch.operation != Operation::Merge {
            edit::arrange(patch, &mut filters, wanted.is_some(), matches, notes);
        } else if wanted.is_none() {
            notes.refused(patch, "MERGE does nothing without a listener filter in its match");
        } else {
            for filter in filters.iter_mut().filter(|filter| matches(filter)) {
                *filter = edit::merge_filter(patch, filter, edit::LISTENER_FILTER, notes);
            }
        }
    }
    if filters != listener.list(LISTENER_FILTERS) {
        listener.set_list(LISTENER_FILTERS, filters);
    }
}
