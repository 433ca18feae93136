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
    assert!(shown.contains("\"properties\":{\"prefix\":"), "its schema travels with it: {shown}");

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

    // In mode shadow it is shown, and said to be no more; rights that are too small are named, once for all proxies.
    fs::write(here.join("shadow.yaml"), "mode: shadow\nconfiguration: {prefix: default/}\n").unwrap();
    let with = |spec| ["run", component, example, "--spec", spec];
    let shadow = well(&with("shadow.yaml"), here);
    assert!(shadow.contains("is in mode shadow") && shadow.contains("+ \"5s\""), "{shadow}");
    assert!(shadow.contains("the same as backend-v1.default"), "{shadow}");
    fs::write(here.join("rights.yaml"), "rights: {writes: [{hook: clusters, fields: [type]}]}\n").unwrap();
    let (is_well, text) = plugin(&with("rights.yaml"), here);
    let words = "error: plugin istio-system/quick-cart at clusters(default/backend.default.svc.cluster.local): went beyond its rights: \
                 changed connect_timeout";
    assert!(!is_well && text.contains(words) && text.contains("spec.rights.writes"), "{text}");

    // A folder's documents are judged as the control plane judges them.
    let folder = here.join("folder");
    fs::create_dir(&folder).unwrap();
    for file in fs::read_dir(example).unwrap().flatten() {
        fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    let plugins = crate_folder.join("target");
    let plugins = plugins.to_str().unwrap();
    let document = |spec: &str| {
        let head =
            "apiVersion: trysail.io/v1alpha1\nkind: Plugin\nmetadata: {name: cart, namespace: istio-system}\nspec:\n";
        fs::write(folder.join("plugin.yaml"), format!("{head}  component: {{file: quick-cart.wasm}}\n{spec}")).unwrap();
        plugin(&["diff", "folder", "--plugins", plugins, "--pod", "default/frontend-v1"], here)
    };
    let (is_well, text) = document("  mode: shadow\n");
    assert!(
        is_well && text.contains("+ \"5s\"") && text.contains("Plugin istio-system/cart is in mode shadow"),
        "{text}"
    );
    for (spec, words) in [
        ("  mode: shadowed\n", "Plugin istio-system/cart: spec.mode"),
        ("  failurepolicy: hold\n", "Plugin istio-system/cart: spec.failurepolicy"),
        ("  configuration: {prefx: a}\n", "spec.configuration: there is no prefx; there are prefix, merge"),
        (
            "  rights: {reads: [{question: services}]}\n",
            "spec.rights.reads[0].question: there is no question \"services\"",
        ),
        (" mode: shadow\n", "refused: plugin.yaml"),
    ] {
        let (is_well, text) = document(spec);
        assert!(!is_well && text.contains(words), "{spec}: {text}");
        // Its component does not work everywhere instead.
        assert!(text.contains("frontend-v1.default: nothing changes"), "{spec}: {text}");
    }
    let (is_well, text) = document("  scope: {namespaces: [defualt]}\n");
    assert!(is_well && text.contains("plugin istio-system/cart has no effect: it was not called"), "{text}");
    let (is_well, text) = plugin(&["diff", "folder", "--plugins", plugins], here);
    assert!(is_well, "{text}");
    document("  scope: {namespaces: [defualt]}\n  postConditions: {changesAtLeast: 1}\n");
    let (is_well, text) = plugin(&["diff", "folder", "--plugins", plugins], here);
    assert!(!is_well && text.contains("spec.postConditions.changesAtLeast is 1, but it was not called"), "{text}");
    // Nor does it when the document is taken away; a word beside it has it work.
    fs::remove_file(folder.join("plugin.yaml")).unwrap();
    let diff = ["diff", "folder", "--plugins", plugins, "--pod", "default/frontend-v1"];
    let (is_well, text) = plugin(&diff, here);
    assert!(!is_well && text.contains("no Plugin document names it") && text.contains("nothing changes"), "{text}");
    fs::write(crate_folder.join("target/quick-cart.json"), "{}").unwrap();
    assert!(well(&diff, here).contains("+ \"5s\""));

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
    let pods = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: b}\nstatus: {podIP: 10.0.0.1}\n";
    fs::write(home.path().join("there/pod.yaml"), pods).unwrap();
    let pod = said(&["diff", "there", "--pod", "a"]);
    assert!(pod.contains("NAMESPACE/NAME") && pod.contains("b/a"), "{pod}");
    // The no-code path: what is wrong is said when the document is taken, not at each call.
    let patch = |patch: &str| {
        let text = format!(
            "apiVersion: trysail.io/v1alpha1\nkind: Plugin\nmetadata: {{name: p, namespace: b}}\nspec:\n  component: {{builtin: patch}}\n  \
             configuration: {{patches: [{patch}]}}\n"
        );
        fs::write(home.path().join("there/plugin.yaml"), text).unwrap();
        said(&["diff", "there"])
    };
    let hook = patch("{hook: cluster, remove: name}");
    assert!(hook.contains("spec.configuration.patches[0].hook: \"cluster\" is none of \"clusters\""), "{hook}");
    let direction = patch("{hook: clusters, direction: OUTBOUND, remove: name}");
    assert!(direction.contains("patches[0].direction: \"OUTBOUND\" is none of \"inbound\""), "{direction}");
    assert!(patch("{hook: clusters}").contains("patches[0]: one of operations, merge, set"));
    let merge = patch("{hook: clusters, merge: {connect_timeout: 1s}}");
    assert!(merge.contains("patches[0].merge: ") && merge.contains("there are path, value"), "{merge}");
    // What only Envoy's messages know is said for the fragment, once for all proxies.
    let field = patch("{hook: listeners, merge: {value: {nmae: a}}}");
    assert!(field.contains("error: plugin b/p at listener(") && field.contains("nmae: unknown field"), "{field}");
    fs::remove_file(home.path().join("there/plugin.yaml")).unwrap();
    fs::remove_file(home.path().join("there/pod.yaml")).unwrap();
    assert!(said(&["diff", "there"]).contains("no pods and no proxies.yaml"));
}
