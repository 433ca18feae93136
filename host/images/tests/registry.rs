//! Images by digest against a registry that speaks the protocol over a socket, and against all that can go wrong with one.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect, helpers included")]

#[path = "support/registry.rs"]
mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry as Metered;
use serde_json::json;
use support::{Guarded, Registry, Trouble, digest};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use trysail_images::{Access, Cache, Config, Credentials, Error, Image, Metrics, Retry, Store, fetch, push};
use trysail_model::images::PULL_SECRET;
use trysail_model::{ImageError, ImageRequest, Images as _, Object, ObjectRef};

const COMPONENT: &[u8] = b"\0asm, as far as anybody here is concerned";
const PATIENCE: Duration = Duration::from_secs(30);

fn access(registry: &Registry) -> Access {
    Access { plain_http: vec![registry.host()], max_bytes: 1 << 20, ..Access::default() }
}

async fn got(access: &Access, image: &str, credentials: &Credentials) -> Result<Vec<u8>, Error> {
    fetch(access, &Image::parse(image).unwrap(), credentials).await.map(|fetched| fetched.component.to_vec())
}

async fn why(access: &Access, image: &str) -> String {
    trysail_model::with_causes(&got(access, image, &Credentials::default()).await.unwrap_err())
}

fn credentials(registry: &Registry, user: &str, password: &str) -> Credentials {
    let entry = json!({"username": user, "password": password});
    Credentials::parse(json!({"auths": {registry.host(): entry}}).to_string().as_bytes()).unwrap()
}

#[tokio::test]
async fn an_image_is_what_its_digest_says() {
    let registry = Registry::start().await;
    let access = access(&registry);
    let image = registry.put_wasm("shop/limits", COMPONENT);
    assert_eq!(got(&access, &image, &Credentials::default()).await.unwrap(), COMPONENT);

    for (part, what) in [("/manifests/", image.split_once('@').unwrap().1.to_owned()), ("/blobs/", digest(COMPONENT))] {
        registry.trouble(Trouble::Forged(part));
        let said = why(&access, &image).await;
        assert!(said.contains(&what) && said.contains(&digest(b"something else")), "{said}");
    }
    registry.trouble(Trouble::None);
    let other = image.replace(&image[image.len() - 4..], "0000");
    assert!(why(&access, &other).await.contains("has no shop/limits@sha256:"));
    // What a manifest promises and the registry does not have.
    let absent = json!({"mediaType": "application/wasm", "digest": digest(b"absent"), "size": 6});
    let manifest = json!({"schemaVersion": 2, "config": absent, "layers": [absent]});
    let said = why(&access, &registry.put_manifest("shop/limits", &manifest)).await;
    assert!(said.contains(&digest(b"absent")), "{said}");
}

#[tokio::test]
async fn an_index_leads_to_its_image_for_wasm() {
    let registry = Registry::start().await;
    let image = registry.put_wasm("limits", COMPONENT);
    let entry = |digest: &str, architecture: &str| {
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1,
            "platform": {"os": "wasip2", "architecture": architecture}})
    };
    let kind = "application/vnd.oci.image.index.v1+json";
    let entries = [entry(image.split_once('@').unwrap().1, "wasm"), entry(&digest(b"x"), "amd64")];
    let index = registry.put_manifest("limits", &json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries}));
    assert_eq!(got(&access(&registry), &index, &Credentials::default()).await.unwrap(), COMPONENT);
    let inner = entry(index.split_once('@').unwrap().1, "wasm");
    let outer = registry.put_manifest("limits", &json!({"schemaVersion": 2, "mediaType": kind, "manifests": [inner]}));
    assert!(why(&access(&registry), &outer).await.contains("index of an index"));
}

