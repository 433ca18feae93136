//! Getting an image from a registry, by the distribution protocol of OCI.
//!
//! A pull is three requests: the manifest, perhaps a token, a blob. They are made here, over `reqwest`, and not by `oci-client`,
//! which pushes for us: it reads manifests and tokens into memory however long they are, goes for tokens wherever a registry
//! sends it, with the credentials, fetches blobs from whatever addresses a manifest names, and goes on without credentials when
//! it gets no token. Who writes a Plugin chooses the registry, and may be a tenant.

use bytes::Bytes;
use http_auth::parser::ChallengeParser;
use oci_client::manifest::OciDescriptor;
use reqwest::header::{ACCEPT, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use crate::cache::MAX_MANIFESTS;
use crate::credentials::Login;
use crate::layout::{self, Leads, MANIFESTS};
use crate::{Access, Credentials, Error, Image, digest};

/// What registries promise to take, in bytes.
const MAX_MANIFEST: usize = 4 << 20;
const MAX_TOKEN: usize = 1 << 20;

/// An image that was got.
pub struct Fetched {
    /// The component.
    pub component: Bytes,
    /// All blobs that it took, by digest.
    pub(crate) blobs: Vec<(String, Bytes)>,
}

/// Gets an image.
///
/// # Errors
/// Why not.
pub async fn fetch(access: &Access, image: &Image, credentials: &Credentials) -> Result<Fetched, Error> {
    fetch_as(access, image, credentials.of(image)).await
}

/// Gets an image as somebody, or as nobody.
pub(crate) async fn fetch_as(access: &Access, image: &Image, login: Option<&Login>) -> Result<Fetched, Error> {
    access.allows(image)?;
    let registry = image.registry();
    let session = Session {
        access,
        image,
        login,
        client: access.client(registry)?,
        base: format!(
            "{}://{registry}/v2/{}",
            if access.is_plain(registry) { "http" } else { "https" },
            image.repository()
        ),
        authorization: Authorization::None,
    };
    let late = || Error::Late { registry: registry.to_owned(), seconds: access.patience.as_secs() };
    tokio::time::timeout(access.patience, session.run()).await.map_err(|_| late())?
}

/// What goes with requests.
enum Authorization {
    None,
    Token(String),
    Login(Login),
}

struct Session<'a> {
    access: &'a Access,
    image: &'a Image,
    login: Option<&'a Login>,
    client: Client,
    /// The repository's address.
    base: String,
    authorization: Authorization,
}

/// What a refusal asks for.
#[derive(Default)]
struct Challenge {
    /// A token: from where, and for which service.
    token: Option<(String, Option<String>)>,
    /// A user and a password.
    takes_logins: bool,
}

impl Challenge {
    fn of(refusal: &Response) -> Challenge {
        let mut found = Challenge::default();
        let headers = refusal.headers().get_all(WWW_AUTHENTICATE).iter();
        for header in headers.filter_map(|header| header.to_str().ok()) {
            for challenge in ChallengeParser::new(header).map_while(|parsed| parsed.ok()) {
                let parameter = |name: &str| {
                    let found = challenge.params.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    found.takes_logins = true;
                } else if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    found.token = found.token.or(parameter("realm").map(|realm| (realm, parameter("service"))));
                }
            }
        }
        found
    }
}

