//! TLS of the world outside of the mesh: an authority of its own, servers that it vouches for, and clients that trust it.
//!
//! Certificates are made at start-up and prove nothing outside of a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use crate::envoy::write_readable;

/// A client that takes any server, and shows this certificate and key (PEM).
///
/// # Errors
/// When the certificate or the key is broken.
pub fn anybody(own: Option<(&str, &str)>) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider())));
    let Some((chain, key)) = own else { return Ok(builder.with_no_client_auth()) };
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().context("no certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("no key")?;
    builder.with_client_auth_cert(chain, key).context("certificate and key do not fit")
}

/// Takes any server.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The outside authority, and what it issued.
#[derive(Clone)]
pub struct Outside {
    folder: PathBuf,
    server: Arc<ServerConfig>,
    mutual: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    known_client: Arc<ClientConfig>,
    issuer: Arc<Issuer<'static, KeyPair>>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl Outside {
    /// A new one whose servers have these names. Its files go into a folder that sidecars can read: `ca.pem`, and for
    /// clients `client.pem` and `client-key.pem`.
    ///
    /// # Errors
    /// When there is no randomness, or the folder is not writable.
    pub fn new(folder: &Path, names: &[&str]) -> Result<Outside> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::OrganizationName, "outside (test)");
        let key = KeyPair::generate().context("cannot make a key")?;
        let root = params.self_signed(&key).context("cannot sign the root certificate")?;
        let issuer = Issuer::new(params, key);

        let issue = |names: &[&str], usage| -> Result<(String, String)> {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(names).context("a name is no DNS name")?;
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().context("cannot make a key")?;
            let certificate = params.signed_by(&key, &issuer).context("cannot sign a certificate")?;
            Ok((certificate.pem(), key.serialize_pem()))
        };
        let (server_pem, server_key) = issue(names, ExtendedKeyUsagePurpose::ServerAuth)?;
        let (client_pem, client_key) = issue(&["client.example"], ExtendedKeyUsagePurpose::ClientAuth)?;
        for (file, text) in [("ca.pem", &root.pem()), ("client.pem", &client_pem), ("client-key.pem", &client_key)] {
            write_readable(&folder.join(file), text)?;
        }

        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).context("the root certificate is not usable")?;
        let roots = Arc::new(roots);
        let chain = || -> Result<Vec<CertificateDer<'static>>> {
            CertificateDer::pem_slice_iter(server_pem.as_bytes()).collect::<Result<_, _>>().context("no certificate")
        };
        let key = || PrivateKeyDer::from_pem_slice(server_key.as_bytes()).context("no key");
        let server = || ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build();
        let verifier = verifier.context("cannot verify clients")?;
        let client = || ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let shown = CertificateDer::pem_slice_iter(client_pem.as_bytes()).collect::<Result<_, _>>();
        let shown_key = PrivateKeyDer::from_pem_slice(client_key.as_bytes()).context("no key")?;
        let known_client = client()?.with_root_certificates(roots.clone());
        let known_client = known_client.with_client_auth_cert(shown.context("no certificate")?, shown_key)?;
        Ok(Outside {
            folder: folder.to_owned(),
            server: Arc::new(server()?.with_no_client_auth().with_single_cert(chain()?, key()?)?),
            mutual: Arc::new(server()?.with_client_cert_verifier(verifier).with_single_cert(chain()?, key()?)?),
            client: Arc::new(client()?.with_root_certificates(roots).with_no_client_auth()),
            known_client: Arc::new(known_client),
            issuer: Arc::new(issuer),
        })
    }

    /// A file of it, by name.
    pub fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Servers that ask clients for a certificate, or that do not.
    pub fn server(&self, mutual: bool) -> Arc<ServerConfig> {
        if mutual { self.mutual.clone() } else { self.server.clone() }
    }

    /// Issues a certificate of these names as `STEM.pem`, with the key `STEM-key.pem`, which stays when there is one: so both
    /// files always fit. Returns the certificate.
    ///
    /// # Errors
    /// When a name is no DNS name, or the folder is not writable.
    pub fn issue(&self, stem: &str, names: &[&str]) -> Result<Vec<u8>> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).context("a name is no DNS name")?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key_file = self.folder.join(format!("{stem}-key.pem"));
        let key = match fs::read_to_string(&key_file) {
            Ok(text) => KeyPair::from_pem(&text).context("the key is broken")?,
            Err(_) => KeyPair::generate().context("cannot make a key")?,
        };
        let certificate = params.signed_by(&key, &self.issuer).context("cannot sign a certificate")?;
        write_readable(&key_file, &key.serialize_pem())?;
        let unfinished = self.folder.join(format!(".{stem}.tmp"));
        write_readable(&unfinished, &certificate.pem())?;
        fs::rename(&unfinished, self.folder.join(format!("{stem}.pem")))
            .context("cannot put a certificate in place")?;
        Ok(certificate.der().to_vec())
    }

    /// Clients that trust the authority and show a certificate of it.
    pub fn client_with_certificate(&self) -> Arc<ClientConfig> {
        self.known_client.clone()
    }

    /// Clients that trust the authority and show nothing.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }
}
