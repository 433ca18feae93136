//! Why an image cannot be had.

/// Why an image cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It has no such name.
    #[error("{name:?} is no image by digest (registry.example/name@sha256:...): {why}")]
    Name {
        /// What was given.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The operator does not want images from there.
    #[error("images come from {} only, and not from {registry}", allowed.join(", "))]
    NotAllowed {
        /// Where it is.
        registry: String,
        /// Where they may come from.
        allowed: Vec<String>,
    },
    /// The client could not be made.
    #[error("no way to registries")]
    Client(#[source] reqwest::Error),
    /// The roots of registries' certificates could not be read.
    #[error("roots of registries' certificates, {file}: {why}")]
    Roots {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody answers, or the connection broke.
    #[error("{registry} does not answer")]
    Unreachable {
        /// Who.
        registry: String,
        /// How that was found out.
        #[source]
        source: reqwest::Error,
    },
    /// It took too long.
    #[error("{registry} did not deliver within {seconds} seconds")]
    Late {
        /// Who.
        registry: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The credentials, or that there are none, did not please.
    #[error("{registry} refuses ({status}) {}", if *had_credentials { "the credentials" } else { "who has no credentials" })]
    Denied {
        /// Who refused.
        registry: String,
        /// With which status of HTTP.
        status: u16,
        /// Whether it was told any.
        had_credentials: bool,
    },
    /// The registry wants tokens from a place where credentials are not taken.
    #[error("{registry} sends to {realm:?} for a token, which is {why}")]
    Realm {
        /// Who sends.
        registry: String,
        /// Where to.
        realm: String,
        /// Why it is not gone there.
        why: &'static str,
    },
    /// There is no such image.
    #[error("{registry} has no {what}")]
    Missing {
        /// Where it was looked for.
        registry: String,
        /// What is missing.
        what: String,
    },
    /// An answer that says nothing of the image.
    #[error("{registry} answers {status} when it is asked for {what}")]
    Status {
        /// Who.
        registry: String,
        /// The status of HTTP.
        status: u16,
        /// What was asked for.
        what: String,
    },
    /// More than is read.
    #[error("{what} is longer than {limit} bytes")]
    TooLong {
        /// What.
        what: String,
        /// The bound.
        limit: usize,
    },
    /// Something else than what was asked for.
    #[error("what came as {wanted} has the digest {is}")]
    Digest {
        /// What was asked for.
        wanted: String,
        /// What it is.
        is: String,
    },
    /// There is no component in it, or none that can be found.
    #[error("{0}")]
    Layout(String),
    /// Credentials could not be read.
    #[error("{0}")]
    Credentials(String),
    /// The pull secret is not as it should be.
    #[error("{0}")]
    PullSecret(String),
    /// It was not taken in.
    #[error("the push failed")]
    Push(#[source] Box<oci_client::errors::OciDistributionError>),
}

impl Error {
    /// Whether another attempt may do better though nobody does anything.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::Late { .. } => true,
            Error::Status { status, .. } => *status == 408 || *status == 429 || *status >= 500,
            _ => false,
        }
    }

    /// In a word, for metrics.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Error::Name { .. } | Error::NotAllowed { .. } => "refused",
            Error::Client(_) | Error::Roots { .. } | Error::Credentials(_) | Error::PullSecret(_) => "misconfigured",
            Error::Unreachable { .. } | Error::Late { .. } => "unreachable",
            Error::Denied { .. } | Error::Realm { .. } => "denied",
            Error::Missing { .. } => "missing",
            Error::Status { .. } | Error::Push(_) => "failed",
            Error::TooLong { .. } => "too_long",
            Error::Digest { .. } => "wrong_digest",
            Error::Layout(_) => "no_component",
        }
    }
}
