//! How registries are reached.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::redirect::Policy;

use crate::registry::{is_at, is_inside};
use crate::{Error, Image, MAX_BYTES};

/// How registries are reached.
#[derive(Clone, Debug)]
pub struct Access {
    /// Hosts, with their port, that are spoken to without TLS. For tests: what comes is checked by its digest all the same, but
    /// credentials are sent in the clear.
    pub plain_http: Vec<String>,
    /// Further roots of registries' certificates, a PEM file.
    pub roots: Option<PathBuf>,
    /// Where images may come from: `registry.example`, `registry.example/folder`; anywhere when empty.
    pub allowed: Vec<String>,
    /// A component, and what it comes packed in, is at most this long, in bytes.
    pub max_bytes: usize,
    /// How long one attempt to get an image may take.
    pub patience: Duration,
}

impl Default for Access {
    fn default() -> Self {
        Access {
            plain_http: Vec::new(),
            roots: None,
            allowed: Vec::new(),
            max_bytes: MAX_BYTES,
            patience: Duration::from_secs(60),
        }
    }
}

/// How long a connection may take to come about, and then be silent.
const CONNECT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(20);
/// From one address to the next.
const MAX_REDIRECTS: usize = 5;

impl Access {
    /// May an image come from where it is?
    ///
    /// # Errors
    /// If not.
    pub(crate) fn allows(&self, image: &Image) -> Result<(), Error> {
        let place = format!("{}/{}", image.host(), image.repository());
        let is_below = |allowed: &String| {
            let rest = place.strip_prefix(allowed.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if self.allowed.is_empty() || self.allowed.iter().any(is_below) {
            return Ok(());
        }
        Err(Error::NotAllowed { registry: place, allowed: self.allowed.clone() })
    }

    pub(crate) fn is_plain(&self, registry: &str) -> bool {
        self.plain_http.iter().any(|host| host == registry)
    }

    /// The further roots, as DER.
    pub(crate) fn roots(&self) -> Result<Vec<Vec<u8>>, Error> {
        let Some(file) = &self.roots else { return Ok(Vec::new()) };
        let wrong = |why: String| Error::Roots { file: file.display().to_string(), why };
        let text = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
        let blocks = pem::parse_many(text).map_err(|error| wrong(error.to_string()))?;
        let certificates: Vec<_> = blocks.into_iter().filter(|block| block.tag() == "CERTIFICATE").collect();
        if certificates.is_empty() {
            return Err(wrong("there is no certificate in it".to_owned()));
        }
        Ok(certificates.into_iter().map(pem::Pem::into_contents).collect())
    }

    /// A client for one registry. Anew each time, so that roots that were replaced count.
    pub(crate) fn client(&self, registry: &str) -> Result<reqwest::Client, Error> {
        let is_plain = self.is_plain(registry);
        let roots = self.roots()?;
        let roots: Result<Vec<_>, _> = roots.iter().map(|der| reqwest::Certificate::from_der(der)).collect();
        let own = registry.to_owned();
        let builder = reqwest::Client::builder()
            // Also where a registry redirects to, unless it is one without TLS itself.
            .https_only(!is_plain)
            .redirect(Policy::custom(move |attempt| {
                if attempt.previous().len() > MAX_REDIRECTS {
                    attempt.error("too many redirections")
                } else if is_inside(attempt.url()) && !is_at(attempt.url(), &own) {
                    attempt.error("a redirection to a private address")
                } else {
                    attempt.follow()
                }
            }))
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .user_agent(concat!("trysail/", env!("CARGO_PKG_VERSION")));
        roots.and_then(|roots| builder.tls_certs_merge(roots).build()).map_err(Error::Client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_allowed_is_asked() {
        let image = |name: &str| Image::parse(&format!("{name}@sha256:{}", "0".repeat(64))).unwrap();
        let access =
            Access { allowed: vec!["registry.example".into(), "other.example/mesh/".into()], ..Access::default() };
        for good in ["registry.example/a", "registry.example/a/b", "other.example/mesh/a", "other.example/mesh"] {
            access.allows(&image(good)).unwrap();
        }
        for bad in ["registry.example.evil/a", "other.example/meshed/a", "other.example/a", "shop/a"] {
            let error = access.allows(&image(bad)).unwrap_err().to_string();
            assert!(error.contains("other.example/mesh"), "{error}");
        }
        Access::default().allows(&image("anywhere.example/a")).unwrap();
    }
}