#[tokio::test]
async fn what_a_registry_sends_is_bounded() {
    let registry = Registry::start().await;
    let access = Access { max_bytes: 1000, patience: Duration::from_secs(20), ..access(&registry) };
    let image = registry.put_wasm("limits", COMPONENT);
    let long = registry.put_wasm("limits", &[7; 1001]);
    assert!(why(&access, &long).await.contains("longer than 1000 bytes"));
    // It does not say how much will come, and goes on for ever.
    for part in ["/manifests/", "/blobs/"] {
        registry.trouble(Trouble::Endless(part));
        let said = why(&access, &image).await;
        assert!(said.contains("is longer than"), "{said}");
    }
    registry.guard(Guarded::Token("u", "p", None));
    registry.trouble(Trouble::Endless("/token"));
    assert!(why(&access, &image).await.contains("a token is longer than"));
    let hasty = Access { patience: Duration::from_millis(300), ..access };
    registry.trouble(Trouble::Silence);
    assert!(why(&hasty, &image).await.contains("did not deliver within"));
}

#[tokio::test]
async fn credentials_are_shown_to_who_asks_for_them() {
    let registry = Registry::start().await;
    let access = access(&registry);
    let image = registry.put_wasm("shop/limits", COMPONENT);
    let (good, bad) = (credentials(&registry, "user", "secret"), credentials(&registry, "user", "wrong"));
    for guarded in [Guarded::Login("user", "secret"), Guarded::Token("user", "secret", None)] {
        registry.guard(guarded.clone());
        assert_eq!(got(&access, &image, &good).await.unwrap(), COMPONENT, "{guarded:?}");
        let said = got(&access, &image, &bad).await.unwrap_err().to_string();
        assert!(said.contains("refuses") && said.contains("the credentials"), "{said}");
        let said = why(&access, &image).await;
        assert!(said.contains("who has no credentials"), "{said}");
    }
}

#[tokio::test]
async fn nobody_is_sent_to_a_private_address_with_credentials() {
    let (registry, inside) = (Registry::start().await, Registry::start().await);
    let access = access(&registry);
    let image = registry.put_wasm("limits", COMPONENT);
    let elsewhere = format!("http://{}/token", inside.host());
    registry.guard(Guarded::Token("user", "secret", Some(elsewhere.clone())));
    let login = credentials(&registry, "user", "secret");
    let said = got(&access, &image, &login).await.unwrap_err().to_string();
    assert!(said.contains(&elsewhere) && said.contains("a private address"), "{said}");
    registry.guard(Guarded::Open);
    registry.trouble(Trouble::Redirect("/blobs/", format!("http://{}/v2/limits/blobs/x", inside.host())));
    let said = why(&access, &image).await;
    assert!(said.contains("a redirection to a private address"), "{said}");
    registry.trouble(Trouble::Redirect("/manifests/", format!("http://{}/v2/limits/manifests/x", registry.host())));
    let said = why(&access, &image).await;
    assert!(said.contains("too many redirections"), "{said}");
    assert_eq!(inside.asked(), [""; 0]);
}

#[tokio::test]
async fn without_tls_only_where_it_is_said() {
    let registry = Registry::start().await;
    let image = registry.put_wasm("limits", COMPONENT);
    let said = why(&Access { plain_http: Vec::new(), ..access(&registry) }, &image).await;
    assert!(said.contains("does not answer"), "{said}");
    assert_eq!(registry.asked(), [""; 0]);
    let said = why(&Access { allowed: vec!["registry.example".into()], ..access(&registry) }, &image).await;
    assert!(said.contains("images come from registry.example only"), "{said}");
    let absent = Access { roots: Some("absent.pem".into()), ..access(&registry) };
    assert!(why(&absent, &image).await.contains("absent.pem"));
}

