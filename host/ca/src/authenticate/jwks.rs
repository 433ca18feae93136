//! An issuer's keys: given, or fetched and kept for a while.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::jwt::JwkSet;

/// How long fetched keys are good.
const FRESH: Duration = Duration::from_secs(300);
/// An unknown key id makes us look again, but not more often than this: tokens are free to invent.
const PAUSE: Duration = Duration::from_secs(10);
/// How long a fetch may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Keys could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FetchError(String);

enum Source {
    Fixed,
    Uri(String),
    /// Its document says where the keys are.
    Issuer(String),
}

#[derive(Default)]
struct Kept {
    keys: Option<Arc<JwkSet>>,
    fetched: Option<Instant>,
    tried: Option<Instant>,
}

/// An issuer's keys.
pub struct Keys {
    source: Source,
    kept: Mutex<Kept>,
}

impl Keys {
    /// Keys that never change.
    ///
    /// # Errors
    /// When the text is no key set.
    pub fn fixed(json: &str) -> Result<Keys, FetchError> {
        let keys = serde_json::from_str(json).map_err(|error| FetchError(error.to_string()))?;
        Ok(Keys { source: Source::Fixed, kept: Mutex::new(Kept { keys: Some(Arc::new(keys)), ..Kept::default() }) })
    }

    /// Keys at an address.
    pub fn at(uri: String) -> Keys {
        Keys { source: Source::Uri(uri), kept: Mutex::default() }
    }

    /// Keys of an issuer that publishes where they are.
    pub fn of_issuer(issuer: &str) -> Keys {
        Keys { source: Source::Issuer(issuer.to_owned()), kept: Mutex::default() }
    }

    /// The keys; fetched anew when they are old, or a key of that id is not among them.
    ///
    /// # Errors
    /// When there are none and none can be fetched.
    pub async fn current(&self, kid: Option<&str>) -> Result<Arc<JwkSet>, FetchError> {
        let mut kept = self.kept.lock().await;
        if !matches!(self.source, Source::Fixed) {
            let is_fresh = kept.fetched.is_some_and(|at| at.elapsed() < FRESH);
            let has = |keys: &Arc<JwkSet>, kid| keys.keys.iter().any(|key| key.kid.as_deref() == Some(kid));
            let knows = kept.keys.as_ref().is_some_and(|keys| kid.is_none_or(|kid| has(keys, kid)));
            if !(is_fresh && knows) && kept.tried.is_none_or(|at| at.elapsed() > PAUSE) {
                kept.tried = Some(Instant::now());
                match tokio::time::timeout(PATIENCE, self.fetch()).await {
                    Ok(Ok(keys)) => {
                        kept.keys = Some(Arc::new(keys));
                        kept.fetched = Some(Instant::now());
                    }
                    // Keys that were good stay good for a while; an issuer that is down must not lock everybody out.
                    Ok(Err(error)) => tracing::warn!(%error, "cannot fetch an issuer's keys"),
                    Err(_) => tracing::warn!("fetching an issuer's keys took too long"),
                }
            }
            if kept.fetched.is_none_or(|at| at.elapsed() > FRESH * 12) {
                return Err(FetchError("the issuer's keys are not available".into()));
            }
        }
        kept.keys.clone().ok_or_else(|| FetchError("the issuer's keys are not available".into()))
    }

    async fn fetch(&self) -> Result<JwkSet, FetchError> {
        let uri = match &self.source {
            Source::Fixed => return Err(FetchError("fixed keys are not fetched".into())),
            Source::Uri(uri) => uri.clone(),
            Source::Issuer(issuer) => {
                let document =
                    get(&format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))).await?;
                let document: serde_json::Value =
                    serde_json::from_slice(&document).map_err(|error| FetchError(error.to_string()))?;
                if document["issuer"].as_str() != Some(issuer) {
                    return Err(FetchError("the document at the issuer's address names another issuer".into()));
                }
                document["jwks_uri"].as_str().ok_or_else(|| FetchError("no jwks_uri".into()))?.to_owned()
            }
        };
        serde_json::from_slice(&get(&uri).await?).map_err(|error| FetchError(error.to_string()))
    }
}

/// One GET without redirects, bounded in time and length.
///
/// # Errors
/// Without an answer, or for one that is too long or says failure.
pub async fn fetch(uri: &str) -> Result<Vec<u8>, FetchError> {
    let fetched = tokio::time::timeout(PATIENCE, get(uri)).await;
    fetched.unwrap_or_else(|_| Err(FetchError(format!("{uri}: no answer in {PATIENCE:?}"))))
}

async fn get(uri: &str) -> Result<Vec<u8>, FetchError> {
    let fail = |error: &dyn std::fmt::Display| FetchError(format!("{uri}: {error}"));
    let parsed: Uri = uri.parse().map_err(|error| fail(&error))?;
    let host = parsed.host().ok_or_else(|| fail(&"no host"))?.trim_matches(['[', ']']).to_owned();
    let is_tls = match parsed.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(fail(&"neither http nor https")),
    };
    let port = parsed.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let socket = TcpStream::connect((host.as_str(), port)).await.map_err(|error| fail(&error))?;
    let path = parsed.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let authority = parsed.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
    let request = hyper::Request::get(path).header("host", authority).body(Empty::<bytes::Bytes>::new());
    let request = request.map_err(|error| fail(&error))?;
    let response = if is_tls {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|error| fail(&error))?.with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from(host).map_err(|error| fail(&error))?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await;
        send(stream.map_err(|error| fail(&error))?, request).await
    } else {
        send(socket, request).await
    };
    response.map_err(|error| fail(&error))
}

async fn send(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    request: hyper::Request<Empty<bytes::Bytes>>,
) -> Result<Vec<u8>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
    let driving = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|error| text(&error))?;
    if !response.status().is_success() {
        return Err(format!("status {}", response.status()));
    }
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|error| text(&error))?;
    driving.abort();
    Ok(body.to_bytes().to_vec())
}
