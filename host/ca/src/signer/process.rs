//! The control plane's side: starts the signer, talks to it, starts it again when it ends.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::async_trait;

use super::Signer;
use super::protocol::{self, FromSigner, Start, ToSigner};
use crate::authority::{IssueError, Issued, Order, PublicBundle};

/// How long one certificate may take before the caller is told that there is none.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the start may take: an RSA key of 8192 bits takes its time.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// Where a pod finds the API server.
const IN_CLUSTER: [&str; 2] = ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"];
/// Orders that may be under way; more are refused at once instead of growing old.
const MAX_WAITING: usize = 4096;

/// The signer could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The system refused.
    #[error("cannot start the signer process")]
    System(#[from] io::Error),
    /// It started, and says why it cannot sign.
    #[error("the signer: {0}")]
    Refused(String),
    /// It ended, or said nothing for too long.
    #[error("the signer process ended before it was ready")]
    Ended,
}

/// A signer in another process.
pub struct SignerProcess {
    shared: Arc<Shared>,
}

/// Where the answer to a question goes.
type Waiting = oneshot::Sender<Result<Issued, IssueError>>;

struct Shared {
    /// Where orders go; replaced when the process is.
    orders_tx: Mutex<mpsc::Sender<Vec<u8>>>,
    waiting: Mutex<HashMap<u64, Waiting>>,
    next_id: AtomicU64,
    bundle: watch::Sender<Arc<PublicBundle>>,
}

/// A process with both directions.
struct Running {
    child: Child,
    socket: UnixStream,
    bundle: PublicBundle,
}

impl SignerProcess {
    /// Starts `program` with `args`, which must end in [`run_child`](super::run_child), and waits until it has its key.
    /// It is started again if it ends, until the handle is dropped.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub async fn start(program: PathBuf, args: Vec<String>, start: Start) -> Result<SignerProcess, SpawnError> {
        let running = spawn(&program, &args, &start).await?;
        let (orders_tx, orders_rx) = mpsc::channel(256);
        let shared = Arc::new(Shared {
            orders_tx: Mutex::new(orders_tx),
            waiting: Mutex::default(),
            next_id: AtomicU64::new(0),
            bundle: watch::Sender::new(Arc::new(running.bundle.clone())),
        });
        tokio::spawn(supervise(Arc::downgrade(&shared), running, orders_rx, program, args, start));
        Ok(SignerProcess { shared })
    }
}

#[async_trait]
impl Signer for SignerProcess {
    async fn issue(&self, order: Order) -> Result<Issued, IssueError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let not_ready = |_| IssueError::NotReady;
        let frame = protocol::encode(&ToSigner::Issue { id, order }).map_err(not_ready)?;
        let (answer_tx, answer_rx) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting.lock();
            if waiting.len() >= MAX_WAITING {
                return Err(IssueError::NotReady);
            }
            waiting.insert(id, answer_tx);
        }
        let _forget = Forget(&self.shared, id);
        let orders_tx = self.shared.orders_tx.lock().clone();
        let answered = tokio::time::timeout(PATIENCE, async {
            orders_tx.send(frame).await.map_err(|_| IssueError::NotReady)?;
            answer_rx.await.unwrap_or(Err(IssueError::NotReady))
        });
        answered.await.unwrap_or(Err(IssueError::NotReady))
    }

    fn bundle(&self) -> watch::Receiver<Arc<PublicBundle>> {
        self.shared.bundle.subscribe()
    }
}

/// Takes an order off the list however its caller ends.
struct Forget<'a>(&'a Shared, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().remove(&self.1);
    }
}