#[tokio::test]
async fn over_tls_by_roots_of_ones_own() {
    let ((registry, pem), home) = (Registry::start_over_tls().await, tempfile::tempdir().unwrap());
    let image = registry.put_wasm("limits", COMPONENT);
    let strangers = Access::default();
    let said = why(&strangers, &image).await;
    assert!(said.contains("does not answer"), "{said}");
    assert_eq!(registry.asked(), [""; 0]);
    let roots = home.path().join("roots.pem");
    std::fs::write(&roots, pem).unwrap();
    let access = Access { roots: Some(roots), ..Access::default() };
    assert_eq!(got(&access, &image, &Credentials::default()).await.unwrap(), COMPONENT);
    let name = format!("{}/pushed", registry.host());
    let pushed = push(&access, &name, COMPONENT.to_vec(), (&[], &[]), &Credentials::default()).await.unwrap();
    assert_eq!(got(&access, &pushed.image, &Credentials::default()).await.unwrap(), COMPONENT);
    // From TLS nobody is led out of it.
    let plain = Registry::start().await;
    registry.trouble(Trouble::Redirect("/blobs/", format!("http://{}/v2/limits/blobs/x", plain.host())));
    got(&access, &image, &Credentials::default()).await.unwrap_err();
    assert_eq!(plain.asked(), [""; 0]);
}

#[tokio::test]
async fn what_is_pushed_can_be_fetched() {
    let registry = Registry::start().await;
    let access = access(&registry);
    registry.guard(Guarded::Token("user", "secret", None));
    let login = credentials(&registry, "user", "secret");
    let name = format!("{}/shop/limits:1.2", registry.host());
    // Longer than a chunk of an upload.
    let component: Vec<u8> = (0..5 << 20).map(|n| n as u8).collect();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let (imports, exports) = (words(&["trysail:stage/ask@0.2.0"]), words(&["trysail:stage/clusters@0.2.0"]));
    let push_as = |login| push(&access, &name, component.clone(), (&imports, &exports), login);
    let pushed = push_as(&login).await.unwrap();
    assert_eq!((pushed.tag.as_str(), pushed.image.split_once('@').unwrap().0), ("1.2", &*name.replace(":1.2", "")));
    let access = Access { max_bytes: 8 << 20, ..access.clone() };
    assert_eq!(got(&access, &pushed.image, &login).await.unwrap(), component);
    assert_eq!(push_as(&login).await.unwrap(), pushed, "the same component, the same digest");
    let said = push_as(&Credentials::default()).await.unwrap_err();
    assert!(trysail_model::with_causes(&said).contains("the push failed: "), "{said}");
    let said = push(&access, &pushed.image, component.clone(), (&imports, &exports), &login).await.unwrap_err();
    assert!(said.to_string().contains("leave it out"), "{said}");
}

// What is at hand, what is on its way.

struct Running {
    store: Store,
    moved: Arc<Notify>,
    metered: Metered,
}

fn running(access: Access, cache: Option<&Path>, docker_config: Option<&Path>) -> Running {
    let (moved, metered) = (Arc::new(Notify::new()), Metered::new());
    let told = moved.clone();
    let config = Config {
        access,
        cache: cache.map(|folder| Cache::new(folder.to_owned())),
        root_namespace: "istio-system".into(),
        docker_config: docker_config.map(Path::to_owned),
        retry: Retry { first: Duration::from_millis(20), max: Duration::from_millis(100), untold: 2 },
        on_moved: Box::new(move || told.notify_one()),
        metrics: Metrics::register(&metered).unwrap(),
    };
    Running { store: Store::new(config, Handle::current()), moved, metered }
}

fn request(namespace: &str, image: &str, pull_secret: Option<&str>) -> ImageRequest {
    ImageRequest { namespace: namespace.into(), image: image.into(), pull_secret: pull_secret.map(str::to_owned) }
}

impl Running {
    async fn moved(&self) {
        tokio::time::timeout(PATIENCE, self.moved.notified()).await.expect("something moves");
    }

    fn counted(&self, result: &str) -> u64 {
        let families = self.metered.gather();
        let all = families.iter().flat_map(|family| family.get_metric());
        let is_it =
            |metric: &&prometheus::proto::Metric| metric.get_label().iter().any(|label| label.value() == result);
        all.filter(is_it).map(|metric| metric.get_counter().get_value() as u64).sum()
    }
}

