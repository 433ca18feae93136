//! One translation for one proxy, and what of it has to be sent. It runs on a thread of the pool.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use trysail_model::{Fingerprint, Proxy, Resource, ResourceName, Translator, View, Views, Watched};

use crate::apart::Apart;
use crate::diff::DeltaCache;
use crate::kind::Kind;
use crate::request::Protocol;
use crate::watch::{Due, Known};

/// What to translate, and what the client has of it.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) protocol: Protocol,
    pub(crate) proxy: Arc<Proxy>,
    /// Revision that the client was last served; unset at first.
    pub(crate) served: Option<u64>,
    /// All types, not just those that are due: there may be a newer snapshot.
    pub(crate) is_full: bool,
    /// Every type that is watched, in push order.
    pub(crate) types: Vec<TypeJob>,
    /// What no translation makes.
    pub(crate) apart: Apart,
}

/// One type of a [`Job`].
#[derive(Debug)]
pub(crate) struct TypeJob {
    pub(crate) kind: Kind,
    pub(crate) watched: Watched,
    pub(crate) due: Due,
    pub(crate) known: Option<Arc<Known>>,
    pub(crate) sent: Option<Arc<View>>,
    /// The client rejected what it was sent: what it has lies between `sent` and `acked`.
    pub(crate) is_rejected: bool,
    pub(crate) acked: Option<Arc<View>>,
}

/// The outcome of a [`Job`].
#[derive(Debug)]
pub(crate) struct Done {
    /// Revision that the client has once it was sent the replies.
    pub(crate) revision: u64,
    /// The proxy as the snapshot knows it.
    pub(crate) proxy: Arc<Proxy>,
    /// In push order; a type without anything to send is there too if it was translated.
    pub(crate) replies: Vec<Reply>,
    /// Types that are due still: this proxy must not be told anything new.
    pub(crate) withheld: Vec<Kind>,
    pub(crate) started: Instant,
}

/// What one type comes to.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) kind: Kind,
    /// What the client has afterwards.
    pub(crate) view: Arc<View>,
    /// False when there is nothing to say.
    pub(crate) is_sent: bool,
    /// It holds what an earlier rejection may have lost.
    pub(crate) mends: bool,
    /// The resources of the response with their versions on the wire.
    pub(crate) resources: Vec<(Arc<Resource>, Fingerprint)>,
    /// State of the world with full state: those of `resources` that are new to the client. Else unset: all of them.
    pub(crate) changed: Option<Vec<Arc<Resource>>>,
    /// Delta: in the response. State of the world: for the record.
    pub(crate) removed: Vec<ResourceName>,
}

/// How often a job starts again because a newer snapshot came while it ran.
const MAX_ATTEMPTS: usize = 3;

impl Job {
    /// Translates and compares.
    pub(crate) fn run(&self, translator: &dyn Translator, deltas: &DeltaCache) -> Done {
        let started = Instant::now();
        let mut attempt = 1;
        loop {
            let before = translator.revision();
            let is_full = self.is_full || self.served != Some(before);
            let types: Vec<&TypeJob> = self.types.iter().filter(|t| is_full || self.is_wanted(t)).collect();
            // Secrets are no translation's output: no stage sees them.
            let translated: Vec<&&TypeJob> = types.iter().filter(|t| !t.kind.is_apart()).collect();
            let wanted: Vec<_> = translated.iter().map(|t| (t.kind.url().clone(), t.watched.clone())).collect();
            let held: Vec<_> = translated.iter().map(|t| t.sent.clone()).collect();
            let Views { revision, proxy, views, is_withheld } = translator.views(&self.proxy, &wanted, &held);
            if is_withheld {
                return self.withhold(&types, &proxy, revision.min(before), started, deltas);
            }
            let mut views = views.into_iter();
            let own = |t: &&TypeJob| match t.kind.is_apart() {
                true => Some(self.apart.view(t.kind, &proxy, &t.watched)),
                false => views.next(),
            };
            let views: Vec<Arc<View>> = types.iter().filter_map(own).collect();
            // Types that were left out are of the snapshot before; so is what the client has, then.
            if revision != before && attempt < MAX_ATTEMPTS {
                attempt += 1;
                continue;
            }
            let replies = self.replies(&types, &views, deltas);
            return Done { revision: revision.min(before), proxy, replies, withheld: Vec::new(), started };
        }
    }

