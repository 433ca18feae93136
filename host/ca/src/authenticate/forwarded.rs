//! Certificates that a trusted gateway saw and reports in `x-forwarded-client-cert`.
//!
//! Stricter than istiod: loopback is trusted only when it is listed (GHSA-6c6p-h79f-g6p4), only SPIFFE ids count, and only
//! those of the last element, which the gateway itself wrote; what stands before it, its own caller may have sent.

use ipnet::IpNet;
use tonic::async_trait;
use trysail_model::identity::Proof;
use trysail_model::{Caller, Identity};

use super::{Authenticator, Credentials, Failure};

/// Trusts the header of gateways in these networks (`TRUSTED_GATEWAY_CIDR`).
pub struct Forwarded {
    /// Networks.
    pub trusted: Vec<IpNet>,
}

#[async_trait]
impl Authenticator for Forwarded {
    fn name(&self) -> &'static str {
        "forwarded certificate"
    }

    async fn authenticate(&self, credentials: &Credentials) -> Result<Caller, Failure> {
        let ip = credentials.ip().ok_or_else(|| Failure("the caller's address is not known".into()))?;
        if !self.trusted.iter().any(|network| network.contains(&ip)) {
            return Err(Failure(format!("{ip} is not in a trusted network")));
        }
        let header = credentials.headers.get_all("x-forwarded-client-cert").iter().next_back();
        let header = header.and_then(|value| value.to_str().ok()).ok_or_else(|| Failure("no header".into()))?;
        let identities: Vec<String> =
            last_uris(header).into_iter().filter(|uri| uri.parse::<Identity>().is_ok()).collect();
        if identities.is_empty() {
            return Err(Failure("the header names no SPIFFE id".into()));
        }
        Ok(Caller { proof: Proof::Forwarded, identities, pod: None })
    }
}

/// The values of `URI` in the last element. Elements are divided by commas, pairs by semicolons, values may be quoted.
fn last_uris(header: &str) -> Vec<String> {
    let mut uris = Vec::new();
    let (mut key, mut value) = (String::new(), String::new());
    let (mut in_value, mut quoted) = (false, false);
    let mut chars = header.chars();
    loop {
        let next = chars.next();
        match next {
            Some('\\') if quoted => value.extend(chars.next()),
            Some('"') => quoted = !quoted,
            Some('=') if !in_value => in_value = true,
            Some(';' | ',') | None if !quoted || next.is_none() => {
                if key.trim().eq_ignore_ascii_case("uri") {
                    uris.push(value.trim().to_owned());
                }
                (key, value, in_value) = (String::new(), String::new(), false);
                match next {
                    None => return uris,
                    Some(',') => uris.clear(),
                    Some(_) => {}
                }
            }
            Some(c) if in_value => value.push(c),
            Some(c) => key.push(c),
            None => return uris,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_element_counts() {
        let header = r#"By=x;URI=spiffe://a/ns/admin/sa/forged,Hash=1;Subject="CN=x,URI=spiffe://a/ns/b/sa/quoted\"";URI=spiffe://a/ns/b/sa/c"#;
        assert_eq!(last_uris(header), ["spiffe://a/ns/b/sa/c"]);
        assert_eq!(last_uris("URI=a;URI=b"), ["a", "b"]);
        for bad in ["", "=", "URI", "\"URI=a", "a,", ";;,,==", "URI=\"a;b"] {
            let _ = last_uris(bad);
        }
        assert!(last_uris("URI=a,").is_empty());
    }

    #[tokio::test]
    async fn only_listed_networks_are_trusted() {
        let authenticator = Forwarded { trusted: vec!["10.0.0.0/8".parse().unwrap()] };
        let ask = async |address: &str, header: &str| {
            let mut credentials = Credentials { address: Some(address.parse().unwrap()), ..Credentials::default() };
            credentials.headers.insert("x-forwarded-client-cert", header.parse().unwrap());
            authenticator.authenticate(&credentials).await
        };
        let good = "URI=spiffe://td/ns/a/sa/b";
        assert_eq!(ask("10.1.2.3:1", good).await.unwrap().identities, ["spiffe://td/ns/a/sa/b"]);
        assert!(ask("[::ffff:10.1.2.3]:1", good).await.is_ok());
        for address in ["127.0.0.1:1", "[::1]:1", "11.0.0.1:1"] {
            assert!(ask(address, good).await.is_err(), "no identity from an address: {address}");
        }
        assert!(ask("10.1.2.3:1", "URI=admin;DNS=istiod").await.is_err());
    }
}