fn in_words(error: ImageError) -> String {
    match error {
        ImageError::Image(text) => text,
        ImageError::PullSecret(text) => format!("secret: {text}"),
    }
}

#[tokio::test]
async fn an_image_comes_when_it_comes() {
    let (registry, home) = (Registry::start().await, tempfile::tempdir().unwrap());
    let image = registry.put_wasm("limits", COMPONENT);
    let wanted = request("shop", &image, None);
    // Twice nothing, and nobody needs to know.
    registry.trouble(Trouble::Status { status: 503, times: 2 });
    let running = running(access(&registry), Some(home.path()), None);
    assert_eq!(running.store.get(&wanted), None, "it is on its way");
    running.moved().await;
    assert_eq!(running.store.get(&wanted).unwrap().unwrap().as_ref(), COMPONENT);
    assert_eq!((running.counted("failed"), running.counted("fetched")), (2, 1));
    running.store.retain(&BTreeSet::from([wanted.clone()]));
    assert_eq!(running.store.get(&wanted).unwrap().unwrap().as_ref(), COMPONENT, "from disk");
    assert_eq!(running.counted("cached"), 0, "that was no restart");
}

#[tokio::test]
async fn a_restart_needs_no_registry() {
    let (registry, home) = (Registry::start().await, tempfile::tempdir().unwrap());
    let image = registry.put_wasm("limits", COMPONENT);
    let (wanted, tenant) = (request("shop", &image, None), request("bank", &image, None));
    let access = access(&registry);
    let first = running(access.clone(), Some(home.path()), None);
    assert_eq!(first.store.get(&wanted), None);
    first.moved().await;
    drop((first, registry));
    let second = running(access, Some(home.path()), None);
    assert_eq!(second.store.get(&wanted).unwrap().unwrap().as_ref(), COMPONENT);
    assert_eq!(second.counted("cached"), 1);
    // Another namespace has to get it by itself, with its own credentials.
    assert_eq!(second.store.get(&tenant), None);
    second.moved().await;
    assert!(in_words(second.store.get(&tenant).unwrap().unwrap_err()).contains("does not answer"));
}

#[tokio::test]
async fn a_disk_that_takes_nothing_is_no_failure() {
    let (registry, home) = (Registry::start().await, tempfile::tempdir().unwrap());
    let wanted = request("shop", &registry.put_wasm("limits", COMPONENT), None);
    let no_folder = home.path().join("file");
    std::fs::write(&no_folder, "no folder").unwrap();
    let running = running(access(&registry), Some(&no_folder), None);
    assert_eq!(running.store.get(&wanted), None);
    running.moved().await;
    for _ in 0..2 {
        assert_eq!(running.store.get(&wanted).unwrap().unwrap().as_ref(), COMPONENT);
        running.store.retain(&BTreeSet::from([wanted.clone()]));
    }
    assert_eq!(running.counted("fetched"), 1);
}

#[tokio::test]
async fn why_it_does_not_come_is_told_once_and_mended_by_itself() {
    let registry = Registry::start().await;
    let layer = b"no component".as_slice();
    let image = registry.put("limits", "application/json", layer);
    let running = running(access(&registry), None, None);
    let wanted = request("shop", &image, None);
    assert_eq!(running.store.get(&wanted), None);
    running.moved().await;
    let said = in_words(running.store.get(&wanted).unwrap().unwrap_err());
    assert!(said.contains("application/wasm is wanted"), "{said}");
    // A reason that may pass is told after a few times. (The other would tell of it too.)
    running.store.retain(&BTreeSet::new());
    let late = request("shop", &registry.put_wasm("late", COMPONENT), None);
    registry.trouble(Trouble::Status { status: 500, times: 4 });
    assert_eq!(running.store.get(&late), None);
    running.moved().await;
    assert!(in_words(running.store.get(&late).unwrap().unwrap_err()).contains("answers 500"));
    running.moved().await;
    assert_eq!(running.store.get(&late).unwrap().unwrap().as_ref(), COMPONENT);
    // Nothing of it is tried any more once nobody wants it.
    running.store.retain(&BTreeSet::new());
    let asked = registry.asked().len();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(registry.asked().len(), asked);
    assert!(
        in_words(running.store.get(&request("shop", "limits:latest", None)).unwrap().unwrap_err())
            .contains("a tag may move")
    );
}

