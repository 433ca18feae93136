//! Pushes: order, one snapshot, equal subscriptions.

use std::time::Duration;

use tokio::sync::mpsc;
use trysail_xds::PushInfo;
use trysail_xds::debounce;

use crate::client::*;
use crate::fake::{Env, until};

const ALL: [&str; 6] = [CLUSTER, ENDPOINT, LISTENER, ROUTE, EXTENSION, NAME_TABLE];

async fn env() -> Env {
    let one: &[(&str, &str)] = &[("x", "old")];
    Env::start(&ALL.map(|type_url| (type_url, one))).await
}

#[tokio::test]
async fn types_go_out_in_push_order_whatever_the_order_of_subscription() {
    let env = env().await;
    let mut delta = Delta::open(&env, "delta").await;
    let mut sotw = Sotw::open(&env, "sotw").await;
    for type_url in ALL.iter().rev() {
        let names: &[&str] = if [CLUSTER, LISTENER, NAME_TABLE].contains(type_url) { &[] } else { &["x"] };
        delta.subscribe(type_url, names).await;
        assert_eq!(delta.take().await.resources["x"], "old");
        sotw.ask(type_url, names, "").await;
        sotw.take().await;
        if *type_url == CLUSTER {
            // They warm, so their endpoints come along.
            assert_eq!(delta.take().await.kind, "eds");
        }
    }
    // The endpoints' ACK with warming clusters is answered once more in the state of the world.
    for type_url in ALL {
        env.fake.set(type_url, &[("x", Some("new"))]);
    }
    env.notify();
    let order = ["cds", "eds", "lds", "rds", "ecds", "nds"];
    let mut seen = (Vec::new(), Vec::new());
    for _ in order {
        let got = delta.take().await;
        assert_eq!(got.resources["x"], "new");
        seen.0.push(got.kind);
        let got = sotw.take().await;
        assert_eq!(got.names(), ["new"]);
        seen.1.push(got.kind);
    }
    assert_eq!((seen.0, seen.1), (order.map(str::to_owned).to_vec(), order.map(str::to_owned).to_vec()));
}

#[tokio::test]
async fn pushes_that_come_while_one_is_made_are_one() {
    let env = env().await;
    let mut proxy = Delta::open(&env, "a").await;
    proxy.subscribe(CLUSTER, &[]).await;
    proxy.take().await;
    let before = env.fake.n_calls.load(std::sync::atomic::Ordering::Relaxed);
    env.fake.block(true);
    env.push(CLUSTER, &[("x", Some("first"))]);
    until(|| env.fake.n_calls.load(std::sync::atomic::Ordering::Relaxed) == before + 1).await;
    env.fake.block(false);
    // Whatever the first translation saw, the newest state comes, and after it nothing.
    for n in 0..100 {
        env.push(CLUSTER, &[("x", Some(&format!("version {n}")))]);
    }
    while proxy.take().await.resources["x"] != "version 99" {}
    proxy.quiet().await;
}

#[tokio::test]
async fn a_request_sees_the_newest_snapshot_for_all_types() {
    let env = env().await;
    let mut proxy = Delta::open(&env, "a").await;
    proxy.subscribe(CLUSTER, &[]).await;
    proxy.take().await;
    // Committed, and the push is not announced yet.
    env.fake.set(CLUSTER, &[("x", Some("new"))]);
    env.fake.set(LISTENER, &[("x", Some("new"))]);
    let revision = env.fake.commit();
    proxy.subscribe(LISTENER, &[]).await;
    assert_eq!(proxy.take().await.kind, "cds");
    assert_eq!(proxy.take().await.resources["x"], "new");
    env.server.notify(PushInfo::new(revision, Vec::new()));
    proxy.quiet().await;
}

