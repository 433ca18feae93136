//! Who leads.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trysail_kube::election::{Config, Election, Form, Leadership, Timing};

use crate::{PATIENCE, server};

struct Candidate {
    leadership: Leadership,
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Candidate {
    async fn start(name: &str, form: Form, identity: &str, revision: &str, is_default: bool) -> Candidate {
        let connection =
            trysail_kube::Connection { kubeconfig: Some(server().await.kubeconfig()), ..Default::default() };
        let client = trysail_kube::connect(&connection).await.unwrap();
        let timing = Timing {
            lease: Duration::from_secs(6),
            renew_within: Duration::from_secs(3),
            retry: Duration::from_millis(200),
        };
        let config = Config {
            name: name.into(),
            namespace: "default".into(),
            form,
            identity: identity.into(),
            revision: revision.into(),
            is_default,
            timing,
        };
        let (election, leadership) = Election::new(client, config);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(election.run(async move { drop(stopped.await) }));
        Candidate { leadership, stop, task }
    }

    async fn leads(&self) -> Duration {
        let began = Instant::now();
        while !self.leadership.holds() {
            assert!(began.elapsed() < PATIENCE, "it never leads");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        began.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_one_leads_and_another_takes_over() {
    for (name, form) in [("lock-map", Form::ConfigMap), ("lock-lease", Form::Lease)] {
        let mut candidates = BTreeMap::new();
        for identity in ["a", "b", "c"] {
            candidates.insert(identity, Candidate::start(name, form, identity, "default", true).await);
        }
        let leaders = |candidates: &BTreeMap<&'static str, Candidate>| -> Vec<&'static str> {
            candidates.iter().filter(|(_, candidate)| candidate.leadership.holds()).map(|(name, _)| *name).collect()
        };
        let watch = |candidates: &BTreeMap<&'static str, Candidate>| {
            let now = leaders(candidates);
            assert!(now.len() <= 1, "{now:?}");
            now.first().copied()
        };
        let began = Instant::now();
        let first = loop {
            if let Some(leader) = watch(&candidates) {
                break leader;
            }
            assert!(began.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        for _ in 0..100 {
            watch(&candidates);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let first = leaders(&candidates).first().copied().unwrap_or(first);
        // Killed: the lock runs out, and somebody else has it within the lease and a look.
        candidates.remove(first).unwrap().task.abort();
        let killed = Instant::now();
        let second = loop {
            if let Some(leader) = watch(&candidates) {
                break leader;
            }
            assert!(killed.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        // Stopped: it is given back, and nobody waits for the lease.
        let stopping = candidates.remove(second).unwrap();
        stopping.stop.send(()).unwrap();
        stopping.task.await.unwrap();
        let (_, left) = candidates.pop_first().unwrap();
        left.leads().await;
        // What people and istiod see.
        let client = server().await.client().await.unwrap();
        if form == Form::ConfigMap {
            let map = client.get(["v1", "ConfigMap", "default", name]).await.unwrap().unwrap();
            let record = map["metadata"]["annotations"]["control-plane.alpha.kubernetes.io/leader"].as_str().unwrap();
            let record: Value = serde_json::from_str(record).unwrap();
            assert_eq!((&record["holderKey"], &record["leaseDurationSeconds"]), (&json!("default"), &json!(6)));
            assert!(record["leaderTransitions"].as_u64() >= Some(2), "{record}");
        } else {
            let lease = client.get(["coordination.k8s.io/v1", "Lease", "default", name]).await.unwrap().unwrap();
            assert_eq!(lease["metadata"]["annotations"]["leader.istio.io/holder-key"], "default");
            assert_eq!(lease["spec"]["leaseDurationSeconds"], 6);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_revision_takes_the_lock() {
    let canary = Candidate::start("lock-revisions", Form::ConfigMap, "canary-1", "canary", false).await;
    canary.leads().await;
    let default = Candidate::start("lock-revisions", Form::ConfigMap, "default-1", "default", true).await;
    default.leads().await;
    for _ in 0..200 {
        assert!(!(default.leadership.holds() && canary.leadership.holds()), "both");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    default.leads().await;
    assert!(!canary.leadership.holds());
}
