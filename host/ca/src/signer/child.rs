//! The signer's side: a few threads around an [`Authority`]; no network but to the API server, where the key is kept there.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::protocol::{self, FromSigner, Place, Source, Start, ToSigner};
use crate::authority::Authority;
use crate::roots::{CaStore, FolderStore, MemoryStore, OpenSecret, Plugged, RootError, Roots, SelfSigned};

/// Time between two looks at files and clocks.
pub(crate) const TICK: Duration = Duration::from_millis(500);

/// Runs until the other side closes. Standard input is the socket.
///
/// # Errors
/// When the socket fails.
pub fn run(open_secret: &OpenSecret) -> io::Result<()> {
    // Others of the same user shall not read this process's memory, nor a core dump hold it.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    serve(socket, open_secret)
}

pub(crate) fn serve(mut socket: UnixStream, open_secret: &OpenSecret) -> io::Result<()> {
    let to_parent = Arc::new(Mutex::new(socket.try_clone()?));
    let say = |message: FromSigner| protocol::write(&mut *to_parent.lock(), &message);
    let Some(ToSigner::Start(start)) = protocol::read(&mut socket)? else {
        return Ok(());
    };
    let authority = match open(&start, open_secret) {
        Ok(authority) => Arc::new(authority),
        Err(error) => return say(FromSigner::Failed(chain(&error))),
    };
    say(FromSigner::Bundle((*authority.bundle()).clone()))?;

    let n_workers = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // As many again may wait here; the rest waits in the socket, and so with those who ask.
    let (orders_tx, orders_rx) = mpsc::sync_channel(n_workers);
    let orders_rx = Arc::new(Mutex::new(orders_rx));
    for _ in 0..n_workers {
        let (authority, orders_rx, to_parent) = (authority.clone(), orders_rx.clone(), to_parent.clone());
        thread::Builder::new().name("sign".into()).spawn(move || {
            loop {
                let next = orders_rx.lock().recv();
                let Ok((id, order)) = next else { return };
                let answer = match authority.issue(&order, SystemTime::now()) {
                    Ok(der) => FromSigner::Issued { id, der },
                    Err(error) => FromSigner::Refused { id, error },
                };
                if protocol::write(&mut *to_parent.lock(), &answer).is_err() {
                    return;
                }
            }
        })?;
    }
    {
        let to_parent = to_parent.clone();
        thread::Builder::new().name("roots".into()).spawn(move || maintain(&authority, &to_parent))?;
    }
    loop {
        match protocol::read(&mut socket)? {
            Some(ToSigner::Issue { id, order }) => {
                if orders_tx.send((id, order)).is_err() {
                    return Ok(());
                }
            }
            // A second start means nothing.
            Some(ToSigner::Start(_)) => {}
            None => return Ok(()),
        }
    }
}

fn maintain(authority: &Authority, to_parent: &Mutex<UnixStream>) {
    let mut last = String::new();
    loop {
        thread::sleep(TICK);
        let message = match authority.maintain(SystemTime::now()) {
            Ok(true) => {
                last.clear();
                FromSigner::Bundle((*authority.bundle()).clone())
            }
            Ok(false) => continue,
            Err(error) => {
                let text = chain(&error);
                if text == last {
                    continue;
                }
                last.clone_from(&text);
                FromSigner::Warning(text)
            }
        };
        if protocol::write(&mut *to_parent.lock(), &message).is_err() {
            return;
        }
    }
}

/// The authority that a start message describes.
pub(crate) fn open(start: &Start, open_secret: &OpenSecret) -> Result<Authority, RootError> {
    let roots = match &start.source {
        Source::Plugged { dir, accepts_new_roots } => Roots::Plugged(Plugged::new(dir.clone(), *accepts_new_roots)),
        Source::SelfSigned { place, organization, lifetime, rsa_bits, rotation } => {
            let store: Box<dyn CaStore> = match place {
                Place::Folder(dir) => Box::new(FolderStore::new(dir.clone())),
                Place::Memory => Box::new(MemoryStore::default()),
                Place::Secret(place) => open_secret(place)?,
            };
            Roots::SelfSigned(SelfSigned::new(store, organization.clone(), *lifetime, *rsa_bits, *rotation))
        }
    };
    Authority::open(roots, start.lifetimes, SystemTime::now())
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(cause) = at {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        at = cause.source();
    }
    text
}
