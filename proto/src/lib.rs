//! Every message that Trysail puts on a wire or takes from one: Envoy's xDS, Istio's configuration API, and our facts.
//!
//! It holds generated types and what is needed to name and pack them.
//! It deliberately knows nothing of Kubernetes, of JSON, or of what any message means.
//!
//! ```text
//! envoy-types' .proto ─┐
//! protos/*.proto ──────┴─ build.rs ─┬─> envoy, xds, udpa, istio, stats, trysail, ...   message types
//!                                   ├─> the same modules: `*_client`, `*_server`       feature `grpc`
//!                                   └─> descriptors::pool()                            feature `descriptors`
//! ```
//!
//! Modules mirror proto packages: `envoy.config.cluster.v3.Cluster` is [`envoy::config::cluster::v3::Cluster`].
//! `google.protobuf` comes from [`prost_types`]. Which messages become types is the list in `roots.txt`; add a line there.
//!
//! `protos/istio` and `protos/stats` hold the wire facts of Istio 1.31 (names, numbers, types) without its prose, and
//! without its status and analysis messages; `protos/trysail` is ours; the rest is what `envoy-types` lacks.
//!
//! **Invariant:** without features this crate compiles for `wasm32-unknown-unknown`, because plugins use it.
//!
//! **Invariant:** equal messages encode to equal bytes, because versions of resources are digests of them. Maps are
//! [`BTreeMap`](std::collections::BTreeMap)s for that reason, and unknown fields are dropped on decoding.

pub mod any;
#[cfg(feature = "descriptors")]
pub mod descriptors;
pub mod protocol;

pub use generated::*;
pub use prost;
pub use prost_types;

// Generated code carries no docs: protoc is run without source info, as Envoy's comments hold examples that rustdoc
// would take for doc tests.
#[allow(missing_docs, deprecated, clippy::all, clippy::pedantic, clippy::unwrap_used)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}
