//! Plugins from a folder, as real components: loaded, replaced and removed while the engine runs.
#![allow(clippy::unwrap_used, reason = "tests and what they are made of")]

#[path = "../../stages/tests/support.rs"]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::json;
use support::*;
use trysail_model::{ImageError, ImageRequest, Images, Object, ObjectRef, Watched};
use trysail_plugins::catalogue::{Catalogue, PluginStatus, Sources};
use trysail_stages::{Config, Engine};

/// A folder of plugins over the toy world, whose fragment `a` says `one`.
struct Running {
    home: tempfile::TempDir,
    engine: Arc<Engine>,
    plugins: Catalogue,
}

fn running() -> Running {
    let home = tempfile::tempdir().unwrap();
    let world = World::default().list("plan", &["a", "bad"]).text("a", "one").text("bad", "trap");
    let config = Config { queries: &guests::QUERIES, ..config() };
    let engine = Engine::new(config, [native()], Arc::new(world));
    let plugins = Catalogue::new(sources(Some(home.path().to_owned())));
    Running { home, engine, plugins }
}

fn sources(folder: Option<std::path::PathBuf>) -> Sources {
    Sources {
        runtime: guests::runtime(),
        folder,
        builtins: &[],
        images: None,
        documents: |_| None,
        root_namespace: "istio-system".into(),
    }
}

impl Running {
    /// Puts a file in place whole, as an operator should, and has the folder looked at.
    fn put(&mut self, name: &str, bytes: &[u8]) -> bool {
        let fresh = self.home.path().join("fresh");
        fs::write(&fresh, bytes).unwrap();
        fs::rename(fresh, self.home.path().join(name)).unwrap();
        self.refresh()
    }

    fn remove(&mut self, name: &str) -> bool {
        fs::remove_file(self.home.path().join(name)).unwrap();
        self.refresh()
    }

    fn refresh(&mut self) -> bool {
        self.plugins.refresh(&self.engine).is_some()
    }

    fn served(&self, name: &str) -> Option<String> {
        text(&self.engine, &proxy("p", "x", "1"), name)
    }

    fn status(&self) -> PluginStatus {
        let [status] = &self.plugins.status()[..] else { panic!("one plugin, not {:?}", self.plugins.status()) };
        status.clone()
    }
}

/// The plugin with a text of its code or data replaced by one of the same length: another version of it.
fn other_version(from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = guests::hostile().to_vec();
    let places: Vec<usize> =
        bytes.windows(from.len()).enumerate().filter(|(_, at)| *at == from.as_bytes()).map(|(i, _)| i).collect();
    assert!(!places.is_empty(), "{from:?} is in it");
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    bytes
}

#[test]
fn plugins_come_change_and_go_while_everything_runs() {
    let mut running = running();
    assert_eq!(running.served("a").as_deref(), Some("one"));
    assert!(!running.refresh(), "nothing there");
    assert!(running.put("rascal.wasm", guests::hostile()));
    assert_eq!(running.served("a").as_deref(), Some("ONE"));
    let before = running.status();
    assert_eq!((before.name.as_str(), before.error.as_deref()), ("rascal", None));
    assert_eq!(before.points, ["clusters", "http-filters"]);
    assert!(!running.refresh(), "nothing changed");
    assert!(running.put("rascal.wasm", &other_version("asked to, about", "told to, about.")));
    let after = running.status();
    assert_ne!(before.digest, after.digest);
    assert_eq!((after.error.as_deref(), running.served("a").as_deref()), (None, Some("ONE")));
    assert!(running.remove("rascal.wasm"));
    assert_eq!(running.plugins.status(), []);
    assert_eq!(running.served("a").as_deref(), Some("one"));
}

