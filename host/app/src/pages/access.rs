//! Who may ask what.
//!
//! As in istiod: from the own machine everything; else whoever proves an identity, and of those the ones of the system
//! namespace everything, the others a few pages about proxies. Stricter than istiod: only about proxies of their own
//! namespace, over HTTP and over streams (`TRYSAIL_DEBUG_ACROSS_NAMESPACES=true` lifts that).

use std::collections::BTreeSet;
use std::net::SocketAddr;

use hyper::{HeaderMap, StatusCode};
use trysail_ca::authenticate::{Authenticators, Credentials};
use trysail_model::{Identity, Proxy};

use crate::env::{self, Environment};

/// Pages that everybody with an identity may see, of proxies of the own namespace.
const OF_OWN_PROXIES: [&str; 3] = ["config_dump", "edsz", "ndsz"];

/// The rules, from the environment.
#[derive(Clone, Debug)]
pub struct Access {
    /// `ENABLE_DEBUG_ON_HTTP`.
    pub is_on_http: bool,
    /// `ENABLE_DEBUG_ENDPOINT_AUTH`; without it every identity may see everything.
    pub tells_namespaces_apart: bool,
    /// `DEBUG_ENDPOINT_AUTH_ALLOWED_NAMESPACES`, and the control plane's own.
    pub namespaces: BTreeSet<String>,
    /// `TRYSAIL_DEBUG_ACROSS_NAMESPACES`.
    pub across_namespaces: bool,
    /// `UNSAFE_ENABLE_ADMIN_ENDPOINTS`.
    pub is_admin: bool,
    /// `METRICS_LOCALHOST_ACCESS_ONLY`.
    pub metrics_for_loopback_only: bool,
}

/// What somebody may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Viewer {
    /// Everything.
    All,
    /// Proxies of a namespace.
    Namespace(String),
}

impl Viewer {
    /// May a proxy be shown?
    pub fn sees(&self, proxy: &Proxy) -> bool {
        match self {
            Viewer::All => true,
            Viewer::Namespace(namespace) => *namespace == *proxy.namespace,
        }
    }
}

impl Access {
    /// Reads the rules.
    pub fn read(environment: &dyn Environment, system_namespace: &str) -> Access {
        let is = |name: &str, default: bool| env::flag_of(environment, name, default);
        let allowed = environment.get("DEBUG_ENDPOINT_AUTH_ALLOWED_NAMESPACES").unwrap_or_default();
        let allowed = allowed.split(',').map(str::trim).filter(|namespace| !namespace.is_empty()).map(str::to_owned);
        Access {
            is_on_http: is("ENABLE_DEBUG_ON_HTTP", true),
            tells_namespaces_apart: is("ENABLE_DEBUG_ENDPOINT_AUTH", true),
            namespaces: allowed.chain([system_namespace.to_owned()]).collect(),
            across_namespaces: is("TRYSAIL_DEBUG_ACROSS_NAMESPACES", false),
            is_admin: is("UNSAFE_ENABLE_ADMIN_ENDPOINTS", false),
            metrics_for_loopback_only: is("METRICS_LOCALHOST_ACCESS_ONLY", false),
        }
    }

    /// Who asks over HTTP; nobody in particular from the own machine.
    ///
    /// # Errors
    /// 401 for those who prove nothing, 403 for those whose proof names no namespace.
    pub async fn caller(
        &self,
        authenticators: &Authenticators,
        peer: SocketAddr,
        headers: &HeaderMap,
    ) -> Result<Option<Identity>, StatusCode> {
        if peer.ip().to_canonical().is_loopback() {
            return Ok(None);
        }
        let credentials = Credentials { address: Some(peer), certificate: None, headers: headers.clone() };
        let caller = authenticators.authenticate(&credentials).await.map_err(|failure| {
            tracing::warn!(%peer, %failure, "a debug request of an unknown caller");
            StatusCode::UNAUTHORIZED
        })?;
        let identity = caller.identities.iter().find_map(|text| text.parse::<Identity>().ok());
        identity.map(Some).ok_or(StatusCode::FORBIDDEN)
    }

    /// What an identity may see. The mesh's root namespace is the system's too.
    pub fn of(&self, identity: &Identity, root_namespace: &str) -> Viewer {
        let namespace = &*identity.namespace;
        match !self.tells_namespaces_apart || namespace == root_namespace || self.namespaces.contains(namespace) {
            true => Viewer::All,
            false => Viewer::Namespace(identity.namespace.to_string()),
        }
    }

    /// May somebody see a page? Returns what of it.
    ///
    /// # Errors
    /// 403 if not.
    pub fn admit(&self, viewer: Viewer, page: &str) -> Result<Viewer, StatusCode> {
        match viewer {
            Viewer::All => Ok(Viewer::All),
            Viewer::Namespace(_) if !OF_OWN_PROXIES.contains(&page) => Err(StatusCode::FORBIDDEN),
            Viewer::Namespace(_) if self.across_namespaces => Ok(Viewer::All),
            own => Ok(own),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn access(variables: &[(&str, &str)]) -> Access {
        let environment: BTreeMap<String, String> =
            variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Access::read(&environment, "istio-system")
    }

    #[test]
    fn other_namespaces_see_their_own_proxies() {
        let access = access(&[("DEBUG_ENDPOINT_AUTH_ALLOWED_NAMESPACES", "ops, sre")]);
        let of = |namespace: &str| access.of(&Identity::new("td", namespace, "a"), "mesh-root");
        for all in ["istio-system", "mesh-root", "ops", "sre"] {
            assert_eq!(of(all), Viewer::All, "{all}");
        }
        let shop = of("shop");
        assert_eq!(access.admit(shop.clone(), "config_dump"), Ok(shop.clone()));
        for refused in ["syncz", "registryz", "ecdsz", "list", "force_disconnect"] {
            assert_eq!(access.admit(shop.clone(), refused), Err(StatusCode::FORBIDDEN), "{refused}");
        }
    }

    #[test]
    fn switches_lift_the_rules() {
        let lax = access(&[("TRYSAIL_DEBUG_ACROSS_NAMESPACES", "true")]);
        let shop = lax.of(&Identity::new("td", "shop", "a"), "");
        assert_eq!(lax.admit(shop.clone(), "edsz"), Ok(Viewer::All));
        assert!(lax.admit(shop, "syncz").is_err());
        let none = access(&[("ENABLE_DEBUG_ENDPOINT_AUTH", "false")]);
        assert_eq!(none.of(&Identity::new("td", "shop", "a"), ""), Viewer::All);
    }

    #[tokio::test]
    async fn the_own_machine_needs_no_proof() {
        let access = access(&[]);
        let nobody = Authenticators::default();
        let from = |peer: &str| peer.parse::<SocketAddr>().unwrap();
        for own in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(access.caller(&nobody, from(own), &HeaderMap::new()).await, Ok(None));
        }
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "127.0.0.1".parse().unwrap());
        let other = access.caller(&nobody, from("10.0.0.1:1"), &headers).await;
        assert_eq!(other, Err(StatusCode::UNAUTHORIZED));
    }
}
