//! One stream as a state machine: requests, pushes and finished translations in; jobs and responses out. No I/O.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use trysail_model::{Proxy, View};

use crate::apart::{Apart, CallerSecrets};
use crate::job::{Done, Job, Reply, TypeJob};
use crate::kind::{Kind, N_KINDS};
use crate::nack;
use crate::names::Interner;
use crate::request::{Protocol, Request};
use crate::watch::{self, Verdict, Watch};

/// The state of a stream.
///
/// ```text
/// on_request, on_push --> [due] --job()--> [running] --finish()--> [outbox] --next()--> response
/// ```
///
/// **Invariant:** a job starts only when the outbox is empty, so what a job compares with is what the client was sent.
#[derive(Debug)]
pub(crate) struct Stream {
    protocol: Protocol,
    proxy: Arc<Proxy>,
    watches: [Option<Watch>; N_KINDS],
    /// Revision that the client has once it took everything sent; unset before the first translation.
    served: Option<u64>,
    /// A push that was not translated yet.
    has_push: bool,
    running: Option<Arc<Job>>,
    /// The last translation failed and nothing came since: trying again at once would fail again.
    is_stalled: bool,
    outbox: VecDeque<Reply>,
    /// What no translation makes, as far as this stream may have it.
    apart: Apart,
    /// Type URLs that are not served, each to be logged once.
    ignored: BTreeSet<String>,
}

/// Unknown type URLs that a stream remembers; after that they are passed over in silence.
const MAX_IGNORED: usize = 16;

/// What a request came to, for logs and metrics.
#[derive(Debug)]
pub(crate) enum Event {
    Nothing,
    Acked(Kind),
    Expired(Kind),
    /// A response was refused.
    Rejected(Rejected),
    /// A type that is not served, for the first time.
    Unserved,
}

/// A NACK.
#[derive(Debug)]
pub(crate) struct Rejected {
    /// Unset for a type that is not served.
    pub(crate) kind: Option<Kind>,
    pub(crate) code: i32,
    /// Envoy's words.
    pub(crate) words: String,
    /// True if the client said just that before.
    pub(crate) is_repeated: bool,
    /// What the client was sent last; unset for a type never sent.
    pub(crate) sent: Option<Arc<View>>,
}

impl Stream {
    /// A stream on which nothing was asked yet.
    pub(crate) fn new(protocol: Protocol, proxy: Arc<Proxy>, apart: Apart) -> Self {
        Stream {
            protocol,
            proxy,
            watches: Default::default(),
            served: None,
            has_push: false,
            running: None,
            is_stalled: false,
            outbox: VecDeque::new(),
            apart,
            ignored: BTreeSet::new(),
        }
    }

    /// The proxy as the last translation knew it.
    pub(crate) fn proxy(&self) -> &Arc<Proxy> {
        &self.proxy
    }

    /// Revision that the client was served; unset before the first translation.
    pub(crate) fn served(&self) -> Option<u64> {
        self.served
    }

    /// What is watched of a type.
    pub(crate) fn watch(&self, kind: Kind) -> Option<&Watch> {
        self.watches[kind.index()].as_ref()
    }

    /// Applies a request.
    pub(crate) fn on_request(&mut self, request: &Request, interner: &Interner) -> Event {
        // Secrets need an identity; the plaintext stream has none, and istiod does not answer there either.
        let Some(kind) = Kind::of(&request.type_url).filter(|kind| self.apart.serves(*kind)) else {
            return self.on_unserved(request);
        };
        self.is_stalled = false;
        let slot = &mut self.watches[kind.index()];
        let error_before = match request.error {
            Some(_) => slot.as_ref().and_then(|watch| watch.last_error.clone()),
            None => None,
        };
        let verdict = match self.protocol {
            Protocol::Sotw => watch::apply_sotw(slot, kind, request, interner),
            Protocol::Delta => watch::apply_delta(slot, kind, request, interner),
        };
        let sent = slot.as_ref().and_then(|watch| watch.sent.clone());
        if verdict == Verdict::Subscribed && kind == Kind::CLUSTER && self.protocol == Protocol::Sotw {
            // Envoy asks for the endpoints of warming clusters with what looks like an ACK. (In the delta protocol the
            // endpoints go out with the clusters: it has no such request.)
            if let Some(endpoints) = &mut self.watches[Kind::ENDPOINT.index()] {
                endpoints.always_respond = true;
            }
        }
        match verdict {
            Verdict::Acked => Event::Acked(kind),
            Verdict::Expired => Event::Expired(kind),
            Verdict::Rejected => {
                let mut rejected = rejected(request, Some(kind), sent);
                rejected.is_repeated =
                    error_before.is_some_and(|(nonce, words)| nonce == request.nonce && words == rejected.words);
                Event::Rejected(rejected)
            }
            Verdict::Subscribed | Verdict::Spontaneous | Verdict::Unsubscribed => Event::Nothing,
        }
    }

