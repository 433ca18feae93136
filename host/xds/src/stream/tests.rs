use std::time::Instant;

use trysail_model::Fingerprint;

use super::*;

fn stream(protocol: Protocol) -> Stream {
    let proxy = Proxy::from_node("sidecar~10.0.0.1~a.b~b.svc", Default::default(), Default::default()).unwrap();
    Stream::new(protocol, Arc::new(proxy), Apart::default())
}

fn request(protocol: Protocol, kind: Kind, names: &[&str], nonce: &str) -> Request {
    Request {
        protocol,
        node: None,
        type_url: kind.url().as_str().to_owned(),
        nonce: nonce.into(),
        error: None,
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        unsubscribe: Vec::new(),
        initial_versions: Default::default(),
    }
}

fn reply(kind: Kind, is_sent: bool) -> Reply {
    let view = View { id: 1, resources: Vec::new(), fingerprint: Fingerprint(1) };
    Reply {
        kind,
        view: Arc::new(view),
        is_sent,
        mends: false,
        resources: Vec::new(),
        changed: None,
        removed: Vec::new(),
    }
}

fn done(stream: &Stream, replies: Vec<Reply>) -> Done {
    Done { revision: 1, proxy: stream.proxy().clone(), replies, withheld: Vec::new(), started: Instant::now() }
}

#[test]
fn a_set_is_sent_before_the_next_translation() {
    let interner = Interner::default();
    let mut stream = stream(Protocol::Delta);
    assert!(!stream.wants_job());
    stream.on_request(&request(Protocol::Delta, Kind::CLUSTER, &[], ""), &interner);
    assert!(stream.wants_job());
    stream.job();
    for _ in 0..1000 {
        stream.on_push(false);
    }
    assert!(!stream.wants_job(), "one translation at a time");
    stream.finish(done(&stream, vec![reply(Kind::CLUSTER, true)]));
    assert!(!stream.wants_job(), "what is there is sent first");
    assert_eq!(stream.next("n1").unwrap().kind, Kind::CLUSTER);
    assert_eq!(stream.watch(Kind::CLUSTER).unwrap().nonce, "n1");
    assert!(stream.wants_job());
    assert!(stream.job().is_full);
    stream.finish(done(&stream, vec![reply(Kind::CLUSTER, false)]));
    assert!(!stream.wants_job() && stream.next("n2").is_none(), "a thousand pushes were one");
}

#[test]
fn a_failed_translation_is_not_tried_in_a_loop() {
    let interner = Interner::default();
    let mut stream = stream(Protocol::Sotw);
    stream.on_request(&request(Protocol::Sotw, Kind::CLUSTER, &[], ""), &interner);
    stream.job();
    stream.fail();
    assert!(!stream.wants_job());
    stream.on_push(false);
    assert!(stream.wants_job());
    let job = stream.job();
    assert!(job.is_full && job.types[0].due.everything, "nothing was forgotten");
    // What comes while it fails is tried at once.
    stream.on_push(false);
    stream.fail();
    assert!(stream.wants_job());
}

#[test]
fn replies_of_an_unsubscribed_type_are_dropped() {
    let interner = Interner::default();
    let mut stream = stream(Protocol::Sotw);
    stream.on_request(&request(Protocol::Sotw, Kind::ENDPOINT, &["a"], ""), &interner);
    stream.job();
    stream.finish(done(&stream, vec![reply(Kind::ENDPOINT, true)]));
    stream.on_request(&request(Protocol::Sotw, Kind::ENDPOINT, &[], ""), &interner);
    assert!(stream.next("n1").is_none());
    assert!(stream.is_idle());
}

#[test]
fn asking_for_clusters_again_makes_endpoints_answered() {
    let interner = Interner::default();
    let mut stream = stream(Protocol::Sotw);
    stream.on_request(&request(Protocol::Sotw, Kind::ENDPOINT, &["a"], ""), &interner);
    stream.on_request(&request(Protocol::Sotw, Kind::CLUSTER, &[], ""), &interner);
    assert!(stream.watch(Kind::ENDPOINT).unwrap().always_respond);
}

#[test]
fn unknown_types_are_mentioned_once_and_bounded() {
    let interner = Interner::default();
    let mut stream = stream(Protocol::Delta);
    let mut odd = request(Protocol::Delta, Kind::CLUSTER, &[], "");
    odd.type_url = String::new();
    assert!(matches!(stream.on_request(&odd, &interner), Event::Unserved));
    assert!(matches!(stream.on_request(&odd, &interner), Event::Nothing));
    for n in 0..1000 {
        odd.type_url = n.to_string();
        stream.on_request(&odd, &interner);
    }
    assert_eq!(stream.ignored.len(), MAX_IGNORED);
    let secret = request(Protocol::Delta, Kind::SECRET, &["kubernetes://a"], "");
    stream.on_request(&secret, &interner);
    assert!(stream.watch(Kind::SECRET).is_none() && !stream.wants_job());
}

#[test]
fn a_repeated_nack_is_recognised() {
    let interner = Interner::default();
    let mut stream = stream(Protocol::Delta);
    stream.on_request(&request(Protocol::Delta, Kind::CLUSTER, &[], ""), &interner);
    stream.job();
    stream.finish(done(&stream, vec![reply(Kind::CLUSTER, true)]));
    stream.next("n1");
    let mut nack = request(Protocol::Delta, Kind::CLUSTER, &[], "n1");
    nack.error = Some((13, "bad".into()));
    let repeated = |event| matches!(event, Event::Rejected(Rejected { is_repeated: true, .. }));
    assert!(!repeated(stream.on_request(&nack, &interner)));
    assert!(repeated(stream.on_request(&nack, &interner)));
    nack.error = Some((13, "worse".into()));
    assert!(!repeated(stream.on_request(&nack, &interner)));
}
