//! What is served apart from translations: secrets of the stream's caller, of which no stage and no view ever has the bytes,
//! and the roots that everybody is to trust.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use trysail_model::{Fingerprint, Identity, Proxy, Resource, ResourceName, Rope, Secrets, TrustBundle, View, Watched};

use crate::kind::Kind;

/// What one stream may be served.
#[derive(Clone, Default)]
pub(crate) struct Apart {
    /// The secrets of the caller; unset for an anonymous one.
    pub(crate) secrets: Option<CallerSecrets>,
    /// Unset where proxies are told no roots.
    pub(crate) trust_bundle: Option<Arc<dyn TrustBundle>>,
}

impl fmt::Debug for Apart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Apart").field("secrets", &self.secrets).finish_non_exhaustive()
    }
}

impl Apart {
    /// Is a type served to this stream? Translated ones are.
    pub(crate) fn serves(&self, kind: Kind) -> bool {
        match kind {
            Kind::SECRET => self.secrets.is_some(),
            Kind::TRUST_BUNDLE => self.trust_bundle.is_some(),
            _ => true,
        }
    }

    /// What there is of a type that no translation makes.
    pub(crate) fn view(&self, kind: Kind, proxy: &Proxy, watched: &Watched) -> Arc<View> {
        match (kind, &self.trust_bundle) {
            (Kind::TRUST_BUNDLE, Some(bundle)) => {
                let body = Rope::from_bytes(bundle.encoded());
                // istiod gives it no name.
                let resource = Resource { name: ResourceName::from(""), version: body.fingerprint(), body };
                let fingerprint = resource.version;
                view_of(vec![Arc::new(resource)], fingerprint)
            }
            _ => view(self.secrets.as_ref(), proxy, watched),
        }
    }
}

/// Secrets, and for whom.
#[derive(Clone)]
pub(crate) struct CallerSecrets {
    pub(crate) source: Arc<dyn Secrets>,
    pub(crate) identity: Identity,
}

impl fmt::Debug for CallerSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "secrets of {}", self.identity)
    }
}

/// Ids of these views. The translation counts its own from the other end.
static NEXT_ID: AtomicU64 = AtomicU64::new(u64::MAX);

/// What a caller may have of the secrets that are watched.
///
/// **Invariant:** its resources have no bodies. Views are kept, compared and shared; bytes of secrets are none of that.
fn view(secrets: Option<&CallerSecrets>, proxy: &Proxy, watched: &Watched) -> Arc<View> {
    let visible = match (secrets, watched) {
        (Some(own), Watched::Names(names)) => own.source.visible(&own.identity, proxy, names),
        _ => Vec::new(),
    };
    let parts: Vec<[u8; 16]> = visible.iter().map(|(_, version)| version.to_bytes()).collect();
    let fingerprint = visible.iter().zip(&parts).flat_map(|((name, _), part)| [name.as_str().as_bytes(), part]);
    let fingerprint = Fingerprint::of_parts(fingerprint);
    let resource = |(name, version)| Arc::new(Resource { name, version, body: Rope::from_bytes(Vec::new()) });
    let resources = visible.into_iter().map(resource).collect();
    view_of(resources, fingerprint)
}

fn view_of(resources: Vec<Arc<Resource>>, fingerprint: Fingerprint) -> Arc<View> {
    Arc::new(View { id: NEXT_ID.fetch_sub(1, Ordering::Relaxed), resources, fingerprint })
}

impl CallerSecrets {
    /// Joins names and bytes for one response. What is gone meanwhile, or is another by now, is left out: a push with what
    /// is true is on its way.
    pub(crate) fn join(
        &self,
        proxy: &Proxy,
        resources: Vec<(Arc<Resource>, Fingerprint)>,
    ) -> Vec<(Arc<Resource>, Fingerprint)> {
        let join = |(bare, version): (Arc<Resource>, Fingerprint)| {
            let body = self.source.body(&self.identity, proxy, &bare.name, bare.version)?;
            let whole = Resource { name: bare.name.clone(), version: bare.version, body: Rope::from_bytes(body) };
            Some((Arc::new(whole), version))
        };
        resources.into_iter().filter_map(join).collect()
    }
}
