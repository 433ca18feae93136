//! Images of plugins: flags, where they are kept, and how the command line waits for them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use parking_lot::Mutex;
use prometheus::Registry;
use tokio::runtime::{Handle, Runtime};
use trysail_images::{Access, Cache, Config, Credentials, Image, Metrics, Retry, Store};
use trysail_model::{ImageError, ImageRequest, Images, Object, ObjectRef};

use crate::env::Environment;
use crate::pipeline;

/// Flags about registries.
#[derive(Args, Clone, Debug, Default)]
pub struct Flags {
    /// Where images of plugins may come from: registries, or folders in them, `HOST[:PORT][/PATH]`; anywhere without it.
    #[arg(long = "image-registries", value_name = "PLACE", value_delimiter = ',', env = "TRYSAIL_IMAGE_REGISTRIES")]
    pub image_registries: Vec<String>,
    /// Registries, HOST:PORT, that are spoken to without TLS. For tests: credentials for them go in the clear.
    #[arg(long, value_name = "HOST", value_delimiter = ',', env = "TRYSAIL_INSECURE_REGISTRIES")]
    pub insecure_registries: Vec<String>,
    /// Further roots of registries' certificates, PEM.
    #[arg(long = "registry-ca-file", value_name = "FILE", env = "TRYSAIL_REGISTRY_CA_FILE")]
    pub registry_ca_file: Option<PathBuf>,
}

impl Flags {
    fn access(&self) -> Access {
        let named = |list: &[String]| list.iter().filter(|word| !word.is_empty()).cloned().collect();
        Access {
            plain_http: named(&self.insecure_registries),
            roots: self.registry_ca_file.clone(),
            allowed: named(&self.image_registries),
            ..Access::default()
        }
    }
}

/// Docker's file of credentials, in the folder that `DOCKER_CONFIG` names.
const DOCKER_CONFIG: &str = "DOCKER_CONFIG";
const DOCKER_FILE: &str = "config.json";

fn cache() -> Option<Cache> {
    pipeline::cache_folder().map(|folder| Cache::new(folder.join("images")))
}

/// The images of a server; `on_moved` is called when there is something new to say of one.
///
/// # Errors
/// When the registry has metrics of these names already.
pub fn store(
    flags: &Flags,
    environment: &dyn Environment,
    root_namespace: &str,
    registry: &Registry,
    on_moved: impl Fn() + Send + Sync + 'static,
) -> Result<Arc<Store>> {
    let config = Config {
        access: flags.access(),
        cache: cache(),
        root_namespace: root_namespace.to_owned(),
        docker_config: environment.get(DOCKER_CONFIG).map(|folder| Path::new(&folder).join(DOCKER_FILE)),
        retry: Retry::default(),
        on_moved: Box::new(on_moved),
        metrics: Metrics::register(registry).context("metrics")?,
    };
    Ok(Arc::new(Store::new(config, Handle::current())))
}

/// Docker's file of whoever sits at the terminal, if there is one.
fn own_docker_file() -> Option<PathBuf> {
    let folder = std::env::var_os(DOCKER_CONFIG).map(PathBuf::from);
    let folder = folder.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")))?;
    Some(folder.join(DOCKER_FILE)).filter(|file| file.exists())
}

/// Credentials of whoever sits at the terminal.
fn own_credentials() -> Result<Credentials> {
    let Some(file) = own_docker_file() else { return Ok(Credentials::default()) };
    let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    Credentials::parse(&text).with_context(|| file.display().to_string())
}

fn runtime() -> Result<Runtime> {
    let builder = &mut tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().context("cannot start the runtime")
}

/// The bytes of a component: a file's, or, if there is none of the name, an image's by digest.
///
/// # Errors
/// When it cannot be had.
pub fn component(place: &str, flags: &Flags) -> Result<Vec<u8>> {
    if Path::new(place).exists() || !place.contains('@') {
        return std::fs::read(place).with_context(|| format!("cannot read {place}"));
    }
    let (image, access, credentials) = (Image::parse(place)?, flags.access(), own_credentials()?);
    Ok(runtime()?.block_on(trysail_images::fetch(&access, &image, &credentials))?.component.to_vec())
}

/// Pushes a component; returns the image by digest, and its tag.
///
/// # Errors
/// When the registry does not take it.
pub fn push(
    component: Vec<u8>,
    name: &str,
    (imports, exports): (&[String], &[String]),
    flags: &Flags,
) -> Result<trysail_images::Pushed> {
    let (access, credentials) = (flags.access(), own_credentials()?);
    Ok(runtime()?.block_on(trysail_images::push(&access, name, component, (imports, exports), &credentials))?)
}

/// Images for who asks once and waits: on the command line.
pub struct Waiting {
    store: Store,
    moved_rx: Mutex<mpsc::Receiver<()>>,
    runtime: Option<Runtime>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Without waiting for it, which nobody may do on a thread of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Longer than an attempt may take.
const PATIENCE: Duration = Duration::from_secs(90);

impl Waiting {
    /// Images with the credentials of whoever sits at the terminal.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new(flags: &Flags, root_namespace: &str) -> Result<Waiting> {
        let (moved_tx, moved_rx) = mpsc::channel();
        let runtime = runtime()?;
        let config = Config {
            access: flags.access(),
            cache: cache(),
            root_namespace: root_namespace.to_owned(),
            docker_config: own_docker_file(),
            retry: Retry { untold: 0, ..Retry::default() },
            // Nobody looks any more once the answer is there.
            on_moved: Box::new(move || {
                let _ = moved_tx.send(());
            }),
            metrics: Metrics::register(&Registry::new()).context("metrics")?,
        };
        let store = Store::new(config, runtime.handle().clone());
        Ok(Waiting { store, moved_rx: Mutex::new(moved_rx), runtime: Some(runtime) })
    }
}

impl Images for Waiting {
    fn get(&self, request: &ImageRequest) -> Option<Result<Arc<[u8]>, ImageError>> {
        let moved_rx = self.moved_rx.lock();
        loop {
            let found = self.store.get(request);
            if found.is_some() || moved_rx.recv_timeout(PATIENCE).is_err() {
                return found;
            }
        }
    }

    fn secret(&self, reference: &ObjectRef, secret: Option<&Arc<Object>>) {
        self.store.secret(reference, secret);
    }

    fn retain(&self, wanted: &std::collections::BTreeSet<ImageRequest>) {
        self.store.retain(wanted);
    }
}
