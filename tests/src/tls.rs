//! TLS of the world outside of the mesh: an authority of its own, servers that it vouches for, and clients that trust it.
//!
//! Certificates are made at start-up and prove nothing outside of a test.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::envoy::write_readable;

/// The outside authority, and what it issued.
#[derive(Clone)]
pub struct Outside {
    folder: PathBuf,
    server: Arc<ServerConfig>,
    mutual: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
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
        let client = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        Ok(Outside {
            folder: folder.to_owned(),
            server: Arc::new(server()?.with_no_client_auth().with_single_cert(chain()?, key()?)?),
            mutual: Arc::new(server()?.with_client_cert_verifier(verifier).with_single_cert(chain()?, key()?)?),
            client: Arc::new(client?.with_root_certificates(roots).with_no_client_auth()),
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

    /// Clients that trust the authority and show nothing.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }
}