    /// A newer snapshot is there. With `forced` everything is sent again, changed or not.
    pub(crate) fn on_push(&mut self, forced: bool) {
        self.has_push = true;
        self.is_stalled = false;
        for watch in self.watches.iter_mut().flatten().filter(|_| forced) {
            watch.due.everything = true;
            watch.due.answer = true;
        }
    }

    /// Secrets changed. Only those streams look that ever asked for one.
    pub(crate) fn on_secrets(&mut self) {
        for kind in Kind::all().filter(|kind| kind.is_apart()) {
            if let Some(watch) = &mut self.watches[kind.index()] {
                watch.due.difference = true;
                self.is_stalled = false;
            }
        }
    }

    /// The secrets of this stream's caller.
    pub(crate) fn secrets(&self) -> Option<&CallerSecrets> {
        self.apart.secrets.as_ref()
    }

    /// True when there is something to translate and nothing unsent in the way.
    pub(crate) fn wants_job(&self) -> bool {
        self.is_due() && !self.is_stalled && self.is_idle()
    }

    /// True when nothing is running and nothing waits to be sent.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_none() && self.outbox.is_empty()
    }

    /// True when a response waits to be sent.
    pub(crate) fn has_reply(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Starts a translation of what is due.
    pub(crate) fn job(&mut self) -> Arc<Job> {
        let mut types = Vec::new();
        for kind in Kind::all() {
            let Some(watch) = &mut self.watches[kind.index()] else {
                continue;
            };
            types.push(TypeJob {
                kind,
                watched: watch.watched(),
                due: std::mem::take(&mut watch.due),
                known: watch.known.clone(),
                sent: watch.sent.clone(),
                is_rejected: watch.is_rejected,
                acked: watch.acked.clone(),
            });
        }
        let job = Arc::new(Job {
            protocol: self.protocol,
            proxy: self.proxy.clone(),
            served: self.served,
            is_full: std::mem::take(&mut self.has_push),
            types,
            apart: self.apart.clone(),
        });
        self.running = Some(job.clone());
        job
    }

    /// Takes in a finished translation.
    pub(crate) fn finish(&mut self, done: Done) {
        let job = self.running.take();
        self.proxy = done.proxy;
        if done.withheld.is_empty() {
            self.served = Some(done.revision);
        } else {
            // The client has what it had, and all of it is due once it may be told.
            self.served = None;
            self.is_stalled = !self.is_due();
            for t in job.iter().flat_map(|job| &job.types).filter(|t| done.withheld.contains(&t.kind)) {
                if let Some(watch) = &mut self.watches[t.kind.index()] {
                    watch.due.merge(&t.due);
                    watch.due.difference = true;
                }
            }
        }
        for reply in done.replies {
            if reply.is_sent {
                self.outbox.push_back(reply);
            } else {
                self.settle(reply.kind, reply.view);
            }
        }
    }

    /// The translation failed: what it was for is due again, with the next request or push.
    pub(crate) fn fail(&mut self) {
        self.is_stalled = !self.is_due();
        let Some(job) = self.running.take() else {
            return;
        };
        for t in &job.types {
            if let Some(watch) = &mut self.watches[t.kind.index()] {
                watch.due.merge(&t.due);
            }
        }
        self.has_push |= job.is_full;
    }

    /// The next response, sent under the nonce given. Replies for types that were unsubscribed meanwhile are dropped.
    pub(crate) fn next(&mut self, nonce: &str) -> Option<Reply> {
        loop {
            let reply = self.outbox.pop_front()?;
            self.settle(reply.kind, reply.view.clone());
            if let Some(watch) = &mut self.watches[reply.kind.index()] {
                nonce.clone_into(&mut watch.nonce);
                watch.is_mended = reply.mends;
                return Some(reply);
            }
        }
    }

    fn is_due(&self) -> bool {
        self.has_push || self.watches.iter().flatten().any(|watch| watch.due.is_due())
    }

    fn on_unserved(&mut self, request: &Request) -> Event {
        if request.error.is_some() {
            return Event::Rejected(rejected(request, None, None));
        }
        let is_new =
            self.ignored.len() < MAX_IGNORED && self.ignored.insert(nack::cut(&request.type_url, 256).to_owned());
        if is_new { Event::Unserved } else { Event::Nothing }
    }

    /// The client has this view now, or will once it reads.
    fn settle(&mut self, kind: Kind, view: Arc<View>) {
        let Some(watch) = &mut self.watches[kind.index()] else {
            return;
        };
        watch.known = None;
        watch.sent = Some(view);
    }
}

fn rejected(request: &Request, kind: Option<Kind>, sent: Option<Arc<View>>) -> Rejected {
    let (code, words) = request.error.clone().unwrap_or_default();
    let words = nack::cut(&words, nack::MAX_WORDS).to_owned();
    Rejected { kind, code, words, is_repeated: false, sent }
}

#[cfg(test)]
mod tests;
