//! Queries, their answers, and the snapshot that answers them.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::{Fingerprint, ObjectRef, Proxy};

/// A question to the snapshot or about a proxy: a kind (the name of the WIT function) and its arguments.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Query {
    /// Name of the query kind, `service`.
    pub kind: &'static str,
    /// Arguments in order; numbers in decimal.
    pub args: Vec<String>,
}

/// A kind of query as guests are linked with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryDecl {
    /// Name, as in WIT.
    pub kind: &'static str,
    /// It is about the proxy, not the mesh.
    pub about_proxy: bool,
    /// The answer is a truth value.
    pub predicate: bool,
    /// Takes one list of texts after (or, with an arity of 0, in place of) single texts.
    pub takes_list: bool,
    /// Number of texts that it takes.
    pub arity: usize,
}

impl Query {
    /// Makes a query.
    pub fn new(kind: &'static str, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Query { kind, args: args.into_iter().map(Into::into).collect() }
    }

    /// Argument `i`, or the empty text.
    pub fn arg(&self, i: usize) -> &str {
        self.args.get(i).map_or("", String::as_str)
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.kind, self.args.join(", "))
    }
}

impl fmt::Debug for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What a query was answered: all that the asker can see of it, and what stands behind it.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The bytes, or `None` for "there is none", which is an answer like any other.
    pub value: Option<Bytes>,
    /// Fingerprint of `value`; [`Fingerprint::NONE`] for `None`.
    pub fingerprint: Fingerprint,
    /// The objects that the answer came from, or, when there is none, those that would have changed it.
    pub objects: Arc<[ObjectRef]>,
}

impl Answer {
    /// An answer of bytes, or none.
    pub fn new(value: Option<Bytes>, objects: impl Into<Arc<[ObjectRef]>>) -> Self {
        let fingerprint = value.as_ref().map_or(Fingerprint::NONE, |bytes| Fingerprint::of(bytes));
        Answer { value, fingerprint, objects: objects.into() }
    }

    /// "There is none".
    pub fn none() -> Self {
        Answer { value: None, fingerprint: Fingerprint::NONE, objects: [].into() }
    }

    /// A predicate's answer: present (empty) for true, none for false.
    pub fn truth(holds: bool) -> Self {
        Answer::new(holds.then(Bytes::new), [])
    }
}

/// One immutable state of everything known, with its revision.
///
/// **Invariant:** an answer depends on the snapshot and the query alone, never on time, on the order of events or on
/// who asks; what concerns the proxy is asked of the proxy.
pub trait Snapshot: Send + Sync {
    /// Grows by one with each snapshot.
    fn revision(&self) -> u64;

    /// Answers a query; an unknown kind or a malformed argument is "there is none".
    fn answer(&self, query: &Query) -> Answer;

    /// Answers a query about a proxy, from its node and the workload known for its addresses.
    ///
    /// **Invariant:** pure in `proxy`: whatever of the registry concerns a proxy was put into it by
    /// [`Snapshot::refresh`].
    fn answer_about(&self, proxy: &Proxy, query: &Query) -> Answer;

    /// The proxy as this snapshot knows it (its workload's labels, locality, network), or `None` when nothing changed.
    fn refresh(&self, proxy: &Proxy) -> Option<Proxy>;

    /// This snapshot as it would be without one object: how `explain` finds out which object made a field.
    fn without(&self, object: &ObjectRef) -> Arc<dyn Snapshot>;
}

/// Which queries' answers a change can have moved.
#[derive(Clone)]
pub enum Affected {
    /// Exactly this query.
    Query(Query),
    /// Every query of a kind.
    Kind(&'static str),
    /// The queries of a kind whose arguments the predicate accepts (wildcard hosts).
    Matching(&'static str, Arc<dyn Fn(&Query) -> bool + Send + Sync>),
    /// No query, but what the snapshot knows of these proxies ([`Snapshot::refresh`]).
    Proxies(Proxies),
}

/// Proxies by what a change of the registry tells of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proxies {
    /// All of them.
    All,
    /// Those of a namespace.
    Namespace(String),
    /// Those that have this IP address.
    Address(String),
}

impl Proxies {
    /// Is the proxy one of them?
    pub fn covers(&self, proxy: &Proxy) -> bool {
        match self {
            Proxies::All => true,
            Proxies::Namespace(namespace) => **namespace == *proxy.namespace,
            Proxies::Address(address) => proxy.addresses.contains(address),
        }
    }
}

impl Affected {
    /// True when the query is among those named.
    pub fn covers(&self, query: &Query) -> bool {
        match self {
            Affected::Query(one) => one == query,
            Affected::Kind(kind) => *kind == query.kind,
            Affected::Matching(kind, accepts) => *kind == query.kind && accepts(query),
            Affected::Proxies(_) => false,
        }
    }

    /// True when what the snapshot knows of the proxy is named.
    pub fn covers_proxy(&self, proxy: &Proxy) -> bool {
        matches!(self, Affected::Proxies(proxies) if proxies.covers(proxy))
    }
}

impl fmt::Debug for Affected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Affected::Query(query) => write!(f, "{query}"),
            Affected::Kind(kind) => write!(f, "{kind}(*)"),
            Affected::Matching(kind, _) => write!(f, "{kind}(some)"),
            Affected::Proxies(proxies) => write!(f, "proxies({proxies:?})"),
        }
    }
}
