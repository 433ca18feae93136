//! One stream's task: carries requests, pushes, jobs and responses between the transport, the server and the
//! [stream's state](crate::stream).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Status, Streaming};
use trysail_model::{Caller, Identity, Proxy, ResourceName};

use crate::apart::{Apart, CallerSecrets};
use crate::codec::{Frame, Incoming, Outgoing};
use crate::config::PushReport;
use crate::debug::{self, Answer, Desk, Question};
use crate::job::{Done, Reply};
use crate::kind::Kind;
use crate::nack;
use crate::pool::{Lane, Panicked};
use crate::request::{Protocol, Request, first_message};
use crate::server::{Admitted, Push, Server};
use crate::stream::{Event, Rejected, Stream};
use crate::watch::Watch;

/// Serves a stream to its end. Whatever the reason, what the server knows of it is gone afterwards.
pub(crate) async fn run(
    server: Server,
    protocol: Protocol,
    origin: Origin,
    mut inbound: Streaming<Incoming>,
    responses_tx: mpsc::Sender<Result<Frame, Status>>,
) {
    let opened = match server.enter().await {
        Ok(()) => open(&server, protocol, origin, &mut inbound).await,
        Err(status) => Err(status),
    };
    let served = match opened {
        Ok(Some(connection)) => connection.serve(&mut inbound, &responses_tx).await,
        Ok(None) => Ok(()),
        Err(status) => Err(status),
    };
    if let Err(status) = served {
        tracing::debug!(code = ?status.code(), message = status.message(), "a stream ended");
        // Nobody may be there any more to hear it.
        let _ = responses_tx.send(Err(status)).await;
    }
}

/// Where a stream comes from.
pub(crate) struct Origin {
    /// `ip:port`; unset when the transport does not say.
    pub(crate) address: Option<String>,
    /// Who called, as far as that was proved; unset on the plaintext port.
    pub(crate) caller: Option<Arc<Caller>>,
}

/// The caller's identity that is the proxy's: of its namespace and service account.
///
/// A proxy that leaves its account out could be any of its namespace, so that is refused, but for those who only ask what
/// goes on (debug types).
fn verified(proxy: &Proxy, caller: &Caller, is_debug: bool, accepts_unnamed: bool) -> Result<Identity, Status> {
    let account = proxy.metadata_text("SERVICE_ACCOUNT").unwrap_or_default();
    let fits = |identity: &Identity| {
        let unnamed = account.is_empty() && (accepts_unnamed || is_debug);
        *identity.namespace == *proxy.namespace && (*identity.service_account == *account || unnamed)
    };
    caller.identities.iter().filter_map(|text| text.parse::<Identity>().ok()).find(fits).ok_or_else(|| {
        let hint = if account.is_empty() { " (the node's metadata lack SERVICE_ACCOUNT)" } else { "" };
        let text = format!(
            "authorization failed: no identities ([{}]) matched {}/{account}{hint}",
            caller.identities.join(" "),
            proxy.namespace
        );
        Status::permission_denied(nack::cut(&text, 1024))
    })
}