#[test]
fn a_broken_file_leaves_the_version_before_it_in_force() {
    let mut running = running();
    assert!(running.put("rascal.wasm", b"never worked"));
    let status = running.status();
    assert_eq!((status.digest, running.served("a").as_deref()), (None, Some("one")));
    assert!(
        status.error.as_ref().is_some_and(|error| error.contains("not a WebAssembly component")),
        "{:?}",
        status.error
    );
    running.put("rascal.wasm", guests::hostile());
    let good = running.status();
    let half = &guests::hostile()[..guests::hostile().len() / 2];
    running.put("rascal.wasm", half);
    let broken = running.status();
    assert!(broken.error.is_some());
    assert_eq!((broken.digest, broken.points), (good.digest.clone(), good.points.clone()));
    assert_eq!(running.served("a").as_deref(), Some("ONE"), "still");
    running.put("rascal.wasm", guests::hostile());
    assert_eq!(running.status(), good, "mended");
}

#[test]
fn a_hook_point_that_there_is_not_is_refused() {
    let mut running = running();
    running.put("rascal.wasm", &other_version("http-filters", "http-fillers"));
    let status = running.status();
    let error = status.error.expect("it is refused");
    assert!(
        error.contains("\"http-fillers\"") && error.contains("network-filters"),
        "names it, and those there are: {error}"
    );
    assert_eq!((status.digest, running.served("a").as_deref()), (None, Some("one")));
}

