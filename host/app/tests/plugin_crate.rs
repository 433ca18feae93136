//! What a newcomer does: a new plugin's crate, its component, its first case, what it would change, what it is, what it costs.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs `trysail plugin`; what it printed, and whether all is well.
fn plugin(args: &[&str], folder: &Path) -> (bool, String) {
    // What is compiled is kept among the guests of this build, whose dependencies it shares.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("guests");
    let mut command = Command::new(env!("CARGO_BIN_EXE_trysail"));
    command.arg("plugin").args(args).current_dir(folder).env("CARGO_TARGET_DIR", target);
    // Of the cargo that runs this test.
    for (name, _) in std::env::vars() {
        if ["CARGO_FEATURE_", "CARGO_CFG_", "CARGO_PROFILE_", "CARGO_PKG_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            command.env_remove(name);
        }
    }
    let output = command.env_remove("RUSTFLAGS").output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.success(), text)
}

fn well(args: &[&str], folder: &Path) -> String {
    let (is_well, text) = plugin(args, folder);
    assert!(is_well, "trysail plugin {}: {text}", args.join(" "));
    text
}

#[test]
fn from_nothing_to_a_changed_configuration() {
    let home = tempfile::tempdir().unwrap();
    let here = home.path();
    well(&["new", "quick-cart"], here);
    let crate_folder = here.join("quick-cart");
    let expected = crate_folder.join("cases/first/expected.yaml");
    assert!(well(&["test", "quick-cart", "--bless"], here).contains("first: written"));
    let written = fs::read_to_string(&expected).unwrap();
    assert!(written.contains("connect_timeout") && written.contains("cart.shop.svc.cluster.local"), "{written}");
    let component: PathBuf = crate_folder.join("target/quick-cart.wasm");
    let component = component.to_str().unwrap();
    // Not compiled again: the component is there.
    let test = ["test", "quick-cart", "--component", component];
    assert!(well(&test, here).contains("first: ok"));
    fs::write(&expected, written.replace("5s", "6s")).unwrap();
    let (is_well, text) = plugin(&test, here);
    assert!(!is_well && text.contains("first: FAILED") && text.contains("6s"), "{text}");

    let shown = well(&["inspect", component], here);
    assert!(shown.contains("trysail:stage@0.2.0") && shown.contains("hooks:       clusters"), "{shown}");
    assert!(shown.contains("\"required\":[\"prefix\",\"merge\"]"), "its schema travels with it: {shown}");

    // A configuration that does not fit is named before anything runs.
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/frontend-backend");
    let example = example.to_str().unwrap();
    fs::write(here.join("good.yaml"), "prefix: default/\nmerge: {connect_timeout: 7s}\n").unwrap();
    fs::write(here.join("bad.yaml"), "prefix: default/\nmerge: {connect_timeout: 7s}\nmore: 1\n").unwrap();
    let run =
        |configuration| ["run", component, example, "--pod", "default/frontend-v1", "--configuration", configuration];
    let changed = well(&run("good.yaml"), here);
    assert!(
        changed.contains("frontend-v1.default") && changed.contains("connect_timeout") && changed.contains("+ \"7s\""),
        "{changed}"
    );
    let (is_well, text) = plugin(&run("bad.yaml"), here);
    assert!(!is_well && text.contains("spec.configuration") && text.contains("more"), "{text}");

    let cost = well(&["bench", component, "--services", "20", "--configuration", "good.yaml"], here);
    assert!(cost.contains("a mesh of 20 services") && cost.contains("calls: "), "{cost}");
}

#[test]
fn what_cannot_be_is_said() {
    let home = tempfile::tempdir().unwrap();
    let said = |args: &[&str]| {
        let (is_well, text) = plugin(args, home.path());
        assert!(!is_well, "{text}");
        text
    };
    assert!(said(&["new", "Bad Name"]).contains("lower-case letters"));
    assert!(said(&["new", "good", "--hook", "cluster"]).contains("transport-sockets"));
    fs::create_dir(home.path().join("there")).unwrap();
    assert!(said(&["new", "there"]).contains("is there already"));
    assert!(said(&["build", "there"]).contains("no Cargo.toml"));
    fs::write(home.path().join("odd.wasm"), "never a component").unwrap();
    assert!(said(&["inspect", "odd.wasm"]).contains("no component"));
    assert!(said(&["diff", "there"]).contains("no pods and no proxies.yaml"));
}
