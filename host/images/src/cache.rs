//! Blobs on disk, by digest: so that a restart needs no registry.
//!
//! Those of each namespace lie apart. What one namespace was given for its credentials is not another's that knows the digest.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;

use crate::image::is_sha256;
use crate::layout::{self, Leads};
use crate::{Image, digest};

/// All namespaces' blobs together take at most so many bytes; then the least recently used go.
const MAX_BYTES: u64 = 512 << 20;
/// Manifests on the way to a component: an index, and an image's.
pub(crate) const MAX_MANIFESTS: usize = 2;

/// A folder of blobs. Compiled code is not its business.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
    max_bytes: u64,
}

impl Cache {
    /// A cache in a folder, which need not be there.
    pub fn new(folder: PathBuf) -> Cache {
        Cache { folder, max_bytes: MAX_BYTES }
    }

    /// The component of an image, if all of it is there and as it was.
    pub fn component(&self, namespace: &str, image: &Image, limit: usize) -> Option<Bytes> {
        let mut digest = image.digest().to_owned();
        for _ in 0..MAX_MANIFESTS {
            let manifest = self.read(namespace, &digest)?;
            match layout::read(&manifest).ok()? {
                Leads::To(next) => digest = next,
                Leads::Component { digest, packing } => {
                    return layout::unpack(self.read(namespace, &digest)?.into(), packing, limit).ok();
                }
            }
        }
        None
    }

    /// A blob, if it is there and as it was.
    fn read(&self, namespace: &str, wanted: &str) -> Option<Vec<u8>> {
        let path = self.path(namespace, wanted)?;
        let bytes = std::fs::read(&path).ok()?;
        let is = digest(&bytes);
        if is != wanted {
            tracing::warn!(file = %path.display(), is, "a kept blob is not what it was; it is fetched again");
            let _ = std::fs::remove_file(&path);
            return None;
        }
        // For who looks which have not been used for long. A disk that cannot be written is no reason not to read.
        let _ = std::fs::File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(bytes)
    }

    /// Keeps a blob.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(&self, namespace: &str, digest: &str, bytes: &[u8]) -> io::Result<()> {
        let Some(path) = self.path(namespace, digest) else { return Ok(()) };
        let folder = path.parent().unwrap_or(&self.folder);
        std::fs::create_dir_all(folder)?;
        // Whole or not at all. Two that write the same write the same bytes.
        let fresh = path.with_extension(format!("{}.new", std::process::id()));
        let written = std::fs::write(&fresh, bytes).and_then(|()| std::fs::rename(&fresh, &path));
        if written.is_err() {
            let _ = std::fs::remove_file(&fresh);
        }
        written?;
        self.shrink(&path);
        Ok(())
    }

    /// Where a blob lies; nowhere for a namespace that is none.
    fn path(&self, namespace: &str, digest: &str) -> Option<PathBuf> {
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_namespace = !namespace.is_empty() && namespace.len() <= 63 && namespace.bytes().all(is_name);
        let hex = digest.strip_prefix("sha256:").filter(|_| is_sha256(digest) && is_namespace)?;
        Some(self.folder.join(namespace).join(hex))
    }

    /// Makes room: the least recently used go, but not the one that was just written.
    fn shrink(&self, kept: &Path) {
        let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut files: Vec<(SystemTime, u64, PathBuf)> = entries(&self.folder)
            .flat_map(|namespace| entries(&namespace.path()))
            .filter_map(|file| {
                let metadata = file.metadata().ok()?;
                Some((metadata.modified().ok()?, metadata.len(), file.path()))
            })
            .collect();
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        files.sort();
        for (_, size, path) in files {
            if total <= self.max_bytes {
                return;
            }
            if path != kept && std::fs::remove_file(&path).is_ok() {
                total -= size;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn cache(max_bytes: u64) -> (tempfile::TempDir, Cache) {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache { folder: home.path().join("images"), max_bytes };
        (home, cache)
    }

    #[test]
    fn what_is_not_what_it_was_is_not_there() {
        let (_home, cache) = cache(MAX_BYTES);
        let (bytes, other) = (b"component".as_slice(), digest(b"other"));
        cache.write("shop", &digest(bytes), bytes).unwrap();
        assert_eq!(cache.read("shop", &digest(bytes)).as_deref(), Some(bytes));
        assert_eq!(cache.read("bank", &digest(bytes)), None, "another namespace was not given it");
        cache.write("shop", &other, b"tampered with").unwrap();
        assert_eq!(cache.read("shop", &other), None);
        assert!(!cache.path("shop", &other).unwrap().exists(), "it is not looked at again and again");
    }

    #[test]
    fn names_that_lead_elsewhere_lead_nowhere() {
        let (_home, cache) = cache(MAX_BYTES);
        for namespace in ["..", "", "a/b", ".", "A"] {
            assert_eq!(cache.path(namespace, &digest(b"x")), None, "{namespace}");
        }
        assert_eq!(cache.path("shop", "sha256:../../x"), None);
    }

    #[test]
    fn the_least_recently_used_go() {
        let (_home, cache) = cache(250);
        let blobs: Vec<Vec<u8>> = (0..3).map(|n| vec![n; 100]).collect();
        let there = |n: usize| cache.path("shop", &digest(&blobs[n])).unwrap().exists();
        for (n, blob) in blobs.iter().enumerate().take(2) {
            cache.write("shop", &digest(blob), blob).unwrap();
            let file = std::fs::File::options().append(true).open(cache.path("shop", &digest(blob)).unwrap()).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(1000 - n as u64)).unwrap();
        }
        cache.read("shop", &digest(&blobs[0])).unwrap();
        cache.write("bank", &digest(&blobs[2]), &blobs[2]).unwrap();
        assert_eq!([there(0), there(1)], [true, false]);
        // More than all may take: it alone stays.
        cache.write("bank", &digest(&[9; 300]), &[9; 300]).unwrap();
        assert!(!there(0) && cache.read("bank", &digest(&[9; 300])).is_some());
    }
}
