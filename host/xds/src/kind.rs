//! The resource types that the server serves, as small numbers.

use std::sync::LazyLock;

use trysail_model::TypeUrl;
use trysail_model::ids::type_urls;

/// A type of resource: its place in [`type_urls::PUSH_ORDER`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Kind(usize);

/// How many there are.
pub(crate) const N_KINDS: usize = type_urls::PUSH_ORDER.len();

static URLS: LazyLock<Vec<TypeUrl>> = LazyLock::new(|| type_urls::PUSH_ORDER.iter().map(|&url| url.into()).collect());

impl Kind {
    pub(crate) const CLUSTER: Kind = Kind::at(type_urls::CLUSTER);
    pub(crate) const ENDPOINT: Kind = Kind::at(type_urls::ENDPOINT);
    pub(crate) const SECRET: Kind = Kind::at(type_urls::SECRET);
    pub(crate) const TRUST_BUNDLE: Kind = Kind::at(type_urls::TRUST_BUNDLE);

    /// The type of a URL; `None` for one that is not served.
    pub(crate) fn of(type_url: &str) -> Option<Kind> {
        type_urls::PUSH_ORDER.iter().position(|&known| known == type_url).map(Kind)
    }

    /// All types in push order.
    pub(crate) fn all() -> impl Iterator<Item = Kind> {
        (0..N_KINDS).map(Kind)
    }

    pub(crate) fn index(self) -> usize {
        self.0
    }

    pub(crate) fn url(self) -> &'static TypeUrl {
        &URLS[self.0]
    }

    /// The name in metrics and logs, `cds`.
    pub(crate) fn short(self) -> &'static str {
        type_urls::short(type_urls::PUSH_ORDER[self.0]).unwrap_or("unknown")
    }

    /// True for types that no translation makes.
    pub(crate) fn is_apart(self) -> bool {
        self == Kind::SECRET || self == Kind::TRUST_BUNDLE
    }

    /// True for types of which a proxy asks by name only: no names means none, and a state-of-the-world response
    /// need not hold all of them. The other types' responses are the full state.
    pub(crate) fn is_named(self) -> bool {
        matches!(
            type_urls::PUSH_ORDER[self.0],
            type_urls::ENDPOINT | type_urls::ROUTE | type_urls::SECRET | type_urls::EXTENSION
        )
    }

    /// False for extension configurations, of which Envoy must not lose one that a listener still uses: they are
    /// pushed after the listeners, but Envoy may keep the old listener while it drains. istiod never removes them. Nor for
    /// secrets: a gateway goes on with the certificate that it has.
    pub(crate) fn sends_removals(self) -> bool {
        !matches!(type_urls::PUSH_ORDER[self.0], type_urls::EXTENSION | type_urls::SECRET)
    }

    const fn at(type_url: &str) -> Kind {
        let mut index = 0;
        while index < N_KINDS {
            if same(type_urls::PUSH_ORDER[index].as_bytes(), type_url.as_bytes()) {
                return Kind(index);
            }
            index += 1;
        }
        panic!("not in the push order")
    }
}

/// Equality that a constant can use.
const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut index = 0;
    while index < a.len() {
        if a[index] != b[index] {
            return false;
        }
        index += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_the_push_order() {
        assert_eq!(Kind::of(type_urls::CLUSTER), Some(Kind::CLUSTER));
        assert!(Kind::CLUSTER < Kind::ENDPOINT);
        assert_eq!(Kind::ENDPOINT.short(), "eds");
        assert_eq!(Kind::of("type.googleapis.com/x.Unknown"), None);
        assert!(Kind::all().all(|kind| Kind::of(kind.url().as_str()) == Some(kind)));
    }
}
