//! Queries by number, and their answers at the present revision.

use std::sync::Arc;

use parking_lot::RwLock;
use rustc_hash::{FxHashMap, FxHashSet};
use trysail_model::{Affected, Answer, Fingerprint, Query, QueryDecl};

use crate::calls::CallId;
use crate::node::EntryList;

/// An interned query.
pub type QueryId = u32;

/// What a query asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    /// The snapshot.
    Mesh(Query),
    /// The proxy.
    Proxy(Query),
    /// Another call's output.
    Derived(CallId),
    /// Whether another call has any item: a projection of its output, so that a change of its bytes moves nothing.
    DerivedExists(CallId),
    /// The item of a key in another call's output: a projection, too.
    DerivedItem(CallId, Arc<str>),
    /// The plugins at a hook point, in order.
    Plugins(Arc<str>),
    /// Whether there is any plugin at a hook point.
    Hooked(Arc<str>),
}

/// The queries that the engine answers itself, from other calls and from the plugins there are.
pub const OWN: [QueryDecl; 5] = [
    QueryDecl { kind: "derived", about_proxy: false, predicate: false, takes_list: true, arity: 2 },
    QueryDecl { kind: "derived-exists", about_proxy: false, predicate: true, takes_list: true, arity: 2 },
    QueryDecl { kind: "derived-items", about_proxy: false, predicate: false, takes_list: true, arity: 3 },
    QueryDecl { kind: "derived-item", about_proxy: false, predicate: false, takes_list: true, arity: 3 },
    QueryDecl { kind: "hooked", about_proxy: false, predicate: true, takes_list: false, arity: 1 },
];

impl Question {
    /// The call that is asked.
    pub fn call(&self) -> Option<CallId> {
        match self {
            Question::Derived(call) | Question::DerivedExists(call) | Question::DerivedItem(call, _) => Some(*call),
            Question::Mesh(_) | Question::Proxy(_) | Question::Plugins(_) | Question::Hooked(_) => None,
        }
    }

    /// The fingerprint of the answer, given the output of the call that is asked.
    pub fn fingerprint_in(&self, entries: &EntryList) -> Fingerprint {
        match self {
            Question::DerivedExists(_) => exists(entries.n_items),
            Question::DerivedItem(_, key) => entries.by_name(key).map_or(Fingerprint::NONE, |item| item.version),
            _ => entries.fingerprint,
        }
    }
}

/// The fingerprint of whether there is an item.
pub fn exists(n_items: usize) -> Fingerprint {
    if n_items == 0 { Fingerprint::NONE } else { Fingerprint::of(b"") }
}

/// All queries that any trace has, with the reverse index from answers to calls.
#[derive(Default)]
pub struct Queries {
    ids: RwLock<FxHashMap<Question, QueryId>>,
    /// By number; empty where a query was forgotten.
    cells: RwLock<Vec<Option<Arc<Cell>>>>,
    /// Mesh queries by kind, for changes that name a whole kind.
    by_kind: RwLock<FxHashMap<&'static str, Vec<QueryId>>>,
}

/// One query: what it asks, its answer now, and who asked.
pub struct Cell {
    /// The question.
    pub question: Question,
    /// For mesh queries: the answer at the present revision, once it was asked.
    pub answer: RwLock<Option<Arc<Answer>>>,
    /// Calls that have the query in a trace.
    pub readers: RwLock<FxHashSet<CallId>>,
}

impl Queries {
    /// The number of a question, new or known.
    pub fn intern(&self, question: &Question) -> QueryId {
        if let Some(id) = self.ids.read().get(question) {
            return *id;
        }
        let mut ids = self.ids.write();
        if let Some(id) = ids.get(question) {
            return *id;
        }
        let mut cells = self.cells.write();
        let id = QueryId::try_from(cells.len()).expect("fewer than 2^32 queries fit into memory");
        cells.push(Some(Arc::new(Cell {
            question: question.clone(),
            answer: RwLock::default(),
            readers: RwLock::default(),
        })));
        if let Question::Mesh(query) = question {
            self.by_kind.write().entry(query.kind).or_default().push(id);
        }
        ids.insert(question.clone(), id);
        id
    }

    /// The cell of a query.
    ///
    /// # Panics
    /// When the query was forgotten: what is in a trace is not.
    pub fn cell(&self, id: QueryId) -> Arc<Cell> {
        self.cells.read()[id as usize].clone().expect("a query in a trace is not forgotten")
    }

    /// The cell of a query, if it was not forgotten: of a result that was taken out of its tree and is only held on to.
    pub fn find(&self, id: QueryId) -> Option<Arc<Cell>> {
        self.cells.read()[id as usize].clone()
    }

    /// Number of queries.
    pub fn len(&self) -> usize {
        self.ids.read().len()
    }

    /// Forgets the queries that `keep` does not accept, and the readers of the others that `reads` does not. Returns how many
    /// queries went.
    pub fn retain(&self, keep: impl Fn(QueryId) -> bool, reads: impl Fn(CallId) -> bool) -> usize {
        let mut ids = self.ids.write();
        let before = ids.len();
        ids.retain(|_, id| keep(*id));
        ids.shrink_to_fit();
        for (id, cell) in (0..).zip(self.cells.write().iter_mut()) {
            if !keep(id) {
                *cell = None;
            }
            if let Some(cell) = cell {
                cell.readers.write().retain(|reader| reads(*reader));
            }
        }
        let mut by_kind = self.by_kind.write();
        by_kind.values_mut().for_each(|known| known.retain(|id| keep(*id)));
        before - ids.len()
    }

    /// True when nothing was ever asked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All mesh queries that were asked, for the audit of the reverse index.
    pub fn mesh_queries(&self) -> Vec<Query> {
        let cells = self.cells.read();
        cells
            .iter()
            .flatten()
            .filter_map(|cell| if let Question::Mesh(q) = &cell.question { Some(q.clone()) } else { None })
            .collect()
    }

    /// The known mesh queries that a change can have moved.
    pub fn affected(&self, changes: &[Affected]) -> Vec<QueryId> {
        let ids = self.ids.read();
        let by_kind = self.by_kind.read();
        let cells = self.cells.read();
        let mut found: Vec<QueryId> = Vec::new();
        for change in changes {
            match change {
                Affected::Query(query) => found.extend(ids.get(&Question::Mesh(query.clone()))),
                Affected::Kind(kind) => found.extend(by_kind.get(kind).into_iter().flatten()),
                Affected::Matching(kind, accepts) => {
                    found.extend(by_kind.get(kind).into_iter().flatten().filter(|id| {
                        let cell = cells[**id as usize].as_ref();
                        cell.is_some_and(|cell| matches!(&cell.question, Question::Mesh(query) if accepts(query)))
                    }));
                }
                Affected::Proxies(_) => {}
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}
