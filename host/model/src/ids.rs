//! Newtypes for everything that is a string and could be swapped with another.

use std::fmt;
use std::sync::Arc;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub Arc<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                $name(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                $name(text.into())
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

id! {
    /// An xDS type URL, `type.googleapis.com/envoy.config.cluster.v3.Cluster`.
    TypeUrl
}
id! {
    /// The name of an xDS resource within its type.
    ResourceName
}
id! {
    /// The name of a stage or plugin component: `clusters`, or a plugin's file name without its ending.
    StageName
}

/// The type URLs that the server knows, in the order in which a push sends them: what is referred to goes
/// before what refers to it, so Envoy can warm (clusters, endpoints, listeners, routes, extensions, names).
pub mod type_urls {
    /// Clusters (CDS).
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    /// Endpoints of a cluster (EDS).
    pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    /// Listeners (LDS).
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    /// Route configurations (RDS).
    pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    /// Secrets (SDS).
    pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    /// Extension configurations (ECDS).
    pub const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
    /// The agent's DNS name table (NDS).
    pub const NAME_TABLE: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";
    /// The roots that the agent is to trust (PCDS), as a ProxyConfig with nothing else in it.
    pub const TRUST_BUNDLE: &str = "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig";

    /// All of them in push order.
    pub const PUSH_ORDER: [&str; 8] = [CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, EXTENSION, NAME_TABLE, TRUST_BUNDLE];

    /// The short name that logs, metrics and `render` use: `cds` for clusters.
    pub fn short(type_url: &str) -> Option<&'static str> {
        Some(match type_url {
            CLUSTER => "cds",
            ENDPOINT => "eds",
            LISTENER => "lds",
            ROUTE => "rds",
            SECRET => "sds",
            EXTENSION => "ecds",
            NAME_TABLE => "nds",
            TRUST_BUNDLE => "pcds",
            _ => return None,
        })
    }
}
