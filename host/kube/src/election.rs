//! Who of several replicas does what only one may do.
//!
//! The locks are istiod's, name by name and form by form, so that an istiod of the same installation and we take turns: an
//! annotation of a ConfigMap, or a Lease; 30 seconds each, with the revision of the holder beside its name. The default
//! revision takes a lock from the others.
//!
//! **Invariant:** at most one replica acts. A leader counts from *before* it asked for its last renewal, on a clock that
//! nobody sets, and stops half a lease later; others count from when they *saw* that renewal, and wait for a whole lease. Who
//! takes a lock that another holds waits as long before it acts.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Where a ConfigMap has the lock.
const ANNOTATION: &str = "control-plane.alpha.kubernetes.io/leader";
/// Where a Lease has the holder's revision.
const KEY_ANNOTATION: &str = "leader.istio.io/holder-key";

/// What carries the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An annotation of a ConfigMap.
    ConfigMap,
    /// A Lease.
    Lease,
}

/// How long is what.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A lock that was not renewed for so long is anybody's.
    pub lease: Duration,
    /// A leader that could not renew for so long stops.
    pub renew_within: Duration,
    /// Between two looks.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing { lease: Duration::from_secs(30), renew_within: Duration::from_secs(15), retry: Duration::from_secs(5) }
    }
}

/// A lock, and who we are.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the lock.
    pub name: String,
    /// Namespace of the lock: the control plane's own.
    pub namespace: String,
    /// What carries it.
    pub form: Form,
    /// Name of our pod.
    pub identity: String,
    /// Our revision.
    pub revision: String,
    /// Are we the default revision, which takes locks from others?
    pub is_default: bool,
    /// How long is what.
    pub timing: Timing,
}

/// What a lock says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Record {
    /// Empty when it was given back.
    holder_identity: String,
    /// Revision of the holder.
    #[serde(skip_serializing_if = "String::is_empty")]
    holder_key: String,
    lease_duration_seconds: i32,
    acquire_time: Option<Timestamp>,
    renew_time: Option<Timestamp>,
    leader_transitions: i32,
}

/// A look at a leadership: cheap, and good for one act at a time.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<Option<Instant>>);

impl Leadership {
    /// Of somebody who leads without an election (`ENABLE_LEADER_ELECTION=false`), as long as the sender is kept.
    pub fn sole() -> (watch::Sender<Option<Instant>>, Leadership) {
        // Longer than any process lives, and no clock overflows.
        let (until_tx, until_rx) = watch::channel(Some(Instant::now() + Duration::from_secs(100 * 365 * 24 * 3600)));
        (until_tx, Leadership(until_rx))
    }

    /// Are we the leader at this moment? Ask before each act.
    pub fn holds(&self) -> bool {
        self.0.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Waits until that changes, or may have. An error when the election is over.
    ///
    /// # Errors
    /// The election ended.
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.0.changed().await
    }
}

/// Takes part in the election for a lock until `stop` is done; then gives the lock back.
pub struct Election {
    config: Config,
    client: Client,
    until_tx: watch::Sender<Option<Instant>>,
    /// What the lock said when it last changed, and when we saw that.
    observed: Option<(Record, Instant)>,
    /// When whoever we took the lock from has stopped for certain; unset when nobody had it.
    acts_from: Option<Instant>,
}

/// What is at hand of the lock.
enum Lock {
    ConfigMap(Box<ConfigMap>),
    Lease(Box<Lease>),
}

impl Election {
    /// An election, and a look at its outcome.
    pub fn new(client: Client, config: Config) -> (Election, Leadership) {
        let (until_tx, until_rx) = watch::channel(None);
        (Election { config, client, until_tx, observed: None, acts_from: None }, Leadership(until_rx))
    }

