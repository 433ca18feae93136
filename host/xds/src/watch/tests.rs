use trysail_model::ids::type_urls;

use super::*;
use crate::request::Protocol;

fn kind(url: &str) -> Kind {
    Kind::of(url).unwrap()
}

fn request(protocol: Protocol, names: &[&str], nonce: &str) -> Request {
    Request {
        protocol,
        node: None,
        type_url: String::new(),
        nonce: nonce.into(),
        error: None,
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        unsubscribe: Vec::new(),
        initial_versions: BTreeMap::new(),
    }
}

fn due_names(watch: &Watch) -> Vec<&str> {
    watch.due.names.iter().map(ResourceName::as_str).collect()
}

fn names(watch: &Watch) -> Vec<&str> {
    watch.names.iter().map(ResourceName::as_str).collect()
}

/// A watch whose subscription was answered with nonce `n1`.
fn answered(protocol: Protocol, kind: Kind, names: &[&str]) -> (Option<Watch>, Interner) {
    let (mut slot, interner) = (None, Interner::default());
    let request = request(protocol, names, "");
    match protocol {
        Protocol::Sotw => apply_sotw(&mut slot, kind, &request, &interner),
        Protocol::Delta => apply_delta(&mut slot, kind, &request, &interner),
    };
    let watch = slot.as_mut().unwrap();
    watch.due = Due::default();
    watch.nonce = "n1".into();
    (slot, interner)
}

#[test]
fn sotw_added_names_are_due_and_removed_ones_are_not() {
    let kind = Kind::ENDPOINT;
    let (mut slot, interner) = answered(Protocol::Sotw, kind, &["a", "b"]);
    assert_eq!(apply_sotw(&mut slot, kind, &request(Protocol::Sotw, &["a"], "n1"), &interner), Verdict::Acked);
    assert!(!slot.as_ref().unwrap().due.is_due());
    apply_sotw(&mut slot, kind, &request(Protocol::Sotw, &["a", "c"], "n1"), &interner);
    assert_eq!(due_names(slot.as_ref().unwrap()), ["c"]);
    assert!(!slot.as_ref().unwrap().due.everything);
    // Gone again before it was answered.
    apply_sotw(&mut slot, kind, &request(Protocol::Sotw, &["a"], "n1"), &interner);
    assert!(due_names(slot.as_ref().unwrap()).is_empty());
    assert_eq!(apply_sotw(&mut slot, kind, &request(Protocol::Sotw, &[], "n1"), &interner), Verdict::Unsubscribed);
    assert!(slot.is_none());
}

#[test]
fn sotw_nonces() {
    let kind = Kind::CLUSTER;
    let (mut slot, interner) = answered(Protocol::Sotw, kind, &[]);
    assert_eq!(apply_sotw(&mut slot, kind, &request(Protocol::Sotw, &[], "old"), &interner), Verdict::Expired);
    assert_eq!(apply_sotw(&mut slot, kind, &request(Protocol::Sotw, &[], "n1"), &interner), Verdict::Acked);
    assert!(!slot.as_ref().unwrap().due.is_due());
    assert_eq!(apply_sotw(&mut slot, kind, &request(Protocol::Sotw, &[], ""), &interner), Verdict::Subscribed);
    assert!(slot.as_ref().unwrap().due.everything);
}

#[test]
fn sotw_warming_answers_what_looks_like_an_ack() {
    let kind = Kind::ENDPOINT;
    let (mut slot, interner) = answered(Protocol::Sotw, kind, &["a"]);
    slot.as_mut().unwrap().always_respond = true;
    apply_sotw(&mut slot, kind, &request(Protocol::Sotw, &["a"], "n1"), &interner);
    assert!(slot.as_ref().unwrap().due.everything);
    assert!(!slot.as_ref().unwrap().always_respond);
}

#[test]
fn delta_wildcards() {
    let wildcard = |kind: Kind, names: &[&str], unsubscribe: &[&str]| {
        let mut first = request(Protocol::Delta, names, "");
        first.unsubscribe = unsubscribe.iter().map(|name| (*name).to_owned()).collect();
        let mut slot = None;
        apply_delta(&mut slot, kind, &first, &Interner::default());
        slot.unwrap().is_wildcard
    };
    assert!(wildcard(Kind::CLUSTER, &[], &[]));
    assert!(wildcard(Kind::CLUSTER, &["*"], &[]));
    assert!(wildcard(Kind::CLUSTER, &["*", "a"], &[]));
    assert!(!wildcard(Kind::CLUSTER, &["a"], &[]));
    assert!(!wildcard(Kind::CLUSTER, &["*"], &["*"]));
    assert!(!wildcard(Kind::ENDPOINT, &[], &[]));
    assert!(wildcard(kind(type_urls::NAME_TABLE), &[], &[]));
}