    /// Nothing translated goes out. Secrets and roots do: a certificate that runs out protects nobody.
    fn withhold(
        &self,
        types: &[&TypeJob],
        proxy: &Arc<Proxy>,
        revision: u64,
        started: Instant,
        deltas: &DeltaCache,
    ) -> Done {
        let (apart, other): (Vec<&TypeJob>, Vec<&TypeJob>) = types.iter().partition(|t| t.kind.is_apart());
        let view = |t: &&TypeJob| self.apart.view(t.kind, proxy, &t.watched);
        let views: Vec<Arc<View>> = apart.iter().map(view).collect();
        let replies = self.replies(&apart, &views, deltas);
        let withheld = other.iter().map(|t| t.kind).collect();
        Done { revision, proxy: proxy.clone(), replies, withheld, started }
    }

    /// True for types that someone waits for: endpoints also when clusters are sent, because they go with them.
    fn is_wanted(&self, t: &TypeJob) -> bool {
        let is_due = |kind: Kind| self.types.iter().any(|t| t.kind == kind && t.due.is_due());
        t.due.is_due() || (t.kind == Kind::ENDPOINT && is_due(Kind::CLUSTER))
    }

    fn replies(&self, types: &[&TypeJob], views: &[Arc<View>], deltas: &DeltaCache) -> Vec<Reply> {
        let mut replies: Vec<Reply> = Vec::with_capacity(types.len());
        // Clusters that were not translated now are those that the client has.
        let clusters = self.types.iter().find(|t| t.kind == Kind::CLUSTER).and_then(|t| t.sent.clone());
        let mut warming = Warming { clusters, names: Vec::new() };
        for (t, view) in types.iter().zip(views) {
            let reply = reply(self.protocol, t, view, &warming, deltas);
            if t.kind == Kind::CLUSTER {
                warming.clusters = Some(view.clone());
                // A client that asked for the state of all clusters asks for the endpoints itself, if it waits.
                let asks_itself = self.protocol == Protocol::Sotw && t.due.everything;
                if reply.is_sent && !asks_itself {
                    let changed = reply.changed.iter().flatten().map(|resource| resource.name.clone());
                    let sent = reply.resources.iter().map(|(resource, _)| resource.name.clone());
                    warming.names = if reply.changed.is_some() { changed.collect() } else { sent.collect() };
                }
            }
            replies.push(reply);
        }
        replies
    }
}

/// What endpoints have to know of the clusters that they belong to.
struct Warming {
    /// The clusters that the client has once it took this set.
    clusters: Option<Arc<View>>,
    /// Clusters that this set changes: Envoy warms them, and waits for their endpoints even if it had them.
    names: Vec<ResourceName>,
}