#[test]
fn settings_lie_beside_the_plugin() {
    let mut running = running();
    running.put("rascal.wasm", guests::hostile());
    let late = |running: &Running, id: &str| text(&running.engine, &proxy(id, "x", "1"), "bad");
    assert_eq!(late(&running, "q").as_deref(), Some("trap"), "a fault is skipped unless it is said otherwise");
    assert!(running.put("rascal.json", br#"{"failurePolicy": "hold"}"#));
    assert_eq!(late(&running, "r"), None, "nothing to hold");
    assert!(running.put("rascal.json", br#"{"failurePolicy": "ignore"}"#));
    assert!(running.status().error.is_some_and(|error| error.contains("rascal.json")));
    assert_eq!(late(&running, "s"), None, "the settings before stay in force as well");
    assert!(running.remove("rascal.json"));
    assert_eq!((running.status().error, late(&running, "t").as_deref()), (None, Some("trap")));
}

#[test]
fn a_folder_that_cannot_be_read_changes_nothing() {
    let mut running = running();
    running.put("rascal.wasm", guests::hostile());
    let (folder, aside) = (running.home.path().to_owned(), running.home.path().with_extension("aside"));
    fs::rename(&folder, &aside).unwrap();
    fs::write(&folder, "no folder").unwrap();
    assert!(!running.refresh());
    assert_eq!(running.served("a").as_deref(), Some("ONE"));
    fs::remove_file(&folder).unwrap();
    fs::rename(Path::new(&aside), &folder).unwrap();
    assert!(!running.refresh());
    let node = running.engine.resources(&proxy("p", "x", "1"), &ALL.into(), &Watched::Wildcard).node;
    assert!(node.is_some());
}

/// Images as they come.
#[derive(Default)]
struct Shelf {
    answer: Mutex<Option<Result<Arc<[u8]>, ImageError>>>,
    wanted: Mutex<BTreeSet<ImageRequest>>,
}

impl Images for Shelf {
    fn get(&self, _: &ImageRequest) -> Option<Result<Arc<[u8]>, ImageError>> {
        self.answer.lock().unwrap().clone()
    }

    fn secret(&self, _: &ObjectRef, _: Option<&Arc<Object>>) {}

    fn retain(&self, wanted: &BTreeSet<ImageRequest>) {
        self.wanted.lock().unwrap().clone_from(wanted);
    }
}

fn by_image(digit: char, policy: &str) -> Arc<Object> {
    let image = format!("registry.example/rascal@sha256:{}", digit.to_string().repeat(64));
    let component = json!({"image": image, "imagePullSecret": "regcred"});
    Arc::new(Object {
        reference: ObjectRef::new("Plugin", "istio-system", "rascal"),
        api_version: "trysail.io/v1alpha1".into(),
        creation_nanos: 0,
        labels: Arc::default(),
        annotations: Arc::default(),
        body: json!({"spec": {"component": component, "failurePolicy": policy}}).into(),
        origin: "test".into(),
    })
}

/// The toy world with plugins by image.
fn by_images() -> (Running, Arc<Shelf>) {
    let (mut running, shelf) = (running(), Arc::new(Shelf::default()));
    let images = Some(shelf.clone() as Arc<dyn Images>);
    running.plugins = Catalogue::new(Sources { images, ..sources(None) });
    (running, shelf)
}

impl Running {
    fn apply(&mut self, document: &Arc<Object>) -> bool {
        self.plugins.apply([(&document.reference, Some(document))]);
        self.refresh()
    }

    fn moved(&mut self) -> bool {
        self.plugins.image_moved();
        self.refresh()
    }
}

#[test]
fn an_image_is_in_force_from_when_it_came() {
    let (mut running, shelf) = by_images();
    running.apply(&by_image('a', "skip"));
    let status = running.status();
    assert!(status.is_pending && !status.is_held && status.digest.is_none() && status.error.is_none(), "{status:?}");
    assert_eq!(running.served("a").as_deref(), Some("one"), "nothing waits for it");
    assert!(!running.refresh(), "nothing moved");
    *shelf.answer.lock().unwrap() = Some(Ok(guests::hostile().into()));
    assert!(running.moved());
    let first = running.status();
    assert!(!first.is_pending && first.image.as_ref().is_some_and(|image| image.ends_with('a')), "{first:?}");
    assert_eq!(running.served("a").as_deref(), Some("ONE"));
    // Another one: on its way, then not to be had. The first stays, and both are told.
    *shelf.answer.lock().unwrap() = None;
    running.apply(&by_image('b', "skip"));
    let status = running.status();
    assert!(status.is_pending && status.image == first.image && status.digest == first.digest, "{status:?}");
    for (error, field) in [
        (ImageError::Image("gone".into()), "spec.component.image: gone"),
        (ImageError::PullSecret("wrong".into()), "spec.component.imagePullSecret: wrong"),
    ] {
        *shelf.answer.lock().unwrap() = Some(Err(error));
        running.moved();
        let status = running.status();
        assert_eq!((status.error.as_deref(), status.digest), (Some(field), first.digest.clone()));
        assert_eq!(running.served("a").as_deref(), Some("ONE"));
    }
    let wanted = shelf.wanted.lock().unwrap().clone();
    let [request] = &wanted.iter().collect::<Vec<_>>()[..] else { panic!("one image, not {wanted:?}") };
    assert!(request.image.ends_with('b') && request.namespace == "istio-system", "{request:?}");
    assert_eq!(request.pull_secret.as_deref(), Some("regcred"));
}

#[test]
fn who_wants_faults_to_hold_is_not_left_out_for_want_of_a_component() {
    let (mut running, shelf) = by_images();
    assert_eq!(running.served("a").as_deref(), Some("one"));
    running.apply(&by_image('a', "hold"));
    let newcomer = |running: &Running, id: &str| text(&running.engine, &proxy(id, "x", "1"), "a");
    assert!(running.status().is_held && running.status().is_pending);
    assert_eq!(newcomer(&running, "q"), None, "there is nothing to hold, and it is not sent without");
    *shelf.answer.lock().unwrap() = Some(Err(ImageError::Image("gone".into())));
    running.moved();
    assert!(running.status().is_held && running.status().error.is_some());
    assert_eq!(newcomer(&running, "r"), None);
    *shelf.answer.lock().unwrap() = Some(Ok(guests::hostile().into()));
    running.moved();
    assert!(!running.status().is_held);
    assert_eq!(newcomer(&running, "s").as_deref(), Some("ONE"));
    // With a version in force it is as with any other.
    *shelf.answer.lock().unwrap() = None;
    running.apply(&by_image('b', "hold"));
    assert_eq!((running.status().is_held, newcomer(&running, "t").as_deref()), (false, Some("ONE")));
}