/// Reads the first request. `None` when the client left before.
async fn open(
    server: &Server,
    protocol: Protocol,
    origin: Origin,
    inbound: &mut Streaming<Incoming>,
) -> Result<Option<Connection>, Status> {
    let mut stop = server.stop_rx();
    loop {
        let received = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return Err(stopping()),
            received = inbound.message() => received.map_err(transport)?,
        };
        let Some((request, bytes)) = received else {
            return Ok(None);
        };
        server.metrics().received(bytes);
        if request.is_health() {
            // The agent may be faster than Envoy; as with istiod this report is lost, and the next one comes soon.
            tracing::warn!("a health report came before the first request");
            continue;
        }
        let mut proxy = first_message(&request)?;
        let accepts_unnamed = server.accepts_unnamed_accounts();
        let identity = match &origin.caller {
            Some(caller) => Some(verified(&proxy, caller, request.is_debug(), accepts_unnamed)?),
            None => None,
        };
        let is_unnamed = proxy.metadata_text("SERVICE_ACCOUNT").unwrap_or_default().is_empty();
        proxy.identity = identity.as_ref().map(|identity| identity.to_string().into());
        let secrets = identity.clone().zip(server.secrets().cloned());
        let secrets = secrets.map(|(identity, source)| CallerSecrets { source, identity });
        let apart = Apart { secrets, trust_bundle: server.trust_bundle().cloned() };
        let admitted = server.admit(protocol, origin.address, proxy);
        tracing::info!(proxy = &*admitted.entry.connection, ?protocol, "connected");
        let mut connection = Connection {
            server: server.clone(),
            protocol,
            stream: Stream::new(protocol, admitted.entry.proxy(), apart),
            asks_only: identity.is_some() && is_unnamed && !accepts_unnamed,
            identity,
            desk: Desk::default(),
            admitted,
            pushes_forced: 0,
            pushes_secrets: server.pushes_rx().borrow().n_secrets,
            waiting_since: None,
            took: Duration::ZERO,
            set: None,
            n_sent: 0,
            is_tracing_nack: Arc::default(),
        };
        connection.on_request(&request)?;
        return Ok(Some(connection));
    }
}

/// A stream whose proxy is known.
struct Connection {
    server: Server,
    protocol: Protocol,
    stream: Stream,
    /// Who is at the other end; unset on the plaintext port.
    identity: Option<Identity>,
    /// The caller did not say as which account it runs, so it gets no configuration.
    asks_only: bool,
    /// Questions of debug types.
    desk: Desk,
    /// Its entry in the server's registry, which ends with it.
    admitted: Admitted,
    /// Forced pushes that were taken into account.
    pushes_forced: u64,
    /// Changes of secrets that were taken into account.
    pushes_secrets: u64,
    /// When the oldest push that waits was seen; unset when none waits.
    waiting_since: Option<Instant>,
    /// How long the last translation took.
    took: Duration,
    /// The set of replies in the making; unset before the first.
    set: Option<Set>,
    n_sent: u64,
    /// A NACK is on its way to the log already.
    is_tracing_nack: Arc<AtomicBool>,
}

/// What the responses of one translation have in common.
struct Set {
    version: Arc<str>,
    /// The oldest push in it; unset if only requests are.
    since: Option<Instant>,
    started: Instant,
    /// When the transport was first asked to take the next response.
    ready: Instant,
}

type JobResult = Result<Result<Done, Panicked>, oneshot::error::RecvError>;
type DebugRx = oneshot::Receiver<Result<Result<(Question, Vec<Answer>), Status>, Panicked>>;
type DebugResult = Result<Result<Result<(Question, Vec<Answer>), Status>, Panicked>, oneshot::error::RecvError>;