fn reply(protocol: Protocol, t: &TypeJob, view: &Arc<View>, warming: &Warming, deltas: &DeltaCache) -> Reply {
    let clusters = warming.clusters.as_deref().filter(|_| t.kind == Kind::ENDPOINT);
    let version = |resource: &Resource| wire_version(resource, clusters);

    let (mut changed, mut removed, mut mends) = difference(t, view, &version, deltas);
    // Full state leaves nothing out.
    mends |= t.due.everything || (protocol == Protocol::Sotw && !t.kind.is_named());
    if t.due.everything {
        changed.clone_from(&view.resources);
    }
    let warmed = if t.kind == Kind::ENDPOINT { warming.names.as_slice() } else { &[] };
    let extra: BTreeSet<&ResourceName> = t.due.names.iter().chain(warmed).collect();
    if !extra.is_empty() && !t.due.everything {
        let n_changed = changed.len();
        for name in extra {
            if let Some(resource) = view.get(name.as_str())
                && changed[..n_changed].binary_search_by(|c| c.name.cmp(name)).is_err()
            {
                changed.push(resource.clone());
            }
        }
        changed.sort_by(|a, b| a.name.cmp(&b.name));
    }
    // Asked for, and it does not exist.
    removed.extend(t.due.names.iter().filter(|name| view.get(name.as_str()).is_none()).cloned());
    removed.sort();
    removed.dedup();
    if let Watched::Names(names) = &t.watched {
        // The client dropped by itself what it no longer subscribes to.
        removed.retain(|name| names.contains(name));
    }
    if !t.kind.sends_removals() {
        removed.clear();
    }

    let is_new = !changed.is_empty() || !removed.is_empty();
    // As with istiod, a secret that is not there, or not for this proxy, is not answered at all: Envoy waits for it.
    let answers = t.due.answer && t.kind != Kind::SECRET;
    let (is_sent, resources, changed) = match protocol {
        Protocol::Delta => (is_new || answers, changed, None),
        Protocol::Sotw if t.kind.is_named() => (!changed.is_empty() || answers, changed, None),
        Protocol::Sotw if is_new || t.due.answer => (true, view.resources.clone(), Some(changed)),
        Protocol::Sotw => (false, Vec::new(), Some(changed)),
    };
    let resources = resources.into_iter().map(|resource| {
        let version = version(&resource);
        (resource, version)
    });
    Reply { kind: t.kind, view: view.clone(), is_sent, mends, resources: resources.collect(), changed, removed }
}

/// What differs from what the client has, sorted by name; and whether that is all that a rejection may have lost.
fn difference(
    t: &TypeJob,
    view: &Arc<View>,
    version: &impl Fn(&Resource) -> Fingerprint,
    deltas: &DeltaCache,
) -> (Vec<Arc<Resource>>, Vec<ResourceName>, bool) {
    if let Some(known) = &t.known {
        let is_other = |resource: &&Arc<Resource>| known.get(&resource.name) != Some(&version(resource));
        let changed = view.resources.iter().filter(is_other).cloned().collect();
        let removed = known.keys().filter(|name| view.get(name.as_str()).is_none()).cloned().collect();
        return (changed, removed, false);
    }
    let delta = deltas.between(t.sent.as_ref(), view);
    // Of a rejected response Envoy may have taken some resources and not others. Once a push has something new, all of it
    // is said again; before that, and in answers to requests, it would only be rejected again.
    let is_new = t.sent.as_ref().is_none_or(|sent| sent.fingerprint != view.fingerprint);
    if !t.is_rejected || !is_new || t.due.answer {
        return (delta.changed.clone(), delta.removed.clone(), false);
    }
    let earlier = deltas.between(t.acked.as_ref(), view);
    let mut changed = [&delta.changed[..], &earlier.changed[..]].concat();
    changed.sort_by(|a, b| a.name.cmp(&b.name));
    changed.dedup_by(|a, b| a.name == b.name);
    (changed, [&delta.removed[..], &earlier.removed[..]].concat(), true)
}

/// The version that the delta protocol shows: the hash of the resource, for endpoints together with that of their cluster.
///
/// A changed cluster waits in Envoy for its endpoints, also for those that it had. So endpoints count as new when their
/// cluster does, and that has to hold for a client that reconnects between the two, perhaps to another replica: it says
/// only which versions it has.
fn wire_version(resource: &Resource, clusters: Option<&View>) -> Fingerprint {
    match clusters.and_then(|clusters| clusters.get(resource.name.as_str())) {
        Some(cluster) => {
            Fingerprint::of_parts([resource.version.to_bytes().as_slice(), cluster.version.to_bytes().as_slice()])
        }
        None => resource.version,
    }
}

#[cfg(test)]
mod tests;