/// What a registry answers who wants a token.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Session<'_> {
    async fn run(mut self) -> Result<Fetched, Error> {
        let mut blobs = Vec::new();
        let mut wanted = self.image.digest().to_owned();
        for _ in 0..MAX_MANIFESTS {
            let manifest = self.get("manifests", &wanted, MAX_MANIFEST).await?;
            let leads = layout::read(&manifest)?;
            blobs.push((wanted, manifest));
            match leads {
                Leads::To(next) => wanted = next,
                Leads::Component { digest, packing } => {
                    let limit = self.access.max_bytes;
                    let blob = self.get("blobs", &digest, limit).await?;
                    let component = layout::unpack(blob.clone(), packing, limit)?;
                    blobs.push((digest, blob));
                    return Ok(Fetched { component, blobs });
                }
            }
        }
        Err(Error::Layout("it is an index of an index".to_owned()))
    }

    /// A manifest or a blob, by its digest.
    async fn get(&mut self, kind: &str, wanted: &str, limit: usize) -> Result<Bytes, Error> {
        let what = format!("{}@{wanted}", self.image.repository());
        let url = format!("{}/{kind}/{wanted}", self.base);
        let mut answer = self.ask(&url).await?;
        if answer.status() == StatusCode::UNAUTHORIZED && matches!(self.authorization, Authorization::None) {
            self.authorization = self.authorize(&answer).await?;
            answer = self.ask(&url).await?;
        }
        let registry = self.registry();
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(Error::Missing { registry, what }),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => return Err(self.denied(status)),
            status => return Err(Error::Status { registry, status: status.as_u16(), what }),
        }
        let bytes = self.read(answer, what, limit).await?;
        let is = digest(&bytes);
        if is != wanted {
            return Err(Error::Digest { wanted: wanted.to_owned(), is });
        }
        Ok(bytes)
    }

    async fn ask(&self, url: &str) -> Result<Response, Error> {
        let request = self.client.get(url).header(ACCEPT, format!("{}, */*", MANIFESTS.join(", ")));
        let request = match &self.authorization {
            Authorization::None => request,
            Authorization::Token(token) => request.bearer_auth(token),
            Authorization::Login(login) => request.basic_auth(&login.user, Some(&login.password)),
        };
        self.send(request).await
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        request.send().await.map_err(|error| self.unreachable(error))
    }

    /// What the registry wants to see, having refused.
    async fn authorize(&self, refusal: &Response) -> Result<Authorization, Error> {
        let Challenge { token, takes_logins } = Challenge::of(refusal);
        if let Some((realm, service)) = token {
            return self.token(&realm, service.as_deref()).await.map(Authorization::Token);
        }
        match self.login {
            Some(login) if takes_logins => Ok(Authorization::Login(login.clone())),
            _ => Err(self.denied(StatusCode::UNAUTHORIZED)),
        }
    }

    /// A token for reading the repository.
    async fn token(&self, realm: &str, service: Option<&str>) -> Result<String, Error> {
        let mut url = self.realm(realm)?;
        url.query_pairs_mut().append_pair("scope", &format!("repository:{}:pull", self.image.repository()));
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let request = self.client.get(url);
        let request = match self.login {
            Some(login) => request.basic_auth(&login.user, Some(&login.password)),
            None => request,
        };
        let answer = self.send(request).await?;
        let what = "a token".to_owned();
        match answer.status() {
            StatusCode::OK => {}
            status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
                return Err(self.denied(status));
            }
            status => return Err(Error::Status { registry: self.registry(), status: status.as_u16(), what }),
        }
        let bytes = self.read(answer, what, MAX_TOKEN).await?;
        let token: Option<Token> = serde_json::from_slice(&bytes).ok();
        let token = token.and_then(|token| token.token.or(token.access_token)).filter(|token| !token.is_empty());
        token.ok_or_else(|| Error::Realm {
            registry: self.registry(),
            realm: realm.to_owned(),
            why: "a place that gives none",
        })
    }

    /// Where tokens are, if it is a place to send credentials to.
    fn realm(&self, realm: &str) -> Result<Url, Error> {
        let refused = |why| Error::Realm { registry: self.registry(), realm: realm.to_owned(), why };
        let url = Url::parse(realm).map_err(|_| refused("no address"))?;
        let is_plain = self.access.is_plain(self.image.registry());
        match url.scheme() {
            "https" => {}
            "http" if is_plain => {}
            _ => return Err(refused("not over TLS")),
        }
        if is_inside(&url) && !is_at(&url, self.image.registry()) {
            return Err(refused("a private address"));
        }
        Ok(url)
    }

    async fn read(&self, mut answer: Response, what: String, limit: usize) -> Result<Bytes, Error> {
        let mut bytes = Vec::new();
        if answer.content_length().is_some_and(|length| length > limit as u64) {
            return Err(Error::TooLong { what, limit });
        }
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.unreachable(error))? {
            if bytes.len() + chunk.len() > limit {
                return Err(Error::TooLong { what, limit });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }

    fn registry(&self) -> String {
        self.image.registry().to_owned()
    }

    /// Without the address, which may be one that a signature makes a key of.
    fn unreachable(&self, error: reqwest::Error) -> Error {
        Error::Unreachable { registry: self.registry(), source: error.without_url() }
    }

    fn denied(&self, status: StatusCode) -> Error {
        Error::Denied { registry: self.registry(), status: status.as_u16(), had_credentials: self.login.is_some() }
    }
}

/// Is it an address that only those inside reach: of this machine, of private networks, of a cloud's metadata? A registry may
/// stand there, since a document says so; it may not send there.
pub(crate) fn is_inside(url: &Url) -> bool {
    use std::net::IpAddr;
    let Some(host) = url.host_str() else { return true };
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    let of_v4 =
        |ip: std::net::Ipv4Addr| ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified();
    match host.parse() {
        Ok(IpAddr::V4(ip)) => of_v4(ip),
        Ok(IpAddr::V6(ip)) => {
            let mapped = ip.to_ipv4_mapped().is_some_and(of_v4);
            mapped || ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local()
        }
        Err(_) => host == "localhost" || host.ends_with(".localhost") || host == "metadata.google.internal",
    }
}

/// Is it at a host and port, `registry.example:5000`?
pub(crate) fn is_at(url: &Url, registry: &str) -> bool {
    let host = url.host_str().unwrap_or_default();
    let at = |port: u16| registry == format!("{host}:{port}");
    url.port().map_or_else(|| registry == host || url.port_or_known_default().is_some_and(at), at)
}

/// A descriptor, for who pushes.
pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> OciDescriptor {
    OciDescriptor {
        media_type: media_type.to_owned(),
        digest: digest(bytes),
        size: bytes.len() as i64,
        ..OciDescriptor::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_inside_is_told_from_what_is_outside() {
        let inside = |url: &str| is_inside(&Url::parse(url).unwrap());
        for url in [
            "http://127.0.0.1/",
            "http://10.1.2.3:80/",
            "https://169.254.169.254/latest",
            "https://[::1]/",
            "https://[fd00::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://localhost/",
            "https://metadata.google.internal./",
            // Other ways to write 127.0.0.1.
            "http://2130706433/",
            "http://0x7f.1/",
        ] {
            assert!(inside(url), "{url}");
        }
        for url in ["https://registry.example/", "https://1.1.1.1/", "https://[2606:4700::1]/"] {
            assert!(!inside(url), "{url}");
        }
        let at = |url: &str, registry: &str| is_at(&Url::parse(url).unwrap(), registry);
        assert!(at("http://127.0.0.1:5000/token", "127.0.0.1:5000") && at("https://r.example/", "r.example"));
        assert!(at("https://r.example/", "r.example:443") && !at("http://127.0.0.1:5001/", "127.0.0.1:5000"));
    }
}