#[tokio::test]
async fn a_forced_push_sends_everything() {
    let env = env().await;
    let mut proxy = Delta::open(&env, "a").await;
    proxy.subscribe(CLUSTER, &[]).await;
    proxy.take().await;
    proxy.subscribe(ENDPOINT, &["x"]).await;
    proxy.take().await;
    env.notify();
    proxy.quiet().await;
    env.server.notify(PushInfo { forced: true, ..PushInfo::new(1, vec!["debug".into()]) });
    assert_eq!(proxy.take().await.names(), ["x"]);
    assert_eq!(proxy.take().await.kind, "eds");
    // The fence's own type is watched by now, and sent as well.
    assert_eq!(proxy.take().await.kind, "ecds");
    proxy.quiet().await;
    assert_eq!(env.metric("pilot_push_triggers", "debug"), 1.0);
}

#[tokio::test]
async fn the_debouncer_drives_the_server() {
    let env = env().await;
    let mut proxy = Delta::open(&env, "a").await;
    proxy.subscribe(CLUSTER, &[]).await;
    proxy.take().await;
    let (changes_tx, changes_rx) = mpsc::unbounded_channel();
    let config = debounce::Config { after: Duration::ZERO, max: Duration::ZERO };
    let metrics = trysail_xds::Metrics::unregistered();
    let merge = |sum: &mut Vec<u32>, more: Vec<u32>| sum.extend(more);
    let push = |batch: debounce::Batch<Vec<u32>>| {
        metrics.debounced(batch.waited);
        for change in &batch.changes {
            env.fake.set(CLUSTER, &[(&format!("c{change}"), Some("new"))]);
        }
        let since = batch.since.into_std();
        env.server.notify(PushInfo { since, ..PushInfo::new(env.fake.commit(), vec!["config".into()]) });
        std::future::ready(())
    };
    let feed = async {
        for n in 0..50 {
            changes_tx.send(vec![n]).unwrap();
            tokio::task::yield_now().await;
        }
        drop(changes_tx);
    };
    tokio::join!(debounce::run(config, changes_rx, merge, push), feed);
    let mut seen = 0;
    while seen < 50 {
        seen += proxy.take().await.names().len();
    }
    proxy.quiet().await;
}

#[tokio::test]
async fn what_is_withheld_comes_once_it_may_and_nothing_before() {
    let env = env().await;
    let mut old = Delta::open(&env, "old").await;
    let mut old_sotw = Sotw::open(&env, "old-sotw").await;
    old.subscribe(CLUSTER, &[]).await;
    assert_eq!(old.take().await.resources["x"], "old");
    old_sotw.ask(LISTENER, &[], "").await;
    old_sotw.take().await;
    let before = env.fake.n_calls.load(std::sync::atomic::Ordering::Relaxed);
    env.fake.withholds.store(true, std::sync::atomic::Ordering::Relaxed);
    env.push(CLUSTER, &[("x", Some("new")), ("y", Some("new"))]);
    env.push(LISTENER, &[("x", Some("new"))]);
    let mut fresh = Delta::open(&env, "fresh").await;
    fresh.subscribe(CLUSTER, &[]).await;
    old.subscribe(LISTENER, &[]).await;
    // All of them asked the translation in vain; what might have been sent now would be taken first below.
    until(|| env.fake.n_calls.load(std::sync::atomic::Ordering::Relaxed) >= before + 4).await;
    env.fake.withholds.store(false, std::sync::atomic::Ordering::Relaxed);
    // The same revision: that somebody may be told again is no change of what there is.
    env.server.notify(PushInfo::new(trysail_model::Translator::revision(&*env.fake), vec!["config".into()]));
    let got = old.take().await;
    assert_eq!((got.names(), &*got.resources["x"]), (vec!["x", "y"], "new"));
    assert_eq!(old.take().await.resources["x"], "new", "the listeners that it asked for meanwhile");
    assert_eq!(old_sotw.take().await.names(), ["new"]);
    assert_eq!(fresh.take().await.names(), ["x", "y"]);
    old.quiet().await;
}