#[test]
fn delta_names_come_and_go() {
    let kind = Kind::ENDPOINT;
    let (mut slot, interner) = answered(Protocol::Delta, kind, &["a"]);
    let mut change = request(Protocol::Delta, &["a", "b"], "");
    change.unsubscribe = vec!["never".into()];
    assert_eq!(apply_delta(&mut slot, kind, &change, &interner), Verdict::Spontaneous);
    let watch = slot.as_mut().unwrap();
    assert_eq!(due_names(watch), ["a", "b"], "also a name that is held is answered");
    watch.due = Due::default();
    let mut change = request(Protocol::Delta, &[], "stale");
    change.unsubscribe = vec!["a".into()];
    assert_eq!(apply_delta(&mut slot, kind, &change, &interner), Verdict::Expired);
    let watch = slot.as_mut().unwrap();
    assert_eq!(names(watch), ["b"], "the nonce is stale, the change is not");
    assert!(!watch.due.is_due());
}

#[test]
fn delta_unsubscribing_below_a_wildcard_is_answered() {
    let kind = Kind::CLUSTER;
    let (mut slot, interner) = answered(Protocol::Delta, kind, &["*", "a"]);
    let mut change = request(Protocol::Delta, &[], "");
    change.unsubscribe = vec!["a".into()];
    apply_delta(&mut slot, kind, &change, &interner);
    let watch = slot.as_mut().unwrap();
    assert_eq!(due_names(watch), ["a"]);
    watch.due = Due::default();
    change.unsubscribe = vec!["*".into()];
    apply_delta(&mut slot, kind, &change, &interner);
    let watch = slot.as_ref().unwrap();
    assert!(!watch.is_wildcard && !watch.due.is_due());
}

#[test]
fn delta_reconnect_counts_what_is_held_as_subscribed() {
    let kind = Kind::ENDPOINT;
    let mut first = request(Protocol::Delta, &["a", "new"], "");
    let version = Fingerprint(7).to_string();
    first.initial_versions = [("a".into(), version), ("b".into(), "nonsense".into())].into();
    let mut slot = None;
    apply_delta(&mut slot, kind, &first, &Interner::default());
    let watch = slot.unwrap();
    assert_eq!(names(&watch), ["a", "b", "new"]);
    assert_eq!(due_names(&watch), ["new"]);
    let known = watch.known.unwrap();
    assert_eq!((known["a"], known["b"]), (Fingerprint(7), Fingerprint::NONE));
}

#[test]
fn a_nack_is_remembered_and_answered_with_nothing() {
    for protocol in [Protocol::Sotw, Protocol::Delta] {
        let (mut slot, interner) = answered(protocol, Kind::CLUSTER, &[]);
        let mut nack = request(protocol, &[], "n1");
        nack.error = Some((13, "bad".into()));
        let verdict = match protocol {
            Protocol::Sotw => apply_sotw(&mut slot, Kind::CLUSTER, &nack, &interner),
            Protocol::Delta => apply_delta(&mut slot, Kind::CLUSTER, &nack, &interner),
        };
        let watch = slot.unwrap();
        assert_eq!(verdict, Verdict::Rejected);
        assert!(watch.is_rejected && !watch.due.is_due());
        assert_eq!(watch.last_error.unwrap().1, "bad");
    }
}

#[test]
fn a_nack_of_a_type_never_sent() {
    for (nonce, is_subscription) in [("", true), ("from another stream", false)] {
        let mut slot = None;
        let mut nack = request(Protocol::Delta, &[], nonce);
        nack.error = Some((13, "bad".into()));
        assert_eq!(apply_delta(&mut slot, Kind::CLUSTER, &nack, &Interner::default()), Verdict::Rejected);
        assert_eq!(slot.is_some(), is_subscription);
        let mut slot = None;
        nack.protocol = Protocol::Sotw;
        assert_eq!(apply_sotw(&mut slot, Kind::CLUSTER, &nack, &Interner::default()), Verdict::Rejected);
        assert_eq!(slot.is_some(), is_subscription);
    }
}
