//! Facts: objects in, answers out.
//!
//! It holds all accepted objects with mesh configuration, networks, feature variables and settings, keeps istiod's registries
//! over them (services, endpoints, workloads, ServiceEntries) and the indexes of configuration, and answers every question
//! of `wit/stage-0.1.0/facts.wit` that is not about another call. It does not know Envoy, any stage, the engine's traces,
//! Kubernetes clients or files, and does no IO.
//!
//! ```text
//!  Inputs ──> FactsSnapshot::new ──> State: tables, shared between snapshots
//!  Change ──> FactsSnapshot::apply ─┬> State::change ──> Touched (what moved, old and new form)
//!                                   └> affected ──> Vec<Affected> (queries whose answers can have moved)
//!  Query  ──> Snapshot::answer ──> queries, endpoints, targets, gateways
//! ```
//!
//! **Invariant:** an answer depends on the objects and the base alone, never on the order in which they came.
//!
//! **Invariant:** every query whose answer moves is named by the change that moves it ([`audit()`] checks); naming too many
//! costs time, naming too few serves stale configuration.
//!
//! Only warns: malformed feature variables, unknown or malformed fields of mesh configuration. Left out with a warning: an
//! object whose spec does not fit its kind's message. Nothing rejects the whole.

pub mod affected;
pub mod allocation;
pub mod audit;
pub mod config;
pub mod documents;
pub mod dump;
pub mod endpoints;
pub mod features;
pub mod gateways;
pub mod inputs;
pub mod kept;
pub mod labels;
pub mod mesh;
pub mod networks;
pub mod pods;
pub mod protocol;
pub mod proxy;
pub mod queries;
pub mod service_entry;
pub mod services;
pub mod slices;
pub mod snapshot;
pub mod state;
pub mod targets;
pub mod unused;
pub mod workloads;

mod json;
mod table;
#[cfg(test)]
mod testing;
mod touched;
mod wire;

pub use audit::audit;
pub use inputs::{Change, Inputs, Settings};
pub use queries::QUERIES;
pub use snapshot::FactsSnapshot;
