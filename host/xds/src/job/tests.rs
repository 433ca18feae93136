use trysail_model::ids::type_urls;
use trysail_model::view::Provenance;
use trysail_model::{Rope, TypeUrl};

use super::*;

fn view(id: u64, entries: &[(&str, &str)]) -> Arc<View> {
    let resource = |(name, body): &(&str, &str)| {
        let body = Rope::from_bytes(body.as_bytes().to_vec());
        Arc::new(Resource { name: (*name).into(), version: body.fingerprint(), body })
    };
    Arc::new(View { id, resources: entries.iter().map(resource).collect(), fingerprint: Fingerprint(id.into()) })
}

fn type_job(kind: Kind, watched: Watched) -> TypeJob {
    TypeJob { kind, watched, due: Due::default(), known: None, sent: None, is_rejected: false, acked: None }
}

fn names(watched: &[&str]) -> Watched {
    Watched::Names(Arc::new(watched.iter().map(|name| (*name).into()).collect()))
}

fn job(protocol: Protocol, types: Vec<TypeJob>) -> Job {
    let proxy = Proxy::from_node("sidecar~10.0.0.1~a.b~b.svc", Default::default(), Default::default()).unwrap();
    Job { protocol, proxy: Arc::new(proxy), served: Some(1), is_full: true, types, apart: Apart::default() }
}

fn sent(reply: &Reply) -> Vec<&str> {
    reply.resources.iter().map(|(resource, _)| resource.name.as_str()).collect()
}

fn replies(protocol: Protocol, types: Vec<TypeJob>, views: &[Arc<View>]) -> Vec<Reply> {
    let job = job(protocol, types);
    let types: Vec<&TypeJob> = job.types.iter().collect();
    job.replies(&types, views, &DeltaCache::new(1000))
}

#[test]
fn endpoints_of_changed_clusters_go_with_them() {
    for protocol in [Protocol::Sotw, Protocol::Delta] {
        let old = view(1, &[("a", "1"), ("b", "1"), ("static", "1")]);
        let new = view(2, &[("a", "2"), ("b", "1"), ("static", "2")]);
        let endpoints = view(3, &[("a", "e"), ("b", "e")]);
        let clusters = TypeJob { sent: Some(old), ..type_job(Kind::CLUSTER, Watched::Wildcard) };
        let eds = TypeJob { sent: Some(endpoints.clone()), ..type_job(Kind::ENDPOINT, names(&["a", "b"])) };
        let replies = replies(protocol, vec![clusters, eds], &[new, endpoints]);
        let full = protocol == Protocol::Sotw;
        assert_eq!(sent(&replies[0]), if full { vec!["a", "b", "static"] } else { vec!["a", "static"] });
        assert!(replies[1].is_sent);
        assert_eq!(sent(&replies[1]), ["a"], "{protocol:?}");
    }
}

#[test]
fn the_version_of_endpoints_follows_their_cluster() {
    let endpoints = view(3, &[("a", "e"), ("b", "e")]);
    let version = |clusters: Option<&View>| wire_version(&endpoints.resources[0], clusters);
    let (one, two) = (view(1, &[("a", "1")]), view(2, &[("a", "2")]));
    assert_ne!(version(Some(&one)), version(Some(&two)));
    assert_eq!(version(Some(&one)), version(Some(&view(9, &[("a", "1"), ("z", "1")]))));
    assert_eq!(version(None), endpoints.resources[0].version);
}

#[test]
fn what_a_client_brings_along_is_not_sent_again() {
    let now = view(1, &[("same", "1"), ("other", "2"), ("new", "1")].map(|e| e));
    let mut resources = now.resources.clone();
    resources.sort_by(|a, b| a.name.cmp(&b.name));
    let now = Arc::new(View { id: 1, resources, fingerprint: Fingerprint(1) });
    let version = |name: &str| now.get(name).unwrap().version;
    let known: Known =
        [("same".into(), version("same")), ("other".into(), Fingerprint(9)), ("gone".into(), version("new"))].into();
    let mut cds = TypeJob { known: Some(Arc::new(known)), ..type_job(Kind::CLUSTER, Watched::Wildcard) };
    cds.due.difference = true;
    let replies_1 = replies(Protocol::Delta, vec![cds], std::slice::from_ref(&now));
    assert_eq!(sent(&replies_1[0]), ["new", "other"]);
    assert_eq!(replies_1[0].removed, ["gone".into()]);

    let all: Known = now.resources.iter().map(|r| (r.name.clone(), r.version)).collect();
    let cds = TypeJob { known: Some(Arc::new(all)), ..type_job(Kind::CLUSTER, Watched::Wildcard) };
    assert!(!replies(Protocol::Delta, vec![cds], &[now])[0].is_sent);
}