fn secret(namespace: &str, name: &str, kind: &str, json: serde_json::Value) -> Arc<Object> {
    use base64::Engine as _;
    let data = base64::prelude::BASE64_STANDARD.encode(json.to_string());
    Arc::new(Object {
        reference: ObjectRef::new("Secret", namespace, name),
        api_version: "v1".into(),
        creation_nanos: 0,
        labels: Arc::default(),
        annotations: Arc::default(),
        body: json!({"type": kind, "data": {".dockerconfigjson": data}}).into(),
        origin: "test".into(),
    })
}

#[tokio::test]
async fn a_pull_secret_is_of_the_namespace_that_asks() {
    let registry = Registry::start().await;
    registry.guard(Guarded::Token("user", "secret", None));
    let image = registry.put_wasm("limits", COMPONENT);
    let running = running(access(&registry), None, None);
    let wanted = request("shop", &image, Some("regcred"));
    let login = json!({"auths": {registry.host(): {"username": "user", "password": "secret"}}});
    // The same name in another namespace, and another type in this one.
    let others =
        [secret("bank", "regcred", PULL_SECRET, login.clone()), secret("shop", "regcred", "Opaque", login.clone())];
    others.iter().for_each(|secret| running.store.secret(&secret.reference, Some(secret)));
    assert_eq!(running.store.get(&wanted), None);
    running.moved().await;
    let said = in_words(running.store.get(&wanted).unwrap().unwrap_err());
    assert!(
        said.starts_with("secret: there is no Secret \"regcred\" of the type") && said.ends_with("in shop"),
        "{said}"
    );
    let useless = secret("shop", "regcred", PULL_SECRET, json!({"auths": {"registry.example": {"auth": "dTpw"}}}));
    running.store.secret(&useless.reference, Some(&useless));
    running.moved().await;
    let said = in_words(running.store.get(&wanted).unwrap().unwrap_err());
    assert!(said.contains("Secret shop/regcred has nothing for 127.0.0.1:"), "{said}");
    let good = secret("shop", "regcred", PULL_SECRET, login);
    running.store.secret(&good.reference, Some(&good));
    running.moved().await;
    assert_eq!(running.store.get(&wanted).unwrap().unwrap().as_ref(), COMPONENT);
}

#[tokio::test]
async fn the_operators_credentials_are_not_a_tenants() {
    let (registry, home) = (Registry::start().await, tempfile::tempdir().unwrap());
    registry.guard(Guarded::Login("user", "secret"));
    let image = registry.put_wasm("limits", COMPONENT);
    let file = home.path().join("config.json");
    std::fs::write(&file, json!({"auths": {registry.host(): {"auth": "dXNlcjpzZWNyZXQ="}}}).to_string()).unwrap();
    let running = running(access(&registry), None, Some(&file));
    let (own, tenant) = (request("istio-system", &image, None), request("shop", &image, None));
    assert_eq!((running.store.get(&own), running.store.get(&tenant)), (None, None));
    while running.store.get(&own).is_none() || running.store.get(&tenant).is_none() {
        running.moved().await;
    }
    assert_eq!(running.store.get(&own).unwrap().unwrap().as_ref(), COMPONENT);
    assert!(in_words(running.store.get(&tenant).unwrap().unwrap_err()).contains("who has no credentials"));
}
