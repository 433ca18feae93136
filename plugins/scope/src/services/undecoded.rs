//! The common case without the work: a proxy that sees every public service, each host once. There the index's entries
//! are handed on as they came; of a thousand services only the names are read.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::BuildHasherDefault;

use trysail_sdk::facts::ServiceSummary;
use trysail_sdk::prost::{self, Message as _};
use trysail_sdk::{Ctx, Failure};

use super::{KUBERNETES, inferred};
use crate::client::Client;

/// `facts.v1.ServiceSummaries` with its entries as bytes.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(prost_path = "trysail_sdk::prost")]
pub struct Summaries {
    /// Each a `facts.v1.ServiceSummary`.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub services: Vec<Vec<u8>>,
}

/// The names of a `facts.v1.ServiceSummary`.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(prost_path = "trysail_sdk::prost")]
struct Names {
    #[prost(string, tag = "1")]
    host: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "12")]
    registry: String,
}

impl Summaries {
    /// All services that are visible in the proxy's namespace: those that are not public first.
    pub fn visible(ctx: &Ctx, client: &Client) -> Result<Self, Failure> {
        let special = ctx.service_index_namespaces()?;
        let index = |visibility: &str| ctx.ask::<Summaries>("service-index", &[visibility]);
        let mut found = match client.among(special.iter().map(String::as_str)) {
            Some(namespace) => index(namespace)?.unwrap_or_default(),
            None => Summaries::default(),
        };
        found.services.append(&mut index("*")?.unwrap_or_default().services);
        Ok(found)
    }

    /// The entries, decoded.
    pub fn decode(&self) -> Result<Vec<ServiceSummary>, Failure> {
        self.services.iter().map(|bytes| ServiceSummary::decode(bytes.as_slice()).map_err(bad)).collect()
    }

    /// Is each host there once?
    pub fn has_each_host_once(&self) -> Result<bool, Failure> {
        Ok(self.hosts()?.is_some())
    }

    /// Is each host there once, and does no VirtualService of the listener route to a service that is not there?
    pub fn is_all(&self, ctx: &Ctx, listener: u32) -> Result<bool, Failure> {
        let Some(hosts) = self.hosts()? else { return Ok(false) };
        for destination in inferred::destinations(ctx, listener)? {
            let held = hosts.get(&destination);
            if held.is_some_and(|names| names.registry == KUBERNETES) {
                continue;
            }
            let keys = ctx.services_of_host(&destination)?;
            let is_held = |key: &String| {
                held.is_some_and(|names| key.split_once('/').is_some_and(|(namespace, _)| namespace == names.namespace))
            };
            if !keys.iter().all(is_held) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The names by host, or none when a host is there twice. Looked up, never walked.
    fn hosts(&self) -> Result<Option<HashMap<String, Names, BuildHasherDefault<DefaultHasher>>>, Failure> {
        let mut hosts = HashMap::with_capacity_and_hasher(self.services.len(), BuildHasherDefault::default());
        for bytes in &self.services {
            let names = Names::decode(bytes.as_slice()).map_err(bad)?;
            if hosts.insert(names.host.clone(), names).is_some() {
                return Ok(None);
            }
        }
        Ok(Some(hosts))
    }
}

fn bad(error: prost::DecodeError) -> Failure {
    Failure::BadAnswer(format!("service-index: {error}"))
}
