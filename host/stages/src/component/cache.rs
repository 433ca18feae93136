//! Compiled code on disk.
//!
//! Compiled code is executed, so nobody else may write it: the folder belongs to the user and to nobody else, and each file
//! carries a digest over its content. A file that fails any check is compiled again.
#![allow(
    unsafe_code,
    reason = "wasmtime cannot check that bytes are code it compiled; the checks in here stand for it"
)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use wasmtime::Engine;
use wasmtime::component::Component;

/// A folder of compiled components, by digest of the component and of the compiler's settings.
pub struct Cache {
    folder: PathBuf,
}

/// Length of the digest before the code.
const HEAD: usize = 32;

impl Cache {
    /// Opens the folder, made if need be. `None`, with a warning, when it is not private.
    pub fn open(folder: PathBuf, engine: &Engine) -> Option<Cache> {
        // Code for another wasmtime, other settings or another processor lies in another folder.
        let mut hasher = std::hash::DefaultHasher::new();
        std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut hasher);
        let folder = folder.join(format!("{:016x}", std::hash::Hasher::finish(&hasher)));
        if let Err(error) = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder) {
            tracing::warn!(folder = %folder.display(), %error, "compiled components are not kept: cannot make the folder");
            return None;
        }
        // The folder above as well: whoever writes it can put another in its place.
        let above = fs::canonicalize(folder.join("..")).map_err(|error| error.to_string());
        match above.and_then(|above| private(&above)).and_then(|()| private(&folder)) {
            Ok(()) => Some(Cache { folder }),
            Err(why) => {
                tracing::warn!(folder = %folder.display(), "compiled components are not kept: the folder {why}");
                None
            }
        }
    }

    /// The compiled component of a digest, if it is there and unharmed.
    pub fn get(&self, engine: &Engine, digest: &str) -> Option<Component> {
        let path = self.path(digest);
        private(&path).ok()?;
        let bytes = fs::read(&path).ok()?;
        let (head, code) = bytes.split_at_checked(HEAD)?;
        if head != seal(digest, code) {
            tracing::warn!(file = %path.display(), "compiled component is damaged; compiling again");
            return None;
        }
        // SAFETY: the code is what `put` wrote: the file and its folder belong to this user, nobody else may write them, and the
        // content matches its digest.
        unsafe { Component::deserialize(engine, code) }
            .inspect_err(|error| tracing::debug!(%error, "compiled component is of another runtime; compiling again"))
            .ok()
    }

    /// Keeps a compiled component. A failure (a full disk) costs a compilation at the next start and is only logged.
    pub fn put(&self, digest: &str, component: &Component) {
        let write = || -> Result<(), Box<dyn std::error::Error>> {
            let code = component.serialize()?;
            let path = self.path(digest);
            let fresh = path.with_extension(format!("{}.new", std::process::id()));
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(&seal(digest, &code))?;
            file.write_all(&code)?;
            drop(file);
            // Whole or not at all, also for another process that starts at the same time.
            fs::rename(&fresh, &path)?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::warn!(folder = %self.folder.display(), %error, "a compiled component is not kept");
        }
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.folder.join(digest).with_extension("cwasm")
    }
}

/// Digest over the code and what it is the code of.
fn seal(digest: &str, code: &[u8]) -> [u8; HEAD] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(digest.as_bytes());
    hasher.update(code);
    *hasher.finalize().as_bytes()
}

/// Does a path belong to this user, and may nobody else write it?
fn private(path: &Path) -> Result<(), String> {
    let metadata = fs::symlink_metadata(path).map_err(|error| error.to_string())?;
    if metadata.file_type().is_symlink() {
        return Err("is a symbolic link".into());
    }
    let own = fs::metadata("/proc/self").map_err(|error| error.to_string())?;
    if metadata.uid() != own.uid() {
        return Err("belongs to another user".into());
    }
    if metadata.mode() & 0o022 != 0 {
        return Err("can be written by others".into());
    }
    Ok(())
}
