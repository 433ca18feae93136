//! A registry on loopback that speaks the distribution protocol, and goes wrong as it is told to.
#![allow(dead_code, reason = "not every suite needs all of it")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

type Body = BoxBody<Bytes, Infallible>;

/// What it does in place of answering well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    #[default]
    None,
    /// Answers so many requests with a status.
    Status { status: u16, times: usize },
    /// Says nothing for as long as this is so.
    Silence,
    /// Sends without end, where a path has this in it.
    Endless(&'static str),
    /// Sends other bytes than asked for, where a path has this in it.
    Forged(&'static str),
    /// Sends elsewhere, where a path has this in it.
    Redirect(&'static str, String),
}

/// Who may read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Guarded {
    /// Everybody.
    #[default]
    Open,
    /// Who has this user and password.
    Login(&'static str, &'static str),
    /// Who has a token that this user and password get, from this place if it is not ours.
    Token(&'static str, &'static str, Option<String>),
}

#[derive(Default)]
struct State {
    blobs: BTreeMap<String, Bytes>,
    /// By repository and tag or digest.
    manifests: BTreeMap<(String, String), (String, Bytes)>,
    uploads: BTreeMap<usize, Vec<u8>>,
    trouble: Trouble,
    guarded: Guarded,
    asked: Vec<String>,
}

/// A running registry. Dropping it closes its port.
pub struct Registry {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Registry {
    pub async fn start() -> Registry {
        Registry::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    pub async fn start_at(address: SocketAddr) -> Registry {
        Registry::start_as(address, None).await
    }

    async fn start_as(address: SocketAddr, tls: Option<TlsAcceptor>) -> Registry {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let served = state.clone();
        let serving = tokio::spawn(async move {
            // Connections end with the listener.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = served.clone();
                let answer = move |request| answer(state.clone(), address, request);
                let tls = tls.clone();
                connections.spawn(async move {
                    let server = hyper::server::conn::http1::Builder::new();
                    let _ = match tls {
                        None => server.serve_connection(TokioIo::new(stream), service_fn(answer)).await,
                        // Who does not trust us hangs up.
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => server.serve_connection(TokioIo::new(stream), service_fn(answer)).await,
                            Err(_) => Ok(()),
                        },
                    };
                });
            }
        });
        Registry { address, state, serving }
    }

    /// One with a certificate of its own; who trusts it is told by the PEM.
    pub async fn start_over_tls() -> (Registry, String) {
        let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![own.cert.der().clone()], key).unwrap();
        let tls = TlsAcceptor::from(Arc::new(config));
        (Registry::start_as(SocketAddr::from(([127, 0, 0, 1], 0)), Some(tls)).await, own.cert.pem())
    }

    /// Its host, as images name it.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn trouble(&self, trouble: Trouble) {
        self.state.lock().unwrap().trouble = trouble;
    }

    pub fn guard(&self, guarded: Guarded) {
        self.state.lock().unwrap().guarded = guarded;
    }

    /// Requests so far: method and path.
    pub fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }

    pub fn put_blob(&self, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        self.state.lock().unwrap().blobs.insert(digest.clone(), Bytes::copy_from_slice(bytes));
        digest
    }

    /// Puts a manifest, and says what the image is by digest.
    pub fn put_manifest(&self, repository: &str, manifest: &Value) -> String {
        let bytes = Bytes::from(manifest.to_string());
        let digest = digest(&bytes);
        let kind = manifest["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json").to_owned();
        self.state.lock().unwrap().manifests.insert((repository.to_owned(), digest.clone()), (kind, bytes));
        format!("{}/{repository}@{digest}", self.host())
    }

    /// Puts an image with one layer, and says what it is by digest.
    pub fn put(&self, repository: &str, media_type: &str, layer: &[u8]) -> String {
        let config = b"{}";
        self.put_blob(config);
        let descriptor =
            |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.wasm.config.v0+json", config),
            "layers": [descriptor(media_type, layer)],
        });
        self.put_blob(layer);
        self.put_manifest(repository, &manifest)
    }

    /// A component as the Wasm OCI artifact.
    pub fn put_wasm(&self, repository: &str, component: &[u8]) -> String {
        self.put(repository, "application/wasm", component)
    }
}

pub fn digest(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

fn status(status: u16) -> Response<Body> {
    Response::builder().status(status).body(full("{}")).unwrap()
}

/// Zeros without end.
fn endless() -> Body {
    struct Endless;
    impl hyper::body::Body for Endless {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
            std::task::Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&ZEROS)))))
        }
    }
    Endless.boxed()
}

