//! A Kubernetes cluster as a source of objects, and what else a control plane asks of an API server.
//!
//! It knows the protocol of watches, and which part of an object is worth keeping. What an object says is read by
//! [`trysail_discovery`], as in a folder, so that the same objects are the same to everything behind. It does not know what
//! objects mean to the mesh.
//!
//! ```text
//!  API server ──list, watch──> one task a kind: Known (what is in force, how new) ──moved──> Gatherer ──Update──> owner
//!                                   ^ defined?  ── watch on definitions
//!  API server <──reviews── TokenReview, SubjectAccessReview          API server <──locks── Election
//!  API server <──endpoints── peers
//!  API server <──texts── Publisher, while it leads                   API server <──key── KeptSecret
//!  API server <──roots── trust_bundle, while it leads                API server <──requests── Signing
//!  API server <──status── Allocator, statuses, while they lead
//! ```
//!
//! **Invariant:** the owner never hears half a cluster: the first update comes when every watch has listed, a list that is made
//! anew counts as one change, and nothing moves while a list is under way or the server is gone.
//!
//! **Invariant:** no step back in time: an object of an older version than the one in force is not taken, and a list that is
//! older than what is known is made again.

pub mod addresses;
mod client;
mod definitions;
pub mod election;
mod gather;
mod kept;
mod known;
mod node_pods;
mod peers;
mod prune;
mod publish;
mod read;
mod reviews;
mod signing;
mod source;
pub mod statuses;
pub mod trust_bundle;
mod watch;
mod watched;

pub use client::{ClientError, Connection, connect};
pub use kept::{Kept, KeptError, KeptSecret};
pub use kube::Client;
pub use node_pods::{NodePods, PlacedPod};
pub use peers::{Peer, peers};
pub use publish::{Publication, Publisher, Selects};
pub use reviews::{Reviews, Unanswered};
pub use signing::{Signing, SigningError};
pub use source::{ClusterSource, Config, Progress};