impl Connection {
    /// Runs until the client leaves, or with the status that the stream ends with.
    async fn serve(
        mut self,
        inbound: &mut Streaming<Incoming>,
        responses_tx: &mpsc::Sender<Result<Frame, Status>>,
    ) -> Result<(), Status> {
        let mut stop = self.server.stop_rx();
        let mut leave = self.admitted.entry.leave.subscribe();
        let age = self.server.stream_age();
        let mut aged = std::pin::pin!(tokio::time::sleep(age.unwrap_or_default()));
        let mut pushes = self.server.pushes_rx();
        let mut job_rx = None;
        let mut debug_rx: Option<DebugRx> = None;
        let mut is_open = true;
        loop {
            // Translating waits for the transport too: what a slow reader does not read is not even made.
            let wants_permit = self.stream.has_reply() || self.stream.wants_job() || self.desk.wants_permit();
            if !is_open && !wants_permit && job_rx.is_none() && debug_rx.is_none() {
                // A client that only asks and closes its side gets its answers first.
                return Ok(());
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Err(stopping()),
                _ = leave.wait_for(|leave| *leave) => return Err(Status::unavailable("disconnected: another replica may have room")),
                () = &mut aged, if age.is_some() => return Err(Status::unavailable("disconnected: the connection is old enough")),
                () = responses_tx.closed() => return Ok(()),
                // Requests before pushes, as in istiod: they say what a push has to hold.
                received = inbound.message(), if is_open => match received.map_err(transport)? {
                    Some((request, bytes)) => {
                        self.server.metrics().received(bytes);
                        self.on_request(&request)?;
                    }
                    None => is_open = false,
                },
                Ok(()) = pushes.changed() => {
                    let push = pushes.borrow_and_update().clone();
                    self.on_push(&push);
                }
                result = finished(&mut job_rx) => {
                    job_rx = None;
                    self.on_job(result)?;
                }
                result = finished_debug(&mut debug_rx) => {
                    debug_rx = None;
                    self.on_answer(result)?;
                }
                permit = responses_tx.reserve(), if wants_permit => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some((question, answers)) = self.desk.next_answer() {
                        permit.send(Ok(self.answer(&question, answers)));
                    } else if self.stream.has_reply() {
                        if let Some(outgoing) = self.next() {
                            permit.send(Ok(Frame::Resources(outgoing)));
                        }
                    } else if let Some(question) = self.desk.next_question() {
                        debug_rx = Some(self.ask(question));
                    } else {
                        job_rx = Some(self.start_job());
                    }
                }
            }
        }
    }

    fn on_request(&mut self, request: &Request) -> Result<(), Status> {
        if request.is_debug() {
            if self.server.debug().is_none() {
                return Err(Status::unauthenticated("authentication required"));
            }
            return self.desk.on_request(request);
        }
        if self.asks_only {
            let text = "authorization failed: configuration needs SERVICE_ACCOUNT in the node's metadata";
            return Err(Status::permission_denied(text));
        }
        if request.is_health() {
            return Ok(());
        }
        let event = self.stream.on_request(request, self.server.interner());
        if let Some(kind) = Kind::of(&request.type_url) {
            self.admitted.entry.watches(kind, self.stream.watch(kind).map(Watch::watched));
        }
        match event {
            Event::Nothing => {}
            Event::Acked(kind) => {
                self.admitted.entry.update(kind, |status| {
                    status.acked_nonce.clone_from(&status.sent_nonce);
                    status.acked_version.clone_from(&status.sent_version);
                });
                self.refuses(kind, None);
            }
            Event::Expired(kind) => {
                self.server.metrics().expired_nonce(kind);
                tracing::debug!(proxy = self.name(), r#type = kind.short(), "expired nonce");
            }
            Event::Unserved => {
                // istiod ends the stream: such types fall to its API generator, which wants an identity. A proxy that
                // asks for one type too many should not lose the others.
                tracing::warn!(
                    proxy = self.name(),
                    type_url = nack::cut(&request.type_url, 256),
                    "a type that is not served here; not answered"
                );
            }
            Event::Rejected(rejected) => self.on_nack(rejected),
        }
        Ok(())
    }

    /// Asks on a thread of the pool: an answer may be long.
    fn ask(&self, question: Question) -> DebugRx {
        let (server, identity) = (self.server.clone(), self.identity.clone());
        self.server.pool().run(Lane::Request, move || {
            let answers = match server.debug() {
                Some(debug) => debug.answer(&server, identity.as_ref(), &question)?,
                None => Vec::new(),
            };
            Ok((question, answers))
        })
    }

    fn on_answer(&mut self, result: DebugResult) -> Result<(), Status> {
        match result {
            Ok(Ok(answered)) => {
                self.desk.finish(Some(answered?));
                Ok(())
            }
            Ok(Err(Panicked(message))) => {
                self.server.metrics().internal_error();
                tracing::error!(proxy = self.name(), message, "a debug request panicked");
                self.desk.finish(None);
                Err(Status::internal("the debug request failed"))
            }
            Err(_) => Err(stopping()),
        }
    }

    fn answer(&mut self, question: &Question, answers: Vec<Answer>) -> Frame {
        let version = self.server.version();
        self.n_sent += 1;
        let nonce = self.server.nonce(&version, self.admitted.number, self.n_sent);
        let identifier = self.server.debug().map(|debug| debug.identifier());
        Frame::Message(debug::encode(self.protocol, question, answers, &version, nonce, identifier))
    }

    fn on_nack(&self, nack: Rejected) {
        self.server.metrics().rejected(nack.kind);
        if let Some(kind) = nack.kind {
            self.admitted.entry.update(kind, |status| status.n_rejected += 1);
            self.refuses(kind, Some(&nack));
        }
        if nack.is_repeated {
            return;
        }
        // One at a time: a client that floods the server with NACKs fills no queue.
        if self.is_tracing_nack.swap(true, Ordering::AcqRel) {
            return nack::plain(self.name(), &nack);
        }
        let is_tracing = self.is_tracing_nack.clone();
        let (translator, proxy) = (self.server.translator().clone(), self.stream.proxy().clone());
        let (connection, metrics) = (self.admitted.entry.connection.clone(), self.server.metrics().clone());
        // The outcome is a log line; if the translation panics there, the NACK is at least counted.
        drop(self.server.pool().run(Lane::Request, move || {
            let _reset = Reset(is_tracing);
            nack::log(&*translator, &metrics, &proxy, &connection, &nack);
        }));
    }

    /// The proxy refuses a type, or takes it again.
    fn refuses(&self, kind: Kind, nack: Option<&Rejected>) {
        let now = nack.map(|nack| nack.code);
        let mut before = None;
        self.admitted.entry.update(kind, |status| {
            before = std::mem::replace(&mut status.last_code, now);
            status.last_error = nack.map(|nack| nack::cut(&nack.words, nack::MAX_WORDS).to_owned());
        });
        if before.is_some() || now.is_some() {
            self.server.metrics().refuses(kind, &self.stream.proxy().id, before, now);
        }
    }

    fn on_push(&mut self, push: &Push) {
        let is_forced = push.n_forced != self.pushes_forced;
        self.pushes_forced = push.n_forced;
        if std::mem::replace(&mut self.pushes_secrets, push.n_secrets) != push.n_secrets {
            self.stream.on_secrets();
        }
        if !is_forced && self.stream.served() >= Some(push.revision) {
            return;
        }
        self.waiting_since.get_or_insert(push.since);
        self.stream.on_push(is_forced);
    }

    fn start_job(&mut self) -> oneshot::Receiver<Result<Done, Panicked>> {
        let since = self.waiting_since.take();
        let now = Instant::now();
        self.set = Some(Set { version: self.server.version(), since, started: now, ready: now });
        let job = self.stream.job();
        let lane = if since.is_some() { Lane::Push(self.took) } else { Lane::Request };
        let (translator, deltas) = (self.server.translator().clone(), self.server.deltas().clone());
        let metrics = self.server.metrics().clone();
        self.server.pool().run(lane, move || {
            if since.is_some() {
                metrics.queued(now.elapsed());
            }
            let _span = tracing::info_span!("translate", proxy = &*job.proxy.id, is_push = since.is_some()).entered();
            job.run(&*translator, &deltas)
        })
    }

    fn on_job(&mut self, result: JobResult) -> Result<(), Status> {
        let done = match result {
            Ok(Ok(done)) => done,
            Ok(Err(Panicked(message))) => {
                // Only this stream notices, and it keeps what it has.
                self.server.metrics().internal_error();
                tracing::error!(proxy = self.name(), message, "the translation panicked");
                self.stream.fail();
                self.waiting_since = self.set.take().and_then(|set| set.since);
                return Ok(());
            }
            Err(_) => return Err(stopping()),
        };
        if let Some(set) = &mut self.set {
            set.started = done.started;
            set.ready = Instant::now();
            self.took = set.ready.saturating_duration_since(set.started);
        }
        self.stream.finish(done);
        self.admitted.entry.served(self.stream.proxy(), self.stream.served());
        self.converge();
        Ok(())
    }

    /// The next response, as the transport takes it.
    fn next(&mut self) -> Option<Outgoing> {
        let version = self.set.as_ref().map(|set| set.version.clone()).unwrap_or_default();
        self.n_sent += 1;
        let nonce = self.server.nonce(&version, self.admitted.number, self.n_sent);
        let mut reply = self.stream.next(&nonce)?;
        if reply.kind == Kind::SECRET {
            // The one place where the bytes are joined; they live as long as this response.
            reply.resources =
                self.stream.secrets().map(|own| own.join(self.stream.proxy(), reply.resources)).unwrap_or_default();
        }
        let (kind, report, view) = (reply.kind, self.report(&reply), reply.view.clone());
        let outgoing = Outgoing {
            protocol: self.protocol,
            type_url: kind.url().clone(),
            version,
            nonce,
            resources: reply.resources,
            removed: if self.protocol == Protocol::Delta { reply.removed } else { Vec::new() },
        };
        self.admitted.entry.update(kind, |status| {
            status.sent_nonce.clone_from(&outgoing.nonce);
            outgoing.version.as_ref().clone_into(&mut status.sent_version);
            status.sent_at = Some(SystemTime::now());
            status.n_sent += 1;
            status.view = Some(view);
        });
        if let Some(set) = &mut self.set {
            let (took, waited) = (set.started.elapsed(), set.ready.elapsed());
            self.server.metrics().sent(kind, outgoing.body_len(), took, waited);
            set.ready = Instant::now();
        }
        if let (Some(report), Some(on_push)) = (report, self.server.on_push()) {
            on_push(&report);
        }
        self.converge();
        Some(outgoing)
    }

    /// Once all of a push is sent, the proxy has converged.
    fn converge(&mut self) {
        if !self.stream.has_reply()
            && let Some(since) = self.set.as_mut().and_then(|set| set.since.take())
        {
            self.server.metrics().converged(since.elapsed());
        }
    }

    /// What the observer is told; `None` when there is no observer.
    fn report(&self, reply: &Reply) -> Option<PushReport> {
        self.server.on_push()?;
        let text = |name: &ResourceName| name.as_str().to_owned();
        let changed = match &reply.changed {
            Some(changed) => changed.iter().map(|resource| text(&resource.name)).collect(),
            None => reply.resources.iter().map(|(resource, _)| text(&resource.name)).collect(),
        };
        Some(PushReport {
            proxy: self.stream.proxy().clone(),
            connection: self.admitted.entry.connection.clone(),
            kind: reply.kind.short(),
            changed,
            removed: reply.removed.iter().map(text).collect(),
            n_resources: reply.resources.len(),
            bytes: reply.resources.iter().map(|(resource, _)| resource.body.len()).sum(),
            revision: self.stream.served().unwrap_or_default(),
        })
    }

    fn name(&self) -> &str {
        &self.admitted.entry.connection
    }
}

/// Clears a flag when dropped, also by a panic.
struct Reset(Arc<AtomicBool>);

impl Drop for Reset {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The result of the job, if one is running.
async fn finished(job_rx: &mut Option<oneshot::Receiver<Result<Done, Panicked>>>) -> JobResult {
    match job_rx {
        Some(job_rx) => job_rx.await,
        None => std::future::pending().await,
    }
}

/// The answer to a debug question, if one is asked.
async fn finished_debug(debug_rx: &mut Option<DebugRx>) -> DebugResult {
    match debug_rx {
        Some(debug_rx) => debug_rx.await,
        None => std::future::pending().await,
    }
}

fn stopping() -> Status {
    Status::unavailable("the server is stopping")
}

/// The code that gRPC libraries use for a message that is too long; tonic has its own.
fn transport(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => Status::resource_exhausted(status.message()),
        _ => status,
    }
}
