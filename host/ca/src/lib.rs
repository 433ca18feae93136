//! Identities: who calls, what certificate they get, and which secrets.
//!
//! It holds the certificate authority (in a process of its own), the certificate service, the authenticators, the secure
//! transport with our own serving certificate, and the secrets of gateways.
//! It deliberately does not know where configuration comes from, what a stage is, or how streams work: the streams find the
//! caller in a request's extensions and ask for secrets through [`trysail_model::Secrets`].
//!
//! ```text
//!            ┌──────────────── 15012 ────────────────┐
//!  TLS ─▶ tls (verifier, acceptor) ─▶ authenticate ─▶ service (CreateCertificate) ─▶ signer ┊ authority ─▶ roots
//!                 ▲                        │                  └─▶ registration ─▶ an external ┊ (child process)
//!              serving (our own            │                                      signer
//!              certificate), trust         └────────▶ the streams of host/xds ◀── sds: names ─▶ who may ─▶ bytes
//! ```
//!
//! **Invariant:** the identity in a certificate is the caller's, proved by an authenticator; nothing in a request decides it.
//!
//! **Invariant:** when an outside party fails (token review, keys of an issuer, the signer), the answer is no.

pub mod authenticate;
pub mod authority;
pub mod key;
pub mod limits;
pub mod metrics;
pub mod node;
pub mod registration;
pub mod roots;
pub mod sds;
pub mod service;
pub mod signer;
pub mod tls;
pub mod trust;
mod wire;
pub mod x509;

pub use authority::{Authority, IssueError, Issued, Lifetime, Lifetimes, Order, PublicBundle};
pub use signer::{InProcess, Signer, SignerProcess};
