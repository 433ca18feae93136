//! Names of images.

use std::fmt;

use oci_client::Reference;

use crate::Error;

/// An image by digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image(Reference);

impl Image {
    /// Reads `registry.example/name@sha256:...`, with docker's defaults for what is left out.
    ///
    /// # Errors
    /// When it is no name of an image, or has no digest.
    pub fn parse(text: &str) -> Result<Image, Error> {
        let wrong = |why: &str| Error::Name { name: text.to_owned(), why: why.to_owned() };
        let reference: Reference = text.parse().map_err(|error| wrong(&format!("{error}")))?;
        let digest = reference.digest().ok_or_else(|| wrong("it has no digest, and a tag may move"))?;
        if !is_sha256(digest) {
            return Err(wrong("its digest is none of SHA-256"));
        }
        Ok(Image(reference))
    }

    /// The registry as people name it.
    pub fn host(&self) -> &str {
        self.0.registry()
    }

    /// The registry's host, and port if it has one, as one connects to it.
    pub fn registry(&self) -> &str {
        self.0.resolve_registry()
    }

    /// The repository in the registry.
    pub fn repository(&self) -> &str {
        self.0.repository()
    }

    /// Digest of its manifest, with `sha256:` before it.
    pub fn digest(&self) -> &str {
        self.0.digest().expect("parse() demands one")
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.host(), self.repository(), self.digest())
    }
}

/// Is it a digest as registries write those of SHA-256?
pub(crate) fn is_sha256(digest: &str) -> bool {
    let is_hex = |hex: &str| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    digest.strip_prefix("sha256:").is_some_and(is_hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_digests() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let image = Image::parse(&format!("registry.example:5000/shop/limits@{digest}")).unwrap();
        assert_eq!((image.registry(), image.repository()), ("registry.example:5000", "shop/limits"));
        assert_eq!(image.digest(), digest);
        // A tag beside the digest is for people.
        let tagged = Image::parse(&format!("registry.example:5000/shop/limits:1.2@{digest}")).unwrap();
        assert_eq!(tagged.to_string(), image.to_string());
        let docker = Image::parse(&format!("shop/limits@{digest}")).unwrap();
        assert_eq!(
            (docker.registry(), docker.host(), docker.repository()),
            ("index.docker.io", "docker.io", "shop/limits")
        );
        for (bad, why) in [
            ("registry.example/limits:latest", "a tag may move"),
            ("registry.example/limits", "a tag may move"),
            ("registry.example/limits@sha256:abc", ""),
            (&format!("registry.example/limits@sha512:{}", "0a".repeat(64)), "SHA-256"),
            ("registry.example/../limits", ""),
            ("", ""),
        ] {
            let error = Image::parse(bad).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(bad), "{bad}: {error}");
        }
    }
}
