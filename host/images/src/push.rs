//! Putting a component into a registry, as the Wasm OCI artifact of the CNCF.

use oci_client::client::{Certificate, CertificateEncoding, Client, ClientConfig, ClientProtocol};
use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciImageManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use serde_json::json;

use crate::layout::{WASM, WASM_CONFIG};
use crate::registry::descriptor;
use crate::{Access, Credentials, Error, Image, digest};

/// An image that is in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The image by digest, for a document.
    pub image: String,
    /// The tag that it has as well, for people.
    pub tag: String,
}

/// Pushes a component to `registry.example/name:tag`; the tag is `latest` when left out. `imports` and `exports` are the
/// component's, for who looks at the image.
///
/// The same component gives the same digest, whoever pushes it and when.
///
/// # Errors
/// When the name is none, or the registry does not take it.
pub async fn push(
    access: &Access,
    name: &str,
    component: Vec<u8>,
    (imports, exports): (&[String], &[String]),
    credentials: &Credentials,
) -> Result<Pushed, Error> {
    let wrong = |why: String| Error::Name { name: name.to_owned(), why };
    let reference: Reference = name.parse().map_err(|error| wrong(format!("{error}")))?;
    if reference.digest().is_some() {
        return Err(wrong("what is pushed gets its digest by being pushed: leave it out".to_owned()));
    }
    // By now all of it but the digest is known to be right.
    let (registry, repository) = (reference.registry(), reference.repository());
    let login = credentials.of(&Image::parse(&format!("{registry}/{repository}@{}", digest(&component)))?);
    let auth =
        login.map_or(RegistryAuth::Anonymous, |login| RegistryAuth::Basic(login.user.clone(), login.password.clone()));

    let config = json!({
        // It has to say when; it says so that the digest depends on the component alone.
        "created": "1970-01-01T00:00:00Z",
        "architecture": "wasm",
        "os": "wasip2",
        "layerDigests": [digest(&component)],
        "component": {"exports": exports, "imports": imports, "target": null},
    });
    let config = config.to_string().into_bytes();
    let manifest = OciImageManifest {
        media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
        config: descriptor(WASM_CONFIG, &config),
        layers: vec![descriptor(WASM, &component)],
        ..OciImageManifest::default()
    };
    let layout = |error: serde_json::Error| Error::Layout(error.to_string());
    let body = serde_json::to_vec(&manifest).map_err(layout)?;

    let client = client(access)?;
    let failed = |error| Error::Push(Box::new(error));
    client.auth(&reference, &auth, RegistryOperation::Push).await.map_err(failed)?;
    client.push_blob(&reference, component, &manifest.layers[0].digest).await.map_err(failed)?;
    client.push_blob(&reference, config, &manifest.config.digest).await.map_err(failed)?;
    let image = format!("{registry}/{repository}@{}", digest(&body));
    let media_type = reqwest::header::HeaderValue::from_static(OCI_IMAGE_MEDIA_TYPE);
    client.push_manifest_raw(&reference, body, media_type).await.map_err(failed)?;
    Ok(Pushed { image, tag: reference.tag().unwrap_or("latest").to_owned() })
}

fn client(access: &Access) -> Result<Client, Error> {
    // It makes one with the machine's roots alone in passing, and panics where that does not go.
    reqwest::Client::builder().build().map_err(Error::Client)?;
    let root = |der: &[u8]| Certificate { encoding: CertificateEncoding::Der, data: der.to_vec() };
    let config = ClientConfig {
        protocol: ClientProtocol::HttpsExcept(access.plain_http.clone()),
        extra_root_certificates: access.roots()?.iter().map(|der| root(der)).collect(),
        read_timeout: Some(access.patience),
        connect_timeout: Some(access.patience),
        user_agent: concat!("trysail/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    Client::try_from(config).map_err(|error| Error::Push(Box::new(error)))
}
