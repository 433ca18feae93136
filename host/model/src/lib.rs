//! What the host crates meet at: ids, objects, queries and their answers, ropes, views, and the traits
//! between discovery, stages and xDS.
//!
//! It knows nothing of Istio's rules, of Kubernetes clients, of wasm or of gRPC, and does no IO.
//!
//! ```text
//!  discovery --objects--> facts --snapshot--> stages --views--> xds
//!                     (all four import this crate and never each other)
//! ```

pub mod body;
pub mod fingerprint;
pub mod identity;
pub mod ids;
pub mod images;
pub mod object;
pub mod pool;
pub mod proxy;
pub mod query;
pub mod rope;
pub mod view;

pub use body::Body;
pub use fingerprint::Fingerprint;
pub use identity::{Caller, Identity, Secrets, TrustBundle};
pub use ids::{ResourceName, StageName, TypeUrl};
pub use images::{ImageError, ImageRequest, Images};
pub use object::{Object, ObjectRef, Rejection};
pub use pool::ObjectPool;
pub use proxy::Proxy;
pub use query::{Affected, Answer, Proxies, Query, QueryDecl, Snapshot};
pub use rope::Rope;
pub use view::{Delta, Resource, Translator, View, Views, Watched};

/// An error with all that caused it, for places that have one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
