//! Who is connected and how far along: what debug endpoints show.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::watch;
use trysail_model::{Proxy, TypeUrl, View, Watched};

use crate::kind::{Kind, N_KINDS};
use crate::request::Protocol;

/// One connected proxy.
#[derive(Clone, Debug)]
pub struct ProxyStatus {
    /// Connection id, `<proxy id>-<number>`.
    pub connection: Arc<str>,
    /// The proxy as the last snapshot it was served knew it.
    pub proxy: Arc<Proxy>,
    /// Which form of the protocol it speaks.
    pub protocol: Protocol,
    /// When its stream began.
    pub connected_at: SystemTime,
    /// Where it comes from, `ip:port`; unset when the transport does not say.
    pub address: Option<String>,
    /// Revision that it was served; unset before the first translation.
    pub revision: Option<u64>,
    /// What it watches.
    pub types: BTreeMap<TypeUrl, TypeStatus>,
}

/// One type of a connected proxy.
#[derive(Clone, Debug, Default)]
pub struct TypeStatus {
    /// What is watched; unset when nothing is any more.
    pub watched: Option<Watched>,
    /// Nonce of the last response; empty before the first.
    pub sent_nonce: String,
    /// Version of the last response, `<time>/<counter>`; empty before the first.
    pub sent_version: String,
    /// When it was handed to the transport; unset before the first.
    pub sent_at: Option<SystemTime>,
    /// Nonce of the last response that was acknowledged; empty before the first.
    pub acked_nonce: String,
    /// Version of it.
    pub acked_version: String,
    /// Responses sent.
    pub n_sent: u64,
    /// Responses rejected.
    pub n_rejected: u64,
    /// Envoy's words in the last rejection; unset once a later response was acknowledged.
    pub last_error: Option<String>,
    /// The status code of that rejection.
    pub last_code: Option<i32>,
    /// What the proxy has once it took everything sent, shared with its stream; unset before the first response. Of secrets
    /// it has names alone.
    pub view: Option<Arc<View>>,
}

/// A connection's entry in the server's registry. The connection writes, whoever wants the status reads.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) connection: Arc<str>,
    protocol: Protocol,
    connected_at: SystemTime,
    address: Option<String>,
    /// Tells the stream to end.
    pub(crate) leave: watch::Sender<bool>,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) revision: Option<u64>,
    pub(crate) types: [Option<TypeStatus>; N_KINDS],
}

impl Entry {
    pub(crate) fn new(connection: Arc<str>, protocol: Protocol, address: Option<String>, proxy: Arc<Proxy>) -> Self {
        let state = Mutex::new(State { proxy, revision: None, types: Default::default() });
        let leave = watch::Sender::new(false);
        Entry { connection, protocol, connected_at: SystemTime::now(), address, leave, state }
    }

    /// Tells the stream to end.
    pub(crate) fn end(&self) {
        self.leave.send_replace(true);
    }

    /// Changes what is shown of a type.
    pub(crate) fn update(&self, kind: Kind, change: impl FnOnce(&mut TypeStatus)) {
        change(self.state.lock().types[kind.index()].get_or_insert_default());
    }

    /// What the proxy watches of a type now. A type that it never watched is not shown.
    pub(crate) fn watches(&self, kind: Kind, watched: Option<Watched>) {
        let status = &mut self.state.lock().types[kind.index()];
        if status.is_some() || watched.is_some() {
            let status = status.get_or_insert_default();
            if watched.is_none() {
                status.view = None;
            }
            status.watched = watched;
        }
    }

    /// The proxy was served a revision.
    pub(crate) fn served(&self, proxy: &Arc<Proxy>, revision: Option<u64>) {
        let mut state = self.state.lock();
        state.proxy = proxy.clone();
        state.revision = revision;
    }

    pub(crate) fn proxy(&self) -> Arc<Proxy> {
        self.state.lock().proxy.clone()
    }

    pub(crate) fn status(&self) -> ProxyStatus {
        let state = self.state.lock();
        let shown = Kind::all().filter_map(|kind| Some((kind.url().clone(), state.types[kind.index()].clone()?)));
        ProxyStatus {
            connection: self.connection.clone(),
            proxy: state.proxy.clone(),
            protocol: self.protocol,
            connected_at: self.connected_at,
            address: self.address.clone(),
            revision: state.revision,
            types: shown.collect(),
        }
    }
}
