//! Components of plugins out of OCI registries, by digest.
//!
//! ```text
//!  ImageRequest ─▶ Store ─ at hand? ─▶ cache: blobs by digest, on disk
//!                    │                    ▲
//!                    └─ else a task: registry ── manifest ─▶ layout: which blob is the component ─▶ blob
//!                                                    ▲
//!                                          credentials: a pull secret, or docker's file
//! ```
//!
//! It deliberately does not know what a component is good for: it hands out bytes.
//!
//! **Invariant:** whatever a registry, somebody between, or the disk says, the bytes handed out are those that the digest in the
//! document stands for. Every blob is compared with the digest by which it was asked for, also when it is read from disk.
//!
//! **Invariant:** a registry may be a tenant's choice, and is not trusted: what is read of it is bounded in bytes and time, and
//! it cannot send us, or credentials, anywhere else than to public addresses over TLS.

mod access;
mod cache;
mod credentials;
mod error;
mod image;
mod layout;
mod metrics;
mod push;
mod registry;
mod store;

pub use access::Access;
pub use cache::Cache;
pub use credentials::{Credentials, CredentialsError};
pub use error::Error;
pub use image::Image;
pub use metrics::Metrics;
pub use push::{Pushed, push};
pub use registry::{Fetched, fetch};
pub use store::{Config, Retry, Store};

/// A component is at most this long, in bytes, unless it is said otherwise.
pub const MAX_BYTES: usize = 64 << 20;

/// SHA-256, as registries write it.
pub(crate) fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().fold("sha256:".to_owned(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
