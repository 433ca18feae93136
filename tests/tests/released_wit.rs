//! `.ci/wit` notices any change of a released folder, and lets the others change.
#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

use std::fs;
use std::path::Path;
use std::process::Command;

use trysail_tests::workspace;

/// What the check says of a folder, if it finds something.
fn check(folder: &Path) -> Option<String> {
    let output = Command::new(workspace().join(".ci/wit")).arg(folder).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (!output.status.success()).then_some(said)
}

#[test]
fn a_released_folder_never_changes() {
    let home = tempfile::tempdir().unwrap();
    let put = |file: &str, text: &str| {
        let path = home.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("old-1.0.0/types.wit", "one");
    put("new-1.1.0/types.wit", "one");
    // sha256 of "one".
    put(
        "released.sha256",
        "# released\n7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed  old-1.0.0/types.wit\n",
    );
    assert_eq!(check(home.path()), None);
    put("new-1.1.0/types.wit", "two");
    assert_eq!(check(home.path()), None, "it is not released");
    put("old-1.0.0/more.wit", "");
    assert!(check(home.path()).unwrap().contains("old-1.0.0/more.wit came after the release"));
    fs::remove_file(home.path().join("old-1.0.0/more.wit")).unwrap();
    put("old-1.0.0/types.wit", "two");
    assert!(check(home.path()).unwrap().contains("old-1.0.0/types.wit"));
    fs::remove_file(home.path().join("old-1.0.0/types.wit")).unwrap();
    assert!(check(home.path()).unwrap().contains("is released and gone"));
}
