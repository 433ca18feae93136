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
use crate::authority::{Authority, Order, PublicBundle};
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
    let to_parent = Arc::new(Parent { socket: Mutex::new(socket.try_clone()?), told: Mutex::default() });
    let Some(ToSigner::Start(start)) = protocol::read(&mut socket)? else {
        return Ok(());
    };
    let authority = match open(&start, open_secret) {
        Ok(authority) => Arc::new(authority),
        Err(error) => return to_parent.say(&FromSigner::Failed(chain(&error))),
    };
    to_parent.tell(&authority)?;

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
                if to_parent.answer(&authority, id, &order).is_err() {
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

/// The way to the control plane.
struct Parent {
    socket: Mutex<UnixStream>,
    /// The bundle that it was told last; whoever changes it holds the lock until the message is written.
    told: Mutex<Option<Arc<PublicBundle>>>,
}

impl Parent {
    fn say(&self, message: &FromSigner) -> io::Result<()> {
        protocol::write(&mut *self.socket.lock(), message)
    }

    fn tell(&self, authority: &Authority) -> io::Result<()> {
        self.tell_locked(&mut self.told.lock(), authority)
    }

    fn tell_locked(&self, told: &mut Option<Arc<PublicBundle>>, authority: &Authority) -> io::Result<()> {
        let bundle = authority.bundle();
        if told.as_ref().is_some_and(|told| Arc::ptr_eq(told, &bundle)) {
            return Ok(());
        }
        self.say(&FromSigner::Bundle((*bundle).clone()))?;
        *told = Some(bundle);
        Ok(())
    }

    /// Signs and answers. The control plane takes a leaf to be of the bundle that it was told last, so a leaf of another one is
    /// made anew.
    fn answer(&self, authority: &Authority, id: u64, order: &Order) -> io::Result<()> {
        loop {
            let issued = match authority.issue(order, SystemTime::now()) {
                Ok(issued) => issued,
                Err(error) => return self.say(&FromSigner::Refused { id, error }),
            };
            let mut told = self.told.lock();
            self.tell_locked(&mut told, authority)?;
            if told.as_ref().is_some_and(|told| Arc::ptr_eq(told, &issued.bundle)) {
                return self.say(&FromSigner::Issued { id, der: issued.der });
            }
        }
    }
}

fn maintain(authority: &Authority, to_parent: &Parent) {
    let mut last = String::new();
    loop {
        thread::sleep(TICK);
        let message = match authority.maintain(SystemTime::now()) {
            Ok(true) => {
                last.clear();
                match to_parent.tell(authority) {
                    Ok(()) => continue,
                    Err(_) => return,
                }
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
        if to_parent.say(&message).is_err() {
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
