//! Plugins that were built for a line of the interfaces run for ever: their binaries are here as they were built, and never built again.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use trysail::plugin::{Change, On, Rehearsal};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The example mesh, whose namespace asks for a limit.
fn limited(limit: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(here("../../examples/frontend-backend")).unwrap().flatten() {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let namespace = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: default\n  labels: {{example.trysail.dev/rate-limit: '{limit}'}}\n"
    );
    fs::write(folder.path().join("namespace.yaml"), namespace).unwrap();
    folder
}

fn on_a_big_stack(test: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(trysail_stages::STACK).spawn(test).unwrap().join().unwrap();
}

#[test]
fn a_plugin_of_line_0_1_does_what_it_did() {
    on_a_big_stack(|| {
        let component = here("tests/fixtures/line-0.1/local-rate-limit.wasm");
        let run = |folder: &Path| Rehearsal::of_component(&component, folder, &On::default()).unwrap().run().unwrap();
        let folder = limited("50");
        let found = run(folder.path());
        assert_eq!(found.errors, Vec::<String>::new());
        for (proxy, changes) in &found.changes {
            let limits: Vec<_> =
                changes.iter().filter(|change| change.effect.path.contains("local_ratelimit")).collect();
            assert!(!limits.is_empty(), "{proxy}: {changes:?}");
            let after = limits[0].effect.after.as_deref().unwrap_or_default();
            assert!(after.contains(r#""max_tokens":50"#), "{after}");
            assert_eq!(limits.len(), changes.len(), "and nothing else: {changes:?}");
        }
        let wrong = run(limited("many").path());
        assert!(wrong.changes.iter().all(|(_, changes)| changes.is_empty()));
        let said: Vec<&String> = wrong.said.iter().flat_map(|(_, said)| said).collect();
        assert!(said.iter().any(|line| line.contains("is not a number of requests per second")), "{said:?}");
    });
}

/// The plugin without code as it was when the line was released: every hook of the line, and every edit.
#[test]
fn a_plugin_of_line_0_2_does_what_it_did() {
    on_a_big_stack(|| {
        let component = here("tests/fixtures/line-0.2/patch.wasm");
        let buffer = json!({"name": "buffer", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer", "max_request_bytes": 7}});
        let own = json!({"name": "own", "domains": ["own.test"], "routes": [
            {"match": {"prefix": "/"}, "direct_response": {"status": 418}}]});
        let patches = json!([
            {"hook": "clusters", "service": "default/backend.*", "merge": {"value": {"connect_timeout": "7s"}}},
            {"hook": "clusters", "service": "default/backend.*", "operations": [
                {"op": "add", "path": "/per_connection_buffer_limit_bytes", "value": 7}]},
            {"hook": "http-filters", "direction": "inbound", "put": {"message": buffer}},
            {"hook": "route-configurations", "name": "80", "insert": {"path": "virtual_hosts", "at": "first", "value": own}},
            {"hook": "connection-managers", "direction": "inbound", "remove": "upgrade_configs"},
            {"hook": "listeners", "name": "virtualInbound", "set": {"path": "per_connection_buffer_limit_bytes", "value": 7}},
        ]);
        let spec = json!({"configuration": {"patches": patches}});
        let folder = here("../../examples/frontend-backend");
        let on = On { pod: Some("default/frontend-v1".into()), ..On::default() };
        let found = Rehearsal::with_spec(&component, &folder, &on, spec).unwrap().run().unwrap();
        assert_eq!(found.errors, Vec::<String>::new());
        let [(_, changes)] = &found.changes[..] else { panic!("one proxy") };
        let changed = |kind: &str, path: &str, after: Option<&str>| {
            let is = |change: &&Change| {
                change.kind == kind && change.effect.path.contains(path) && change.effect.after.as_deref() == after
            };
            assert!(changes.iter().any(|change| is(&change)), "{kind} {path}: {changes:#?}");
        };
        changed("cds", "connect_timeout", Some("\"7s\""));
        changed("cds", "per_connection_buffer_limit_bytes", Some("7"));
        changed("lds", "per_connection_buffer_limit_bytes", Some("7"));
        changed("lds", "upgrade_configs", None);
        assert!(changes.iter().any(|change| change.effect.path.contains("http_filters/name=buffer")), "{changes:#?}");
        assert!(changes.iter().any(|change| change.effect.path.contains("virtual_hosts/name=own")), "{changes:#?}");
    });
}

#[test]
fn what_does_not_fit_is_told_in_plain_words() {
    let options = trysail::pipeline::Options::default();
    let loaded = trysail::pipeline::load(&options).unwrap();
    let runtime: Arc<_> = loaded.runtime.unwrap();
    let why = |text: &str| runtime.plugin("odd", &wat::parse_str(text).unwrap()).map(drop).unwrap_err().to_string();
    let wasi = why(r#"(component (import "wasi:clocks/wall-clock@0.2.0" (instance)))"#);
    assert!(wasi.contains("wasi:clocks") && wasi.contains("without WASI"), "{wasi}");
    let later = why(r#"(component (import "trysail:stage/facts@0.9.0" (instance)))"#);
    assert!(later.contains("version 0.9.0") && later.contains("@0.2.0"), "{later}");
    let foreign = why(r#"(component (import "acme:things/a@1.0.0" (instance)))"#);
    assert!(foreign.contains("none of our interfaces"), "{foreign}");
    let empty = why("(component)");
    assert!(empty.contains("no hook of ours") || empty.contains("exports no hook"), "{empty}");
}
