//! Slow readers and many proxies.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use crate::client::*;
use crate::fake::{Env, until};

/// A body that no window of a connection holds.
fn large(n: usize) -> String {
    format!("{n:08}").repeat(32 << 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_costs_nothing_and_gets_the_newest_state() {
    const N_PUSHES: usize = 1000;
    let mut env = Env::start(&[(LISTENER, &[("l", "first")])]).await;
    let mut slow = Delta::open(&env, "slow").await;
    let mut fast = Delta::open(&env, "fast").await;
    for proxy in [&mut slow, &mut fast] {
        proxy.subscribe(LISTENER, &[]).await;
        proxy.take().await;
    }
    env.reports();
    let calls_before = env.fake.n_calls.load(Ordering::Relaxed);
    for n in 0..N_PUSHES {
        env.push(LISTENER, &[("l", Some(&large(n)))]);
        // The other one is not slowed: it takes each state before there is a next.
        assert_eq!(fast.take().await.resources["l"], large(n));
    }
    let mut sent: HashMap<String, usize> = HashMap::new();
    for report in env.reports() {
        *sent.entry(report.proxy.id.to_string()).or_default() += 1;
    }
    assert_eq!(sent["fast.shop"], N_PUSHES);
    // One is with the transport, one in the channel; one more may have slipped through while the windows were empty.
    assert!(sent["slow.shop"] <= 3, "{sent:?}");
    let calls = env.fake.n_calls.load(Ordering::Relaxed) - calls_before;
    assert!(calls <= N_PUSHES + 4, "nothing is translated for who does not read: {calls}");

    let newest = large(N_PUSHES - 1);
    let mut n_read = 1;
    while slow.take().await.resources["l"] != newest {
        n_read += 1;
    }
    assert!(n_read <= 4, "{n_read} responses before the newest state");
    slow.quiet().await;
    assert_eq!(env.server.status().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_proxies() {
    const N: usize = 200;
    let clusters: Vec<(String, String)> = (0..50).map(|n| (format!("c{n:02}"), format!("cluster {n}"))).collect();
    let clusters: Vec<(&str, &str)> = clusters.iter().map(|(name, body)| (name.as_str(), body.as_str())).collect();
    let env = Env::start(&[(CLUSTER, &clusters), (ENDPOINT, &clusters), (LISTENER, &[("l", "one")])]).await;
    let names: Vec<&str> = clusters.iter().map(|(name, _)| *name).collect();
    let mut proxies = Vec::new();
    for n in 0..N {
        let mut proxy = Delta::open(&env, &format!("p{n}")).await;
        proxy.subscribe(CLUSTER, &[]).await;
        assert_eq!(proxy.take().await.names().len(), 50);
        proxy.subscribe(ENDPOINT, &names).await;
        assert_eq!(proxy.take().await.names().len(), 50);
        proxy.subscribe(LISTENER, &[]).await;
        proxy.take().await;
        proxies.push(proxy);
    }
    assert_eq!(env.server.status().len(), N);
    assert_eq!(env.metric("pilot_xds", "1.31.0"), N as f64);
    assert_eq!(env.fake.sets.lock().len(), 1, "equal sets of names are one allocation");
    for round in 0..3 {
        env.push(CLUSTER, &[("c07", Some(&format!("round {round}")))]);
        for proxy in &mut proxies {
            assert_eq!(proxy.take().await.names(), ["c07"]);
            assert_eq!(proxy.take().await.kind, "eds");
        }
    }
    for proxy in &mut proxies {
        proxy.quiet().await;
    }
    until(|| env.metric("pilot_proxy_convergence_time", "") == 3.0 * N as f64).await;
    drop(proxies);
    env.connected(0).await;
    until(|| env.fake.forgotten.lock().len() == N).await;
    assert_eq!(env.metric("pilot_xds", "1.31.0"), 0.0);
}
