//! Compiled code on disk: found again, never trusted blindly.
#![allow(clippy::unwrap_used, reason = "tests and what they are made of")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use support::guests;
use trysail_stages::component::{Runtime, RuntimeConfig};

/// A start of the control plane, and how many components it compiled.
fn start(folder: &Path) -> (Arc<Runtime>, u64) {
    let runtime = Runtime::new(RuntimeConfig { cache: Some(folder.to_owned()) }, &guests::QUERIES).unwrap();
    runtime.plugin("limit", guests::local_rate_limit()).unwrap();
    let compiled = runtime.compiled();
    (runtime, compiled)
}

/// The files of compiled code.
fn files(folder: &Path) -> Vec<PathBuf> {
    let inner =
        fs::read_dir(folder).into_iter().flatten().flat_map(|entry| fs::read_dir(entry.unwrap().path()).unwrap());
    inner.map(|entry| entry.unwrap().path()).collect()
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_warm_start_compiles_nothing() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("not/made/yet");
    assert_eq!(start(&folder).1, 1);
    assert_eq!(start(&folder).1, 0);
    let (runtime, _) = start(&folder);
    runtime.plugin("another name", guests::local_rate_limit()).unwrap();
    assert_eq!(runtime.compiled(), 0, "it is found by its code, not by its name");
    let file = &files(&folder)[..];
    let [file] = file else { panic!("one file, not {file:?}") };
    assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "nobody else writes what is run");
}

#[test]
fn a_damaged_file_is_compiled_again() {
    let home = tempfile::tempdir().unwrap();
    assert_eq!(start(home.path()).1, 1);
    let file = files(home.path()).pop().unwrap();
    let whole = fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [&flipped[..], &whole[..whole.len() / 2], &whole[..10], b""] {
        fs::write(&file, damaged).unwrap();
        assert_eq!(start(home.path()).1, 1);
        assert_eq!(fs::read(&file).unwrap().len(), whole.len(), "and whole again");
        assert_eq!(start(home.path()).1, 0);
    }
}

#[test]
fn what_others_can_write_is_not_used() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("shared");
    fs::create_dir(&folder).unwrap();
    mode(&folder, 0o777);
    assert_eq!((start(&folder).1, start(&folder).1), (1, 1));
    assert_eq!(files(&folder), Vec::<PathBuf>::new(), "nor is anything kept there");
    mode(&folder, 0o700);
    assert_eq!((start(&folder).1, start(&folder).1), (1, 0));
    let file = files(&folder).pop().unwrap();
    mode(file.parent().unwrap(), 0o770);
    assert_eq!(start(&folder).1, 1, "the folder within");
    mode(file.parent().unwrap(), 0o700);
    mode(&file, 0o666);
    assert_eq!(start(&folder).1, 1, "the file");
    fs::remove_file(&file).ok();
    assert_eq!((start(&folder).1, start(&folder).1), (1, 0));
    let moved = home.path().join("elsewhere");
    fs::rename(&file, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &file).unwrap();
    assert_eq!(start(&folder).1, 1, "a link in its place");
}
