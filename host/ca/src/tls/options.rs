//! Flags and policies to settings of the TLS library.

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{CipherSuite, NamedGroup, SupportedProtocolVersion};

/// A flag that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// `--tls-min-version` is neither 1.2 nor 1.3.
    #[error("--tls-min-version={0}: 1.2 and 1.3 are served")]
    Version(String),
    /// `--tls-cipher-suites` names something else.
    #[error("--tls-cipher-suites: {0:?} is not a supported cipher suite")]
    Cipher(String),
    /// `COMPLIANCE_POLICY` is not known.
    #[error("COMPLIANCE_POLICY={0:?} is not known (fips-140-2, fips-140-3, pqc)")]
    Policy(String),
}

/// What a TLS server offers.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// Ciphers and curves.
    pub provider: CryptoProvider,
    /// Protocol versions, newest first.
    pub versions: Vec<&'static SupportedProtocolVersion>,
}

impl Default for TlsOptions {
    fn default() -> Self {
        let versions = vec![&rustls::version::TLS13, &rustls::version::TLS12];
        TlsOptions { provider: aws_lc_rs::default_provider(), versions }
    }
}

const FIPS_TLS12: [CipherSuite; 4] = [
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
];
const AES_TLS13: [CipherSuite; 2] = [CipherSuite::TLS13_AES_128_GCM_SHA256, CipherSuite::TLS13_AES_256_GCM_SHA384];

impl TlsOptions {
    /// Reads `--tls-min-version`, `--tls-cipher-suites` (Go's names; they say nothing about TLS 1.3) and `COMPLIANCE_POLICY`.
    ///
    /// # Errors
    /// For names that are not known: silently weaker is what nobody wants of such flags. istiod only warns about an unknown
    /// policy.
    pub fn new(min_version: &str, cipher_suites: &[String], policy: &str) -> Result<TlsOptions, OptionsError> {
        let mut options = TlsOptions::default();
        match min_version {
            "" | "1.2" | "TLSV1_2" => {}
            "1.3" | "TLSV1_3" => options.versions.truncate(1),
            other => return Err(OptionsError::Version(other.to_owned())),
        }
        let wanted = cipher_suites.iter().map(|name| name.trim()).filter(|name| !name.is_empty());
        let wanted = wanted.map(|name| cipher(name).ok_or_else(|| OptionsError::Cipher(name.to_owned())));
        let wanted: Vec<CipherSuite> = wanted.collect::<Result<_, _>>()?;
        if !wanted.is_empty() {
            options.keep_ciphers(|suite| wanted.contains(&suite) || is_tls13(suite));
        }
        match policy {
            "" => {}
            "fips-140-2" => {
                options.versions = vec![&rustls::version::TLS12];
                options.keep_ciphers(|suite| FIPS_TLS12.contains(&suite));
                options.keep_groups(&[NamedGroup::secp256r1]);
            }
            "fips-140-3" => {
                options.keep_ciphers(|suite| FIPS_TLS12.contains(&suite) || AES_TLS13.contains(&suite));
                options.keep_groups(&[NamedGroup::secp256r1, NamedGroup::secp384r1]);
            }
            "pqc" => {
                options.versions = vec![&rustls::version::TLS13];
                options.keep_ciphers(|suite| AES_TLS13.contains(&suite));
                options.provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
            }
            other => return Err(OptionsError::Policy(other.to_owned())),
        }
        Ok(options)
    }

    fn keep_ciphers(&mut self, keep: impl Fn(CipherSuite) -> bool) {
        self.provider.cipher_suites.retain(|suite| keep(suite.suite()));
    }

    fn keep_groups(&mut self, keep: &[NamedGroup]) {
        self.provider.kx_groups.retain(|group| keep.contains(&group.name()));
    }
}

fn is_tls13(suite: CipherSuite) -> bool {
    format!("{suite:?}").starts_with("TLS13_")
}

/// A cipher suite by Go's name. Those that Go knows and the library does not (CBC, RSA key exchange) are insecure.
fn cipher(name: &str) -> Option<CipherSuite> {
    let name = match name {
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        other => other,
    };
    let known = aws_lc_rs::ALL_CIPHER_SUITES.iter().map(rustls::SupportedCipherSuite::suite);
    known.into_iter().find(|suite| {
        let own = format!("{suite:?}");
        own == name || own.strip_prefix("TLS13_").is_some_and(|own| name.strip_prefix("TLS_") == Some(own))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_and_flags_narrow_what_is_offered() {
        let names = |options: &TlsOptions| options.provider.cipher_suites.len();
        let new = |version, suites: &[&str], policy| {
            TlsOptions::new(version, &suites.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(), policy)
        };
        assert_eq!(new("1.3", &[], "").unwrap().versions.len(), 1);
        let one = new("1.2", &["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"], "").unwrap();
        assert_eq!(names(&one), 1 + 3, "TLS 1.3 has three of its own");
        let fips = new("1.2", &[], "fips-140-2").unwrap();
        assert_eq!((names(&fips), fips.provider.kx_groups.len(), fips.versions.len()), (4, 1, 1));
        let fips = new("", &[], "fips-140-3").unwrap();
        assert_eq!((names(&fips), fips.provider.kx_groups.len(), fips.versions.len()), (6, 2, 2));
        assert_eq!(new("", &[], "pqc").unwrap().provider.kx_groups.len(), 1);
        assert!(matches!(new("1.1", &[], ""), Err(OptionsError::Version(_))));
        assert!(matches!(new("", &["TLS_RSA_WITH_RC4_128_SHA"], ""), Err(OptionsError::Cipher(_))));
        assert!(matches!(new("", &[], "fips"), Err(OptionsError::Policy(_))));
    }
}