#[test]
fn names_that_do_not_exist() {
    let route = Kind::of(type_urls::ROUTE).unwrap();
    let extension = Kind::of(type_urls::EXTENSION).unwrap();
    let ask = |protocol, kind| {
        let mut t = type_job(kind, names(&["a", "none"]));
        t.due.names = ["a".into(), "none".into()].into();
        t.due.answer = true;
        replies(protocol, vec![t], &[view(1, &[("a", "1")])]).remove(0)
    };
    let delta = ask(Protocol::Delta, route);
    assert_eq!(sent(&delta), ["a"]);
    assert_eq!(delta.removed, ["none".into()]);
    let ecds = ask(Protocol::Delta, extension);
    assert!(ecds.is_sent && ecds.removed.is_empty(), "extension configurations are never removed");
    assert_eq!(sent(&ask(Protocol::Sotw, route)), ["a"]);
}

#[test]
fn what_was_unsubscribed_is_not_removed() {
    let kind = Kind::of(type_urls::ROUTE).unwrap();
    let old = view(1, &[("a", "1"), ("b", "1"), ("c", "1")]);
    let t = TypeJob { sent: Some(old), ..type_job(kind, names(&["a", "c"])) };
    let reply = replies(Protocol::Delta, vec![t], &[view(2, &[("a", "1")])]).remove(0);
    assert_eq!(reply.removed, ["c".into()]);
}

#[test]
fn after_a_nack_the_next_change_brings_back_what_was_lost() {
    let acked = view(1, &[("a", "1"), ("gone", "1")]);
    let rejected = view(2, &[("a", "bad"), ("good", "1"), ("half", "1")]);
    let nacked = |now: &Arc<View>| {
        let mut t = type_job(Kind::CLUSTER, Watched::Wildcard);
        (t.sent, t.acked, t.is_rejected) = (Some(rejected.clone()), Some(acked.clone()), true);
        replies(Protocol::Delta, vec![t], std::slice::from_ref(now)).remove(0)
    };
    assert!(!nacked(&rejected).is_sent, "it would only be rejected again");
    let reply = nacked(&view(3, &[("a", "2"), ("good", "1")]));
    assert_eq!(sent(&reply), ["a", "good"]);
    assert_eq!(reply.removed, ["gone".into(), "half".into()]);
    assert!(reply.mends);
}

#[test]
fn sotw_sends_all_clusters_and_only_changed_routes() {
    let kind = Kind::of(type_urls::ROUTE).unwrap();
    let (old, new) = (view(1, &[("a", "1"), ("b", "1")]), view(2, &[("a", "1"), ("b", "2")]));
    let cds = TypeJob { sent: Some(old.clone()), ..type_job(Kind::CLUSTER, Watched::Wildcard) };
    let rds = TypeJob { sent: Some(old.clone()), ..type_job(kind, names(&["a", "b"])) };
    let changed = replies(Protocol::Sotw, vec![cds, rds], &[new.clone(), new]);
    assert_eq!((sent(&changed[0]), sent(&changed[1])), (vec!["a", "b"], vec!["b"]));
    let cds = TypeJob { sent: Some(old.clone()), ..type_job(Kind::CLUSTER, Watched::Wildcard) };
    let rds = TypeJob { sent: Some(old.clone()), ..type_job(kind, names(&["a", "b"])) };
    let same = replies(Protocol::Sotw, vec![cds, rds], &[old.clone(), old]);
    assert!(same.iter().all(|reply| !reply.is_sent));
}

/// A translation whose snapshots change while it is asked.
struct Restless {
    revisions: parking_lot::Mutex<Vec<u64>>,
}

impl Translator for Restless {
    fn revision(&self) -> u64 {
        let mut revisions = self.revisions.lock();
        if revisions.len() > 1 { revisions.remove(0) } else { revisions[0] }
    }

    fn views(&self, proxy: &Proxy, wanted: &[(TypeUrl, Watched)], _: &[Option<Arc<View>>]) -> Views {
        let revision = self.revision();
        let views = wanted.iter().map(|_| view(revision, &[("a", &revision.to_string())])).collect();
        Views { revision, proxy: Arc::new(proxy.clone()), views, is_withheld: false }
    }

    fn provenance(&self, _: &Proxy, _: &TypeUrl, _: &str) -> Provenance {
        Provenance::default()
    }

    fn forget(&self, _: &Proxy) {}
}

#[test]
fn a_request_that_meets_a_newer_snapshot_takes_all_types_along() {
    let restless = |revisions: &[u64]| Restless { revisions: parking_lot::Mutex::new(revisions.to_vec()) };
    let asked = || {
        let mut lds = type_job(Kind::of(type_urls::LISTENER).unwrap(), Watched::Wildcard);
        lds.due.everything = true;
        let mut job = job(Protocol::Delta, vec![type_job(Kind::CLUSTER, Watched::Wildcard), lds]);
        job.is_full = false;
        job
    };
    let n_types = |revisions: &[u64]| {
        let done = asked().run(&restless(revisions), &DeltaCache::new(10));
        (done.revision, done.replies.len())
    };
    assert_eq!(n_types(&[1]), (1, 1));
    assert_eq!(n_types(&[2]), (2, 2));
    // The snapshot changes between the question for the revision and the translation.
    assert_eq!(n_types(&[1, 2]), (2, 2));
    // It never stops changing: what is said to be served is the older one, so that the next push is not skipped.
    assert_eq!(n_types(&[1, 2, 3, 4, 5, 6]), (5, 2));
}
