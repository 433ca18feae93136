//! 128-bit fingerprints of content.

use std::fmt;

/// A fingerprint of content: equal content has equal fingerprints on every replica and after every restart.
///
/// It is a truncated BLAKE3, not a fast hash: tenants choose the content, and whoever finds two contents
/// with one fingerprint would be served another tenant's configuration.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Fingerprint(pub u128);

impl Fingerprint {
    /// The fingerprint of "there is none", which no content has.
    pub const NONE: Fingerprint = Fingerprint(0);

    /// The fingerprint of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_hash(&blake3::hash(bytes))
    }

    /// The fingerprint of parts, each delimited by its length, so that no two lists of parts collide.
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self::from_hash(&hasher.finalize())
    }

    /// The fingerprint that a finished hasher stands for.
    pub fn from_hash(hash: &blake3::Hash) -> Self {
        let head: [u8; 16] = hash.as_bytes()[..16].try_into().expect("a BLAKE3 hash has 32 bytes");
        Fingerprint(u128::from_le_bytes(head).max(1))
    }

    /// The 16 bytes, as they enter other fingerprints.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_delimited() {
        let joined = Fingerprint::of_parts([b"ab".as_slice(), b"c"]);
        let other = Fingerprint::of_parts([b"a".as_slice(), b"bc"]);
        assert_ne!(joined, other);
        assert_ne!(Fingerprint::of(b""), Fingerprint::NONE);
    }
}
