//! The example plugins in JavaScript and Python, built with their languages' own tools, over a mesh: the same changes as in Rust.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use trysail::plugin::{On, Rehearsal};
use trysail_tests::envoy::run;
use trysail_tests::workspace;

const JCO: &str = "@bytecodealliance/jco@1.35.0";
const COMPONENTIZE_PY: &str = "componentize-py==0.25.1";

/// A folder below `.cache` with a tool, which is installed at the first use; `None` when the language is not on this machine.
fn tool(name: &str, language: &str, install: impl Fn(&Path) -> anyhow::Result<()>) -> Option<PathBuf> {
    if Command::new(language).arg("--version").output().is_err() {
        println!("skipped: there is no {language} on this machine");
        return None;
    }
    let home = workspace().join(".cache").join(name);
    if !home.exists() {
        let unfinished = home.with_extension("part");
        let _ = fs::remove_dir_all(&unfinished);
        fs::create_dir_all(&unfinished).unwrap();
        install(&unfinished).unwrap();
        fs::rename(&unfinished, &home).unwrap();
    }
    Some(home)
}

/// What the plugin changes of the example mesh, told twice: on a fresh instance for every call the same comes out.
fn changes(component: &Path) {
    let component = component.to_owned();
    let check = move || {
        let mesh = workspace().join("examples/frontend-backend");
        let on = On { pod: Some("default/frontend-v1".into()), ..On::default() };
        let configuration = json!({"prefix": "default/backend.", "merge": {"connect_timeout": "7s"}});
        let spec =
            json!({"component": {"stateful": true}, "configuration": configuration, "limits": {"milliseconds": 30000}});
        let found = Rehearsal::with_spec(&component, &mesh, &on, spec).unwrap().run().unwrap();
        assert_eq!(found.errors, Vec::<String>::new());
        let [(_, changes)] = &found.changes[..] else { panic!("one proxy") };
        let mut changed: Vec<&str> = changes.iter().map(|change| change.effect.item.as_str()).collect();
        changed.sort_unstable();
        let service = "backend.default.svc.cluster.local";
        let expected = ["v1", "v2", ""].map(|subset| format!("outbound|80|{subset}|{service}"));
        assert_eq!(changed, expected, "{changes:?}");
        for change in changes {
            assert_eq!(
                (change.effect.path.as_str(), change.effect.after.as_deref()),
                ("connect_timeout", Some("\"7s\""))
            );
        }
    };
    // Calls nest, each on its guest's stack.
    std::thread::Builder::new().stack_size(trysail_stages::STACK).spawn(check).unwrap().join().unwrap();
}

#[test]
fn javascript() {
    let Some(home) = tool("jco-1.35.0", "npm", |home| {
        run(Command::new("npm").args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(home).arg(JCO))
    }) else {
        return;
    };
    let out = tempfile::tempdir().unwrap();
    let component = out.path().join("quick.wasm");
    let mut build = Command::new(home.join("node_modules/.bin/jco"));
    build.args(["componentize", "--backend", "qjs", "--backend-qjs-disable-async", "--backend-qjs-stub-wasi"]);
    build.arg("--wit").arg(workspace().join("wit/stage-0.2.0")).args(["--world-name", "clusters-plugin", "--out"]);
    run(build.arg(&component).arg(workspace().join("examples/scripts/javascript/plugin.js"))).unwrap();
    changes(&component);
}

#[test]
fn python() {
    let Some(home) = tool("componentize-py-0.25.1", "python3", |home| {
        let target = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"];
        run(Command::new("python3").args(target).arg(home).arg(COMPONENTIZE_PY))
    }) else {
        return;
    };
    let out = tempfile::tempdir().unwrap();
    let component = out.path().join("quick.wasm");
    let mut build = Command::new("python3");
    build.args(["-c", "import componentize_py; componentize_py.script()"]).env("PYTHONPATH", &home);
    build.arg("-d").arg(workspace().join("wit/stage-0.2.0")).args([
        "-w",
        "clusters-plugin",
        "componentize",
        "--stub-wasi",
    ]);
    build.arg("-p").arg(workspace().join("examples/scripts/python")).args(["plugin", "-o"]);
    run(build.arg(&component)).unwrap();
    changes(&component);
}