    /// Runs until `stop` is done; then gives the lock back, if it can do so quickly.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        loop {
            let Timing { retry, renew_within, .. } = self.config.timing;
            let asked = Instant::now();
            let attempt = tokio::time::timeout(renew_within, self.attempt(asked));
            tokio::select! {
                outcome = attempt => match outcome {
                    // Ours, but the one before may not know yet.
                    Ok(Ok(true)) if self.acts_from.is_some_and(|from| Instant::now() < from) => {}
                    Ok(Ok(true)) => {
                        if self.until_tx.send_replace(Some(asked + renew_within)).is_none() {
                            tracing::info!(lock = self.config.name, "this replica leads");
                        }
                    }
                    Ok(Ok(false)) => self.lost(),
                    Ok(Err(error)) => {
                        tracing::warn!(lock = self.config.name, %error, "the lock cannot be asked for");
                        self.expire();
                    }
                    Err(_) => self.expire(),
                },
                () = &mut stop => break,
            }
            tokio::select! {
                () = tokio::time::sleep(retry) => {}
                () = &mut stop => break,
            }
        }
        let held = self.until_tx.send_replace(None).is_some();
        if held && tokio::time::timeout(Duration::from_secs(2), self.give_back()).await.is_err() {
            tracing::warn!(lock = self.config.name, "the lock could not be given back; it runs out by itself");
        }
    }

    fn lost(&self) {
        if self.until_tx.send_replace(None).is_some() {
            tracing::info!(lock = self.config.name, "another replica leads");
        }
    }

    /// Tells whoever waits when the time is up; [`Leadership::holds`] knows it by itself.
    fn expire(&self) {
        self.until_tx.send_if_modified(|until| {
            let is_over = until.is_some_and(|until| Instant::now() >= until);
            if is_over {
                *until = None;
            }
            is_over
        });
    }

    /// Takes or renews the lock. True when it is ours.
    async fn attempt(&mut self, now: Instant) -> Result<bool, kube::Error> {
        let found = self.load().await?;
        let record = found.as_ref().map(record_of).unwrap_or_default();
        if self.observed.as_ref().is_none_or(|(known, _)| *known != record) {
            self.observed = Some((record.clone(), now));
        }
        let config = &self.config;
        let seen = self.observed.as_ref().map_or(now, |(_, seen)| *seen);
        let is_ours = record.holder_identity == config.identity;
        // A lock from before keys were written is the default revision's.
        let is_lower = config.is_default && !record.holder_key.is_empty() && record.holder_key != config.revision;
        let is_free = record.holder_identity.is_empty() || now.duration_since(seen) > config.timing.lease;
        if !(is_ours || is_free || is_lower) {
            return Ok(false);
        }
        let time = Timestamp::now();
        let ours = Record {
            holder_identity: config.identity.clone(),
            holder_key: config.revision.clone(),
            lease_duration_seconds: i32::try_from(config.timing.lease.as_secs()).unwrap_or(i32::MAX),
            acquire_time: if is_ours { record.acquire_time } else { Some(time) },
            renew_time: Some(time),
            leader_transitions: record.leader_transitions + i32::from(!is_ours && found.is_some()),
        };
        let stored = self.store(found, &ours).await?;
        if stored {
            if !(is_ours || is_free) {
                self.acts_from = Some(Instant::now() + self.config.timing.lease);
            } else if !is_ours {
                self.acts_from = None;
            }
            self.observed = Some((ours, Instant::now()));
        }
        Ok(stored)
    }

    async fn give_back(&mut self) {
        let Ok(Some(found)) = self.load().await else { return };
        let record = record_of(&found);
        if record.holder_identity != self.config.identity {
            return;
        }
        let free = Record { holder_identity: String::new(), lease_duration_seconds: 1, ..record };
        // Whoever took it meanwhile has it.
        let _ = self.store(Some(found), &free).await;
    }

    async fn load(&self) -> Result<Option<Lock>, kube::Error> {
        let Config { namespace, name, form, .. } = &self.config;
        Ok(match form {
            Form::ConfigMap => {
                let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
                api.get_opt(name).await?.map(|map| Lock::ConfigMap(Box::new(map)))
            }
            Form::Lease => {
                let api: Api<Lease> = Api::namespaced(self.client.clone(), namespace);
                api.get_opt(name).await?.map(|lease| Lock::Lease(Box::new(lease)))
            }
        })
    }

    /// Writes the lock, if nobody else did since it was loaded. False when somebody was faster.
    async fn store(&self, found: Option<Lock>, record: &Record) -> Result<bool, kube::Error> {
        let Config { namespace, name, form, .. } = &self.config;
        let is_new = found.is_none();
        let metadata =
            || ObjectMeta { name: Some(name.clone()), namespace: Some(namespace.clone()), ..ObjectMeta::default() };
        let written = match (form, found) {
            (Form::ConfigMap, found) => {
                let mut map = match found {
                    Some(Lock::ConfigMap(map)) => *map,
                    _ => ConfigMap { metadata: metadata(), ..ConfigMap::default() },
                };
                let text = serde_json::to_string(record).map_err(kube::Error::SerdeError)?;
                map.metadata.annotations.get_or_insert_default().insert(ANNOTATION.to_owned(), text);
                let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
                match is_new {
                    true => api.create(&PostParams::default(), &map).await.map(drop),
                    false => api.replace(name, &PostParams::default(), &map).await.map(drop),
                }
            }
            (Form::Lease, found) => {
                let mut lease = match found {
                    Some(Lock::Lease(lease)) => *lease,
                    _ => Lease { metadata: metadata(), ..Lease::default() },
                };
                lease
                    .metadata
                    .annotations
                    .get_or_insert_default()
                    .insert(KEY_ANNOTATION.to_owned(), record.holder_key.clone());
                lease.spec = Some(LeaseSpec {
                    holder_identity: Some(record.holder_identity.clone()),
                    lease_duration_seconds: Some(record.lease_duration_seconds),
                    acquire_time: record.acquire_time.map(MicroTime),
                    renew_time: record.renew_time.map(MicroTime),
                    lease_transitions: Some(record.leader_transitions),
                    ..LeaseSpec::default()
                });
                let api: Api<Lease> = Api::namespaced(self.client.clone(), namespace);
                match is_new {
                    true => api.create(&PostParams::default(), &lease).await.map(drop),
                    false => api.replace(name, &PostParams::default(), &lease).await.map(drop),
                }
            }
        };
        match written {
            Ok(()) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn record_of(lock: &Lock) -> Record {
    match lock {
        Lock::ConfigMap(map) => {
            let text = map.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ANNOTATION));
            // What nobody can read nobody holds.
            text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
        }
        Lock::Lease(lease) => {
            let spec = lease.spec.clone().unwrap_or_default();
            let key = lease.metadata.annotations.as_ref().and_then(|annotations| annotations.get(KEY_ANNOTATION));
            Record {
                holder_identity: spec.holder_identity.unwrap_or_default(),
                holder_key: key.cloned().unwrap_or_default(),
                lease_duration_seconds: spec.lease_duration_seconds.unwrap_or_default(),
                acquire_time: spec.acquire_time.map(|time| time.0),
                renew_time: spec.renew_time.map(|time| time.0),
                leader_transitions: spec.lease_transitions.unwrap_or_default(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_istiods() {
        let text = r#"{"holderIdentity":"istiod-1","holderKey":"default","leaseDurationSeconds":30,
            "acquireTime":"2026-01-31T08:00:00Z","renewTime":"2026-01-31T08:00:30Z","leaderTransitions":2}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!(
            (&*record.holder_identity, &*record.holder_key, record.leader_transitions),
            ("istiod-1", "default", 2)
        );
        let again: serde_json::Value = serde_json::to_value(&record).unwrap();
        assert_eq!(again, serde_json::from_str::<serde_json::Value>(text).unwrap());
    }

    #[test]
    fn leadership_runs_out_by_itself() {
        let (until_tx, until_rx) = watch::channel(None);
        let leadership = Leadership(until_rx);
        assert!(!leadership.holds());
        until_tx.send_replace(Some(Instant::now() + Duration::from_secs(60)));
        assert!(leadership.holds());
        until_tx.send_replace(Some(Instant::now()));
        assert!(!leadership.holds(), "though nobody said so");
    }
}