async fn spawn(program: &PathBuf, args: &[String], start: &Start) -> Result<Running, SpawnError> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let child = Command::new(program)
        .args(args)
        // It needs nothing of the environment but where the API server is, and what it has not cannot leak.
        .env_clear()
        .envs(IN_CLUSTER.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        // A signal from a terminal is for us; it ends when we do.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut socket = UnixStream::from_std(ours)?;
    socket.write_all(&protocol::encode(&ToSigner::Start(start.clone()))?).await?;
    let first = tokio::time::timeout(START_PATIENCE, read(&mut socket)).await;
    match first {
        Ok(Ok(FromSigner::Bundle(bundle))) => Ok(Running { child, socket, bundle }),
        Ok(Ok(FromSigner::Failed(why))) => Err(SpawnError::Refused(why)),
        _ => Err(SpawnError::Ended),
    }
}

async fn read(socket: &mut (impl tokio::io::AsyncRead + Unpin)) -> io::Result<FromSigner> {
    let mut header = [0; 4];
    socket.read_exact(&mut header).await?;
    let mut body = vec![0; protocol::length(header)?];
    socket.read_exact(&mut body).await?;
    protocol::decode(&body)
}

/// Carries messages until the handle is dropped; a signer that ends is replaced.
async fn supervise(
    shared: std::sync::Weak<Shared>,
    mut running: Running,
    mut orders_rx: mpsc::Receiver<Vec<u8>>,
    program: PathBuf,
    args: Vec<String>,
    start: Start,
) {
    loop {
        let ended = carry(&shared, running, &mut orders_rx).await;
        let Some(strong) = shared.upgrade().filter(|_| ended) else { return };
        tracing::error!("the signer process ended; starting another");
        // Nobody knows what became of these.
        strong.waiting.lock().clear();
        drop(strong);
        running = loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            match spawn(&program, &args, &start).await {
                Ok(running) => break running,
                Err(error) => tracing::error!(%error, "no signer; certificates are not issued"),
            }
            if shared.strong_count() == 0 {
                return;
            }
        };
        if let Some(shared) = shared.upgrade() {
            shared.bundle.send_replace(Arc::new(running.bundle.clone()));
        }
    }
}

/// True when the signer ended, false when nobody needs it any more.
async fn carry(shared: &std::sync::Weak<Shared>, running: Running, orders_rx: &mut mpsc::Receiver<Vec<u8>>) -> bool {
    let Running { child: _child, socket, bundle: _ } = running;
    let (mut from, mut to) = socket.into_split();
    let (messages_tx, mut messages_rx) = mpsc::channel(64);
    let reading = tokio::spawn(async move {
        while let Ok(message) = read(&mut from).await {
            if messages_tx.send(message).await.is_err() {
                return;
            }
        }
    });
    let reading = AbortOnDrop(reading);
    loop {
        tokio::select! {
            order = orders_rx.recv() => match order {
                Some(frame) => if to.write_all(&frame).await.is_err() { return true },
                // The handle is gone, and with it the sender.
                None => return false,
            },
            message = messages_rx.recv() => {
                let Some(message) = message else { return true };
                let Some(shared) = shared.upgrade() else { return false };
                match message {
                    FromSigner::Bundle(bundle) => drop(shared.bundle.send_replace(Arc::new(bundle))),
                    // The signer says the bundle before what it signs by it, so it is the one that came last.
                    FromSigner::Issued { id, der } => {
                        let bundle = shared.bundle.borrow().clone();
                        answer(&shared, id, Ok(Issued { der, bundle }));
                    }
                    FromSigner::Refused { id, error } => answer(&shared, id, Err(error)),
                    FromSigner::Warning(text) => tracing::warn!(reason = text, "the signer keeps what it has"),
                    FromSigner::Failed(text) => {
                        tracing::error!(reason = text, "the signer failed");
                        return true;
                    }
                }
            }
        }
        if reading.0.is_finished() && messages_rx.is_empty() {
            return true;
        }
    }
}

fn answer(shared: &Shared, id: u64, answer: Result<Issued, IssueError>) {
    if let Some(waiting) = shared.waiting.lock().remove(&id) {
        // Its caller may have left.
        let _ = waiting.send(answer);
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
