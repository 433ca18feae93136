//! Which files a folder holds.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::Config;
use crate::convert::{Claim, FileInput, Violation, read_file};

/// Folders within folders, at most; more is taken for a loop.
const MAX_DEPTH: usize = 32;

/// Tells contents apart without reading them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Stamp {
    /// Time since the last write; unset when that lies in the future.
    pub(crate) fn age(&self) -> Option<Duration> {
        let (seconds, nanos) = self.modified;
        let since_epoch = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).ok()?);
        SystemTime::now().duration_since(UNIX_EPOCH + since_epoch).ok()
    }
}

/// What a walk through a folder found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Configuration files by their path relative to the folder, with `/` between names.
    pub(crate) files: BTreeMap<Arc<str>, Found>,
    /// Folders that could not be read, and why; what they held is unknown rather than gone.
    pub(crate) unreadable: BTreeMap<String, String>,
}

/// One file.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    /// Unset when not even that could be read, as for a link to nowhere.
    pub(crate) stamp: Option<Stamp>,
}

/// Device and inode of a folder, links followed.
pub(crate) fn identity(dir: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(dir)?;
    if !metadata.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "not a folder"));
    }
    Ok((metadata.dev(), metadata.ino()))
}

/// Walks a folder; fails only when the folder itself cannot be read.
pub(crate) fn scan(dir: &Path, config: &Config) -> io::Result<Scan> {
    let mut scan = Scan::default();
    let mut within = vec![identity(dir)?];
    let entries = fs::read_dir(dir)?;
    walk(entries, "", config, &mut within, &mut scan);
    Ok(scan)
}

fn walk(entries: fs::ReadDir, prefix: &str, config: &Config, within: &mut Vec<(u64, u64)>, scan: &mut Scan) {
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                scan.unreadable.insert(prefix.to_owned(), error.to_string());
                continue;
            }
        };
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if is_ignored(&name) || config.skip.contains(&*name) {
            continue;
        }
        let relative = if prefix.is_empty() { name.to_string() } else { format!("{prefix}/{name}") };
        let path = entry.path();
        // Follows links: a mounted ConfigMap consists of them.
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                let id = (metadata.dev(), metadata.ino());
                if within.contains(&id) || within.len() >= MAX_DEPTH {
                    scan.unreadable.insert(relative, "a link leads back to a folder above it".to_owned());
                    continue;
                }
                match fs::read_dir(&path) {
                    Ok(entries) => {
                        within.push(id);
                        walk(entries, &relative, config, within, scan);
                        within.pop();
                    }
                    Err(error) => {
                        scan.unreadable.insert(relative, error.to_string());
                    }
                }
            }
            Ok(metadata) if metadata.is_file() && is_configuration(&name) => {
                scan.files.insert(relative.into(), Found { path, stamp: Some(Stamp::of(&metadata)) });
            }
            Ok(_) => {}
            // A file that went away between listing and looking is just not there.
            Err(_) if fs::symlink_metadata(&path).is_err() => {}
            Err(_) if is_configuration(&name) => {
                scan.files.insert(relative.into(), Found { path, stamp: None });
            }
            Err(_) => {}
        }
    }
}

/// Hidden files, and what editors leave beside the file they work on.
pub(crate) fn is_ignored(name: &str) -> bool {
    name.starts_with('.') || name.starts_with('#') || name.ends_with('~') || name.ends_with(".swp")
}

fn is_configuration(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    matches!(extension.as_deref(), Some("yaml" | "yml" | "json"))
}

/// A file's text, with the stamp it had.
///
/// The error says why, for people.
pub(crate) fn read(found: &Found, config: &Config) -> Result<(Stamp, String), String> {
    let open = || -> io::Result<(Stamp, Vec<u8>)> {
        let stamp = Stamp::of(&fs::metadata(&found.path)?);
        if stamp.size > config.max_file_bytes {
            let reason = format!("{} bytes are more than the {} allowed", stamp.size, config.max_file_bytes);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
        }
        Ok((stamp, fs::read(&found.path)?))
    };
    let (stamp, bytes) = open().map_err(|error| format!("cannot be read: {error}"))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        format!("is not UTF-8 text (byte {at})")
    })?;
    Ok((stamp, text))
}

/// What a file says, or that it cannot be read.
pub(crate) fn interpret(path: &str, text: Result<&str, &str>, config: &Config) -> FileInput {
    match text {
        Ok(text) => read_file(path, text, config),
        Err(reason) => {
            FileInput { claims: vec![Claim::unreadable(path, Violation::new("", reason))], ..FileInput::default() }
        }
    }
}
