//! The story of an upgrade: a stage changes how it calls what it generates, and how it lays it out. EnvoyFilters, which name these,
//! break, and it is said; the plugins in their place, which say what they are about, do not.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trysail::pipeline::{self, Loaded, Mode, Options};
use trysail::render::{self, Scripted};
use trysail_facts::FactsSnapshot;
use trysail_model::Proxy;
use trysail_sdk::{Ctx, Entry, Failure, Output, Part};
use trysail_stages::guest::Guest;
use trysail_stages::{Engine, Native, NativeCode};

/// Uses whose EnvoyFilter names the connection manager or the router.
const USES: [(&str, &str); 4] = [
    ("03-lua", "x-answered-by"),
    ("04-connection-manager", "\"xff_num_trusted_hops\":2"),
    ("06-compression", "envoy.filters.http.compressor"),
    ("10-access-log", "%DURATION%"),
];

/// What the next version calls the connection manager: as long as before, so that lengths around it hold.
const OLD: &str = "envoy.filters.network.http_connection_manager";
const NEW: &str = "envoy.filters.network.http_connection_handler";

/// The listeners of the next version.
fn next(ctx: &Ctx<'_>, function: &str, args: &[String]) -> Result<Output, Failure> {
    let mut output = stage_listeners::translate(ctx, function, args)?;
    for entry in &mut output.entries {
        let Entry::Item(item) = entry else { continue };
        for part in &mut item.message.parts {
            let Part::Bytes(bytes) = part else { continue };
            let places: Vec<usize> =
                bytes.windows(OLD.len()).enumerate().filter(|(_, at)| *at == OLD.as_bytes()).map(|(i, _)| i).collect();
            for at in places {
                bytes[at..at + OLD.len()].copy_from_slice(NEW.as_bytes());
            }
        }
    }
    Ok(output)
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// The inbound listener of a backend's proxy with a document, and what is said.
fn inbound(loaded: &Loaded, document: &Path) -> (String, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(examples().join("frontend-backend")).unwrap().flatten() {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    fs::copy(document, folder.path().join("document.yaml")).unwrap();
    let mesh = trysail_discovery::load_folder(folder.path(), &trysail_discovery::Config::scenario()).unwrap();
    let options = Options { mode: Mode::Sandboxed, ..Options::default() };
    let snapshot = Arc::new(FactsSnapshot::new(render::inputs(&mesh)));
    let engine: Arc<Engine> = pipeline::engine(&options, loaded.stages.clone(), snapshot);
    let mut catalogue = pipeline::catalogue(loaded, &options, "istio-system").unwrap();
    catalogue.apply(mesh.objects.iter().map(|object| (&object.reference, Some(object))));
    catalogue.refresh(&engine);
    let pod = mesh.objects.iter().find(|o| &*o.reference.kind == "Pod" && &*o.reference.name == "backend-v1").unwrap();
    let proxy: Proxy = trysail::explain::proxy_of(pod).unwrap();
    let views = render::views(&engine, &Scripted::plain(proxy.clone()), &proxy);
    let said = render::diagnostics(&engine, &proxy, &views).iter().map(render::line).collect();
    let (_, listeners) = views.views.iter().find(|(kind, _)| *kind == "lds").unwrap();
    let inbound = listeners.get("virtualInbound").unwrap();
    let json = trysail_codec::json::to_json("envoy.config.listener.v3.Listener", &inbound.body.to_bytes()).unwrap();
    (json.to_string(), said)
}

fn story() {
    let today = pipeline::load(&Options { mode: Mode::Sandboxed, ..Options::default() }).unwrap();
    let stages = today.stages.iter().map(|stage| match stage.name() {
        "listeners" => Arc::new(Native::new("listeners", NativeCode::Stage(next))) as Arc<dyn Guest>,
        _ => stage.clone(),
    });
    let tomorrow = Loaded { stages: stages.collect(), runtime: today.runtime.clone() };
    for (of, sign) in USES {
        let [filter, plugin] =
            ["envoyfilter.yaml", "plugin.yaml"].map(|file| examples().join("plugins").join(of).join(file));
        for (document, works_tomorrow) in [(&filter, false), (&plugin, true)] {
            let (before, _) = inbound(&today, document);
            assert!(before.contains(sign) && before.contains(OLD), "{of}: {} works today", document.display());
            let (after, said) = inbound(&tomorrow, document);
            assert!(after.contains(NEW) && !after.contains(&format!("\"{OLD}\"")), "the upgrade took place");
            assert_eq!(after.contains(sign), works_tomorrow, "{of}: {} after the upgrade", document.display());
            let broken = said.iter().any(|line| line.contains("EnvoyFilter") && line.contains("matches nothing"));
            assert_eq!(broken, !works_tomorrow, "{of}: what breaks is said: {said:?}");
        }
    }
}

#[test]
fn an_upgrade_breaks_envoy_filters_and_no_plugins() {
    std::thread::Builder::new().stack_size(trysail_stages::STACK).spawn(story).unwrap().join().unwrap();
}