async fn answer(
    state: Arc<Mutex<State>>,
    own: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let authorization = parts.headers.get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    state.lock().unwrap().asked.push(format!("{} {path}", parts.method));
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let trouble = state.lock().unwrap().trouble.clone();
    match trouble {
        Trouble::Status { status: code, times } if times > 0 => {
            state.lock().unwrap().trouble = Trouble::Status { status: code, times: times - 1 };
            return Ok(status(code));
        }
        Trouble::Silence => {
            while state.lock().unwrap().trouble == Trouble::Silence {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Trouble::Endless(part) if path.contains(part) => return Ok(Response::new(endless())),
        Trouble::Redirect(part, to) if path.contains(part) => {
            return Ok(Response::builder().status(307).header("location", to).body(full("")).unwrap());
        }
        Trouble::Forged(part) if path.contains(part) => return Ok(Response::new(full("something else"))),
        _ => {}
    }
    let basic = |user: &str, password: &str| {
        use base64::Engine as _;
        format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(format!("{user}:{password}")))
    };
    let guarded = state.lock().unwrap().guarded.clone();
    let refused = |challenge: String| {
        Response::builder().status(401).header("www-authenticate", challenge).body(full("{}")).unwrap()
    };
    match &guarded {
        Guarded::Open => {}
        Guarded::Login(user, password) if authorization != basic(user, password) => {
            return Ok(refused("Basic realm=\"here\"".to_owned()));
        }
        Guarded::Token(user, password, _) if path == "/token" => {
            let fits = authorization == basic(user, password) && query.contains("service=registry");
            return Ok(if fits { Response::new(full(r#"{"token": "t0ken"}"#)) } else { status(403) });
        }
        Guarded::Token(.., realm) if authorization != "Bearer t0ken" => {
            let realm = realm.clone().unwrap_or_else(|| format!("http://{own}/token"));
            return Ok(refused(format!("Bearer realm=\"{realm}\",service=\"registry\"")));
        }
        _ => {}
    }
    Ok(registry(&mut state.lock().unwrap(), &parts.method, &path, &query, &parts.headers, body))
}

/// The protocol itself.
fn registry(
    state: &mut State,
    method: &Method,
    path: &str,
    query: &str,
    headers: &hyper::HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let Some(rest) = path.strip_prefix("/v2/") else { return status(404) };
    if rest.is_empty() {
        return status(200);
    }
    let is_reading = matches!(*method, Method::GET | Method::HEAD);
    if let Some((repository, reference)) = rest.split_once("/manifests/") {
        let key = (repository.to_owned(), reference.to_owned());
        if is_reading {
            return match state.manifests.get(&key) {
                Some((kind, bytes)) => Response::builder()
                    .header("content-type", kind)
                    .header("docker-content-digest", digest(bytes))
                    .body(full(bytes.clone()))
                    .unwrap(),
                None => status(404),
            };
        }
        let kind = headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
        let by_digest = (repository.to_owned(), digest(&body));
        let location = format!("/v2/{repository}/manifests/{}", by_digest.1);
        state.manifests.insert(key, (kind.clone(), body.clone()));
        state.manifests.insert(by_digest, (kind, body));
        return Response::builder().status(201).header("location", location).body(full("")).unwrap();
    }
    let Some((repository, blob)) = rest.split_once("/blobs/") else { return status(404) };
    let started = |status: u16, number: usize| {
        let location = format!("/v2/{repository}/blobs/uploads/{number}");
        Response::builder().status(status).header("location", location).body(full("")).unwrap()
    };
    if *method == Method::POST {
        let number = state.uploads.len();
        state.uploads.insert(number, Vec::new());
        return started(202, number);
    }
    if let Some(number) = blob.strip_prefix("uploads/") {
        let number: usize = number.parse().unwrap();
        let upload = state.uploads.get_mut(&number).unwrap();
        upload.extend_from_slice(&body);
        if *method == Method::PATCH {
            return started(202, number);
        }
        let bytes = Bytes::from(std::mem::take(upload));
        let wanted = query.split('&').find_map(|pair| pair.strip_prefix("digest=")).unwrap().replace("%3A", ":");
        if digest(&bytes) != wanted {
            return status(400);
        }
        state.blobs.insert(wanted, bytes);
        return started(201, number);
    }
    match state.blobs.get(blob) {
        Some(bytes) => Response::new(full(bytes.clone())),
        None => status(404),
    }
}
