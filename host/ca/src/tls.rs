//! The secure transport: which versions and ciphers, whose client certificates, our own certificate, connections.

mod acceptor;
mod options;
mod serving;
mod verifier;

pub use acceptor::{Acceptor, Peer, SecureStream};
pub use options::{OptionsError, TlsOptions};
pub use serving::{Anchors, ServingConfig, ServingError, ServingFiles, ServingSource, serving_names, watch_serving};
pub use verifier::{SpiffeVerifier, TrustBundles};
