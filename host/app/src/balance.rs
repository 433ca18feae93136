//! Streams that another replica should have.
//!
//! Proxies come to a replica by the Service, once, and stay: after a restart or a scale-up the oldest replica has nearly all.
//! Each replica asks the others how many they have (`pilot_xds` of their metrics, which istiod has, too), and one with far
//! more than its share lets some go. They come back by the Service, to another replica mostly, which sends them nothing they
//! have. Little at a time, and never because of a replica that does not answer: that would be a storm.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http_body_util::Empty;
use hyper::Request;
use trysail_facts::Settings;
use trysail_kube::Client;
use trysail_xds::Server;

use crate::env::{Environment, duration_of};
use crate::http;

/// Name of the Service's port where metrics are.
const MONITORING: &str = "http-monitoring";
/// How long another replica may take for an answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest answer that is read, bytes.
const LONGEST: usize = 8 << 20;
/// So much more than its share a replica may have, in percent.
const TOLERANCE_PERCENT: usize = 150;
/// Fewer than so many above its share are not worth a reconnect.
const SLACK: usize = 10;
/// The part of its streams that a replica lets go at once, as a divisor.
const PART: usize = 10;

/// The balancing of one replica.
pub struct Balance {
    /// The cluster.
    pub client: Client,
    /// Our streams.
    pub xds: Server,
    namespace: String,
    service: String,
    pod: String,
    interval: Duration,
}

impl Balance {
    /// Balances every `TRYSAIL_BALANCE_INTERVAL` (a minute); none when that is zero, or when we do not know who we are
    /// (`POD_NAME`).
    pub fn new(client: Client, xds: Server, environment: &dyn Environment, settings: &Settings) -> Option<Balance> {
        let interval = duration_of(environment, "TRYSAIL_BALANCE_INTERVAL", Duration::from_secs(60));
        let pod = environment.get("POD_NAME").filter(|_| !interval.is_zero())?;
        let service = match &*settings.revision {
            "" | "default" => "istiod".to_owned(),
            revision => format!("istiod-{revision}"),
        };
        Some(Balance { client, xds, namespace: settings.system_namespace.clone(), service, pod, interval })
    }

    /// Runs until its task is aborted.
    pub async fn run(self) {
        loop {
            tokio::time::sleep(self.interval).await;
            let peers = trysail_kube::peers(&self.client, &self.namespace, &self.service, MONITORING).await;
            let peers = match peers {
                Ok(peers) => peers,
                Err(error) => {
                    tracing::debug!(%error, "the other replicas are not known; nothing is balanced");
                    continue;
                }
            };
            let others = peers.iter().filter(|peer| peer.pod != self.pod).map(|peer| streams_of(peer.address));
            let others: Vec<usize> = join_all(others).await.into_iter().flatten().collect();
            let ours = self.xds.n_streams();
            let excess = excess(ours, &others);
            if excess > 0 {
                tracing::warn!(ours, ?others, "far more streams than other replicas have: {excess} are let go");
                self.xds.let_go(excess, self.interval / 2).await;
            }
        }
    }
}

/// How many streams to let go.
fn excess(ours: usize, others: &[usize]) -> usize {
    if others.is_empty() {
        return 0;
    }
    let share = (ours + others.iter().sum::<usize>()).div_ceil(others.len() + 1);
    let above = ours.saturating_sub(share);
    if ours * 100 <= share * TOLERANCE_PERCENT || above < SLACK {
        return 0;
    }
    above.min((ours / PART).max(1))
}

/// The streams of another replica; none when it does not say.
async fn streams_of(address: SocketAddr) -> Option<usize> {
    let text = tokio::time::timeout(PATIENCE, page(address)).await.ok()??;
    Some(streams_in(&text))
}

/// The sum of `pilot_xds` over all versions of proxies.
fn streams_in(metrics: &str) -> usize {
    let values = metrics.lines().filter(|line| line.starts_with("pilot_xds{") || line.starts_with("pilot_xds "));
    let values = values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    // A count; what is none counts as nothing.
    values.map(|value| value as usize).sum()
}

async fn page(address: SocketAddr) -> Option<String> {
    let request = Request::get("/metrics").header("host", address.to_string()).body(Empty::<Bytes>::new()).ok()?;
    let response = http::exchange(address, request, LONGEST).await.ok()?;
    Some(String::from_utf8_lossy(response.body()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_far_more_than_the_share_is_let_go_and_little_at_a_time() {
        assert_eq!(excess(1000, &[]), 0, "alone it has all");
        assert_eq!(excess(1000, &[0, 0]), 100);
        assert_eq!(excess(600, &[500, 400]), 0, "not far more");
        assert_eq!(excess(12, &[0]), 0, "so few do not matter");
        assert_eq!(excess(0, &[1000]), 0);
        assert_eq!(excess(100, &[60, 30]), 10);
        // It comes to rest.
        let (mut ours, mut other) = (1000, 0);
        while let n @ 1.. = excess(ours, &[other]) {
            (ours, other) = (ours - n, other + n);
        }
        assert!((500..=760).contains(&ours), "{ours}");
    }

    #[test]
    fn streams_of_all_versions_are_counted() {
        let text = "# TYPE pilot_xds gauge\npilot_xds{version=\"1.31.0\"} 7\npilot_xds{version=\"other\"} 2\npilot_xds_pushes{type=\"cds\"} 5\n";
        assert_eq!(streams_in(text), 9);
        assert_eq!(streams_in(""), 0);
    }
}
