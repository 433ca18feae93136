//! The admin interface of an Envoy in a network namespace.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::bootstrap::ADMIN;
use crate::netns::Netns;
use crate::workload::{self, Call, Reply};

/// Who asks, and where.
#[derive(Clone, Copy)]
pub struct Admin<'a> {
    /// Where Envoy is.
    pub netns: &'a Netns,
    /// What it is called in reports.
    pub name: &'a str,
}

impl Admin<'_> {
    /// A page.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn get(&self, path: &str) -> Result<Reply> {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN));
        workload::call(self.netns, Call { to, host: "admin", method: "GET", path, headers: &[] }).await
    }

    /// Stats whose name contains the text, those that are not zero and no histograms.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn stats(&self, contains: &str) -> Result<BTreeMap<String, u64>> {
        let reply = self.get("/stats?usedonly").await?;
        let lines = reply.body.lines().filter_map(|line| line.rsplit_once(": "));
        let lines = lines.filter(|(name, _)| name.contains(contains));
        Ok(lines
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok().filter(|value| *value > 0)?)))
            .collect())
    }

    /// Envoy's dump of its configuration.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn config_dump(&self) -> Result<Value> {
        let reply = self.get("/config_dump?include_eds").await?;
        serde_json::from_str(&reply.body).context("config_dump is no JSON")
    }

    /// What Envoy did not accept: rejected updates by stat, and resources with an error in the dump.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn rejections(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        // `update_failure` does not count: the stream may fail before the control plane is up.
        for stat in ["update_rejected", "listener_create_failure"] {
            found.extend(self.stats(stat).await?.into_iter().map(|(name, n)| format!("{}: {name} = {n}", self.name)));
        }
        find_errors(&self.config_dump().await?, &mut |error| found.push(format!("{}: {error}", self.name)));
        Ok(found)
    }
}

/// Every `error_state` with details in a dump.
fn find_errors(dump: &Value, report: &mut impl FnMut(String)) {
    match dump {
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == "error_state"
                    && let Some(details) = value.get("details")
                {
                    report(details.to_string());
                }
                find_errors(value, report);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| find_errors(item, report)),
        _ => {}
    }
}
