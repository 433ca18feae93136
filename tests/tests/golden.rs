//! Our own scenarios, in the corpus' form, with results that were reviewed: `golden/<topic>/<case>/`.
//! `UPDATE_GOLDEN=1` rewrites the results; the diff is reviewed as part of the change.
//!
//! A case pins the types whose files it has, so that a case about routes does not hold thousands of lines of listeners. A new
//! case gets all of them; delete those that it is not about.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::path::Path;
use std::{env, fs};

use trysail_tests::corpus;

#[path = "support/render.rs"]
mod render;

#[test]
fn golden() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let scenarios = corpus::scenarios(&root).unwrap();
    assert!(!scenarios.is_empty());
    let out = tempfile::tempdir().unwrap();
    let failed = render::render_all(&render::as_istiod(), &root, &scenarios, out.path());
    assert!(failed.is_empty(), "{}", failed.join("\n"));

    let mut wrong = Vec::new();
    for scenario in &scenarios {
        let (expected, actual) = (root.join(scenario).join("expected"), out.path().join(scenario));
        if expected.is_dir() {
            leave_only(&expected, &actual);
        }
        if env::var_os("UPDATE_GOLDEN").is_some() {
            let _ = fs::remove_dir_all(&expected);
            copy(&actual, &expected);
            continue;
        }
        assert!(expected.is_dir(), "{} has no results; UPDATE_GOLDEN=1 writes them", scenario.display());
        for difference in corpus::compare(&expected, &actual).unwrap().differences {
            wrong.push(format!(
                "{} {} {}\n    {}",
                scenario.display(),
                difference.file,
                difference.resource,
                difference.lines.join("\n    ")
            ));
        }
        // What is said about bad objects is part of the result.
        for (file, want, got) in texts(&expected, &actual) {
            if want != got {
                wrong.push(format!("{} {file}\n  want:\n{want}  got:\n{got}", scenario.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Takes the resources of types that the case does not pin out of what was rendered.
fn leave_only(expected: &Path, actual: &Path) {
    for proxy in fs::read_dir(actual).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_dir()) {
        for file in fs::read_dir(proxy.path()).unwrap().map(Result::unwrap) {
            let pinned = expected.join(proxy.file_name()).join(file.file_name());
            if file.path().extension().is_some_and(|extension| extension == "json") && !pinned.is_file() {
                fs::remove_file(file.path()).unwrap();
            }
        }
    }
}

/// The diagnostics beside the resources, of either side.
fn texts(expected: &Path, actual: &Path) -> Vec<(String, String, String)> {
    let proxies = fs::read_dir(actual).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let files =
        ["refused.txt", "unused.txt"]
            .map(str::to_owned)
            .into_iter()
            .chain(proxies.flat_map(|proxy| {
                ["gate", "diagnostics", "faults", "error"].map(|kind| format!("{proxy}/{kind}.txt"))
            }));
    let read = |root: &Path, file: &str| fs::read_to_string(root.join(file)).unwrap_or_default();
    files
        .map(|file| (read(expected, &file), read(actual, &file), file))
        .map(|(want, got, file)| (file, want, got))
        .collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
